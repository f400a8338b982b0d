"""dragen1860's network: its size, its sides, the same function as plain torch layers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from fewshot.backbones.dragen import Block, Dragen

CONF = Path(__file__).parents[2] / "conf" / "backbone" / "conv4_dragen.yaml"
SETTINGS: dict[str, Any] = {
    "filters": 4, "norm": "batch", "norm_scale": True, "norm_eps": 1e-3, "adapt_norm": True, "head_init": "xavier",
}  # fmt: skip


def published() -> Dragen:
    torch.manual_seed(0)
    return instantiate(OmegaConf.load(CONF).network, shape=(3, 84, 84), way=5)


def count(network: nn.Module) -> int:
    return sum(value.numel() for value in network.parameters())


def test_the_network_of_the_configuration_has_its_number_of_parameters() -> None:
    # By hand: 3x3 convolutions with biases, a scale and an offset per channel, and a head on 32 maps of 5x5.
    first = 9 * 3 * 32 + 32 + 2 * 32  # 960
    other = 9 * 32 * 32 + 32 + 2 * 32  # 9,312
    network = published()
    assert [count(block) for block in network.blocks] == [first, other, other, other]
    assert count(network) == first + 3 * other + (800 * 5 + 5) == 32_901


def test_sides_of_84_become_41_19_8_and_5() -> None:
    network, x = published(), torch.randn(2, 3, 84, 84)
    for block, convolved, side in zip(network.blocks, (82, 39, 17, 6), (41, 19, 8, 5), strict=True):
        assert isinstance(block, Block)
        assert block.conv(x).shape == (2, 32, convolved, convolved)
        x = block(x)
        assert x.shape == (2, 32, side, side)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("norm", ["batch", "running", "none"])
def test_it_equals_the_textbook_network(norm: str) -> None:
    torch.manual_seed(0)
    network = Dragen((2, 46, 62), 3, **(SETTINGS | {"norm": norm}))
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


def test_convolutions_and_head_start_kaiming_normal_by_fan_in() -> None:
    for name, value in published().named_parameters():
        if value.dim() > 1:
            deviation = math.sqrt(2 / value[0].numel())
            assert float(value.detach().std()) == pytest.approx(deviation, rel=0.1), name
            assert float(value.detach().abs().max()) > 2.5 * deviation, name
