"""Feature extractors: trained on the training classes alone, selected, resumed, kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fewshot.training.extractor as training
import fewshot.training.features as banking
from fewshot.backbones.conv4 import Conv4
from fewshot.backbones.identity import Identity
from fewshot.backbones.resnet12 import ResNet12
from fewshot.backbones.wrn import WRN
from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank
from fewshot.tasks.sampler import Sampler
from fewshot.training.features import extract_features, open_features
from fewshot.training.settings import LATER_OF_EXTRACTORS

Make = Callable[..., Any]

CONV4 = partial(
    Conv4, filters=4, downsample="stride", pool="valid", readout="flatten", norm="running", norm_scale=True,
    norm_eps=1e-5, adapt_norm=True, conv_init="xavier", head_init="xavier",
)  # fmt: skip
RESNET12 = partial(
    ResNet12, widths=(4, 4, 4, 6), norm="running", norm_scale=True, norm_eps=1e-5, drop_rate=0.1, drop_block=1,
    adapt_norm=True, head_init="xavier",
)  # fmt: skip
WIDE = partial(
    WRN, depth=10, widen=1, norm="running", norm_scale=True, norm_eps=1e-5, dropout=0.3, adapt_norm=True,
    head_init="xavier",
)  # fmt: skip
SETTINGS: dict[str, Any] = {
    "epochs": 3, "batch": 16, "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005, "schedule": "cosine",
    "augment": "none", "seed": 0, "way": 3, "shot": 1, "query": 2, "episodes": 20,
    "precision": "float32", "small_epochs": 0, "small_size": None,
}  # fmt: skip


@pytest.fixture
def images(make_bank: Make) -> dict[str, Bank]:
    """Three splits of small images, each with classes of its own."""
    return {
        split: make_bank(shape=(1, 16, 16), seed=seed, split=split)
        for seed, split in enumerate(("train", "val", "test"))
    }


def made(
    images: dict[str, Bank],
    cache: Path,
    network: Make = CONV4,
    name: str = "conv4",
    view: dict[str, Any] | None = None,
    **choices: Any,
) -> Any:
    settings = SETTINGS | choices
    return extract_features(images, network, name=name, settings=settings, view=view or {}, cache=cache, device="cpu")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extractors learn nothing, where a test only asks whether features are others."""

    def keep(extractor: torch.nn.Module, *args: Any) -> dict[str, Any]:
        for value in extractor.parameters():
            value.detach().abs_()  # so that no feature is 0 for all images
        return {
            "accuracy": 0.5,
            "epoch": 1,
            "train_seconds": 0.0,
            "devices": [],
            "processors": [],
            "software": [],
            "code": [],
        }

    monkeypatch.setattr(training, "_train", keep)


@pytest.mark.parametrize(("name", "network"), [("conv4", CONV4), ("resnet12", RESNET12), ("wrn28_10", WIDE)])
def test_features_of_every_split_and_extractor_are_a_bank_that_says_where_it_comes_from(
    images: dict[str, Bank], tmp_path: Path, name: str, network: Make
):
    banks = made(images, tmp_path, network, name, epochs=1)
    width = network(shape=(1, 16, 16), way=2).eval().embed(torch.zeros(1, 1, 16, 16)).shape[1]
    for split, bank in banks.items():
        assert bank.examples.dtype == torch.float32
        assert bank.examples.shape == (len(images[split].examples), width)
        assert bank.names == images[split].names
        assert torch.equal(bank.offsets, images[split].offsets)
    about = banks["test"].metadata["extractor"]
    assert about["name"] == name
    assert about["images"] == {split: bank.fingerprint for split, bank in images.items()}
    assert about["train_seconds"] > 0
    assert 0 <= about["validation_accuracy"] <= 1
    assert about["epoch"] == 1


