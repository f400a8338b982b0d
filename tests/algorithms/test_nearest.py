"""Nearest neighbour, compared with numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fewshot.algorithms.nearest import Nearest
from fewshot.backbones.identity import Identity
from fewshot.engine.engine import Engine
from fewshot.engine.evaluate import query_outputs, score_episodes
from fewshot.episodes import Episodes
from fewshot.tasks.sampler import Sampler

Make = Callable[..., Any]


def by_numpy(task: Episodes) -> np.ndarray:
    """The label of the nearest support example of each query."""
    support, query = (x.double().flatten(1).numpy() for x in (task.support_x, task.query_x))
    distance = np.sqrt(((query[:, None] - support[None]) ** 2).sum(-1))
    return task.support_y.numpy()[distance.argmin(1)]


@pytest.mark.parametrize("transductive", [False, True])
@pytest.mark.parametrize(("shot", "engine"), [(1, "vmap"), (3, "loop")])
def test_predictions_and_scores_are_numpys(make_bank: Make, shot: int, engine: str, transductive: bool):
    learner, sampler = Nearest(Identity((1, 8, 8), 3)), Sampler(make_bank(noise=200), 3, shot, 4, 0)
    scores = score_episodes(learner, {}, {}, sampler, 20, transductive=transductive, engine=Engine(engine))
    episodes, shares = sampler.episodes(0, 20), []
    for task in (episodes[i] for i in range(20)):
        logits = query_outputs(learner, {}, {}, task, transductive)
        assert logits.shape == (12, 3)
        assert np.array_equal(logits.argmax(1).numpy(), by_numpy(task))
        shares.append((by_numpy(task) == task.query_y.numpy()).mean())
    assert scores == pytest.approx(np.array(shares), abs=1e-6)
    assert 1 / 3 < scores.mean() < 1


def test_logits_are_minus_the_distance_to_the_nearest_of_each_class():
    support = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0], [0.0, 4.0]])
    labels = torch.tensor([0, 0, 1, 1])
    x = torch.tensor([[1.0, 1.0], [0.0, 3.0]])
    task = Episodes(support, labels, x, torch.tensor([0, 1]), torch.tensor(0))
    learner = Nearest(Identity((2,), 2))
    assert learner.init() == ({}, {})
    logits = learner.predict(learner.adapt({}, {}, task), x)
    assert logits.tolist() == [[-1.0, pytest.approx(-(10**0.5))], [-3.0, -1.0]]
    mean = Nearest(Identity((2,), 2), reference="mean")
    assert mean.adapt({}, {}, task)["support"].tolist() == [[[0.5, 0.0]], [[2.5, 4.5]]]


def test_a_mean_of_few_shots_is_not_held_to_be_far():
    """Two classes with the same spread, one with a shot and one with eight: neither is preferred."""
    random = torch.Generator().manual_seed(0)
    learner, wrong = Nearest(Identity((50,), 2), reference="mean"), torch.zeros(2)
    labels = torch.tensor([0] + [1] * 8)
    for _ in range(30):
        centres = torch.randn(2, 50, generator=random)
        support = centres[labels] + torch.randn(9, 50, generator=random)
        x = centres.repeat_interleave(20, 0) + torch.randn(40, 50, generator=random)
        task = Episodes(support, labels, x, torch.arange(2).repeat_interleave(20), torch.tensor(0))
        adapted = learner.adapt({}, {}, task)
        assert adapted["excess"][1] == 0 < adapted["excess"][0]
        wrong += (learner.predict(adapted, x).argmax(1) != task.query_y).view(2, 20).sum(1)
    assert wrong.max() < 3 * wrong.min() + 10 and wrong.sum() < 60  # of 1200


def test_equal_shots_are_compared_by_plain_distances():
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    task = Episodes(x, torch.arange(3).repeat_interleave(4), x, torch.arange(3).repeat_interleave(4), torch.tensor(0))
    learner = Nearest(Identity((5,), 3), reference="mean")
    adapted = learner.adapt({}, {}, task)
    assert adapted["excess"].tolist() == [0, 0, 0]
    means = x.unflatten(0, (3, 4)).mean(1)
    assert torch.allclose(learner.predict(adapted, x), -torch.cdist(x, means))
