"""Runs whose network begins with the weights of an extractor: `features.role=start`."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fewshot as fs
import fewshot.training.extractor as extractors
from fewshot.core.errors import FewshotError
from fewshot.experiment.config import config_hash, resolved
from fewshot.experiment.run import training_run
from fewshot.report.records import Record
from fewshot.training.checkpoint import load_checkpoint
from fewshot.training.loop import checkpoints

from ..conftest import composed

QUICK = (
    "algorithm=maml", "way=3", "dataset=folder", "dataset.reader.size=16", "dataset.rotations=none",
    "train.steps=2", "train.meta_batch=2", "train.validate_every=0", "train.outer_lr=0", "train.select=last",
    "validation.query=1", "protocol=common", "protocol.common.query=1", "protocol.common.episodes=2",
    "features.role=start", "features.settings.epochs=1", "features.settings.way=3", "features.settings.query=1",
    "features.settings.episodes=2", "device=cpu", "engine=loop", "logger=none",
)  # fmt: skip
SMALL = {
    "conv4": ("filters=4",),
    "resnet12": ("widths=[4,4,4,6]",),
    "wrn28_10": ("depth=10", "widen=1"),
}  # of each backbone, settings that both networks take


def both(backbone: str) -> tuple[str, ...]:
    keys = (f"{part}.network.{setting}" for part in ("backbone", "features") for setting in SMALL[backbone])
    return f"backbone={backbone}", f"features={backbone}", *keys


def train_run(folder: Path, data: Path, *words: str, backbone: str = "conv4") -> Path:
    """A run on the pictures in `data`, where what is prepared of them lies too."""
    places = f"dataset.reader.root={data / 'pictures'}", f"data_dir={data}", f"run_dir={folder}"
    return training_run(composed(*QUICK, *both(backbone), *places, *words))[0]


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(checkpoints(folder)[0], torch.device("cpu"))[0]["params"])


def record_of(folder: Path) -> Record:
    return fs.read_records(folder)[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three small pictures of each of nine classes."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number in range(9):
            path = folder / f"pictures/{split}/{split}{number % 3}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that does not move, since its outer rate is 0."""
    return train_run(tmp_path_factory.mktemp("runs") / "run", data)


@pytest.mark.parametrize("backbone", SMALL)
def test_the_network_begins_with_the_weights_of_the_extractor(backbone: str, data: Path, tmp_path: Path):
    params = last_weights(train_run(tmp_path / "run", data, backbone=backbone))
    (best,) = data.glob(f"banks/extractors/folder-{backbone}-*/best.safetensors")
    learned: dict[str, torch.Tensor] = load_checkpoint(best, torch.device("cpu"))[0]["weights"]
    body = {name: value for name, value in params.items() if not name.startswith("head.")}
    assert len(body) > 8
    for name, value in body.items():
        of_norm = {"scale": "weight", "offset": "bias"}  # as torch's norms call them
        layer, _, kind = name.rpartition(".")
        there = name if name in learned else f"{layer}.{of_norm[kind]}"
        assert torch.equal(value, learned[there])
    assert {value.shape[0] for name, value in params.items() if name.startswith("head.")} == {3}
    assert not any(value.any() for name, value in params.items() if name.startswith("head."))  # still MAML's own


def test_the_record_names_the_extractor_and_counts_its_time(run: Path):
    record = record_of(run)
    extractor = record["data"]["about"]["extractor"]
    assert record["backbone"] == "pretrained conv4"
    assert record["cost"]["extractor_seconds"] == extractor["train_seconds"] > 0
    assert 0 <= extractor["validation_accuracy"] <= 1
    assert record["data"]["features_fingerprint"] is None
    assert record["data"]["view"]["to"] == [3, 16, 16]  # it learned on images


def test_the_role_input_is_the_run_that_it_was_before_there_were_roles():
    config = resolved(composed("algorithm=leo", "features=conv4"))
    former = {key: value for key, value in config["features"].items() if key != "role"}
    assert config_hash(config | {"features": former}) == config_hash(config)
    other = resolved(composed("algorithm=leo", "features=conv4", "features.role=start"))
    assert config_hash(other) != config_hash(config)


def test_a_trained_run_needs_its_extractor_no_more(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("/banks", "/gone"))
    x = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    assert fs.load_run(tmp_path / "run", device="cpu").adapt(x, [1, 2, 3]).predict(x).shape == (3,)


def test_a_run_that_stopped_before_its_first_checkpoint_begins_with_the_same_weights(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = shutil.copytree(run, tmp_path / "run")
    expected = last_weights(folder)
    checkpoints(folder)[0].unlink()
    shutil.rmtree(folder / "tests")
    monkeypatch.setattr(extractors, "_train", lambda *args: pytest.fail("trained again"))
    again = last_weights(train_run(folder, data))
    assert all(torch.equal(value, again[name]) for name, value in expected.items())


def test_a_run_that_began_trains_no_other_extractor(run: Path, data: Path, tmp_path: Path):
    folder = shutil.copytree(run, tmp_path / "run")
    checkpoints(folder)[0].unlink()
    shutil.rmtree(folder / "tests")
    moved = shutil.copytree(data, tmp_path / "data")
    for path in moved.glob("banks/features-*"):
        shutil.rmtree(path)
    with pytest.raises(FewshotError, match="the features that this run learned on are gone"):
        train_run(folder, moved)


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "another width": (
        ("features.network.filters=8",),
        "features.role=start: backbone.network.filters=4 and features.network.filters=8, but the weights go from the "
        "one network into the other; set both alike",
    ),
    "another way to halve images": (
        ("backbone.network.downsample=max_pool",),
        "features.role=start: backbone.network.downsample=max_pool and features.network.downsample=stride, but",
    ),
    "norms that the extractor lacks": (
        ("features.network.norm=none",),
        "features.role=start: the extractor has nothing for blocks.0.norm.scale (4,) of the backbone; take the same",
    ),
    "nothing to train": (
        ("algorithm=nearest_mean",),
        "features.role=start: algorithm=nearest_mean is not trained from there; leave the role out",
    ),
    "no such role": (("features.role=stat",), "features.role=stat: choose one of input, start"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_no_training(mistake: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extractors, "_train", lambda *args: pytest.fail("trained"))
    words, message = MISTAKES[mistake]
    with pytest.raises(FewshotError) as error:
        train_run(tmp_path / "run", data, *words)
    assert message in str(error.value)
    assert not (tmp_path / "run" / "config.yaml").exists()
