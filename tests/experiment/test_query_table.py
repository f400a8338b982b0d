"""What is left of the prediction for each query of a test."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot.core.errors import FewshotError
from fewshot.experiment import query_table
from fewshot.experiment.query_table import check_same_scores, check_size, score_labels, write_predictions
from fewshot.report.records import write_record
from fewshot.tasks.sampler import Sampler

from ..report.conftest import TEMPLATE

Make = Callable[..., Any]


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("rotations", ["none", "as_classes"])
def test_each_row_is_a_query_and_rows_have_the_mean_of_their_episode(
    make_bank: Make, tmp_path: Path, rotations: str, monkeypatch: pytest.MonkeyPatch
):
    sampler = Sampler(make_bank(), 3, 2, 4, seed=1, rotations=rotations)
    labels = np.random.RandomState(0).randint(3, size=(5, 12))
    monkeypatch.setattr(query_table, "AT_ONCE", 2)
    write_predictions(tmp_path, sampler, {"predicted_1": labels, "predicted_5": labels[::-1]})
    rows, draw = read_rows(tmp_path / "predictions.csv"), sampler.draw(0, 5)
    assert list(rows[0]) == ["episode", "query", "image", "true", "predicted_1", "predicted_5"]
    assert [(int(row["episode"]), int(row["query"])) for row in rows] == [(e, q) for e in range(5) for q in range(12)]
    right = np.array([row["true"] == row["predicted_1"] for row in rows]).reshape(5, 12)
    assert right.mean(1).tolist() == score_labels(sampler, labels).tolist()
    offsets, names = sampler.bank.offsets.tolist(), sampler.bank.names
    for row, number in zip(rows, draw.rows[:, :, 2:].flatten().tolist(), strict=True):
        name, place = row["image"].rsplit("/")
        assert offsets[names.index(name)] + int(place) == number
        turned = row["true"].removeprefix(name)
        assert turned == "" if rotations == "none" else turned in (f" turned {angle}" for angle in (0, 90, 180, 270))
    chosen = sampler.class_names(draw)
    assert [row["predicted_5"] for row in rows[:12]] == [chosen[0][label] for label in labels[4]]


def test_a_test_that_is_repeated_must_have_the_scores_of_its_record(tmp_path: Path):
    scores = {"accuracy": np.array([0.4, 2 / 3])}
    test = {"accuracy": float(scores["accuracy"].mean()), "ci95": 0.1, "episodes": 2}
    record = TEMPLATE | {"test": test, "protocol": TEMPLATE["protocol"] | {"episodes": 2}}
    write_record(tmp_path, record, scores)
    check_same_scores(tmp_path, scores)
    with pytest.raises(FewshotError, match="1 of 2 episodes have other scores than in its record, .*; force=true"):
        check_same_scores(tmp_path, {"accuracy": np.array([0.4, 0.6])})


def test_a_table_of_too_many_queries_is_refused(make_bank: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(query_table, "MOST_QUERIES", 23)
    check_size(Sampler(make_bank(), 3, 2, 4), 1, "protocol.paper")
    with pytest.raises(FewshotError, match=r"protocol.paper has 24 queries, .*; lower protocol.paper.episodes or"):
        check_size(Sampler(make_bank(), 3, 2, 4), 2, "protocol.paper")
