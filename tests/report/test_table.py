"""The table never lets two numbers stand together that were not measured alike."""

import copy
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fewshot.core.errors import FewshotError
from fewshot.report.cells import Layout
from fewshot.report.labels import column_names
from fewshot.report.page import page
from fewshot.report.records import read_records
from fewshot.report.table import markdown

TEMPLATE: dict[str, Any] = {
    "format": 2, "algorithm": "maml", "backbone": "conv4", "dataset": "omniglot", "way": 5, "shot": 1, "query": 15,
    "train": {"shot": 1, "query": 1}, "seed": 0, "recipe": None,
    "protocol": {
        "dataset": "omniglot", "split": "test", "way": 5, "shot": 1, "query": 15, "episodes": 600, "episode_seed": 0,
        "rotations": "per_class", "view": "whole images", "setting": "transductive", "adaptation_steps": 3,
        "train_on_val": False, "selection": "best validation accuracy", "manifest": "0123456789abcdef" * 4,
    },
    "validation": None,
    "test": {"accuracy": 0.9543, "ci95": 0.0041, "episodes": 600},
    "cost": {
        "train_seconds": 882.0, "train_tasks": 120000, "tasks_per_second": 136.0, "peak_memory_bytes": 2**30,
        "gradient_evaluations": None, "device": "cpu",
    },
    "code": {"version": "0.1.0", "commit": "abc1234", "dirty": False},
    "config": "c0ffee00" * 8, "environment": {},
    "data": {"fingerprint": "feedc0de" * 8}, "command": "python tools/train.py",
}  # fmt: skip


def record(folder: str = "run", **changes: Any) -> dict[str, Any]:
    """A record that differs from the template in `changes`; `protocol__way=20` reaches into a part of it."""
    made = {**copy.deepcopy(TEMPLATE), "folder": folder}
    for path, value in changes.items():
        *parents, key = path.split("__")
        part = made
        for parent in parents:
            part = part[parent]
        part[key] = value
    return made


def shots(count: int, **changes: Any) -> dict[str, Any]:
    return record(shot=count, protocol__shot=count, **changes)


def write(folder: Path, content: object) -> Path:
    folder.mkdir(parents=True)
    path = folder / "record.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def cells(*records: dict[str, Any]) -> dict[str, dict[str, str]]:
    """{row: {column: cell}}, both in the order of the table."""
    table = comparison(list(records))
    return {str(row): {str(column): cell for column, cell in line.items()} for row, line in table.iterrows()}


def comparison(records: list[dict[str, Any]]) -> pd.DataFrame:
    """The texts of the table's cells, by method and task."""
    return page(records).table.map(lambda entry: entry.text).set_index("method")


# Rows, columns, cells


def test_a_cell_is_accuracy_and_the_interval_over_episodes_in_per_cent() -> None:
    assert cells(record()) == {"maml (conv4), transductive": {"omniglot 5-way 1-shot": "95.43 ± 0.41"}}


def test_rows_go_from_simple_to_elaborate_then_by_alphabet() -> None:
    names = ["zeta", "leo", "alpha", "reptile", "maml", "nearest", "fomaml"]
    table = cells(*(record(algorithm=name, backbone=None) for name in names))
    in_order = ["nearest", "maml", "fomaml", "reptile", "leo", "alpha", "zeta"]
    assert list(table) == [f"{name}, transductive" for name in in_order]


def test_columns_go_by_dataset_way_and_shot_as_numbers() -> None:
    wide = record(way=20, protocol__way=20, algorithm="nearest")
    other = record(dataset="cifar_fs", protocol__dataset="cifar_fs")
    table = comparison([wide, shots(10), shots(5), record(), other])
    assert list(table.columns) == [
        "cifar_fs 5-way 1-shot",
        "omniglot 5-way 1-shot",
        "omniglot 5-way 5-shot",
        "omniglot 5-way 10-shot",
        "omniglot 20-way 1-shot",
    ]


def test_what_was_not_measured_is_a_dash() -> None:
    table = cells(record(), shots(5, algorithm="leo"))
    assert table["leo (conv4), transductive"] == {"omniglot 5-way 1-shot": "–", "omniglot 5-way 5-shot": "95.43 ± 0.41"}


def test_regime_and_backbone_make_a_row() -> None:
    table = cells(record(), record(protocol__setting="inductive"), record(backbone="resnet12"))
    assert list(table) == [
        "maml (conv4), inductive",
        "maml (conv4), transductive",
        "maml (resnet12), transductive",
    ]


