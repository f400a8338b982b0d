"""Records, of one and of several numbers of adaptation steps: written, read, summed up and tabulated."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.report.gather import gather_runs
from fewshot.report.page import Page
from fewshot.report.published import VIEWS
from fewshot.report.records import find_records, protocol_name, read_record, summary, write_record
from fewshot.report.statistics import holm
from fewshot.report.table import markdown

STEPS = (1, 5, 10)
SINUSOID = ("layout=sinusoid", "published=false")
HEADINGS = ["1 test step", "5 test steps", "10 test steps"]


# Writing and reading


def test_scores_by_steps_are_columns_of_one_file_and_come_back_as_written(lab: Any, tmp_path: Path) -> None:
    record = lab.write_regression("")
    lines = (tmp_path / "episodes.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == ("episode,mse_1,mse_5,mse_10", 41)
    assert lines[1].split(",")[0] == "0" and len(lines[1].split(",")) == 4
    assert read_record(tmp_path / "record.json") == {**record, "folder": str(tmp_path)}


def test_one_score_per_episode_has_the_metric_as_its_heading(lab: Any, tmp_path: Path) -> None:
    write_record(tmp_path, lab.record(), {"accuracy": np.array([0.5, 2 / 3])})
    assert (tmp_path / "episodes.csv").read_text() == "episode,accuracy\n0,0.500000\n1,0.666667\n"


def test_records_below_a_folder_that_cannot_be_read_are_a_complaint_or_an_error(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.write("open")
    lab.write("closed/run")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    runs, complaints = gather_runs(tmp_path)
    assert len(runs) == 1 and complaints == [f"{tmp_path}/closed: cannot be read (Permission denied)"]
    with pytest.raises(FewshotError, match="closed: cannot be read"):
        find_records(tmp_path)


def test_columns_of_different_length_are_no_scores(lab: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_record(tmp_path, lab.record(), {"mse_1": np.zeros(3), "mse_5": np.zeros(2)})
    assert not (tmp_path / "record.json").exists()


def check_refused(path: Path, content: object, message: str) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with pytest.raises(FewshotError) as error:
        read_record(path)
    assert str(path) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ([], 'lacks `"format": 2`'),
        ({"format": None}, 'lacks `"format": 2`'),
        ({"format": 1}, "is a record of format 1, and this code reads format 2: test the run again"),
        ({"format": 3}, "is a record of format 3, and this code reads format 2: update the code"),
        ({"test": None}, "lacks test.episodes"),
        ({"test": {"ci95": 0.1, "episodes": 600}}, "lacks test.accuracy or test.mse, or has both"),
        ({"test__mse": 0.1}, "lacks test.accuracy or test.mse, or has both"),
        ({"seed": "0"}, "seed is '0' in place of int"),
        ({"seed": True}, "seed is True in place of int"),
        ({"data__about": None}, "data.about is None in place of dict"),
        ({"code__training": None}, "code.training is None in place of list"),
        ({"cost__gradient_evaluations": "many"}, "cost.gradient_evaluations is 'many' in place of int or NoneType"),
        ({"settings": ["x"]}, "settings is ['x'] in place of dict or NoneType"),
        ({"test__accuracy": 95.43}, "test.accuracy 95.43, not a fraction"),
        ({"test__accuracy": float("nan")}, "test.accuracy nan, not a fraction"),
        ({"test__episodes": 300}, "has scores of 300 of its 600 test episodes"),
    ],
)
def test_what_is_not_a_record_is_named_in_one_line(lab: Any, tmp_path: Path, content: Any, message: str) -> None:
    check_refused(tmp_path / "r", lab.record(**content) if isinstance(content, dict) else content, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test__mse": {}}, "all are for one number of steps, or for the same several"),
        ({"test__ci95": {"1": 0.1, "5": 0.1, "9": 0.1}}, "test.ci95 {'1': 0.1, '5': 0.1, '9': 0.1}"),
        ({"test__ci95": 0.1}, "test.ci95 0.1"),
        ({"test__mse": 0.1}, "test.mse 0.1"),
        ({"test__mse__5": -0.1}, "has test.mse -0.1, not a number of 0 or more"),
        ({"test__mse__5": float("nan")}, "has test.mse nan, not a number"),
        ({"test__mse__5": float("inf")}, "has test.mse inf, not a number"),
        ({"test__mse__5": "0.1"}, "has test.mse 0.1, not a number"),
        ({"test__ci95__5": float("nan")}, "has test.ci95 nan, not null or a number"),
        ({"test__ci95__5": "wide"}, "has test.ci95 wide, not null or a number"),
        ({"test__ci95__5": -0.1}, "has test.ci95 -0.1, not null or a number of 0 or more"),
        ({"protocol__adaptation_steps": [1, 5]}, "protocol.adaptation_steps [1, 5] do not match"),
        ({"protocol__adaptation_steps": 5}, "protocol.adaptation_steps 5 do not match"),
        ({"protocol__adaptation_steps": [1, 5, "few"]}, "protocol.adaptation_steps [1, 5, 'few'] do not match"),
    ],
)
def test_scores_and_steps_that_do_not_match_are_named_in_one_line(
    lab: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    check_refused(tmp_path / "record.json", lab.write_regression("", **changes), message)


def test_older_records_without_protocol_name_steps_and_settings_are_read(lab: Any, tmp_path: Path) -> None:
    record = lab.write("", query=15, train={"shot": 1, "query": 1})
    del record["protocol"]["name"], record["settings"]
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert protocol_name(read_record(tmp_path / "record.json")) == "own"
    assert protocol_name(lab.record(protocol__name="common, query=5, episodes=100")) == "common"


# One line for a person


def test_a_regression_is_summed_up_by_its_error_after_each_number_of_steps(lab: Any, tmp_path: Path) -> None:
    test = {"mse": {"1": 0.395, "5": 0.126, "10": 2}, "ci95": {"1": 0.009, "5": None, "10": 0.25}, "episodes": 40}
    record = lab.write_regression("", test=test, recipe="cbfinn", cost__train_seconds=306.0)
    assert summary(record, Path("runs/a")) == (
        "maml sinusoid 10-shot: MSE 0.3950 ± 0.0090 after 1, 0.1260 after 5, 2.0000 ± 0.2500 after 10 test steps "
        "(common; recipe cbfinn, 5.1 min of training)  runs/a"
    )


def test_a_classification_is_summed_up_in_per_cent(lab: Any) -> None:
    record = lab.record(cost__nan_guarded_steps=2, cost__extractor_seconds=120.0)
    assert summary(record, Path("runs/a")) == (
        "maml omniglot 5-way 1-shot: 95.43 ± 0.41 % (common, transductive; "
        "recipe none, 16.7 min of training) WARNING: 2 steps had a NaN and took the parameters as their gradient;  "
        "runs/a"
    )


# Tables


def test_sinusoids_stand_by_shots_and_steps_above_published_figures(lab: Any, tmp_path: Path) -> None:
    for algorithm, shift in (("maml", 0.0), ("reptile", 0.1)):
        for shot in (5, 10):
            lab.write_regression(f"{algorithm}{shot}", algorithm, shot, shift)
    page = lab.page("layout=sinusoid", "costs=true")
    assert list(page.table)[-4:] == [*HEADINGS, "source"]
    rows = lab.texts(page)
    measured = [(name, task) for name in ("maml", "reptile") for task in ("5-shot", "10-shot")]
    assert [(row["method"], row["task"]) for row in rows[: page.measured]] == measured
    for row, shot in zip(rows, (5, 10), strict=False):
        test = read_record(tmp_path / f"maml{shot}" / "record.json")["test"]
        for heading, steps in zip(HEADINGS, map(str, STEPS), strict=True):
            assert row[heading] == f"{test['mse'][steps]:.4f} ± {test['ci95'][steps]:.4f}"
    original = [[row[heading] for heading in HEADINGS] for row in rows if row["source"] == "MAML-tf"]
    assert original == [["0.6609", "0.3024", "0.2714"], ["0.4506", "0.2024", "0.1903"]]
    assert {row["training shots"] for row in rows} == {"10"}
    # The lower error of each task is the better one.
    assert [[entry.bold for entry in page.table.iloc[i][HEADINGS]] for i in range(4)] == [[i < 2] * 3 for i in range(4)]
    # Costs have one line for all scores of a run.
    assert page.costs is not None
    costs = [(f"{shot}-shot", "1, 5, 10") for shot in (5, 10)]
    assert list(zip(page.costs["task"], page.costs["adaptation steps"], strict=True)) == costs * 2


def test_records_of_two_folders_stand_in_one_table_and_none_twice(lab: Any) -> None:
    lab.write("mine/run")
    lab.write("theirs/run", algorithm="reptile")
    folders = (lab.folder / "mine", lab.folder / "theirs", lab.folder)
    assert [run["algorithm"] for run in gather_runs(*folders)[0]] == ["maml", "reptile"]
    with pytest.raises(FewshotError, match="no record.json below .*nowhere"):
        gather_runs(lab.folder, lab.folder / "nowhere")


def test_each_number_of_steps_has_its_own_r2(lab: Any) -> None:
    test = {"mse": {"1": 0.2, "5": 0.1}, "ci95": {"1": 0.1, "5": 0.1}, "r2": {"1": 0.5, "5": 0.75}, "episodes": 40}
    lab.write_regression("maml", steps=(1, 5), test=test)
    assert lab.page().raw.set_index("adaptation_steps")["r2"].to_dict() == {1: 0.5, 5: 0.75}


def test_a_seed_that_diverged_after_some_steps_has_a_footnote_at_its_other_scores(lab: Any) -> None:
    test = {"mse": {"1": 0.2}, "ci95": {"1": 0.1}, "episodes": 40, "diverged": {"5": 3}}
    lab.write_regression("one", steps=(1, 5), seed=0)
    lab.write_regression("two", steps=(1,), seed=1, test=test)
    page = lab.page("layout=sinusoid", "published=false")
    (row,) = page.table.to_dict("records")
    wanted = "seed 1 has no score after 5 test steps: it is not finite in 3 of 40 test episodes"
    assert wanted in "; ".join(page.notes[number - 1] for number in row["1 test step"].notes)


def test_r2_stands_beside_the_error_of_records_that_have_it(lab: Any) -> None:
    for seed, r2 in ((0, 0.5), (1, 0.25)):
        test = {"mse": 0.2, "ci95": 0.1, "r2": r2, "episodes": 40}
        lab.write_regression(f"maml{seed}", seed=seed, steps=(1,), test=test, protocol__adaptation_steps=1)
    lab.write_regression("reptile", "reptile", steps=(1,), protocol__adaptation_steps=[1])
    page = lab.page()
    cells = {row["method"]: row["10-shot"] for row in lab.texts(page)}
    assert cells["maml"] == "0.2000 ± 0.1000, R2 0.375" and "R2" not in cells["reptile"]
    assert page.raw["r2"].tolist()[0] == 0.375
    assert "R2 is 1 - error / variance" in dict(page.footer)["reading"]


def test_published_errors_join_only_what_was_measured_on_the_same_functions(lab: Any, tmp_path: Path) -> None:
    def tasks(page: Page) -> list[set[str]]:
        rows = lab.texts(page)
        return [{row["task"] for row in part} for part in (rows[: page.measured], rows[page.measured :])]

    toy = "sine: amplitude 0.1 to 5, phase 0 to 6.283; x -5 to 5; noise 0"
    lab.write_regression("toy", "reptile", protocol__view=toy, data={"fingerprint": "1" * 64})
    assert tasks(lab.page("layout=sinusoid")) == [{"10-shot"}, {"5-shot", "10-shot, as published"}]
    with pytest.raises(FewshotError, match="tests differ in protocol.view .*: add task to rows or cols"):
        lab.page("layout=sinusoid", "rows=[method,source]", "cols=[protocol.shot,protocol.adaptation_steps]")
    lab.write_regression("maml")
    own = f"10-shot, {VIEWS['sinusoid']}"
    assert tasks(lab.page("layout=sinusoid")) == [{f"10-shot, {toy}", own}, {"5-shot", own}]


def test_training_shots_are_those_of_the_training(lab: Any, tmp_path: Path) -> None:
    lab.write_regression("", train={"shot": 20, "query": 5})
    [row] = lab.texts(lab.page(*SINUSOID))
    assert (row["method"], row["training shots"]) == ("maml", "20")


def test_a_later_test_with_one_more_number_of_steps_adds_only_that(lab: Any, tmp_path: Path) -> None:
    lab.write_regression("z")
    lab.write_regression("z/tests/again", steps=(*STEPS, 20))
    lab.write_regression("b", "reptile", shift=0.1)
    page = lab.page(*SINUSOID, "costs=true")
    steps = {row["adaptation_steps"]: row["seeds"] for row in page.raw.to_dict("records") if row["algorithm"] == "maml"}
    assert steps == {1: 1, 5: 1, 10: 1, 20: 1}
    assert list(page.costs["adaptation steps"]) == ["1, 5, 10", "20", "1, 5, 10"]  # the run's own record is shown
    lab.write_regression("z/tests/other", shift=0.01)
    with pytest.raises(FewshotError, match=r"z and .*z/tests/other are both maml .* with seed 0, and their mse is"):
        lab.page("layout=sinusoid")


def test_a_regression_has_no_way_no_setting_and_no_images(lab: Any, tmp_path: Path) -> None:
    lab.write_regression("", shot=5)
    page = lab.page()
    names = [f"maml, trained on 10-shot, {n} test step{'s' * (n > 1)}" for n in STEPS]
    assert [row["method"] for row in lab.texts(page)] == names
    assert list(page.table)[1:] == ["5-shot"]
    assert dict(page.footer)["test"].startswith(
        f"protocol common, 40 episodes, test split, episode seed 0, as many queries as shots, {VIEWS['sinusoid']}"
    )
    assert "way" not in markdown([read_record(tmp_path / "record.json")])


def test_errors_and_accuracies_are_two_tables(lab: Any, tmp_path: Path) -> None:
    lab.write_regression("a")
    lab.write("b")
    page = lab.page()
    assert page.complaints == ["the table shows accuracy; for the runs scored by mse set layout.metric=mse"]
    assert page.title == "Omniglot, accuracy in per cent" and "10-shot" not in page.table
    page = lab.page("layout.metric=mse", "published=true")
    assert (page.title, page.complaints) == ("Sinusoid, mean squared error", [])
    names = [row["method"] for row in lab.texts(page) if row["source"] == "MAML-tf"]
    assert names == [f"maml, {steps} test step{'s' * (steps > 1)}" for steps in STEPS]
    text = markdown([read_record(path) for path in sorted(tmp_path.rglob("record.json"))])
    assert text.index("Omniglot, accuracy in per cent:") < text.index("Sinusoid, mean squared error:")
    with pytest.raises(FewshotError, match="layout.metric=top5: choose one of accuracy, mse"):
        lab.page("layout.metric=top5")


def test_accuracies_by_steps_are_rows_of_one_column(lab: Any, tmp_path: Path) -> None:
    scores = {"accuracy_0": np.tile([0.1, 0.3], 300), "accuracy_1": np.tile([0.8, 1.0], 300)}
    lab.write("", scores, protocol__adaptation_steps=[0, 1])
    assert {row["method"]: row["5-way 1-shot"] for row in lab.texts(lab.page())} == {
        "maml, 0 test steps": "20.00 ± 0.80",
        "maml, 1 test step": "90.00 ± 0.80",
    }


# Statistics


def test_each_number_of_steps_is_compared_by_its_own_column_and_all_are_corrected_together(
    lab: Any, tmp_path: Path
) -> None:
    """Two methods in three columns: three pairs, corrected as one family."""
    scores = {}
    for algorithm, shift in (("maml", 0.1), ("fomaml", 0.1012)):
        record = lab.write_regression(algorithm, algorithm)
        noise = np.random.default_rng(len(algorithm)).normal(0, 0.004, (3, 40))
        scores[algorithm] = {f"mse_{n}": own.round(6) for n, own in zip(STEPS, noise + shift, strict=True)}
        lab.write(algorithm, scores[algorithm], **{k: record[k] for k in record if k != "test"})
    raw = lab.page(*SINUSOID).raw
    pairs = zip(scores["maml"].values(), scores["fomaml"].values(), strict=True)
    expected = [float(stats.ttest_rel(*pair).pvalue) for pair in pairs]
    found = [raw[raw["adaptation_steps"] == steps]["p_holm"].min() for steps in STEPS]
    assert found == pytest.approx(holm(expected))
    assert found != pytest.approx(expected)  # as a correction within each column would leave them


def test_what_cannot_be_read_is_one_line_each_and_the_rest_is_tabulated(lab: Any, tmp_path: Path) -> None:
    for algorithm in ("maml", "fomaml", "reptile", "leo", "meta_sgd"):
        lab.write_regression(algorithm, algorithm)
    path = tmp_path / "maml" / "record.json"
    path.write_text(path.read_text().replace('"5": 0', '"5": -0', 1))
    (tmp_path / "fomaml" / "episodes.csv").write_text("episode,mse_1,mse_5,mse_10\n0,0.1,0.1,0.1\n")
    (tmp_path / "reptile" / "episodes.csv").unlink()
    path = tmp_path / "leo" / "episodes.csv"
    path.write_text(path.read_text().replace("mse_5", "mse_50"))
    page = lab.page(*SINUSOID)
    assert [row["method"] for row in lab.texts(page)] == ["fomaml", "reptile", "meta_sgd", "leo"]
    for line, message in zip(
        page.complaints,
        ["test.mse -0.", "not have a line for each", "columns 'episode,mse_1,mse_50,mse_10', not episode and mse_5",
         "cannot be read as scores of episodes: "],
        strict=True,
    ):  # fmt: skip
        assert message in line and "\n" not in line
    assert all("its mean stands in the table" in line for line in page.complaints[1:])
    assert [page.table.iloc[-1][heading].bold for heading in HEADINGS] == [True, False, True]  # other steps compare


def test_records_are_found_at_any_depth_in_the_order_of_their_paths(lab: Any, tmp_path: Path) -> None:
    lab.write("b")
    lab.write("a/deep", seed=1)
    found = [(run["seed"], run["folder"]) for run in gather_runs(tmp_path)[0]]
    assert found == [(1, str(tmp_path / "a" / "deep")), (0, str(tmp_path / "b"))]
