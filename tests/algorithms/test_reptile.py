"""Reptile: the outer gradient is phi minus where the inner optimiser ends, by independent loops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fewshot.algorithms import reptile
from fewshot.algorithms.engine import Engine
from fewshot.algorithms.learner import Tensors
from fewshot.algorithms.maml import Maml
from fewshot.algorithms.reptile import Reptile, minibatches
from fewshot.backbones.mlp import MLP
from fewshot.episodes import Episodes
from fewshot.errors import FewshotError

Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("float64")

WAY = 3


def scaled_loss(logits: torch.Tensor, labels: torch.Tensor, reduction: str) -> torch.Tensor:
    total = F.cross_entropy(logits, labels, reduction="none").sum()
    return total / {"sum": 1, "mean": len(labels), "per_shot": max(1, len(labels) // WAY)}[reduction]


def assert_equal(mine: Tensors, theirs: Tensors) -> None:
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-9, atol=1e-11)


class TensorFlowAdam:
    """tf.train.AdamOptimizer with beta1 = 0: one second moment per parameter, epsilon beside the uncorrected root."""

    def __init__(self, lr: float) -> None:
        self.lr, self.steps = lr, 0
        self.moments: Tensors = {}

    def step(self, network: nn.Module) -> None:
        self.steps += 1
        rate = self.lr * (1 - 0.999**self.steps) ** 0.5
        with torch.no_grad():
            for name, value in network.named_parameters():
                gradient = torch.zeros_like(value) if value.grad is None else value.grad
                moment = self.moments.get(name, torch.zeros_like(value))
                self.moments[name] = 0.999 * moment + 0.001 * gradient**2
                value.sub_(rate * gradient / (self.moments[name] ** 0.5 + 1e-8))


def trained(network: nn.Module, task: Episodes, batches: Any, reduction: str, step: Callable[..., Any]) -> Any:
    """The weights that a copy of the network ends at."""
    network = copy.deepcopy(network)
    take = step(network)
    for items in batches:
        network.zero_grad()
        scaled_loss(network(task.support_x[items]), task.support_y[items], reduction).backward()
        take()
    return {name: value.detach() for name, value in network.named_parameters()}


@pytest.mark.parametrize("inner_loss", ["mean", "sum", "per_shot"])
def test_with_sgd_the_outer_gradient_is_phi_minus_the_weights_after_torchs_sgd(
    make_learner: Make, make_episodes: Make, inner_loss: str
):
    learner = make_learner("reptile-sgd", inner_loss=inner_loss, inner_steps=5)
    params, carry = learner.initial()
    episodes = make_episodes(3)
    outer = Engine("vmap").outer(learner, params, carry, episodes)
    ends = [
        trained(
            learner.backbone,
            episodes[i],
            minibatches(episodes[i], 5, 4),
            inner_loss,
            lambda network: torch.optim.SGD(network.parameters(), lr=learner.inner_lr).step,
        )
        for i in range(3)
    ]
    expected = {n: params[n] - torch.stack([end[n] for end in ends]).mean(0) for n in params}
    assert_equal(outer.gradient, expected)
    assert float(outer.gradient["head.weight"].abs().max()) > 1e-3
    assert outer.carry == {}


def test_with_adam_a_chain_passes_second_moments_and_the_step_count_from_task_to_task(
    make_learner: Make, make_episodes: Make
):
    learner = make_learner("reptile-chained", inner_steps=3)
    params, carry = learner.initial()
    episodes = make_episodes(4)
    adam = TensorFlowAdam(learner.inner_lr)

    def end(task: Episodes) -> Tensors:
        return trained(
            learner.backbone, task, minibatches(task, 3, 4), "sum", lambda network: lambda: adam.step(network)
        )

    first, second = end(episodes[0]), end(episodes[1])
    outer = Engine("auto").outer(learner, params, carry, episodes[:2])
    assert_equal(outer.gradient, {name: params[name] - (first[name] + second[name]) / 2 for name in params})
    assert_equal(outer.carry, adam.moments | {"inner_step": torch.tensor(6.0)})

    # The next meta-batch goes on from there.
    third, fourth = end(episodes[2]), end(episodes[3])
    outer = Engine("auto").outer(learner, params, outer.carry, episodes[2:])
    assert_equal(outer.gradient, {name: params[name] - (third[name] + fourth[name]) / 2 for name in params})
    assert_equal(outer.carry, adam.moments | {"inner_step": torch.tensor(12.0)})


@pytest.mark.parametrize("engine", [Engine("vmap"), Engine("vmap", 2), Engine("loop")], ids=["vmap", "chunks", "loop"])
def test_shared_moments_are_where_every_task_starts_and_their_mean_is_kept(
    make_learner: Make, make_episodes: Make, engine: Engine
):
    learner = make_learner("reptile-shared", inner_steps=3)
    params, carry = learner.initial()
    carry = {name: value + 0.5 for name, value in carry.items()} | {"inner_step": torch.tensor(7.0)}
    episodes = make_episodes(3)
    ends, moments = [], []
    for i in range(3):
        adam = TensorFlowAdam(learner.inner_lr)
        adam.moments, adam.steps = {n: v for n, v in carry.items() if n != "inner_step"}, 7
        step = lambda network, adam=adam: lambda: adam.step(network)  # noqa: E731
        ends.append(trained(learner.backbone, episodes[i], minibatches(episodes[i], 3, 4), "sum", step))
        moments.append(adam.moments)
    outer = engine.outer(learner, params, carry, episodes)
    assert_equal(outer.gradient, {n: params[n] - torch.stack([end[n] for end in ends]).mean(0) for n in params})
    mean = {name: torch.stack([moment[name] for moment in moments]).mean(0) for name in params}
    assert_equal(outer.carry, mean | {"inner_step": torch.tensor(10.0)})


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_in_float32_a_step_of_adam_along_an_even_slope_is_as_long_as_the_rate(steps: int):
    torch.set_default_dtype(torch.float32)  # the fixture of this module puts it back
    x, y = torch.tensor([[[1.0, 1e6]]]), torch.tensor([[0.0]])
    learner = Reptile(
        Scalar(0.0),
        inner_lr=0.001,
        inner_steps=steps,
        inner_batch=1,
        test_steps=1,
        test_batch=1,
        inner_optimizer="adam",
        inner_loss="sum",
        adam_state="shared",
    )
    outer = Engine("vmap").outer(learner, *learner.initial(), Episodes(x, y, x, y, torch.tensor([0])))
    assert -float(outer.gradient["t"]) == pytest.approx(steps * 0.001, rel=1e-6)


def test_one_task_is_the_same_chained_and_shared(make_learner: Make, make_episodes: Make):
    episodes = make_episodes(1)
    results = []
    for name in ("reptile-chained", "reptile-shared"):
        learner = make_learner(name)
        params, carry = learner.initial()
        results.append(Engine("vmap").outer(learner, params, carry, episodes))
    assert_equal(results[0].gradient, results[1].gradient)
    assert_equal(results[0].carry, results[1].carry)


@pytest.mark.parametrize("name", ["reptile-chained", "reptile-shared"])
def test_evaluation_starts_from_the_moments_of_training_and_leaves_them(
    make_learner: Make, make_episodes: Make, name: str
):
    learner, episodes = make_learner(name), make_episodes(3)
    params, empty = learner.initial()
    carry = Engine("vmap").outer(learner, params, empty, episodes[:2]).carry
    before = {n: value.clone() for n, value in carry.items()}
    task = episodes[2]
    fast = learner.adapt(params, carry, task)
    assert all(torch.equal(carry[n], before[n]) for n in before)
    assert_equal(fast, learner.adapt(params, carry, task))

    adam = TensorFlowAdam(learner.inner_lr)
    adam.moments, adam.steps = {n: v for n, v in carry.items() if n != "inner_step"}, int(carry["inner_step"])
    batches = minibatches(task, learner.test_steps, learner.test_batch)
    assert_equal(fast, trained(learner.backbone, task, batches, "sum", lambda net: lambda: adam.step(net)))
    gap = fast["head.weight"] - learner.adapt(params, empty, task)["head.weight"]
    assert float(gap.abs().max()) > 1e-4


# FOML


def foml_batches(task: Episodes, steps: int, tail_shots: int | None) -> list[torch.Tensor]:
    """Minibatches of 4 from the 3 classes of a task, the last one with a tail the first items of each class."""
    if tail_shots is None:
        return list(minibatches(task, steps, 4))
    shot = len(task.support_y) // WAY
    tail = [shot * label + k for k in range(tail_shots) for label in range(WAY)]
    rest = torch.tensor([i for i in range(len(task.support_y)) if i not in tail])
    return [*rest[minibatches(task, steps - 1, 4, len(rest))], torch.tensor(tail)]


@pytest.mark.parametrize("engine", [Engine("vmap"), Engine("vmap", 2), Engine("loop")], ids=["vmap", "chunks", "loop"])
@pytest.mark.parametrize("tail_shots", [None, 1, 2])
@pytest.mark.parametrize("inner_optimizer", ["sgd", "adam"])
def test_the_outer_gradient_of_foml_is_the_move_of_the_last_inner_step(
    make_learner: Make, make_episodes: Make, inner_optimizer: str, tail_shots: int | None, engine: Engine
):
    learner = make_learner("reptile-shared", inner_optimizer=inner_optimizer, foml=True, tail_shots=tail_shots)
    params, carry = learner.initial()
    episodes = make_episodes(3, shot=4)
    moves, moments = [], []
    for i in range(3):
        batches = foml_batches(episodes[i], learner.inner_steps, tail_shots)
        positions = []
        for cut in (batches[:-1], batches):
            adam = TensorFlowAdam(learner.inner_lr)
            steps = {
                "sgd": lambda network: torch.optim.SGD(network.parameters(), lr=learner.inner_lr).step,
                "adam": lambda network, adam=adam: lambda: adam.step(network),
            }
            positions.append(trained(learner.backbone, episodes[i], cut, "sum", steps[inner_optimizer]))
        moves.append({name: positions[0][name] - positions[1][name] for name in params})
        moments.append(adam.moments)
    outer = engine.outer(learner, params, carry, episodes)
    assert_equal(outer.gradient, {n: torch.stack([move[n] for move in moves]).mean(0) for n in params})
    if inner_optimizer == "adam":  # every step changes the second moments, as in Reptile
        mean = {name: torch.stack([moment[name] for moment in moments]).mean(0) for name in params}
        assert_equal(outer.carry, mean | {"inner_step": torch.tensor(3.0)})


def test_a_tail_is_the_last_minibatch_and_in_no_other(make_learner: Make, make_episodes: Make):
    learner = make_learner("reptile-sgd", foml=True, tail_shots=2, inner_steps=6)
    task = make_episodes(1, shot=4)[0]
    *first, tail = learner._training_minibatches(task)
    assert task.support_y[tail].bincount().tolist() == [2, 2, 2]
    seen = torch.cat(first)
    assert len(first) == 5 and not set(tail.tolist()) & set(seen.tolist())
    assert sorted({*seen.tolist(), *tail.tolist()}) == list(range(12))
    # Passes over the rest without replacement: 20 items from a pool of 6.
    assert sorted(seen[:6].tolist()) == sorted(seen[6:12].tolist()) == sorted(set(seen.tolist()))


def test_a_tail_of_a_function_is_of_its_points(make_learner: Make, make_regression: Make):
    network, episodes = make_regression(2, shot=4)
    learner = make_learner("reptile-sgd", network, foml=True, tail_shots=1, inner_batch=3)
    *first, tail = learner._training_minibatches(episodes[0])
    assert tail.tolist() == [0] and set(torch.cat(first).tolist()) == {1, 2, 3}


def test_foml_of_one_step_is_reptile_and_adapts_as_reptile_does(make_learner: Make, make_episodes: Make):
    episodes = make_episodes(2)
    foml, reptile = (make_learner("reptile-chained", inner_steps=1, foml=foml) for foml in (True, False))
    params, carry = reptile.initial()
    outer = Engine("loop").outer(reptile, params, carry, episodes)
    assert_equal(Engine("loop").outer(foml, params, carry, episodes).gradient, outer.gradient)
    assert_equal(foml.adapt(params, outer.carry, episodes[0]), reptile.adapt(params, outer.carry, episodes[0]))


def test_a_tail_that_cannot_be_is_refused(make_learner: Make, make_episodes: Make):
    for choices in ({"foml": False}, {"foml": True, "inner_steps": 1}):
        with pytest.raises(FewshotError, match="tail_shots=1: needs algorithm=foml and at least 2 inner steps"):
            make_learner("reptile-sgd", tail_shots=1, **choices)
    with pytest.raises(FewshotError, match="tail_shots=0: must be a whole number >= 1"):
        make_learner("reptile-sgd", foml=True, tail_shots=0)
    with pytest.raises(FewshotError, match="foml=1: must be true or false"):
        make_learner("reptile-sgd", foml=1)
    learner = make_learner("reptile-sgd", foml=True, tail_shots=2)
    params, carry = learner.initial()
    with pytest.raises(FewshotError, match="tail_shots=2: leaves none of 2 shots"):
        Engine("vmap").outer(learner, params, carry, make_episodes(2))


# Minibatches


@pytest.mark.parametrize(("steps", "batch"), [(3, 2), (4, 4), (5, 6), (7, 4), (2, 15), (1, 1)])
def test_minibatches_are_passes_over_the_support_set_cut_into_batches(make_episodes: Make, steps: int, batch: int):
    task = make_episodes(1)[0]
    items = minibatches(task, steps, batch)
    assert items.shape == (steps, batch)
    stream = items.flatten()
    for start in range(0, len(stream), 6):
        part = stream[start : start + 6]
        assert len(part.unique()) == len(part)
        assert set(part.tolist()) <= set(range(6))


def test_passes_and_tasks_have_orders_of_their_own(make_episodes: Make):
    episodes = make_episodes(8)
    orders = torch.cat([minibatches(episodes[i], 10, 6) for i in range(8)])
    assert len(orders.unique(dim=0)) > 70  # of 80 drawn among 720
    assert torch.equal(minibatches(episodes[3], 10, 6), minibatches(episodes[3], 10, 6))


# Closed forms


class Scalar(nn.Module):
    """One parameter t; examples are pairs (curvature, centre), outputs sqrt(curvature) (t - centre)."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(t))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1].sqrt() * (self.t - x[:, 1:])


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_scalar_tasks_move_phi_by_the_closed_form(monkeypatch: pytest.MonkeyPatch, engine: str, steps: int):
    monkeypatch.setattr(reptile, "task_loss", lambda logits, labels, reduction, shot: 0.5 * logits.square().sum())
    a, c = torch.tensor([0.7, 1.9, 0.3]).double(), torch.tensor([0.4, -1.2, 2.0]).double()
    t, rate, meta_step = 0.9, 0.2, 0.25
    x, y = torch.stack([a, c], dim=1)[:, None], torch.zeros(3, 1, dtype=torch.int64)
    learner = Reptile(
        Scalar(t),
        inner_lr=rate,
        inner_steps=steps,
        inner_batch=1,
        test_steps=1,
        test_batch=1,
        inner_optimizer="sgd",
        inner_loss="sum",
        adam_state="chained",
    )
    outer = Engine(engine).outer(learner, *learner.initial(), Episodes(x, y, x, y, y[:, 0]))
    q = (1 - rate * a) ** steps
    moved = t - meta_step * float(outer.gradient["t"])
    assert moved == pytest.approx(t + meta_step * float(((1 - q) * (c - t)).mean()), rel=1e-12)
    if steps == 1:
        assert moved == pytest.approx(t + meta_step * rate * float((a * (c - t)).mean()), rel=1e-12)


