"""Features of pretrained networks: those of torchvision's own model, made once, and known by weights and images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

import fewshot.training.pretrained as pretrained
from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank
from fewshot.tasks.sampler import Sampler
from fewshot.training.pretrained import pretrained_features

Make = Callable[..., Any]
MODEL, SIZE = "shufflenet_v2_x0_5", 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@pytest.fixture
def images(make_bank: Make) -> dict[str, Bank]:
    """Three splits of small grey images, each with classes of its own."""
    counts = (4, 3, 4)
    return {
        split: make_bank(counts, seed=seed, split=split, shape=(1, 16, 16))
        for seed, split in enumerate(("train", "val", "test"))
    }


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of weights whose running averages are not at their start values."""
    torch.manual_seed(0)
    model = models.get_model(MODEL, weights=None)
    model.train()(torch.rand(4, 3, SIZE, SIZE))
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(model.state_dict(), path)
    return str(path)


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
    assert pretrained._preprocessing("inception_v3", None, None, None) == (299, MEAN, STD)
    assert pretrained._preprocessing(MODEL, 64, (0.5,) * 3, None) == (64, (0.5,) * 3, STD)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"model": "resnet81"}, "model=resnet81: torchvision has no such classifier, did you mean resnet18"),
        ({"model": "resnet18"}, r"weights.pth: weights of another model: \S+ is absent there"),
        ({"weights": "nothing.pth"}, "weights=nothing.pth: no such file"),
        ({"mean": (3.0, 3.0, 3.0)}, "features.mean=.*divide by 255"),
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
