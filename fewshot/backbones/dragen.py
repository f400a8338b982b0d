"""The miniImageNet network of dragen1860/MAML-Pytorch 98a00d4: 32,901 parameters for 5 ways, as many as cbfinn/maml's.

Unlike in Conv-4, convolutions have no padding, ReLU stands before the norm, and the last pooling has stride 1: sides of
84 become 82/41, 39/19, 17/8 and 6/5. Start values are those of its learner.py as of 01ad898.

Difference from the original: it keeps running averages beside the statistics of the batch, and never reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.backbones.norm import make_norm
from fewshot.backbones.parts import check_image, initialise_head
from fewshot.core.checks import check_number

STRIDES = (2, 2, 2, 1)  # of the pooling behind each convolution
SMALLEST_SIDE = 46  # which the four blocks reduce to 1


class Block(nn.Module):
    """3x3 convolution, ReLU, norm and 2x2 pooling: [B, C, H, W] to [B, filters, (H - 4) // stride + 1, same of W]."""

    def __init__(self, channels: int, filters: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, 3)
        nn.init.kaiming_normal_(self.conv.weight)  # by fan-in
        nn.init.zeros_(self.conv.get_parameter("bias"))
        self.norm = norm(filters)
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(self.norm(torch.relu(self.conv(x))), 2, self.stride)


class Dragen(nn.Module):
    """Four blocks and a linear head: images [B, C, H, W] to logits [B, way].

    Args:
        shape: (C, H, W) of one image; both sides at least 46.
        way: classes N of the head.
        filters: channels of every block.
        norm: batch | running | none; norm_scale: whether it has a learned scale; norm_eps: added to the variance.
        adapt_norm: whether the inner loop changes the norm's parameters.
        head_init: zeros | xavier | normal | truncated_normal | kaiming | uniform, see `initialise_head`.

    Raises:
        FewshotError: an unknown choice, or examples that are no images or too small.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        way: int,
        *,
        filters: int = 32,
        norm: str = "batch",
        norm_scale: bool = True,
        norm_eps: float = 0.00001,
        adapt_norm: bool = True,
        head_init: str = "kaiming",
    ) -> None:
        super().__init__()
        check_image("conv4_dragen", shape, SMALLEST_SIDE)
        check_number("backbone.network.filters", filters, int, 1)
        self.adapt_norm = adapt_norm
        new_norm = partial(make_norm, norm, scale=norm_scale, eps=norm_eps)
        channels, height, width = shape
        blocks = []
        for stride in STRIDES:
            blocks.append(Block(channels, filters, stride, new_norm))
            channels, height, width = filters, (height - 4) // stride + 1, (width - 4) // stride + 1
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(filters * height * width, way)
        initialise_head(self.head, head_init)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to [B, features] before the head."""
        return self.blocks(x).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))
