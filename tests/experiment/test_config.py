"""The identity of a configuration, what its files say, and the saved one of a run."""

from __future__ import annotations

import copy
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import fewshot
from fewshot.core.checks import did_you_mean
from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.experiment.build import build, check_new_run
from fewshot.experiment.config import (
    FIRST_NAMES,
    config_hash,
    is_on_features,
    is_regression,
    resolved,
    training_settings,
)
from fewshot.experiment.make_learner import instantiate_node, make_learner
from fewshot.experiment.run_dir import saved_config
from fewshot.training.settings import LATER_OF_EXTRACTORS, LATER_SETTINGS

from ..conftest import composed

ALGORITHMS = sorted(path.stem for path in (CONF / "algorithm").glob("*.yaml"))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_trains_as_its_file_says_and_its_start_follows_from_the_seed(name: str) -> None:
    words = ("dataset=sines_and_lines", "backbone=mlp_40") if name == "leo_regression" else ("dataset=glyphs",)
    cfg, said = composed(f"algorithm={name}", *words, "recipe=none"), OmegaConf.load(CONF / f"algorithm/{name}.yaml")
    for part, node in (
        ("train", cfg.train),
        ("algorithm", cfg.algorithm),
        ("algorithm.learner", cfg.algorithm.learner),
    ):
        for key, value in (OmegaConf.select(said, part) or {}).items():
            assert OmegaConf.is_dict(value) or node[key] == value
    shape, way = ((16,) if is_on_features(cfg) else (1, 28, 28)), 5
    if is_regression(cfg.dataset):
        shape, way = (1,), 1

    def start(seed: int) -> torch.Tensor:
        cfg.seed = seed
        params, _ = make_learner(cfg, shape, way, torch.device("cpu")).init()
        return torch.cat([value.flatten() for value in params.values()] or [torch.empty(0)])

    trained = name not in ("nearest", "nearest_mean", "simple_shot", "baseline", "baseline_plus_plus")
    assert bool(len(start(0))) == trained and torch.equal(start(0), start(0))
    assert torch.equal(start(0), start(1)) == (not trained or name == "meta_sgd")  # whose head on features starts at 0


@pytest.mark.parametrize("dataset", ["glyphs", "sinusoid"])
def test_trainings_validations_and_tests_are_of_splits_of_their_own(dataset: str, data_dir: Path) -> None:
    run = build(composed(f"dataset={dataset}", f"data_dir={data_dir}"))
    tasks = (run.training, run.validation, run.protocol_tasks(run.protocols[0]))
    assert [each.source.split for each in tasks] == ["train", "val", "test"]
    assert len({each.manifest(0, 5) for each in tasks}) == 3


@pytest.mark.parametrize("dataset", ["glyphs", "sinusoid"])
@pytest.mark.parametrize(("split", "used"), [("train", "training"), ("val", "validation")])
def test_a_test_on_known_classes_repeats_no_episode_of_the_training(
    split: str, used: str, dataset: str, data_dir: Path
) -> None:
    words = (f"dataset={dataset}", f"data_dir={data_dir}", f"protocol.common.split={split}", "shot=2")
    words += ("train.shot=null", "train.query=3", "validation.query=3", "protocol.common.query=3")
    run = build(composed(*words))
    tests, seen = run.protocol_tasks(run.protocols[0]), getattr(run, used)
    assert tests.source.split == seen.source.split and (tests.shot, tests.query) == (seen.shot, seen.query)
    assert tests.manifest(0, 5) != seen.manifest(0, 5)


def test_another_seed_makes_another_training_and_the_same_tests(data_dir: Path) -> None:
    words = (["seed=0"], ["seed=1"], ["protocol.common.episode_seed=1"])
    one, other, elsewhere = (build(composed(*each, f"data_dir={data_dir}")) for each in words)
    assert one.training.manifest(0, 5) != other.training.manifest(0, 5)
    assert one.validation.manifest(0, 5) != other.validation.manifest(0, 5)
    tests, same, others = (run.protocol_tasks(run.protocols[0]).manifest(0, 5) for run in (one, other, elsewhere))
    assert tests == same != others


def test_training_tasks_alone_are_augmented_and_may_have_the_validation_classes_too(data_dir: Path) -> None:
    words = ("train.train_on_val=true", "train.select=last", "dataset.augment.episodes=gentle")
    run = build(composed(*words, f"data_dir={data_dir}"))
    names = [run.sources[split].names for split in ("train", "val")]
    assert run.training.source.names == (*names[0], *names[1])
    tasks: list[Any] = [run.training, run.validation, run.protocol_tasks(run.protocols[0])]
    assert [each.view.augment for each in tasks] == ["gentle", "none", "none"]


def test_identity_covers_what_a_result_depends_on_and_nothing_else() -> None:
    base = resolved(composed())
    for of_tests in ("protocol=common", "protocol.common.query=5", "protocol.common.setting=inductive"):
        assert config_hash(base) == config_hash(resolved(composed(of_tests)))
    assert config_hash(base) == config_hash(resolved(composed("device=cpu", "runs=elsewhere", "force=true")))
    assert config_hash(base) == config_hash(resolved(composed("data_dir=elsewhere")))
    assert config_hash(base) != config_hash(resolved(composed("seed=1")))
    for of_training in ("train.outer_lr=0.1", "train.way=4", "validation.query=5", "dataset.rotations=per_class"):
        assert config_hash(base) != config_hash(resolved(composed(of_training)))


