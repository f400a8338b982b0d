"""MAML and FOMAML: the outer gradient is that of the unrolled objective, by independent means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fewshot.algorithms.learner import Tensors
from fewshot.algorithms.maml import MAML
from fewshot.algorithms.maml_plus_plus import MAMLPlusPlus
from fewshot.backbones.conv4 import Conv4
from fewshot.backbones.norm import BatchStatNorm
from fewshot.core.errors import FewshotError
from fewshot.engine.engine import Engine
from fewshot.engine.reduce import MetaGradient
from fewshot.episodes import Episodes

Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("float64")

WAY, SHOT = 3, 2
SCALE = {"mean": 1.0, "sum": float(WAY * SHOT), "per_shot": float(WAY)}  # times the mean cross-entropy


def plain_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean over items, of cross-entropies or of squared errors."""
    if targets.is_floating_point():
        return (outputs[:, 0] - targets).square().mean()
    return F.cross_entropy(outputs, targets)


def adapted(learner: MAML, params: Tensors, task: Episodes, scale: float) -> Tensors:
    """The weights after the inner loop, by torch.autograd, with the rates that the parameters hold, if any."""
    weights = {name: value for name, value in params.items() if not name.startswith("inner_lr/")}
    fast = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
    for step in range(learner.inner_steps):
        loss = scale * plain_loss(functional_call(learner.backbone, fast, (task.support_x,)), task.support_y)
        gradients = torch.autograd.grad(loss, list(fast.values()), allow_unused=True)
        for (name, value), gradient in zip(list(fast.items()), gradients, strict=True):
            if gradient is not None and name in learner.adapted:
                rate = params.get(f"inner_lr/{name}", torch.tensor(learner.inner_lr))
                rate = rate[step] if isinstance(learner, MAMLPlusPlus) else rate
                fast[name] = (value - rate * gradient).detach().requires_grad_()
    return fast


def unrolled(learner: MAML, params: Tensors, episodes: Episodes, scale: float) -> float:
    """The mean query loss after the inner loop."""
    losses = []
    for task in (episodes[i] for i in range(len(episodes))):
        fast = adapted(learner, params, task, scale)
        losses.append(plain_loss(functional_call(learner.backbone, fast, (task.query_x,)), task.query_y))
    return float(torch.stack(losses).mean().detach())


def outer_of(learner: MAML, engine: str, episodes: Episodes) -> MetaGradient:
    params, state = learner.init()
    return Engine(engine).outer(learner, params, state, episodes)


def dot(left: Tensors, right: Tensors) -> float:
    return sum(float((left[name] * right[name]).sum()) for name in left)


def direction(like: Tensors) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(value.shape, generator=generator) for name, value in like.items()}
    norm = dot(drawn, drawn) ** 0.5
    return {name: value / norm for name, value in drawn.items()}


def assert_gradient(learner: MAML, episodes: Episodes, scale: float, engine: str = "vmap") -> None:
    """Compare with finite differences, along a random direction and along each tensor's own gradient."""
    params, state = learner.init()
    outer = Engine(engine).outer(learner, params, state, episodes)

    def objective(along: Tensors, step: float) -> float:
        return unrolled(learner, {n: v + step * along[n] for n, v in params.items()}, episodes, scale)

    assert float(outer.loss.mean()) == pytest.approx(objective(params, 0.0), rel=1e-12)
    size = dot(outer.gradient, outer.gradient) ** 0.5
    assert size > 1e-3
    directions = [direction(params)]
    for name, gradient in outer.gradient.items():
        if float(gradient.norm()) > 1e-3 * size:
            alone = {n: torch.zeros_like(v) for n, v in params.items()}
            directions.append(alone | {name: gradient / gradient.norm()})
    assert len(directions) > 3
    for along in directions:
        slope = (objective(along, 1e-5) - objective(along, -1e-5)) / 2e-5
        assert slope == pytest.approx(dot(outer.gradient, along), rel=1e-5, abs=1e-6 * size)


@pytest.mark.parametrize("name", ["meta_sgd", "maml_plus_plus"])
def test_the_outer_gradient_of_learned_rates_equals_finite_differences(
    make_learner: Make, make_episodes: Make, name: str
):
    off = {"step_norms": False, "multi_step_until": 0.0} if name == "maml_plus_plus" else {}
    learner = make_learner(name, inner_steps=3, inner_lr=0.1, **off)
    assert any(name.startswith("inner_lr/") for name in learner.init()[0])
    assert_gradient(learner, make_episodes(1), 1.0)


