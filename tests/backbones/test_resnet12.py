"""ResNet-12: its size, the same function as plain torch calls, and DropBlock."""

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
from fewshot.backbones.resnet12 import Block, ResNet12
from fewshot.core.errors import FewshotError

CONF = Path(__file__).parents[2] / "conf" / "backbone" / "resnet12.yaml"
SETTINGS: dict[str, Any] = {
    "widths": (4, 5, 6, 7), "norm": "batch", "norm_scale": True, "norm_eps": 1e-3, "drop_rate": 0.0, "drop_block": 5,
    "adapt_norm": True, "head_init": "xavier",
}  # fmt: skip


def fresh(shape: tuple[int, ...] = (2, 16, 16), way: int = 3, **choices: Any) -> ResNet12:
    torch.manual_seed(0)
    return ResNet12(shape, way, **(SETTINGS | choices))


def shaken(shape: tuple[int, ...] = (2, 16, 16), way: int = 3, **choices: Any) -> ResNet12:
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
    # Per block: 3x3 convolutions from c to f and twice from f to f, a 1x1 shortcut, and four norms of 2 f.
    blocks = [
        9 * 3 * 64 + 2 * 9 * 64 * 64 + 3 * 64 + 4 * 2 * 64,  # 76,160
        9 * 64 * 160 + 2 * 9 * 160 * 160 + 64 * 160 + 4 * 2 * 160,  # 564,480
        9 * 160 * 320 + 2 * 9 * 320 * 320 + 160 * 320 + 4 * 2 * 320,  # 2,357,760
        9 * 320 * 640 + 2 * 9 * 640 * 640 + 320 * 640 + 4 * 2 * 640,  # 9,425,920
    ]
    with torch.device("meta"):
        network = instantiate(OmegaConf.load(CONF).network, shape=(3, 84, 84), way=5)
    assert [count(block) for block in network.blocks] == blocks
    assert count(network.blocks) == sum(blocks) == 12_424_320  # "12.4M" in the literature
    assert count(network) == sum(blocks) + 640 * 5 + 5


@pytest.mark.parametrize("norm", ["batch", "running", "none"])
@pytest.mark.parametrize(("shape", "sides"), [((1, 16, 16), [8, 4, 2, 1]), ((3, 33, 33), [16, 8, 4, 2])])
def test_images_of_any_channels_are_halved_four_times(shape: tuple[int, ...], sides: list[int], norm: str):
    network, x = fresh(shape, 5, norm=norm), torch.randn(2, *shape)
    for block, width, side in zip(network.blocks, SETTINGS["widths"], sides, strict=True):
        x = block(x)
        assert x.shape == (2, width, side, side)
    assert network.features(torch.randn(2, *shape)).shape == (2, 7)
    assert network(torch.randn(2, *shape)).shape == (2, 5)


# The function


