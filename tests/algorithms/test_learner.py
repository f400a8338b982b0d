"""The interface of a learner, and the functions that learners share: losses, scores, parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewshot.algorithms.learner import (
    REDUCTIONS,
    Learner,
    backbone_parameters,
    functional_forward,
    score,
    task_loss,
    with_defaults,
)
from fewshot.core.errors import FewshotError

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.5], [1.0, 0.0, 0.0], [0, 0, 1]])
LABELS = torch.tensor([0, 1, 0, 2, 0, 1])
OUTPUTS, TARGETS = torch.tensor([[1.0], [2.0], [-1.0], [0.0]]), torch.tensor([1.0, 0.0, 1.0, 3.0])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy_of_labels_is_scaled_as_it_says(reduction: str):
    each = -LOGITS.log_softmax(1)[torch.arange(6), LABELS]
    wanted = {"mean": each.sum() / 6, "sum": each.sum(), "per_shot": each.sum() / 2}[reduction]
    torch.testing.assert_close(task_loss(LOGITS, LABELS, reduction, shot=2), wanted)


@pytest.mark.parametrize(("reduction", "wanted"), [("mean", 17 / 4), ("sum", 17.0), ("per_shot", 17 / 4)])
def test_squared_error_of_float_targets_is_scaled_as_it_says(reduction: str, wanted: float):
    assert float(task_loss(OUTPUTS, TARGETS, reduction, shot=4)) == pytest.approx(wanted)


def test_a_test_reports_accuracy_of_labels_and_squared_error_of_float_targets():
    assert float(score(LOGITS, LABELS)) == pytest.approx(4 / 6)
    assert float(score(OUTPUTS, TARGETS)) == pytest.approx(17 / 4)


def test_a_parameter_of_two_names_is_given_once_and_used_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.other.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.other(self.one(x))

    network, matrix = Twice(), torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    assert list(backbone_parameters(network)) == ["one.weight"]
    torch.testing.assert_close(functional_forward(network, {"one.weight": matrix}, torch.eye(2)), 6 * torch.eye(2))


class Whole:
    def init(self): ...
    def adapt(self, params, state, task): ...
    def predict(self, adapted, x): ...


class Part(Learner):
    def init(self): ...


def test_a_learner_needs_three_methods_and_has_defaults_for_the_rest():
    learner = with_defaults(Whole())
    assert (learner.test_steps, learner.sequential, learner.use_autograd) == (0, False, False)
    for lacking, name in ((object(), "init"), (Part(), "adapt")):
        with pytest.raises(FewshotError, match=f"has no method {name}; see `Learner`"):
            with_defaults(lacking)
