"""MAML and FOMAML: the outer gradient is that of the unrolled objective, by independent means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fewshot.algorithms.learner import Tensors, backbone_parameters
from fewshot.algorithms.maml import Maml
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
    return (
        (outputs[:, 0] - targets).square().mean() if targets.is_floating_point() else F.cross_entropy(outputs, targets)
    )


def adapted(learner: Maml, params: Tensors, task: Episodes, scale: float) -> Tensors:
    """The weights after the inner loop, by torch.autograd."""
    fast = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    for _ in range(learner.inner_steps):
        loss = scale * plain_loss(functional_call(learner.backbone, fast, (task.support_x,)), task.support_y)
        gradients = torch.autograd.grad(loss, list(fast.values()), allow_unused=True)
        for (name, value), gradient in zip(list(fast.items()), gradients, strict=True):
            if gradient is not None and name in learner.adapted:
                fast[name] = (value - learner.inner_lr * gradient).detach().requires_grad_()
    return fast


def unrolled(learner: Maml, params: Tensors, episodes: Episodes, scale: float) -> float:
    """The mean query loss after the inner loop."""
    losses = []
    for i in range(len(episodes)):
        task = episodes[i]
        fast = adapted(learner, params, task, scale)
        losses.append(plain_loss(functional_call(learner.backbone, fast, (task.query_x,)), task.query_y))
    return float(torch.stack(losses).mean().detach())


def outer_of(learner: Maml, engine: str, episodes: Episodes) -> MetaGradient:
    params, state = learner.init()
    return Engine(engine).outer(learner, params, state, episodes)


def dot(left: Tensors, right: Tensors) -> float:
    return sum(float((left[name] * right[name]).sum()) for name in left)


def slope(function: Callable[[Tensors], float], at: Tensors, along: Tensors, step: float = 1e-5) -> float:
    """Central difference of a function of the parameters."""
    ahead, behind = ({n: v + sign * step * along[n] for n, v in at.items()} for sign in (1, -1))
    return (function(ahead) - function(behind)) / (2 * step)


def direction(like: Tensors, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(value.shape, generator=generator) for name, value in like.items()}
    norm = dot(drawn, drawn) ** 0.5
    return {name: value / norm for name, value in drawn.items()}


def assert_gradient(learner: Maml, episodes: Episodes, scale: float, engine: str = "vmap") -> None:
    """Finite differences along random directions, and along each tensor's own gradient."""
    params, state = learner.init()
    outer = Engine(engine).outer(learner, params, state, episodes)

    def objective(at: Tensors) -> float:
        return unrolled(learner, at, episodes, scale)

    assert float(outer.loss.mean()) == pytest.approx(objective(params), rel=1e-12)
    size = dot(outer.gradient, outer.gradient) ** 0.5
    assert size > 1e-3
    along = [direction(params, seed) for seed in range(3)]
    for name, gradient in outer.gradient.items():
        if float(gradient.norm()) > 1e-3 * size:
            alone = {n: torch.zeros_like(v) for n, v in params.items()}
            along.append(alone | {name: gradient / gradient.norm()})
    assert len(along) > 5
    for way in along:
        assert slope(objective, params, way) == pytest.approx(dot(outer.gradient, way), rel=1e-5, abs=1e-6 * size)


@pytest.mark.parametrize("inner_loss", SCALE)
@pytest.mark.parametrize("downsample", ["stride", "max_pool"])
def test_the_outer_gradient_equals_finite_differences_on_conv4(
    make_conv4: Make, make_learner: Make, make_episodes: Make, downsample: str, inner_loss: str
):
    backbone = make_conv4(downsample=downsample, pool="same")
    learner = make_learner("maml", backbone, inner_steps=3, inner_lr=0.1 / SCALE[inner_loss], inner_loss=inner_loss)
    assert_gradient(learner, make_episodes(2), SCALE[inner_loss])


def test_the_outer_gradient_equals_finite_differences_with_fused_norms(
    make_conv4: Make, make_learner: Make, make_episodes: Make
):
    learner = make_learner("maml", make_conv4(), inner_steps=3)
    for part in learner.backbone.modules():
        if isinstance(part, BatchStatNorm):
            part.fused = True
    assert_gradient(learner, make_episodes(2), 1.0, engine="loop")


def test_second_order_has_the_written_out_norms(make_conv4: Make, make_learner: Make):
    # Not for speed alone: below vmap, torch 2.15 differentiates its batch norm twice to wrong values.
    norms = [p for p in make_learner("maml", make_conv4()).backbone.modules() if isinstance(p, BatchStatNorm)]
    assert [part.fused for part in norms] == [False] * 4


@pytest.mark.parametrize("inner_loss", SCALE)
def test_the_outer_gradient_equals_finite_differences_on_an_mlp(
    make_mlp: Make, make_learner: Make, make_episodes: Make, inner_loss: str
):
    learner = make_learner("maml", make_mlp(), inner_steps=4, inner_lr=0.1 / SCALE[inner_loss], inner_loss=inner_loss)
    assert_gradient(learner, make_episodes(2), SCALE[inner_loss])


