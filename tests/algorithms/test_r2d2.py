"""R2-D2: the closed form against a direct solve, and what is learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fewshot.algorithms.r2d2 import R2D2
from fewshot.backbones.identity import Identity
from fewshot.core.errors import FewshotError

from .closed_form import assert_gradient

pytestmark = pytest.mark.usefixtures("float64")

Make = Callable[..., Any]


@pytest.mark.parametrize("learned", [False, True])
def test_it_equals_a_direct_solve_of_the_normal_equations(make_conv4: Make, make_episodes: Make, learned: bool) -> None:
    task, network = make_episodes(1, shot=2)[0], make_conv4()
    learner = R2D2(network, regularization=0.3, learn_regularization=learned, scale=2.0)
    params, state = learner.init()
    logits = learner.predict(learner.adapt(params, state, task), task.query_x)
    support, query = (F.pad(network.embed(x), (0, 1), value=1.0) for x in (task.support_x, task.query_x))
    n, width = support.shape
    system = support.T @ support / n + 0.3 * torch.eye(width)
    weights = torch.linalg.inv(system) @ support.T @ F.one_hot(task.support_y, 3).double() / n
    torch.testing.assert_close(logits, 2 * query @ weights)
    assert_gradient(learner, network, task, 2 * query @ weights)


@pytest.mark.parametrize("width", [4, 40])
def test_a_small_lambda_leaves_the_solution_exact_in_float32(make_episodes: Make, width: int) -> None:
    task = make_episodes(1, shot=5, shape=(width,))[0]  # 15 examples: more than features, or fewer
    noise = torch.randn(len(task.support_x), width, generator=torch.Generator().manual_seed(0))
    task = task.with_tensors(noise, task.support_y, noise, task.support_y, task.key)
    learner = R2D2(Identity((width,), 3), regularization=1e-4, scale=1.0)
    params = learner.init()[0]
    exact, rounded = (
        learner.predict(learner.adapt(params, {}, each), each.query_x) for each in (task, task.to(torch.float32))
    )
    torch.testing.assert_close(rounded.double(), exact, rtol=0, atol=1e-5)


def test_the_solution_is_differentiated(make_conv4: Make, make_episodes: Make) -> None:
    task = make_episodes(1, shot=2)[0]
    learner = R2D2(make_conv4(), regularization=0.3, learn_regularization=True, scale=2.0)
    params = {name: value.requires_grad_() for name, value in learner.init()[0].items()}

    def loss(log_lambda: torch.Tensor) -> torch.Tensor:
        return learner.outer_loss(params | {"log_lambda/": log_lambda}, task)[0]

    assert torch.autograd.gradcheck(loss, (params["log_lambda/"],))


def test_a_whole_number_is_a_scale_too(make_conv4: Make, make_episodes: Make) -> None:
    task = make_episodes(1, shot=2)[0]
    whole, decimal = (R2D2(make_conv4(), regularization=number, scale=number) for number in (1, 1.0))
    assert torch.equal(*(learner.outer_loss(learner.init()[0], task)[0] for learner in (whole, decimal)))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"regularization": 0}, "regularization=0: must be a number >= 1e-12"),
        ({"scale": "x"}, "scale=x: must be a number"),
        ({"learn_regularization": 1}, "learn_regularization=1: must be true or false"),
    ],
)
def test_settings_out_of_range_are_refused(make_conv4: Make, choices: dict[str, Any], message: str) -> None:
    with pytest.raises(FewshotError, match=rf"algorithm\.learner\.{message}"):
        R2D2(make_conv4(), **choices)
