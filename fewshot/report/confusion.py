"""Which classes are taken for which: the table of a classifier's predictions, and that of a whole test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from fewshot.core.errors import FewshotError, one_line
from fewshot.report.records import PREDICTIONS, Record, metric_of
from fewshot.report.statistics import ROUNDING

MATRIX = 20  # classes at most of a confusion matrix; of more, the most frequent confusions are listed
NAMED = 7  # classes at most whose names are headings of a confusion matrix; of more, their numbers are
CONFUSIONS = 15
GREY = ("0", "0.0", "–")  # texts of a matrix that say that nothing is there
STYLE = """
.matrix th, .matrix td { min-width: 1.5rem; max-width: 8rem; white-space: normal; overflow-wrap: break-word }
.matrix td, .matrix th { text-align: right } .matrix td:first-child, .matrix th:first-child { text-align: left }
.pairs td:nth-child(n + 3), .pairs th:nth-child(n + 3) { text-align: right }
.matrix .hit { background: #E3F1E5; font-weight: 600 } .matrix .none { color: #aaa }
.scroll { width: fit-content; max-width: 100% }
"""

TextTable = tuple[list[str], list[list[str]]]  # headings and rows


@dataclass(frozen=True)
class TestConfusion:
    """How often the queries of each class were taken for each class, over the episodes of a test.

    Attributes:
        classes: names of the C classes that occur, sorted.
        counts: [C, C] queries of a true class (row) with a predicted class (column).
        met: [C, C] queries of a true class (row) in the episodes that held the other class (column) too.
    """

    classes: list[str]
    counts: np.ndarray
    met: np.ndarray


def read_confusion(record: Record) -> TestConfusion:
    """The confusions of a test of one number of steps, from `predictions.csv` beside its record.

    Raises:
        FewshotError: the file cannot be read, or its predictions are not those of the record.
    """
    import pandas as pd

    path, protocol = Path(record["folder"]) / PREDICTIONS, record["protocol"]
    column = record.get("scores", metric_of(record)).replace("accuracy", "predicted", 1)
    remedy = "test the run again, with predictions=true force=true"
    try:
        # A class may have the name NA.
        table = pd.read_csv(path, usecols=["episode", "true", column], dtype=str, keep_default_na=False)
        episodes = table["episode"].astype(int).to_numpy()
    except (OSError, ValueError) as error:
        raise FewshotError(f"{path} cannot be read as predictions: {one_line(error)}; {remedy}") from error
    whole = len(table) == protocol["episodes"] * protocol["way"] * protocol["query"]
    texts = table[["true", column]].to_numpy(str)
    right = float((texts[:, 0] == texts[:, 1]).mean()) if whole else float("nan")
    if not abs(right - record["test"]["accuracy"]) <= ROUNDING or not 0 <= episodes.min() <= episodes.max() < len(
        table
    ):
        raise FewshotError(f"{path} does not hold the predictions of its record: {remedy}")
    classes, codes = np.unique(texts, return_inverse=True)
    true, label = codes.reshape(len(table), 2).T
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (true, label), 1)
    in_episode = np.zeros((episodes.max() + 1, len(classes)))
    np.add.at(in_episode, (episodes, true), 1)
    met = in_episode.T @ (in_episode > 0)
    return TestConfusion(classes.tolist(), counts, met.astype(int))


def tabulate_test(confusion: TestConfusion) -> TextTable:
    """The shares of confusions in per cent; of more than MATRIX classes the most frequent confusions."""
    classes, counts, met = confusion.classes, confusion.counts, confusion.met
    shares = [
        [f"{100 * count / of:.1f}" if of else "–" for count, of in zip(*row, strict=True)]
        for row in zip(counts.tolist(), met.tolist(), strict=True)
    ]
    if len(classes) <= MATRIX:
        return matrix_rows(classes, shares)
    return ["true", "predicted", "images", "of", "per cent"], [
        [classes[true], classes[label], f"{counts[true, label]:,}", f"{met[true, label]:,}", shares[true][label]]
        for true, label in most_frequent(counts)
    ]


def matrix_rows(classes: Sequence[str], cells: Sequence[Sequence[str]]) -> TextTable:
    """A row and a column for each class; of many classes the columns have numbers."""
    short, names = list(classes), list(classes)
    if len(classes) > NAMED:
        short = [str(number) for number in range(1, len(classes) + 1)]
        names = [f"{number} {name}" for number, name in zip(short, classes, strict=True)]
    return ["true \\ predicted", *short], [[name, *row] for name, row in zip(names, cells, strict=True)]


def most_frequent(counts: np.ndarray) -> list[tuple[int, int]]:
    """The places (true, predicted) of the CONFUSIONS largest counts [C, C] of wrong predictions, none of 0."""
    wrong = counts - np.diag(counts.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    return [divmod(int(place), len(counts)) for place in order if wrong.flat[place]]


def html_confusions(headings: Sequence[str], rows: Sequence[Sequence[str]], matrix: bool) -> str:
    """The table in a box that scrolls; of a matrix right ones stand out and zeros recede. The page needs STYLE."""
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = ""
    for number, row in enumerate(rows):
        kinds = ["none" if matrix and place and text in GREY else "" for place, text in enumerate(row)]
        if matrix:
            kinds[number + 1] = "hit"
        cells = [f'<td class="{kind}">{escape(text)}</td>' for kind, text in zip(kinds, row, strict=True)]
        body += f"<tr>{''.join(cells)}</tr>"
    kind = "matrix" if matrix else "pairs"
    return f'<div class="scroll" tabindex="0"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'


def html_test(confusion: TestConfusion) -> str:
    """The confusions of a test, and how to read them."""
    whole = len(confusion.classes) <= MATRIX
    shown = (
        "A row holds what was predicted for the queries of a class, in per cent."
        if whole
        else f"The {CONFUSIONS} most frequent confusions of {len(confusion.classes):,} classes."
    )
    note = (
        f"{shown} A query can be taken only for a class of its own episode. So each share is of the true class's "
        "queries in episodes that hold both classes"
        + (", a row does not add up to 100, and – stands for classes that never met." if whole else ".")
    )
    return f"<p>{note}</p>{html_confusions(*tabulate_test(confusion), whole)}"
