"""Nearest neighbour, held against numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fewshot.algorithms.nearest import Nearest
from fewshot.backbones.identity import Identity
from fewshot.engine.engine import Engine
from fewshot.engine.evaluate import evaluate, query_outputs
from fewshot.episodes import Episodes
from fewshot.tasks.sampler import Sampler

Make = Callable[..., Any]


def by_numpy(task: Episodes) -> np.ndarray:
    """The label of the nearest support example of each query."""
    support, query = (x.double().flatten(1).numpy() for x in (task.support_x, task.query_x))
    distance = np.sqrt(((query[:, None] - support[None]) ** 2).sum(-1))
    return task.support_y.numpy()[distance.argmin(1)]


@pytest.mark.parametrize("transductive", [False, True])
@pytest.mark.parametrize("shot", [1, 3])
def test_it_predicts_what_numpy_finds_nearest(make_episodes: Make, shot: int, transductive: bool):
    learner: Any = Nearest(Identity((1, 8, 8), 3))
    episodes = make_episodes(20, shot=shot, query=4, noise=200)
    for i in range(20):
        logits = query_outputs(learner, {}, {}, episodes[i], transductive)
        assert logits.shape == (12, 3)
        assert np.array_equal(logits.argmax(1).numpy(), by_numpy(episodes[i]))


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_its_scores_are_numpys(make_bank: Make, engine: str):
    sampler = Sampler(make_bank(noise=200), 3, 2, 4, 0)
    learner: Any = Nearest(Identity((1, 8, 8), 3))
    scores = evaluate(learner, {}, {}, sampler, 30, transductive=True, engine=Engine(engine))
    episodes = sampler.episodes(0, 30)
    expected = [(by_numpy(episodes[i]) == episodes[i].query_y.numpy()).mean() for i in range(30)]
    assert scores == pytest.approx(np.array(expected), abs=1e-6)
    assert 1 / 3 < scores.mean() < 1


def test_logits_are_minus_the_distance_to_the_nearest_of_each_class():
    support = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0], [0.0, 4.0]])
    labels = torch.tensor([0, 0, 1, 1])
    x = torch.tensor([[1.0, 1.0], [0.0, 3.0]])
    task = Episodes(support, labels, x, torch.tensor([0, 1]), torch.tensor(0))
    learner = Nearest(Identity((2,), 2))
    logits = learner.predict(learner.adapt({}, {}, task), x)
    assert logits.tolist() == [[-1.0, pytest.approx(-(10**0.5))], [-3.0, -1.0]]


def test_it_has_nothing_to_train():
    assert Nearest(Identity((2,), 2)).init() == ({}, {})
