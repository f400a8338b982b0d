"""Published figures, `results/published.csv`: what others report, each with its source and with what to know of it.

A row holds one figure as printed: `method`, `dataset` and `backbone` by their names here, `label` what the source calls
the method, `value` and `interval` in per cent (accuracy) or plain (mse), `interval_kind` what the interval is. What
the source does not say is `unknown`; a caveat that changes how the figure is to be read is a word of CAVEATS.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from fewshot.core.errors import FewshotError
from fewshot.report.records import METRICS

PUBLISHED = Path(__file__).resolve().parent.parent.parent / "results" / "published.csv"
UNKNOWN = "unknown"
FIELDS = (
    "method", "label", "dataset", "backbone", "input_size", "way", "shot", "query", "setting", "adaptation_steps",
    "metric", "value", "interval", "interval_kind", "episodes", "source", "version", "caveats",
)  # fmt: skip
REGIMES = ("inductive", "transductive", UNKNOWN)
INTERVALS = ("95 % over tasks", UNKNOWN, "none")

CAVEATS = {
    "copies_disagree": "two second-hand copies of this figure disagree: both stand here",
    "ensemble": "the released code averages the logits of the five best epochs at test",
    "evaluation_size_unstated": "number of test tasks and settings of this figure are not stated",
    "few_test_tasks": "the program tests on 100 sampled tasks unless told otherwise: a noisy figure",
    "first_order_called_maml": "called MAML there; the code takes first-order gradients, so it stands here as FOMAML",
    "first_order_called_reptile": (
        "called Reptile there; the code applies the query gradient at the adapted weights, so it stands here as FOMAML"
    ),
    "inner_lr_disputed": "inner learning rate 0.01 in the paper, 0.001 by default in the released program",
    "interval_called_std": "the column is headed std there; it is the half width 1.96 sd / sqrt(episodes)",
    "interval_implausible": "an interval of this size is not plausible for so few tasks; given as printed",
    "interval_unexplained": "what the ± means is not stated",
    "multi_view": "features averaged over several crops and mirrors of an image: not those of the other LEO rows",
    "protocol_from_code": "queries, test tasks and steps as in the released code, or as the paper's appendix has them",
    "rotated_tests": "test characters are rotated, which makes tasks 1 to 2 points easier",
    "second_hand": "taken from later papers and summaries that cite it, not from the source itself",
    "second_hand_one_copy": "taken from a single second-hand copy, not from the source itself",
    "stopped_early": "58,519 of the 70,000 iterations of the published command; 600 test tasks",
    "trained_10_shot": "trained with 10 shots and one update, whatever the shots and updates of the test",
    "trained_5_shot": "meta-trained 5-way 5-shot with 2 inner steps; only the test is 1-shot",
    "trained_on_test_split": "the program trains on the test split: contaminated, not a figure to compare with",
    "watched_test_split": "the test split was watched during training, 100 episodes at a time",
}

TRAINING_SHOT = {"trained_5_shot": 5, "trained_10_shot": 10}  # by caveat
# Of what functions the figures of a dataset are, as records of runs say it: errors on others are no comparison.
VIEWS = {"sinusoid": "sine: amplitude 0.1 to 5, phase 0 to 3.142; x -5 to 5; noise 0"}


def published(path: Path = PUBLISHED) -> list[dict[str, Any]]:
    """Every published figure, numbers as numbers and once more as `printed`, `caveats` as a list of words.

    Raises:
        FewshotError: a row is not of the form that the module's text describes.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            fields, rows = tuple(reader.fieldnames or ()), list(reader)
    except (OSError, ValueError, csv.Error) as error:
        raise FewshotError(f"{path} cannot be read as CSV: {error}") from error
    if fields != FIELDS:
        raise FewshotError(f"{path}: the first line has to be {','.join(FIELDS)}")
    return [_figure(row, f"{path} line {line}") for line, row in enumerate(rows, start=2)]


def _figure(row: dict[str, Any], where: str) -> dict[str, Any]:
    if None in row or None in row.values():
        raise FewshotError(f"{where}: it has to have {len(FIELDS)} fields")
    figure: dict[str, Any] = dict(row)
    for field, allowed in (("metric", METRICS), ("setting", REGIMES), ("interval_kind", INTERVALS)):
        if row[field] not in allowed:
            raise FewshotError(f"{where}: {field} {row[field]!r} is none of {', '.join(allowed)}")
    for field in ("method", "label", "dataset", "backbone", "source", "version", "adaptation_steps", "input_size"):
        if not row[field].strip():
            raise FewshotError(f"{where}: {field} is empty; what is not known is {UNKNOWN}")
    for field in ("shot", "query", "episodes", "way", "adaptation_steps", "input_size"):
        if row[field].isdecimal() and int(row[field]) > 0:
            figure[field] = int(row[field])
        elif field == "shot" or (field == "way" and row["metric"] == "accuracy"):
            raise FewshotError(f"{where}: {field} {row[field]!r} is not a whole number above 0")
        elif field in ("query", "episodes", "input_size") and row[field] != UNKNOWN:
            raise FewshotError(f"{where}: {field} {row[field]!r} is neither a whole number above 0 nor {UNKNOWN}")
    if row["metric"] == "mse" and row["way"]:
        raise FewshotError(f"{where}: a regression has no way; leave it empty")
    figure["printed"] = f"{row['value']} ± {row['interval']}" if row["interval"] else row["value"]
    figure["value"] = _number(row["value"], 100 if row["metric"] == "accuracy" else math.inf, f"{where}: value")
    figure["interval"] = None if row["interval"] == "" else _number(row["interval"], 100, f"{where}: interval")
    if (figure["interval"] is None) != (row["interval_kind"] == "none"):
        raise FewshotError(f"{where}: interval_kind is none where there is no interval, and only there")
    figure["caveats"] = row["caveats"].split(";") if row["caveats"] else []
    for caveat in figure["caveats"]:
        if caveat not in CAVEATS:
            raise FewshotError(f"{where}: no footnote for the caveat {caveat!r}; there are {', '.join(CAVEATS)}")
    return figure


def _number(text: str, most: float, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= most:
        raise FewshotError(f"{where} {text!r} is not a number above 0 and up to {most}")
    return value
