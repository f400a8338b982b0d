"""Nearest neighbour, compared with numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fewshot.algorithms.nearest import Nearest
from fewshot.backbones.identity import Identity
from fewshot.core.errors import FewshotError
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


@pytest.mark.parametrize("setting", ["inductive", "transductive"])
@pytest.mark.parametrize(("shot", "engine"), [(1, "vmap"), (3, "loop")])
def test_predictions_and_scores_are_numpys(make_bank: Make, shot: int, engine: str, setting: str):
    learner, sampler = Nearest(Identity((1, 8, 8), 3)), Sampler(make_bank(noise=200), 3, shot, 4, 0)
    scores = score_episodes(learner, {}, {}, sampler, 20, setting=setting, engine=Engine(engine))
    episodes, shares = sampler.episodes(0, 20), []
    for task in (episodes[i] for i in range(20)):
        logits = query_outputs(learner, {}, {}, task, setting)
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


def test_a_mean_is_of_as_many_examples_as_its_class_has():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [6.0, 8.0]])
    task = Episodes(x, torch.tensor([0, 0, 1]), x, torch.tensor([0, 0, 1]), torch.tensor(0))
    pixels = Nearest(Identity((1, 1, 2), 2), reference="mean")
    assert pixels.adapt({}, {}, task)["support"].tolist() == [[[2.0, 0.0]], [[6.0, 8.0]]]
    features = Nearest(Identity((2,), 2), reference="mean").adapt({}, {}, task)["support"]
    torch.testing.assert_close(features, torch.tensor([[[1.0, 0.0]], [[0.6, 0.8]]]))


def test_probabilities_do_not_depend_on_the_unit_of_distance_and_leave_the_nearest_first():
    support = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 3.0]]])
    x = torch.tensor([[0.2, 0.0], [0.4999, 0.0], [0.0, 2.0]])
    learner = Nearest(Identity((2,), 3))
    logits = learner.predict({"support": support}, x)
    found = learner.probabilities({"support": support}, logits)
    assert torch.equal(found.argmax(1), logits.argmax(1))
    between = (1 + 9 + 10) / 3
    torch.testing.assert_close(found, (-14 * logits.square() / between).softmax(1))
    images = Nearest(Identity((1, 1, 2), 3)).probabilities({"support": support}, logits)
    torch.testing.assert_close(images, (-6 * logits.square() / between).softmax(1))
    torch.testing.assert_close(learner.probabilities({"support": 7 * support}, 7 * logits), found)
    same = torch.zeros(3, 1, 2)
    torch.testing.assert_close(
        learner.probabilities({"support": same}, torch.full((1, 3), -1.0)), torch.full((1, 3), 1 / 3)
    )


def test_centred_features_are_those_minus_the_mean_of_the_training_features_of_length_one() -> None:
    random = torch.Generator().manual_seed(0)
    training, support, query = (torch.rand(count, 3, generator=random) for count in (20, 4, 5))
    labels = torch.tensor([0, 0, 1, 1])
    task = Episodes(support[None], labels[None], query[None], torch.zeros(1, 5).long(), torch.zeros(1).long())[0]
    learner = Nearest(Identity((3,), 2), reference="mean", centre=True)
    assert learner.init()[1]["mean"].tolist() == [0, 0, 0]
    logits = learner.predict(learner.adapt({}, learner.state_of(training.split(7)), task), query)
    x, q = (torch.nn.functional.normalize(part - training.mean(0), dim=1) for part in (support, query))
    torch.testing.assert_close(logits, -torch.cdist(q, torch.stack([x[:2].mean(0), x[2:].mean(0)])))
    with pytest.raises(FewshotError, match="centre=true: needs features"):
        Nearest(Identity((1, 8, 8), 3), centre=True)
