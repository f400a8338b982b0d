"""MAML++: MAML when all is off, and what each change does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from fewshot.algorithms.learner import functional_forward, task_loss
from fewshot.algorithms.maml import ALPHA, MAML
from fewshot.algorithms.maml_plus_plus import STEP, MAMLPlusPlus
from fewshot.engine.engine import Engine

pytestmark = pytest.mark.usefixtures("float64")

Make = Callable[..., Any]
OFF: dict[str, Any] = {"step_rates": False, "step_norms": False, "multi_step_until": 0.0, "first_order_until": 0.0}
STEPS: dict[str, Any] = {"inner_lr": 0.1, "inner_steps": 3, "test_steps": 4}


def outer(learner: MAML, task: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The outer loss and its gradient."""
    params = {name: value.requires_grad_() for name, value in learner.init()[0].items()}
    loss, _ = learner.outer_loss(params, task)
    return loss, dict(
        zip(params, torch.autograd.grad(loss, list(params.values()), materialize_grads=True), strict=True)
    )


def test_with_everything_off_it_is_maml(make_conv4: Make, make_episodes: Make) -> None:
    task, network = make_episodes(1)[0], make_conv4()
    ours = MAMLPlusPlus(network, **STEPS, **OFF)
    maml = MAML(network, inner_loss="mean", outer_loss="mean", **STEPS)
    torch.testing.assert_close(outer(ours, task), outer(maml, task), rtol=0, atol=0)
    params = maml.init()[0]
    torch.testing.assert_close(ours.adapt(params, {}, task), maml.adapt(params, {}, task), rtol=0, atol=0)


def test_at_the_start_rates_and_norms_of_each_step_are_mamls(make_conv4: Make, make_episodes: Make) -> None:
    task, network = make_episodes(1)[0], make_conv4(adapt_norm=False)
    ours = MAMLPlusPlus(network, **STEPS, multi_step_until=0.0)
    loss, gradient = outer(ours, task)
    expected, whole = outer(MAML(network, inner_loss="mean", outer_loss="mean", **STEPS), task)
    torch.testing.assert_close(loss, expected)
    for name, value in whole.items():  # a scale of MAML stands in all three steps
        steps = gradient[STEP + name].sum(0) if name in ours.step_norms else gradient[name]
        torch.testing.assert_close(steps, value)
    assert all(gradient[ALPHA + name].shape == (3,) for name in ours.adapted)
    assert not any(name in ours.step_norms for name in ours.adapted)


@pytest.mark.parametrize("change", [{"step_rates": True}, {"step_norms": True}, {"multi_step_until": 1.0}])
def test_each_change_alone_has_the_same_gradient_on_every_engine(
    make_conv4: Make, make_episodes: Make, change: dict[str, Any]
) -> None:
    learner, episodes = MAMLPlusPlus(make_conv4(), **STEPS, **(OFF | change)), make_episodes(2)
    learner.begin_step(0, 100)
    params, state = learner.init()
    one, other = (Engine(name).outer(learner, params, state, episodes) for name in ("vmap", "loop"))
    torch.testing.assert_close(one.gradient, other.gradient)
    new = {name: value for name, value in one.gradient.items() if name.startswith((ALPHA, STEP))}
    assert all(value.any() for name, value in new.items() if not name.endswith("conv.bias"))
    assert bool(new) != ("multi_step_until" in change)
    learner.begin_step(100, 100)
    last = Engine("vmap").outer(learner, params, state, episodes)
    assert torch.equal(last.loss, one.loss) == ("multi_step_until" not in change)


