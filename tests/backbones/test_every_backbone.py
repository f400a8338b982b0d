"""Properties of every backbone for images, each in small: size, norms, engines, MAML on it, start values, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch.func import functional_call, vmap

import fewshot as fs
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
ELSEWHERE = {"mlp", "mlp_40", "linear", "identity", "module", "torchvision"}  # have tests of their own
SIDES = {name: max(side, 16) for name, (_, side) in SMALL.items()}

every = pytest.mark.parametrize("name", SMALL)
every_norm = pytest.mark.parametrize("norm", ["batch", "running", "none"])


@pytest.mark.parametrize("network", [fs.Conv4, fs.ResNet12, fs.WRN, fs.MLP, fs.Identity])
@pytest.mark.parametrize("shape", [84, (3, 8.5, 8), ("3", 84, 84)])
def test_a_shape_that_is_none_is_one_line(network: Any, shape: Any) -> None:
    with pytest.raises(FewshotError, match=r"^backbone: shape=.* is no shape of an example; give a tuple such as"):
        network(shape, 5)


@pytest.mark.parametrize("network", [fs.Conv4, fs.ResNet12, fs.WRN, fs.MLP])
def test_sizes_that_are_no_whole_numbers_are_one_line(network: Any) -> None:
    options = {fs.Conv4: {"filters": 4.5}, fs.ResNet12: {"widths": [4, 5.5, 6, 7]}, fs.WRN: {"widen": 2.5}}
    with pytest.raises(FewshotError, match=r"^backbone\.network\.(filters|widths|widen)=.*: (must be|give)"):
        network((3, 84, 84), 5, **options.get(network, {"widths": 64}))


def configured(name: str, shape: tuple[int, ...], way: int, **choices: Any) -> Any:
    torch.manual_seed(0)
    return instantiate(OmegaConf.load(CONF / f"{name}.yaml").network, shape, way, **choices)


def fresh(name: str, shape: tuple[int, ...] | None = None, way: int = 3, **choices: Any) -> Any:
    settings = {"norm_eps": 1e-3, "head_init": "xavier"} | SMALL[name][0] | choices
    return configured(name, shape or (2, SIDES[name], SIDES[name]), way, **settings)


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
    assert {path.stem for path in CONF.glob("*.yaml")} - ELSEWHERE == set(SMALL)


# Size

OMNIGLOT, IMAGENET = (1, 28, 28), (3, 84, 84)
MINI = {"filters": 32, "downsample": "max_pool"}


@pytest.mark.parametrize(
    ("name", "shape", "way", "choices", "parameters"),
    [
        pytest.param("conv4", OMNIGLOT, 5, {"readout": "mean", "norm_scale": False}, 112_005, id="cbfinn-omniglot"),
        pytest.param("conv4", IMAGENET, 5, MINI, 32_901, id="cbfinn-mini"),
        pytest.param("conv4", OMNIGLOT, 5, {}, 113_221, id="openai-omniglot"),
        pytest.param("conv4", IMAGENET, 5, MINI | {"pool": "same"}, 32_901 + (1152 - 800) * 5, id="openai-mini"),
        pytest.param("conv4", IMAGENET, 5, {"downsample": "max_pool"}, 121_093, id="mmfewshot"),
        pytest.param("conv4_dragen", IMAGENET, 5, {}, 32_901, id="dragen"),
        pytest.param("resnet12", IMAGENET, 5, {}, 12_424_320 + 640 * 5 + 5, id="resnet12"),
        pytest.param("wrn28_10", (3, 32, 32), 100, {}, 36_536_884, id="wrn28_10"),
    ],
)
def test_networks_have_their_published_number_of_parameters(
    name: str, shape: tuple[int, ...], way: int, choices: dict[str, Any], parameters: int
) -> None:
    with torch.device("meta"):
        network = configured(name, shape, way, **choices)
    assert sum(value.numel() for value in network.parameters()) == parameters


# The function


@every
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_channels_and_proportions_are_taken(name: str, channels: int) -> None:
    shape = (channels, SIDES[name], SIDES[name] + 17)
    network, x = fresh(name, shape, way=5), torch.randn(2, *shape)
    assert network(x).shape == (2, 5)
    assert network.embed(x).shape == (2, network.head.in_features)
    torch.testing.assert_close(network.head(network.embed(x)), network(x))


@pytest.mark.usefixtures("float64")
@every
@pytest.mark.parametrize(("norm", "alone"), [("running", True), ("batch", False)])
def test_in_eval_features_do_not_depend_on_the_batch_with_running_norms_only(name: str, norm: str, alone: bool) -> None:
    network, x = shaken(name, norm=norm).eval(), images(name, 6)
    apart = torch.cat([network.embed(x[:2]), network.embed(x[2:])])
    assert torch.allclose(network.embed(x), apart, rtol=1e-10, atol=1e-10) == alone


@every
def test_nothing_random_is_drawn_unless_asked_for(name: str) -> None:
    network, x = fresh(name), images(name, 2)
    state = torch.get_rng_state()
    network(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [*SMALL, "mlp"])
def test_the_defaults_in_python_are_those_of_conf(name: str) -> None:
    configuration: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    network = configuration["network"]
    parameters = signature(get_class(network.pop("_target_"))).parameters
    defaults = {key: parameters[key].default for key in network}
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()} == network


@pytest.mark.usefixtures("float64")
@every
@every_norm
def test_vmap_over_parameters_equals_a_loop(name: str, norm: str) -> None:
    network, x = shaken(name, norm=norm).eval(), images(name, 4)
    many = {key: value + 0.1 * torch.randn(3, *value.shape) for key, value in network.named_parameters()}
    each = [functional_call(network, {key: value[i] for key, value in many.items()}, (x,)) for i in range(3)]
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
    episodes = make_episodes(2, shot=1, query=1, shape=(2, SIDES[name], SIDES[name]))
    params, state = learner.init()
    gradient, looped = (Engine(how).outer(learner, params, state, episodes).gradient for how in ("vmap", "loop"))
    for key, value in looped.items():
        torch.testing.assert_close(gradient[key], value, rtol=1e-7, atol=1e-9, msg=key)

    def loss(along: dict[str, torch.Tensor], step: float) -> float:
        moved = {key: value + step * along[key] for key, value in params.items()}
        return float(Engine("loop").outer(learner, moved, state, episodes).loss.mean())

    size = math.sqrt(sum(float(value.square().sum()) for value in gradient.values()))
    assert size > 1e-3
    # Small steps: where one of the many ReLUs or maxima switches, the inner gradient jumps, and the loss with it.
    step = 1e-8
    for drawn in (gradient, {key: torch.randn_like(value) for key, value in params.items()}):
        length = math.sqrt(sum(float(value.square().sum()) for value in drawn.values()))
        along = {key: value / length for key, value in drawn.items()}
        slope = (loss(along, step) - loss(along, -step)) / (2 * step)
        exact = sum(float((along[key] * value).sum()) for key, value in gradient.items())
        assert slope == pytest.approx(exact, rel=1e-5, abs=1e-6 * size)


@every
def test_the_inner_loop_changes_norms_only_with_adapt_norm(name: str) -> None:
    for norm in ("batch", "running"):
        adapted, fixed = (adapted_names(fresh(name, norm=norm, adapt_norm=choice)) for choice in (True, False))
        assert adapted == [key for key, _ in fresh(name, norm=norm).named_parameters()]
        parts = dict(fresh(name, norm=norm).named_modules())
        of_norms = {key for key in adapted if isinstance(parts[key.rpartition(".")[0]], BatchStatNorm | RunningNorm)}
        assert set(adapted) - set(fixed) == of_norms != set()


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


@pytest.mark.parametrize(
    ("name", "choices", "fan"),
    [
        ("conv4", {"filters": 32, "conv_init": "kaiming"}, "out"),
        ("conv4_dragen", {"filters": 32}, "in"),
        ("resnet12", {"widths": [16, 32, 32, 64]}, "out"),
        ("wrn28_10", {"widen": 2}, "out"),
    ],
)
def test_convolutions_start_kaiming_normal(name: str, choices: dict[str, Any], fan: str) -> None:
    for key, value in fresh(name, **choices).named_parameters():
        if value.dim() == 4:
            count = value.shape[0 if fan == "out" else 1] * value[0, 0].numel()
            assert float(value.detach().std()) == pytest.approx(math.sqrt(2 / count), rel=0.2), key


@every
def test_the_head_starts_by_head_init_and_the_seed(name: str) -> None:
    zeros, uniform, again = (fresh(name, head_init=how).head for how in ("zeros", "uniform", "uniform"))
    assert not zeros.weight.any() and not zeros.bias.any()
    assert uniform.weight.any() and uniform.bias.any()
    assert torch.equal(uniform.weight, again.weight)


# Refusals

IMAGE = "takes images (channels, height, width), not shape (64,); choose mlp or linear"
HEADS = "head_init=ones: choose one of xavier, kaiming, normal, truncated_normal, zeros, uniform"


@pytest.mark.parametrize(
    ("name", "shape", "choices", "message"),
    [
        *((name, None, {"norm": "layer"}, "norm=layer: choose one of batch, running, none") for name in SMALL),
        *((name, None, {"head_init": "ones"}, HEADS) for name in SMALL),
        *((name, None, {"norm_eps": -0.01}, "norm_eps=-0.01: must be a number >= 0") for name in SMALL),
        *((name, (64,), {}, IMAGE) for name in SMALL),
        *(
            (name, (1, least, least - 1), {}, f"at least {least}x{least} pixels; {least}x{least - 1} is too small")
            for name, (_, least) in SMALL.items()
            if least > 1
        ),
        *(("conv4", None, {key: "x"}, f"{key}=x: choose") for key in ("downsample", "pool", "readout", "conv_init")),
        ("resnet12", None, {"widths": [4, 5, 6]}, "widths=[4, 5, 6]: give the channels of four blocks"),
        ("resnet12", None, {"widths": [4, 5, 6, 0]}, "give the channels of four blocks"),
        ("resnet12", None, {"drop_rate": 1}, "drop_rate=1: must be at least 0 and below 1"),
        ("resnet12", None, {"drop_rate": -0.1}, "drop_rate=-0.1: must be"),
        ("resnet12", None, {"drop_rate": "a"}, "drop_rate=a: must be"),
        ("resnet12", None, {"drop_block": 4}, "drop_block=4: must be odd"),
        ("wrn28_10", None, {"depth": 4}, "depth=4: must be 4 and a multiple of 6"),
        ("wrn28_10", None, {"depth": "a"}, "depth=a: must be 4 and a multiple of 6"),
        ("wrn28_10", None, {"depth": 27}, "depth=27: must be 4 and a multiple of 6"),
        ("wrn28_10", None, {"widen": 0}, "widen=0: must be a whole number >= 1"),
        ("wrn28_10", None, {"dropout": 1}, "dropout=1: must be at least 0 and below 1"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name: str, shape: Any, choices: dict[str, Any], message: str):
    with pytest.raises(Exception) as caught:
        fresh(name, shape, **choices)
    error = caught.value.__cause__  # Hydra's exception is made into it by `experiment`
    assert isinstance(error, FewshotError)
    assert message in str(error) and "\n" not in str(error)


@every
def test_the_smallest_image_is_taken(name: str) -> None:
    least = SMALL[name][1]
    assert fresh(name, (1, least, least))(torch.randn(2, 1, least, least)).shape == (2, 3)
