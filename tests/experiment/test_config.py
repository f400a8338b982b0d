"""Recipes and the identity of a configuration."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from fewshot.core.checks import did_you_mean
from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.experiment.build import build
from fewshot.experiment.config import apply_recipe, config_hash, resolved
from fewshot.experiment.run_dir import saved_config
from fewshot.training.settings import TrainSettings


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def with_recipe(*overrides: str) -> DictConfig:
    cfg = composed(*overrides)
    apply_recipe(cfg, overrides)
    return cfg


def test_the_original_papers_settings_apply_by_themselves() -> None:
    cfg = with_recipe("algorithm=maml", "dataset=omniglot", "way=20", "shot=5")
    assert cfg.recipe == "cbfinn"
    assert (cfg.algorithm.learner.inner_lr, cfg.algorithm.learner.inner_steps, cfg.train.meta_batch) == (0.1, 5, 16)
    assert cfg.query == 5  # as many queries as shots
    assert with_recipe("algorithm=reptile", "dataset=omniglot").recipe == "openai"


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
        cfg = with_recipe(f"algorithm={algorithm}", f"dataset={dataset}", f"shot={shot}")
        assert (cfg.recipe, cfg.features.name) == ("deepmind", "published")
        learner = cfg.algorithm.learner
        assert (cfg.train.outer_lr, learner.kl_weight, cfg.query) == (outer_lr, kl_weight, query)
    assert with_recipe("algorithm=leo", f"dataset={dataset}", f"shot={shot + 1}").recipe is None


def test_leo_takes_the_features_of_its_dataset_unless_others_are_named() -> None:
    assert composed("algorithm=leo").features.name == "conv4"
    assert composed("algorithm=leo", "dataset=mini").features.name == "published"
    assert composed("algorithm=leo", "dataset=mini", "features=wrn28_10").features.name == "wrn28_10"
    assert composed("algorithm=maml", "features=conv4").dataset.rotations.test == "none"


def test_the_command_line_wins_over_a_recipe() -> None:
    cfg = with_recipe("algorithm=maml", "dataset=omniglot", "train.meta_batch=7", "++test.episodes=11")
    assert (cfg.train.meta_batch, cfg.test.episodes, cfg.algorithm.learner.inner_lr) == (7, 11, 0.4)


def test_without_published_settings_there_is_no_recipe() -> None:
    cfg = with_recipe("algorithm=maml", "dataset=cub")
    assert cfg.recipe is None
    assert resolved(cfg) == resolved(composed("algorithm=maml", "dataset=cub", "recipe=null"))


def test_a_row_for_images_does_not_apply_to_features() -> None:
    assert with_recipe("algorithm=maml", "dataset=glyphs").train.steps == 250
    on_features = with_recipe("algorithm=maml", "dataset=glyphs", "features=conv4", "backbone=linear")
    assert (on_features.recipe, on_features.train.steps) == (None, 300)


def test_a_recipe_that_was_asked_for_and_has_nothing_is_refused() -> None:
    with pytest.raises(FewshotError, match="recipe=openai: has no settings for algorithm=maml"):
        with_recipe("algorithm=maml", "dataset=omniglot", "recipe=openai")
    with pytest.raises(FewshotError, match="did you mean cbfinn"):
        with_recipe("recipe=cbfin")


@pytest.mark.parametrize("path", sorted((CONF / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_row_of_every_recipe_sets_existing_keys_to_values_of_their_type(path: Path) -> None:
    rows: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)["rows"]  # type: ignore[index]
    wanted = [{key: v if isinstance(v, list) else [v] for key, v in row["when"].items()} for row in rows]
    task = ("algorithm", "dataset", "way", "shot")
    assert all(set(when) <= {*task, "backbone", "inputs"} for when in wanted)
    # Rows that leave a condition out change what another row says.
    settings = {
        (when.get("backbone", [None])[0], *found)
        for when in wanted
        if set(task) <= set(when)
        for found in product(*(when[key] for key in task))
    }
    bases = {
        key: composed(
            f"algorithm={key[1]}",
            f"dataset={key[2]}",
            f"recipe={path.stem}",
            *([f"backbone={key[0]}"] if key[0] else []),
        )
        for key in {setting[:3] for setting in settings}
    }
    for *key, way, shot in settings:
        cfg = bases[tuple(key)].copy()
        cfg.way, cfg.shot = way, shot
        apply_recipe(cfg, ())
        assert cfg.recipe == path.stem
        TrainSettings(**resolved(cfg)["train"])
    backbones = set().union(*(OmegaConf.load(p).network for p in (CONF / "backbone").glob("*.yaml")))
    for key in (key for row in rows for key in row["set"] if key.startswith("backbone.")):
        assert key.removeprefix("backbone.network.") in backbones


# What the originals' own files say, row by row: {shot: ...} where the shots differ.
PUBLISHED: dict[tuple[str, str, str], dict[str, Any]] = {
    ("cbfinn", "maml", "mini"): {
        "algorithm.learner.inner_loss": "per_shot", "algorithm.learner.inner_lr": 0.01,
        "algorithm.learner.inner_steps": 5, "algorithm.learner.test_steps": 10, "train.meta_batch": 4,
        "train.query": 15, "train.steps": 60_000, "train.clip": 10, "train.select": "last", "query": {1: 1, 5: 5},
        "test.episodes": 600, "dataset.reader.resample": "lanczos", "dataset.augment.episodes": "none",
        "backbone.network.filters": 32, "backbone.network.pool": "valid", "backbone.network.norm_scale": False,
        "backbone.network.head_init": "xavier",
    },
    ("openai", "reptile", "mini"): {
        "algorithm.learner.inner_batch": 10, "algorithm.learner.inner_steps": 8, "algorithm.learner.test_steps": 50,
        "algorithm.learner.test_batch": {1: 5, 5: 15}, "algorithm.learner.inner_lr": 0.001, "train.shot": 15,
        "train.steps": 100_000, "query": 1, "test.episodes": 10_000, "test.transductive": False,
        "backbone.network.filters": 32, "backbone.network.pool": "same",
    },
    **{
        ("mmfewshot", "maml", dataset): {
            "algorithm.learner.inner_steps": 2, "algorithm.learner.test_steps": 5, "train.shot": 5, "train.query": 16,
            "train.steps": 100_000 / 8, "train.meta_batch": 8, "train.validate_every": 2000 / 8,
            "train.select": "best", "train.clip": None, "query": 15, "test.episodes": 2000,
            "test.validation_episodes": 100, "dataset.reader.size": 96, "dataset.reader.resize": "crop",
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
        "train.steps": 60_000, "train.query": {1: 1, 5: 5}, "query": {1: 1, 5: 5}, "test.episodes": 32,
        "dataset.std": pytest.approx([1 / 255] * 3), "backbone.network.filters": 64,
    },
    ("dragen1860", "fomaml", "mini"): {
        "backbone.name": "conv4_dragen", "algorithm.learner.inner_loss": "mean", "algorithm.learner.inner_steps": 5,
        "algorithm.learner.test_steps": 10, "train.steps": 15_000, "train.meta_batch": 4, "train.query": 15,
        "test.episodes": 100, "dataset.mean": pytest.approx([0.485, 0.456, 0.406]), "backbone.network.filters": 32,
    },
}  # fmt: skip


@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize(("recipe", "algorithm", "dataset"), PUBLISHED)
def test_recipes_for_images_hold_the_published_settings(recipe: str, algorithm: str, dataset: str, shot: int) -> None:
    backbone = PUBLISHED[recipe, algorithm, dataset].get("backbone.name", "conv4")
    words = f"algorithm={algorithm}", f"dataset={dataset}", f"shot={shot}", f"recipe={recipe}", f"backbone={backbone}"
    cfg = with_recipe(*words)
    plain = OmegaConf.create(resolved(cfg))
    for key, value in PUBLISHED[recipe, algorithm, dataset].items():
        assert OmegaConf.select(plain, key) == (value[shot] if isinstance(value, dict) else value), key


@pytest.mark.parametrize("recipe", ["cbfinn", "openai", "deepmind"])
def test_programs_of_tensorflow_are_reproduced_with_tensorflows_adam_or_plain_sgd(recipe: str) -> None:
    rows: Any = OmegaConf.to_container(OmegaConf.load(CONF / "recipes" / f"{recipe}.yaml"), resolve=False)["rows"]  # type: ignore[index]
    named = {row["set"]["train.outer_optimizer"] for row in rows if "train.outer_optimizer" in row["set"]}
    assert named in ({"adam_tf"}, {"sgd"})


def test_foml_takes_the_settings_of_the_originals_comparison_of_gradients() -> None:
    cfg = with_recipe("algorithm=foml", "dataset=omniglot", "shot=5")
    learner = cfg.algorithm.learner
    assert (cfg.recipe, learner.foml, learner.tail_shots, learner.inner_optimizer) == ("openai", True, None, "sgd")
    assert (learner.inner_lr, learner.inner_steps, learner.inner_batch, cfg.train.shot) == (0.003, 4, 25, 20)
    assert (cfg.train.meta_batch, cfg.train.outer_lr, cfg.train.steps, cfg.query) == (1, 0.25, 40_000, 1)
    assert cfg.backbone.network.readout == "flatten"
    assert with_recipe("algorithm=foml", "dataset=omniglot", "shot=1").recipe is None


def test_a_recipe_leaves_out_what_a_backbone_does_not_have() -> None:
    overrides = ("algorithm=maml", "dataset=cub", "recipe=mmfewshot", "backbone=resnet12")
    network = with_recipe(*overrides).backbone.network
    assert (network.norm_eps, network.drop_rate, network.head_init) == (1e-5, 0.0, "uniform")
    assert not {"filters", "downsample", "conv_init"} & set(network)


def test_what_is_of_first_order_is_no_recipe_of_maml() -> None:
    with pytest.raises(FewshotError, match="recipe=dragen1860: has no settings for algorithm=maml, dataset=mini"):
        with_recipe("algorithm=maml", "dataset=mini", "recipe=dragen1860")
    with pytest.raises(FewshotError, match="recipe=dragen1860: has no settings for .* backbone=conv4,"):
        with_recipe("algorithm=fomaml", "dataset=mini", "recipe=dragen1860")
    with pytest.raises(FewshotError, match="recipe=learn2learn: has no settings for algorithm=fomaml"):
        with_recipe("algorithm=fomaml", "dataset=mini", "recipe=learn2learn")


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile"])
@pytest.mark.parametrize("backbone", ["conv4", "mlp"])
def test_every_algorithm_builds_on_every_backbone(algorithm: str, backbone: str, data_dir: Path) -> None:
    run = build(composed(f"algorithm={algorithm}", f"backbone={backbone}", f"data_dir={data_dir}"))
    params, _ = run.learner.init()
    again, _ = build(composed(f"algorithm={algorithm}", f"backbone={backbone}", f"data_dir={data_dir}")).learner.init()
    assert all(params[name].equal(again[name]) for name in params)


@pytest.mark.parametrize("path", sorted((CONF / "algorithm").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_an_algorithm_says_of_its_training_holds(path: Path) -> None:
    cfg = composed(f"algorithm={path.stem}")
    said = OmegaConf.load(path)
    for part, node in (
        ("train", cfg.train),
        ("algorithm", cfg.algorithm),
        ("algorithm.learner", cfg.algorithm.learner),
    ):
        for key, value in (OmegaConf.select(said, part) or {}).items():
            assert OmegaConf.is_dict(value) or node[key] == value


def test_a_recipe_sets_what_a_named_backbone_has() -> None:
    cfg = with_recipe("algorithm=maml", "dataset=omniglot", "backbone=mlp")
    assert cfg.backbone.name == "mlp"
    assert (cfg.backbone.network.norm_scale, cfg.backbone.network.adapt_norm) == (False, False)
    assert "filters" not in cfg.backbone.network
    conv4 = with_recipe("algorithm=maml", "dataset=omniglot", "backbone=conv4")
    assert conv4.backbone.network.readout == "mean"


def test_identity_covers_what_a_result_depends_on_and_nothing_else() -> None:
    base = resolved(composed())
    assert config_hash(base) == config_hash(resolved(composed("device=cpu", "runs=elsewhere", "force=true")))
    assert config_hash(base) == config_hash(resolved(composed("data_dir=elsewhere")))
    assert config_hash(base) != config_hash(resolved(composed("seed=1")))
    assert config_hash(base) != config_hash(resolved(composed("train.outer_lr=0.1")))
    assert config_hash(base, without=["seed"]) == config_hash(resolved(composed("seed=1")), without=["seed"])


def test_near_names() -> None:
    assert did_you_mean("shoot", ["way", "shot"]) == ", did you mean shot?"
    assert did_you_mean("zzz", ["way", "shot"]) == ""


@pytest.mark.parametrize("dataset", ["omniglot", "mini", "tiered", "cub", "glyphs", "folder"])
@pytest.mark.parametrize("words", [["algorithm=leo"], ["algorithm=maml", "features=conv4", "backbone=linear"]])
def test_features_are_not_rotated_and_images_are_where_the_dataset_says(dataset: str, words: list[str]) -> None:
    cfg = with_recipe(f"dataset={dataset}", *words)
    assert cfg.features.name is not None
    assert set(cfg.dataset.rotations.values()) == {"none"}
    plain = with_recipe(f"dataset={dataset}", "algorithm=maml", "recipe=none")
    assert set(plain.dataset.rotations.values()) == {"per_class" if dataset == "omniglot" else "none"}


EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("way", [5, 20])
def test_every_experiment_is_a_block_of_the_papers_table_by_their_settings(name: str, way: int) -> None:
    cfg = with_recipe(f"experiment={name}", f"way={way}", "shot=1")
    dataset, algorithm = name.split("_")
    assert (cfg.dataset.name, cfg.algorithm.name) == (dataset, algorithm)
    assert cfg.dataset.reader.split == "random1200"  # one split for all rows
    assert cfg.copy_records_to == "results/omniglot"
    assert cfg.recipe == {"maml": "cbfinn", "fomaml": "cbfinn", "reptile": "openai", "leo": None}[algorithm]
    assert (cfg.dataset.rotations.test == "none") == (algorithm in ("reptile", "leo"))
    resolved(cfg)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("query: 15\n", ""), "query is missing"),
        (("shot: 1\n", "shoot: 1\n"), "shoot is no key"),
        (("  select: best\n", ""), "train.select is missing"),
    ],
)
def test_a_saved_configuration_has_every_key_and_no_other(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    text = OmegaConf.to_yaml(composed("algorithm=maml", "dataset=glyphs"))
    (tmp_path / "config.yaml").write_text(text)
    assert saved_config(tmp_path).query == 15
    assert change[0] in text
    (tmp_path / "config.yaml").write_text(text.replace(*change, 1))
    with pytest.raises(FewshotError, match=said):
        saved_config(tmp_path)
