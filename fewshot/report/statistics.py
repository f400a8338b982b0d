"""The interval of a score; which method is best on the same test episodes, and which cannot be told from it.

Any two methods of a column are compared episode by episode with a paired t test. All pairs of all columns are one
family of comparisons, corrected with Holm's method (1979), because the best method is chosen by the same scores. So at
most 5 % of tables call two equal methods different, as far as the t test holds. A correction for the comparisons with
the best alone is too weak: it did so in 10 % of the tables of seven equal methods, and in 15 % of those of twelve.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from fewshot.core.errors import FewshotError, one_line
from fewshot.report.records import Record, metric_of

LEVEL = 0.05
ROUNDING = 1e-5  # episodes.csv has six digits
NOISE = 1e-9  # differences of scores that only the last digits of float64 make


def ci95(scores: np.ndarray) -> float:
    """Half width of the 95 % confidence interval of the mean over episodes (Student's t); nan for one score."""
    from scipy.special import stdtrit  # the quantile of scipy.stats.t, whose import takes much longer

    if len(scores) < 2:
        return float("nan")
    return float(stdtrit(len(scores) - 1, 0.975) * scores.std(ddof=1) / np.sqrt(len(scores)))


def read_scores(record: Record) -> np.ndarray:
    """The score of each test episode [episodes], from `episodes.csv` beside a record of one number of steps.

    Raises:
        FewshotError: the file is missing, or its scores are not those of the record.
    """
    path, test, metric = Path(record["folder"]) / "episodes.csv", record["test"], metric_of(record)
    column, mean, episodes = record.get("scores", metric), test[metric], test["episodes"]
    try:
        with path.open(encoding="utf-8") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about an empty file, which the shape below tells
            columns = file.readline().strip().split(",")
            table = np.loadtxt(file, delimiter=",", ndmin=2, comments=None)
    except (OSError, ValueError) as error:
        raise FewshotError(f"{path} cannot be read as scores of episodes: {one_line(error)}") from error
    if columns[0] != "episode" or columns.count(column) != 1:
        raise FewshotError(f"{path} has columns {','.join(columns)!r}, not episode and {column}: test the run again")
    if table.shape != (episodes, len(columns)) or not np.array_equal(table[:, 0], np.arange(episodes)):
        raise FewshotError(f"{path} does not have a line for each episode from 0 to {episodes - 1}: test the run again")
    scores = table[:, columns.index(column)]
    # A score that is not finite makes the mean NaN or inf.
    if not abs(scores.mean() - mean) <= ROUNDING * max(0.1, mean):
        raise FewshotError(f"{path} has mean {scores.mean():.6g}, its record {mean:.6g}: test the run again")
    return scores


def paired_p(one: np.ndarray, other: np.ndarray) -> float:
    """The two-sided p value of the paired t test on scores [episodes] of at least two episodes."""
    difference = one - other
    if np.ptp(difference) < NOISE:  # without spread the statistic is 0/0 for equal scores, else infinite
        return float(abs(difference[0]) < NOISE)
    from scipy import stats

    return float(stats.ttest_rel(one, other).pvalue)  # type: ignore[attr-defined]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values: of m, the i-th smallest times m - i + 1, at least that of a smaller one.

    Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    values = np.asarray(p_values, dtype=float)
    order, adjusted = np.argsort(values), np.empty(len(values))
    factors = np.arange(len(values), 0, -1)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * values[order]))
    return adjusted.tolist()


def compare_with_best(columns: Sequence[Sequence[np.ndarray]], lower_is_better: bool = False) -> list[list[float]]:
    """The corrected p value of each method against the best mean of its column; 1 for the best itself.

    A pair of methods whose scores are the same two arrays in several columns is one comparison.

    Args:
        columns: for each column of a table the scores [episodes] of its methods, on the same episodes in one order.
    """

    def key(one: np.ndarray, other: np.ndarray) -> tuple[int, ...]:
        return tuple(sorted((id(one), id(other))))

    pairs = {key(*pair): pair for methods in columns for pair in combinations(methods, 2)}
    corrected = dict(zip(pairs, holm([paired_p(*pair) for pair in pairs.values()]), strict=True))
    p_values = []
    for methods in columns:
        means = [float(scores.mean()) for scores in methods]
        best = methods[int(np.argmin(means) if lower_is_better else np.argmax(means))]
        p_values.append([1.0 if scores is best else corrected[key(scores, best)] for scores in methods])
    return p_values
