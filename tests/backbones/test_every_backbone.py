"""What holds of every backbone for images, each in small: norms, engines, MAML on it, start values, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.func import functional_call, vmap

from fewshot.algorithms.learner import adapted_names
from fewshot.backbones.norm import BatchStatNorm, RunningNorm
from fewshot.core.errors import FewshotError
from fewshot.engine.engine import Engine

Make = Callable[..., Any]

CONF = Path(__file__).parents[2] / "conf" / "backbone"
# Each file for images in conf/backbone: settings that make it small, and the side of the smallest image.
SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "conv4": ({"filters": 4, "downsample": "max_pool"}, 16),
    "conv4_dragen": ({"filters": 4}, 46),
    "resnet12": ({"widths": [4, 5, 6, 7]}, 16),
    "wrn28_10": ({"depth": 10, "widen": 1}, 1),
}
NO_IMAGES = {"mlp", "mlp_40", "linear", "identity"}
SIDES = {name: max(side, 16) for name, (_, side) in SMALL.items()}

every = pytest.mark.parametrize("name", SMALL)
every_norm = pytest.mark.parametrize("norm", ["batch", "running", "none"])


def fresh(name: str, shape: tuple[int, ...] | None = None, way: int = 3, **choices: Any) -> Any:
    torch.manual_seed(0)
    settings = {"norm_eps": 1e-3, "head_init": "xavier"} | SMALL[name][0] | choices
    shape = (2, SIDES[name], SIDES[name]) if shape is None else shape
    return instantiate(OmegaConf.load(CONF / f"{name}.yaml").network, shape, way, **settings)


def shaken(name: str, **choices: Any) -> Any:
    """One-dimensional parameters are off their start values, and running averages too."""
    network = fresh(name, **choices)
    with torch.no_grad():
        for value in network.parameters():
            if value.dim() == 1:
                value.add_(0.3 * torch.randn_like(value))
        network(1 + 2 * images(name, 8))
    return network


def images(name: str, count: int) -> torch.Tensor:
    return torch.randn(count, 2, SIDES[name], SIDES[name])


def test_none_is_missing_here() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} - NO_IMAGES == set(SMALL)


# The function


@every
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_channels_and_proportions_are_taken(name: str, channels: int) -> None:
    shape = (channels, SIDES[name], SIDES[name] + 17)
    network, x = fresh(name, shape, way=5), torch.randn(2, *shape)
    assert network(x).shape == (2, 5)
    assert network.features(x).shape == (2, network.head.in_features)
    torch.testing.assert_close(network.head(network.features(x)), network(x))


@pytest.mark.usefixtures("float64")
@every
@pytest.mark.parametrize(("norm", "alone"), [("running", True), ("batch", False)])
def test_in_eval_features_do_not_depend_on_the_batch_with_running_norms_only(name: str, norm: str, alone: bool) -> None:
    network, x = shaken(name, norm=norm).eval(), images(name, 6)
    apart = torch.cat([network.features(x[:2]), network.features(x[2:])])
    assert torch.allclose(network.features(x), apart, rtol=1e-10, atol=1e-10) == alone


@every
def test_nothing_random_is_drawn_unless_asked_for(name: str) -> None:
    network, x = fresh(name), images(name, 2)
    state = torch.get_rng_state()
    network(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("float64")
@every
@every_norm
def test_vmap_over_parameters_equals_a_loop(name: str, norm: str) -> None:
    network, x = shaken(name, norm=norm).eval(), images(name, 4)
    many = {name: value + 0.1 * torch.randn(3, *value.shape) for name, value in network.named_parameters()}
    each = [functional_call(network, {name: value[i] for name, value in many.items()}, (x,)) for i in range(3)]
    lifted = vmap(lambda params: functional_call(network, params, (x,)))(many)
    torch.testing.assert_close(lifted, torch.stack(each), rtol=1e-9, atol=1e-9)


# MAML


@pytest.mark.usefixtures("float64")
@every
@pytest.mark.parametrize(("norm_scale", "adapt_norm"), [(True, True), (False, False)])
def test_the_outer_gradient_of_maml_equals_finite_differences_on_every_engine(
    make_learner: Make, make_episodes: Make, name: str, norm_scale: bool, adapt_norm: bool
) -> None:
    learner = make_learner("maml", shaken(name, norm_scale=norm_scale, adapt_norm=adapt_norm), inner_lr=0.05)
    episodes = make_episodes(2, shape=(2, SIDES[name], SIDES[name]))
    params, state = learner.init()
    gradient, looped = (Engine(how).outer(learner, params, state, episodes).gradient for how in ("vmap", "loop"))
    for key, value in looped.items():
        torch.testing.assert_close(gradient[key], value, rtol=1e-7, atol=1e-9, msg=key)

    def loss(along: dict[str, torch.Tensor], step: float) -> float:
        moved = {key: value + step * along[key] for key, value in params.items()}
        return float(Engine("vmap").outer(learner, moved, state, episodes).loss.mean())

    size = math.sqrt(sum(float(value.square().sum()) for value in gradient.values()))
    assert size > 1e-3
    random = [{key: torch.randn_like(value) for key, value in params.items()} for _ in range(2)]
    # Small steps: where one of the many ReLUs or maxima switches, the inner gradient jumps, and the loss with it.
    step = 1e-8
    for drawn in [gradient, *random]:
        length = math.sqrt(sum(float(value.square().sum()) for value in drawn.values()))
        along = {key: value / length for key, value in drawn.items()}
        slope = (loss(along, step) - loss(along, -step)) / (2 * step)
        exact = sum(float((along[key] * value).sum()) for key, value in gradient.items())
        assert slope == pytest.approx(exact, rel=1e-5, abs=1e-6 * size)


@every
def test_the_inner_loop_leaves_norms_alone_where_it_is_told_to(name: str) -> None:
    adapted, fixed = (adapted_names(fresh(name, adapt_norm=choice)) for choice in (True, False))
    assert adapted == [key for key, _ in fresh(name).named_parameters()]
    assert set(adapted) - set(fixed) == {key for key in adapted if key.endswith((".scale", ".offset"))} != set()


# Initialisation


@every
@every_norm
def test_biases_and_offsets_start_at_zero_and_scales_at_one(name: str, norm: str) -> None:
    network = fresh(name, norm=norm)
    scales = [part.scale for part in network.modules() if isinstance(part, BatchStatNorm)]
    scales += [part.weight for part in network.modules() if isinstance(part, RunningNorm)]
    assert bool(scales) == (norm != "none")
    for key, value in network.named_parameters():
        if value.dim() == 1:
            assert torch.equal(value, torch.full_like(value, float(any(value is s for s in scales)))), key


@every
def test_the_head_starts_as_it_is_told_to(name: str) -> None:
    heads = {how: fresh(name, head_init=how).head for how in ("zeros", "xavier", "normal", "kaiming", "uniform")}
    for how, head in heads.items():
        assert bool(head.weight.any()) == (how != "zeros")
        assert bool(head.bias.any()) == (how == "uniform")
    torch.manual_seed(1)
    plain = nn.Linear(heads["uniform"].in_features, 3)
    bound = 1 / math.sqrt(plain.in_features)
    for head in (plain, heads["uniform"]):  # torch's own, too
        assert float(head.weight.detach().abs().max()) <= bound
        assert float(head.bias.detach().abs().max()) <= bound


@every
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    for mine, theirs in zip(fresh(name).parameters(), fresh(name).parameters(), strict=True):
        assert torch.equal(mine, theirs)


# Refusals


def refused(name: str, shape: tuple[int, ...] | None = None, **choices: Any) -> str:
    with pytest.raises(Exception) as caught:
        fresh(name, shape, **choices)
    assert isinstance(caught.value.__cause__, FewshotError)  # Hydra's exception is made into it by `experiment`
    message = str(caught.value.__cause__)
    assert "\n" not in message
    return message


@every
def test_unknown_choices_are_refused_with_the_known_ones(name: str) -> None:
    assert "norm=layer: choose one of batch, running, none" in refused(name, norm="layer")
    assert "head_init=ones: choose one of xavier, kaiming, normal, truncated_normal, zeros, uniform" in refused(
        name, head_init="ones"
    )


@every
def test_what_is_no_image_is_refused_with_what_takes_it(name: str) -> None:
    message = refused(name, (64,))
    assert message.endswith("takes images (channels, height, width), not shape (64,); choose mlp or linear")


@every
def test_the_smallest_image_is_taken_and_a_smaller_one_refused(name: str) -> None:
    least = SMALL[name][1]
    assert fresh(name, (1, least, least))(torch.randn(2, 1, least, least)).shape == (2, 3)
    if least > 1:
        assert f"from {least}x{least} on; {least}x{least - 1} is too small" in refused(name, (1, least, least - 1))
