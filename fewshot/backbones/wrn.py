"""Wide residual networks (Zagoruyko and Komodakis, 2016), with mmfewshot's choices where it differs from the paper.

WRN-28-10 has 36,536,884 parameters with 100 classes and 3 channels, as the literature counts.

Differences from mmfewshot:
1. Shortcuts have no bias (nor have they in the paper's code): whatever reads them is normalised again.
2. Without norms all convolutions have biases.
Differences from the paper's code, which mmfewshot has too:
3. A shortcut convolves its block's input as it is; in the paper's code after the first norm and ReLU.
4. Dropout stands before the second norm; in the paper's code after that and its ReLU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.backbones.norm import make_norm
from fewshot.backbones.parts import check_image, initialise_convolutions, initialise_head
from fewshot.core.checks import check_number, check_rate
from fewshot.core.errors import FewshotError


class Block(nn.Module):
    """Twice norm, ReLU and 3x3 convolution, added to the input: [B, C, H, W] to [B, filters, H / stride, W / stride].

    A side that the stride does not divide is rounded up. `norm` makes the norm of so many channels.
    """

    def __init__(
        self, channels: int, filters: int, stride: int, norm: Callable[[int], nn.Module], dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm1 = norm(channels)
        bias = isinstance(self.norm1, nn.Identity)
        self.conv1 = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=bias)
        self.norm2 = norm(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=bias)
        same = stride == 1 and channels == filters
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, filters, 1, stride=stride, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.dropout(self.conv1(torch.relu(self.norm1(x))), self.dropout, self.training)
        return self.conv2(torch.relu(self.norm2(y))) + self.shortcut(x)


class WRN(nn.Module):
    """A convolution, three groups of blocks, mean over space, linear head: images [B, C, H, W] to logits [B, way].

    Args:
        shape: (C, H, W) of one image.
        way: classes N of the head.
        depth: layers with weights: 4, and 6 for each block of a group.
        widen: factor on the 16, 32 and 64 channels of the three groups; there are 64 * widen features.
        norm: batch | running | none; norm_scale: whether it has a learned scale; norm_eps: added to the variance.
        dropout: rate between the convolutions of a block, in train() only; vmap refuses its random draws.
        adapt_norm: whether the inner loop changes the norm's parameters.
        head_init: zeros | xavier | normal | truncated_normal | kaiming | uniform, see `initialise_head`.

    Raises:
        FewshotError: an unknown choice, a number out of range, or examples that are no images.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        way: int,
        *,
        depth: int = 28,
        widen: int = 10,
        norm: str = "batch",
        norm_scale: bool = True,
        norm_eps: float = 0.00001,
        dropout: float = 0.0,
        adapt_norm: bool = True,
        head_init: str = "zeros",
    ) -> None:
        super().__init__()
        check_image("wrn28_10", shape, least=1)
        if not isinstance(depth, int) or depth < 10 or depth % 6 != 4:
            raise FewshotError(f"backbone.network.depth={depth}: must be 4 and a multiple of 6, such as 10, 16 or 28")
        check_number("backbone.network.widen", widen, int, 1)
        check_rate("backbone.network.dropout", dropout)
        self.adapt_norm = adapt_norm
        new_norm = partial(make_norm, norm, scale=norm_scale, eps=norm_eps)
        channels = 16
        self.conv = nn.Conv2d(shape[0], channels, 3, padding=1, bias=norm == "none")
        groups = []
        for filters, first_stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            blocks = []
            for stride in (first_stride, *[1] * ((depth - 4) // 6 - 1)):
                blocks.append(Block(channels, filters, stride, new_norm, dropout))
                channels = filters
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        self.norm = new_norm(channels)
        self.head = nn.Linear(channels, way)
        initialise_convolutions(self, "kaiming")
        initialise_head(self.head, head_init)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to [B, 64 * widen] before the head."""
        return torch.relu(self.norm(self.groups(self.conv(x)))).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))
