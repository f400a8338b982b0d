"""What a test predicts for each query: `predictions=true` of tools/evaluate.py leaves it as `predictions.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fewshot.core.distributed import is_main, on_rank_zero
from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.episodes import Tasks
from fewshot.report.gather import split_by_steps
from fewshot.report.records import PREDICTIONS, read_record
from fewshot.report.statistics import ROUNDING, read_scores
from fewshot.tasks.sampler import Sampler

AT_ONCE = 1000  # episodes that are drawn at once
MOST_QUERIES = 5_000_000  # of one table


def check_size(tasks: Tasks, episodes: int, key: str) -> None:
    """Raises FewshotError where a table of all queries would be too large; `key` is that of the protocol."""
    if (queries := episodes * tasks.way * tasks.query) > MOST_QUERIES:
        raise FewshotError(
            f"predictions=true: {key} has {queries:,} queries, and a table holds {MOST_QUERIES:,}; lower "
            f"{key}.episodes or {key}.query"
        )


def score_labels(tasks: Sampler, labels: np.ndarray) -> np.ndarray:
    """The accuracy of each episode, [episodes] float64, from the labels predicted for its queries, [episodes, N*Q].

    It is NaN where a label is -1, as of a logit that is NaN.
    """
    accuracy = (labels == np.repeat(np.arange(tasks.way), tasks.query)).mean(1)
    return np.where((labels < 0).any(1), np.nan, accuracy)


@on_rank_zero
def check_same_scores(folder: Path, scores: Mapping[str, np.ndarray]) -> None:
    """Check that a test that is repeated for its predictions has the scores that its record was made of.

    Args:
        folder: of the record.
        scores: [episodes] by column of `episodes.csv`.

    Raises:
        FewshotError: it has others, as another device or version can give, or the kept scores cannot be read.
    """
    for record in split_by_steps(read_record(folder / "record.json")):
        kept, column = read_scores(record), record["scores"]
        different = int((abs(kept - scores[column]) > ROUNDING).sum()) if column in scores else len(kept)
        if different:
            raise FewshotError(
                f"{folder}: {different} of {len(kept)} episodes have other scores than in its record, as another "
                "device or version can give; force=true tests again and replaces the record"
            )


def write_predictions(folder: Path, tasks: Sampler, labels: Mapping[str, np.ndarray]) -> None:
    """Write `predictions.csv`: a row per query with its episode, its image, its class and the class predicted for it.

    Args:
        folder: of the test's record.
        labels: predicted for the queries of each episode, [episodes, N*Q], by the name of the column.
    """
    if not is_main():
        return
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["episode", "query", "image", "true", *labels])
    images, queries = np.array(tasks.bank.image_names(), dtype=object), tasks.way * tasks.query
    episodes = len(next(iter(labels.values())))
    for first in range(0, episodes, AT_ONCE):
        count = min(AT_ONCE, episodes - first)
        draw = tasks.draw(first, count)
        rows = draw.rows[:, :, tasks.shot :].flatten().cpu().numpy()
        names = np.array(tasks.class_names(draw), dtype=object)  # [count, N]
        predicted = [np.take_along_axis(names, each[first : first + count], 1).flatten() for each in labels.values()]
        numbers = np.arange(count * queries)
        truth = np.repeat(names, tasks.query)
        writer.writerows(
            zip(first + numbers // queries, numbers % queries, images[rows], truth, *predicted, strict=True)
        )
    write_atomically(folder / PREDICTIONS, file.getvalue().encode())
