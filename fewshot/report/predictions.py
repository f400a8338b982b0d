"""Predictions of single images: as CSV, as tables for the terminal, and as a page."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from fewshot.report import confusion
from fewshot.report.confusion import MATRIX, html_confusions, matrix_rows, most_frequent
from fewshot.report.formats import html_document

STYLE = """
header p, small { color: #555 } .score { font-size: 1.3rem } h2 { margin-top: 2.2rem }
.support { display: flex; flex-wrap: wrap; gap: .8rem 2rem } .support b, figcaption { overflow-wrap: anywhere }
.images { display: flex; flex-wrap: wrap; gap: .3rem } .images img { width: 4rem; height: 4rem }
img { object-fit: contain; background: #f3f3f3; border: 1px solid #e4e4e4; box-sizing: border-box }
.queries { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .8rem }
figure { margin: 0; min-width: 0 } .queries img { width: 100%; aspect-ratio: 1 } figcaption { line-height: 1.3 }
.bar { display: block; background: #e4e4e4; height: .5rem } .bar i { display: block; background: #0072B2; height: 100% }
.right b { color: #1B7837 } .right .bar i { background: #1B7837 }
.wrong b { color: #C51B2B } .wrong .bar i { background: #C51B2B }
"""


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of M images, and what they are where that is known.

    Attributes:
        classes: names of the N classes.
        files: names of the images.
        probabilities: [M, N] of each class; NaN in the row of an image that cannot be read.
        true: [M] place of the true class in `classes`; -1 where it is not known.
        counted: [M] whether the image counts for the accuracy.
    """

    classes: Sequence[str]
    files: Sequence[str]
    probabilities: np.ndarray
    true: np.ndarray
    counted: np.ndarray

    @property
    def read(self) -> np.ndarray:
        """[M] whether the image could be read."""
        return np.isfinite(self.probabilities[:, 0])

    @property
    def predicted(self) -> np.ndarray:
        """[M] place of the most probable class; -1 for an image that cannot be read."""
        return np.where(self.read, np.nan_to_num(self.probabilities).argmax(1), -1)

    @property
    def confusion(self) -> np.ndarray:
        """[N, N] number of counted images of each true class (row) with each prediction (column)."""
        matrix = np.zeros((len(self.classes), len(self.classes)), int)
        np.add.at(matrix, (self.true[self.counted], self.predicted[self.counted]), 1)
        return matrix

    @property
    def accuracy(self) -> str:
        """Such as `76.00 % (152 of 200 right, 95 % interval 69.6 to 81.4 %)`; empty where no true class is known.

        The interval is Wilson's, of images that were drawn independently: photos of one individual are alike.
        """
        right, count = int(self.confusion.trace()), int(self.counted.sum())
        if not count:
            return ""
        from scipy.stats import binomtest

        low, high = binomtest(right, count).proportion_ci(0.95, method="wilson")
        interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"
        return f"{100 * right / count:.2f} % ({right:,} of {count:,} right, {interval})"


def render_predictions_csv(predictions: Predictions) -> str:
    """A row per image: file, predicted class, the true class where one is known, and the probability of each class.

    The cells of an image that cannot be read are empty.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    labelled, classes = bool((predictions.true >= 0).any()), predictions.classes
    writer.writerow(["file", "predicted", *["true"] * labelled, *(f"probability {name}" for name in classes)])
    rows = zip(predictions.files, predictions.predicted, predictions.true, predictions.probabilities, strict=True)
    for name, label, true, values in rows:
        row = [name, classes[label] if label >= 0 else ""]
        if labelled:
            row.append(classes[true] if true >= 0 else "")
        writer.writerow([*row, *(f"{value:.6g}" if np.isfinite(value) else "" for value in values)])
    return file.getvalue()


def count_table(predictions: Predictions, support: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    """Headings and a row for each class: its support images, its predictions and, where known, what is right.

    Args:
        support: number of support images of each class.
    """
    headings = ["class", "support images", "predicted"]
    predicted = np.bincount(predictions.predicted[predictions.read], minlength=len(support))
    columns = [list(predictions.classes), [f"{n:,}" for n in support], [f"{n:,}" for n in predicted]]
    if predictions.counted.any():
        matrix = predictions.confusion
        headings += ["true", "right"]
        columns += [[f"{n:,}" for n in matrix.sum(1)], [f"{n:,}" for n in matrix.diagonal()]]
    return headings, [list(row) for row in zip(*columns, strict=True)]


def confusion_table(predictions: Predictions) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the confusion matrix; of more than MATRIX classes the most frequent confusions."""
    counts, classes = predictions.confusion, predictions.classes
    if len(classes) <= MATRIX:
        return matrix_rows(classes, [list(map(str, row)) for row in counts.tolist()])
    return ["true", "predicted", "images"], [
        [classes[true], classes[label], str(counts[true, label])] for true, label in most_frequent(counts)
    ]


def render_page(
    predictions: Predictions,
    title: str,
    about: Sequence[str],
    notes: Sequence[str],
    support: Mapping[str, Sequence[bytes]],
    thumbnails: Mapping[int, bytes],
) -> str:
    """One HTML file without scripts: the support set, and the queries with their labels, the most probable first.

    Args:
        about: lines below the title.
        notes: what was left out or changed.
        support: small images of each class, PNG or JPEG.
        thumbnails: small images of the queries to show, by their number.
    """
    parts = [f"<header><h1>{escape(title)}</h1>", *(f"<p>{escape(line)}</p>" for line in about), "</header>"]
    if predictions.accuracy:
        parts.append(f'<p class="score">Accuracy <b>{escape(predictions.accuracy)}</b></p>')
    if notes:
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>")
    parts.append('<h2>Support set</h2><div class="support">')
    for name, images in support.items():
        shown = "".join(f'<img alt="" src="{_data_uri(image)}">' for image in images)
        parts.append(f'<div><b>{escape(name)}</b><div class="images">{shown}</div></div>')
    parts.append("</div>")
    if predictions.accuracy:
        whole = len(predictions.classes) <= MATRIX
        parts.append(f"<h2>{'Confusion matrix' if whole else 'Most frequent confusions'}</h2>")
        parts.append(html_confusions(*confusion_table(predictions), whole))
    confidence = np.nan_to_num(predictions.probabilities).max(1)
    order = sorted(thumbnails, key=lambda number: -confidence[number])
    heading, count = "Queries, the most probable first", int(predictions.read.sum())
    if len(order) < count:
        heading += f": the first and the last {len(order) // 2:,} of {count:,}"
    parts.append(f'<h2>{heading}</h2><div class="queries">')
    parts += [_query(predictions, number, thumbnails[number]) for number in order]
    parts.append("</div>")
    return html_document(title, "\n".join(parts), STYLE + confusion.STYLE)


def _query(predictions: Predictions, number: int, thumbnail: bytes) -> str:
    label, true = int(predictions.predicted[number]), int(predictions.true[number])
    percent = 100 * predictions.probabilities[number, label]
    kind, sign = ("", "") if true < 0 else ("right", "✓ ") if true == label else ("wrong", "✗ ")
    truth = f"<br>true: {escape(predictions.classes[true])}" if kind == "wrong" else ""
    return (
        f'<figure class="{kind}"><img alt="" src="{_data_uri(thumbnail)}"><figcaption>{sign}'
        f"<b>{escape(predictions.classes[label])}</b> {percent:.0f}&nbsp;%{truth}"
        f'<span class="bar"><i style="width:{percent:.1f}%"></i></span>'
        f"<small>{escape(predictions.files[number])}</small></figcaption></figure>"
    )


def _data_uri(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
