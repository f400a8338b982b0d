"""Draws of rows from tables: distinct, of one table, and functions of a task's stream alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.data.tables import Tables
from fewshot.tasks.regression import Regression


def make_tables(sizes: Sequence[int] = (9, 12, 20), split: str = "train", outputs: int = 2) -> Tables:
    """Tables whose x is the number of the row, and y its tenfold and more."""
    x = torch.arange(sum(sizes), dtype=torch.float32)[:, None]
    y = x * torch.tensor([10.0, 20.0, 30.0])[:outputs]
    names = tuple(f"t{i}" for i in range(len(sizes)))
    columns = ("x",), tuple(f"y{i}" for i in range(outputs))
    unit = {"x": ((0.0,), (1.0,)), "y": ((0.0,) * outputs, (1.0,) * outputs)}
    return Tables(x, y, torch.tensor([0, *sizes]).cumsum(0), names, *columns, unit, split, f"{sizes}", {"dataset": "d"})


def test_a_task_holds_distinct_rows_of_one_table_and_their_values():
    rows = Regression(make_tables(), 4, 5, seed=0).draw(0, 200)
    offsets = torch.tensor([0, 9, 21, 41])
    for table, own in zip(rows.table, rows.rows, strict=True):
        assert len(own.unique()) == 9
        assert offsets[table] <= own.min() and own.max() < offsets[table + 1]
    assert torch.equal(rows.x[..., 0], rows.rows.float())
    assert torch.equal(rows.y, rows.rows[..., None] * torch.tensor([10.0, 20.0]))


def test_episodes_have_several_outputs_and_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch):
    tasks = Regression(make_tables(), 4, 3, seed=0)
    whole, one = tasks.episodes(0, 20), tasks.episodes(13, 1)
    assert whole.support_x.shape == (20, 4, 1) and whole.support_y.shape == (20, 4, 2)
    assert whole.query_x.shape == (20, 3, 1) and whole.query_y.shape == (20, 3, 2)
    assert (whole.way, whole.shot) == (1, 4)
    monkeypatch.setattr("fewshot.core.random.TICKETS_AT_ONCE", 50)
    for first, second, third in zip(whole.tensors(), one.tensors(), tasks.episodes(0, 20).tensors(), strict=True):
        assert torch.equal(first[13:14], second) and torch.equal(first, third)


@pytest.mark.parametrize("other", [{"seed": 1}, {"split": "val"}, {"sizes": (9, 12, 21)}, {"shot": 3}])
def test_other_rows_or_tables_are_another_manifest(other: dict[str, int]):
    def manifest(seed: int = 0, shot: int = 4, **choices: int) -> str:
        return Regression(make_tables(**choices), shot, 4, seed).manifest(0, 30)  # pyright: ignore[reportArgumentType]

    assert manifest() == manifest() != manifest(**other)


def test_tables_and_rows_are_drawn_with_equal_chances():
    rows = Regression(make_tables(), 1, 0, seed=0).draw(0, 3000)
    assert stats.chisquare(rows.table.bincount()).pvalue > 1e-3
    last = rows.rows[rows.table == 2] - 21
    assert stats.chisquare(last.flatten().bincount(minlength=20)).pvalue > 1e-3


def test_a_table_with_too_few_rows_is_named():
    assert Regression(make_tables(), 5, 4, seed=0).draw(0, 1).rows.shape == (1, 9)
    with pytest.raises(
        FewshotError, match=r"d, split train: shots and queries are 10 rows, .* table t0 has \(9\); lower"
    ):
        Regression(make_tables(), 5, 5, seed=0)