@pytest.mark.parametrize("inner_loss", ["mean", "per_shot"])
def test_the_outer_gradient_of_a_regression_equals_finite_differences(
    make_regression: Make, make_learner: Make, inner_loss: str
):
    backbone, episodes = make_regression()
    assert_gradient(make_learner("maml", backbone, inner_steps=3, inner_loss=inner_loss), episodes, 1.0)


@pytest.mark.parametrize("backbone", ["make_conv4", "make_mlp"])
def test_the_outer_gradient_equals_finite_differences_where_norms_are_not_adapted(
    request: pytest.FixtureRequest, make_learner: Make, make_episodes: Make, backbone: str
):
    network = request.getfixturevalue(backbone)(adapt_norm=False, norm_scale=False)
    assert_gradient(make_learner("maml", network, inner_steps=3), make_episodes(2), 1.0)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("outer_loss", SCALE)
def test_the_outer_loss_is_scaled_as_it_says(
    make_learner: Make, make_episodes: Make, outer_loss: str, first_order: bool
):
    episodes = make_episodes(2, query=3)
    results = []
    for reduction in ("mean", outer_loss):
        learner = make_learner("maml", outer_loss=reduction, first_order=first_order)
        results.append(outer_of(learner, "vmap", episodes))
    times = {"mean": 1.0, "sum": WAY * 3.0, "per_shot": WAY * 3.0 / SHOT}[outer_loss]  # per_shot divides by K, not Q
    for name, gradient in results[0].gradient.items():
        torch.testing.assert_close(results[1].gradient[name], times * gradient, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(results[1].loss, times * results[0].loss)


@pytest.mark.parametrize("adapt_norm", [True, False])
@pytest.mark.parametrize("inner_loss", SCALE)
def test_fomaml_is_the_plain_query_gradient_at_the_adapted_weights(
    make_conv4: Make, make_learner: Make, make_episodes: Make, inner_loss: str, adapt_norm: bool
):
    learner = make_learner("fomaml", make_conv4(adapt_norm=adapt_norm), inner_steps=3, inner_loss=inner_loss)
    params, state = learner.init()
    episodes = make_episodes(3)
    expected = {name: torch.zeros_like(value) for name, value in params.items()}
    for i in range(3):
        task = episodes[i]
        fast = adapted(learner, params, task, SCALE[inner_loss])
        loss = F.cross_entropy(functional_call(learner.backbone, fast, (task.query_x,)), task.query_y)
        gradients = torch.autograd.grad(loss, list(fast.values()), allow_unused=True)
        for name, gradient in zip(fast, gradients, strict=True):
            expected[name] += 0 if gradient is None else gradient / 3
    outer = Engine("vmap").outer(learner, params, state, episodes)
    for name, gradient in outer.gradient.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-11)


def test_second_order_differs_from_first_order(make_learner: Make, make_episodes: Make):
    episodes = make_episodes(4)
    second, first = (make_learner(name, inner_steps=3) for name in ("maml", "fomaml"))
    mine, theirs = (outer_of(one, "vmap", episodes) for one in (second, first))
    torch.testing.assert_close(mine.loss, theirs.loss)
    gap = {name: mine.gradient[name] - theirs.gradient[name] for name in mine.gradient}
    assert dot(gap, gap) > 0.01 * dot(mine.gradient, mine.gradient)


# The closed forms of a scalar task: support loss a (t - c)^2 / 2, query loss b (t - d)^2 / 2


