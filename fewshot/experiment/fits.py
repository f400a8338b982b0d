"""Fits of a trained learner on its first regression tasks: `plot=true`."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from omegaconf import DictConfig
from torch.func import vmap

from fewshot.algorithms.learner import override_test_steps
from fewshot.algorithms.leo_regression import LEORegression
from fewshot.core.errors import FewshotError
from fewshot.core.random import split
from fewshot.data.tables import Rows, Tables
from fewshot.episodes import Episodes
from fewshot.experiment.build import Experiment, read_sources
from fewshot.report.pictures import Fit
from fewshot.tasks.functions import Curves, Functions
from fewshot.tasks.regression import Regression
from fewshot.training.trained import Trained

PANELS, GRID, SAMPLES = 6, 200, 20  # of a picture; points of each curve; fits sampled by LEO
TASKS = 100  # among which those of different tables are looked for

Lines = tuple[dict[str, np.ndarray], np.ndarray | None]  # {label: [G]}, and fits drawn at random [S, G]


def check_one_input(cfg: DictConfig) -> None:
    """Raises FewshotError where x has several columns, over which no curve can be drawn."""
    if prod(read_sources(cfg)["train"].shape) != 1:
        raise FewshotError(f"plot=true: {cfg.dataset.name} has several columns of x, not one; leave plot out")


def fits_of(run: Experiment, trained: Trained, tasks: Regression, steps: Sequence[int]) -> list[Fit]:
    """The first tasks, each with the truth, the learned curves, and for LEO fits from sampled codes.

    Args:
        steps: the numbers of adaptation steps to draw.
    """
    if isinstance(tasks.source, Tables):
        return _fits_of_tables(run, trained, tasks, tasks.source, steps)
    curves, episodes = tasks.draw(0, PANELS), tasks.episodes(0, PANELS)
    assert isinstance(tasks.source, Functions) and isinstance(curves, Curves)
    x = torch.linspace(*tasks.source.x, GRID, device=run.device)
    truth = curves.at(x.expand(PANELS, GRID)).cpu().numpy()
    drawings = []
    for index in range(PANELS):
        task = episodes[index]
        lines, samples = _lines(run, trained, task, x, steps)
        points = task.support_x[:, 0].cpu().numpy(), task.support_y.cpu().numpy()
        drawings.append(Fit(x.cpu().numpy(), truth[index], *points, curves=lines, samples=samples))
    return drawings


def _lines(
    run: Experiment, trained: Trained, task: Episodes, x: torch.Tensor, steps: Sequence[int], output: int = 0
) -> Lines:
    """The learned curves of one output at x [G]."""
    learner = run.learner

    def fitted(steps: int) -> np.ndarray:
        with override_test_steps(learner, steps):
            adapted = learner.adapt(trained.params, trained.state, task.without_queries())
        return learner.predict(adapted, x[:, None])[:, output].cpu().numpy()

    def sampled(key: torch.Tensor) -> torch.Tensor:
        assert isinstance(learner, LEORegression)
        return learner.predict(learner.sampled(trained.params, task, key), x[:, None])[:, output]

    if isinstance(learner, LEORegression):
        return {"not sampled": fitted(steps[-1])}, vmap(sampled)(split(task.key, SAMPLES)).cpu().numpy()
    return {f"after {count}" if count else "before": fitted(count) for count in sorted({0, *steps})}, None


def _fits_of_tables(
    run: Experiment, trained: Trained, tasks: Regression, tables: Tables, steps: Sequence[int]
) -> list[Fit]:
    """A panel for each output of the first tasks of different tables, in the units of their files."""
    rows, episodes = tasks.draw(0, TASKS), tasks.episodes(0, TASKS)
    assert isinstance(rows, Rows)
    first: dict[int, int] = {}  # the first task of each table
    for index, table in enumerate(rows.table.tolist()):
        first.setdefault(table, index)

    def in_units(kind: str, column: int, values: torch.Tensor | np.ndarray) -> np.ndarray:
        mean, std = (each[column] for each in tables.scale[kind])
        return np.asarray(torch.as_tensor(values).cpu(), dtype=np.float64) * std + mean

    drawings = []
    for table, index in first.items():
        task, (all_x, all_y) = episodes[index], tables.table(table)
        x = torch.linspace(float(all_x.min()), float(all_x.max()), GRID, device=run.device)
        for place, output in enumerate(tables.outputs):
            lines, samples = _lines(run, trained, task, x, steps, place)
            fit = Fit(
                x=in_units("x", 0, x),
                truth=(in_units("x", 0, all_x[:, 0]), in_units("y", place, all_y[:, place])),
                support_x=in_units("x", 0, task.support_x[:, 0]),
                support_y=in_units("y", place, task.support_y[:, place]),
                curves={label: in_units("y", place, line) for label, line in lines.items()},
                samples=None if samples is None else in_units("y", place, samples),
                name=tables.names[table],
                axes=(tables.inputs[0], output),
            )
            drawings.append(fit)
    return drawings[:PANELS]
