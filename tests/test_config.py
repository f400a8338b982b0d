"""Recipes and the identity of a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from fewshot.config import CONF, apply_recipe, identity, key_names, near, resolved
from fewshot.errors import FewshotError
from fewshot.experiment import build


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
    cfg = with_recipe("algorithm=maml", "dataset=glyphs")
    assert cfg.recipe is None
    assert resolved(cfg) == resolved(composed("algorithm=maml", "dataset=glyphs", "recipe=null"))


def test_a_recipe_that_was_asked_for_and_has_nothing_is_refused() -> None:
    with pytest.raises(FewshotError, match="recipe=openai: has no settings for algorithm=maml"):
        with_recipe("algorithm=maml", "dataset=omniglot", "recipe=openai")
    with pytest.raises(FewshotError, match="did you mean cbfinn"):
        with_recipe("recipe=cbfin")


@pytest.mark.parametrize("path", sorted((CONF / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_row_of_every_recipe_sets_existing_keys(path: Path) -> None:
    known = set(key_names(composed("dataset=omniglot")))
    for algorithm in ("maml", "fomaml", "reptile", "leo"):
        known |= set(key_names(composed(f"algorithm={algorithm}")))
    recipe = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    for row in recipe["rows"]:
        assert set(row["set"]) <= known
        assert set(row["when"]) <= {"algorithm", "dataset", "way", "shot"}


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "reptile"])
@pytest.mark.parametrize("backbone", ["conv4", "mlp"])
def test_every_algorithm_builds_on_every_backbone(algorithm: str, backbone: str, data_dir: Path) -> None:
    run = build(composed(f"algorithm={algorithm}", f"backbone={backbone}", f"data_dir={data_dir}"))
    params, _ = run.learner.initial()
    again, _ = build(
        composed(f"algorithm={algorithm}", f"backbone={backbone}", f"data_dir={data_dir}")
    ).learner.initial()
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
    assert identity(base) == identity(resolved(composed("device=cpu", "runs=elsewhere", "force=true")))
    assert identity(base) == identity(resolved(composed("data_dir=elsewhere")))
    assert identity(base) != identity(resolved(composed("seed=1")))
    assert identity(base) != identity(resolved(composed("train.outer_lr=0.1")))
    assert identity(base, without=["seed"]) == identity(resolved(composed("seed=1")), without=["seed"])


def test_near_names() -> None:
    assert near("shoot", ["way", "shot"]) == ", did you mean shot?"
    assert near("zzz", ["way", "shot"]) == ""
