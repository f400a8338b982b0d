"""LEO that decodes a whole network: its two loops, its draws, and that it learns sines and lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fewshot.algorithms.leo_common import KeyedNoise
from fewshot.algorithms.leo_regression import Fit, LEORegression
from fewshot.core.errors import FewshotError
from fewshot.core.random import fold_in
from fewshot.engine.engine import Engine
from fewshot.episodes import Episodes
from fewshot.tasks import functions
from fewshot.tasks.regression import Regression

FAMILIES = {
    "sine": {"amplitude": [1.0, 5.0], "phase": [0.0, 3.14]},
    "line": {"slope": [-3.0, 3.0], "intercept": [-3.0, 3.0]},
}
SETTINGS: dict[str, Any] = {
    "latent": 4, "encoder_width": 7, "relation_width": 8, "decoder_width": 9, "weight_stddev": 0.05,
    "latent_steps": 3, "finetune_steps": 2, "latent_lr": 0.3, "finetune_lr": 0.005, "inner_clip": 2.0,
    "kl_weight": 0.1, "encoder_penalty_weight": 0.1, "l2_weight": 0.01, "orthogonality_weight": 0.05,
}  # fmt: skip

Make = Callable[..., Any]


@pytest.fixture
def make_leo(make_mlp: Make) -> Callable[..., LEORegression]:
    """On a network of 1-5-6-1, whose parameters are 53."""

    def make(backbone: torch.nn.Module | None = None, **choices: Any) -> LEORegression:
        chosen: Any = backbone or make_mlp((1,), 1, widths=(5, 6), norm="none")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return LEORegression(chosen, **(SETTINGS | choices))

    return make


def episodes(count: int = 4, first: int = 0) -> Episodes:
    """Sines and lines with noise, in the default dtype."""
    train = functions.read_functions(FAMILIES, [-5.0, 5.0], 0.3)["train"]
    return Regression(train, shot=5, query=6, seed=0).episodes(first, count).to(torch.get_default_dtype())


def support_error(leo: LEORegression, adapted: dict[str, torch.Tensor], task: Episodes) -> float:
    return float((leo.predict(adapted, task.support_x)[:, 0] - task.support_y).square().mean())


def test_a_support_set_becomes_a_code_and_the_code_a_network(make_leo: Make, make_mlp: Make):
    leo, task = make_leo(), episodes()[0]
    params = leo.init()[0]
    fit = leo.solve(params, task, None)
    assert (fit.mean.shape, fit.stddev.shape, fit.first.shape, fit.last.shape) == ((4,),) * 4
    assert fit.weights.shape == (53,)
    adapted = leo.adapt(params, {}, task)
    assert {name: value.shape for name, value in adapted.items()} == {
        name: value.shape for name, value in leo.backbone.named_parameters()
    }
    assert leo.predict(adapted, task.query_x).shape == (6, 1)
    paper = make_leo(make_mlp((1,), 1, widths=(40, 40), norm="none"), latent=16, decoder_width=32)
    assert paper.init()[0]["decoder.head.weight"].shape == (2 * 1761, 32)


def test_before_training_a_code_of_zero_is_the_backbone(make_leo: Make):
    leo, x = make_leo(), torch.linspace(-5, 5, 7)[:, None]
    w = leo.decode(leo.init()[0], torch.zeros(4), "decoder_0", None)
    torch.testing.assert_close(leo.predict(leo.network(w), x), leo.backbone(x))


@pytest.mark.usefixtures("float64")
def test_all_tasks_at_once_are_one_by_one(make_leo: Make):
    leo, tasks = make_leo(), episodes()
    params, state = leo.init()
    at_once, looped = (Engine(name).outer(leo, params, state, tasks) for name in ("vmap", "loop"))
    torch.testing.assert_close(at_once.loss, looped.loss)
    torch.testing.assert_close(at_once.gradient, looped.gradient)
    torch.testing.assert_close((at_once.loss[2], at_once.score[2]), leo.outer_loss(params, tasks[2]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_the_outer_gradient_is_that_of_finite_differences(make_leo: Make, clip: float):
    # The encoder penalty stops a gradient, which finite differences do not see.
    choices = {"encoder_penalty_weight": 0.0, "inner_clip": clip, "latent_lr": 0.01}
    leo, tasks = make_leo(**choices, latent_steps=2, finetune_steps=1), episodes(1)
    params, state = leo.init()
    gradient = Engine("loop").outer(leo, params, state, tasks).gradient
    for name, value in params.items():
        way = torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
        ends = [leo.outer_loss(params | {name: value + step * way}, tasks[0])[0] for step in (1e-6, -1e-6)]
        torch.testing.assert_close((gradient[name] * way).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-6)
        assert bool(gradient[name].any()), name


@pytest.mark.usefixtures("float64")
def test_a_latent_step_follows_the_gradient_through_the_decoder(make_leo: Make):
    leo, task = make_leo(latent_steps=1, finetune_steps=1, inner_clip=1e9), episodes()[0]
    params, draws = leo.init()[0], KeyedNoise(episodes()[0].key, torch.float64)
    fit = leo.solve(params, task, draws)
    z = fit.first.clone().requires_grad_()
    (by_z,) = torch.autograd.grad(leo.support_loss(leo.decode(params, z, "decoder_0", draws), task), z)
    torch.testing.assert_close(fit.last, z - 0.3 * by_z)
    w = leo.decode(params, fit.last, "decoder_1", draws).clone().requires_grad_()
    (by_w,) = torch.autograd.grad(leo.support_loss(w, task), w)
    torch.testing.assert_close(fit.weights, w - 0.005 * by_w)


def test_no_inner_step_is_longer_than_its_limit(make_leo: Make):
    leo, task = make_leo(latent_steps=1, inner_clip=0.01), episodes()[0]
    fit = leo.solve(leo.init()[0], task, None)
    assert float((fit.last - fit.first).norm()) == pytest.approx(0.3 * 0.01, rel=1e-4)


def test_without_steps_the_code_alone_decides(make_leo: Make):
    leo, task = make_leo(latent_steps=0, finetune_steps=0), episodes()[0]
    params = leo.init()[0]
    fit = leo.solve(params, task, None)
    assert torch.equal(fit.first, fit.last)
    assert torch.equal(fit.weights, leo.decode(params, fit.mean, "decoder_0", None))
    assert leo.gradient_evaluations == 1
    assert (leo.adaptation_steps, make_leo().adaptation_steps) == (
        "0 latent, 0 fine-tuning",
        "3 latent, 2 fine-tuning",
    )


def test_fine_tuning_lowers_the_support_loss(make_leo: Make):
    leo, task = make_leo(), episodes()[0]
    params, errors = leo.init()[0], []
    for leo.test_steps in (0, 1, 5, 20):
        errors.append(support_error(leo, leo.adapt(params, {}, task), task))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_evaluation_draws_nothing_and_training_does(make_leo: Make):
    leo, task = make_leo(), episodes()[0]
    params, other = leo.init()[0], replace(task, key=task.key + 1)
    torch.testing.assert_close(leo.adapt(params, {}, task), leo.adapt(params, {}, other), rtol=0, atol=0)
    losses = [float(leo.outer_loss(params, each)[0]) for each in (task, task, other)]
    assert losses[0] == losses[1] != losses[2]
    penalties = leo.penalties(params, leo.solve(params, task, KeyedNoise(task.key, torch.float32)))
    assert set(penalties) == {"l2", "orthogonality", "encoder_penalty", "kl"}
    assert all(float(value) > 0 for name, value in penalties.items() if name != "kl")


def test_the_encoder_penalty_moves_the_code_towards_where_the_steps_led(make_leo: Make):
    leo = make_leo()
    first, last = torch.zeros(4, requires_grad=True), torch.ones(4, requires_grad=True)
    fit = Fit(torch.zeros(4), torch.ones(4), first, last, torch.zeros(53))
    penalty = leo.penalties(leo.init()[0], fit)["encoder_penalty"]
    assert penalty.item() == pytest.approx(0.1)
    by_first, by_last = torch.autograd.grad(penalty, (first, last), allow_unused=True)
    torch.testing.assert_close(by_first, torch.full((4,), -0.1 * 2 / 4))
    assert by_last is None


def test_each_key_samples_a_fit_of_its_own(make_leo: Make):
    leo, task = make_leo(), episodes()[0]
    params = leo.init()[0]
    one, again, other = (leo.predict(leo.sampled(params, task, task.key + i), task.query_x) for i in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


@pytest.mark.usefixtures("float64")
def test_samples_scatter_around_the_encoders_mean(make_leo: Make):
    leo, task = make_leo(), episodes()[0]
    params = leo.init()[0]
    keys = fold_in(task.key, torch.arange(4000))
    draw = torch.func.vmap(lambda key: leo.solve(params, task, KeyedNoise(key, torch.float64)).first)
    mean, stddev = leo.encode(params, task)
    codes = draw(keys)
    torch.testing.assert_close((codes.mean(0) - mean) / stddev, torch.zeros(4), rtol=0, atol=0.08)
    torch.testing.assert_close(codes.std(0) / stddev, torch.ones(4), rtol=0, atol=0.06)


@pytest.mark.usefixtures("float64")
def test_the_order_of_support_points_does_not_matter(make_leo: Make):
    leo, task = make_leo(), episodes()[0]
    params, order = leo.init()[0], torch.tensor([3, 0, 4, 1, 2])
    shuffled = replace(task, support_x=task.support_x[order], support_y=task.support_y[order])
    torch.testing.assert_close(leo.adapt(params, {}, task), leo.adapt(params, {}, shuffled))
    exchanged = replace(task, support_y=task.support_y[order])
    assert not torch.allclose(leo.encode(params, task)[0], leo.encode(params, exchanged)[0])


def test_it_learns_sines_and_lines(make_leo: Make, make_mlp: Make):
    leo = make_leo(
        make_mlp((1,), 1, widths=(20, 20), norm="none", init="uniform", head_init="uniform"),
        latent_steps=1, finetune_steps=1, kl_weight=0.01, encoder_penalty_weight=1e-6, l2_weight=1e-8,
    )  # fmt: skip
    params, state = leo.init()
    engine, held_out = Engine("vmap"), episodes(200, first=100_000)

    def error() -> float:
        outputs = engine.map(lambda leo, task: leo.predict(leo.adapt(params, state, task), task.query_x), leo, held_out)
        return float((outputs[..., 0] - held_out.query_y).square().mean())

    before = error()
    optimizer = torch.optim.Adam(params.values(), lr=0.01)
    for step in range(60):
        for name, value in engine.outer(leo, params, state, episodes(12, first=12 * step)).gradient.items():
            params[name].grad = value.clamp(-0.1, 0.1)
        optimizer.step()
    assert error() < 0.6 * before


def test_the_log_has_mean_and_spread_of_the_learned_rates(make_leo: Make):
    leo = make_leo()
    scalars = leo.scalars(leo.init()[0])
    assert (scalars["latent_lr_mean"], scalars["finetune_lr_mean"]) == pytest.approx((0.3, 0.005))
    assert (scalars["latent_lr_stddev"], scalars["finetune_lr_stddev"]) == pytest.approx((0, 0), abs=1e-6)


@pytest.mark.parametrize(
    ("choices", "message"),
    [({"latent": 0}, "latent=0"), ({"latent_lr": 0.0}, "latent_lr=0.0"), ({"weight_stddev": -1.0}, "weight_stddev=-1")],
)
def test_settings_out_of_range_are_refused_in_one_line(make_leo: Make, choices: dict[str, Any], message: str):
    with pytest.raises(FewshotError, match=message) as caught:
        make_leo(**choices)
    assert "\n" not in str(caught.value)


def test_norms_other_networks_and_classes_are_refused(make_leo: Make, make_mlp: Make, make_conv4: Make):
    for backbone in (make_mlp((1,), 1), make_conv4(), make_mlp((1,), 5, norm="none")):
        with pytest.raises(FewshotError, match="an MLP without norms: choose backbone=mlp_40"):
            make_leo(backbone)
