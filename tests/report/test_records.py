"""Records, of one and of several numbers of adaptation steps: written, read, summed up and tabulated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.report.gather import read_runs
from fewshot.report.page import Page
from fewshot.report.plots import plot_bars, plot_by_steps
from fewshot.report.published import VIEWS
from fewshot.report.records import read_record, summary, write_record
from fewshot.report.statistics import holm
from fewshot.report.table import markdown

STEPS = (1, 5, 10)
SINUSOID = ("layout=sinusoid", "published=false")


def sinusoids(shots: tuple[int, ...], own: str = "") -> list[str]:
    """The headings of layout=sinusoid, with what sets the tasks apart."""
    return [f"sinusoid {k}-shot{own}, {n} adaptation step{'s' * (n > 1)}" for k in shots for n in STEPS]


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
        ({"cost__gradient_evaluations": "many"}, "cost.gradient_evaluations is 'many' in place of int or NoneType"),
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


# One line for a person


def test_a_regression_is_summed_up_by_its_error_after_each_number_of_updates(lab: Any, tmp_path: Path) -> None:
    test = {"mse": {"1": 0.395, "5": 0.126, "10": 2}, "ci95": {"1": 0.009, "5": None, "10": 0.25}, "episodes": 40}
    record = lab.write_regression("", test=test, recipe="cbfinn", cost__train_seconds=306.0)
    assert summary(record, Path("runs/a")) == (
        "maml sinusoid 10-shot: MSE 0.3950 ± 0.0090 after 1, 0.1260 after 5, 2.0000 ± 0.2500 after 10 updates "
        "(40 episodes, 10 queries, recipe cbfinn, 5.1 min of training)  runs/a"
    )


def test_a_classification_is_summed_up_in_per_cent(lab: Any) -> None:
    assert summary(lab.record(cost__nan_guarded_steps=2), Path("runs/a")) == (
        "maml omniglot 5-way 1-shot: 95.43 ± 0.41 % (600 episodes, 15 queries per class, transductive, "
        "recipe none, 14.7 min of training) WARNING: 2 steps had a NaN and took the parameters as their gradient;  "
        "runs/a"
    )


# Tables


def test_sinusoids_stand_by_shots_and_updates_beside_published_figures(lab: Any, tmp_path: Path) -> None:
    for algorithm, shift in (("maml", 0.0), ("reptile", 0.1)):
        for shot in (5, 10):
            lab.write_regression(f"{algorithm}{shot}", algorithm, shot, shift)
    page = lab.page("layout=sinusoid")
    rows = {row["method"]: row for row in lab.texts(page) if row["source"] == "measured here"}
    headings = sinusoids((5, 10))
    assert list(page.table)[3:] == headings and list(rows) == ["maml (mlp), inductive", "reptile (mlp), inductive"]
    for heading, (shot, steps) in zip(headings, ((shot, steps) for shot in (5, 10) for steps in STEPS), strict=True):
        test = read_record(tmp_path / f"maml{shot}" / "record.json")["test"]
        text = f"{test['mse'][str(steps)]:.4f} ± {test['ci95'][str(steps)]:.4f}"
        assert rows["maml (mlp), inductive"][heading] == text
    [original] = [row for row in lab.texts(page) if row["source"].startswith("gaoyuankidult/MAML-tf README")]
    assert [original[heading] for heading in headings] == ["0.6609", "0.3024", "0.2714", "0.4506", "0.2024", "0.1903"]
    assert {row["training shots"] for row in lab.texts(page)} == {"10"}
    assert all(entry.bold for entry in page.table.iloc[-2][headings])  # the lower error is the better one
    assert not any(entry.bold for entry in page.table.iloc[-1][headings])
    # Costs have one line for all scores of a run.
    assert page.cost is not None
    costs = [(f"sinusoid {shot}-shot", "1, 5, 10") for shot in (5, 10)]
    assert list(zip(page.cost["task"], page.cost["adaptation steps"], strict=True)) == costs * 2


def test_published_errors_join_only_what_was_measured_on_the_same_functions(lab: Any, tmp_path: Path) -> None:
    def published_in(page: Page) -> set[str]:
        rows = [row for row in lab.texts(page) if row["source"] != "measured here"]
        return {heading for row in rows for heading, text in row.items() if "step" in heading and text != "–"}

    toy = "sine: amplitude 0.1 to 5, phase 0 to 6.283; x -5 to 5; noise 0"
    lab.write_regression("toy", "reptile", protocol__view=toy, data={"fingerprint": "1" * 64})
    page = lab.page("layout=sinusoid")
    assert published_in(page) == {*sinusoids((5,)), *sinusoids((10,), ", as published")}
    with pytest.raises(FewshotError, match="tests differ in protocol.view .*: add task to rows or cols"):
        lab.page("layout=sinusoid", "cols=[protocol.shot,protocol.adaptation_steps]")
    lab.write_regression("maml")
    page = lab.page("layout=sinusoid")
    assert published_in(page) == {*sinusoids((5,)), *sinusoids((10,), f", {VIEWS['sinusoid']}")}
    [row] = [row for row in lab.texts(page) if row["method"].startswith("reptile")]
    assert [heading for heading in row if row[heading] != "–"][3:] == sinusoids((10,), f", {toy}")


def test_training_shots_are_those_of_the_training(lab: Any, tmp_path: Path) -> None:
    lab.write_regression("", train={"shot": 20, "query": 5})
    [row] = lab.texts(lab.page(*SINUSOID))
    assert (row["method"], row["training shots"]) == ("maml (mlp), inductive", "20")


def test_a_later_test_with_one_more_number_of_steps_adds_only_that(lab: Any, tmp_path: Path) -> None:
    lab.write_regression("z")
    lab.write_regression("z/tests/again", steps=(*STEPS, 20))
    lab.write_regression("b", "reptile", shift=0.1)
    page = lab.page(*SINUSOID)
    steps = {row["adaptation_steps"]: row["seeds"] for row in page.raw.to_dict("records") if row["algorithm"] == "maml"}
    assert steps == {1: 1, 5: 1, 10: 1, 20: 1}
    assert list(page.cost["adaptation steps"]) == ["1, 5, 10", "20", "1, 5, 10"]  # the run's own record is shown
    runs, _ = read_runs(tmp_path)
    for plot in (plot_by_steps, plot_bars):
        plot(runs)
    lab.write_regression("z/tests/other", shift=0.01)
    refused = r"z and .*z/tests/other are both maml .* with seed 0, and their mse is"
    with pytest.raises(FewshotError, match=refused):
        lab.page("layout=sinusoid")
    with pytest.raises(FewshotError, match=refused):
        plot_by_steps(read_runs(tmp_path)[0])


def test_a_regression_has_no_way_and_its_footer_no_images(lab: Any, tmp_path: Path) -> None:
    lab.write_regression("", shot=5)
    page = lab.page()
    names = [f"maml (mlp), inductive, trained on sinusoid 10-shot, {n} adaptation step{'s' * (n > 1)}" for n in STEPS]
    assert [row["method"] for row in lab.texts(page)] == names
    assert list(page.table)[1:] == ["sinusoid 5-shot"]
    assert dict(page.footer)["sinusoid 5-shot"].startswith(
        f"40 episodes of the test split, episode seed 0, 5 queries, {VIEWS['sinusoid']}; manifest"
    )
    assert "way" not in markdown([read_record(tmp_path / "record.json")])


def test_errors_and_accuracies_are_two_tables(lab: Any, tmp_path: Path) -> None:
    lab.write_regression("a")
    lab.write("b")
    page = lab.page()
    assert page.complaints == ["the table shows accuracy; for the runs scored by mse set layout.metric=mse"]
    assert page.title == "Accuracy in per cent" and "sinusoid 10-shot" not in page.table
    page = lab.page("layout.metric=mse", "published=true")
    assert (page.title, page.complaints) == ("Mean squared error", [])
    names = [row["method"] for row in lab.texts(page) if "MAML-tf README" in row["source"]]
    assert names == [f"maml (mlp), inductive, {steps} adaptation step{'s' * (steps > 1)}" for steps in STEPS]
    text = markdown([read_record(path) for path in sorted(tmp_path.rglob("record.json"))])
    assert text.index("Accuracy in per cent.") < text.index("Mean squared error.")
    with pytest.raises(FewshotError, match="layout.metric=top5: choose one of accuracy, mse"):
        lab.page("layout.metric=top5")


def test_accuracies_by_steps_are_rows_of_one_column(lab: Any, tmp_path: Path) -> None:
    scores = {"accuracy_0": np.tile([0.1, 0.3], 300), "accuracy_1": np.tile([0.8, 1.0], 300)}
    lab.write("", scores, protocol__adaptation_steps=[0, 1])
    assert {row["method"]: row["omniglot 5-way 1-shot"] for row in lab.texts(lab.page())} == {
        "maml (conv4), transductive, 0 adaptation steps": "20.00 ± 0.80",
        "maml (conv4), transductive, 1 adaptation step": "90.00 ± 0.80",
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
    assert [row["method"].split(" ")[0] for row in lab.texts(page)] == ["fomaml", "reptile", "meta_sgd", "leo"]
    for line, message in zip(
        page.complaints,
        ["test.mse -0.", "not have a line for each", "columns 'episode,mse_1,mse_50,mse_10', not episode and mse_5",
         "cannot be read as scores of episodes: "],
        strict=True,
    ):  # fmt: skip
        assert message in line and "\n" not in line
    assert all("its mean stands in the table" in line for line in page.complaints[1:])
    best = {heading: entry.bold for heading, entry in page.table.iloc[-1].items()}
    assert [best[heading] for heading in sinusoids((10,))] == [True, False, True]  # the other steps are compared
    assert dict(page.footer)["not compared"].startswith("fomaml (mlp), inductive on sinusoid 10-shot, ")


def test_records_are_found_at_any_depth_in_the_order_of_their_paths(lab: Any, tmp_path: Path) -> None:
    lab.write("b")
    lab.write("a/deep", seed=1)
    found = [(run["seed"], run["folder"]) for run in read_runs(tmp_path)[0]]
    assert found == [(1, str(tmp_path / "a" / "deep")), (0, str(tmp_path / "b"))]
