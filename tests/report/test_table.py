"""The table never lets two numbers stand together that were not measured alike, and its names are words."""

import re
from typing import Any

import pytest

from fewshot.core.errors import FewshotError
from fewshot.report.cells import Layout
from fewshot.report.labels import column_names, method_names
from fewshot.report.page import make_page
from fewshot.report.table import markdown

MAML, SHORT = "maml, trans.", "5-way 1-shot"
OLD = {"settings": None}  # as in older records


# Rows, columns, cells


def test_rows_go_from_simple_to_elaborate_then_by_alphabet(lab: Any) -> None:
    names = ["zeta", "leo", "alpha", "reptile", "maml", "nearest", "fomaml"]
    table = lab.cells(*(lab.record(algorithm=name, backbone=None) for name in names))
    in_order = ["nearest", "maml", "fomaml", "reptile", "leo", "alpha", "zeta"]
    assert list(table) == [f"{name}, trans." for name in in_order]


def test_columns_go_by_dataset_way_and_shot_as_numbers(lab: Any) -> None:
    wide = lab.record(way=20, train__way=20, protocol__way=20, algorithm="nearest")
    other = lab.record(dataset="cifar_fs", protocol__dataset="cifar_fs")
    table = lab.cells(wide, lab.shots(10), lab.shots(5), lab.record(), other)
    tasks = ["cifar_fs 5-way 1", "omniglot 5-way 1", "omniglot 5-way 5", "omniglot 5-way 10", "omniglot 20-way 1"]
    assert list(table[MAML]) == [f"{task}-shot" for task in tasks]


def test_the_dataset_is_in_the_title_and_in_the_columns_only_where_there_are_several(lab: Any) -> None:
    page = make_page([lab.record()])
    assert (page.title, list(page.table)) == ("Omniglot, accuracy in per cent", ["method", "setting", SHORT])
    page = make_page([lab.record(), lab.record(dataset="mini", protocol__dataset="mini")])
    assert page.title == "Accuracy in per cent"
    assert list(page.table)[2:] == ["mini 5-way 1-shot", "omniglot 5-way 1-shot"]


def test_the_setting_is_a_column_and_the_backbone_is_named_where_an_algorithm_has_two(lab: Any) -> None:
    runs = [lab.record(), lab.record(protocol__setting="inductive"), lab.record(backbone="resnet12")]
    rows = [(row["method"], row["setting"]) for row in lab.texts(make_page([*runs, lab.record(algorithm="leo")]))]
    assert rows == [
        ("maml (conv4)", "ind."),
        ("maml (conv4)", "trans."),
        ("maml (resnet12)", "trans."),
        ("leo", "trans."),
    ]


def test_a_single_episode_has_no_interval(lab: Any) -> None:
    single = lab.record(protocol__episodes=1, test={"accuracy": 0.5, "ci95": None, "episodes": 1})
    assert lab.cells(single)[MAML][SHORT] == "50.00 ± n/a"


# Seeds


@pytest.mark.parametrize(
    ("accuracies", "cell", "over_seeds"),
    [
        # t(0.975, 2) = 4.302653, standard error of the mean = 0.01 / sqrt(3)
        ([0.94, 0.95, 0.96], "95.00 ± 2.48", "2.48"),
        ([0.94, 0.96], "95.00 ± 12.71", "12.71"),
        ([0.95, 0.95], "95.00 ± 0.41", "0.00"),  # alike by chance: the interval over the episodes is left
    ],
)
def test_seeds_become_their_mean_with_the_wider_interval_of_seeds_and_episodes(
    lab: Any, accuracies: list[float], cell: str, over_seeds: str
) -> None:
    page = make_page([lab.record(seed=seed, test__accuracy=mean) for seed, mean in enumerate(accuracies)])
    assert lab.texts(page)[0][SHORT] == cell
    over_them = "; ± is the mean of their intervals" if over_seeds == "0.00" else "; ± is over the seeds"
    assert page.notes == [f"mean of {len(accuracies)} training seeds{over_them}"]
    assert (
        f"the wider of two, the mean of their intervals (0.41) and the interval over the seeds ({over_seeds})"
        in dict(page.footer)["reading"]
    )
    assert page.table.iloc[0]["method"].notes == (1,)


