"""Networks that multiply in bfloat16: their convolutions and matrix products, and so their activations, are rounded.

Weights and their gradients, outputs, losses and all that a learner computes itself stay in float32.

Numbers of half as many bytes, and twice as many products in each instruction, where the processor has these: ProtoNet
learns from 27 tasks of miniImageNet a second in place of 18 (Conv-4-64, 15 ways, 42 pixels; two cores of an AMD EPYC
with avx512_bf16). MAML gains nothing: its norms are written out, and most of its time is theirs.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from fewshot.backbones.checks import add_noise, copy_network
from fewshot.core.errors import FewshotError
from fewshot.core.progress import print_note
from fewshot.core.random import seeded

EXAMPLES = 16  # of a check: by few, maxima and ReLUs may leave out a place that others reach
_FLAG = "_products_in_bfloat16"  # an attribute of a network, which its copies have too


@contextmanager
def products_in(network: nn.Module, precision: str) -> Iterator[None]:
    """Within the block, `call_network` lets this network, and copies that are made there, multiply in a precision.

    Args:
        precision: float32 or bfloat16. float64 stays float64 with both.
    """
    before = uses_bfloat16(network)
    setattr(network, _FLAG, precision == "bfloat16")
    try:
        yield
    finally:
        setattr(network, _FLAG, before)


def uses_bfloat16(network: Any) -> bool:
    """Whether `products_in` lets this network multiply in bfloat16, or let the one that it was copied from."""
    return getattr(network, _FLAG, False)


def call_network(
    network: nn.Module, module: nn.Module, params: Mapping[str, torch.Tensor], x: torch.Tensor, *, tied: bool
) -> torch.Tensor:
    """The outputs [B, ...] of `module`, in the type of x, as a pure function of its parameters.

    Args:
        network: `products_in` says in which precision it multiplies.
        module: the network, a part of it, or a module that holds it.
        params: by their names in `module`.
        x: examples or features [B, ...].
        tied: whether one of them may have two names.
    """
    if not uses_bfloat16(network):
        return functional_call(module, dict(params), (x,), tie_weights=tied)
    # Without a cache, which would hold weights of one inner step for the next.
    with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
        return functional_call(module, dict(params), (x,), tie_weights=tied).to(x.dtype)


def has_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 have instructions of their own on this device; True where that is not known."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    # torch has no public name for these two questions.
    questions = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    answers = [question() for question in questions if question is not None]
    return any(answers) or not answers


def check_bfloat16(network: nn.Module, x: torch.Tensor, setting: str) -> None:
    """Check that no convolution goes wrong in bfloat16; print a note where the processor has no instructions for it.

    On a CPU, a weight of a convolution that meets padding alone is an error: oneDNN (torch 2.15) leaves its gradient
    unwritten, so that it is what the memory held before. That was seen with AMX, and in transposed convolutions
    without it.

    Args:
        x: examples [B, C, ...] of the size that the network is trained on, on its device.
        setting: the key that asks for bfloat16.

    Raises:
        FewshotError: these examples are too small for the network.
    """
    if not has_bfloat16(x.device):
        print_note(f"this processor has no instructions for bfloat16: {setting}=float32 is faster on it")
    kernels = [name for name, value in network.named_parameters() if value.dim() >= 3 and value.requires_grad]
    if x.device.type != "cpu" or not kernels:
        return
    network = copy_network(network).eval()  # the running averages of the original stay as they are
    with seeded(0):
        for value in network.parameters():  # a head of zeros would hide the kernels
            value.data.copy_(add_noise(value.data))
        outputs = network(torch.rand(EXAMPLES, *x.shape[1:], dtype=x.dtype, device=x.device))
    if not outputs.requires_grad:
        return
    gradients = torch.autograd.grad(
        outputs.square().sum(), [network.get_parameter(name) for name in kernels], materialize_grads=True
    )
    for name, gradient in zip(kernels, gradients, strict=True):
        reached = gradient.flatten(2).any(1).any(0)  # [places in the kernel]
        if reached.any() and not reached.all():
            size = " x ".join(map(str, x.shape[1:]))
            raise FewshotError(
                f"{setting}=bfloat16: examples of {size} are too small for {name}, part of which meets only padding; "
                f"take larger ones, or {setting}=float32"
            )
