"""Wide residual networks (Zagoruyko and Komodakis, 2016), with mmfewshot's choices where it differs from the paper.

WRN-28-10 has 36,536,884 parameters with 100 classes and 3 channels, as the literature counts.

Differences from mmfewshot:
1. Shortcuts have no bias (nor have they in the paper's code): everything that reads them is normalised again.
2. Without norms all convolutions have biases.
And from the paper's code: a shortcut convolves its block's input as it is, there after the first norm and ReLU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.backbones.conv4 import check_image, initialise_convolutions, initialise_head
from fewshot.backbones.norm import make_norm
from fewshot.core.errors import FewshotError


class Block(nn.Module):
    """Twice norm, ReLU and 3x3 convolution, added to the input: [B, C, H, W] to [B, filters, H / stride, W / stride].

    A side that the stride does not divide is rounded up.
    """

    def __init__(
        self,
        channels: int,
        filters: int,
        stride: int,
        *,
        norm: str,
        norm_scale: bool,
        norm_eps: float,
        dropout: float,
    ) -> None:
        super().__init__()
        bias = norm == "none"
        self.dropout = dropout
        self.norm1 = make_norm(norm, channels, scale=norm_scale, eps=norm_eps)
        self.conv1 = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, bias=bias)
        self.norm2 = make_norm(norm, filters, scale=norm_scale, eps=norm_eps)
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
        depth: layers with weights; 4 and 6 for each block that a group has.
        widen: times 16, 32 and 64 channels in the three groups; there are 64 * widen features.
        norm: `batch` (statistics of the batch at hand), `running` (averages, once in eval()) or `none`.
        norm_scale, norm_eps: see BatchStatNorm.
        dropout: rate between the convolutions of a block, in train() only; its random draws are not for vmap.
        adapt_norm: whether the inner loop changes the norm's parameters.
        head_init: see `initialise_head`.

    Raises:
        FewshotError: an unknown choice, an impossible number, or examples that are no images.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        way: int,
        *,
        depth: int,
        widen: int,
        norm: str,
        norm_scale: bool,
        norm_eps: float,
        dropout: float,
        adapt_norm: bool,
        head_init: str,
    ) -> None:
        super().__init__()
        check_image("wrn", shape, least=1)
        if depth < 10 or depth % 6 != 4:
            raise FewshotError(f"backbone.network.depth={depth}: must be 4 and a multiple of 6, such as 10, 16 or 28")
        if widen < 1:
            raise FewshotError(f"backbone.network.widen={widen}: must be at least 1")
        if not 0 <= dropout < 1:
            raise FewshotError(f"backbone.network.dropout={dropout}: must be at least 0 and below 1")
        self.adapt_norm = adapt_norm
        self.conv = nn.Conv2d(shape[0], 16, 3, padding=1, bias=norm == "none")
        channels = 16
        groups = []
        for filters, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            blocks = []
            for place in range((depth - 4) // 6):
                blocks.append(
                    Block(
                        channels,
                        filters,
                        stride if place == 0 else 1,
                        norm=norm,
                        norm_scale=norm_scale,
                        norm_eps=norm_eps,
                        dropout=dropout,
                    )
                )
                channels = filters
            groups.append(nn.Sequential(*blocks))
        self.groups = nn.Sequential(*groups)
        self.norm = make_norm(norm, channels, scale=norm_scale, eps=norm_eps)
        self.head = nn.Linear(channels, way)
        initialise_convolutions(self, "kaiming")
        initialise_head(self.head, head_init)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to [B, 64 * widen] before the head."""
        return torch.relu(self.norm(self.groups(self.conv(x)))).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))
