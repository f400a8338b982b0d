"""Runs whose network begins with the weights of an extractor: `features.role=start`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fewshot as fs
import fewshot.training.extractor as extractors
from fewshot.core.errors import FewshotError
from fewshot.experiment.build import check_config
from fewshot.experiment.config import config_hash, resolved
from fewshot.experiment.run import training_run
from fewshot.report.records import Record
from fewshot.training.checkpoint import load_checkpoint
from fewshot.training.selected import checkpoints

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
}  # of each backbone, settings that the extractor takes too


def both(backbone: str) -> tuple[str, ...]:
    return f"backbone={backbone}", f"features={backbone}", *(f"backbone.network.{each}" for each in SMALL[backbone])


def train_run(folder: Path, data: Path, *words: str, backbone: str = "conv4") -> Path:
    """A run on the pictures in `data`, where what is prepared of them lies too."""
    places = f"dataset.reader.root={data / 'pictures'}", f"data_dir={data}", f"run_dir={folder}"
    return training_run(composed(*QUICK, *both(backbone), *places, *words))[0]


SMALL_NET = """
import torch

class SmallNet(torch.nn.Module):
    def __init__(self, shape, way):
        super().__init__()
        self.body = torch.nn.Linear(shape[0] * shape[1] * shape[2], 4)
        self.weights = torch.nn.Parameter(torch.ones(4))  # a name that means pretrained weights elsewhere
        self.fc = torch.nn.Linear(4, way)

    def embed(self, x):
        return torch.relu(self.body(x.flatten(1))) * self.weights

    def forward(self, x):
        return self.fc(self.embed(x))
