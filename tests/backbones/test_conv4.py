"""Conv-4: the originals' sides, the same function as plain torch layers, and start values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fewshot.backbones.conv4 import Conv4
from fewshot.backbones.norm import prepare_for_second_order

MakeConv4 = Callable[..., Conv4]

OMNIGLOT, IMAGENET = (1, 28, 28), (3, 84, 84)


@pytest.mark.parametrize(
    ("shape", "downsample", "pool", "sides"),
    [
        (IMAGENET, "max_pool", "valid", [42, 21, 10, 5]),
        (IMAGENET, "max_pool", "same", [42, 21, 11, 6]),
        (OMNIGLOT, "stride", "valid", [14, 7, 4, 2]),
    ],
)
def test_images_are_halved_four_times(
    make_conv4: MakeConv4, shape: tuple[int, ...], downsample: str, pool: str, sides: list[int]
):
    network, x = make_conv4(shape, downsample=downsample, pool=pool), torch.zeros(2, *shape)
    for block, side in zip(network.blocks, sides, strict=True):
        x = block(x)
        assert x.shape == (2, 4, side, side)
    assert network.embed(torch.zeros(2, *shape)).shape == (2, 4 * sides[-1] ** 2)


def test_the_mean_readout_is_the_mean_over_space(make_conv4: MakeConv4):
    network, x = make_conv4((1, 28, 28), readout="mean"), torch.randn(3, 1, 28, 28)
    maps = network.blocks(x)
    assert maps.shape == (3, 4, 2, 2)
    torch.testing.assert_close(network.embed(x), maps.flatten(2).mean(2))


def textbook(network: Conv4, norm: str, downsample: str, pool: str) -> nn.Sequential:
    """The textbook network with the same parameters: convolution with bias, BatchNorm, ReLU, pool."""
    layers: list[nn.Module] = []
    for block in network.blocks:
        filters, channels = block.conv.weight.shape[:2]
        conv = nn.Conv2d(channels, filters, 3, stride=2 if downsample == "stride" else 1, padding=1)
        conv.load_state_dict(block.conv.state_dict())
        if norm == "running":  # whose averages would hold the bias
            nn.init.zeros_(conv.get_parameter("bias"))
        layers.append(conv)
        if norm != "none":
            layers.append(nn.BatchNorm2d(filters, eps=1e-3, track_running_stats=norm == "running"))
            names = {"scale": "weight", "offset": "bias"}
            layers[-1].load_state_dict({names.get(k, k): v for k, v in block.norm.state_dict().items()})
        layers.append(nn.ReLU())
        if downsample == "max_pool":
            layers.append(nn.MaxPool2d(2, ceil_mode=pool == "same"))
    return nn.Sequential(*layers, nn.Flatten(), network.head)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm", ["batch", "none", "running"])
@pytest.mark.parametrize(("downsample", "pool"), [("stride", "valid"), ("max_pool", "valid"), ("max_pool", "same")])
def test_it_equals_the_textbook_network_whose_bias_is_added_and_which_pools_last(
    make_conv4: MakeConv4, norm: str, downsample: str, pool: str
):
    network = make_conv4((2, 21, 21), norm=norm, downsample=downsample, pool=pool)
    biases = torch.cat([value for name, value in network.named_parameters() if name.endswith("conv.bias")])
    assert bool((biases != 0).all())
    reference, x = textbook(network, norm, downsample, pool), torch.randn(5, 2, 21, 21)
    torch.testing.assert_close(network(x), reference(x), rtol=1e-10, atol=1e-10)
    if norm == "running":
        torch.testing.assert_close(network.eval()(x), reference.eval()(x), rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("norm", "matters"), [("none", True), ("batch", False)])
def test_the_bias_is_used_where_no_norm_follows_and_only_there(make_conv4: MakeConv4, norm: str, matters: bool):
    network, x = make_conv4(norm=norm), torch.randn(4, 1, 8, 8)
    before = network(x)
    with torch.no_grad():
        for block in network.blocks:
            block.conv.bias.add_(1)
    assert torch.equal(before, network(x)) != matters


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm_scale", [True, False])
def test_the_written_out_norms_give_the_same_network(make_conv4: MakeConv4, norm_scale: bool):
    fused, written = (make_conv4(norm_scale=norm_scale, downsample="max_pool", pool="same") for _ in range(2))
    prepare_for_second_order(written)
    x, labels = torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])

    def derivatives(network: Conv4) -> list[torch.Tensor]:
        params = [value for name, value in network.named_parameters() if not name.endswith("conv.bias")]
        logits = network(x)
        first = torch.autograd.grad(nn.functional.cross_entropy(logits, labels), params, create_graph=True)
        squares = torch.stack([g.square().sum() for g in first]).sum()
        return [logits, *first, *torch.autograd.grad(squares, params)]

    for mine, theirs in zip(derivatives(fused), derivatives(written), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("choices", "layer", "deviation"),
    [
        ({"conv_init": "xavier"}, "blocks.1.conv", math.sqrt(2 / (9 * 64 + 9 * 64))),
        ({"head_init": "xavier"}, "head", math.sqrt(2 / (256 + 20))),
        ({"head_init": "normal"}, "head", 1.0),
        ({"head_init": "truncated_normal"}, "head", 0.0088),  # 0.01, cut at two deviations
        ({"head_init": "zeros"}, "head", 0.0),
        ({"head_init": "kaiming"}, "head", math.sqrt(2 / 256)),
        ({"head_init": "uniform"}, "head", 1 / math.sqrt(3 * 256)),
    ],
)
def test_layers_start_with_the_deviation_of_their_initialiser(
    make_conv4: MakeConv4, choices: dict[str, Any], layer: str, deviation: float
):
    weight = make_conv4(OMNIGLOT, 20, filters=64, **choices).get_parameter(f"{layer}.weight").detach()
    assert float(weight.std()) == pytest.approx(deviation, rel=0.03)
    assert abs(float(weight.mean())) <= 0.03 * deviation
    if "xavier" in choices.values():
        assert float(weight.abs().max()) <= deviation * math.sqrt(3) * 1.0001
