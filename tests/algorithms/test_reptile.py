"""Reptile: the outer gradient is phi minus where the inner optimiser ends, by independent loops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fewshot.algorithms import reptile
from fewshot.algorithms.learner import Tensors
from fewshot.algorithms.maml import MAML
from fewshot.algorithms.reptile import Reptile, minibatches
from fewshot.backbones.mlp import MLP
from fewshot.core.errors import FewshotError
from fewshot.engine.engine import Engine
from fewshot.engine.lift import autograd_copy, lift_one, mean_outer
from fewshot.episodes import Episodes

Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("float64")

WAY = 3
ONE_STEP: dict[str, Any] = {"inner_batch": 1, "test_steps": 1, "test_batch": 1, "inner_loss": "sum"}


def scaled_loss(logits: torch.Tensor, labels: torch.Tensor, reduction: str) -> torch.Tensor:
    total = F.cross_entropy(logits, labels, reduction="none").sum()
    return total / {"sum": 1, "mean": len(labels), "per_shot": max(1, len(labels) // WAY)}[reduction]


def assert_equal(mine: Tensors, theirs: Tensors) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def mean(parts: list[Tensors]) -> Tensors:
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}


def minus(left: Tensors, right: Tensors) -> Tensors:
    return {name: left[name] - right[name] for name in left}


class TensorFlowAdam:
    """tf.train.AdamOptimizer with beta1 = 0: one second moment per parameter, epsilon beside the uncorrected root."""

    def __init__(self, lr: float, state: Tensors | None = None) -> None:
        self.lr, self.steps = lr, int((state or {}).get("inner_step", 0))
        self.moments = {name: value for name, value in (state or {}).items() if name != "inner_step"}

    def step(self, network: nn.Module) -> None:
        self.steps += 1
        rate = self.lr * (1 - 0.999**self.steps) ** 0.5
        with torch.no_grad():
            for name, value in network.named_parameters():
                gradient = torch.zeros_like(value) if value.grad is None else value.grad
                moment = self.moments.get(name, torch.zeros_like(value))
                self.moments[name] = 0.999 * moment + 0.001 * gradient**2
                value.sub_(rate * gradient / (self.moments[name] ** 0.5 + 1e-8))

    @property
    def state(self) -> Tensors:
        return self.moments | {"inner_step": torch.tensor(float(self.steps))}


class Sgd:
    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.state: Tensors = {}

    def step(self, network: nn.Module) -> None:
        torch.optim.SGD(network.parameters(), lr=self.lr).step()


def trained(learner: Reptile, task: Episodes, batches: Iterable[torch.Tensor], optimizer: Any) -> Tensors:
    """The weights that a copy of the backbone ends at."""
    network = copy.deepcopy(learner.backbone)
    for items in batches:
        network.zero_grad()
        scaled_loss(network(task.support_x[items]), task.support_y[items], learner.reduction).backward()
        optimizer.step(network)
    return {name: value.detach() for name, value in network.named_parameters()}


@pytest.mark.parametrize("inner_loss", ["mean", "sum", "per_shot"])
def test_with_sgd_the_outer_gradient_is_phi_minus_the_weights_after_torchs_sgd(
    make_learner: Make, make_episodes: Make, inner_loss: str
):
    learner, episodes = make_learner("reptile-sgd", inner_loss=inner_loss, inner_steps=5), make_episodes(3)
    params, state = learner.init()
    outer = Engine("vmap").outer(learner, params, state, episodes)
    tasks = [episodes[i] for i in range(3)]
    ends = [trained(learner, task, minibatches(task, 5, 4), Sgd(learner.inner_lr)) for task in tasks]
    assert_equal(outer.gradient, minus(params, mean(ends)))
    assert float(outer.gradient["head.weight"].abs().max()) > 1e-3
    assert outer.state == {}


def test_with_adam_a_chain_passes_second_moments_and_the_step_count_from_task_to_task(
    make_learner: Make, make_episodes: Make
):
    learner, episodes = make_learner("reptile-sequential", inner_steps=3), make_episodes(4)
    params, state = learner.init()
    adam = TensorFlowAdam(learner.inner_lr)
    for first in (0, 2):  # the second meta-batch goes on from the moments of the first
        tasks = [episodes[i] for i in (first, first + 1)]
        ends = [trained(learner, task, minibatches(task, 3, 4), adam) for task in tasks]
        outer = Engine("auto").outer(learner, params, state, episodes[first : first + 2])
        state = outer.state
        assert_equal(outer.gradient, minus(params, mean(ends)))
        assert_equal(state, adam.state)


every_method = pytest.mark.parametrize("engine", [Engine("vmap", 2), Engine("loop")], ids=["chunks", "loop"])


@every_method
def test_shared_moments_are_where_every_task_starts_and_their_mean_is_kept(
    make_learner: Make, make_episodes: Make, engine: Engine
):
    learner, episodes = make_learner("reptile-shared", inner_steps=3), make_episodes(3)
    params, state = learner.init()
    state = {name: value + 0.5 for name, value in state.items()} | {"inner_step": torch.tensor(7.0)}
    adams = [TensorFlowAdam(learner.inner_lr, state) for _ in range(3)]
    tasks = [episodes[i] for i in range(3)]
    ends = [trained(learner, task, minibatches(task, 3, 4), adam) for task, adam in zip(tasks, adams, strict=True)]
    outer = engine.outer(learner, params, state, episodes)
    assert_equal(outer.gradient, minus(params, mean(ends)))
    assert_equal(outer.state, mean([adam.state for adam in adams]))
    assert float(outer.state["inner_step"]) == 10


@pytest.mark.parametrize("steps", [1, 3])
def test_in_float32_a_step_of_adam_along_an_even_slope_is_as_long_as_the_rate(steps: int):
    torch.set_default_dtype(torch.float32)  # the fixture of this module puts it back
    x, y = torch.tensor([[[1.0, 1e6]]]), torch.tensor([[0.0]])
    settings = ONE_STEP | {"inner_optimizer": "adam", "adam_state": "shared"}
    learner = Reptile(Scalar(0.0), inner_lr=0.001, inner_steps=steps, **settings)
    outer = Engine("vmap").outer(learner, *learner.init(), Episodes(x, y, x, y, torch.tensor([0])))
    assert -float(outer.gradient["t"]) == pytest.approx(steps * 0.001, rel=1e-6)


@pytest.mark.parametrize("name", ["reptile-sequential", "reptile-shared"])
def test_evaluation_starts_from_the_moments_of_training_and_leaves_them(
    make_learner: Make, make_episodes: Make, name: str
):
    learner, episodes = make_learner(name), make_episodes(3)
    params, empty = learner.init()
    state = Engine("vmap").outer(learner, params, empty, episodes[:2]).state
    before, task = {n: value.clone() for n, value in state.items()}, episodes[2]
    fast = learner.adapt(params, state, task)
    assert all(torch.equal(state[n], before[n]) for n in before)
    batches = minibatches(task, learner.test_steps, learner.test_batch)
    assert_equal(fast, trained(learner, task, batches, TensorFlowAdam(learner.inner_lr, state)))
    gap = fast["head.weight"] - learner.adapt(params, empty, task)["head.weight"]
    assert float(gap.abs().max()) > 1e-4


# FOML


def foml_batches(task: Episodes, steps: int, tail_shots: int | None) -> list[torch.Tensor]:
    """Minibatches of 4 from the 3 classes of a task; a tail, the first items of each class, is the last one."""
    if tail_shots is None:
        return list(minibatches(task, steps, 4))
    shot = len(task.support_y) // WAY
    tail = [shot * label + k for k in range(tail_shots) for label in range(WAY)]
    rest = torch.tensor([i for i in range(len(task.support_y)) if i not in tail])
    return [*rest[minibatches(task, steps - 1, 4, len(rest))], torch.tensor(tail)]


@every_method
@pytest.mark.parametrize("tail_shots", [None, 2])
@pytest.mark.parametrize("inner_optimizer", ["sgd", "adam"])
def test_the_outer_gradient_of_foml_is_the_move_of_the_last_inner_step(
    make_learner: Make, make_episodes: Make, inner_optimizer: str, tail_shots: int | None, engine: Engine
):
    learner = make_learner("reptile-shared", inner_optimizer=inner_optimizer, foml=True, tail_shots=tail_shots)
    params, state = learner.init()
    episodes = make_episodes(3, shot=4)
    moves, states = [], []
    for task in (episodes[i] for i in range(3)):
        batches = foml_batches(task, learner.inner_steps, tail_shots)
        make = TensorFlowAdam if inner_optimizer == "adam" else Sgd
        before, optimizer = trained(learner, task, batches[:-1], make(learner.inner_lr)), make(learner.inner_lr)
        moves.append(minus(before, trained(learner, task, batches, optimizer)))
        states.append(optimizer.state)
    outer = engine.outer(learner, params, state, episodes)
    assert_equal(outer.gradient, mean(moves))
    assert_equal(outer.state, mean(states))  # every step changes the second moments, as in Reptile


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
    foml, reptile = (make_learner("reptile-sequential", inner_steps=1, foml=foml) for foml in (True, False))
    params, state = reptile.init()
    outer = Engine("loop").outer(reptile, params, state, episodes)
    assert_equal(Engine("loop").outer(foml, params, state, episodes).gradient, outer.gradient)
    assert_equal(foml.adapt(params, outer.state, episodes[0]), reptile.adapt(params, outer.state, episodes[0]))


# Minibatches


@pytest.mark.parametrize(("steps", "batch"), [(3, 2), (5, 6), (7, 4), (2, 15), (1, 1)])
def test_minibatches_are_passes_over_the_support_set_cut_into_batches(make_episodes: Make, steps: int, batch: int):
    items = minibatches(make_episodes(1)[0], steps, batch)
    assert items.shape == (steps, batch)
    for one_pass in items.flatten().split(6):
        assert len(one_pass.unique()) == len(one_pass)
        assert set(one_pass.tolist()) <= set(range(6))


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


@pytest.mark.parametrize(("steps", "engine"), [(1, "vmap"), (2, "loop"), (5, "vmap")])
def test_scalar_tasks_move_phi_by_the_closed_form(monkeypatch: pytest.MonkeyPatch, engine: str, steps: int):
    monkeypatch.setattr(reptile, "task_loss", lambda logits, labels, reduction, shot: 0.5 * logits.square().sum())
    a, c = torch.tensor([0.7, 1.9, 0.3]).double(), torch.tensor([0.4, -1.2, 2.0]).double()
    t, rate = 0.9, 0.2
    x, y = torch.stack([a, c], dim=1)[:, None], torch.zeros(3, 1, dtype=torch.int64)
    settings = ONE_STEP | {"inner_optimizer": "sgd", "adam_state": "sequential"}
    learner = Reptile(Scalar(t), inner_lr=rate, inner_steps=steps, **settings)
    outer = Engine(engine).outer(learner, *learner.init(), Episodes(x, y, x, y, y[:, 0]))
    q = (1 - rate * a) ** steps
    assert float(outer.gradient["t"]) == pytest.approx(float(((1 - q) * (t - c)).mean()), rel=1e-12)


def test_two_steps_agree_with_the_taylor_expansions_to_first_order(make_episodes: Make):
    """Reptile paper, equations 25 to 27; the remainder is of the second order in the step size."""
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

    def remainders(rate: float) -> list[float]:
        common: dict[str, Any] = {"inner_lr": rate, "inner_loss": "mean", "test_steps": 1}
        learner = Reptile(
            network, inner_steps=2, inner_batch=6, test_batch=6, inner_optimizer="sgd", adam_state="shared", **common
        )
        whole = Episodes(*(value[None] for value in task.tensors()))
        gradients = [flat(Engine("loop").outer(learner, params, {}, whole).gradient) / rate]
        for first_order in (True, False):
            maml = MAML(network, inner_steps=1, first_order=first_order, outer_loss="mean", **common)
            # Not by `Engine`, which refuses classes of unequal sizes.
            gradients.append(flat(mean_outer(autograd_copy(maml), params, {}, episodes, lift_one).gradient))
        expansions = [
            g[0] + g[1] - rate * h[1] @ g[0],
            g[1] - rate * h[1] @ g[0],
            g[1] - rate * h[1] @ g[0] - rate * h[0] @ g[1],
        ]
        return [float((mine - theirs).norm()) for mine, theirs in zip(gradients, expansions, strict=True)]

    rate = 1e-3
    for coarse, fine in zip(remainders(rate), remainders(rate / 2), strict=True):
        assert coarse < 0.05 * rate * float((h[1] @ g[0]).norm())
        assert coarse / fine == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        *(
            ({name: "wrong"}, f"{name}=wrong: choose one of")
            for name in ("inner_optimizer", "inner_loss", "adam_state")
        ),
        ({"tail_shots": 1}, "tail_shots=1: needs algorithm=foml and at least 2 inner steps"),
        ({"tail_shots": 1, "foml": True, "inner_steps": 1}, "tail_shots=1: needs algorithm=foml"),
        ({"tail_shots": 0, "foml": True}, "tail_shots=0: must be a whole number >= 1"),
        ({"foml": 1}, "foml=1: must be true or false"),
        ({"inner_batch": 0}, "inner_batch=0: must be a whole number >= 1"),
    ],
)
def test_settings_out_of_range_are_refused(make_learner: Make, choices: dict[str, Any], message: str):
    with pytest.raises(FewshotError, match=rf"algorithm\.learner\.{message}"):
        make_learner("reptile-sequential", **choices)


def test_a_tail_that_leaves_no_shots_is_refused(make_learner: Make, make_episodes: Make):
    learner = make_learner("reptile-sgd", foml=True, tail_shots=2)
    with pytest.raises(FewshotError, match="tail_shots=2: leaves none of 2 shots"):
        Engine("vmap").outer(learner, *learner.init(), make_episodes(2))
