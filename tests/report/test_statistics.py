"""The interval, the paired test and Holm's correction, against scipy and against numbers worked out by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.report.statistics import LEVEL, ci95, compare_with_best, holm, paired_p, read_scores


@pytest.mark.parametrize("count", [2, 5, 600])
def test_the_interval_is_students(count: int) -> None:
    scores = np.random.RandomState(count).rand(count)
    low, high = stats.t.interval(0.95, count - 1, loc=scores.mean(), scale=stats.sem(scores))
    assert ci95(scores) == pytest.approx((high - low) / 2, rel=1e-12)


def test_one_score_has_no_interval_and_equal_scores_one_of_no_width() -> None:
    assert np.isnan(ci95(np.array([0.5])))
    assert ci95(np.full(10, 0.25)) == 0


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 is 0.02, 0.03, 0.06, 0.04; the last may not fall below 0.06.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.04], [0.04]),
        ([0.7, 0.6], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm_as_worked_out_by_hand(raw: list[float], adjusted: list[float]) -> None:
    assert holm(raw) == pytest.approx(adjusted)


def test_the_paired_test_is_scipys_and_that_of_its_definition() -> None:
    random = np.random.default_rng(0)
    one = random.normal(0.6, 0.1, 50)
    other = one + random.normal(0.01, 0.05, 50)
    t = (one - other).mean() / stats.sem(one - other)  # with 49 degrees of freedom
    assert paired_p(one, other) == pytest.approx(stats.ttest_rel(one, other).pvalue, rel=1e-12)
    assert paired_p(one, other) == pytest.approx(2 * stats.t.sf(abs(t), 49), rel=1e-9)


def test_pairs_tell_apart_what_their_intervals_do_not() -> None:
    episodes = np.linspace(0.2, 1.0, 100)
    better = episodes + np.tile([0.01, 0.03], 50)
    assert stats.ttest_ind(better, episodes).pvalue > 0.5
    assert paired_p(better, episodes) < 1e-10


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (0.25, 0.0), (0.1, 0.0)])
def test_differences_without_spread_have_an_answer_too(shift: float, p: float) -> None:
    episodes = np.array([0.25, 0.5, 0.7])  # with 0.1 the differences are equal but for the last digit of a float64
    assert paired_p(episodes + shift, episodes) == p


@pytest.mark.parametrize("lower", [False, True])
def test_all_are_compared_with_the_best_and_corrected_for_all_pairs_of_all_columns(lower: bool) -> None:
    random = np.random.default_rng(0)
    one, two, three = (random.normal(mean, 0.1, 200) for mean in (0.5, 0.52, 0.54))
    other = [random.normal(0.5, 0.1, 200), random.normal(0.53, 0.1, 200)]
    pairs = [(one, two), (one, three), (two, three), (other[0], other[1])]
    first, second, third, fourth = holm([float(stats.ttest_rel(*pair).pvalue) for pair in pairs])
    found = compare_with_best([[one, two, three], other], lower_is_better=lower)
    assert found[0] == pytest.approx([1, first, second] if lower else [second, third, 1])
    assert found[1] == pytest.approx([1, fourth] if lower else [fourth, 1])


def test_of_equal_methods_at_most_5_percent_of_tables_tell_any_from_the_best() -> None:
    random = np.random.default_rng(0)
    told = sum(min(compare_with_best([list(random.normal(size=(5, 100)))])[0]) <= LEVEL for _ in range(60))
    assert told <= 60 * LEVEL + 3 * (60 * LEVEL * (1 - LEVEL)) ** 0.5  # uncorrected, it is about a quarter


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """A record of two episodes with mean 0.5."""
    return {"folder": str(tmp_path), "test": {"accuracy": 0.5, "episodes": 2}}


def test_scores_are_read_in_the_order_of_the_episodes(tmp_path: Path, record: dict[str, Any]) -> None:
    (tmp_path / "episodes.csv").write_text("episode,accuracy\n0,0.400000\n1,0.600000\n")
    assert read_scores(record).tolist() == [0.4, 0.6]


def test_scores_are_those_of_the_steps_that_a_record_was_split_to(tmp_path: Path) -> None:
    (tmp_path / "episodes.csv").write_text("episode,mse_1,mse_5\n0,100.0,0.1\n1,300.0,0.3\n")
    record = {"folder": str(tmp_path), "test": {"mse": 0.2, "episodes": 2}, "scores": "mse_5"}
    assert read_scores(record).tolist() == [0.1, 0.3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read as scores of episodes"),
        ("", "has columns '', not episode and accuracy"),
        ("0,0.4\n1,0.6\n", "has columns '0,0.4', not episode and accuracy"),
        ("episode,mse\n0,0.4\n1,0.6\n", "has columns 'episode,mse', not episode and accuracy"),
        ("episode,accuracy\n", "does not have a line for each episode from 0 to 1"),
        ("episode,accuracy\n0,0.5\n", "does not have a line for each"),
        ("episode,accuracy\n0\n1\n", "does not have a line for each"),
        ("episode,accuracy\n1,0.5\n0,0.5\n", "does not have a line for each"),
        ("episode,accuracy\n0,0.5\n1,nan\n", "has mean nan, its record 0.5:"),
        ("episode,accuracy\n0,0.5\n1,0.9\n", "has mean 0.7, its record 0.5:"),
        ("episode,accuracy\n0,0.5\n1,high\n", "cannot be read as scores of episodes"),
        ("episode,accuracy\n0,0.5\n1\n", "cannot be read as scores of episodes"),
    ],
)
def test_scores_of_something_else_are_refused_in_one_line(
    tmp_path: Path, record: dict[str, Any], text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "episodes.csv").write_text(text)
    with pytest.raises(FewshotError) as error:
        read_scores(record)
    assert str(tmp_path / "episodes.csv") in str(error.value) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_scores_of_an_error_of_another_size_are_refused_though_both_are_small(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    del record["test"]["accuracy"]
    record["test"]["mse"] = 8e-6
    (tmp_path / "episodes.csv").write_text("episode,mse\n0,4e-6\n1,4e-6\n")
    with pytest.raises(FewshotError, match="has mean 4e-06, its record 8e-06"):
        read_scores(record)
