"""ResNet-12: the same function as plain torch calls, and DropBlock."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewshot.backbones.norm import BatchStatNorm, RunningNorm
from fewshot.backbones.resnet12 import Block, ResNet12

from .test_every_backbone import fresh, shaken


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
    network, x = shaken("resnet12", norm=norm).eval(), torch.randn(5, 2, 35, 35)
    torch.testing.assert_close(network(x), textbook(network, x, norm), rtol=1e-10, atol=1e-10)


def test_dropblock_acts_in_train_only_and_behind_the_last_two_blocks_only():
    dropping, plain = (fresh("resnet12", drop_rate=rate, drop_block=3) for rate in (0.4, 0.0))
    x = torch.randn(6, 2, 48, 48)
    assert torch.equal(dropping.eval()(x), plain.eval()(x))
    dropping.train(), plain.train()
    assert not torch.equal(dropping(x), dropping(x))
    for stage, (mine, theirs) in enumerate(zip(dropping.blocks, plain.blocks, strict=True)):
        dropped, kept = mine(x), theirs(x)
        zeros = dropped == 0
        assert bool(zeros.any()) == (stage >= 2)
        assert not zeros.all()
        # The rest is multiplied by one factor that keeps the mean.
        factor = 1 / (1 - float(zeros.float().mean()))
        torch.testing.assert_close(dropped[~zeros], kept[~zeros] * factor, rtol=1e-4, atol=1e-6)
        x = kept


def test_dropblock_drops_whole_squares():
    network = fresh("resnet12", drop_rate=0.2, drop_block=3)
    zeros = (network.blocks[:3](torch.randn(8, 2, 80, 80)) == 0).float()  # 10x10 behind the third block
    # Every dropped value lies in a 3x3 square of dropped ones: opening the mask changes nothing.
    whole = 1 - F.max_pool2d(1 - zeros, 3, stride=1)
    assert torch.equal(F.max_pool2d(F.pad(whole, [2] * 4), 3, stride=1), zeros)
    assert 0.05 < float(zeros.mean()) < 0.35


@pytest.mark.parametrize("side", [16, 32, 64])
def test_dropblock_shrinks_to_maps_that_are_smaller_than_its_block(side: int):
    # Behind the last two blocks: 2x2 and 1x1, 4x4 and 2x2, 8x8 and 4x4.
    network = fresh("resnet12", drop_rate=0.1, drop_block=5)
    assert bool(network(torch.randn(2, 2, side, side)).isfinite().all())
