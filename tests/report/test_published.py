"""The published figures: every field checked, and the ones that the field quotes most held against the originals."""

import csv
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fewshot.core.errors import FewshotError
from fewshot.report.published import CAVEATS, FIELDS, PUBLISHED, UNKNOWN, VIEWS, published

ROOT = PUBLISHED.parent.parent
FIGURES = published()


def found(**wanted: Any) -> list[dict[str, Any]]:
    return [figure for figure in FIGURES if all(figure[key] == value for key, value in wanted.items())]


def test_methods_datasets_and_backbones_have_the_names_they_have_here() -> None:
    methods = {path.stem for path in (ROOT / "conf/algorithm").glob("*.yaml")} | {"maml++"}
    datasets = {path.stem for path in (ROOT / "conf/dataset").glob("*.yaml")} | {"sinusoid"}
    backbones = {path.stem for path in (ROOT / "conf/backbone").glob("*.yaml")} | {UNKNOWN}
    assert {figure["method"] for figure in FIGURES} <= methods
    assert {figure["dataset"] for figure in FIGURES} <= datasets
    assert {figure["backbone"].split(" ")[0] for figure in FIGURES} <= backbones


def test_no_figure_stands_twice() -> None:
    keys = ("method", "label", "dataset", "backbone", "way", "shot", "setting", "adaptation_steps", "source", "version")
    named = [tuple(figure[key] for key in keys) for figure in FIGURES]
    assert len(named) == len(set(named)) > 100


def test_every_caveat_has_a_figure_and_every_word_a_footnote() -> None:
    assert {caveat for figure in FIGURES for caveat in figure["caveats"]} == set(CAVEATS)


def test_accuracies_are_in_per_cent_above_chance() -> None:
    assert all(100 / figure["way"] < figure["value"] < 100 for figure in found(metric="accuracy"))


@pytest.mark.parametrize(
    ("method", "dataset", "way", "shot", "source", "setting", "value", "interval"),
    [
        ("leo", "mini", 5, 1, "LEO paper, Table 2", "inductive", 61.76, 0.08),
        ("leo", "tiered", 5, 5, "LEO paper, Table 2", "inductive", 81.44, 0.09),
        ("leo", "mini", 5, 1, "deepmind/leo README, released code", "inductive", 61.89, 0.16),
        ("leo", "tiered", 5, 5, "deepmind/leo README, released code", "inductive", 81.77, 0.09),
        ("meta_sgd", "tiered", 5, 1, "LEO paper, Table 2", "inductive", 62.95, 0.03),
        ("leo_deterministic", "tiered", 5, 5, "LEO paper, Table 2", "inductive", 82.06, 0.08),
        ("maml", "mini", 5, 1, "MAML paper, Table 1", "transductive", 48.70, 1.84),
        ("fomaml", "mini", 5, 5, "MAML paper, Table 1", "transductive", 63.15, 0.91),
        ("maml", "cub", 5, 5, "open-mmlab/mmfewshot, MAML README", "transductive", 77.03, 0.39),
        ("reptile", "mini", 5, 1, "Reptile paper, final version", "transductive", 49.97, 0.32),
        ("reptile", "mini", 5, 1, "Reptile paper, first version", "inductive", 45.79, 0.44),
        ("reptile", "omniglot", 20, 5, "Reptile paper, final version", "inductive", 96.65, 0.33),
        ("fomaml", "omniglot", 20, 1, "Reptile paper", "transductive", 89.4, 0.5),
        ("fomaml", "omniglot", 20, 1, "dragen1860/Reptile-Pytorch README", "transductive", 96.09, None),
        ("maml++", "mini", 5, 5, "MAML++ paper, as cited by T-NAS", "transductive", 68.32, 0.44),
    ],
)
def test_figures_are_those_of_their_sources(
    method: str, dataset: str, way: int, shot: int, source: str, setting: str, value: float, interval: float | None
) -> None:
    figures = found(method=method, dataset=dataset, way=way, shot=shot, source=source, setting=setting)
    assert (value, interval) in [(figure["value"], figure["interval"]) for figure in figures]


@pytest.mark.parametrize(
    ("source", "shot", "values"),
    [
        ("MAML paper, Table 2", 5, [0.67, 0.38, 0.35]),
        ("gaoyuankidult/MAML-tf README", 5, [0.6609, 0.3024, 0.2714]),
        ("gaoyuankidult/MAML-tf README", 10, [0.4506, 0.2024, 0.1903]),
    ],
)
def test_sinusoids_have_an_error_after_1_5_and_10_updates(source: str, shot: int, values: list[float]) -> None:
    figures = found(dataset="sinusoid", source=source, shot=shot)
    assert [(figure["adaptation_steps"], figure["value"]) for figure in figures] == list(
        zip((1, 5, 10), values, strict=True)
    )


def test_errors_are_of_the_functions_that_the_dataset_of_that_name_draws() -> None:
    assert {figure["dataset"] for figure in found(metric="mse")} == set(VIEWS)
    for dataset, view in VIEWS.items():
        reader = OmegaConf.load(ROOT / f"conf/dataset/{dataset}.yaml").dataset.reader
        assert instantiate(reader)["test"].description == view


@pytest.mark.parametrize(
    ("source", "caveat"),
    [
        ("dragen1860/MAML-Pytorch README", "first_order_called_maml"),
        ("dragen1860/Reptile-Pytorch README", "trained_on_test_split"),
        ("dragen1860/Reptile-Pytorch README", "first_order_called_reptile"),
        ("open-mmlab/mmfewshot, MAML README", "interval_called_std"),
        ("LEO paper, Table 2", "interval_unexplained"),
        ("Reptile paper, first version", "second_hand_one_copy"),
    ],
)
def test_what_is_not_what_it_is_called_says_so(source: str, caveat: str) -> None:
    figures = found(source=source)
    assert figures and all(caveat in figure["caveats"] for figure in figures)


def test_mmfewshot_trained_its_1_shot_models_with_5_shots() -> None:
    figures = found(source="open-mmlab/mmfewshot, MAML README")
    assert {figure["shot"] for figure in figures if "trained_5_shot" in figure["caveats"]} == {1}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("metric", "top5", "metric 'top5' is none of accuracy, mse"),
        ("setting", "", "setting '' is none of"),
        ("source", " ", "source is empty"),
        ("way", "", "way '' is not a whole number"),
        ("shot", "unknown", "shot 'unknown' is not a whole number"),
        ("query", "some", "query 'some' is neither"),
        ("value", "101", "value '101' is not a number above 0 and up to 100"),
        ("value", "nan", "value 'nan' is not a number"),
        ("interval", "", "interval_kind is none where there is no interval"),
        ("caveats", "odd", "no footnote for the caveat 'odd'"),
    ],
)
def test_a_bad_field_is_named_with_its_line(tmp_path: Path, field: str, value: str, message: str) -> None:
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    path = tmp_path / "published.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerow({**row, field: value})
    with pytest.raises(FewshotError) as error:
        published(path)
    assert f"{path} line 2" in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(("text", "message"), [("a,b\n1,2\n", "the first line has to be"), ("", "the first line")])
def test_another_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "published.csv"
    path.write_text(text)
    with pytest.raises(FewshotError, match=message):
        published(path)