def test_seeds_on_one_extractor_are_told_from_seeds_that_each_train_one(lab: Any) -> None:
    def note(*fingerprints: str) -> list[str]:
        data = [{"fingerprint": "fe", "about": {"extractor": {"fingerprint": each}}} for each in fingerprints]
        return make_page([lab.record(seed=seed, data=each) for seed, each in enumerate(data)]).notes

    assert note("a", "a") == ["mean of 2 training seeds, all with the same extractor; ± is the mean of their intervals"]
    assert note("a", "b") == ["mean of 2 training seeds; ± is the mean of their intervals"]


def test_two_runs_that_differ_in_nothing_are_refused_by_name(lab: Any) -> None:
    with pytest.raises(FewshotError, match=r"runs/a and runs/b are both maml on 5-way 1-shot with seed 0"):
        make_page([lab.record("runs/a"), lab.record("runs/b", test__accuracy=0.5)])


# What tells rows apart


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({"settings__algorithm.learner.inner_lr": 0.1}, "inner_lr=0.1", "inner_lr=0.4"),
        ({"settings__algorithm.learner.inner_lr": 0.00123456789012}, "inner_lr=0.001235", "inner_lr=0.4"),
        ({"settings__algorithm.learner.inner_lr": 0.4000000001}, "inner_lr=0.4", "inner_lr=0.4000000001"),
        ({"recipe": "cbfinn"}, "no recipe", "recipe cbfinn"),
        ({"recipe": "cbfinn", "settings__train.lr": 1}, "no recipe", "recipe cbfinn"),
        ({"settings__train.lr": 1, "settings__train.outer.lr": 2}, "train.lr=0.1", "train.lr=1, train.outer.lr=2"),
        ({"protocol__adaptation_steps": 10}, "3 test steps", "10 test steps"),
        ({"protocol__adaptation_steps": 10, "settings__train.steps": 9}, "steps=9", "steps=4000"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_runs_that_differ_in_more_than_the_seed_are_never_averaged(
    lab: Any, changes: dict[str, Any], first: str, second: str, seed: int
) -> None:
    other = lab.record(seed=seed, config="a" * 64, **changes)
    page = make_page([lab.record(), lab.record(seed=2), other])
    assert [row["method"] for row in lab.texts(page)] == [f"maml, {first}", f"maml, {second}"]
    assert [SHORT in row for row in lab.texts(page)] == [True, True]
    assert page.notes == ["mean of 2 training seeds; ± is the mean of their intervals"]


def test_a_number_that_tests_have_too_has_its_whole_name(lab: Any) -> None:
    runs = [lab.record(config=str(count) * 64, **{"settings__validation.episodes": count}) for count in (5, 7)]
    names = [row["method"] for row in lab.texts(make_page(runs))]
    assert names == ["maml, validation.episodes=5", "maml, validation.episodes=7"]


def test_recipes_that_only_their_tests_set_apart_are_named(lab: Any) -> None:
    rate = "settings__algorithm.learner.inner_lr"
    records = [
        lab.record(recipe="a"),
        lab.record(recipe="b", protocol__name="paper", protocol__query=1),
        lab.record(recipe="b", protocol__name="paper", protocol__query=1, **{rate: 0.1}),
    ]
    names, _ = method_names(records, ["protocol.setting"])
    assert names == ["maml, recipe a", "maml, recipe b, inner_lr=0.4", "maml, recipe b, inner_lr=0.1"]
    assert method_names([lab.record(recipe="a"), lab.shots(5, recipe="b")], ["protocol.setting"])[0] == ["maml"] * 2


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({"protocol__selection": "last"}, "selection: best validation accuracy", "selection: last"),
        ({"cost__train_tasks": 1000}, "1,000 training tasks", "120,000 training tasks"),
        ({"command": "train.py train.lr=1,2 algorithm.learner.inner_lr=0.1 data.x=2"}, "", "inner_lr=0.1"),
    ],
)
def test_older_runs_are_told_apart_by_what_their_records_hold(
    lab: Any, changes: dict[str, Any], first: str, second: str
) -> None:
    other = lab.record(**OLD, config="a" * 64, **changes)
    names = [row["method"] for row in lab.texts(make_page([lab.record(**OLD), other]))]
    assert names == [f"maml, {word}".removesuffix(", ") for word in (first, second)]