def test_two_steps_agree_with_the_taylor_expansions_to_first_order(make_episodes: Make):
    """Reptile paper, equations 25 to 27; what is left over is of the second order in the step size."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"norm": "none", "norm_scale": False, "norm_eps": 1e-3, "adapt_norm": True}
    network = MLP((1, 8, 8), WAY, widths=(), head_init="xavier", **settings)
    task = make_episodes(1, shot=4)[0]
    params = {name: value.detach() for name, value in network.named_parameters()}
    names = list(params)
    halves = minibatches(task, 2, 6)

    def flat(tensors: Any) -> torch.Tensor:
        return torch.cat([tensors[name].flatten() for name in names])

    def loss(values: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        parts = values.split([params[name].numel() for name in names])
        at = {name: part.view_as(params[name]) for name, part in zip(names, parts, strict=True)}
        return F.cross_entropy(functional_call(network, at, (task.support_x[items],)), task.support_y[items])

    g = [torch.func.grad(loss)(flat(params), items) for items in halves]
    h = [torch.func.jacrev(torch.func.grad(loss))(flat(params), items) for items in halves]
    first, second = ((task.support_x[items], task.support_y[items]) for items in halves)
    episodes = Episodes(*(value[None] for value in (*first, *second, task.key)))

    def left_over(rate: float) -> list[float]:
        common: dict[str, Any] = {"inner_lr": rate, "inner_loss": "mean", "test_steps": 1}
        learner = Reptile(
            network, inner_steps=2, inner_batch=6, test_batch=6, inner_optimizer="sgd", adam_state="shared", **common
        )
        whole = Episodes(*(value[None] for value in task.tensors()))
        found = [flat(Engine("loop").outer(learner, params, {}, whole).gradient) / rate]
        for first_order in (True, False):
            maml = Maml(network, inner_steps=1, first_order=first_order, outer_loss="mean", **common)
            found.append(flat(Engine("loop").outer(maml, params, {}, episodes).gradient))
        expansions = [
            g[0] + g[1] - rate * h[1] @ g[0],
            g[1] - rate * h[1] @ g[0],
            g[1] - rate * h[1] @ g[0] - rate * h[0] @ g[1],
        ]
        return [float((mine - theirs).norm()) for mine, theirs in zip(found, expansions, strict=True)]

    rate = 1e-3
    for coarse, fine in zip(left_over(rate), left_over(rate / 2), strict=True):
        assert coarse < 0.05 * rate * float((h[1] @ g[0]).norm())
        assert coarse / fine == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("name", ["inner_optimizer", "inner_loss", "adam_state"])
def test_unknown_choices_are_refused(make_learner: Make, name: str):
    with pytest.raises(FewshotError, match=rf"algorithm\.learner\.{name}=wrong: choose one of"):
        make_learner("reptile-chained", **{name: "wrong"})
