"""The published figures: every field checked, and the ones that are quoted most held against the originals."""

import csv
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fewshot.core.errors import FewshotError
from fewshot.report.published import CAVEATS, COUNTS, PUBLISHED, UNKNOWN, VIEWS, read_published

CONF = PUBLISHED.parents[1] / "conf"
FIGURES = [record["published"] for record in read_published()]
LEO, LEO_CODE, MAML = "LEO paper, Table 2", "deepmind/leo README, released code", "MAML paper, Table 1"
FINAL, DRAGEN = "Reptile paper, final version", "dragen1860/Reptile-Pytorch README"
META_LSTM = "Meta-LSTM paper, with FCE, as cited by the ProtoNet paper"
MMFEWSHOT = "open-mmlab/mmfewshot, MAML README"


def found(**wanted: Any) -> list[dict[str, Any]]:
    return [figure for figure in FIGURES if all(figure[key] == value for key, value in wanted.items())]


def test_methods_datasets_and_backbones_have_the_names_they_have_here() -> None:
    methods, datasets, backbones = (
        {path.stem for path in (CONF / group).glob("*.yaml")} for group in ("algorithm", "dataset", "backbone")
    )
    assert {figure["method"] for figure in FIGURES} <= methods
    assert {figure["dataset"] for figure in FIGURES} <= datasets
    assert {figure["backbone"].split(" ")[0] for figure in FIGURES} <= backbones | {UNKNOWN}


def test_every_field_is_stated_or_unknown() -> None:
    for figure in FIGURES:
        assert figure["label"].strip() and figure["source"].strip() and figure["version"].strip()
        assert figure["setting"] in ("inductive", "transductive", UNKNOWN)
        assert figure["interval_kind"] in ("95 % over tasks", UNKNOWN, "none")
        assert (figure["interval"] is None) == (figure["interval_kind"] == "none")
        regression = figure["metric"] == "mse"
        assert type(figure["shot"]) is int and (figure["way"] == "" if regression else type(figure["way"]) is int)
        assert all(figure[field] for field in COUNTS if field != "way")
        counts = [figure[field] for field in ("query", "episodes", "input_size")]
        assert all(count == UNKNOWN or (type(count) is int and count > 0) for count in counts)
        assert figure["value"] > 0 if regression else 100 / figure["way"] < figure["value"] < 100


def test_no_figure_stands_twice_and_every_footnote_is_used() -> None:
    # Two figures that differ in their label alone would fall into one cell of a table.
    keys = ("method", "dataset", "backbone", "way", "shot", "setting", "adaptation_steps", "source")
    named = [tuple(figure[key] for key in keys) for figure in FIGURES]
    assert len(named) == len(set(named)) > 100
    assert {caveat for figure in FIGURES for caveat in figure["caveats"]} == set(CAVEATS)


@pytest.mark.parametrize(
    ("method", "dataset", "way", "shot", "source", "setting", "value", "interval"),
    [
        ("leo", "mini", 5, 1, LEO, "inductive", 61.76, 0.08),
        ("leo", "tiered", 5, 5, LEO, "inductive", 81.44, 0.09),
        ("leo", "mini", 5, 1, LEO_CODE, "inductive", 61.89, 0.16),
        ("leo", "tiered", 5, 5, LEO_CODE, "inductive", 81.77, 0.09),
        ("meta_sgd", "tiered", 5, 1, LEO, "inductive", 62.95, 0.03),
        ("leo_deterministic", "tiered", 5, 5, LEO, "inductive", 82.06, 0.08),
        ("maml", "mini", 5, 1, MAML, "transductive", 48.70, 1.84),
        ("fomaml", "mini", 5, 5, MAML, "transductive", 63.15, 0.91),
        ("maml", "cub", 5, 5, MMFEWSHOT, "transductive", 77.03, 0.39),
        ("reptile", "mini", 5, 1, FINAL, "transductive", 49.97, 0.32),
        ("reptile", "mini", 5, 1, "Reptile paper, first version", "inductive", 45.79, 0.44),
        ("reptile", "omniglot", 20, 5, FINAL, "inductive", 96.65, 0.33),
        ("fomaml", "omniglot", 20, 1, "Reptile paper", "transductive", 89.4, 0.5),
        ("fomaml", "omniglot", 20, 1, DRAGEN, "transductive", 96.09, None),
        ("maml_plus_plus", "mini", 5, 5, "MAML++ paper, as cited by T-NAS", "transductive", 68.32, 0.44),
        ("protonet", "mini", 5, 5, "ProtoNet paper, Table 2", "inductive", 68.20, 0.66),
        ("protonet", "omniglot", 20, 1, "ProtoNet paper, Table 1", "inductive", 96.0, None),
        ("matching_net", "mini", 5, 1, META_LSTM, UNKNOWN, 43.56, 0.84),
        ("anil", "mini", 5, 5, "ANIL paper, Table 2", UNKNOWN, 61.5, 0.5),
        ("baseline_plus_plus", "mini", 5, 5, "open-mmlab/mmfewshot, Baseline++ README", "inductive", 67.99, 0.36),
    ],
)
def test_figures_are_those_of_their_sources(
    method: str, dataset: str, way: int, shot: int, source: str, setting: str, value: float, interval: float | None
) -> None:
    figures = found(method=method, dataset=dataset, way=way, shot=shot, source=source, setting=setting)
    assert (value, interval) in [(figure["value"], figure["interval"]) for figure in figures]


def test_sinusoids_have_an_error_after_1_5_and_10_steps() -> None:
    figures = found(dataset="sinusoid", source="MAML paper, Table 2", shot=5)  # the others: test_records.py
    assert {figure["adaptation_steps"]: figure["value"] for figure in figures} == {1: 0.67, 5: 0.38, 10: 0.35}


def test_errors_are_of_the_functions_that_the_dataset_of_that_name_draws() -> None:
    assert {figure["dataset"] for figure in found(metric="mse")} == set(VIEWS)
    for dataset, view in VIEWS.items():
        reader = OmegaConf.load(CONF / f"dataset/{dataset}.yaml").dataset.reader
        assert instantiate(reader)["test"].description == view


def test_what_is_not_what_it_is_called_says_so() -> None:
    for source, caveat in (
        ("dragen1860/MAML-Pytorch README", "first_order_called_maml"),
        (DRAGEN, "trained_on_test_split"),
        (DRAGEN, "first_order_called_reptile"),
        (MMFEWSHOT, "interval_called_std"),
        (LEO, "interval_unexplained"),
        ("Reptile paper, first version", "second_hand_one_copy"),
    ):
        figures = found(source=source)
        assert figures and all(caveat in figure["caveats"] for figure in figures)
    shots = {figure["shot"] for figure in found(source=MMFEWSHOT) if "trained_5_shot" in figure["caveats"]}
    assert shots == {1}  # its 1-shot models are trained with 5 shots


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("metric", "top5", "metric 'top5' is none of accuracy, mse"),
        ("value", "high", "could not convert string to float: 'high'"),
        ("caveats", "odd", "no footnote for the caveat 'odd'"),
        ("caveats", "a,b", "more or fewer fields than the first line"),
    ],
)
def test_a_bad_field_is_named_with_its_line(tmp_path: Path, field: str, value: str, message: str) -> None:
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file)) | {"source": "paper"}
    path = tmp_path / "published.csv"
    path.write_text(f"{','.join(row)}\n{','.join((row | {field: value}).values())}\n", encoding="utf-8")
    with pytest.raises(FewshotError) as error:
        read_published(path)
    assert f"{path} line 2" in str(error.value) and message in str(error.value)
