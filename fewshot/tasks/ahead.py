"""Tasks of several steps of a training, drawn at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fewshot.episodes import Episodes, Tasks
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import Sampler

TICKETS_AT_ONCE = 2**22  # random numbers that are drawn ahead, one for each member of each class of each episode


def draw_ahead(tasks: Tasks, count: int) -> Callable[[int, int], Episodes]:
    """`tasks.episodes`, with the same results, for a training that takes them in order.

    `count` tasks are drawn at once: a draw is some hundred operations, whose start takes longer than they do. Of a
    sampler these are indices, of as many tasks as take little memory; the images are read as they are asked for.
    """
    draw: Callable[[int, int], Any]
    load: Callable[[Any], Episodes]
    if type(tasks) is Sampler:
        draw, load = tasks.draw, tasks.load
        count = min(count, TICKETS_AT_ONCE // (tasks.way * tasks.largest_class))
    elif type(tasks) is Regression:
        draw, load = tasks.episodes, lambda drawn: drawn
    else:
        return tasks.episodes
    start, drawn = 0, None

    def episodes(first: int, size: int) -> Episodes:
        nonlocal start, drawn
        if drawn is None or first < start or first + size > start + len(drawn.key):
            start, drawn = first, draw(first, max(size, count))
        return load(drawn[first - start : first - start + size])

    return episodes
