"""Recipes: the published settings, and that they say nothing of the test."""

from __future__ import annotations

from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.experiment import recipes
from fewshot.experiment.config import resolved
from fewshot.experiment.protocol import Protocol, read_protocols
from fewshot.experiment.recipes import apply_recipe, complete, paper_steps
from fewshot.experiment.rows import apply_protocols, settings_of
from fewshot.experiment.run_dir import run_folder
from fewshot.report.records import read_record
from fewshot.training.settings import TrainSettings

from ..conftest import composed


def test_the_original_papers_settings_apply_by_themselves() -> None:
    cfg = composed("algorithm=maml", "dataset=omniglot", "way=20", "shot=5")
    assert cfg.recipe == "cbfinn"
    assert (cfg.algorithm.learner.inner_lr, cfg.algorithm.learner.inner_steps, cfg.train.meta_batch) == (0.1, 5, 16)
    assert cfg.validation.query == 5  # as many queries as shots
    assert composed("algorithm=reptile", "dataset=omniglot").recipe == "openai"


@pytest.mark.parametrize(
    ("dataset", "shot", "outer_lr", "kl_weight", "query"),
    [
        ("mini", 1, 2.739071e-4, 0.756143, 599),
        ("mini", 5, 4.102361e-4, 0.466387, 595),
        ("tiered", 1, 8.659053e-4, 2.034189e-3, 599),
        ("tiered", 5, 6.110314e-4, 1.622811, 595),
    ],
)
def test_leos_tuned_values_apply_to_their_setting_and_its_ablations(
    dataset: str, shot: int, outer_lr: float, kl_weight: float, query: int
) -> None:
    for algorithm in ("leo", "leo_deterministic"):
        cfg = composed(f"algorithm={algorithm}", f"dataset={dataset}", f"shot={shot}")
        assert (cfg.recipe, cfg.features.name) == ("deepmind", "published")
        learner = cfg.algorithm.learner
        assert (cfg.train.outer_lr, learner.kl_weight) == (outer_lr, kl_weight)
        assert cfg.validation.query == cfg.protocol.paper.query == query
    assert composed("algorithm=leo", f"dataset={dataset}", f"shot={shot + 1}").recipe is None


def test_leo_takes_the_features_of_its_dataset_unless_others_are_named() -> None:
    assert composed("algorithm=leo").features.name == "conv4"
    assert composed("algorithm=leo", "dataset=mini").features.name == "published"
    assert composed("algorithm=leo", "dataset=mini", "features=wrn28_10").features.name == "wrn28_10"
    assert composed("algorithm=maml", "features=conv4").dataset.rotations == "none"


def test_the_command_line_wins_over_a_recipe() -> None:
    cfg = composed("algorithm=maml", "dataset=omniglot", "train.meta_batch=7", "++validation.query=11")
    assert (cfg.train.meta_batch, cfg.validation.query, cfg.algorithm.learner.inner_lr) == (7, 11, 0.4)


def test_values_given_together_leave_the_others_of_the_recipe_and_the_protocol() -> None:
    task = ("algorithm=maml", "dataset=omniglot", "way=20")
    together = composed(
        *task, "train={steps: 7}", "algorithm={learner: {inner_steps: 2}}", "protocol={common: {query: 3}}"
    )
    one_by_one = composed(*task, "train.steps=7", "algorithm.learner.inner_steps=2", "protocol.common.query=3")
    assert together == one_by_one
    assert (together.train.steps, together.train.meta_batch) == (7, composed(*task).train.meta_batch)


def test_without_published_settings_there_is_no_recipe() -> None:
    cfg = composed("algorithm=maml", "dataset=cub")
    assert cfg.recipe is None
    assert resolved(cfg) == resolved(composed("algorithm=maml", "dataset=cub", "recipe=null"))