@pytest.mark.parametrize(
    ("backbone", "choices", "inner_loss"),
    [
        ("make_conv4", {}, "mean"),
        ("make_conv4", {"downsample": "max_pool", "pool": "same"}, "per_shot"),
        ("make_mlp", {}, "sum"),
    ],
)
def test_the_outer_gradient_equals_finite_differences(
    request: pytest.FixtureRequest,
    make_learner: Make,
    make_episodes: Make,
    backbone: str,
    choices: dict[str, Any],
    inner_loss: str,
):
    network, scale = request.getfixturevalue(backbone)(**choices), SCALE[inner_loss]
    learner = make_learner("maml", network, inner_steps=3, inner_lr=0.1 / scale, inner_loss=inner_loss)
    assert_gradient(learner, make_episodes(1), scale)


def test_the_outer_gradient_equals_finite_differences_with_fused_norms(make_learner: Make, make_episodes: Make):
    learner = make_learner("maml")
    norms = [part for part in learner.backbone.modules() if isinstance(part, BatchStatNorm)]
    # Not for speed alone: below vmap, torch 2.15 differentiates its batch norm twice to wrong values.
    assert [part.fused for part in norms] == [False] * 4
    for part in norms:
        part.fused = True
    assert_gradient(learner, make_episodes(1), 1.0, engine="loop")


@pytest.mark.parametrize("inner_loss", ["mean", "per_shot"])
def test_the_outer_gradient_of_a_regression_equals_finite_differences(
    make_regression: Make, make_learner: Make, inner_loss: str
):
    backbone, episodes = make_regression()
    assert_gradient(make_learner("maml", backbone, inner_steps=3, inner_loss=inner_loss), episodes, 1.0)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("outer_loss", ["sum", "per_shot"])