def test_tasks_of_features_are_the_tasks_of_their_images(images: dict[str, Bank], tmp_path: Path):
    banks = made(images, tmp_path, epochs=1)
    mine, theirs = (Sampler(split["test"], 3, 1, 2, seed=0).manifest(0, 5) for split in (banks, images))
    assert mine == theirs != Sampler(images["val"], 3, 1, 2, seed=0).manifest(0, 5)
    assert banks["test"].fingerprint != images["test"].fingerprint == banks["test"].image_fingerprint
    assert banks["test"].images is images["test"]  # whose names of images are those of the features


def test_features_are_made_once_and_a_note_says_where_they_are(
    images: dict[str, Bank], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    first = made(images, tmp_path)
    assert "made before" not in capsys.readouterr().err
    monkeypatch.setattr(training, "_train", lambda *args: pytest.fail("trained again"))
    again = made(images, tmp_path)
    (folder,) = tmp_path.glob("features-*")
    assert f"note: conv4 features: those in {folder}, made before\n" in capsys.readouterr().err
    assert {k: b.fingerprint for k, b in first.items()} == {k: b.fingerprint for k, b in again.items()}


def test_a_run_waits_for_another_that_makes_the_same_features(
    images: dict[str, Bank], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train, at_work, calls = training._train, threading.Event(), []

    def slowly(*args: Any) -> Any:
        calls.append(threading.current_thread())
        at_work.set()
        time.sleep(0.3)
        return train(*args)

    monkeypatch.setattr(training, "_train", slowly)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(made, images, tmp_path, epochs=1)
        assert at_work.wait(60)
        second = pool.submit(made, images, tmp_path, epochs=1)
        assert first.result()["test"].fingerprint == second.result()["test"].fingerprint
    assert len(calls) == 1


def test_a_run_before_a_setting_was_there_finds_its_features(
    images: dict[str, Bank], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = made(images, tmp_path, epochs=1)
    monkeypatch.setattr(training, "_train", lambda *args: pytest.fail("trained again"))
    former = {key: value for key, value in SETTINGS.items() if key not in LATER_OF_EXTRACTORS} | {"epochs": 1}
    again = extract_features(images, CONV4, name="conv4", settings=former, view={}, cache=tmp_path, device="cpu")
    assert first["test"].fingerprint == again["test"].fingerprint


def test_other_settings_make_other_features(images: dict[str, Bank], tmp_path: Path):
    others = ({"seed": 1}, {"epochs": 1}, {"schedule": "step"}, {"weight_decay": 0.1}, {"momentum": 0.5})
    banks = [made(images, tmp_path, **choices) for choices in ({}, *others)]
    assert len({each["test"].fingerprint for each in banks}) == 6


def test_another_view_of_the_images_makes_other_features(images: dict[str, Bank], tmp_path: Path, untrained: None):
    views = [{}, {"crop": 15}, {"mean": [0.5]}, {"std": [0.5]}, {"shape": [1, 17, 17]}]
    banks = [made(images, tmp_path, epochs=1, view=view) for view in views]
    assert len({each["test"].fingerprint for each in banks}) == 5
    assert len({each["test"].image_fingerprint for each in banks}) == 1


SMALL = {"epochs": 1, "small_epochs": 2, "small_size": 16, "precision": "bfloat16"}


@pytest.mark.parametrize("choices", [{}, SMALL | {"network": RESNET12}])
def test_a_pretraining_that_died_continues_to_the_same_bits(
    images: dict[str, Bank], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choices: dict[str, Any]
):
    whole = made(images, tmp_path / "whole", **choices)
    kept, validations = training._validation, []

    def dying(*args: Any) -> float:
        validations.append(1)
        if len(validations) == 2:
            raise KeyboardInterrupt
        return kept(*args)

    monkeypatch.setattr(training, "_validation", dying)
    with pytest.raises(KeyboardInterrupt):
        made(images, tmp_path / "parts", **choices)
    resumed = made(images, tmp_path / "parts", **choices)
    assert len(validations) == 4  # the second epoch again, and the third
    assert {k: b.fingerprint for k, b in whole.items()} == {k: b.fingerprint for k, b in resumed.items()}


def test_training_helps_where_training_and_validation_classes_are_alike(make_bank: Make, tmp_path: Path):
    alike = {split: make_bank(shape=(1, 16, 16), split=split, noise=120) for split in ("train", "val", "test")}
    trained = made(alike, tmp_path, epochs=20)["val"].metadata["extractor"]["validation_accuracy"]
    untrained = made(alike, tmp_path, epochs=1, lr=0.0)["val"].metadata["extractor"]["validation_accuracy"]
    assert trained > untrained


def test_features_of_an_extractor_of_another_split_are_refused(images: dict[str, Bank], tmp_path: Path):
    made(images, tmp_path)
    (folder,) = tmp_path.glob("features-*")
    assert open_features(images, folder)["test"].shape == (4,)
    others = images | {"train": images["test"], "test": images["train"]}
    with pytest.raises(FewshotError, match="trained on another split") as caught:
        open_features(others, folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(FewshotError, match="test differs"):
        open_features(images | {"test": images["val"]}, folder)
    with pytest.raises(FewshotError, match="no features there"):
        open_features(images, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("network", "choice"),
    [(WIDE, {"dropout": 0.0}), (RESNET12, {"drop_rate": 0.0}), (CONV4, {"norm_eps": 0.1})],
)
def test_what_no_weight_shows_makes_other_features_too(
    images: dict[str, Bank], tmp_path: Path, untrained: None, network: Any, choice: dict[str, Any]
):
    made(images, tmp_path, network, epochs=1)
    made(images, tmp_path, partial(network, **choice), epochs=1)
    assert len(list(tmp_path.glob("features-*"))) == 2


def test_an_extractor_learns_from_training_classes_and_is_chosen_on_validation_classes(
    images: dict[str, Bank], make_bank: Make, tmp_path: Path
):
    def extractor(**others: Bank) -> dict[str, Any]:
        return made(images | others, tmp_path, epochs=1, episodes=40)["test"].metadata["extractor"]

    def trained(about: dict[str, Any]) -> tuple[str, float]:
        return about["fingerprint"], about["validation_accuracy"]

    other = {split: make_bank(shape=(1, 16, 16), seed=7, split=split, noise=200) for split in ("train", "val", "test")}
    weights, accuracy = trained(extractor())
    assert trained(extractor(test=other["test"])) == (weights, accuracy)
    assert trained(extractor(train=other["train"]))[0] != weights
    assert trained(extractor(val=other["val"]))[0] == weights
    assert trained(extractor(val=other["val"]))[1] != accuracy


def test_a_function_that_makes_the_network_has_the_same_features_in_each_process(
    images: dict[str, Bank], tmp_path: Path, untrained: None, monkeypatch: pytest.MonkeyPatch
):
    def maker(rate: float) -> Make:  # a new object at another address, as in a new process
        def network(**size: Any) -> torch.nn.Module:
            wide = partial(WIDE, dropout=rate)
            return wide(**size)

        return network

    first = made(images, tmp_path, maker(0.3), epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_train", lambda *args: pytest.fail("trained again"))
        assert made(images, tmp_path, maker(0.3), epochs=1)["test"].fingerprint == first["test"].fingerprint
    other = made(images, tmp_path, maker(0.1), epochs=1)  # which no initial weight shows
    assert other["test"].metadata["folder"] != first["test"].metadata["folder"]


def test_settings_that_are_missing_or_unknown_are_named(images: dict[str, Bank], tmp_path: Path):
    for settings, words in (
        ({"epochs": 1, "batch": 2}, "settings: lr, schedule, .* missing; conf/features/base/extractor.yaml"),
        (SETTINGS | {"epoch": 1}, "settings: epoch is no setting of an extractor, did you mean epochs"),
    ):
        with pytest.raises(FewshotError, match=words):
            extract_features(images, CONV4, name="conv4", settings=settings, view={}, cache=tmp_path, device="cpu")
    assert not list(tmp_path.iterdir())


def test_features_that_are_gone_are_not_made_anew_for_a_run_that_was_on_them(images: dict[str, Bank], tmp_path: Path):
    with pytest.raises(FewshotError, match="are gone") as caught:
        extract_features(
            images, CONV4, name="conv4", settings=SETTINGS, view={}, cache=tmp_path, device="cpu", may_train=False
        )
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_norms_that_let_images_see_each_other_are_refused(images: dict[str, Bank], tmp_path: Path):
    class Own(nn.Module):
        def __init__(self, shape: tuple[int, ...], way: int) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, 4), nn.BatchNorm1d(4, track_running_stats=False))

        def embed(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    for network in (partial(CONV4, norm="batch"), Own):
        with pytest.raises(FewshotError, match="norm=running"):
            made(images, tmp_path, network)


def test_images_that_cannot_be_augmented_are_refused_before_the_training(
    images: dict[str, Bank], make_bank: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "_train", lambda *args: pytest.fail("trained"))
    wide = {split: replace(bank, examples=bank.examples.float()) for split, bank in images.items()}
    four = {split: make_bank(shape=(4, 16, 16), seed=seed, split=split) for seed, split in enumerate(images)}
    colours = "^extractor: augment=natural: changes colours from 0 to 1"
    channels = "^features.settings.augment=natural: is for images of 1 or 3 channels, and these have 4"
    for banks, words in ((wide, colours), (four, channels)):
        with pytest.raises(FewshotError, match=words):
            made(banks, tmp_path, augment="natural")


def test_a_split_that_is_not_given_is_named(images: dict[str, Bank], tmp_path: Path):
    with pytest.raises(FewshotError, match="^images: no val and no test; give the banks train, val and test"):
        made({"train": images["train"]}, tmp_path)


def test_a_training_without_momentum_goes_on_where_it_ended(
    images: dict[str, Bank], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(banking, "extract", lambda *args: pytest.fail("no banks yet"))
        patch.setattr(training, "_validation", lambda *args: 0.5)
        with pytest.raises(pytest.fail.Exception):
            made(images, tmp_path, momentum=0.0)
    monkeypatch.setattr(training, "_loss", lambda *args: pytest.fail("trained anew"))
    assert made(images, tmp_path, momentum=0.0)["test"].shape == (4,)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"epochs": 0}, "features.settings.epochs=0"),
        ({"lr": -1.0}, "features.settings.lr=-1.0"),
        ({"schedule": "linear"}, "choose one of cosine, step"),
        ({"seed": 0.5}, "features.settings.seed=0.5"),
        ({"augment": "all"}, "choose one of none, gentle, natural"),
        ({"precision": "float16"}, "choose one of float32, bfloat16"),
        ({"small_epochs": 1}, "features.settings.small_size=None"),
        ({"small_size": 8}, "features.settings.small_size=8: is for features.settings.small_epochs, which is 0"),
        ({"precision": "bfloat16"}, r"examples of 1 x 16 x 16 are too small for blocks\.3\.conv\.weight"),
        ({"lr": 1e30}, "the loss or a weight is not finite"),
        ({"query": 20}, "validation of the extractor: .*query=20 .*features.settings.query"),
    ],
)
def test_mistakes_are_one_line(images: dict[str, Bank], tmp_path: Path, choices: dict[str, Any], words: str):
    with pytest.raises(FewshotError, match=words) as caught:
        made(images, tmp_path, **choices)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("features-*"))


def test_a_network_without_features_is_refused(images: dict[str, Bank], tmp_path: Path):
    with pytest.raises(FewshotError, match="has no features"):
        made(images, tmp_path, Identity)
