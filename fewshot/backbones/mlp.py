"""Multilayer perceptron; in MAML 256-128-64-64 with norms for Omniglot (appendix A.1), 40-40 without for sinusoids."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.backbones.norm import make_norm
from fewshot.backbones.parts import check_shape, initialise_head
from fewshot.core.checks import check_number
from fewshot.core.errors import FewshotError


class Layer(nn.Module):
    """Linear, norm and ReLU: [B, inputs] to [B, units]. As in Conv-4, a bias before a norm is not added."""

    def __init__(self, inputs: int, units: int, norm: Callable[[int], nn.Module], init: str) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, units)
        initialise_head(self.linear, init)
        self.norm = norm(units)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.linear.bias if isinstance(self.norm, nn.Identity) else None
        return torch.relu(self.norm(F.linear(x, self.linear.weight, bias)))


class MLP(nn.Module):
    """Linear layers, each with norm and ReLU, and a linear head: [B, ...] to [B, way].

    Args:
        shape: shape of one example; it is flattened.
        way: outputs of the head.
        widths: units of the hidden layers.
        norm: batch | running | none; norm_scale: whether it has a learned scale; norm_eps: added to the variance.
        adapt_norm: whether the inner loop changes the norm's parameters.
        init, head_init: of the hidden layers and of the head, see `initialise_head`.

    Raises:
        FewshotError: an unknown choice.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        way: int,
        *,
        widths: Sequence[int] = (256, 128, 64, 64),
        norm: str = "batch",
        norm_scale: bool = True,
        norm_eps: float = 0.001,
        adapt_norm: bool = True,
        head_init: str = "zeros",
        init: str = "xavier",
    ) -> None:
        super().__init__()
        check_shape(shape)
        if not isinstance(widths, Sequence):
            raise FewshotError(f"backbone.network.widths={widths}: must be a list, such as [64, 64]")
        for width in widths:
            check_number("backbone.network.widths", width, int, 1)
        self.adapt_norm, self.has_norms = adapt_norm, norm != "none"
        new_norm = partial(make_norm, norm, scale=norm_scale, eps=norm_eps)
        sizes = [prod(shape), *widths]
        layers = [Layer(inputs, units, new_norm, init) for inputs, units in itertools.pairwise(sizes)]
        self.body = nn.Sequential(nn.Flatten(), *layers)
        self.head = nn.Linear(sizes[-1], way)
        initialise_head(self.head, head_init)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """[B, ...] to [B, units of the last hidden layer] before the head."""
        return self.body(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))
