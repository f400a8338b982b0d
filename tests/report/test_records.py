"""Records of regressions and of several numbers of adaptation steps: written, read, summed up and tabulated."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.report.charts import bars, by_steps
from fewshot.report.gather import read_runs
from fewshot.report.page import Page
from fewshot.report.published import VIEWS
from fewshot.report.records import read_record, summary, write_record
from fewshot.report.statistics import holm, scores
from fewshot.report.table import markdown, table_of

ACCURACY: dict[str, Any] = json.loads(
    (CONF.parent / "results/omniglot_quarter_hour/maml/test-1s15q-none-inductive-1steps-600e0/record.json").read_text()
)
STEPS = (1, 5, 10)


def regression(
    folder: Path,
    algorithm: str = "maml",
    shot: int = 10,
    shift: float = 0.0,
    tested: tuple[int, ...] = STEPS,
    view: str = VIEWS["sinusoid"],
) -> dict[str, Any]:
    """Write a run that trained with 10 shots and was tested after 1, 5 and 10 steps, 40 tasks; its record."""
    tasks = np.random.default_rng(shot).gamma(2, 0.1, 40)
    found = {steps: tasks / steps + shift + np.random.default_rng(steps).uniform(0, 0.01, 40) for steps in tested}
    record = copy.deepcopy(ACCURACY)
    record |= {"algorithm": algorithm, "backbone": "mlp", "dataset": "sinusoid", "way": 1, "shot": 10, "query": 10}
    record["train"] = {"shot": 10, "query": 10}
    record["protocol"] |= {
        "dataset": "sinusoid", "way": 1, "shot": shot, "query": shot, "episodes": 40, "rotations": None,
        "view": view, "adaptation_steps": list(tested), "manifest": f"{shot:02d}" * 32,
    }  # fmt: skip
    record["test"] = {
        "mse": {str(steps): float(values.mean()) for steps, values in found.items()},
        "ci95": {str(steps): float(stats.t.ppf(0.975, 39) * stats.sem(values)) for steps, values in found.items()},
        "episodes": 40,
    }
    write_record(folder, record, {f"mse_{steps}": values for steps, values in found.items()})
    return record


def table(runs: Path, *words: str) -> Page:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = OmegaConf.to_container(compose("table", list(words)), resolve=True)
    assert isinstance(settings, dict)
    found, complaints = read_runs(runs)
    page = table_of(found, {str(key): value for key, value in settings.items()})
    page.complaints[:0] = complaints
    return page


def sinusoids(shots: tuple[int, ...], own: str = "") -> list[str]:
    """The headings of layout=sinusoid, with what sets the tasks apart."""
    return [f"sinusoid {k}-shot{own}, {n} adaptation step{'s' * (n > 1)}" for k in shots for n in STEPS]


def texts(page: Page) -> list[dict[str, str]]:
    return page.table.map(lambda entry: entry.text).to_dict("records")


# Writing and reading


def test_scores_by_steps_are_columns_of_one_file_and_come_back_as_written(tmp_path: Path) -> None:
    record = regression(tmp_path)
    lines = (tmp_path / "episodes.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == ("episode,mse_1,mse_5,mse_10", 41)
    assert lines[1].split(",")[0] == "0" and len(lines[1].split(",")) == 4
    assert read_record(tmp_path / "record.json") == {**record, "folder": str(tmp_path)}


def test_one_score_per_episode_has_the_metric_as_its_heading(tmp_path: Path) -> None:
    write_record(tmp_path, ACCURACY, {"accuracy": np.array([0.5, 2 / 3])})
    assert (tmp_path / "episodes.csv").read_text() == "episode,accuracy\n0,0.500000\n1,0.666667\n"


def test_columns_of_different_length_are_no_scores(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_record(tmp_path, ACCURACY, {"mse_1": np.zeros(3), "mse_5": np.zeros(2)})
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("test", {"mse": {}}, "of the same numbers of steps, one or several"),
        ("test", {"ci95": {"1": 0.1, "5": 0.1, "9": 0.1}}, "test.ci95 ['1', '5', '9']"),
        ("test", {"ci95": 0.1}, "test.ci95 0.1"),
        ("test", {"mse": 0.1}, "test.mse 0.1"),
        ("test", {"mse": {"1": 0.1, "5": -0.1, "10": 0.1}}, "has test.mse -0.1, not a finite number of 0 or more"),
        ("test", {"mse": {"1": 0.1, "5": float("nan"), "10": 0.1}}, "has test.mse nan, not a finite number"),
        ("test", {"mse": {"1": 0.1, "5": float("inf"), "10": 0.1}}, "has test.mse inf, not a finite number"),
        ("test", {"mse": {"1": 0.1, "5": "0.1", "10": 0.1}}, "has test.mse 0.1, not a finite number"),
        ("test", {"ci95": {"1": 0.1, "5": "wide", "10": 0.1}}, "has test.ci95 wide, not null or a number"),
        ("test", {"ci95": {"1": 0.1, "5": -0.1, "10": 0.1}}, "has test.ci95 -0.1, not null or a number of 0 or more"),
        ("test", {"accuracy": 0.5}, "lacks test.accuracy or test.mse, or has both"),
        ("protocol", {"adaptation_steps": [1, 5]}, "protocol.adaptation_steps [1, 5]"),
        ("protocol", {"adaptation_steps": 5}, "protocol.adaptation_steps 5"),
        ("cost", {"gradient_evaluations": "many"}, "cost.gradient_evaluations is 'many' in place of int or NoneType"),
    ],
)
def test_a_regression_that_is_none_is_named_in_one_line(
    tmp_path: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    record = regression(tmp_path)
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**record, part: {**record[part], **changes}}))
    with pytest.raises(FewshotError) as error:
        read_record(path)
    assert str(path) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


# One line for a person


def test_a_regression_is_summed_up_by_its_error_after_each_number_of_updates(tmp_path: Path) -> None:
    record = regression(tmp_path)
    record["test"] |= {"mse": {"1": 0.395, "5": 0.126, "10": 2}, "ci95": {"1": 0.009, "5": None, "10": 0.25}}
    record |= {"recipe": "cbfinn", "cost": {**record["cost"], "train_seconds": 306.0}}
    assert summary(record, Path("runs/a")) == (
        "maml sinusoid 10-shot: MSE 0.3950 ± 0.0090 after 1, 0.1260 after 5, 2.0000 ± 0.2500 after 10 updates "
        "(40 episodes, 10 queries, recipe cbfinn, 5.1 min of training)  runs/a"
    )


def test_a_classification_is_summed_up_in_per_cent() -> None:
    assert summary(ACCURACY, Path("runs/a")) == (
        "maml omniglot 5-way 1-shot: 94.30 ± 0.44 % (600 episodes, 15 queries per class, inductive, "
        "recipe quarter_hour, 14.0 min of training)  runs/a"
    )


# Tables


def test_sinusoids_stand_by_shots_and_updates_beside_published_figures(tmp_path: Path) -> None:
    for algorithm, shift in (("maml", 0.0), ("reptile", 0.1)):
        for shot in (5, 10):
            regression(tmp_path / f"{algorithm}{shot}", algorithm, shot, shift)
    page = table(tmp_path, "layout=sinusoid")
    rows = {row["method"]: row for row in texts(page) if row["source"] == "measured here"}
    headings = sinusoids((5, 10))
    assert list(page.table)[3:] == headings and list(rows) == ["maml (mlp), inductive", "reptile (mlp), inductive"]
    for heading, (shot, steps) in zip(headings, ((shot, steps) for shot in (5, 10) for steps in STEPS), strict=True):
        test = read_record(tmp_path / f"maml{shot}" / "record.json")["test"]
        said = f"{test['mse'][str(steps)]:.4f} ± {test['ci95'][str(steps)]:.4f}"
        assert rows["maml (mlp), inductive"][heading] == said
    [original] = [row for row in texts(page) if row["source"].startswith("gaoyuankidult/MAML-tf README")]
    assert [original[heading] for heading in headings] == ["0.6609", "0.3024", "0.2714", "0.4506", "0.2024", "0.1903"]
    assert {row["training shots"] for row in texts(page)} == {"10"}
    assert all(entry.bold for entry in page.table.iloc[-2][headings])  # the lower error is the better one
    assert not any(entry.bold for entry in page.table.iloc[-1][headings])


def published_in(page: Page) -> set[str]:
    """The headings under which published figures stand."""
    rows = [row for row in texts(page) if row["source"] != "measured here"]
    return {heading for row in rows for heading, text in row.items() if "step" in heading and text != "–"}


def test_published_errors_join_only_what_was_measured_on_the_same_functions(tmp_path: Path) -> None:
    toy = "sine: amplitude 0.1 to 5, phase 0 to 6.283; x -5 to 5; noise 0"
    record = regression(tmp_path / "toy", "reptile", view=toy)
    record["data"] = {"fingerprint": "1" * 64}
    (tmp_path / "toy" / "record.json").write_text(json.dumps(record))
    assert published_in(table(tmp_path, "layout=sinusoid")) == {*sinusoids((5,)), *sinusoids((10,), ", as published")}
    with pytest.raises(FewshotError, match="tests differ in protocol.view .*: add task to rows or cols"):
        table(tmp_path, "layout=sinusoid", "cols=[protocol.shot,protocol.adaptation_steps]")
    regression(tmp_path / "maml")
    page = table(tmp_path, "layout=sinusoid")
    assert published_in(page) == {*sinusoids((5,)), *sinusoids((10,), f", {VIEWS['sinusoid']}")}
    [row] = [row for row in texts(page) if row["method"].startswith("reptile")]
    assert [heading for heading in row if row[heading] != "–"][3:] == sinusoids((10,), f", {toy}")


def test_training_shots_are_those_of_the_training(tmp_path: Path) -> None:
    record = regression(tmp_path)
    (tmp_path / "record.json").write_text(json.dumps({**record, "train": {"shot": 20, "query": 5}}))
    [row] = texts(table(tmp_path, "layout=sinusoid", "published=false"))
    assert (row["method"], row["training shots"]) == ("maml (mlp), inductive", "20")


def test_a_test_once_more_with_one_more_number_of_steps_adds_only_that(tmp_path: Path) -> None:
    regression(tmp_path / "z")
    regression(tmp_path / "z/tests/again", tested=(*STEPS, 20))
    regression(tmp_path / "b", "reptile", shift=0.1)
    page = table(tmp_path, "layout=sinusoid", "published=false")
    steps = {row["adaptation_steps"]: row["seeds"] for row in page.raw.to_dict("records") if row["algorithm"] == "maml"}
    assert steps == {1: 1, 5: 1, 10: 1, 20: 1}
    cost = page.cost
    assert cost is not None
    assert list(cost["adaptation steps"]) == ["1, 5, 10", "20", "1, 5, 10"]  # the run's own record is the one shown
    runs, _ = read_runs(tmp_path)
    for draw in (by_steps, bars):
        draw(runs)
    regression(tmp_path / "z/tests/other", shift=0.01)
    with pytest.raises(FewshotError, match=r"z and .*z/tests/other are both maml .* with seed 0, and their mse is"):
        table(tmp_path, "layout=sinusoid")
    with pytest.raises(FewshotError, match=r"z and .*z/tests/other are both maml .* with seed 0, and their mse is"):
        by_steps(read_runs(tmp_path)[0])


def test_a_regression_has_no_way_and_its_footer_no_images(tmp_path: Path) -> None:
    regression(tmp_path, shot=5)
    page = table(tmp_path)
    assert [row["method"] for row in texts(page)] == [
        f"maml (mlp), inductive, trained on sinusoid 10-shot, {steps} adaptation step{'s' * (steps > 1)}"
        for steps in STEPS
    ]
    assert list(page.table)[1:] == ["sinusoid 5-shot"]
    assert dict(page.footer)["sinusoid 5-shot"].startswith(
        f"40 episodes of the test split, episode seed 0, 5 queries, {VIEWS['sinusoid']}; manifest"
    )
    assert "way" not in markdown([read_record(tmp_path / "record.json")])


def test_published_errors_join_the_comparison_by_their_updates(tmp_path: Path) -> None:
    regression(tmp_path)
    names = [row["method"] for row in texts(table(tmp_path, "published=true")) if "MAML-tf README" in row["source"]]
    assert names == [f"maml (mlp), inductive, {steps} adaptation step{'s' * (steps > 1)}" for steps in STEPS]


def test_costs_have_one_line_for_all_scores_of_a_run(tmp_path: Path) -> None:
    regression(tmp_path / "5", shot=5)
    regression(tmp_path / "10")
    cost = table(tmp_path, "layout=sinusoid").cost
    assert cost is not None
    assert list(zip(cost["task"], cost["adaptation steps"], strict=True)) == [
        ("sinusoid 5-shot", "1, 5, 10"),
        ("sinusoid 10-shot", "1, 5, 10"),
    ]


def test_errors_and_accuracies_are_two_tables(tmp_path: Path) -> None:
    regression(tmp_path / "a")
    shutil.copytree(CONF.parent / "results/omniglot_quarter_hour/maml", tmp_path / "b")
    page = table(tmp_path)
    assert page.complaints == ["the table shows accuracy; for the runs scored by mse say layout.metric=mse"]
    assert page.title == "Accuracy in per cent" and "sinusoid 10-shot" not in page.table
    page = table(tmp_path, "layout.metric=mse")
    assert (page.title, page.complaints) == ("Mean squared error", [])
    records = [read_record(path) for path in sorted(tmp_path.rglob("record.json"))]
    text = markdown(records)
    assert text.index("Accuracy in per cent.") < text.index("Mean squared error.")
    with pytest.raises(FewshotError, match="layout.metric=top5: accuracy or mse"):
        table(tmp_path, "layout.metric=top5")


def test_accuracies_by_steps_are_rows_of_one_column(tmp_path: Path) -> None:
    record = copy.deepcopy(ACCURACY)
    record["protocol"]["adaptation_steps"] = [0, 1]
    record["test"] = {"accuracy": {"0": 0.2, "1": 0.9}, "ci95": {"0": 0.01, "1": 0.02}, "episodes": 600}
    columns = {"accuracy_0": np.tile([0.1, 0.3], 300), "accuracy_1": np.tile([0.8, 1.0], 300)}
    write_record(tmp_path, record, columns)
    rows = {row["method"]: row["omniglot 5-way 1-shot"] for row in texts(table(tmp_path))}
    assert rows == {
        "maml (conv4), inductive, 0 adaptation steps": "20.00 ± 1.00",
        "maml (conv4), inductive, 1 adaptation step": "90.00 ± 2.00",
    }


# Statistics


def test_each_number_of_steps_is_compared_by_its_own_column_and_all_are_corrected_together(tmp_path: Path) -> None:
    """Two methods in three columns: three pairs, corrected as one family."""
    for algorithm, scale in (("maml", 0.0), ("fomaml", 0.0012)):
        regression(tmp_path / algorithm, algorithm, shift=scale)
        noisy = np.random.default_rng(len(algorithm)).normal(0, 0.004, (3, 40))
        columns = {f"mse_{n}": own for n, own in zip(STEPS, noisy + 0.1 + scale, strict=True)}
        record = json.loads((tmp_path / algorithm / "record.json").read_text())
        record["test"]["mse"] = {str(n): float(columns[f"mse_{n}"].mean()) for n in STEPS}
        write_record(tmp_path / algorithm, record, columns)
    raw = table(tmp_path, "layout=sinusoid", "published=false").raw
    expected = []
    for steps in STEPS:
        one, other = (
            np.loadtxt(tmp_path / name / "episodes.csv", delimiter=",", skiprows=1) for name in ("maml", "fomaml")
        )
        place = 1 + STEPS.index(steps)
        expected.append(float(stats.ttest_rel(one[:, place], other[:, place]).pvalue))
    found = [raw[raw["adaptation_steps"] == steps]["p_holm"].min() for steps in STEPS]
    assert found == pytest.approx(holm(expected))
    assert found != pytest.approx(expected)  # which a correction within each column would leave as they are


def test_a_missing_column_is_said_and_the_other_steps_are_still_compared(tmp_path: Path) -> None:
    for algorithm, shift in (("maml", 0.0), ("reptile", 0.1)):
        regression(tmp_path / algorithm, algorithm, shift=shift)
    path = tmp_path / "maml" / "episodes.csv"
    path.write_text(path.read_text().replace("mse_5", "mse_50"))
    page = table(tmp_path, "layout=sinusoid")
    [complaint] = page.complaints
    assert "has columns 'episode,mse_1,mse_50,mse_10', not episode and mse_5" in complaint
    assert "its mean stands in the table" in complaint
    bold = {heading: entry.bold for heading, entry in page.table.iloc[-2].items()}
    one, five, _ = sinusoids((10,))
    assert bold[one] and not bold[five]


def test_what_cannot_be_read_is_one_line_each_and_the_rest_is_tabulated(tmp_path: Path) -> None:
    for algorithm in ("maml", "fomaml", "reptile", "leo"):
        regression(tmp_path / algorithm, algorithm)
    path = tmp_path / "maml" / "record.json"
    path.write_text(path.read_text().replace('"5": 0', '"5": -0', 1))
    (tmp_path / "fomaml" / "episodes.csv").write_text("episode,mse_1,mse_5,mse_10\n0,0.1,0.1,0.1\n")
    (tmp_path / "reptile" / "episodes.csv").unlink()
    page = table(tmp_path, "layout=sinusoid", "published=false")
    assert [row["method"].split(" ")[0] for row in texts(page)] == ["fomaml", "reptile", "leo"]
    for line, words in zip(
        page.complaints,
        ["test.mse -0.", "has 1 lines of 4 values in place of 40 of 4", "cannot be read as scores of episodes: "],
        strict=True,
    ):
        assert words in line and "\n" not in line


def test_scores_are_those_of_the_steps_that_a_record_was_reduced_to(tmp_path: Path) -> None:
    (tmp_path / "episodes.csv").write_text("episode,mse_1,mse_5\n0,100.0,0.1\n1,300.0,0.3\n")
    reduced = {"folder": str(tmp_path), "test": {"mse": 0.2, "episodes": 2}, "scores": "mse_5"}
    assert scores(reduced).tolist() == [0.1, 0.3]


def test_steps_that_are_no_whole_numbers_are_refused(tmp_path: Path) -> None:
    record = regression(tmp_path)
    record["protocol"]["adaptation_steps"] = ["few"]
    record["test"] |= {"mse": {"few": 0.1}, "ci95": {"few": 0.1}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(FewshotError, match="of the same numbers of steps"):
        read_record(tmp_path / "record.json")
