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


def draw_ahead(tasks: Tasks, count: int) -> Callable[[int, int], Episodes]:
    """`tasks.episodes`, with the same results, for a training that takes them in order.

    Up to `count` tasks are drawn at once, as many as take little memory: a draw has some hundred small operations, and
    to start them takes longer than to compute them. Images are read when they are asked for. Data and tasks of a
    person's own are asked for step by step.
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
    count = max(1, min(count, TICKETS_AT_ONCE // size_of_one))
    start, drawn = 0, None

    def episodes(first: int, size: int) -> Episodes:
        nonlocal start, drawn
        if drawn is None or first < start or first + size > start + len(drawn.key):
            drawn = None  # gives its memory back first
            # Blocks begin at multiples of `count`, so that a resumed training has the values of a step at the same
            # place in memory, by which products may round.
            ahead = first % count
            start = first - ahead if ahead + size <= count else first
            drawn = draw(start, max(size, count))
        return load(drawn[first - start : first - start + size])

    return episodes