@pytest.mark.parametrize("interval", [None, float("nan")])
def test_a_single_episode_has_no_interval(interval: float | None) -> None:
    lonely = record(protocol__episodes=1, test={"accuracy": 0.5, "ci95": interval, "episodes": 1})
    assert cells(lonely)["maml (conv4), transductive"]["omniglot 5-way 1-shot"] == "50.00 ± n/a"


# Seeds


def test_seeds_become_their_mean_with_the_t_interval_over_seeds() -> None:
    runs = [record(seed=seed, test__accuracy=accuracy) for seed, accuracy in enumerate([0.94, 0.95, 0.96])]
    # t(0.975, 2) = 4.302653, standard error of the mean = 0.01 / sqrt(3)
    cell = cells(*runs)["maml (conv4), transductive"]["omniglot 5-way 1-shot"]
    assert cell == "95.00 ± 2.48 (3 seeds; ± 0.41 over episodes)"


def test_two_seeds_have_the_wide_interval_they_deserve() -> None:
    runs = [record(seed=0, test__accuracy=0.94), record(seed=7, test__accuracy=0.96)]
    cell = cells(*runs)["maml (conv4), transductive"]["omniglot 5-way 1-shot"]
    assert cell == "95.00 ± 12.71 (2 seeds; ± 0.41 over episodes)"


def test_the_spread_over_training_runs_stands_apart_from_that_over_episodes() -> None:
    runs = [
        record(seed=0, test__accuracy=0.95, test__ci95=0.004),
        record(seed=1, test__accuracy=0.95, test__ci95=0.006),
    ]
    assert cells(*runs)["maml (conv4), transductive"]["omniglot 5-way 1-shot"] == (
        "95.00 ± 0.00 (2 seeds; ± 0.50 over episodes)"
    )
    assert "over the means of those seeds, and apart from it one run's over episodes" in markdown(runs)


def test_two_runs_that_differ_in_nothing_are_refused_by_name() -> None:
    with pytest.raises(FewshotError, match=r"runs/a and runs/b are both maml .* on omniglot 5-way 1-shot with seed 0"):
        comparison([record("runs/a"), record("runs/b", test__accuracy=0.5)])


# What tells rows apart


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({"protocol__adaptation_steps": 10}, "3 adaptation steps", "10 adaptation steps"),
        ({"protocol__selection": "last"}, "selection: best validation accuracy", "selection: last"),
        ({"query": 5}, "trained for 5 queries", "trained for 15 queries"),
        ({"cost__train_tasks": 1000}, "1,000 training tasks", "120,000 training tasks"),
        ({"recipe": "cbfinn"}, "no recipe", "recipe cbfinn"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_runs_that_differ_in_more_than_the_seed_are_never_averaged(
    changes: dict[str, Any], first: str, second: str, seed: int
) -> None:
    table = cells(record(), record(seed=seed, **changes))
    assert list(table) == [f"maml (conv4), transductive, {first}", f"maml (conv4), transductive, {second}"]


def test_steps_that_differ_only_between_columns_leave_one_row() -> None:
    table = cells(record(), shots(5, protocol__adaptation_steps=10))
    assert list(table) == ["maml (conv4), transductive"]


def test_a_row_split_in_one_column_lines_up_in_the_others() -> None:
    table = cells(record(), record(protocol__adaptation_steps=10), shots(5, protocol__adaptation_steps=10))
    assert table == {
        "maml (conv4), transductive, 3 adaptation steps": {
            "omniglot 5-way 1-shot": "95.43 ± 0.41",
            "omniglot 5-way 5-shot": "–",
        },
        "maml (conv4), transductive, 10 adaptation steps": {
            "omniglot 5-way 1-shot": "95.43 ± 0.41",
            "omniglot 5-way 5-shot": "95.43 ± 0.41",
        },
    }


def test_training_on_validation_classes_is_always_said() -> None:
    runs = [record(protocol__train_on_val=True), record(algorithm="leo")]
    assert list(cells(*runs)) == ["maml (conv4), transductive, trained on train+val", "leo (conv4), transductive"]
    assert "validation classes trained on by maml (conv4), transductive, trained on train+val\n" in markdown(runs)


def test_training_on_another_task_than_the_test_is_always_said() -> None:
    table = cells(record(shot=5), record())
    assert list(table) == [
        "maml (conv4), transductive",
        "maml (conv4), transductive, trained on omniglot 5-way 5-shot",
    ]


# What tells columns apart


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({"protocol__split": "val"}, "test split", "val split"),
        ({"protocol__query": 1}, "1 query", "15 queries"),
        ({"protocol__episodes": 1000, "test__episodes": 1000}, "1,000 episodes", "600 episodes"),
        ({"protocol__episode_seed": 1}, "episode seed 0", "episode seed 1"),
        ({"protocol__rotations": None}, "rotations None", "rotations per_class"),
        ({"protocol__manifest": "f" * 64}, "manifest 01234567", "manifest ffffffff"),
        ({"data": {"fingerprint": "abad1dea" * 8}}, "data abad1dea", "data feedc0de"),
    ],
)
def test_different_protocols_never_share_a_column(changes: dict[str, Any], first: str, second: str) -> None:
    table = comparison([record(), record(seed=1, **changes)])
    assert sorted(table.columns) == [f"omniglot 5-way 1-shot, {first}", f"omniglot 5-way 1-shot, {second}"]
    assert sorted(table.iloc[0]) == ["95.43 ± 0.41", "95.43 ± 0.41"]