def test_steps_that_no_paper_states_are_not_told_as_a_papers() -> None:
    cfg = composed("algorithm=protonet", "dataset=omniglot")
    assert (cfg.recipe, cfg.train.steps, paper_steps(cfg)) == ("jakesnell", 20000, None)
    assert paper_steps(composed("algorithm=reptile", "dataset=omniglot")) == 100_000
    assert composed("algorithm=protonet", "dataset=mini", "way=20").recipe is None


def test_a_row_for_images_does_not_apply_to_features() -> None:
    assert composed("algorithm=maml", "dataset=glyphs").train.steps == 250
    on_features = composed("algorithm=maml", "dataset=glyphs", "features=conv4", "backbone=linear")
    assert (on_features.recipe, on_features.train.steps) == (None, 300)


@pytest.mark.parametrize(("algorithm", "steps"), [("maml", 5), ("fomaml", 5), ("reptile", 10)])
def test_tables_of_any_name_have_settings_of_their_own(algorithm: str, steps: int) -> None:
    cfg = composed(f"algorithm={algorithm}", "dataset=tables", "dataset.reader.root=x", "dataset.name=plants")
    assert (cfg.recipe, cfg.algorithm.learner.inner_steps, cfg.algorithm.learner.test_steps) == ("ours", steps, steps)


def test_a_recipe_that_was_asked_for_and_has_nothing_is_refused() -> None:
    with pytest.raises(FewshotError, match="recipe=openai: has no settings for algorithm maml"):
        composed("algorithm=maml", "dataset=omniglot", "recipe=openai")
    with pytest.raises(FewshotError, match="did you mean cbfinn"):
        composed("recipe=cbfin")


@pytest.mark.parametrize("backbone", ["conv4", "resnet12", "mlp", "torchvision"])
def test_boil_has_no_head_of_zeros_in_any_network(backbone: str) -> None:
    words = ("algorithm=boil", "dataset=cifar_fs", f"backbone={backbone}")
    network = composed(*words).backbone.network
    assert network.get("head_init", "uniform") == "uniform"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("algorithm=anil", "dataset=omniglot"),
            "recipe none: defaults of algorithm anil, 300 steps; settings for this task: recipe=half_hour",
        ),
        (("algorithm=r2d2", "dataset=fc100"), "recipe none: defaults of algorithm r2d2, 300 steps"),
        (("algorithm=maml", "dataset=omniglot", "way=10"), "recipe none: defaults of algorithm maml, 300 steps"),
        (
            ("algorithm=simple_shot", "dataset=omniglot"),
            "recipe none: defaults of algorithm simple_shot; settings for this task: recipe=half_hour",
        ),
        (
            ("algorithm=boil", "dataset=omniglot"),
            "recipe none: defaults of algorithm boil, backbone.network.head_init=uniform, 300 steps; settings for this "
            "task: recipe=half_hour",
        ),
        (
            ("algorithm=maml", "dataset=omniglot", "recipe=half_hour", "algorithm.learner.inner_steps=7"),
            "recipe half_hour: 16 settings, 18,000 steps; see --cfg job\nalgorithm.learner.inner_steps=7: of the "
            "training alone; the validation, and tests whose protocol names no steps, take test_steps=1, which you can "
            "set too",
        ),
        (("algorithm=nearest", "dataset=omniglot"), ""),
    ],
)
def test_a_training_says_what_its_recipe_made_or_which_it_could_have(words: tuple[str, ...], line: str) -> None:
    assert complete(composed(*words, completed=False), words) == line


