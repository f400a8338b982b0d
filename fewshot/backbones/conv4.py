"""Conv-4, with the choices in which the originals differ.

cbfinn/maml (Omniglot): stride, mean readout, no norm scale, norm not adapted: 112,005 parameters for 5 ways.
cbfinn/maml (mini): 32 filters, max_pool valid, flatten: 32,901 with a norm scale, as the literature counts.
openai/supervised-reptile: flatten, norm scale; Omniglot by stride (113,221), mini by max_pool same.
mmfewshot: 64 filters, max_pool valid, flatten, eps 1e-5.

Differences from the originals:
1. A strided convolution pads one pixel on every side. TensorFlow's SAME pads an even size at its end only. Both are the
   same network when images and kernels are turned by 180 degrees, and before a flatten the head's weights with them; no
   shift of the image does it. See `weights` in tests/algorithms/originals.py.
2. Where a norm follows, the convolution's bias is a parameter that is not added: the norm would subtract it again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.backbones.convolution import conv2d
from fewshot.backbones.norm import BatchStatNorm, make_norm
from fewshot.backbones.parts import check_image, initialise_convolutions, initialise_head
from fewshot.core.checks import check_choice, check_number


class Block(nn.Module):
    """3x3 convolution, norm, down-sampling by 2 and ReLU: [B, C, H, W] to [B, filters, about H/2, about W/2].

    Args:
        norm: makes the norm of so many channels.
        downsample, pool: see Conv4.
    """

    def __init__(
        self, channels: int, filters: int, norm: Callable[[int], nn.Module], *, downsample: str, pool: str
    ) -> None:
        super().__init__()
        self.stride = 2 if downsample == "stride" else 1
        self.conv = nn.Conv2d(channels, filters, 3, stride=self.stride, padding=1)
        self.norm = norm(filters)
        self.ceil = pool == "same"  # TensorFlow's SAME keeps the last odd row and column

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 1 and isinstance(self.norm, BatchStatNorm) and not self.norm.fused:
            return self._pooled_before_norm(x, self.norm)
        bias = self.conv.bias if isinstance(self.norm, nn.Identity) else None
        x = self.norm(conv2d(x, self.conv.weight, bias, stride=self.stride, padding=1))
        if self.stride == 1:
            # Pooling before ReLU gives the same values as after it, on a quarter of the elements.
            x = F.max_pool2d(x, 2, ceil_mode=self.ceil)
        return torch.relu(x)

    def _pooled_before_norm(self, x: torch.Tensor, norm: BatchStatNorm) -> torch.Tensor:
        """The same function in a form that is faster to differentiate twice.

        A norm that keeps the order of values commutes with pooling. Where the scale is negative, its sign moves into
        the convolution's weights.
        """
        weight, scale = self.conv.weight, norm.scale
        if scale is not None:
            sign = torch.where(scale < 0, -1.0, 1.0).to(scale.dtype)
            weight, scale = weight * sign.view(-1, 1, 1, 1), scale * sign
        x = conv2d(x, weight, padding=1)
        factor, shift = norm.affine(x, scale)
        x = F.max_pool2d(x, 2, ceil_mode=self.ceil)
        return torch.relu(x * factor.view(-1, 1, 1) + shift.view(-1, 1, 1))


class Conv4(nn.Module):
    """Four blocks and a linear head: images [B, C, H, W] to logits [B, way].

    Args:
        shape: (C, H, W) of one image.
        way: classes N of the head.
        filters: channels of every block.
        downsample: `stride` (strided convolution) or `max_pool`.
        pool: of max_pool: `valid` drops an odd last row and column, `same` keeps them.
        readout: `flatten`, or `mean` over space.
        norm: batch | running | none; norm_scale: whether it has a learned scale; norm_eps: added to the variance.
        adapt_norm: whether the inner loop changes the norm's parameters (cbfinn/maml does not).
        conv_init: xavier (uniform, the TensorFlow originals) | kaiming (normal by fan-out, mmfewshot).
        head_init: zeros | xavier | normal | truncated_normal | kaiming | uniform, see `initialise_head`.

    Raises:
        FewshotError: an unknown choice, or examples that are no images or too small for four halvings.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        way: int,
        *,
        filters: int = 64,
        downsample: str = "stride",
        pool: str = "valid",
        readout: str = "flatten",
        norm: str = "batch",
        norm_scale: bool = True,
        norm_eps: float = 0.001,
        adapt_norm: bool = True,
        conv_init: str = "xavier",
        head_init: str = "zeros",
    ) -> None:
        super().__init__()
        check_choice("backbone.network.downsample", downsample, ("stride", "max_pool"))
        check_choice("backbone.network.pool", pool, ("valid", "same"))
        check_choice("backbone.network.readout", readout, ("flatten", "mean"))
        drops_odd = downsample == "max_pool" and pool == "valid"
        check_image("conv4", shape, least=16 if drops_odd else 1)
        check_number("backbone.network.filters", filters, int, 1)
        self.readout, self.adapt_norm = readout, adapt_norm
        new_norm = partial(make_norm, norm, scale=norm_scale, eps=norm_eps)
        channels, height, width = shape
        blocks = []
        for _ in range(4):
            blocks.append(Block(channels, filters, new_norm, downsample=downsample, pool=pool))
            channels = filters
            height, width = (side // 2 if drops_odd else (side + 1) // 2 for side in (height, width))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(filters if readout == "mean" else filters * height * width, way)
        initialise_convolutions(self, conv_init)
        initialise_head(self.head, head_init)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to [B, features] before the head."""
        x = self.blocks(x)
        return x.mean((2, 3)) if self.readout == "mean" else x.flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))
