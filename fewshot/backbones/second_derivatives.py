"""A check of torch itself: MAML needs second derivatives, and not all that torch offers are right."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call

from fewshot.backbones.checks import add_noise
from fewshot.core.device import out_of_memory


def check_second_derivatives(backbone: nn.Module, x: torch.Tensor) -> str:
    """Hold torch's second derivatives of the network against differences of first ones, in float64.

    Some of torch's fused operations have wrong ones (weight_norm in torch 2.15), at right values and gradients.

    Returns:
        By how much they differ, in a line for a person; empty where they agree, or the network knows no float64.
    """
    twin, examples = copy.deepcopy(backbone).double(), x.double()
    params = add_noise({name: value.detach() for name, value in twin.named_parameters() if value.requires_grad})

    def slopes(params: Mapping[str, torch.Tensor], graph: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        leaves = [value.requires_grad_() for value in params.values()]
        outputs = functional_call(twin, dict(zip(params, leaves, strict=True)), (examples,))
        gradient = torch.autograd.grad(outputs.square().mean(), leaves, create_graph=graph, materialize_grads=True)
        return leaves, list(gradient)

    worst = 0.0
    for _ in range(3):  # another direction where the first crossed a kink
        along = [torch.randn_like(value) for value in params.values()]
        weights = [torch.randn_like(value) for value in params.values()]
        try:
            leaves, gradient = slopes({name: value.clone() for name, value in params.items()}, graph=True)
            product = sum((g * w).sum() for g, w in zip(gradient, weights, strict=True))
            if not isinstance(product, torch.Tensor) or not product.requires_grad:
                return ""  # linear in its parameters
            second = torch.autograd.grad(product, leaves, materialize_grads=True)
            ends = [
                slopes({n: v + h * d for (n, v), d in zip(params.items(), along, strict=True)}, graph=False)[1]
                for h in (1e-8, -1e-8)
            ]
        except RuntimeError as error:
            if out_of_memory(error) or "not implemented" in str(error):
                raise
            return ""
        found = float(sum((s * d).sum() for s, d in zip(second, along, strict=True)))
        wanted = sum(float(((a - b) * w).sum()) for a, b, w in zip(*ends, weights, strict=True)) / 2e-8
        worst = abs(found - wanted) / max(abs(wanted), 1e-3)
        if worst < 1e-2:
            return ""
    return (
        f"backbone: torch's second derivatives of {type(backbone).__name__} are {worst:.0%} off finite differences (it "
        "detaches a tensor, or holds an operation that torch differentiates wrongly); algorithm=fomaml needs none"
    )