def test_the_outer_loss_is_scaled_by_its_reduction(
    make_learner: Make, make_episodes: Make, outer_loss: str, first_order: bool
):
    episodes = make_episodes(2, query=3)
    mean, scaled = (
        outer_of(make_learner("maml", outer_loss=reduction, first_order=first_order), "vmap", episodes)
        for reduction in ("mean", outer_loss)
    )
    times = {"sum": WAY * 3.0, "per_shot": WAY * 3.0 / SHOT}[outer_loss]  # per_shot divides by K, not Q
    for name, gradient in mean.gradient.items():
        torch.testing.assert_close(scaled.gradient[name], times * gradient, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(scaled.loss, times * mean.loss)


@pytest.mark.parametrize(("inner_loss", "adapt_norm"), [("mean", True), ("sum", False), ("per_shot", True)])
def test_fomaml_is_the_plain_query_gradient_at_the_adapted_weights(
    make_conv4: Make, make_learner: Make, make_episodes: Make, inner_loss: str, adapt_norm: bool
):
    learner = make_learner("fomaml", make_conv4(adapt_norm=adapt_norm), inner_steps=3, inner_loss=inner_loss)
    params, episodes = learner.init()[0], make_episodes(3)
    expected = {name: torch.zeros_like(value) for name, value in params.items()}
    for task in (episodes[i] for i in range(3)):
        fast = adapted(learner, params, task, SCALE[inner_loss])
        loss = F.cross_entropy(functional_call(learner.backbone, fast, (task.query_x,)), task.query_y)
        gradients = torch.autograd.grad(loss, list(fast.values()), allow_unused=True)
        for name, gradient in zip(fast, gradients, strict=True):
            expected[name] += 0 if gradient is None else gradient / 3
    gradient = outer_of(learner, "vmap", episodes).gradient
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


# The closed forms of a scalar task: support loss a (t - c)^2 / 2, query loss b (t - d)^2 / 2


class Scalar(nn.Module):
    """One parameter t; examples are pairs (curvature, centre), outputs sqrt(curvature) (t - centre)."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(t))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1].sqrt() * (self.t - x[:, 1:])


class ScalarMAML(MAML):
    """MAML with squared instead of cross-entropy losses."""

    def support_loss(self, params: Tensors, task: Episodes) -> torch.Tensor:
        return 0.5 * self.predict(params, task.support_x).square().sum()

    def outer_loss(self, params: Tensors, task: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
        loss = 0.5 * self.predict(self.inner_loop(params, task, self.inner_steps), task.query_x).square().sum()
        return loss, torch.zeros_like(loss)


A, B = [0.7, 1.9, 0.3], [1.1, 0.6, 2.0]
C, D = [0.4, -1.2, 2.0], [-0.5, 0.3, 1.5]
T0 = 0.9


def scalar_gradients(a: list[float], inner_lr: float, steps: int, engine: str = "vmap") -> tuple[float, float]:
    """The outer gradients of MAML and FOMAML on three scalar tasks."""
    label = torch.zeros(3, 1, dtype=torch.int64)
    support, query = (torch.tensor([*zip(*pair, strict=True)])[:, None] for pair in ((a, C), (B, D)))
    settings: dict[str, Any] = {"inner_loss": "mean", "outer_loss": "mean", "test_steps": steps, "inner_steps": steps}
    maml, fomaml = (
        outer_of(
            ScalarMAML(Scalar(T0), inner_lr=inner_lr, first_order=first_order, **settings),
            engine,
            Episodes(support, label, query, label, label[:, 0]),
        ).gradient["t"]
        for first_order in (False, True)
    )
    return float(maml), float(fomaml)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize(("steps", "inner_lr"), [(0, 0.4), (1, 0.1), (2, 0.4), (5, 0.4)])
def test_scalar_tasks_have_the_closed_form_gradients(inner_lr: float, steps: int, engine: str):
    a, b, c, d = (torch.tensor(value) for value in (A, B, C, D))
    q = (1 - inner_lr * a) ** steps
    t = c + q * (T0 - c)
    maml, fomaml = scalar_gradients(A, inner_lr, steps, engine)
    assert maml == pytest.approx(float((q * b * (t - d)).mean()), rel=1e-12)
    assert fomaml == pytest.approx(float((b * (t - d)).mean()), rel=1e-12)
    assert (maml == pytest.approx(fomaml, rel=1e-6)) == (steps == 0)


# The inner loop


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("first_order", [False, True])
def test_features_calculated_once_change_nothing_where_the_head_alone_moves(
    make_conv4: Make, make_episodes: Make, first_order: bool, engine: str
):
    episodes, settings = make_episodes(2), {"inner_lr": 0.1, "inner_steps": 3, "first_order": first_order}
    once, each = (MAML(make_conv4(), adapted=names, **settings) for names in ("head", ["head.*"]))
    each.features_once = False
    assert once.features_once and once.gradient_evaluations == 1
    outers = [outer_of(learner, engine, episodes) for learner in (once, each)]
    torch.testing.assert_close(outers[0].gradient, outers[1].gradient)
    torch.testing.assert_close(outers[0].loss, outers[1].loss)
    (params, state), task = once.init(), episodes[0]
    torch.testing.assert_close(once.adapt(params, state, task), each.adapt(params, state, task))


def test_an_inner_loop_over_all_names_is_mamls(make_conv4: Make, make_episodes: Make):
    episodes = make_episodes(2)
    anil, maml = (outer_of(MAML(make_conv4(), adapted=names), "vmap", episodes) for names in (["*"], "all"))
    torch.testing.assert_close(anil.gradient, maml.gradient, rtol=0, atol=0)
    body = MAML(make_conv4(), adapted="body")
    params, state = body.init()
    fast = body.adapt(params, state, episodes[0])
    still = {name for name in params if torch.equal(fast[name], params[name])}
    assert {name for name in still if not name.endswith("conv.bias")} == {"head.weight", "head.bias"}


def test_a_head_whose_weight_the_body_has_too_is_adapted_with_the_trained_weight(make_episodes: Make):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(64, WAY), nn.Linear(WAY, WAY)
            self.first = nn.Linear(WAY, WAY)
            self._modules = {name: self._modules[name] for name in ("body", "first", "head")}
            self.head.weight = self.first.weight

        def embed(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(self.body(x.flatten(1)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(x))

    learner, task = MAML(Tied(), adapted="head", first_order=True, inner_lr=0.1, inner_loss="mean"), make_episodes(1)[0]
    params = {name: value + 0.1 * torch.randn_like(value) for name, value in learner.init()[0].items()}
    bias = params["head.bias"].requires_grad_()
    loss = F.cross_entropy(
        functional_call(learner.backbone, params | {"head.bias": bias}, task.support_x), task.support_y
    )
    learner.test_steps, (slope,) = 1, torch.autograd.grad(loss, bias)
    adapted = learner.adapt({name: value.detach() for name, value in params.items()}, {}, task)
    torch.testing.assert_close(adapted["head.bias"], bias - 0.1 * slope)
    nn.init.zeros_(learner.backbone.head.bias)
    (note,) = MAML(learner.backbone, adapted=["first.*"]).notes  # none that the head starts at zero
    assert note.startswith("the inner loop adapts ")


@pytest.mark.parametrize("kind", [MAML, MAMLPlusPlus])
@pytest.mark.parametrize("adapt_norm", [True, False])
@pytest.mark.parametrize("adapted", ["body", ["blocks.*"], ["blocks.*", "head.bias"]])
@pytest.mark.parametrize(("start", "said"), [("zeros", True), ("uniform", False)])
def test_a_body_behind_a_head_of_zeros_is_told(
    kind: type[MAML], adapt_norm: bool, adapted: Any, start: str, said: bool
):
    notes = kind(Conv4((1, 8, 8), WAY, filters=2, head_init=start, adapt_norm=adapt_norm), adapted=adapted).notes
    assert notes[0].startswith("the inner loop adapts ") and len(set(notes)) == len(notes)
    assert any("the head starts at zero" in note for note in notes) == said


@pytest.mark.parametrize("name", ["maml", "fomaml"])
@pytest.mark.parametrize("adapt_norm", [False, True])
def test_norm_parameters_move_with_adapt_norm_and_get_an_outer_gradient_always(
    make_conv4: Make, make_learner: Make, make_episodes: Make, name: str, adapt_norm: bool
):
    learner, episodes = make_learner(name, make_conv4(adapt_norm=adapt_norm)), make_episodes(2)
    params, _ = learner.init()
    fast = learner.inner_loop(params, episodes[0], 2)
    gradient = outer_of(learner, "vmap", episodes).gradient
    norms = [key for key in params if ".norm." in key]
    assert len(norms) == 8
    for key, value in params.items():
        if key.endswith("conv.bias"):  # a bias before a norm changes nothing
            continue
        assert torch.equal(fast[key], value) == (key in norms and not adapt_norm)
        assert float(gradient[key].abs().max()) > 1e-4


@pytest.mark.parametrize("name", ["maml", "fomaml"])
def test_adaptation_takes_the_test_steps_and_lowers_the_support_loss(
    make_learner: Make, make_episodes: Make, name: str
):
    learner, task = make_learner(name, inner_steps=1, test_steps=5), make_episodes(1)[0]
    params, state = learner.init()
    fast = learner.adapt(params, state, task)
    torch.testing.assert_close(fast, learner.inner_loop(params, task, 5))
    assert not torch.equal(fast["head.weight"], learner.inner_loop(params, task, 1)["head.weight"])
    assert float(learner.support_loss(fast, task)) < 0.9 * float(learner.support_loss(params, task))


def test_the_meta_parameters_are_a_copy_of_the_backbones(make_learner: Make):
    learner = make_learner("maml")
    params, state = learner.init()
    assert state == {}
    assert params.keys() == {name for name, _ in learner.backbone.named_parameters()}
    for name, value in learner.backbone.named_parameters():
        assert torch.equal(params[name], value)
        assert params[name].data_ptr() != value.data_ptr()
        assert not params[name].requires_grad


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"inner_loss": "total"}, "inner_loss=total: choose one of mean, sum, per_shot"),
        ({"outer_loss": "total"}, "outer_loss=total: choose one of mean, sum, per_shot"),
        ({"inner_lr": -1.0}, "inner_lr=-1.0: must be a number >= 0"),
        ({"inner_steps": 0.5}, "inner_steps=0.5: must be a whole number >= 0"),
        ({"first_order": 1}, "first_order=1: must be true or false"),
    ],
)
def test_settings_out_of_range_are_refused(make_learner: Make, choices: dict[str, Any], message: str):
    with pytest.raises(FewshotError, match=rf"algorithm\.learner\.{message}"):
        make_learner("maml", **choices)
