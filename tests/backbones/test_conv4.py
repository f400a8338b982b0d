"""Conv-4: the originals' sizes, and the same function as plain torch layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fewshot.backbones.conv4 import Block, Conv4
from fewshot.backbones.norm import prepare_for_second_order
from fewshot.core.errors import FewshotError

MakeConv4 = Callable[..., Conv4]

OMNIGLOT, IMAGENET = (1, 28, 28), (3, 84, 84)
CBFINN_OMNIGLOT: dict[str, Any] = {"filters": 64, "downsample": "stride", "readout": "mean", "norm_scale": False}
CBFINN_MINI: dict[str, Any] = {"filters": 32, "downsample": "max_pool", "pool": "valid", "readout": "flatten"}
OPENAI_OMNIGLOT: dict[str, Any] = {"filters": 64, "downsample": "stride", "readout": "flatten"}
OPENAI_MINI: dict[str, Any] = {"filters": 32, "downsample": "max_pool", "pool": "same", "readout": "flatten"}
MMFEWSHOT: dict[str, Any] = {"filters": 64, "downsample": "max_pool", "pool": "valid", "readout": "flatten"}


@pytest.mark.parametrize(
    ("shape", "choices", "parameters"),
    [
        pytest.param(OMNIGLOT, CBFINN_OMNIGLOT, 112_005, id="cbfinn-omniglot"),
        pytest.param(IMAGENET, CBFINN_MINI, 32_901, id="cbfinn-mini"),
        pytest.param(OMNIGLOT, OPENAI_OMNIGLOT, 113_221, id="openai-omniglot"),
        pytest.param(IMAGENET, OPENAI_MINI, 32_901 + (1152 - 800) * 5, id="openai-mini"),
        pytest.param(IMAGENET, MMFEWSHOT, 121_093, id="mmfewshot"),
    ],
)
def test_the_networks_of_the_originals_have_their_number_of_parameters(
    make_conv4: MakeConv4, shape: tuple[int, ...], choices: dict[str, Any], parameters: int
):
    assert sum(value.numel() for value in make_conv4(shape, 5, **choices).parameters()) == parameters


@pytest.mark.parametrize(
    ("shape", "choices", "sides"),
    [
        (IMAGENET, CBFINN_MINI, [42, 21, 10, 5]),
        (IMAGENET, OPENAI_MINI, [42, 21, 11, 6]),
        (OMNIGLOT, OPENAI_OMNIGLOT, [14, 7, 4, 2]),
    ],
)
def test_images_are_halved_four_times(
    make_conv4: MakeConv4, shape: tuple[int, ...], choices: dict[str, Any], sides: list[int]
):
    network, x = make_conv4(shape, 5, **choices), torch.zeros(2, *shape)
    for block, side in zip(network.blocks, sides, strict=True):
        x = block(x)
        assert x.shape == (2, choices["filters"], side, side)
    assert network.features(torch.zeros(2, *shape)).shape == (2, choices["filters"] * sides[-1] ** 2)
    assert network(torch.zeros(2, *shape)).shape == (2, 5)


def test_the_mean_readout_is_the_mean_over_space(make_conv4: MakeConv4):
    network, x = make_conv4((1, 28, 28), readout="mean"), torch.randn(3, 1, 28, 28)
    maps = network.blocks(x)
    assert maps.shape == (3, 4, 2, 2)
    torch.testing.assert_close(network.features(x), maps.flatten(2).mean(2))


def plain(network: Conv4, *, norm: str, downsample: str, pool: str) -> nn.Sequential:
    """The textbook network, with the same parameters: convolution with bias, BatchNorm, ReLU, pool."""
    layers: list[nn.Module] = []
    for block in network.blocks:
        assert isinstance(block, Block) and block.conv.bias is not None
        filters, channels = block.conv.weight.shape[:2]
        conv = nn.Conv2d(channels, filters, 3, stride=2 if downsample == "stride" else 1, padding=1)
        conv.load_state_dict(block.conv.state_dict())
        layers.append(conv)
        if norm == "batch":
            assert block.norm is not None and block.norm.scale is not None
            batch_norm = nn.BatchNorm2d(filters, eps=1e-3, track_running_stats=False)
            with torch.no_grad():
                batch_norm.weight.copy_(block.norm.scale)
                batch_norm.bias.copy_(block.norm.offset)
            layers.append(batch_norm)
        layers.append(nn.ReLU())
        if downsample == "max_pool":
            layers.append(nn.MaxPool2d(2, ceil_mode=pool == "same"))
    return nn.Sequential(*layers, nn.Flatten(), network.head)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize(("downsample", "pool"), [("stride", "valid"), ("max_pool", "valid"), ("max_pool", "same")])
def test_it_equals_the_textbook_network_whose_bias_is_added_and_which_pools_last(
    make_conv4: MakeConv4, norm: str, downsample: str, pool: str
):
    network = make_conv4((2, 21, 21), norm=norm, downsample=downsample, pool=pool)
    biases = torch.cat([value for name, value in network.named_parameters() if name.endswith("conv.bias")])
    assert bool((biases != 0).all())
    x = torch.randn(5, 2, 21, 21)
    reference = plain(network, norm=norm, downsample=downsample, pool=pool)
    torch.testing.assert_close(network(x), reference(x), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_the_bias_is_used_where_no_norm_follows_and_only_there(make_conv4: MakeConv4):
    x = torch.randn(4, 1, 8, 8)
    for norm, matters in (("none", True), ("batch", False)):
        network = make_conv4(norm=norm)
        before = network(x)
        with torch.no_grad():
            for name, value in network.named_parameters():
                if name.endswith("conv.bias"):
                    value.add_(1)
        assert torch.equal(before, network(x)) != matters


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm_scale", [True, False])
def test_the_written_out_norms_give_the_same_network(make_conv4: MakeConv4, norm_scale: bool):
    fused, written = make_conv4(norm_scale=norm_scale), make_conv4(norm_scale=norm_scale)
    prepare_for_second_order(written)
    x, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])

    def derivatives(network: Conv4) -> list[torch.Tensor]:
        params = [value for name, value in network.named_parameters() if not name.endswith("conv.bias")]
        logits = network(x)
        loss = nn.functional.cross_entropy(logits, labels)
        first = torch.autograd.grad(loss, params, create_graph=True)
        squares = sum(g.square().sum() for g in first)
        assert isinstance(squares, torch.Tensor)
        return [logits, *first, *torch.autograd.grad(squares, params)]

    for mine, theirs in zip(derivatives(fused), derivatives(written), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


# Running averages


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("downsample", "pool"), [("stride", "valid"), ("max_pool", "valid"), ("max_pool", "same")])
def test_with_running_norms_it_equals_the_textbook_network(
    make_conv4: MakeConv4, downsample: str, pool: str, training: bool
):
    network = make_conv4((2, 21, 21), norm="running", downsample=downsample, pool=pool)
    layers: list[nn.Module] = []
    for block in network.blocks:
        filters, channels = block.conv.weight.shape[:2]
        conv = nn.Conv2d(channels, filters, 3, stride=2 if downsample == "stride" else 1, padding=1, bias=False)
        norm = nn.BatchNorm2d(filters, eps=1e-3)
        conv.load_state_dict({"weight": block.conv.weight})
        norm.load_state_dict(block.norm.state_dict())
        layers += [conv, norm, nn.ReLU()]
        layers += [nn.MaxPool2d(2, ceil_mode=pool == "same")] if downsample == "max_pool" else []
    reference = nn.Sequential(*layers, nn.Flatten(), network.head)
    for part in (network, reference):
        part.train()(2 + torch.randn(5, 2, 21, 21, generator=torch.Generator().manual_seed(0)))
        part.train(training)
    x = torch.randn(5, 2, 21, 21)
    torch.testing.assert_close(network(x), reference(x), rtol=1e-10, atol=1e-10)


def test_a_new_network_is_in_train_and_has_averaged_nothing(make_conv4: MakeConv4):
    network = make_conv4(norm="running")
    assert all(part.training for part in network.modules())
    for name, value in network.named_buffers():
        assert torch.equal(value, torch.full_like(value, float(name.endswith("var")))), name


# Initialisation


def fresh(**choices: Any) -> Conv4:
    torch.manual_seed(0)
    settings = {
        "filters": 64, "downsample": "stride", "pool": "valid", "readout": "flatten", "norm": "batch",
        "norm_scale": True, "norm_eps": 1e-3, "adapt_norm": True, "conv_init": "xavier", "head_init": "xavier",
    }  # fmt: skip
    return Conv4((1, 28, 28), 20, **(settings | choices))


@pytest.mark.parametrize(
    ("conv_init", "deviation"),
    [("xavier", math.sqrt(2 / (9 * 64 + 9 * 64))), ("kaiming", math.sqrt(2 / (9 * 64)))],
)
def test_convolutions_start_with_the_deviation_of_their_initialiser(conv_init: str, deviation: float):
    weight = list(fresh(conv_init=conv_init).blocks)[1].get_parameter("conv.weight").detach()
    assert float(weight.std()) == pytest.approx(deviation, rel=0.02)
    assert abs(float(weight.mean())) < 0.02 * deviation
    uniform = float(weight.abs().max()) <= deviation * math.sqrt(3) * 1.0001
    assert uniform == (conv_init == "xavier")


@pytest.mark.parametrize(
    ("head_init", "deviation"),
    [
        ("xavier", math.sqrt(2 / (256 + 20))),
        ("normal", 1.0),
        ("zeros", 0.0),
        ("kaiming", math.sqrt(2 / 256)),
        ("uniform", 1 / math.sqrt(3 * 256)),
    ],
)
def test_the_head_starts_with_the_deviation_of_its_initialiser(head_init: str, deviation: float):
    assert float(fresh(head_init=head_init).head.weight.detach().std()) == pytest.approx(deviation, rel=0.03)


# Refusals


@pytest.mark.parametrize("name", ["downsample", "pool", "readout", "conv_init"])
def test_unknown_choices_are_refused_with_the_known_ones(name: str):
    with pytest.raises(FewshotError, match=f"{name}=wrong: choose one of") as caught:
        fresh(**{name: "wrong"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 15, 15), (1, 40, 15), (3, 8, 8)])
def test_images_too_small_to_halve_four_times_are_refused(make_conv4: MakeConv4, shape: tuple[int, ...]):
    with pytest.raises(FewshotError, match=f"{shape[1]}x{shape[2]} is too small"):
        make_conv4(shape, downsample="max_pool", pool="valid")
