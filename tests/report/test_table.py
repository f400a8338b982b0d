"""The table never lets two numbers stand together that were not measured alike."""

from typing import Any

import pytest

from fewshot.core.errors import FewshotError
from fewshot.report.cells import Layout
from fewshot.report.labels import column_names
from fewshot.report.page import make_page
from fewshot.report.table import markdown

MAML, SHORT = "maml (conv4), transductive", "omniglot 5-way 1-shot"


# Rows, columns, cells


def test_rows_go_from_simple_to_elaborate_then_by_alphabet(lab: Any) -> None:
    names = ["zeta", "leo", "alpha", "reptile", "maml", "nearest", "fomaml"]
    table = lab.cells(*(lab.record(algorithm=name, backbone=None) for name in names))
    in_order = ["nearest", "maml", "fomaml", "reptile", "leo", "alpha", "zeta"]
    assert list(table) == [f"{name}, transductive" for name in in_order]


def test_columns_go_by_dataset_way_and_shot_as_numbers(lab: Any) -> None:
    wide = lab.record(way=20, protocol__way=20, algorithm="nearest")
    other = lab.record(dataset="cifar_fs", protocol__dataset="cifar_fs")
    table = lab.cells(wide, lab.shots(10), lab.shots(5), lab.record(), other)
    tasks = ["cifar_fs 5-way 1", "omniglot 5-way 1", "omniglot 5-way 5", "omniglot 5-way 10", "omniglot 20-way 1"]
    assert list(table[MAML]) == [f"{task}-shot" for task in tasks]


def test_setting_and_backbone_make_a_row(lab: Any) -> None:
    table = lab.cells(lab.record(), lab.record(protocol__setting="inductive"), lab.record(backbone="resnet12"))
    assert list(table) == ["maml (conv4), inductive", MAML, "maml (resnet12), transductive"]


def test_a_single_episode_has_no_interval(lab: Any) -> None:
    single = lab.record(protocol__episodes=1, test={"accuracy": 0.5, "ci95": None, "episodes": 1})
    assert lab.cells(single)[MAML][SHORT] == "50.00 ± n/a"


# Seeds


@pytest.mark.parametrize(
    ("accuracies", "halves", "cell"),
    [
        # t(0.975, 2) = 4.302653, standard error of the mean = 0.01 / sqrt(3)
        ([0.94, 0.95, 0.96], [0.0041] * 3, "95.00 ± 2.48 (3 seeds; ± 0.41 over episodes)"),
        ([0.94, 0.96], [0.0041] * 2, "95.00 ± 12.71 (2 seeds; ± 0.41 over episodes)"),
        ([0.95, 0.95], [0.004, 0.006], "95.00 ± 0.00 (2 seeds; ± 0.50 over episodes)"),
    ],
)
def test_seeds_become_their_mean_with_the_t_interval_over_seeds(
    lab: Any, accuracies: list[float], halves: list[float], cell: str
) -> None:
    pairs = enumerate(zip(accuracies, halves, strict=True))
    runs = [lab.record(seed=seed, test__accuracy=mean, test__ci95=half) for seed, (mean, half) in pairs]
    assert lab.cells(*runs)[MAML][SHORT] == cell
    assert "over the means of those seeds, and apart from it one run's over episodes" in markdown(runs)


def test_two_runs_that_differ_in_nothing_are_refused_by_name(lab: Any) -> None:
    with pytest.raises(FewshotError, match=r"runs/a and runs/b are both maml .* on omniglot 5-way 1-shot with seed 0"):
        make_page([lab.record("runs/a"), lab.record("runs/b", test__accuracy=0.5)])


