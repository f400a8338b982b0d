"""Tasks that are drawn ahead: the same as those drawn step by step, in fewer draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fewshot.data.bank import Bank
from fewshot.data.tables import Tables
from fewshot.episodes import Episodes, Tasks
from fewshot.tasks.ahead import draw_ahead
from fewshot.tasks.functions import Curves, Functions, read_functions
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import ROTATIONS, Sampler
from fewshot.tasks.transforms import ImageTransform

MakeTasks = Callable[[Bank], Tasks]


def of_functions(bank: Bank) -> Regression:
    families = {"sine": {"amplitude": [1, 5], "phase": [0, 3]}, "line": {"slope": [-3, 3], "intercept": [-2, 1]}}
    return Regression(read_functions(families, [-5, 5], 0.3)["train"], 2, 4, 11)


def of_tables(bank: Bank) -> Regression:
    x, names = torch.arange(60.0).view(20, 3), ("first", "second")
    unit = {"x": ((0.0,) * 3, (1.0,) * 3), "y": ((0.0,) * 2, (1.0,) * 2)}
    columns = ("a", "b", "c"), ("u", "v")
    tables = Tables(x, x[:, :2].sin(), torch.tensor([0, 8, 20]), names, *columns, unit, "train", "rows", {})
    return Regression(tables, 2, 4, 11)


MAKE: dict[str, MakeTasks] = {"functions": of_functions, "tables": of_tables}
for _rotations in ROTATIONS:
    MAKE[_rotations] = lambda bank, rotations=_rotations: Sampler(
        bank, 3, 2, 4, 11, rotations, ImageTransform(augment="gentle")
    )


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
def test_tasks_that_are_drawn_ahead_are_the_same(make_bank: Callable[..., Bank], make: MakeTasks) -> None:
    tasks = make(make_bank())
    episodes = draw_ahead(tasks, 4, 3)
    starts, counts = (0, 4, 8, 12, 4, 42, 3), (4, 4, 4, 4, 4, 2, 1)  # over the end of a block, back, parts of a step
    for first, count in zip(starts, counts, strict=True):
        for mine, theirs in zip(episodes(first, count).tensors(), tasks.episodes(first, count).tensors(), strict=True):
            assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE.keys())
def test_one_draw_serves_several_steps(
    make_bank: Callable[..., Bank], make: MakeTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, draws = make(make_bank()), []
    name = "draw" if isinstance(tasks, Sampler) else "episodes"
    draw = getattr(type(tasks), name)
    monkeypatch.setattr(type(tasks), name, lambda self, *numbers: draws.append(numbers) or draw(self, *numbers))
    episodes = draw_ahead(tasks, 2, 4)
    for first in range(0, 16, 2):
        episodes(first, 2)
    assert draws == [(0, 8), (8, 8)]
    draw_ahead(tasks, 2, 4)(12, 2)  # as in a training that is resumed
    assert draws[2:] == [(8, 8)]


def test_two_threads_draw_the_same(make_bank: Callable[..., Bank]) -> None:
    tasks, threads = of_functions(make_bank()), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        whole = draw_ahead(tasks, 1000, 1)(0, 1000)  # torch shares 2,048 values or more among threads
        for first in range(0, 1000, 100):
            for mine, theirs in zip(
                whole[first : first + 100].tensors(), tasks.episodes(first, 100).tensors(), strict=True
            ):
                assert torch.equal(mine, theirs)
    finally:
        torch.set_num_threads(threads)


def test_a_draw_takes_little_memory(make_bank: Callable[..., Bank], monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = of_functions(make_bank())
    monkeypatch.setattr("fewshot.tasks.ahead.TICKETS_AT_ONCE", 100)  # of 12 values for each task
    drawn: list[int] = []
    draw = Regression.episodes
    monkeypatch.setattr(
        Regression, "episodes", lambda self, first, count: drawn.append(count) or draw(self, first, count)
    )
    episodes = draw_ahead(tasks, 3, 1000)
    for first in range(0, 12, 3):
        episodes(first, 3)
    assert drawn == [6, 6]


class OwnSampler(Sampler):
    """Whose images depend on how many tasks are asked for."""

    def episodes(self, first: int, count: int) -> Episodes:
        drawn = super().episodes(first, count)
        return drawn.with_tensors(drawn.support_x + count, *drawn.tensors()[1:])


class OwnFunctions(Functions):
    """Likewise."""

    def draw(self, task: torch.Tensor, count: int) -> Curves:
        drawn = super().draw(task, count)
        return replace(drawn, x=drawn.x + len(task))


def test_tasks_and_data_of_a_persons_own_are_asked_for_step_by_step(make_bank: Callable[..., Bank]) -> None:
    own = OwnSampler(make_bank(), 3, 2, 4, 11)
    functions = of_functions(make_bank()).source
    assert isinstance(functions, Functions)
    source = OwnFunctions(functions.families, functions.x, functions.noise, functions.split)
    for tasks in (own, Regression(source, 2, 4, 11)):
        assert torch.equal(draw_ahead(tasks, 2, 4)(4, 2).support_x, tasks.episodes(4, 2).support_x)
