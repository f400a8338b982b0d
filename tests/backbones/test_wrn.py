"""Wide residual networks: their size, the same function as plain torch calls, and dropout."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from fewshot.backbones.norm import BatchStatNorm, RunningNorm
from fewshot.backbones.wrn import WRN, Block
from fewshot.core.errors import FewshotError

CONF = Path(__file__).parents[2] / "conf" / "backbone" / "wrn28_10.yaml"
SETTINGS: dict[str, Any] = {
    "depth": 10, "widen": 1, "norm": "batch", "norm_scale": True, "norm_eps": 1e-3, "dropout": 0.0,
    "adapt_norm": True, "head_init": "xavier",
}  # fmt: skip


def fresh(shape: tuple[int, ...] = (2, 16, 16), way: int = 3, **choices: Any) -> WRN:
    torch.manual_seed(0)
    return WRN(shape, way, **(SETTINGS | choices))


def shaken(shape: tuple[int, ...] = (2, 16, 16), way: int = 3, **choices: Any) -> WRN:
    """One-dimensional parameters are off their start values, and running averages too."""
    network = fresh(shape, way, **choices)
    with torch.no_grad():
        for value in network.parameters():
            if value.dim() == 1:
                value.add_(0.3 * torch.randn_like(value))
        network(1 + 2 * torch.randn(8, *shape))
    return network


def count(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


# Size


def test_the_network_of_the_configuration_has_its_number_of_parameters():
    # Per block: norms of 2 c and 2 f, 3x3 convolutions from c to f and f to f, a 1x1 shortcut where c is not f.
    groups = [
        (2 * 16 + 9 * 16 * 160 + 2 * 160 + 9 * 160 * 160 + 16 * 160) + 3 * 2 * (2 * 160 + 9 * 160 * 160),  # 1,640,672
        (2 * 160 + 9 * 160 * 320 + 2 * 320 + 9 * 320 * 320 + 160 * 320)
        + 3 * 2 * (2 * 320 + 9 * 320 * 320),  # 6,968,000
        (2 * 320 + 9 * 320 * 640 + 2 * 640 + 9 * 640 * 640 + 320 * 640)
        + 3 * 2 * (2 * 640 + 9 * 640 * 640),  # 27,862,400
    ]
    with torch.device("meta"):
        network = instantiate(OmegaConf.load(CONF).network, shape=(3, 32, 32), way=100)
    assert [count(group) for group in network.groups] == groups
    # First convolution, groups, last norm and a head for 100 classes: "36.5M" in the paper's tables.
    assert count(network) == 9 * 3 * 16 + sum(groups) + 2 * 640 + (640 * 100 + 100) == 36_536_884


@pytest.mark.parametrize("depth", [10, 16, 28])
def test_depth_counts_the_layers_with_weights(depth: int):
    with torch.device("meta"):
        network = fresh(depth=depth, widen=2)
    shortcuts = sum(isinstance(block.shortcut, nn.Conv2d) for group in network.groups for block in group)
    assert shortcuts == 3
    assert sum(value.dim() > 1 for value in network.parameters()) - shortcuts == depth - 2


@pytest.mark.parametrize("norm", ["batch", "running", "none"])
@pytest.mark.parametrize(("shape", "sides"), [((1, 16, 16), [16, 8, 4]), ((3, 21, 21), [21, 11, 6])])
def test_the_second_and_third_group_halve_images_of_any_channels(shape: tuple[int, ...], sides: list[int], norm: str):
    network, images = fresh(shape, 5, norm=norm), torch.randn(2, *shape)
    x = network.conv(images)
    for group, width, side in zip(network.groups, (16, 32, 64), sides, strict=True):
        x = group(x)
        assert x.shape == (2, width, side, side)
    assert network.features(images).shape == (2, 64)
    assert network(images).shape == (2, 5)


def test_widening_widens_the_features():
    assert fresh(widen=2).features(torch.randn(2, 2, 16, 16)).shape == (2, 128)


# The function


def textbook(network: WRN, x: torch.Tensor, norm: str) -> torch.Tensor:
    """The same network in plain torch calls."""

    def activated(x: torch.Tensor, part: nn.Module) -> torch.Tensor:
        if isinstance(part, BatchStatNorm):
            x = F.batch_norm(x, None, None, part.scale, part.offset, training=True, eps=1e-3)
        if isinstance(part, RunningNorm):
            x = F.batch_norm(x, part.running_mean, part.running_var, part.weight, part.bias, eps=1e-3)
        return F.relu(x)

    def convolved(x: torch.Tensor, conv: nn.Module, stride: int = 1) -> torch.Tensor:
        weight = conv.get_parameter("weight")
        bias = conv.get_parameter("bias") if norm == "none" else None
        return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)

    x = convolved(x, network.conv)
    for group, stride in zip(network.groups, (1, 2, 2), strict=True):
        for place, block in enumerate(group):
            assert isinstance(block, Block)
            step = stride if place == 0 else 1
            y = convolved(activated(x, block.norm1), block.conv1, step)
            y = convolved(activated(y, block.norm2), block.conv2)
            x = y + (convolved(x, block.shortcut, step) if y.shape != x.shape else x)
    return network.head(F.adaptive_avg_pool2d(activated(x, network.norm), 1).flatten(1))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm", ["batch", "running", "none"])
def test_it_equals_the_textbook_network(norm: str):
    network, x = shaken((2, 17, 17), norm=norm, depth=16).eval(), torch.randn(5, 2, 17, 17)
    torch.testing.assert_close(network(x), textbook(network, x, norm), rtol=1e-10, atol=1e-10)


# Dropout


def test_dropout_acts_in_train_only():
    dropping, plain = (fresh(dropout=rate) for rate in (0.5, 0.0))
    x = torch.randn(6, 2, 16, 16)
    assert torch.equal(dropping.eval()(x), plain.eval()(x))
    dropping.train()
    assert not torch.equal(dropping(x), dropping(x))


def test_dropout_lies_between_the_convolutions_of_every_block():
    network, seen = fresh(norm="none", dropout=0.25), []
    for block in network.modules():
        if isinstance(block, Block):
            block.norm2.register_forward_hook(lambda part, inputs, output: seen.append(output))
    network(torch.randn(6, 2, 16, 16))
    assert len(seen) == 3
    for maps in seen:
        assert float((maps == 0).float().mean()) == pytest.approx(0.25, abs=0.03)


# Initialisation


def test_convolutions_start_kaiming_normal_by_fan_out():
    for name, value in fresh(widen=2).named_parameters():
        if value.dim() == 4:
            deviation = math.sqrt(2 / (value.shape[0] * value[0, 0].numel()))
            assert float(value.detach().std()) == pytest.approx(deviation, rel=0.2), name


# Refusals


@pytest.mark.parametrize(
    ("shape", "choices", "words"),
    [
        ((1, 16, 16), {"depth": 4}, "depth=4: must be 4 and a multiple of 6"),
        ((1, 16, 16), {"depth": 27}, "depth=27: must be 4 and a multiple of 6"),
        ((1, 16, 16), {"widen": 0}, "widen=0: must be at least 1"),
        ((1, 16, 16), {"dropout": 1}, "dropout=1: must be at least 0 and below 1"),
        ((1, 16, 16), {"dropout": -0.1}, "dropout=-0.1: must be"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(shape: tuple[int, ...], choices: dict[str, Any], words: str):
    with pytest.raises(FewshotError, match=words) as caught:
        fresh(shape, **choices)
    assert "\n" not in str(caught.value)
