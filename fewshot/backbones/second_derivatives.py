"""A check of torch itself: MAML needs second derivatives, and some operations of torch have wrong ones."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

from fewshot.backbones.checks import add_noise, copy_network
from fewshot.core.device import out_of_memory

# Of the finite differences. Where a step crosses the kink of a ReLU nearby, others from another point seldom do.
STEPS = (1e-8, 1e-9, 1e-10)


def check_second_derivatives(backbone: nn.Module, x: torch.Tensor) -> str:
    """Compare torch's second derivatives of the network with finite differences of first ones, in float64.

    Some of torch's fused operations have wrong ones (weight_norm in torch 2.15), with right values and gradients.

    Returns:
        One line with the size of the error, or where the network does not run in float64; empty where both agree.
    """
    network, x = copy_network(backbone).double(), x.double()
    start = {name: value.detach() for name, value in network.named_parameters() if value.requires_grad}

    def gradient(at: list[torch.Tensor], create_graph: bool) -> list[torch.Tensor]:
        outputs = functional_call(network, dict(zip(start, at, strict=True)), (x,))
        loss = outputs.square().mean()
        return list(torch.autograd.grad(loss, at, create_graph=create_graph, materialize_grads=True))

    def dot(left: list[torch.Tensor], right: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()

    error = 0.0
    for step in STEPS:
        params = add_noise(start)
        direction, weights = ([torch.randn_like(value) for value in params.values()] for _ in range(2))
        at, ahead, behind = (
            [(value + h * d).requires_grad_() for value, d in zip(params.values(), direction, strict=True)]
            for h in (0, step, -step)
        )
        try:
            slope = dot(gradient(at, create_graph=True), weights)
            if not slope.requires_grad:
                return ""  # linear in its parameters
            exact = float(dot(list(torch.autograd.grad(slope, at, materialize_grads=True)), direction))
            ends = [dot(gradient(end, create_graph=False), weights) for end in (ahead, behind)]
        except RuntimeError as failure:
            if out_of_memory(failure) or "not implemented" in str(failure):
                raise
            return (
                f"backbone: torch's second derivatives of {type(backbone).__name__} are not checked, since it does not "
                "run in float64"
            )
        difference = float(ends[0] - ends[1]) / (2 * step)
        error = abs(exact - difference) / max(abs(difference), 1e-3)
        if error < 1e-2:
            return ""
    return (
        f"backbone: torch's second derivatives of {type(backbone).__name__} are {error:.0%} off finite differences (it "
        "detaches a tensor, or holds an operation that torch differentiates wrongly); algorithm=fomaml needs none"
    )