def test_what_differs_in_many_settings_has_a_number_and_a_footnote(lab: Any) -> None:
    many = {f"algorithm.learner.a{i}": i for i in range(4)}
    first, second = (
        lab.record(config=letter * 64, settings={"x": 1, **own}) for letter, own in (("a", many), ("b", {}))
    )
    names, notes = method_names([first, second])
    assert names == ["maml (1), trans.", "maml (2), trans."]
    assert notes == ["a0=0, a1=1, a2=2, a3=3", "a0=none, a1=none, a2=none, a3=none"]


def test_a_footnote_names_no_setting_twice(lab: Any) -> None:
    own = {"algorithm.learner.adapted": [1, 5], "algorithm.learner.a0": [0, 5]}
    own |= {f"algorithm.learner.a{i}": i for i in range(1, 4)}
    changes = {"recipe": "ours", "recipe_changes": ["algorithm.learner.adapted", "algorithm.learner.a1"]}
    other = {"algorithm.learner.adapted": [2, 5]}
    first = lab.record(config="a" * 64, settings=own, **changes)
    second = lab.record(config="b" * 64, settings=other, **changes, folder="other")
    notes = make_page([first, second]).notes
    assert notes[0] == "not as its recipe: adapted=[1, 5], a1=1; a0=[0, 5], a2=2, a3=3"
    assert notes[1] == "not as its recipe: adapted=[2, 5]; a0=none, a1=none, a2=none, a3=none"


def test_a_setting_that_a_reader_of_features_repeats_is_named_once(lab: Any) -> None:
    def settings(filters: int, epochs: int) -> dict[str, Any]:
        network, training = {"network.filters": filters}, {"settings.epochs": epochs}
        return {
            **{f"{group}.{key}": value for group in ("backbone", "features") for key, value in network.items()},
            **{f"{group}.{key}": value for group in ("features", "features.reader") for key, value in training.items()},
            "features.reader.network.filters": filters,
            "features.role": "start",
        }

    names, notes = method_names([lab.record(settings=settings(32, 5)), lab.record(settings=settings(64, 9))])
    assert names == [
        "maml, from a classifier, filters=32, epochs=5, trans.",
        "maml, from a classifier, filters=64, epochs=9, trans.",
    ]
    assert not any(notes)
    other = {"features.reader.model": "a"}, {"features.reader.model": "b"}  # of a person's own reader
    assert method_names([lab.record(settings=each) for each in other])[0] == [
        "maml, model=a, trans.",
        "maml, model=b, trans.",
    ]


def test_older_runs_that_no_words_tell_apart_have_their_configuration_in_a_footnote_alone(lab: Any) -> None:
    page = make_page([lab.record(**OLD, config="a" * 64), lab.record(**OLD)])
    assert [row["method"] for row in lab.texts(page)] == ["maml (1)", "maml (2)"]
    assert page.notes[0] == "an older record, which does not hold its settings: configuration aaaaaaaa"


def test_steps_that_differ_only_between_columns_leave_one_row(lab: Any) -> None:
    assert list(lab.cells(lab.record(), lab.shots(5, protocol__adaptation_steps=10))) == [MAML]


def test_a_row_split_in_one_column_lines_up_in_the_others(lab: Any) -> None:
    other = {"settings__train.lr": 1, "config": "a" * 64}
    assert lab.cells(lab.record(), lab.record(**other), lab.shots(5, **other)) == {
        "maml, lr=0.1, trans.": {SHORT: "95.43 ± 0.41", "5-way 5-shot": "–"},
        "maml, lr=1, trans.": {SHORT: "95.43 ± 0.41", "5-way 5-shot": "95.43 ± 0.41"},
    }


def test_training_on_other_classes_or_another_task_than_usual_is_always_named(lab: Any) -> None:
    runs = [lab.record(protocol__train_on_val=True), lab.record(algorithm="leo"), lab.record(shot=5)]
    runs += [lab.record(train__way=20), lab.record(dataset="mini")]
    added = ["train+val", "5-way 5-shot", "mini 5-way 1-shot"]
    wanted = {f"maml, trained on {word}, trans." for word in added} | {"maml, trained 20-way, trans.", "leo, trans."}
    assert set(lab.cells(*runs)) == wanted
    assert "validation classes trained on by maml, trained on train+val;" in markdown(runs)


