"""Which of several methods on the same test episodes is best, and which cannot be told from it.

Any two methods of a column are compared episode by episode (paired t test), and the comparisons of all pairs of all
columns are corrected together (Holm 1979); a table then shows those with the best of each column. All pairs count,
because which method is best is read off the same scores: so at most 5 % of tables call any two methods different that
are not, as far as the t test holds. Corrected for the comparisons with the best alone, 10 % of the tables of seven
equal methods did, and 15 % of those of twelve.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy import stats

from fewshot.core.errors import FewshotError, one_line
from fewshot.report.records import Record, metric_of

LEVEL = 0.05
ROUNDING, NOTHING = 1e-5, 1e-9  # episodes.csv has six digits; the last of a float64 are noise


def scores(record: Record) -> np.ndarray:
    """The score of each test episode [episodes], from `episodes.csv` beside a record of one number of steps.

    Raises:
        FewshotError: there is none, or it is not of this record.
    """
    path, test, metric = Path(record["folder"]) / "episodes.csv", record["test"], metric_of(record)
    heading, mean, episodes = record.get("scores", metric), test[metric], test["episodes"]
    try:
        with path.open(encoding="utf-8") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file, whose shape says as much below
            headings = file.readline().strip().split(",")
            table = np.loadtxt(file, delimiter=",", ndmin=2, comments=None)
    except (OSError, ValueError) as error:
        raise FewshotError(f"{path} cannot be read as scores of episodes: {one_line(error)}") from error
    if headings[0] != "episode" or headings.count(heading) != 1:
        found = ",".join(headings)
        raise FewshotError(f"{path} has columns {found!r}, not episode and {heading}: test the run again")
    if table.shape != (episodes, len(headings)):
        lines = f"{len(table)} lines of {table.shape[1]} values"
        raise FewshotError(f"{path} has {lines} in place of {episodes} of {len(headings)}: test the run again")
    if not np.array_equal(table[:, 0], np.arange(episodes)):
        raise FewshotError(f"{path} does not count its episodes from 0 to {episodes - 1}: test the run again")
    own = table[:, headings.index(heading)]
    if not np.isfinite(own).all():
        raise FewshotError(f"{path} has a score that is not a number: test the run again")
    if abs(own.mean() - mean) > ROUNDING * max(1, mean):
        raise FewshotError(f"{path} has mean {own.mean():.6f}, its record {mean:.6f}: test the run again")
    return own


def paired_p(one: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p value of the paired t test; NaN where a single episode allows none."""
    difference = one - other
    if len(difference) < 2:
        return float("nan")
    if np.ptp(difference) < NOTHING:  # no spread: the statistic is 0/0 for equal scores, else infinite
        return float(abs(difference[0]) < NOTHING)
    return float(stats.ttest_rel(one, other).pvalue)  # type: ignore[attr-defined]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values: the i-th smallest of m times m - i + 1, never below a smaller one's.

    Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure.
    """
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = floor
    return adjusted


def against_best(columns: Sequence[Sequence[np.ndarray]], lower_is_better: bool = False) -> list[list[float]]:
    """The p of every method's comparison with the best of its column by mean; 1 for the best itself.

    They are corrected for the comparisons of all pairs of methods of all columns.

    Args:
        columns: for each column of a table the scores of its methods [episodes], on the same episodes in one order.
    """
    pairs = [(place, *pair) for place, methods in enumerate(columns) for pair in combinations(range(len(methods)), 2)]
    raw = [paired_p(columns[place][one], columns[place][other]) for place, one, other in pairs]
    corrected = dict(zip(pairs, holm(raw), strict=True))
    found = []
    for place, methods in enumerate(columns):
        means = [float(each.mean()) for each in methods]
        best = int(np.argmin(means) if lower_is_better else np.argmax(means))
        found.append([corrected.get((place, min(each, best), max(each, best)), 1.0) for each in range(len(methods))])
    return found
