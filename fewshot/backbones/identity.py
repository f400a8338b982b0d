"""The backbone without a network: the learner gets pixels or features as they are."""

from __future__ import annotations

import torch
from torch import nn

from fewshot.backbones.parts import check_shape


class Identity(nn.Module):
    """Flatten examples [B, *shape] to [B, D]; no parameters.

    Raises:
        FewshotError: the shape is no list of sizes.
    """

    def __init__(self, shape: tuple[int, ...], way: int) -> None:
        super().__init__()
        check_shape(shape)
        self.shape: tuple[int, ...] = tuple(shape)
        self.way = way

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """[B, *shape] to [B, D]."""
        return x.flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(x)
