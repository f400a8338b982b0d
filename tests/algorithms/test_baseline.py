"""Baseline and Baseline++: the training of a head, against torch.optim.SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewshot.algorithms.baseline import Baseline
from fewshot.backbones.identity import Identity
from fewshot.core.errors import FewshotError
from fewshot.core.random import fold_in, permutation

pytestmark = pytest.mark.usefixtures("float64")

Make = Callable[..., Any]


class Cosine(nn.Module):
    """Twice the cosine to a vector per class, times a norm that torch's weight norm learns."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.weight_norm(nn.Linear(*weight.T.shape, bias=False))
        self.linear.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.linear(F.normalize(x, dim=-1))


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_the_head_is_the_one_that_torchs_sgd_trains(make_episodes: Make, head: str) -> None:
    task = make_episodes(1, shot=3)[0]
    learner = Baseline(Identity((1, 8, 8), 3), head=head, test_steps=2, batch=4, lr=0.01)
    logits = learner.predict(learner.adapt({}, {}, task), task.query_x)
    start = learner.start(task, 64, torch.float64)
    theirs = Cosine(start["weight"]) if head == "cosine" else nn.Linear(64, 3)
    if isinstance(theirs, nn.Linear):
        theirs.load_state_dict(start)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.01, momentum=0.9, dampening=0.9, weight_decay=0.001)
    x = task.support_x.flatten(1)
    for epoch in range(2):
        for rows in permutation(fold_in(task.key, epoch + 1), 9).split(4):
            optimizer.zero_grad()
            F.cross_entropy(theirs(x[rows]), task.support_y[rows]).backward()
            optimizer.step()
    torch.testing.assert_close(logits, theirs(task.query_x.flatten(1)))


def test_each_head_has_its_own_rate() -> None:
    network = Identity((4,), 3)
    assert [Baseline(network, head=head).lr for head in ("linear", "cosine")] == [1.0, 0.1]
    assert Baseline(network, head="cosine", lr=0.5).lr == 0.5


def test_a_head_on_pixels_says_that_its_rate_is_not_made_for_them() -> None:
    assert not hasattr(Baseline(Identity((4,), 3)), "notes")
    assert "so try others (algorithm.learner.lr=1.0)" in Baseline(Identity((1, 8, 8), 3)).notes[0]


def test_it_learns_the_support_set(make_episodes: Make) -> None:
    task = make_episodes(1, shot=2)[0]
    learner = Baseline(Identity((1, 8, 8), 3))
    logits = learner.predict(learner.adapt({}, {}, task), task.support_x)
    assert (logits.argmax(-1) == task.support_y).all()


def test_a_network_is_refused(make_conv4: Make) -> None:
    with pytest.raises(FewshotError, match="this algorithm trains a head on features"):
        Baseline(make_conv4())