"""


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(checkpoints(folder)[0], torch.device("cpu"))[0]["params"])


def record_of(folder: Path) -> Record:
    return fs.read_records(folder)[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small pictures of each of nine classes, and of nine others."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for pictures, prefix in (("pictures", ""), ("others", "other")):
        for split in ("train", "val", "test"):
            for number in range(9):
                path = folder / f"{pictures}/{split}/{prefix}{split}{number % 3}/{number}.png"
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
    assert record["settings"]["features.role"] == "start"
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


def test_a_run_that_began_takes_no_other_extractor(run: Path, data: Path, tmp_path: Path):
    folder = shutil.copytree(run, tmp_path / "run")
    checkpoints(folder)[0].unlink()
    shutil.rmtree(folder / "tests")
    info = json.loads((folder / "data.json").read_text())
    info["extractor"]["fingerprint"] = "0" * 64
    (folder / "data.json").write_text(json.dumps(info))
    with pytest.raises(FewshotError, match="not the extractor that this run began with; put that one back, or train"):
        train_run(folder, data)


def test_a_new_run_says_what_to_do_where_features_lie_without_their_extractor(run: Path, data: Path, tmp_path: Path):
    moved = shutil.copytree(data, tmp_path / "data")
    for path in moved.glob("banks/extractors/*"):
        shutil.rmtree(path)
    with pytest.raises(FewshotError, match=r"extractor is not there; put it back; or delete \S+ and \S+, and they are"):
        train_run(tmp_path / "run", moved, "seed=1")
    for path in moved.glob("banks/features-*"):
        shutil.rmtree(path)
    assert record_of(train_run(tmp_path / "run", moved, "seed=1"))["cost"]["extractor_seconds"] > 0


@pytest.mark.parametrize("lost", ["last", "best"])
def test_an_extractor_that_lost_a_file_is_trained_again(lost: str, run: Path, data: Path, tmp_path: Path):
    moved = shutil.copytree(data, tmp_path / "data")
    for path in (*moved.glob("banks/features-*/*"), *moved.glob(f"banks/extractors/*/{lost}.safetensors")):
        path.unlink()
    record = record_of(train_run(tmp_path / "run", moved))
    before = record_of(run)["data"]["about"]["extractor"]["fingerprint"]
    assert record["data"]["about"]["extractor"]["fingerprint"] == before


def test_a_network_with_another_name_for_its_head_keeps_it(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "small_net.py").write_text(SMALL_NET)
    monkeypatch.syspath_prepend(tmp_path)
    words = ("backbone=module", "backbone.target=small_net.SmallNet", "features=conv4", "features.name=small")
    places = (f"dataset.reader.root={data / 'pictures'}", f"data_dir={data}", f"run_dir={tmp_path / 'run'}")
    cfg = composed(*QUICK, *words, *places)
    cfg.features.network = {"_target_": "small_net.SmallNet", "_partial_": True}
    params = last_weights(training_run(cfg)[0])
    (best,) = data.glob("banks/extractors/folder-small-*/best.safetensors")
    learned: dict[str, torch.Tensor] = load_checkpoint(best, torch.device("cpu"))[0]["weights"]
    assert torch.equal(params["body.weight"], learned["body.weight"])
    assert params["fc.weight"].shape == learned["fc.weight"].shape  # three ways, three training classes
    assert not torch.equal(params["fc.weight"], learned["fc.weight"])


def test_the_role_goes_with_validation_classes_pictures_and_a_forced_run(call: Any, data: Path, tmp_path: Path):
    first = record_of(train_run(tmp_path / "run", data, "train.train_on_val=true"))
    places = f"dataset.reader.root={data / 'pictures'}", f"data_dir={data}", f"run_dir={tmp_path / 'run'}"
    words = ("train.train_on_val=true", "force=true", "plot=true")
    done = call("train", *QUICK, *both("conv4"), *places, *words)
    assert done.code == 0, done.err
    again = record_of(tmp_path / "run")
    assert first["data"]["about"]["extractor"] == again["data"]["about"]["extractor"]
    assert first["test"] == again["test"]
    assert (tmp_path / "run" / "episode.png").is_file()


def test_a_test_on_other_images_names_the_extractor_too(call: Any, run: Path, data: Path, tmp_path: Path):
    folder = shutil.copytree(run, tmp_path / "run")
    words = ("dataset=folder", f"dataset.reader.root={data / 'others'}", "dataset.name=others", f"data_dir={data}")
    done = call("evaluate", f"run={folder}", *words, "protocol.common.query=1", "protocol.common.episodes=2")
    assert done.code == 0, done.err
    own, other = sorted(fs.read_records(folder), key=lambda record: record["protocol"]["dataset"] == "others")[::3]
    assert other["protocol"]["dataset"] == "others"
    assert other["data"]["about"]["extractor"] == own["data"]["about"]["extractor"]
    assert other["cost"]["extractor_seconds"] == own["cost"]["extractor_seconds"]


def train_module(folder: Path, data: Path, *words: str, **settings: Any) -> Path:
    """As `train_run`, with Conv-4 as a person's own module."""
    network = {**composed("backbone=conv4").backbone.network, "filters": 4, **settings}
    module = (f"+backbone.network.{key}={value}" for key, value in network.items() if key != "_target_")
    small = ("features=conv4", "features.network.filters=4", "backbone=module", "backbone.target=fewshot.Conv4")
    places = f"dataset.reader.root={data / 'pictures'}", f"data_dir={data}", f"run_dir={folder}"
    return training_run(composed(*QUICK, *small, *module, *places, *words))[0]


def test_norms_with_running_averages_take_none_from_the_extractor(data: Path, tmp_path: Path):
    with pytest.raises(FewshotError, match="no running averages from the extractor; set backbone.norm=batch"):
        train_module(tmp_path / "run", data, "backbone.norm=running", norm="running")


def test_frozen_layers_keep_what_they_take_from_the_extractor(data: Path, tmp_path: Path):
    folder = train_module(tmp_path / "run", data, "backbone.frozen=[blocks.*]", "train.outer_lr=0.1")
    (best,) = data.glob("banks/extractors/folder-conv4-*/best.safetensors")
    learned: dict[str, torch.Tensor] = load_checkpoint(best, torch.device("cpu"))[0]["weights"]
    backbone = fs.load_run(folder, device="cpu").learner.backbone
    assert torch.equal(backbone.get_parameter("blocks.3.conv.weight"), learned["blocks.3.conv.weight"])