# What tells columns apart


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({"protocol__split": "val"}, "test split", "val split"),
        ({"protocol__query": 1}, "1 query", "15 queries"),
        ({"protocol__episodes": 1000, "test__episodes": 1000}, "1,000 episodes", "600 episodes"),
        ({"protocol__episode_seed": 1}, "episode seed 0", "episode seed 1"),
        ({"protocol__rotations": "none"}, "unrotated", "rotated"),
        ({"protocol__view": "crop 84"}, "crop 84", "whole images"),
        ({"data": {"fingerprint": "abad1dea" * 8, "about": {"split": "vinyals"}}}, "split vinyals", ""),
        ({"protocol__manifest": "f" * 64}, "(manifest 01234567)", "(manifest ffffffff)"),
        ({"data": {"fingerprint": "abad1dea" * 8}}, "(data abad1dea)", "(data feedc0de)"),
    ],
)
def test_different_tests_never_share_a_column(lab: Any, changes: dict[str, Any], first: str, second: str) -> None:
    [row] = lab.cells(lab.record(), lab.record(seed=1, **changes)).values()
    names = [f"{SHORT} {word}" if "(" in word else f"{SHORT}, {word}".removesuffix(", ") for word in (first, second)]
    assert row == dict.fromkeys(names, "95.43 ± 0.41")


def test_a_column_is_named_by_what_differs_from_others_of_its_task(lab: Any) -> None:
    other_labels = lab.record(protocol__query=20, protocol__rotations="none", protocol__manifest="f" * 64)
    assert list(column_names([lab.record(), other_labels, lab.shots(5)]).values()) == [
        f"{SHORT}, 15 queries, rotated",
        f"{SHORT}, 20 queries, unrotated",
        "5-way 5-shot",
    ]


# The printed page


def test_what_columns_share_is_said_once_and_what_they_do_not_with_their_names(lab: Any) -> None:
    other = lab.shots(5, protocol__episodes=1000, test__episodes=1000, protocol__manifest="fedcba98" * 8)
    footer = dict(make_page([lab.record(code__commit=None, code__dirty=True), other]).footer)
    assert footer["test"] == (
        "protocol common, 600 episodes (5-way 1-shot) and 1,000 episodes (5-way 5-shot), test split, episode seed 0, "
        "15 queries per class, rotated, adaptation steps as each learner sets them; manifests 01234567, fedcba98; "
        "data feedc0de"
    )
    assert footer["reading"].endswith(
        "training: seed 0; network: conv4; without a recipe; checkpoint: best validation accuracy; "
        "code 0.1.0 (abc1234, unknown commit with uncommitted changes)"
    )


def test_the_setting_of_a_validation_is_said_where_the_queries_share_norms(lab: Any) -> None:
    def said(*settings: bool | None) -> list[str]:
        runs = [
            lab.record(
                algorithm=f"a{number}",
                queries_independent=setting is None,
                settings={"validation.transductive": bool(setting)},
            )
            for number, setting in enumerate(settings)
        ]
        return re.findall(
            r"that validation: ([^;]+) for methods with batch norms;", dict(make_page(runs).footer)["reading"]
        )

    assert said(None) == []
    assert said(True, None) == ["transductive"] and said(False, None) == ["inductive"]
    assert said(True, False) == ["transductive or inductive (a1)"]


def test_the_versions_that_trained_a_run_stand_beside_the_one_that_tested_it(lab: Any) -> None:
    trained = {"version": "0.1.0", "commit": "fedcba9" * 5, "dirty": False}
    footer = dict(make_page([lab.record(code__training=[trained])]).footer)
    assert footer["reading"].endswith("; code 0.1.0 (abc1234, fedcba9)")


def test_the_version_and_the_device_that_trained_an_extractor_stand_beside_those_of_the_run(lab: Any) -> None:
    code = {"version": "0.1.0", "commit": "fedcba9" * 5, "dirty": False}
    code["training"] = [code | {"commit": "0123456" * 5}]  # of an earlier session
    extractor = {"train_seconds": 240.0, "device": "NVIDIA H200 and cpu", "code": code}
    data = {"fingerprint": "feedc0de" * 8, "about": {"extractor": extractor}}
    record = lab.record(data=data, cost__train_seconds=60.0, train__steps=9, train__paper_steps=10)
    record["cost"]["extractor_seconds"] = 240.0
    page = make_page([record], layout=Layout(rows={"method": "method", "budget": "budget"}))
    assert dict(page.footer)["reading"].endswith("; code 0.1.0 (0123456, abc1234, fedcba9)")
    assert lab.texts(page)[0]["budget"] == "5 min on NVIDIA H200 and CPU, 9 of 10 steps"
    record["cost"] |= {"train_tasks": 0, "train_seconds": 0.0}  # so its device is that of the test
    page = make_page([record], layout=Layout(rows={"method": "method", "budget": "budget"}))
    assert lab.texts(page)[0]["budget"] == "4 min on NVIDIA H200 and CPU, 9 of 10 steps"


