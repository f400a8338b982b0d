"""Features of pretrained networks: those of torchvision's own model, made once, and known by weights and images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

import fewshot as fs
import fewshot.training.pretrained as pretrained
from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank
from fewshot.tasks.sampler import Sampler
from fewshot.training.pretrained import pretrained_features

Make = Callable[..., Any]
MODEL, SIZE = "shufflenet_v2_x0_5", 32  # as of the fixture `weights`
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@pytest.fixture
def images(make_bank: Make) -> dict[str, Bank]:
    """Three splits of small grey images, each with classes of its own."""
    counts = (4, 3, 4)
    return {
        split: make_bank(counts, seed=seed, split=split, shape=(1, 16, 16))
        for seed, split in enumerate(("train", "val", "test"))
    }


def made(images: dict[str, Bank], weights: str, cache: Path, **choices: Any) -> dict[str, Bank]:
    choices = {"size": SIZE} | choices
    return pretrained_features(images, MODEL, weights, cache=cache, device="cpu", **choices)


def test_features_are_those_of_torchvisions_model_on_prepared_images(
    images: dict[str, Bank], weights: str, tmp_path: Path
) -> None:
    model: Any = models.get_model(MODEL, weights=None).eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.fc = nn.Identity()
    bank = made(images, weights, tmp_path)["test"]
    x = (images["test"].examples / 255).expand(-1, 3, -1, -1)
    x = nn.functional.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True)
    expected = model((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    torch.testing.assert_close(bank.examples, expected.detach(), rtol=1e-4, atol=1e-4)
    assert bank.names == images["test"].names


def test_a_bank_names_its_model_weights_and_preprocessing(
    images: dict[str, Bank], weights: str, tmp_path: Path
) -> None:
    about = made(images, weights, tmp_path, crop=12)["train"].metadata["extractor"]
    assert (about["name"], about["weights"]["file"], len(about["weights"]["sha256"])) == (MODEL, "weights.pth", 64)
    assert about["preprocessing"] == {"crop": 12, "size": SIZE, "mean": list(MEAN), "std": list(STD)}
    assert about["images"] == {split: bank.fingerprint for split, bank in images.items()}


def test_tasks_of_features_are_the_tasks_of_their_images(images: dict[str, Bank], weights: str, tmp_path: Path) -> None:
    banks = made(images, weights, tmp_path)
    mine, theirs = (Sampler(split["test"], 3, 1, 2, seed=0).manifest(0, 5) for split in (banks, images))
    assert mine == theirs


def test_features_are_made_once_and_anew_for_other_weights_or_another_view(
    images: dict[str, Bank], weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(images, weights, tmp_path)["test"].fingerprint
    other = models.get_model(MODEL, weights=None)
    torch.save(other.state_dict(), tmp_path / "weights.pth")  # the same name
    assert made(images, str(tmp_path / "weights.pth"), tmp_path)["test"].fingerprint != first
    assert made(images, weights, tmp_path, mean=(0.5, 0.5, 0.5))["test"].fingerprint != first
    monkeypatch.setattr(pretrained, "extract", lambda *args: pytest.fail("made again"))
    assert made(images, weights, tmp_path)["test"].fingerprint == first
    assert len(list(tmp_path.glob("features-*"))) == 3


def test_the_size_is_by_default_that_of_torchvisions_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pretrained._preprocessing("inception_v3", "DEFAULT", None, None, None) == (299, MEAN, STD)
    assert pretrained._preprocessing(MODEL, "mine.pth", 64, (0.5,) * 3, None) == (64, (0.5,) * 3, STD)
    for weights, size in (("IMAGENET1K_SWAG_E2E_V1", 384), ("IMAGENET1K_SWAG_LINEAR_V1", 224), ("mine.pth", 224)):
        assert pretrained._preprocessing("regnet_y_16gf", weights, None, None, None)[0] == size


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"model": "resnet81"}, "torchvision has no classifier resnet81, did you mean resnet18"),
        ({"model": "resnet18"}, r"weights.pth: weights of another model: \S+ is absent there"),
        ({"weights": "nothing.pth"}, "weights=nothing.pth: no such file"),
        ({"mean": (3.0, 3.0, 3.0)}, "features.mean=.*divide by 255"),
        ({"mean": 0.5}, "features.mean=0.5: must be a list of numbers"),
        ({"size": 0}, "features.size=0"),
        ({"crop": 17}, "dataset.crop=17"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    images: dict[str, Bank], weights: str, tmp_path: Path, choices: dict[str, Any], words: str
) -> None:
    arguments = {"model": MODEL, "weights": weights, "size": SIZE, "cache": tmp_path, "device": "cpu"} | choices
    with pytest.raises(FewshotError, match=words) as caught:
        pretrained_features(images, **arguments)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_runs_on_pretrained_features_and_weights_name_them_in_record_and_table(
    call: Any, weights: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    for split in ("train", "val", "test"):
        for number in range(9):
            path = tmp_path / f"pictures/{split}/{split}{number % 3}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * torch.rand(SIZE, SIZE, 3)).byte().numpy()).save(path)
    weights = shutil.copy(weights, "mine.pth")
    own = (
        "dataset=folder", "dataset.reader.root=pictures", f"dataset.reader.size={SIZE}", "data_dir=data", "way=3",
        "protocol=common", "protocol.common.query=1", "protocol.common.episodes=2", "train.steps=1",
        "train.meta_batch=1", "train.validate_every=0", "train.select=last", "validation.query=1", "engine=loop",
    )  # fmt: skip
    features = ("features=torchvision", f"features.model={MODEL}", f"features.weights={weights}", "features.size=32")
    done = call("train", "algorithm=nearest_mean", *features, *own, "run_dir=runs/features")
    assert done.code == 0, done.err
    network = [f"backbone.network.{key}" for key in (f"model={MODEL}", f"weights={weights}", "norm=running")]
    done = call(
        "train", "algorithm=fomaml", "algorithm.learner.adapted=head", "backbone=torchvision", *network, *own,
        "run_dir=runs/weights",
    )  # fmt: skip
    assert done.code == 0, done.err
    by_run = {
        name: json.loads(next(Path("runs", name).rglob("record.json")).read_text()) for name in ("features", "weights")
    }
    sha256 = by_run["weights"]["weights"]["sha256"]
    assert by_run["weights"]["backbone"] == f"{MODEL}-{sha256:.8}"
    assert by_run["weights"]["queries_independent"]
    assert by_run["features"]["backbone"] == f"{MODEL}-{sha256:.8} features"
    assert by_run["features"]["data"]["about"]["extractor"]["preprocessing"]["size"] == SIZE
    values = fs.open_banks(next(Path("data/banks").glob("features-*")))["test"].examples
    (pictures,) = [path for path in Path("data/banks").iterdir() if not path.name.startswith("features-")]
    x = fs.open_banks(pictures)["test"].examples[::3]
    found = fs.load_run("runs/features", device="cpu").adapt(x, "abc").task.support_x
    torch.testing.assert_close(found, nn.functional.normalize(values[::3]), rtol=1e-4, atol=1e-5)
    again = call("evaluate", "run=runs/weights", "protocol.common.query=2", "protocol.common.episodes=2")
    assert again.code == 0, again.err
    table = call("table", "runs=runs").out
    assert "pretrained weights, which may know test classes; images resized to 32 pixels, mean 0.485" in table
    state = torch.load(weights, weights_only=True)
    torch.save({name: value + 1 for name, value in state.items()}, weights)
    with pytest.raises(FewshotError, match=r"cannot be made of images: weights=\S+mine.pth: not the file that the run"):
        fs.load_run("runs/features", device="cpu").adapt(x, "abc")
    Path(weights).unlink()
    gone = call("predict", "run=runs/features", "support=pictures/test", "query=pictures/test")
    assert gone.err.startswith(
        f"error: run=runs/features: learned on {MODEL} features, which cannot be made of other images: "
    )
    assert "mine.pth: no such file" in gone.err
