"""Wide residual networks: their depth, the same function as plain torch calls, and dropout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewshot.backbones.norm import BatchStatNorm, RunningNorm
from fewshot.backbones.wrn import WRN, Block

from .test_every_backbone import fresh, shaken


@pytest.mark.parametrize("depth", [10, 16, 28])
def test_depth_counts_the_layers_with_weights(depth: int):
    with torch.device("meta"):
        network = fresh("wrn28_10", depth=depth, widen=2)
    shortcuts = sum(isinstance(block.shortcut, nn.Conv2d) for group in network.groups for block in group)
    assert shortcuts == 3
    assert sum(value.dim() > 1 for value in network.parameters()) - shortcuts == depth - 2


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
    network, x = shaken("wrn28_10", norm=norm, depth=16).eval(), torch.randn(5, 2, 17, 17)
    torch.testing.assert_close(network(x), textbook(network, x, norm), rtol=1e-10, atol=1e-10)


def test_dropout_lies_between_the_convolutions_of_every_block_in_train_only():
    network, seen = fresh("wrn28_10", norm="none", dropout=0.25), []
    for block in network.modules():
        if isinstance(block, Block):
            block.norm2.register_forward_hook(lambda part, inputs, output: seen.append(output))
    x = torch.randn(6, 2, 16, 16)
    for rate in (0.25, 0.0):
        seen.clear()
        network(x)
        assert len(seen) == 3
        for maps in seen:
            assert float((maps == 0).float().mean()) == pytest.approx(rate, abs=0.03)
        network.eval()