def test_what_algorithms_were_trained_with_stands_below_where_it_differs(lab: Any) -> None:
    def record(algorithm: str, filters: int, recipe: str | None) -> dict[str, Any]:
        return lab.record(algorithm=algorithm, settings={"backbone.network.filters": filters}, recipe=recipe)

    alike, differing = ([record("maml", 32, "ours"), record("mine", *other)] for other in ((32, "ours"), (64, None)))
    assert "filters" not in dict(make_page(alike).footer)["reading"]
    reading = dict(make_page(differing).footer)["reading"]
    assert "; filters of a layer: 32 (maml), 64 (mine); without a recipe: mine; checkpoint" in reading
    start = lab.record(settings={"backbone.network.filters": 64, "features.role": "start"}, recipe="ours")
    reading = dict(make_page([record("maml", 32, "ours"), start]).footer)["reading"]
    assert "; filters of a layer: 32 (maml), 64 (maml from a classifier); " in reading
    other = lab.record(settings={"backbone.network.filters": 64}, protocol__dataset="glyphs", dataset="glyphs")
    reading = dict(make_page([record("maml", 32, "ours"), other]).footer)["reading"]
    assert "; filters of a layer: 64 (maml on glyphs 5-way 1-shot), 32 (maml on omniglot 5-way 1-shot); " in reading
    assert "; without a recipe: maml on glyphs 5-way 1-shot; " in reading


def test_a_record_without_a_version_is_told_by_its_commit(lab: Any) -> None:
    footer = dict(make_page([lab.record(), lab.shots(5, code__version="absent")]).footer)
    assert footer["reading"].endswith("; code 0.1.0 (abc1234), of a version not recorded (abc1234)")


def test_pretrained_weights_and_their_preprocessing_stand_below_the_table(lab: Any) -> None:
    extractor = {
        "weights": {"file": "a.pth", "sha256": "0123456789"},
        "preprocessing": {"crop": None, "size": 224, "mean": [0.5, 0.4], "std": [0.2, 0.3]},
    }
    features = lab.record(data={"fingerprint": "feedc0de" * 8, "about": {"extractor": extractor}})
    assert (
        "; a.pth (01234567): pretrained weights, which may know test classes; images resized to 224 pixels, mean 0.5 "
        "0.4, std 0.2 0.3; checkpoint"
    ) in dict(make_page([features]).footer)["reading"]
    backbone = lab.record(weights={"file": "b.pth", "sha256": "abcdefghij"})
    reading = dict(make_page([backbone]).footer)["reading"]
    assert "; b.pth (abcdefgh): pretrained weights, which may know test classes; checkpoint" in reading


def test_a_run_from_a_classifier_has_a_name_of_its_own_and_a_note(lab: Any) -> None:
    settings = {f"features.settings.{i}": i for i in range(9)} | {"features.role": "start"}
    page = make_page([lab.record(), lab.record(settings=settings, test__accuracy=0.5)])
    assert "| maml, from a classifier |" in markdown([lab.record(), lab.record(settings=settings, test__accuracy=0.5)])
    reading = dict(page.footer)["reading"]
    assert "; from a classifier: the network was first trained to classify the training classes; checkpoint" in reading


def test_trailing_zeros_survive_printing(lab: Any) -> None:
    # Whole pages: tests/report/test_layouts.py, test_the_tables_in_results_are_current.
    assert "95.40 ± 0.40" in markdown([lab.record(test__accuracy=0.954, test__ci95=0.004)])


def test_costs_are_means_over_seeds_and_unknown_ones_are_dashes(lab: Any) -> None:
    other = lab.record(seed=1, cost__train_seconds=120.0, cost__peak_memory_bytes=None)
    costs = make_page([lab.record(cost__train_seconds=60.0), other], costs=True).costs
    assert costs is not None
    line = costs.iloc[0]
    assert (line["seeds"], line["minutes"], line["peak MiB"]) == ("2", "1.5", "–")
    assert "gradients" not in line


