"""Tasks of several steps of a training, drawn at once."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from fewshot.core.random import TICKETS_AT_ONCE
from fewshot.data.tables import Tables
from fewshot.episodes import Episodes, Tasks
from fewshot.tasks.functions import Functions
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import Sampler


def draw_ahead(tasks: Tasks, batch: int, steps: int) -> Callable[[int, int], Episodes]:
    """`tasks.episodes`, with the same results, for a training that takes them in order.

    The tasks of up to `steps` steps are drawn at once, as many as take little memory: a draw has some hundred small
    operations, and to start them takes longer than to compute them. Images are read when they are asked for. Data and
    tasks of a person's own are asked for step by step.

    Args:
        batch: tasks of a step; those that are asked for together, episodes(first, count), are of one step.
    """
    draw: Callable[[int, int], Any]
    load: Callable[[Any], Episodes]
    if type(tasks) is Sampler:
        draw, load, size_of_one = tasks.draw, tasks.load, tasks.way * tasks.largest_class
    elif type(tasks) is Regression and type(tasks.source) in (Functions, Tables):
        draw, load = tasks.episodes, lambda drawn: drawn
        size_of_one = (tasks.shot + tasks.query) * (prod(tasks.source.shape) + len(tasks.source.outputs))
    else:
        return tasks.episodes
    block = batch * max(1, min(steps, TICKETS_AT_ONCE // (size_of_one * batch)))
    start, drawn = -1, None

    def episodes(first: int, count: int) -> Episodes:
        nonlocal start, drawn
        # Blocks begin at multiples of their size, so that a resumed training has the values of a step at the same
        # place in memory, by which products may round.
        if drawn is None or start != first - first % block:
            start = first - first % block
            drawn = draw(start, block)
        return load(drawn[first - start : first - start + count])

    return episodes
