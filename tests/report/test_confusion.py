"""Which classes a test confuses: counts over its episodes, and a table where the report finds predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot.core.errors import FewshotError
from fewshot.report.confusion import MATRIX, read_confusion, tabulate_test
from fewshot.report.gather import gather_runs
from fewshot.report.html_report import render_report

# Two episodes of two classes, with two queries of each: b is in both, a is once taken for b, and c and NA never meet.
ROWS = ["a,b", "a,a", "b,b", "b,b", "NA,NA", "NA,NA", "b,NA", "b,b"]


def write_test(lab: Any, rows: list[str], right: float, column: str = "predicted", way: int = 2) -> dict[str, Any]:
    """A record of two episodes and its predictions, as `read_record` gives it."""
    scores = {column.replace("predicted", "accuracy"): np.array([right, right])}
    lab.write("run", scores, protocol__way=way, protocol__query=len(rows) // way // 2, protocol__adaptation_steps=5)
    lines = [f"{number // (len(rows) // 2)},0,i,{row}" for number, row in enumerate(rows)]
    (lab.folder / "run/predictions.csv").write_text("\n".join([f"episode,query,image,true,{column}", *lines]) + "\n")
    return gather_runs(lab.folder)[0][0]


def test_a_confusion_is_a_share_of_the_queries_in_episodes_that_held_both_classes(lab: Any):
    confusion = read_confusion(write_test(lab, ROWS, 0.75))
    assert confusion.classes == ["NA", "a", "b"]
    assert confusion.counts.tolist() == [[2, 0, 0], [0, 1, 1], [1, 0, 3]]
    assert confusion.met.tolist() == [[2, 0, 2], [0, 2, 2], [2, 2, 4]]
    assert tabulate_test(confusion) == (
        ["true \\ predicted", "NA", "a", "b"],
        [["NA", "100.0", "–", "0.0"], ["a", "–", "50.0", "50.0"], ["b", "50.0", "0.0", "75.0"]],
    )


def test_of_many_classes_the_most_frequent_confusions_are_listed(lab: Any):
    rows = [f"{n:02d},{n:02d}" for n in range(MATRIX + 2)]
    rows[3], rows[20] = "03,07", "20,15"
    confusion = read_confusion(write_test(lab, rows, 20 / 22, way=11))
    assert tabulate_test(confusion) == (
        ["true", "predicted", "images", "of", "per cent"],
        [["03", "07", "1", "1", "100.0"], ["20", "15", "1", "1", "100.0"]],
    )


@pytest.mark.parametrize("rows", [[*ROWS[:-1], "b,a"], ROWS[:-1], [], ["b"]])
def test_predictions_of_another_test_are_refused(lab: Any, rows: list[str]):
    record = write_test(lab, ROWS, 0.75)
    lines = ["episode,query,image,true,predicted", *(f"{n // 4},0,i,{row}" for n, row in enumerate(rows))]
    (lab.folder / "run/predictions.csv").write_text("\n".join(lines))
    with pytest.raises(FewshotError, match=r"predictions.csv .*: test the run again, with predictions=true force=true"):
        read_confusion(record)


def test_the_report_shows_the_confusions_of_the_tests_that_kept_predictions(lab: Any):
    write_test(lab, ["<a>,<b>", *ROWS[1:]], 0.75)
    lab.write("other", algorithm="leo")
    runs, unread = gather_runs(lab.folder)
    text, complaints = render_report(Path(lab.folder), runs, lab.settings(config="report"), unread)
    assert complaints == []
    assert text.count("Confusions of maml") == 1 and "Confusions of leo" not in text
    assert "&lt;b&gt;" in text.split("Confusions of maml")[1]
    (lab.folder / "run/predictions.csv").write_text("")
    _, complaints = render_report(Path(lab.folder), runs, lab.settings(config="report"), unread)
    assert len(complaints) == 1 and "predictions.csv cannot be read as predictions" in complaints[0]
