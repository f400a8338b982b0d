"""Predictions of single images as CSV, tables and a page."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from PIL import Image

from fewshot.report.confusion import MATRIX, NAMED
from fewshot.report.predictions import (
    Predictions,
    confusion_table,
    count_table,
    render_page,
    render_predictions_csv,
)

NAN = float("nan")


@pytest.fixture
def labelled() -> Predictions:
    """Two classes; the images are right, wrong, unreadable, of no known class, and a copy of a support image."""
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [NAN, NAN], [0.3, 0.7], [0.1, 0.9]], np.float32)
    true = np.array([0, 1, 1, -1, 1])
    counted = np.array([True, True, False, False, False])
    return Predictions(["cat", 'a "dog", <b>'], ["1", "2", "3", "4,\n", "5"], probabilities, true, counted)


def test_only_readable_images_of_a_known_class_count(labelled: Predictions) -> None:
    assert labelled.predicted.tolist() == [0, 0, -1, 1, 1]
    assert labelled.confusion.tolist() == [[1, 0], [1, 0]]
    assert labelled.accuracy == "50.00 % (1 of 2 right, 95 % interval 9.5 to 90.5 %)"
    assert count_table(labelled, [3, 1]) == (
        ["class", "support images", "predicted", "true", "right"],
        [["cat", "3", "2", "1", "1"], ['a "dog", <b>', "1", "2", "1", "0"]],
    )


def test_the_csv_has_a_row_per_image(labelled: Predictions) -> None:
    header, *rows = csv.reader(io.StringIO(render_predictions_csv(labelled)))
    assert header == ["file", "predicted", "true", "probability cat", 'probability a "dog", <b>']
    assert rows[0] == ["1", "cat", "cat", "0.9", "0.1"]
    assert rows[2] == ["3", "", 'a "dog", <b>', "", ""]
    assert rows[3] == ["4,\n", 'a "dog", <b>', "", "0.3", "0.7"]


def test_without_true_classes_there_is_no_column_and_no_accuracy() -> None:
    predictions = Predictions(["a", "b"], ["1"], np.array([[0.6, 0.4]]), np.array([-1]), np.array([False]))
    assert render_predictions_csv(predictions) == "file,predicted,probability a,probability b\n1,a,0.6,0.4\n"
    assert predictions.accuracy == ""
    assert count_table(predictions, [1, 1])[0] == ["class", "support images", "predicted"]


@pytest.mark.parametrize("ways", [NAMED, NAMED + 1, MATRIX + 1])
def test_a_confusion_matrix_of_many_classes_becomes_a_list(ways: int) -> None:
    true, label = np.array([0, 1, 1, 2]), np.array([0, 2, 2, 1])
    predictions = Predictions(
        [f"class {n}" for n in range(ways)], list("1234"), np.eye(ways)[label], true, np.full(4, True)
    )
    headings, rows = confusion_table(predictions)
    if ways > MATRIX:
        assert (headings, rows) == (
            ["true", "predicted", "images"], [["class 1", "class 2", "2"], ["class 2", "class 1", "1"]],
        )  # fmt: skip
    else:
        assert headings[1:3] == (["class 0", "class 1"] if ways == NAMED else ["1", "2"])
        assert rows[1][:4] == ["class 1" if ways == NAMED else "2 class 1", "0", "0", "2"]


def test_the_page_needs_no_other_file_and_holds_no_script(labelled: Predictions) -> None:
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    thumbnails = {number: file.getvalue() for number in (0, 1, 3, 4)}
    support = {name: [file.getvalue()] for name in labelled.classes}
    page = render_page(labelled, "Mine & yours", ["about"], ["3 cannot be read"], support, thumbnails)
    assert "<script" not in page and not re.search(r'(?:src|href)="(?!data:)', page)
    assert "Mine &amp; yours" in page and "a &quot;dog&quot;, &lt;b&gt;" in page and "<b>cat</b>" in page
    assert "50.00 % (1 of 2 right, 95 % interval" in page and "3 cannot be read" in page
    figures = re.findall(r'<figure class="(\w*)">.*?<small>(.*?)</small>', page, re.DOTALL)
    assert [kind for kind, _ in figures] == ["right", "right", "wrong", ""]  # 0.9, 0.9, 0.8, 0.7
    assert page.count("<img") == 6
    assert "width:80.0%" in page