def test_a_readable_difference_hides_the_manifest() -> None:
    other = record(protocol__query=20, protocol__rotations="none", protocol__manifest="f" * 64)
    assert list(comparison([record(), other]).columns) == [
        "omniglot 5-way 1-shot, 15 queries, rotations per_class",
        "omniglot 5-way 1-shot, 20 queries, rotations none",
    ]


def test_the_manifest_is_added_only_where_words_leave_a_doubt() -> None:
    doubtful = record(protocol__manifest="a" * 64)
    clear = record(protocol__query=20, protocol__manifest="f" * 64)
    assert list(comparison([record(), doubtful, clear, shots(5)]).columns) == [
        "omniglot 5-way 1-shot, 15 queries, manifest 01234567",
        "omniglot 5-way 1-shot, 15 queries, manifest aaaaaaaa",
        "omniglot 5-way 1-shot, 20 queries",
        "omniglot 5-way 5-shot",
    ]


def test_protocols_whose_names_cannot_differ_are_refused() -> None:
    with pytest.raises(FewshotError, match="first 8 digits"):
        comparison([record(), record(protocol__manifest="01234567" * 8)])


# The printed page


def test_the_page_is_the_table_its_footer_and_the_costs() -> None:
    assert markdown([record(), record(algorithm="leo", code__commit=None, code__dirty=True)]) == (
        "| method                     | omniglot 5-way 1-shot   |\n"
        "|:---------------------------|:------------------------|\n"
        "| maml (conv4), transductive | 95.43 ± 0.41            |\n"
        "| leo (conv4), transductive  | 95.43 ± 0.41            |\n"
        "\n"
        "Accuracy in per cent.\n"
        "\n"
        "- **omniglot 5-way 1-shot**: 600 episodes of the test split, episode seed 0, 15 queries per class, "
        "rotations per_class, whole images; manifest 0123456789ab, data feedc0defeed\n"
        "- **training**: seed 0; checkpoint: best validation accuracy; none on validation classes\n"
        "- **±**: half width of the 95 % Student t interval over the test episodes of one run\n"
        "- **code**: 0.1.0 (abc1234), 0.1.0 (unknown commit with uncommitted changes)\n"
        "\n"
        "| method                     | task                  | seeds   | training tasks   | minutes   | tasks/s   "
        "| peak MiB   | device   | adaptation steps   | selection                |\n"
        "|:---------------------------|:----------------------|:--------|:-----------------|:----------|:----------"
        "|:-----------|:---------|:-------------------|:-------------------------|\n"
        "| maml (conv4), transductive | omniglot 5-way 1-shot | 1       | 120,000          | 14.7      | 136       "
        "| 1,024      | cpu      | 3                  | best validation accuracy |\n"
        "| leo (conv4), transductive  | omniglot 5-way 1-shot | 1       | 120,000          | 14.7      | 136       "
        "| 1,024      | cpu      | 3                  | best validation accuracy |"
    )


def test_trailing_zeros_survive_printing() -> None:
    assert "95.40 ± 0.40" in markdown([record(test__accuracy=0.954, test__ci95=0.004)])


def test_costs_are_means_over_seeds_and_unknown_ones_are_dashes() -> None:
    runs = [record(cost__train_seconds=60.0), record(seed=1, cost__train_seconds=120.0, cost__peak_memory_bytes=None)]
    costs = page(runs).cost
    assert costs is not None
    line = costs.iloc[0]
    assert (line["seeds"], line["minutes"], line["peak MiB"]) == ("2", "1.5", "–")


