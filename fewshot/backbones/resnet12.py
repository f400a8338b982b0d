"""ResNet-12 with the widths of MetaOptNet, as mmfewshot has it; 12,424,320 parameters before the head with 3 channels.

Differences from mmfewshot:
1. DropBlock is torchvision's (Ghiasi, Lin and Le, 2018): it drops at the full rate from the first step, where
   mmfewshot's rate grows over 40,000 steps; and stages 1 and 2 drop nothing, where mmfewshot drops single values.
2. Without norms the convolutions have biases.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.backbones.norm import make_norm
from fewshot.backbones.parts import check_image, initialise_convolutions, initialise_head
from fewshot.core.checks import check_rate
from fewshot.core.errors import FewshotError

SLOPE = 0.1  # of every LeakyReLU, below zero


class Block(nn.Module):
    """Three 3x3 convolutions beside a 1x1 shortcut, then pooling: [B, C, H, W] to [B, filters, H // 2, W // 2].

    Args:
        norm: makes the norm of so many channels.
        drop_rate, drop_block: see ResNet12.
    """

    def __init__(
        self, channels: int, filters: int, norm: Callable[[int], nn.Module], drop_rate: float, drop_block: int
    ) -> None:
        super().__init__()
        self.drop_rate, self.drop_block = drop_rate, drop_block

        def normed_conv(channels: int, side: int) -> list[nn.Module]:
            last = norm(filters)
            return [nn.Conv2d(channels, filters, side, padding=side // 2, bias=isinstance(last, nn.Identity)), last]

        self.body = nn.Sequential(
            *normed_conv(channels, 3),
            nn.LeakyReLU(SLOPE),
            *normed_conv(filters, 3),
            nn.LeakyReLU(SLOPE),
            *normed_conv(filters, 3),
        )
        self.shortcut = nn.Sequential(*normed_conv(channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Pooling before LeakyReLU gives the same values as after it, on a quarter of the elements.
        x = F.leaky_relu(F.max_pool2d(self.body(x) + self.shortcut(x), 2), SLOPE)
        if not self.training or not self.drop_rate:
            return x
        from torchvision.ops import drop_block2d

        side = min(self.drop_block, *x.shape[2:])
        return drop_block2d(x, self.drop_rate, side - 1 + side % 2)  # which takes odd sides only


class ResNet12(nn.Module):
    """Four residual blocks, the mean over space and a linear head: images [B, C, H, W] to logits [B, way].

    Args:
        shape: (C, H, W) of one image; both sides at least 16.
        way: classes N of the head.
        widths: channels of the four blocks; the last is the number of features.
        norm: batch | running | none; norm_scale: whether it has a learned scale; norm_eps: added to the variance.
        drop_rate: of DropBlock behind the last two blocks, in train() only; vmap refuses its random draws.
        drop_block: side of the squares that DropBlock drops, odd.
        adapt_norm: whether the inner loop changes the norm's parameters.
        head_init: zeros | xavier | normal | truncated_normal | kaiming | uniform, see `initialise_head`.

    Raises:
        FewshotError: an unknown choice, a number out of range, or examples that are no images or too small for four
            halvings.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        way: int,
        *,
        widths: Sequence[int] = (64, 160, 320, 640),
        norm: str = "batch",
        norm_scale: bool = True,
        norm_eps: float = 0.00001,
        drop_rate: float = 0.0,
        drop_block: int = 5,
        adapt_norm: bool = True,
        head_init: str = "zeros",
    ) -> None:
        super().__init__()
        check_image("resnet12", shape, least=16)
        if not isinstance(widths, Sequence) or len(widths) != 4 or not all(type(w) is int and w > 0 for w in widths):
            raise FewshotError(f"backbone.network.widths={widths}: give the channels of four blocks")
        check_rate("backbone.network.drop_rate", drop_rate)
        if not isinstance(drop_block, int) or drop_block < 1 or drop_block % 2 == 0:
            raise FewshotError(f"backbone.network.drop_block={drop_block}: must be odd and at least 1")
        self.adapt_norm = adapt_norm
        new_norm = partial(make_norm, norm, scale=norm_scale, eps=norm_eps)
        rates = (0.0, 0.0, drop_rate, drop_rate)
        blocks = [
            Block(channels, filters, new_norm, rate, drop_block)
            for (channels, filters), rate in zip(itertools.pairwise((shape[0], *widths)), rates, strict=True)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], way)
        initialise_convolutions(self, "kaiming")
        initialise_head(self.head, head_init)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to [B, widths[-1]] before the head."""
        return self.blocks(x).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))