def test_the_losses_of_all_steps_count_less_and_less(make_conv4: Make, make_episodes: Make) -> None:
    task = make_episodes(1)[0]
    learner = MAMLPlusPlus(make_conv4(), **STEPS, **(OFF | {"multi_step_until": 0.5}))
    params = learner.init()[0]
    losses = [
        task_loss(learner.predict(learner.inner_loop(params, task, steps), task.query_x), task.query_y, "mean", 2)
        for steps in (1, 2, 3)
    ]
    # the program's vector: 1 / S each, of which every stage takes as much from all but the last
    for step, kept in ((0, 1 / 3), (9, 1 / 3), (20, 0.6 / 3), (49, 0.2 / 3)):
        learner.begin_step(step, 100)
        wanted = kept * (losses[0] + losses[1]) + (1 - 2 * kept) * losses[2]
        torch.testing.assert_close(learner.outer_loss(params, task)[0], wanted)
    learner.begin_step(50, 100)
    torch.testing.assert_close(learner.outer_loss(params, task)[0], losses[2])


def test_each_step_has_its_own_rates_and_norms_and_its_loss_too(make_conv4: Make, make_episodes: Make) -> None:
    task, network = make_episodes(1)[0], make_conv4(adapt_norm=False)
    learner = MAMLPlusPlus(network, **STEPS, multi_step_until=1.0)
    learner.begin_step(0, 100)
    factor = torch.tensor([1.0, 1.5, 0.5])
    params = learner.init()[0]
    for name, value in params.items():
        if name.startswith((ALPHA, STEP)):
            params[name] = (value + 0.1 * name.startswith(STEP)) * factor.view(-1, *(1,) * (value.dim() - 1))
    fixed = {name: value for name, value in params.items() if not name.startswith((ALPHA, STEP))}
    fast = {name: fixed[name].clone().requires_grad_() for name in learner.adapted}
    losses = []
    for step in range(3):
        norms = {name: params[STEP + name][step] for name in learner.step_norms}
        support = cross_entropy(functional_forward(network, fixed | norms | fast, task.support_x), task.support_y)
        gradients = torch.autograd.grad(support, list(fast.values()), materialize_grads=True)
        fast = {n: v - params[ALPHA + n][step] * g for (n, v), g in zip(fast.items(), gradients, strict=True)}
        losses.append(cross_entropy(functional_forward(network, fixed | norms | fast, task.query_x), task.query_y))
    torch.testing.assert_close(learner.outer_loss(params, task)[0], sum(losses) / 3)
    learner.test_steps = 3
    adapted = learner.adapt(params, {}, task)
    torch.testing.assert_close({name: adapted[name] for name in fast}, fast)


def test_inner_gradients_are_constants_until_their_time_is_over(make_conv4: Make, make_episodes: Make) -> None:
    task, network = make_episodes(1)[0], make_conv4()
    learner = MAMLPlusPlus(network, **STEPS, **(OFF | {"first_order_until": 0.5}))
    for step, first_order in ((0, True), (49, True), (50, False)):
        learner.begin_step(step, 100)
        maml = MAML(network, inner_loss="mean", outer_loss="mean", first_order=first_order, **STEPS)
        torch.testing.assert_close(outer(learner, task), outer(maml, task))


def test_its_cost_counts_the_queries_after_each_step_while_they_count(make_conv4: Make) -> None:
    evaluations = [
        MAMLPlusPlus(make_conv4(), **(STEPS | {"multi_step_until": share})).gradient_evaluations for share in (0.0, 1.0)
    ]
    assert evaluations == [STEPS["inner_steps"] + 1, 2 * STEPS["inner_steps"]]


def test_a_test_takes_more_steps_by_the_last_rates_and_norms(make_conv4: Make, make_episodes: Make) -> None:
    task, learner = make_episodes(1)[0], MAMLPlusPlus(make_conv4(), **STEPS)
    params = learner.init()[0]
    before = learner.adapt(params, {}, task)
    for prefix in (ALPHA, STEP):
        changed = {n: torch.cat([v[:2], 2 * v[2:]]) for n, v in params.items() if n.startswith(prefix)}
        after = learner.adapt(params | changed, {}, task)
        assert not torch.equal(before["head.weight"], after["head.weight"])
    torch.testing.assert_close(after[learner.step_norms[0]], 2 * before[learner.step_norms[0]])