class Scalar(nn.Module):
    """One parameter t; examples are pairs (curvature, centre), outputs sqrt(curvature) (t - centre)."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t = nn.Parameter(torch.tensor(t))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1].sqrt() * (self.t - x[:, 1:])


class ScalarMaml(Maml):
    """MAML with squared instead of cross-entropy losses."""

    def support_loss(self, params: Tensors, task: Episodes) -> torch.Tensor:
        return 0.5 * self.predict(params, task.support_x).square().sum()

    def outer_loss(self, params: Tensors, task: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
        loss = 0.5 * self.predict(self.inner_loop(params, task, self.inner_steps), task.query_x).square().sum()
        return loss, torch.zeros_like(loss)


A, B = torch.tensor([0.7, 1.9, 0.3]), torch.tensor([1.1, 0.6, 2.0])
C, D = torch.tensor([0.4, -1.2, 2.0]), torch.tensor([-0.5, 0.3, 1.5])
T0 = 0.9


def scalar_gradient(a: torch.Tensor, inner_lr: float, steps: int, first_order: bool, engine: str) -> float:
    a, b, c, d = (value.double() for value in (a, B, C, D))
    label = torch.zeros(3, 1, dtype=torch.int64)
    support, query = torch.stack([a, c], dim=1)[:, None], torch.stack([b, d], dim=1)[:, None]
    learner = ScalarMaml(
        Scalar(T0),
        inner_lr=inner_lr,
        inner_steps=steps,
        test_steps=steps,
        first_order=first_order,
        inner_loss="mean",
        outer_loss="mean",
    )
    outer = outer_of(learner, engine, Episodes(support, label, query, label, label[:, 0]))
    return float(outer.gradient["t"])


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("inner_lr", [0.1, 0.4])
def test_scalar_tasks_have_the_closed_form_gradients(inner_lr: float, steps: int, engine: str):
    a, b, c, d = (value.double() for value in (A, B, C, D))
    q = (1 - inner_lr * a) ** steps
    t = c + q * (T0 - c)
    maml = scalar_gradient(A, inner_lr, steps, False, engine)
    fomaml = scalar_gradient(A, inner_lr, steps, True, engine)
    assert maml == pytest.approx(float((q * b * (t - d)).mean()), rel=1e-12)
    assert fomaml == pytest.approx(float((b * (t - d)).mean()), rel=1e-12)
    assert (maml == pytest.approx(fomaml, rel=1e-6)) == (steps == 0)


@pytest.mark.parametrize("steps", [1, 4])
def test_first_and_second_order_are_in_the_ratio_q(steps: int):
    a = torch.full_like(A, 0.8)
    maml, fomaml = (scalar_gradient(a, 0.3, steps, first, "vmap") for first in (False, True))
    assert maml / fomaml == pytest.approx((1 - 0.3 * float(a[0])) ** steps, rel=1e-12)


@pytest.mark.parametrize(("curvature", "inner_lr"), [(0.0, 0.3), (0.8, 0.0)])
def test_first_and_second_order_agree_without_curvature_or_without_step(curvature: float, inner_lr: float):
    # The square root has no derivative at 0 in x, but none is taken there.
    a = torch.full_like(A, curvature)
    maml, fomaml = (scalar_gradient(a, inner_lr, 3, first, "vmap") for first in (False, True))
    assert maml == pytest.approx(fomaml, rel=1e-14)
    assert abs(maml) > 0.1


# The inner loop


def test_norm_parameters_that_are_not_adapted_stay_in_the_inner_loop_and_get_an_outer_gradient(
    make_conv4: Make, make_learner: Make, make_episodes: Make
):
    for name in ("maml", "fomaml"):
        learner = make_learner(name, make_conv4(adapt_norm=False), inner_steps=3)
        params, state = learner.init()
        norms = [name for name in params if ".norm." in name]
        assert len(norms) == 8
        episodes = make_episodes(2)
        fast = learner.inner_loop(params, episodes[0], 3)
        outer = Engine("vmap").outer(learner, params, state, episodes)
        for key, value in params.items():
            if key in norms:
                assert torch.equal(fast[key], value)
                assert float(outer.gradient[key].abs().max()) > 1e-4
            elif not key.endswith("conv.bias"):  # a bias before a norm changes nothing
                assert not torch.equal(fast[key], value)


def test_norm_parameters_that_are_adapted_move(make_conv4: Make, make_learner: Make, make_episodes: Make):
    learner = make_learner("maml", make_conv4(adapt_norm=True))
    params, _ = learner.init()
    fast = learner.inner_loop(params, make_episodes(1)[0], 1)
    assert all(not torch.equal(fast[name], params[name]) for name in params if ".norm." in name)


def test_adaptation_takes_the_test_steps(make_learner: Make, make_episodes: Make):
    learner, task = make_learner("maml", inner_steps=1, test_steps=4), make_episodes(1)[0]
    params, state = learner.init()
    fast, expected = learner.adapt(params, state, task), learner.inner_loop(params, task, 4)
    for name in params:
        torch.testing.assert_close(fast[name], expected[name])
    assert not torch.equal(fast["head.weight"], learner.inner_loop(params, task, 1)["head.weight"])


@pytest.mark.parametrize("first_order", [False, True])
def test_adaptation_lowers_the_support_loss(make_learner: Make, make_episodes: Make, first_order: bool):
    learner, task = make_learner("maml", first_order=first_order, test_steps=5), make_episodes(1)[0]
    params, state = learner.init()
    before = learner.support_loss(params, task)
    assert float(learner.support_loss(learner.adapt(params, state, task), task)) < 0.9 * float(before)


def test_the_meta_parameters_are_a_copy_of_the_backbones(make_learner: Make):
    learner = make_learner("maml")
    params, state = learner.init()
    assert state == {}
    for name, value in learner.backbone.named_parameters():
        assert torch.equal(params[name], value)
        assert params[name].data_ptr() != value.data_ptr()
        assert not params[name].requires_grad
    assert params.keys() == backbone_parameters(learner.backbone).keys()


@pytest.mark.parametrize("name", ["inner_loss", "outer_loss"])
def test_unknown_scales_are_refused(make_learner: Make, name: str):
    with pytest.raises(FewshotError, match=rf"algorithm\.learner\.{name}=total: choose one of mean, sum, per_shot"):
        make_learner("maml", **{name: "total"})