# What tells rows apart


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({"protocol__adaptation_steps": 10}, "3 adaptation steps", "10 adaptation steps"),
        ({"protocol__selection": "last"}, "selection: best validation accuracy", "selection: last"),
        ({"query": 5}, "trained for 5 queries", "trained for 15 queries"),
        ({"cost__train_tasks": 1000}, "1,000 training tasks", "120,000 training tasks"),
        ({"recipe": "cbfinn"}, "no recipe", "recipe cbfinn"),
        ({"config": "a" * 64}, "configuration aaaaaaaa", "configuration c0ffee00"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_runs_that_differ_in_more_than_the_seed_are_never_averaged(
    lab: Any, changes: dict[str, Any], first: str, second: str, seed: int
) -> None:
    table = lab.cells(lab.record(), lab.record(seed=2), lab.record(seed=seed, **changes))
    assert list(table) == [f"{MAML}, {first}", f"{MAML}, {second}"]
    assert [SHORT in row for row in table.values()] == [True, True]
    assert sum("(2 seeds;" in row[SHORT] for row in table.values()) == 1


def test_steps_that_differ_only_between_columns_leave_one_row(lab: Any) -> None:
    assert list(lab.cells(lab.record(), lab.shots(5, protocol__adaptation_steps=10))) == [MAML]


def test_a_row_split_in_one_column_lines_up_in_the_others(lab: Any) -> None:
    steps = {"protocol__adaptation_steps": 10}
    assert lab.cells(lab.record(), lab.record(**steps), lab.shots(5, **steps)) == {
        f"{MAML}, 3 adaptation steps": {SHORT: "95.43 ± 0.41", "omniglot 5-way 5-shot": "–"},
        f"{MAML}, 10 adaptation steps": {SHORT: "95.43 ± 0.41", "omniglot 5-way 5-shot": "95.43 ± 0.41"},
    }


def test_training_on_other_classes_or_another_task_than_usual_is_always_named(lab: Any) -> None:
    runs = [lab.record(protocol__train_on_val=True), lab.record(algorithm="leo"), lab.record(shot=5)]
    on_val, on_task = f"{MAML}, trained on train+val", f"{MAML}, trained on omniglot 5-way 5-shot"
    assert set(lab.cells(*runs)) == {on_val, on_task, "leo (conv4), transductive"}
    assert f"validation classes trained on by {on_val}\n" in markdown(runs)


# What tells columns apart


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({"protocol__split": "val"}, "test split", "val split"),
        ({"protocol__query": 1}, "1 query", "15 queries"),
        ({"protocol__episodes": 1000, "test__episodes": 1000}, "1,000 episodes", "600 episodes"),
        ({"protocol__episode_seed": 1}, "episode seed 0", "episode seed 1"),
        ({"protocol__rotations": None}, "rotations None", "rotations per_class"),
        ({"protocol__view": "crop 84"}, "crop 84", "whole images"),
        ({"protocol__manifest": "f" * 64}, "manifest 01234567", "manifest ffffffff"),
        ({"data": {"fingerprint": "abad1dea" * 8}}, "data abad1dea", "data feedc0de"),
    ],
)
def test_different_protocols_never_share_a_column(lab: Any, changes: dict[str, Any], first: str, second: str) -> None:
    [row] = lab.cells(lab.record(), lab.record(seed=1, **changes)).values()
    assert row == {f"{SHORT}, {first}": "95.43 ± 0.41", f"{SHORT}, {second}": "95.43 ± 0.41"}


def test_the_manifest_is_added_only_where_labels_leave_a_doubt(lab: Any) -> None:
    same_labels = lab.record(protocol__manifest="a" * 64)
    other_labels = lab.record(protocol__query=20, protocol__rotations="none", protocol__manifest="f" * 64)
    assert list(column_names([lab.record(), same_labels, other_labels, lab.shots(5)]).values()) == [
        f"{SHORT}, 15 queries, rotations per_class, manifest 01234567",
        f"{SHORT}, 15 queries, rotations per_class, manifest aaaaaaaa",
        f"{SHORT}, 20 queries, rotations none",
        "omniglot 5-way 5-shot",
    ]


def test_protocols_whose_names_cannot_differ_are_refused(lab: Any) -> None:
    with pytest.raises(FewshotError, match="first 8 digits"):
        make_page([lab.record(), lab.record(protocol__manifest="01234567" * 8)])


# The printed page


def test_trailing_zeros_survive_printing_and_the_code_is_named(lab: Any) -> None:
    # Whole pages: tests/report/test_layouts.py, test_the_tables_in_results_are_current.
    text = markdown([lab.record(test__accuracy=0.954, test__ci95=0.004, code__commit=None, code__dirty=True)])
    assert "95.40 ± 0.40" in text and "- **code**: 0.1.0 (unknown commit with uncommitted changes)\n" in text


def test_costs_are_means_over_seeds_and_unknown_ones_are_dashes(lab: Any) -> None:
    other = lab.record(seed=1, cost__train_seconds=120.0, cost__peak_memory_bytes=None)
    costs = make_page([lab.record(cost__train_seconds=60.0), other]).cost
    assert costs is not None
    line = costs.iloc[0]
    assert (line["seeds"], line["minutes"], line["peak MiB"]) == ("2", "1.5", "–")
    assert "gradients" not in line


def test_gradients_are_a_column_where_records_count_them(lab: Any) -> None:
    costs = make_page([lab.record(cost__gradient_evaluations=1200)]).cost
    assert costs is not None
    assert costs.iloc[0]["gradients"] == "1,200"


@pytest.mark.parametrize(("about", "size"), [({"size": 28}, "28"), ({"images": {"size": 84}}, "84"), ({}, "–")])
def test_the_input_size_is_what_the_reader_reports(lab: Any, about: object, size: str) -> None:
    record = lab.record(data={"fingerprint": "feedc0de" * 8, "about": about})
    assert lab.texts(make_page([record], layout=Layout(rows={"input": "input_size"})))[0]["input"] == size
