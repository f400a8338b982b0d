"""Batch normalisation by the statistics of the batch at hand, as every MAML code base has it.

There are no running averages: what a query is normalised with depends on the batch it is forwarded in,
so transduction is decided by who forwards what together (see `fewshot.evaluation`), never by train() or eval().
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class BatchStatNorm(nn.Module):
    """Normalise each channel over batch and space with batch statistics; [B, C, ...] to [B, C, ...].

    Args:
        channels: C.
        scale: whether there is a learned scale (gamma) beside the learned offset (beta). cbfinn/maml has none
            (tf.contrib.layers.batch_norm's default), supervised-reptile and mmfewshot have one.
        eps: added to the variance; 1e-3 in the TensorFlow originals, 1e-5 in the PyTorch ones.
    """

    def __init__(self, channels: int, *, scale: bool = True, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(channels)) if scale else None
        self.offset = nn.Parameter(torch.zeros(channels))
        # The fused kernel is the faster one in first order. Its double backward is slow, and wrong inside
        # torch.func.vmap (torch 2.15), so a learner of second order asks for the written-out form of the same function.
        self.fused = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused:
            # Without a weight, torch cuts the offset's gradient off from a second differentiation.
            scale = torch.ones_like(self.offset) if self.scale is None else self.scale
            return F.batch_norm(x, None, None, scale, self.offset, training=True, eps=self.eps)
        factor, shift = self.affine(x, self.scale)
        per_channel = (-1, *(1,) * (x.dim() - 2))
        return x * factor.view(per_channel) + shift.view(per_channel)

    def affine(self, x: torch.Tensor, scale: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(factor [C], shift [C]): the norm of x with this scale is x * factor + shift."""
        axes, count = (0, *range(2, x.dim())), x.numel() // x.shape[1]
        mean = x.sum(axes) / count
        # Mean of squares minus square of mean: the form whose derivatives take the fewest passes over x.
        variance = (x * x).sum(axes) / count - mean * mean
        factor = torch.rsqrt(variance + self.eps)
        if scale is not None:
            factor = factor * scale
        return factor, self.offset - mean * factor


def prepare_for_second_order(module: nn.Module) -> None:
    """Choose the form of every BatchStatNorm that double differentiation is fastest with."""
    for part in module.modules():
        if isinstance(part, BatchStatNorm):
            part.fused = False
