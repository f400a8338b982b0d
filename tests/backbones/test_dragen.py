"""dragen1860's network: its sides, and the same function as plain torch layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewshot.backbones.dragen import Block

from .test_every_backbone import fresh


def test_sides_of_84_become_41_19_8_and_5() -> None:
    network, x = fresh("conv4_dragen", (3, 84, 84)), torch.randn(2, 3, 84, 84)
    for block, convolved, side in zip(network.blocks, (82, 39, 17, 6), (41, 19, 8, 5), strict=True):
        assert block.conv(x).shape == (2, 4, convolved, convolved)
        x = block(x)
        assert x.shape == (2, 4, side, side)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm", ["batch", "running", "none"])
def test_it_equals_the_textbook_network(norm: str) -> None:
    network = fresh("conv4_dragen", (2, 46, 62), norm=norm)
    layers: list[nn.Module] = []
    for place, block in enumerate(network.blocks):
        assert isinstance(block, Block)
        layers += [nn.Conv2d(4 if place else 2, 4, 3), nn.ReLU()]
        layers += [nn.BatchNorm2d(4, eps=1e-3, track_running_stats=norm == "running")] if norm != "none" else []
        layers += [nn.MaxPool2d(2, stride=1 if place == 3 else 2)]
    reference = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 1 * 3, 3))
    with torch.no_grad():
        for mine, theirs in zip(network.parameters(), reference.parameters(), strict=True):
            assert mine.shape == theirs.shape
            mine.add_(0.3 * torch.randn_like(mine))  # scales of both signs, and biases that are not zero
            theirs.copy_(mine)
    for _ in range(2):
        x = 1 + torch.randn(5, 2, 46, 62)
        torch.testing.assert_close(network(x), reference(x), rtol=1e-10, atol=1e-10)
    network.eval()
    reference.train(norm == "batch")
    torch.testing.assert_close(network(x), reference(x), rtol=1e-10, atol=1e-10)