def test_gradients_are_a_column_where_records_count_them(lab: Any) -> None:
    costs = make_page([lab.record(cost__gradient_evaluations=1200)], costs=True).costs
    assert costs is not None
    assert costs.iloc[0]["gradients"] == "1,200"


@pytest.mark.parametrize(("about", "size"), [({"size": 28}, "28"), ({"images": {"size": 84}}, "84")])
def test_the_input_size_is_what_the_reader_reports(lab: Any, about: object, size: str) -> None:
    record = lab.record(data={"fingerprint": "feedc0de" * 8, "about": about})
    assert lab.texts(make_page([record], layout=Layout(rows={"input": "input_size"})))[0]["input"] == size


@pytest.mark.parametrize(
    ("train", "minutes", "budget"),
    [
        ({"steps": 60000, "paper_steps": 60000}, 1, None),
        ({"steps": 10900, "paper_steps": 60000}, 1, "1 min, 10k of 60k steps"),
        ({"steps": 59600, "paper_steps": 60000}, 1, "1 min, 59k of 60k steps"),
        ({"steps": 4000, "paper_steps": 60000}, 1, "1 min, 4k of 60k steps"),
        ({"steps": 500, "paper_steps": None}, 1, "1 min"),
        ({}, 15.2, "15 min"),
    ],
)
def test_the_budget_is_shown_where_it_is_smaller_than_the_papers(
    lab: Any, train: dict[str, Any], minutes: float, budget: str | None
) -> None:
    record = lab.record(train={"shot": 1, "query": 1, **train}, cost__train_seconds=60 * minutes)
    [row] = lab.texts(make_page([record], layout=Layout(rows={"method": "method", "budget": "budget"})))
    assert row.get("budget") == budget


@pytest.mark.parametrize(
    ("device", "processes", "on"),
    [
        ("NVIDIA H200", 1, " on NVIDIA H200"),
        ("NVIDIA H200", 8, " on 8 processes on NVIDIA H200"),
        ("cpu and NVIDIA H200", 1, " on NVIDIA H200 and CPU"),
        (None, None, " on an unknown device"),
        ("cpu", 2, ""),
    ],
)
def test_a_budget_names_the_devices_unless_they_are_a_cpu(
    lab: Any, device: str | None, processes: int | None, on: str
) -> None:
    train = {"shot": 1, "query": 1, "steps": 9, "paper_steps": 10}
    record = lab.record(train=train, cost__train_seconds=360, cost__device=device, cost__processes=processes)
    [row] = lab.texts(make_page([record], layout=Layout(rows={"method": "method", "budget": "budget"})))
    assert row["budget"] == f"6 min{on}, 9 of 10 steps"


def test_minutes_that_a_record_does_not_know_are_no_minute(lab: Any) -> None:
    train = {"shot": 1, "query": 1, "steps": 40, "paper_steps": 60}
    records = [
        lab.shots(1, train=train, cost__train_seconds=3600.0),
        lab.shots(5, train=train, cost__train_seconds=None),
    ]
    [row] = lab.texts(make_page(records, layout=Layout(rows={"method": "method", "budget": "budget"})))
    assert row["budget"] == "60 min, 40 of 60 steps"


def test_cells_of_several_devices_have_minutes_by_device(lab: Any) -> None:
    short = {"train__steps": 9, "train__paper_steps": 10}
    records = [
        lab.shots(shot, **short, cost__train_seconds=60 * minutes, cost__device=device)
        for shot, minutes, device in ((1, 14, "cpu"), (5, 1, "NVIDIA H200"), (10, 3, "NVIDIA H200"))
    ]
    [row] = lab.texts(make_page(records, layout=Layout(rows={"method": "method", "budget": "budget"})))
    assert row["budget"] == "1 and 3 min on NVIDIA H200, 14 min on CPU (5-way 1-shot), 9 of 10 steps"


def test_minutes_are_written_in_full_and_steps_in_thousands(lab: Any) -> None:
    record = lab.record(train__steps=12_000, train__paper_steps=60_000, cost__train_seconds=60_000.0)
    [row] = lab.texts(make_page([record], layout=Layout(rows={"method": "method", "budget": "budget"})))
    assert row.get("budget") == "1,000 min, 12k of 60k steps"