@pytest.mark.parametrize(
    "settings",
    [
        *({f"protocol.common.{field.name}": 1} for field in fields(Protocol)),
        {"protocol.paper": {"query": 1}},
        {"dataset.reader.split": "lake"},
        {"dataset.reader": {"split": "lake"}},
        {"dataset": {"name": "mine"}},
        {"way": 20},
        {"seed": 1},
        {"engine": "loop"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_recipe_that_sets_anything_of_a_protocol_is_refused(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    rows = [{"when": {"algorithm": "maml"}, "set": {"train.steps": 5, **settings}}]
    OmegaConf.save({"rows": rows}, tmp_path / "recipes/mine.yaml")
    cfg = composed("algorithm=maml", "recipe=mine", completed=False)
    monkeypatch.setattr(recipes, "CONF", tmp_path)
    with pytest.raises(FewshotError, match=f"recipe=mine: sets {next(iter(settings))}; a recipe says how to train"):
        apply_recipe(cfg, ())


# `ours` also changes defaults, such as the start of BOIL's head, whatever the number of steps.
@pytest.mark.parametrize(
    "path", sorted({*(CONF / "recipes").glob("*.yaml")} - {CONF / "recipes/ours.yaml"}), ids=lambda path: path.stem
)
def test_a_recipe_has_settings_only_for_tasks_that_one_of_its_rows_names_whole(path: Path) -> None:
    recipe: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    tasks: dict[str, list[Any]] = {key: [None] for key in ("algorithm", "dataset", "backbone", "features")}
    tasks |= {"way": [2], "shot": [3], "inputs": ["images"]}
    for key, values in tasks.items():
        for when in (row["when"] for row in recipe["rows"] if key in row["when"]):
            values += when[key] if isinstance(when[key], list) else [when[key]]
    for found in product(*map(set, tasks.values())):
        facts = dict(zip(tasks, found, strict=True))
        held = [row["when"].keys() for row in recipe["rows"] if settings_of([row], facts)]
        task = {"algorithm", "dataset"} | (set() if "sinusoid" in str(facts["dataset"]) else {"way", "shot"})
        assert not held or any(task <= keys for keys in held), facts


def _feature_words(when: dict[str, Any]) -> tuple[str, ...]:
    """The words of a command that meet the conditions of a row on features."""
    if "features" not in when:
        return ()
    return f"features={when['features'][0]}", *(["features.role=start"] if "images" in when.get("inputs", []) else [])


@pytest.mark.parametrize("path", sorted((CONF / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_row_of_every_recipe_sets_existing_keys_to_values_of_their_type(path: Path) -> None:
    recipe: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    rows, ours = recipe["rows"], recipe.get("ours", False)
    wanted = [{key: v if isinstance(v, list) else [v] for key, v in row["when"].items()} for row in rows]
    task = ("algorithm", "dataset", "way", "shot")
    assert all(set(when) <= {*task, "backbone", "features", "inputs"} for when in wanted)
    # Rows that leave a condition out change what another row says.
    settings = {
        (when.get("backbone", [None])[0], _feature_words(when), *found)
        for when in wanted
        if set(task) <= set(when)
        for found in product(*(when[key] for key in task))
    }
    bases = {
        key: composed(
            f"algorithm={key[2]}",
            f"dataset={key[3]}",
            f"recipe={path.stem}",
            *([f"backbone={key[0]}"] if key[0] else []),
            *key[1],
            completed=False,
        )
        for key in {setting[:4] for setting in settings}
    }
    held: set[int] = set()
    for *key, way, shot in settings:
        cfg = bases[tuple(key)].copy()
        cfg.way, cfg.shot = way, shot
        facts = recipes.task_facts(cfg)
        held |= {place for place, row in enumerate(rows) if settings_of([row], facts)}
        apply_recipe(cfg, ())
        assert cfg.recipe == path.stem
        TrainSettings(**resolved(cfg)["train"])
        apply_protocols(cfg, ())
        assert list(cfg.protocol) == (["common"] if ours else ["common", "paper"])
    backbones = set().union(*(OmegaConf.load(p).network for p in (CONF / "backbone").glob("*.yaml")))
    for key in (key for row in rows for key in row["set"] if key.startswith("backbone.")):
        assert key.removeprefix("backbone.network.") in backbones
    whole = {place for place, when in enumerate(wanted) if set(task) <= set(when)}
    assert whole <= held  # no row whose conditions nothing meets


# What the originals' own files say, row by row: {shot: ...} where the shots differ.
PUBLISHED: dict[tuple[str, str, str], dict[str, Any]] = {
    ("cbfinn", "maml", "mini"): {
        "algorithm.learner.inner_loss": "per_shot", "algorithm.learner.inner_lr": 0.01,
        "algorithm.learner.inner_steps": 5, "algorithm.learner.test_steps": 10, "train.meta_batch": 4,
        "train.query": 15, "train.steps": 60_000, "train.clip": 10, "train.select": "last",
        "validation.query": {1: 1, 5: 5}, "protocol.paper.query": {1: 1, 5: 5}, "protocol.paper.episodes": 600,
        "protocol.paper.setting": "transductive", "protocol.paper.rotations": "none",
        "dataset.reader.resample": "lanczos", "dataset.augment.episodes": "none",
        "backbone.network.filters": 32, "backbone.network.pool": "valid", "backbone.network.norm_scale": False,
        "backbone.network.head_init": "xavier",
    },
    **{
        ("cbfinn", algorithm, f"omniglot way={way}"): {
            "algorithm.learner.inner_loss": "per_shot", "algorithm.learner.inner_lr": rate,
            "algorithm.learner.inner_steps": steps, "algorithm.learner.test_steps": at_test, "train.meta_batch": tasks,
            "algorithm.learner.first_order": algorithm == "fomaml", "train.query": {1: 1, 5: 5}, "train.steps": 60_000,
            "train.outer_lr": 0.001, "train.clip": None, "train.select": "last", "dataset.rotations": "per_class",
            "protocol.paper.query": {1: 1, 5: 5}, "protocol.paper.episodes": 600,
            "protocol.paper.rotations": "per_class",
            "backbone.network.filters": 64, "backbone.network.downsample": "stride",
            "backbone.network.readout": "mean", "backbone.network.norm_scale": False,
            "backbone.network.adapt_norm": False,
        }
        for algorithm in ("maml", "fomaml")
        for way, rate, steps, at_test, tasks in ((5, 0.4, 1, 3, 32), (20, 0.1, 5, 5, 16))
    },
    ("cbfinn", "maml", "sinusoid"): {
        "backbone.name": "mlp", "algorithm.learner.inner_loss": "mean", "algorithm.learner.inner_lr": 0.001,
        "algorithm.learner.inner_steps": 1, "train.meta_batch": 25, "train.shot": 10, "train.steps": 70_000,
        "train.outer_lr": 0.001, "train.outer_optimizer": "adam_tf", "train.clip": None,
    },
    **{
        ("openai", "reptile", f"omniglot way={way}"): {
            "algorithm.learner.inner_batch": batch, "algorithm.learner.inner_steps": batch // 2,
            "algorithm.learner.test_steps": 50, "algorithm.learner.test_batch": batch // 2,
            "algorithm.learner.inner_lr": rate, "algorithm.learner.inner_optimizer": "adam",
            "algorithm.learner.inner_loss": "sum", "train.shot": 10, "train.query": 0, "train.steps": steps,
            "train.meta_batch": 5, "train.outer_lr": 1.0, "train.outer_lr_end": 0.0, "train.select": "last",
            "dataset.rotations": "as_classes", "protocol.paper.query": 1, "protocol.paper.episodes": 10_000,
            "protocol.paper.setting": "both", "protocol.paper.rotations": "none",
            "backbone.network.filters": 64, "backbone.network.readout": "flatten", "backbone.network.norm_scale": True,
        }
        for way, batch, rate, steps in ((5, 10, 0.001, 100_000), (20, 20, 0.0005, 200_000))
    },
    ("jakesnell", "protonet", "omniglot"): {
        "train.way": 60, "train.query": 5, "train.meta_batch": 1, "train.outer_optimizer": "adam",
        "train.outer_lr": 0.001, "train.outer_lr_halve_every": 2000, "dataset.rotations": "as_classes",
        "backbone.network.filters": 64,
    },
    ("jakesnell", "protonet", "mini"): {
        "train.way": {1: 30, 5: 20}, "train.query": 15, "train.meta_batch": 1, "train.outer_lr": 0.001,
        "train.outer_lr_halve_every": 2000, "backbone.network.filters": 64,
    },
    ("bertinetto", "r2d2", "mini"): {
        "train.way": 16, "train.query": {1: 240 // 16 - 1, 5: 240 // 16 - 5}, "train.meta_batch": 1,
        "train.steps": 1200 * 100, "train.outer_lr": 0.005, "train.outer_lr_halve_every": 2000,
        "algorithm.learner.regularization": 50.0, "algorithm.learner.learn_regularization": False,
        "algorithm.learner.scale": 0.0001,
    },
    ("bertinetto", "r2d2", "cifar_fs"): {
        "train.way": 20, "train.query": {1: 240 // 20 - 1, 5: 240 // 20 - 5}, "train.steps": 1200 * 100,
        "algorithm.learner.regularization": 50.0, "algorithm.learner.scale": 10.0,
        "protocol.paper.query": {1: 47, 5: 43}, "protocol.paper.episodes": 10_000,
        "protocol.paper.setting": "inductive",
    },
    ("openai", "reptile", "mini"): {
        "algorithm.learner.inner_batch": 10, "algorithm.learner.inner_steps": 8, "algorithm.learner.test_steps": 50,
        "algorithm.learner.test_batch": {1: 5, 5: 15}, "algorithm.learner.inner_lr": 0.001, "train.shot": 15,
        "train.steps": 100_000, "protocol.paper.query": 1, "protocol.paper.episodes": 10_000,
        "protocol.paper.setting": "both",
        "backbone.network.filters": 32, "backbone.network.pool": "same",
    },
    **{
        ("mmfewshot", "maml", dataset): {
            "algorithm.learner.inner_steps": 2, "algorithm.learner.test_steps": 5, "train.shot": 5, "train.query": 16,
            "train.steps": 100_000 / 8, "train.meta_batch": 8, "train.validate_every": 2000 / 8,
            "train.select": "best", "train.clip": None, "protocol.paper.query": 15, "protocol.paper.episodes": 2000,
            "validation.episodes": 100, "dataset.reader.size": 96, "dataset.reader.resize": "crop",
            "dataset.crop": 84, "dataset.augment.episodes": "natural",
            "dataset.mean": pytest.approx([123.675 / 255, 116.28 / 255, 103.53 / 255]),
            "dataset.std": pytest.approx([58.395 / 255, 57.12 / 255, 57.375 / 255]),
            "backbone.network.filters": 64, "backbone.network.head_init": "uniform",
        }
        for dataset in ("mini", "tiered", "cub")
    },
    ("learn2learn", "maml", "mini"): {
        "algorithm.learner.inner_lr": 0.5, "algorithm.learner.inner_steps": 1, "algorithm.learner.test_steps": 1,
        "algorithm.learner.first_order": False, "train.outer_lr": 0.003, "train.meta_batch": 32,
        "train.steps": 60_000, "train.query": {1: 1, 5: 5}, "protocol.paper.query": {1: 1, 5: 5},
        "protocol.paper.episodes": 32,
        "dataset.std": pytest.approx([1 / 255] * 3), "backbone.network.filters": 64,
    },
    ("dragen1860", "fomaml", "mini"): {
        "backbone.name": "conv4_dragen", "algorithm.learner.inner_loss": "mean", "algorithm.learner.inner_steps": 5,
        "algorithm.learner.test_steps": 10, "train.steps": 15_000, "train.meta_batch": 4, "train.query": 15,
        "protocol.paper.episodes": 100, "dataset.mean": pytest.approx([0.485, 0.456, 0.406]),
        "backbone.network.filters": 32,
    },
}  # fmt: skip


@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize(("recipe", "algorithm", "dataset"), PUBLISHED)
def test_recipes_hold_the_published_settings(recipe: str, algorithm: str, dataset: str, shot: int) -> None:
    backbone = PUBLISHED[recipe, algorithm, dataset].get("backbone.name", "conv4")
    words = f"algorithm={algorithm}", f"shot={shot}", f"recipe={recipe}", f"backbone={backbone}"
    cfg = composed(*f"dataset={dataset}".split(), *words)
    plain = OmegaConf.create(resolved(cfg))
    for key, value in PUBLISHED[recipe, algorithm, dataset].items():
        assert OmegaConf.select(plain, key) == (value[shot] if isinstance(value, dict) else value), key


@pytest.mark.parametrize("recipe", ["cbfinn", "openai", "deepmind"])
def test_programs_of_tensorflow_are_reproduced_with_tensorflows_adam_or_plain_sgd(recipe: str) -> None:
    rows: Any = OmegaConf.to_container(OmegaConf.load(CONF / "recipes" / f"{recipe}.yaml"), resolve=False)["rows"]  # type: ignore[index]
    named = {row["set"]["train.outer_optimizer"] for row in rows if "train.outer_optimizer" in row["set"]}
    assert named in ({"adam_tf"}, {"sgd"})


def test_foml_takes_the_settings_of_the_originals_comparison_of_gradients() -> None:
    cfg = composed("algorithm=foml", "dataset=omniglot", "shot=5")
    learner = cfg.algorithm.learner
    assert (cfg.recipe, learner.foml, learner.tail_shots, learner.inner_optimizer) == ("openai", True, None, "sgd")
    assert (learner.inner_lr, learner.inner_steps, learner.inner_batch, cfg.train.shot) == (0.003, 4, 25, 20)
    assert (cfg.train.meta_batch, cfg.train.outer_lr, cfg.train.steps) == (1, 0.25, 40_000)
    assert cfg.backbone.network.readout == "flatten"
    assert composed("algorithm=foml", "dataset=omniglot", "shot=1").recipe is None


def test_a_recipe_leaves_out_what_a_backbone_does_not_have() -> None:
    overrides = ("algorithm=maml", "dataset=cub", "recipe=mmfewshot", "backbone=resnet12")
    network = composed(*overrides).backbone.network
    assert (network.norm_eps, network.drop_rate, network.head_init) == (1e-5, 0.0, "uniform")
    assert not {"filters", "downsample", "conv_init"} & set(network)


def test_what_is_of_first_order_is_no_recipe_of_maml() -> None:
    with pytest.raises(FewshotError, match="recipe=dragen1860: has no settings for algorithm maml, dataset mini"):
        composed("algorithm=maml", "dataset=mini", "recipe=dragen1860")
    with pytest.raises(FewshotError, match="recipe=dragen1860: has no settings for .* backbone conv4,"):
        composed("algorithm=fomaml", "dataset=mini", "recipe=dragen1860")
    with pytest.raises(FewshotError, match="recipe=learn2learn: has no settings for algorithm fomaml"):
        composed("algorithm=fomaml", "dataset=mini", "recipe=learn2learn")


def test_a_recipe_sets_what_a_named_backbone_has() -> None:
    cfg = composed("algorithm=maml", "dataset=omniglot", "backbone=mlp")
    assert cfg.backbone.name == "mlp"
    assert (cfg.backbone.network.norm_scale, cfg.backbone.network.adapt_norm) == (False, False)
    assert "filters" not in cfg.backbone.network
    conv4 = composed("algorithm=maml", "dataset=omniglot", "backbone=conv4")
    assert conv4.backbone.network.readout == "mean"
    starts = [(own.backbone.network.get("init"), own.backbone.network.head_init) for own in (cfg, conv4)]
    assert starts == [("truncated_normal", "truncated_normal"), (None, "normal")]


@pytest.mark.parametrize(
    ("algorithm", "dataset", "recipe"),
    [
        ("maml", "sinusoid", "cbfinn"),
        ("fomaml", "sinusoid", "cbfinn"),
        ("reptile", "sinusoid", "ours"),
        ("reptile", "sinusoid_toy", "openai"),
        ("maml", "sines_and_lines", "ours"),
        ("fomaml", "sines_and_lines", "ours"),
    ],
)
def test_a_recipe_of_functions_makes_its_network_of_either_mlp(algorithm: str, dataset: str, recipe: str) -> None:
    words = f"algorithm={algorithm}", f"dataset={dataset}"
    one, other = (composed(*words, f"backbone={name}") for name in ("mlp", "mlp_40"))
    assert one.recipe == other.recipe == recipe
    own, wide = one.backbone.network, other.backbone.network
    used = wide.keys() - {"norm_scale", "norm_eps", "adapt_norm"}  # of a norm, which there is not
    assert {name: own[name] for name in used} == {name: wide[name] for name in used}


@pytest.mark.parametrize("dataset", ["omniglot", "mini", "folder"])
def test_features_are_not_rotated_and_images_are_where_the_dataset_says(dataset: str) -> None:
    for words in (["algorithm=leo"], ["algorithm=maml", "features=conv4", "backbone=linear"]):
        cfg = composed(f"dataset={dataset}", *words)
        assert cfg.features.name is not None
        assert cfg.dataset.rotations == "none"
    plain = composed(f"dataset={dataset}", "algorithm=maml", "recipe=none")
    assert plain.dataset.rotations == ("per_class" if dataset == "omniglot" else "none")


def benchmark_blocks() -> list[tuple[tuple[str, ...], list[tuple[int, int]]]]:
    """The runs of conf/experiment/cpu_benchmark.yaml: common overrides, and (way, shot) of each."""
    blocks = []
    for sweep in composed("experiment=cpu_benchmark").sweeps:
        values = {key: words.split(",") for key, _, words in (word.partition("=") for word in sweep.split())}
        tasks = [(int(way), int(shot)) for way, shot in product(values.pop("way"), values.pop("shot"))]
        words = product(*([f"{key}={value}" for value in offered] for key, offered in values.items()))
        blocks += [(each, tasks) for each in words]
    return blocks


@pytest.mark.parametrize(("words", "tasks"), benchmark_blocks())
def test_the_benchmark_has_a_recipe_for_every_cell_and_selects_on_validation_classes(
    words: tuple[str, ...], tasks: list[tuple[int, int]]
) -> None:
    cfg = composed("experiment=cpu_benchmark", *words, f"way={tasks[0][0]}", f"shot={tasks[0][1]}")
    assert cfg.recipe in ("half_hour", "one_hour")
    assert list(cfg.protocol) == ["common"]
    assert (cfg.protocol.common.split, cfg.protocol.common.episodes, cfg.protocol.common.query) == ("test", 1000, 15)
    assert not cfg.train.train_on_val
    assert cfg.copy_records_to == f"results/{cfg.dataset.name}/{cfg.recipe}"
    assert recipes.recipe_changes(cfg) == []
    # A cell that was measured is the run that it was: its command would find it, and begin no other.
    folder, inputs = run_folder(resolved(cfg)), (cfg.features.name, cfg.features.get("role", "input"))
    kept = (CONF.parent / cfg.copy_records_to / folder.parent.name).glob(f"{folder.name[:-8]}*/tests/*/record.json")
    measured = {path.parents[2].name: read_record(path)["settings"] for path in kept}
    runs = {
        name
        for name, settings in measured.items()
        if (settings.get("features.name"), settings.get("features.role", "input")) == inputs
    }
    assert runs == {folder.name}
    for cfg.way, cfg.shot in tasks:
        assert "train.steps" in recipes.recipe_settings(cfg.recipe, cfg)


def test_the_runs_of_the_papers_are_of_three_methods_on_two_datasets() -> None:
    tasks = ("dataset=omniglot way=5,20 shot=1,5", "dataset=mini way=5 shot=1,5")
    assert set(composed("experiment=papers").sweeps) == {f"algorithm=maml,fomaml,reptile {task}" for task in tasks}


@pytest.mark.parametrize(("dataset", "way"), [("mini", 5), ("omniglot", 5), ("omniglot", 20)])
@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile"])
def test_the_papers_settings_are_trained_and_tested_as_there(algorithm: str, dataset: str, way: int) -> None:
    for shot in (1, 5):
        task = f"algorithm={algorithm}", f"dataset={dataset}", f"way={way}", f"shot={shot}"
        cfg = composed("experiment=papers", *task)
        assert cfg.recipe == ("openai" if algorithm == "reptile" else "cbfinn")
        assert cfg.copy_records_to == f"results/{dataset}/papers"
        assert list(cfg.protocol) == ["common", "paper"]
        steps = {5: 100_000, 20: 200_000}[way] if algorithm == "reptile" else 60_000
        assert cfg.train.steps == steps
        assert cfg.dataset.reader.size == (84 if dataset == "mini" else 28)
        read_protocols(cfg)


def test_what_a_recipe_leaves_to_the_files_of_conf_is_changed_too() -> None:
    task = ("algorithm=maml", "dataset=omniglot")
    usual = composed(*task, "train.log_every=5")  # of which no score depends
    assert usual.recipe == "cbfinn" and recipes.recipe_changes(usual) == []
    words = (
        "algorithm.learner.first_order=true", "backbone.network.norm=none", "train.clip_norm=1", "train.shot=2",
        "validation.episodes=50", "dataset.augment.episodes=gentle",
    )  # fmt: skip
    changed = recipes.recipe_changes(composed(*task, *words))
    assert sorted(changed) == sorted(word.partition("=")[0] for word in words)


@pytest.mark.parametrize("words", [("algorithm=reptile", "dataset=sinusoid"), ("algorithm=maml", "dataset=tables")])
def test_of_two_backbones_of_one_name_the_nearest_is_the_usual_one(words: tuple[str, ...]) -> None:
    cfg = composed(*words, "dataset.reader.root=x") if "dataset=tables" in words else composed(*words)
    assert cfg.recipe == "ours" and cfg.backbone.name == "mlp"
    assert recipes.recipe_changes(cfg) == []


def test_what_is_set_without_a_recipe_is_no_change() -> None:
    words = ("algorithm=meta_sgd", "features=none", "backbone=conv4", "dataset=mini")
    cfg = composed(*words)
    assert cfg.recipe is None and cfg.algorithm.learner.inner_lr == 0.1 and recipes.recipe_changes(cfg) == []
    assert recipes.recipe_changes(composed(*words, "algorithm.learner.inner_lr=50")) == ["algorithm.learner.inner_lr"]
    usual = composed("algorithm=maml", "dataset=glyphs", "recipe=none")
    assert usual.algorithm.learner.inner_lr == 0.1 and recipes.recipe_changes(usual) == []


@pytest.mark.parametrize("changed", ["first_order=true", "adapted=head", "inner_steps=3"])
def test_a_learner_that_is_not_as_its_file_is_known_without_a_recipe_too(changed: str) -> None:
    usual = composed("algorithm=maml", "dataset=cub", "recipe=none")
    assert usual.recipe is None and recipes.recipe_changes(usual) == []
    cfg = composed("algorithm=maml", "dataset=cub", "recipe=none", f"algorithm.learner.{changed}")
    assert recipes.recipe_changes(cfg) == [f"algorithm.learner.{changed.partition('=')[0]}"]


def test_steps_that_a_recipe_leaves_to_the_algorithm_are_changed_too() -> None:
    usual = composed("algorithm=protonet", "dataset=glyphs")
    assert usual.recipe == "ours" and "train.steps" not in recipes.recipe_settings("ours", usual)
    assert recipes.recipe_changes(usual) == []
    for algorithm in ("protonet", "anil"):  # the second has the steps of the file that it builds on
        cfg = composed(f"algorithm={algorithm}", "dataset=glyphs", "train.steps=30")
        assert recipes.recipe_changes(cfg) == ["train.steps"]
        usual = composed(f"algorithm={algorithm}", "dataset=glyphs")
        assert recipes.recipe_changes(usual) == []
