"""Prototypical networks: distances to class means, any way, classes of different sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewshot.algorithms.protonet import ProtoNet
from fewshot.backbones.identity import Identity
from fewshot.core.errors import FewshotError

from .closed_form import assert_gradient

pytestmark = pytest.mark.usefixtures("float64")

Make = Callable[..., Any]


def test_logits_are_minus_the_squared_distances_to_the_class_means(make_conv4: Make, make_episodes: Make) -> None:
    task, network = make_episodes(1, shot=2)[0], make_conv4()
    learner = ProtoNet(network)
    params, state = learner.init()
    logits = learner.predict(learner.adapt(params, state, task), task.query_x)
    support, query = network.embed(task.support_x), network.embed(task.query_x)
    means = torch.stack([support[task.support_y == label].mean(0) for label in range(3)])
    expected = -(query[:, None] - means).square().sum(-1)
    torch.testing.assert_close(logits, expected)
    assert_gradient(learner, network, task, expected)


def test_it_equals_easyfsls_on_the_same_features(make_episodes: Make) -> None:
    methods = pytest.importorskip("easyfsl.methods")
    task = make_episodes(1, shot=2)[0]
    theirs = methods.PrototypicalNetworks(nn.Flatten())
    theirs.process_support_set(task.support_x, task.support_y)
    ours = ProtoNet(Identity((1, 8, 8), 3))
    logits = ours.predict(ours.adapt({}, {}, task), task.query_x)
    # easyfsl's scores are minus distances, the paper's minus squared distances
    torch.testing.assert_close(-(-logits).sqrt(), theirs(task.query_x), rtol=0, atol=1e-6)


def test_a_network_takes_any_number_of_ways(make_conv4: Make, make_episodes: Make) -> None:
    network = make_conv4(way=3)
    learner = ProtoNet(network)
    params, state = learner.init()
    assert not [name for name in params if name.startswith("head")]
    for way in (2, 5):
        task = make_episodes(1, way=way)[0]
        means = network.embed(task.support_x).unflatten(0, (way, -1)).mean(1)
        expected = -(network.embed(task.query_x)[:, None] - means).square().sum(-1)
        torch.testing.assert_close(learner.predict(learner.adapt(params, state, task), task.query_x), expected)
        loss, score = learner.outer_loss(params, task)
        torch.testing.assert_close(loss, F.cross_entropy(expected, task.query_y))
        assert score == (expected.argmax(-1) == task.query_y).double().mean()


def test_classes_may_differ_in_size(make_episodes: Make) -> None:
    task = make_episodes(1, shot=3)[0]
    kept = torch.tensor([0, 3, 4, 5, 6, 7])  # 1, 3 and 2 examples
    part = task.with_tensors(task.support_x[kept], task.support_y[kept], task.query_x, task.query_y, task.key)
    learner = ProtoNet(Identity((1, 8, 8), 3))
    means = learner.adapt({}, {}, part)["prototypes/"]
    torch.testing.assert_close(means[0], task.support_x[0].flatten())
    torch.testing.assert_close(means[2], task.support_x[6:8].flatten(1).mean(0))


def test_a_network_without_features_is_refused() -> None:
    with pytest.raises(FewshotError, match="this algorithm compares features, and Linear has no method embed"):
        ProtoNet(nn.Linear(3, 2))
