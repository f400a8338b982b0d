"""Tables: the rows of one split of regression tasks, one table each, in the place of a Bank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fewshot.core.errors import FewshotError
from fewshot.core.random import draw_rows, fold_in, randint

_TABLE, _ROWS = range(2)  # streams of one task


@dataclass(frozen=True)
class Rows:
    """P distinct rows of the table of each of T tasks, in random order."""

    table: torch.Tensor  # [T] index of the table
    rows: torch.Tensor  # [T, P] rows of `Tables`
    x: torch.Tensor  # [T, P, inputs]
    y: torch.Tensor  # [T, P, outputs]

    def identity(self) -> Iterator[bytes]:
        """What tells these draws from others."""
        yield self.rows.cpu().numpy().astype("<i8").tobytes()


@dataclass(frozen=True)
class Tables:
    """The tables of one split, one after the other. Table t owns rows offsets[t] to offsets[t+1].

    A column c of x is (value - x_mean[c]) / x_std[c] of what the file holds, and so is one of y; mean 0 and std 1 where
    nothing was standardised.
    """

    x: torch.Tensor  # [M, inputs] float32
    y: torch.Tensor  # [M, outputs] float32
    offsets: torch.Tensor  # [tables + 1] int64
    names: tuple[str, ...]  # of the tables
    inputs: tuple[str, ...]  # columns of x
    outputs: tuple[str, ...]  # columns of y
    scale: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]  # x and y to mean and std of their columns
    split: str
    fingerprint: str  # SHA-256 of names, columns, rows and scale
    metadata: Mapping[str, Any]  # for the record

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one x."""
        return (len(self.inputs),)

    @property
    def image_fingerprint(self) -> str:
        """The fingerprint: rows are not features of images."""
        return self.fingerprint

    @property
    def description(self) -> str:
        """The columns in words, such as `x1, x2 to y; y in standard deviations of training`."""
        units = "" if set(self.scale["y"][1]) == {1.0} else "; y in standard deviations of training"
        return f"{', '.join(self.inputs)} to {', '.join(self.outputs)}{units}"

    @property
    def device(self) -> torch.device:
        """The device that holds the rows."""
        return self.x.device

    def to(self, device: torch.device | str) -> Tables:
        """The same tables on a device."""
        return replace(self, x=self.x.to(device), y=self.y.to(device), offsets=self.offsets.to(device))

    def draw(self, task: torch.Tensor, count: int) -> Rows:
        """A table for each task, and `count` distinct rows of it in random order.

        Args:
            task: [T] int64, the stream of each task.

        Raises:
            FewshotError: a table has fewer rows.
        """
        sizes = self.offsets.diff()
        if count > (fewest := int(sizes.min())):
            raise FewshotError(
                f"{self.metadata.get('dataset', 'tables')}, split {self.split}: shots and queries are {count} rows, "
                f"which is more than table {self.names[int(sizes.argmin())]} has ({fewest}); lower shot or query"
            )
        table = randint(fold_in(task, _TABLE), len(self.names))
        streams, largest = fold_in(task, _ROWS), int(sizes.max())
        rows = self.offsets[table][:, None] + draw_rows(streams, sizes[table], count, largest)
        return Rows(table, rows, self.x[rows], self.y[rows])

    def table(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All rows of a table: x [R, inputs] and y [R, outputs]."""
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.x[rows], self.y[rows]