@pytest.mark.parametrize(("count", "said"), [(1200, "1,200"), ("many", None)])
def test_gradients_are_a_column_where_records_count_them(count: object, said: str | None) -> None:
    costs = page([record(cost__gradient_evaluations=count)]).cost
    assert costs is not None
    assert costs.iloc[0].get("gradients") == said


@pytest.mark.parametrize(
    ("about", "size"), [({"size": 28}, "28"), ({"images": {"size": 84}}, "84"), ("odd", "–"), ({"size": []}, "–")]
)
def test_the_input_size_is_what_the_reader_told(about: object, size: str) -> None:
    layout = Layout(rows={"input": "input_size"})
    shown = page([record(data={"fingerprint": "feedc0de" * 8, "about": about})], layout=layout)
    assert shown.table.iloc[0]["input"].text == size


# Reading


def test_records_are_found_at_any_depth_in_the_order_of_their_paths(tmp_path: Path) -> None:
    write(tmp_path / "b", TEMPLATE)
    write(tmp_path / "a" / "deep", {**TEMPLATE, "seed": 1})
    records = read_records(tmp_path)
    assert [(found["seed"], found["folder"]) for found in records] == [
        (1, str(tmp_path / "a" / "deep")),
        (0, str(tmp_path / "b")),
    ]
    assert cells(*records) == {
        "maml (conv4), transductive": {"omniglot 5-way 1-shot": "95.43 ± 0.00 (2 seeds; ± 0.41 over episodes)"},
    }


@pytest.mark.parametrize("folder", ["", "missing"])
def test_an_empty_folder_says_how_to_make_a_record(tmp_path: Path, folder: str) -> None:
    with pytest.raises(FewshotError, match=r"no record.json below .*python tools/train.py"):
        read_records(tmp_path / folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ([], 'lacks `"format": 2`'),
        ({**TEMPLATE, "format": None}, 'lacks `"format": 2`'),
        ({**TEMPLATE, "format": 1}, "is of an older version of records (1, not 2): test the run again"),
        ({**TEMPLATE, "format": 3}, "is of a newer version of records (3, known here is 2): update the code"),
        ({key: TEMPLATE[key] for key in TEMPLATE if key != "seed"}, "lacks seed"),
        ({**TEMPLATE, "test": None}, "lacks test.ci95"),
        ({**TEMPLATE, "test": {"ci95": 0.1, "episodes": 600}}, "lacks test.accuracy or test.mse, or has both"),
        ({**TEMPLATE, "test": {**TEMPLATE["test"], "mse": 0.1}}, "lacks test.accuracy or test.mse, or has both"),
        ({**TEMPLATE, "seed": "0"}, "seed is '0' in place of int"),
        ({**TEMPLATE, "seed": True}, "seed is True in place of int"),
        ({**TEMPLATE, "test": {**TEMPLATE["test"], "accuracy": 95.43}}, "test.accuracy 95.43, not a fraction"),
        ({**TEMPLATE, "test": {**TEMPLATE["test"], "accuracy": float("nan")}}, "test.accuracy nan, not a fraction"),
        ({**TEMPLATE, "test": {**TEMPLATE["test"], "episodes": 300}}, "scored 300 of the 600 episodes"),
    ],
)
def test_what_is_not_a_record_is_named_in_one_line(tmp_path: Path, content: object, message: str) -> None:
    path = write(tmp_path / "run", content)
    with pytest.raises(FewshotError) as error:
        read_records(tmp_path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_runs_that_differ_in_any_setting_but_the_seed_are_never_averaged() -> None:
    runs = [record(str(seed), seed=seed, config=letter * 64) for seed, letter in enumerate("aab")]
    table = cells(*runs)
    assert list(table) == [f"maml (conv4), transductive, configuration {letter * 8}" for letter in "ab"]
    assert table["maml (conv4), transductive, configuration aaaaaaaa"]["omniglot 5-way 1-shot"].endswith(
        "(2 seeds; ± 0.41 over episodes)"
    )


def test_another_view_of_the_images_is_another_column() -> None:
    runs = [record(), record()]
    runs[1]["protocol"] = runs[1]["protocol"] | {"view": "crop 84"}
    names = list(column_names(runs).values())
    assert names == ["omniglot 5-way 1-shot, crop 84", "omniglot 5-way 1-shot, whole images"]
