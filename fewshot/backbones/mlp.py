"""Multilayer perceptron; 256-128-64-64 with norms is the non-convolutional Omniglot network of MAML (appendix A.1)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import nn

from fewshot.backbones.conv4 import initialise_head
from fewshot.backbones.norm import BatchStatNorm


class MLP(nn.Module):
    """Linear layers, each with norm and ReLU, and a linear head: [B, ...] to [B, way].

    Args:
        shape: shape of one example; it is flattened.
        way: outputs of the head.
        widths: units of the hidden layers.
        norm: `batch` (statistics of the batch at hand) or `none`.
        norm_scale, norm_eps: see BatchStatNorm.
        adapt_norm: whether the inner loop changes the norm's parameters.
        head_init: see `initialise_head`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        way: int,
        *,
        widths: Sequence[int],
        norm: str,
        norm_scale: bool,
        norm_eps: float,
        adapt_norm: bool,
        head_init: str,
    ) -> None:
        super().__init__()
        self.adapt_norm = adapt_norm
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = prod(shape)
        for width in widths:
            layer = nn.Linear(inputs, width)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
            layers.append(layer)
            if norm == "batch":
                layers.append(BatchStatNorm(width, scale=norm_scale, eps=norm_eps))
            layers.append(nn.ReLU())
            inputs = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, way)
        initialise_head(self.head, head_init)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))