def textbook(network: ResNet12, x: torch.Tensor, norm: str) -> torch.Tensor:
    """The paper's order, in plain torch calls: LeakyReLU, then pool."""

    def normalised(x: torch.Tensor, conv: nn.Module, part: nn.Module) -> torch.Tensor:
        weight = conv.get_parameter("weight")
        x = F.conv2d(x, weight, None if norm != "none" else conv.get_parameter("bias"), padding=weight.shape[-1] // 2)
        if isinstance(part, BatchStatNorm):
            return F.batch_norm(x, None, None, part.scale, part.offset, training=True, eps=1e-3)
        if isinstance(part, RunningNorm):
            return F.batch_norm(x, part.running_mean, part.running_var, part.weight, part.bias, eps=1e-3)
        return x

    for block in network.blocks:
        assert isinstance(block, Block)
        conv1, norm1, _, conv2, norm2, _, conv3, norm3 = block.body
        y = F.leaky_relu(normalised(x, conv1, norm1), 0.1)
        y = F.leaky_relu(normalised(y, conv2, norm2), 0.1)
        y = F.leaky_relu(normalised(y, conv3, norm3) + normalised(x, block.shortcut[0], block.shortcut[1]), 0.1)
        x = F.max_pool2d(y, 2)
    return network.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm", ["batch", "running", "none"])
def test_it_equals_the_textbook_network(norm: str):
    network, x = shaken((2, 35, 35), norm=norm).eval(), torch.randn(5, 2, 35, 35)
    torch.testing.assert_close(network(x), textbook(network, x, norm), rtol=1e-10, atol=1e-10)


# DropBlock


def test_dropblock_acts_in_train_only_and_behind_the_last_two_blocks_only():
    dropping, plain = (fresh((2, 48, 48), drop_rate=rate, drop_block=3) for rate in (0.4, 0.0))
    x = torch.randn(6, 2, 48, 48)
    assert torch.equal(dropping.eval()(x), plain.eval()(x))
    dropping.train(), plain.train()
    assert not torch.equal(dropping(x), dropping(x))
    for stage, (mine, theirs) in enumerate(zip(dropping.blocks, plain.blocks, strict=True)):
        dropped, kept = mine(x), theirs(x)
        zeros = dropped == 0
        assert bool(zeros.any()) == (stage >= 2)
        assert not zeros.all()
        # What is left is what there was, times one factor that keeps the mean.
        factor = 1 / (1 - float(zeros.float().mean()))
        torch.testing.assert_close(dropped[~zeros], kept[~zeros] * factor, rtol=1e-4, atol=1e-6)
        x = kept


def test_dropblock_drops_whole_squares():
    network = fresh((2, 80, 80), drop_rate=0.2, drop_block=3)  # 10x10 behind the third block
    zeros = (network.blocks[:3](torch.randn(8, 2, 80, 80)) == 0).float()
    # Every dropped value lies in a 3x3 square of dropped ones: opening the mask changes nothing.
    whole = 1 - F.max_pool2d(1 - zeros, 3, stride=1)
    assert torch.equal(F.max_pool2d(F.pad(whole, [2] * 4), 3, stride=1), zeros)
    assert 0.05 < float(zeros.mean()) < 0.35


@pytest.mark.parametrize("side", [16, 32, 64])
def test_dropblock_shrinks_to_maps_that_are_smaller_than_its_block(side: int):
    # Behind the last two blocks: 2x2 and 1x1, 4x4 and 2x2, 8x8 and 4x4.
    network, x = fresh((1, side, side), drop_rate=0.1, drop_block=5), torch.randn(2, 1, side, side)
    assert bool(network(x).isfinite().all())


# Initialisation


def test_convolutions_start_kaiming_normal_by_fan_out():
    network = fresh(widths=(16, 32, 32, 64))
    for name, value in network.named_parameters():
        if value.dim() == 4:
            deviation = math.sqrt(2 / (value.shape[0] * value[0, 0].numel()))
            assert float(value.detach().std()) == pytest.approx(deviation, rel=0.2), name


# Refusals


@pytest.mark.parametrize(
    ("shape", "choices", "words"),
    [
        ((1, 15, 40), {}, "takes images from 16x16 on; 15x40 is too small"),
        ((1, 16, 16), {"widths": (4, 5, 6)}, "widths=.4, 5, 6.: give the channels of four blocks"),
        ((1, 16, 16), {"widths": (4, 5, 6, 0)}, "give the channels of four blocks"),
        ((1, 16, 16), {"drop_rate": 1}, "drop_rate=1: must be at least 0 and below 1"),
        ((1, 16, 16), {"drop_rate": -0.1}, "drop_rate=-0.1: must be"),
        ((1, 16, 16), {"drop_block": 4}, "drop_block=4: must be odd"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(shape: tuple[int, ...], choices: dict[str, Any], words: str):
    with pytest.raises(FewshotError, match=words) as caught:
        fresh(shape, **choices)
    assert "\n" not in str(caught.value)