@pytest.mark.parametrize(
    ("shots", "budget"),
    [
        ({1: (14, 1200), 5: (8, 800)}, "14 and 8 min, 1,200 and 800 of 60k steps"),
        ({1: (14, 800), 5: (8, 800)}, "14 and 8 min, 800 of 60k steps"),
        ({1: (14, 1200), 5: (8, 800), 10: (9, 900)}, "8 to 14 min, 800 to 1,200 of 60k steps"),
    ],
)
def test_budgets_stand_in_the_order_of_the_columns(lab: Any, shots: dict[int, tuple[float, int]], budget: str) -> None:
    records = [
        lab.shots(shot, train__steps=steps, train__paper_steps=60000, cost__train_seconds=60 * minutes)
        for shot, (minutes, steps) in shots.items()
    ]
    [row] = lab.texts(make_page(records, layout=Layout(rows={"method": "method", "budget": "budget"})))
    assert row.get("budget") == budget


def test_minutes_of_several_seeds_are_the_least_and_the_most(lab: Any) -> None:
    short = {"train__steps": 9, "train__paper_steps": 10}
    records = [lab.record(seed=seed, **short, cost__train_seconds=60.0 * (30 + 30 * seed)) for seed in (0, 1)]
    records.append(lab.shots(5, **short, cost__train_seconds=120.0))
    [row] = lab.texts(make_page(records, layout=Layout(rows={"method": "method", "budget": "budget"})))
    assert row["budget"] == "30 to 60 and 2 min, 9 of 10 steps"


# Protocols


def test_the_comparison_is_under_the_common_protocol_and_says_what_it_leaves_out(lab: Any) -> None:
    own = {"protocol__query": 1, "protocol__manifest": "f" * 64}
    lab.write("a")
    lab.write("b", protocol__name="paper", **own)
    lab.write("c", protocol__name="common, query=1", **own)
    page = lab.page()
    assert list(page.table)[2:] == [f"{SHORT}, 1 query", f"{SHORT}, 15 queries"]
    assert dict(page.footer)["left out"] == "tests by other protocols: layout.protocol=paper (1 test)"
    assert list(lab.page("layout.protocol=paper").table)[2:] == [SHORT]


def test_without_the_common_protocol_the_only_other_is_shown_and_of_several_one_is_chosen(lab: Any) -> None:
    lab.write("a", protocol__name="paper")
    assert len(lab.page().table) == 1
    with pytest.raises(FewshotError, match="no run was tested by the protocol papr: choose layout.protocol=paper"):
        lab.page("layout.protocol=papr")
    record = lab.write("b")
    del record["protocol"]["name"]
    assert markdown([{**record, "folder": "b"}, lab.record(protocol__name="paper", seed=1)]).count("5-way 1-shot")
    lab.write("b", protocol__name="mine", algorithm="fomaml")
    assert "protocol paper" in str(lab.page().footer) and "mine" in str(lab.page().footer)  # all of them
    with pytest.raises(FewshotError, match=r"no run was tested by the protocol own: choose layout.protocol=mine"):
        lab.page("layout.protocol=own")


def test_what_no_score_depends_on_sets_no_rows_apart(lab: Any) -> None:
    unlike = {"settings__train.checkpoint_every": 50, "settings__algorithm.recipe": "none", "config": "b" * 64}
    lab.write("runs/a")
    lab.write("runs/b", seed=1, **unlike)
    page = lab.page(below="runs")
    assert [row["method"] for row in lab.texts(page)] == ["maml"]
    assert page.notes[0].startswith("mean of 2 training seeds")


@pytest.mark.parametrize("selection", ["last", "checkpoint of step 50", "best validation accuracy"])
def test_a_footnote_has_settings_of_validation_only_where_it_chose_the_checkpoint(lab: Any, selection: str) -> None:
    changed = {"settings__train.validate_every": 50, "settings__validation.query": 1, "settings__train.lr": 0.2}
    changes = ["train.validate_every", "validation.query", "train.lr"]
    lab.write("a", recipe="ours", recipe_changes=changes, protocol__selection=selection, **changed)
    validated = "validate_every=50, validation.query=1, " if selection.startswith("best") else ""
    assert lab.page().notes == [f"not as its recipe: {validated}lr=0.2"]