def test_a_setting_that_came_later_changes_no_identity() -> None:
    config = resolved(composed("algorithm=leo"))
    former = copy.deepcopy(config)
    for settings in (former["features"]["settings"], former["features"]["reader"]["settings"]):
        for key in LATER_OF_EXTRACTORS:
            del settings[key]
    for key in LATER_SETTINGS.keys() & former["train"].keys():
        del former["train"][key]
    assert config_hash(config) == config_hash(former)
    config["features"]["reader"]["settings"]["precision"] = "bfloat16"
    assert config_hash(config) != config_hash(former)


def test_a_persons_own_arguments_change_the_identity_whatever_their_names_are() -> None:
    config = resolved(composed("algorithm=maml"))
    for group, part in (("algorithm", "learner"), ("backbone", "network")):
        for name in ("cache", "root", "download"):
            own = copy.deepcopy(config)
            own[group][part] |= {"_target_": "mine.Class", name: True}
            other = copy.deepcopy(own)
            del other[group][part][name]
            assert config_hash(own) != config_hash(other)
            assert f"{group}.{part}.{name}" in training_settings(own)
        hashes = set()
        for arguments in ({}, {"weights": "/a/best.pt"}, {"weights": "/b/best.pt"}, {"centre": False}, {"width": None}):
            own = copy.deepcopy(config)
            own[group][part] |= {"_target_": "mine.Class"} | arguments
            hashes.add(config_hash(own))
        assert len(hashes) == 5
    own = copy.deepcopy(config)
    own["dataset"]["reader"]["cache"] = "elsewhere"
    assert config_hash(own) == config_hash(config)


def test_a_rename_of_a_class_changes_no_identity() -> None:
    assert FIRST_NAMES.keys() == {f"fewshot.{name}" for name in fewshot._FORMER.values()}
    config = resolved(composed("algorithm=maml"))
    assert config["algorithm"]["learner"]["_target_"] == "fewshot.MAML"
    former = resolved(composed("algorithm=maml", "algorithm.learner._target_=fewshot.Maml"))
    assert config_hash(config) == config_hash(former)
    assert training_settings(config) == training_settings(former)
    for name, now in fewshot._FORMER.items():
        assert getattr(fewshot, name) is getattr(fewshot, now)


def test_a_name_like_a_known_one_is_asked_for() -> None:
    assert did_you_mean("shoot", ["way", "shot"]) == ", did you mean shot?"
    assert did_you_mean("zzz", ["way", "shot"]) == ""


def test_a_saved_configuration_may_lack_what_came_later(tmp_path: Path) -> None:
    lines = OmegaConf.to_yaml(composed("algorithm=nearest", "dataset=glyphs")).splitlines()
    kept = [line for line in lines if line.split(":")[0].strip() not in LATER_SETTINGS]
    of_extractors = {"small_epochs", "small_size", "role"}
    assert len(lines) - len(kept) == len(LATER_SETTINGS.keys() - of_extractors)
    (tmp_path / "config.yaml").write_text("\n".join(kept))
    cfg = saved_config(tmp_path)
    assert (cfg.train.outer_lr_schedule, cfg.train.outer_lr_halve_every) == ("linear", None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("shot: 1\n", ""), "shot is missing"),
        (("  select: best\n", "  select: best\n  shoot: 1\n"), "train.shoot is no key"),
        (("  select: best\n", ""), "train.select is missing"),
    ],
)
def test_a_saved_configuration_has_every_key_and_no_other(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    text = OmegaConf.to_yaml(composed("algorithm=maml", "dataset=glyphs"))
    (tmp_path / "config.yaml").write_text(text)
    assert saved_config(tmp_path).validation.query == 15
    assert change[0] in text
    (tmp_path / "config.yaml").write_text(text.replace(*change, 1))
    with pytest.raises(FewshotError, match=said):
        saved_config(tmp_path)


class Layers:
    """What a person's own class may have for type hints."""

    def __init__(
        self, widths: Sequence[int] = (), rate: float = 0.1, groups: int = None, bare: typing.List = (),  # noqa: RUF013, UP006
        hook: Callable[[int], None] | None = None, odd: [int, int] = None, least: int | None = None,
    ) -> None: ...  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"widths": [1, 2], "rate": 1, "groups": None, "bare": [1], "odd": [1], "least": None}, ""),
        ({"hook": {"_target_": "math.sqrt", "_partial_": True}}, ""),
        ({"rate": {"_target_": "math.sqrt", "_args_": [0.1]}}, ""),
        ({"widths": [1, "two"]}, r"widths=\[1, 'two'\]: must be a list, each a whole number"),
        ({"widths": 3}, "widths=3: must be a list, each a whole number"),
        ({"least": 1.5}, "least=1.5: must be a whole number or null"),
        ({"rate": None}, "rate=null: must be a number"),
    ],
)
def test_values_are_checked_by_the_type_hints_of_what_they_are_for(given: dict[str, Any], message: str) -> None:
    node = OmegaConf.create({"_target_": f"{__name__}.Layers", **given})
    if not message:
        assert type(instantiate_node(node)).__name__ == "Layers"
        return
    with pytest.raises(FewshotError, match=message):
        instantiate_node(node)


@pytest.mark.parametrize("backbone", ["conv4", "conv4_dragen", "resnet12", "torchvision", "wrn28_10"])
def test_a_network_of_images_on_features_is_refused_before_their_extractor_is_trained(backbone: str) -> None:
    name = "resnet18" if backbone == "torchvision" else backbone
    with pytest.raises(FewshotError, match=f"^backbone {name} takes images, not conv4 features; "):
        check_new_run(composed("algorithm=maml", "features=conv4", f"backbone={backbone}"))
    check_new_run(composed("algorithm=maml", "features=conv4", "backbone=linear"))
