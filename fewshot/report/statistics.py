"""Which of several methods on the same test episodes is best, and which cannot be told from it.

Two methods are compared episode by episode (paired t test); as many comparisons as a column has methods less one are
corrected together (Holm 1979), so that a column names a wrong winner in at most 5 % of cases.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from fewshot.errors import FewshotError
from fewshot.report.record import Record

LEVEL = 0.05
ROUNDING = 1e-5  # episodes.csv has six digits


def scores(record: Record) -> np.ndarray:
    """The score of each test episode, from `episodes.csv` beside the record.

    Raises:
        FewshotError: there is none, or it is not of this record.
    """
    path, test = Path(record["folder"]) / "episodes.csv", record["test"]
    mean, episodes = test["accuracy"], test["episodes"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty file, whose shape says as much below
            table = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2, comments=None)
    except (OSError, ValueError) as error:
        raise FewshotError(f"{path} cannot be read as `episode,accuracy` lines: {_first_line(error)}") from error
    if table.shape != (episodes, 2):
        lines = f"{len(table)} lines of {table.shape[1]} values"
        raise FewshotError(f"{path} has {lines} in place of {episodes} of 2: test the run again")
    if not np.array_equal(table[:, 0], np.arange(episodes)):
        raise FewshotError(f"{path} does not count its episodes from 0 to {episodes - 1}: test the run again")
    if not np.isfinite(table).all():
        raise FewshotError(f"{path} has a score that is not a number: test the run again")
    if abs(table[:, 1].mean() - mean) > ROUNDING:
        raise FewshotError(f"{path} has mean {table[:, 1].mean():.6f}, its record {mean:.6f}: test the run again")
    return table[:, 1]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def paired_p(one: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p value of the paired t test; NaN where a single episode allows none."""
    difference = one - other
    if len(difference) < 2:
        return float("nan")
    if np.ptp(difference) == 0:  # no spread: the statistic is 0/0 for equal scores, else infinite
        return float(difference[0] == 0)
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


def against_best(methods: Sequence[np.ndarray], lower_is_better: bool = False) -> list[float]:
    """Holm-adjusted p of every method's comparison with the best by mean; the best itself has 1.

    Args:
        methods: the scores of each on the same episodes in the same order.
    """
    means = [float(each.mean()) for each in methods]
    best = int(np.argmin(means) if lower_is_better else np.argmax(means))
    others = [place for place in range(len(methods)) if place != best]
    adjusted = dict(zip(others, holm([paired_p(methods[best], methods[place]) for place in others]), strict=True))
    return [adjusted.get(place, 1.0) for place in range(len(methods))]