def test_images_keep_their_rotations_and_have_no_paper(data: Path):
    words = ("algorithm=maml", "dataset=omniglot", "features=conv4")
    assert composed(*words, "backbone=linear").dataset.rotations == "none"
    started = composed(*words, "features.role=start")
    assert started.dataset.rotations == "per_class"
    assert started.recipe is None
    assert composed(*words, "features.role=start", "dataset.rotations=none").dataset.rotations == "none"


def test_features_without_an_extractor_to_train_are_no_start():
    words = ("algorithm=maml", "features=bank", "features.reader.folder=mine", "+features.role=start")
    with pytest.raises(
        FewshotError,
        match="needs an extractor that this program trains; choose features=conv4, resnet12 or wrn28_10",
    ):
        check_config(composed(*words))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("engine=fast", "engine=fast: choose one of"),
        ("task_chunk=0", "task_chunk=0: must be"),
        ("algorithm.learner.inner_lr=fast", "inner_lr=fast: must be a number"),
        ("protocol.common.query=0", "protocol.common.query=0: must be"),
    ],
)
def test_a_mistake_that_needs_no_data_is_found_before_an_extractor_is_trained(word: str, said: str):
    with pytest.raises(FewshotError, match=said):
        check_config(composed("algorithm=maml", word))


def test_a_run_that_began_trains_no_other_extractor(run: Path, data: Path, tmp_path: Path):
    folder = shutil.copytree(run, tmp_path / "run")
    checkpoints(folder)[0].unlink()
    shutil.rmtree(folder / "tests")
    moved = shutil.copytree(data, tmp_path / "data")
    for path in moved.glob("banks/features-*"):
        shutil.rmtree(path)
    with pytest.raises(FewshotError, match="the features with which this run began are gone"):
        train_run(folder, moved)


def test_a_learner_without_a_network_cannot_begin_with_one(data: Path, tmp_path: Path):
    learner = ("algorithm=leo", "train.query=1", "features=conv4", "features.network.filters=4")
    places = f"dataset.reader.root={data / 'pictures'}", f"data_dir={data}", f"run_dir={tmp_path / 'run'}"
    with pytest.raises(FewshotError, match="backbone identity has no weights to begin with; leave the role out"):
        training_run(composed(*(word for word in QUICK if word != "algorithm=maml"), *learner, *places))


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "another width": (
        ("features.network.filters=8",),
        "features.role=start: backbone.network.filters=4 and features.network.filters=8, but weights go from the one "
        "into the other; set both alike",
    ),
    "another way to halve images": (
        ("features.network.downsample=max_pool",),
        "features.role=start: backbone.network.downsample=stride and features.network.downsample=max_pool, but",
    ),
    "another network": (
        ("features=resnet12",),
        "features.role=start: backbone conv4 and extractor resnet12 are two networks, but weights go from the one into "
        "the other; choose the same for both, such as backbone=conv4 features=conv4",
    ),
    "a setting that the extractor's network has not": (
        ("+features.network.dropout=0.1",),
        "fewshot.Conv4: Conv4.__init__() got an unexpected keyword argument 'dropout'",
    ),
    "norms that the extractor lacks": (
        ("features.network.norm=none",),
        "features.role=start: blocks.0.norm.scale: the backbone has (4,) there, the extractor nothing; give both",
    ),
    "norms that the network lacks": (
        ("backbone.network.norm=none",),
        "features.role=start: blocks.0.norm.scale: the backbone has nothing there, the extractor (4,); give both",
    ),
    "nothing to train": (
        ("algorithm=nearest_mean",),
        "features.role=start: algorithm nearest_mean is not meta-trained; leave the role out",
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
