"""Whether the forward of a network is a pure function: it changes no state and draws nothing at random.

Meta-learning needs one of parameters and examples. The checks run the network, whatever its class; an error names the
layer that is at fault and says what to do.
"""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from fewshot.backbones.checks import is_same
from fewshot.backbones.failures import forward_hooks, layer_name, layer_names
from fewshot.backbones.norm import RunningNorm
from fewshot.core.errors import FewshotError


def prepare_backbone(backbone: nn.Module, x: torch.Tensor) -> tuple[str, ...]:
    """Check that the network is a pure function, and put it into eval(), where random layers are off.

    Args:
        backbone: a copy of the network, whose state may change.
        x: examples [B, ...], at least two of them different.

    Returns:
        Notes for the user, one line each.

    Raises:
        FewshotError: a layer has no size yet; or a forward changes a tensor of the network or its input, or draws at
            random even in eval().
    """
    for name, value in backbone.named_parameters():
        if is_lazy(value):
            raise FewshotError(
                f"backbone: parameter {name} has no size before the first forward; give the layer its input size"
            )
    _use_plain_attention()
    _check_state(backbone, x)
    note = ()
    if any(module.training for module in backbone.modules()) and (layer := _random_layer(backbone, x)):
        note = (f"backbone: {layer} draws at random; in meta-training and at test it is in eval(), where it does not",)
    backbone.eval()
    _check_state(backbone, x)
    fault = f"{layer} draws at random" if (layer := _random_layer(backbone, x)) else ""
    with torch.no_grad(), suppress(Exception):  # `named_failures` reports what fails
        if not fault and not is_same(backbone(x), backbone(x)):
            fault = f"{type(backbone).__name__} gives another output for the same input"
    if fault:
        raise FewshotError(
            f"backbone: {fault}, in eval() too, so that adaptation would not repeat; let it do so only where "
            "self.training is true, or leave it out"
        )
    return note


def _use_plain_attention() -> None:
    """Let torch compute attention by its formula: its fused kernels have no second derivative and no rule for vmap.

    Set for the whole process, since training runs the network in many places.
    """
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def _check_state(backbone: nn.Module, x: torch.Tensor) -> None:
    """Compare the tensors that the modules keep before and after a forward, with gradients and without.

    Modules that the user has put into eval() stay in it: their averages are constants. A tensor that the first forward
    makes, such as a table of positions, is allowed.

    Raises:
        FewshotError: a tensor of a module, or the input, has changed.
    """
    for create_graph in (True, False):
        for examples in (x, x.flip(0), x - x.mean()):  # the last has values below 0, which an in-place ReLU changes
            before, given = _kept_tensors(backbone), examples.clone()
            with torch.set_grad_enabled(create_graph), suppress(Exception):  # `named_failures` reports what fails
                backbone(given)
            if not is_same(given, examples, tolerance=0):
                raise FewshotError(
                    f"backbone: {type(backbone).__name__} changes its input in place; leave inplace=True out of its "
                    "first layer"
                )
            after = _kept_tensors(backbone)
            for (layer, name), value in before.items():
                if (layer, name) not in after or not is_same(after[layer, name], value, tolerance=0):
                    raise FewshotError(_state_fault(layer, backbone.get_submodule(layer), name))


def _state_fault(layer: str, module: nn.Module, name: str) -> str:
    remedy = "make it a function of its input that keeps nothing, or put it into eval() if its state is constant there"
    if isinstance(module, RunningNorm):
        remedy = "set backbone.network.norm=batch"
    elif isinstance(module, _BatchNorm):
        remedy = (
            "build it with track_running_stats=False for statistics of the batch at hand, or take GroupNorm; "
            "backbone=module backbone.norm=batch changes them all, in Python fewshot.replace_batch_norms(network, "
            "'batch')"
        )
    elif isinstance(module, _NormBase):
        remedy = "build it with track_running_stats=False"
    return (
        f"backbone: {layer_name(layer, module)} keeps running averages or other state (its tensor {name} changes with "
        f"every forward), which belongs to no one task; {remedy}"
    )


def _kept_tensors(backbone: nn.Module) -> dict[tuple[str, str], torch.Tensor]:
    """A copy of every tensor that a module keeps beside its parameters, in buffers or attributes, by (layer, name)."""
    kept = {}
    for layer, module in backbone.named_modules():
        attributes = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_modules", "_buffers")}
        for name, values in (dict(module.named_buffers(recurse=False)) | attributes).items():
            for index, value in enumerate(tree_leaves(values)):
                if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                    kept[layer, f"{name}[{index}]" if index else name] = value.detach().clone()
    return kept


def _random_layer(backbone: nn.Module, x: torch.Tensor) -> str:
    """The innermost layer that draws random numbers in a forward; empty where none does."""
    states: list[Any] = []  # of the generators, when each running module began
    drew: list[nn.Module] = []

    def enter(*_: Any) -> None:
        states.append(generator_states(x.device))

    def leave(module: nn.Module, *_: Any) -> None:
        if states.pop() != generator_states(x.device):
            drew.append(module)

    with forward_hooks(enter, leave), torch.no_grad(), suppress(Exception):  # `named_failures` reports what fails
        backbone(x)
    return layer_names(backbone)[drew[0]] if drew else ""


def generator_states(device: torch.device) -> tuple[Any, ...]:
    """The state of every generator of random numbers that a network may draw from."""
    _, numbers, position, *_ = np.random.get_state()
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return *(state.numpy().tobytes() for state in states), np.asarray(numbers).tobytes(), position, random.getstate()
