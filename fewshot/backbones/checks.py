"""Checks of a network before anything is learned with it: it is judged by what it does, not by its class.

A learner needs a function of parameters and examples: no state that a forward changes, nothing drawn at random, one
tensor of the right shape. What does not fit is named by its layer, with what to do.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from fewshot.backbones.norm import RunningNorm
from fewshot.core.device import out_of_memory
from fewshot.core.errors import FewshotError, one_line

T = TypeVar("T")

SAME = 1e-5  # two results of one computation differ by less, relative to the largest value


def copy_network(network: T) -> T:
    """A deep copy of a network, or of a learner with its network, which a forward of the copy leaves as it is.

    Raises:
        FewshotError: it cannot be copied, or is a scripted module, whose parameters cannot be given to it.
    """
    backbone = getattr(network, "backbone", network)
    for name, module in backbone.named_modules() if isinstance(backbone, nn.Module) else ():
        if isinstance(module, torch.jit.ScriptModule):
            raise FewshotError(
                f"backbone: {_layer(name, module)} is scripted, and takes no parameters from outside; give the "
                "nn.Module that it was made of"
            )
    try:
        return copy.deepcopy(network)
    except Exception as error:
        if out_of_memory(error):
            raise
        raise FewshotError(
            f"backbone: {type(backbone).__name__} cannot be copied ({error_reason(error)}); let it keep no tensors "
            "computed from its parameters, as torch.nn.utils.weight_norm does and parametrizations.weight_norm does not"
        ) from error


def prepare_backbone(backbone: nn.Module, x: torch.Tensor) -> tuple[str, ...]:
    """Put a copy of the network into eval(), where random layers are off, and look whether it is a pure function.

    Args:
        x: examples [B, ...], at least two of them different.

    Returns:
        What a person should know of it, a line each.

    Raises:
        FewshotError: a forward changes a tensor of the network or its input, or draws at random in eval() too.
    """
    if any(nn.parameter.is_lazy(value) for value in backbone.parameters()):
        return ()  # which `backbone_parameters` refuses
    with suppress(Exception), _AttentionWatch(backbone) as watch:  # failures are named elsewhere
        backbone(x.clone())
    if watch.found:
        _write_attention_out()
    _check_state(backbone, x)
    training = any(module.training for module in backbone.modules())
    fickle = _fickle_layer(backbone, x, passes=1) if training else None
    backbone.eval()
    _check_state(backbone, x)
    if layer := _fickle_layer(backbone, x):
        raise FewshotError(
            f"backbone: {layer}, in eval() too, so that adaptation would not repeat; let it do so only where "
            "self.training is true, or leave it out"
        )
    return (f"backbone: {fickle}; in meta-training and at test it is in eval(), where it does not",) if fickle else ()


class _AttentionWatch(TorchFunctionMode):
    """Notes whether attention is computed, by a module or by a function."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.found = any(isinstance(module, nn.MultiheadAttention) for module in backbone.modules())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def _write_attention_out() -> None:
    """Have torch compute attention by its formula: its fused kernels have no second derivative and no rule for vmap.

    Set for the whole process, since training goes on in many places.
    """
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def _check_state(backbone: nn.Module, x: torch.Tensor) -> None:
    """Hold the tensors that the modules keep against what they were one forward before, with gradients and without.

    Modules that a person has put into eval() stay so here: their averages are constants. What a first forward makes,
    such as a table of positions, may stay.

    Raises:
        FewshotError: a tensor of a module, or the input, is not what it was.
    """
    for graph in (True, False):
        for forwarded in (x, x.flip(0), x - x.mean()):  # the last has values below 0, which an in-place ReLU changes
            before, given = _kept_tensors(backbone), forwarded.clone()
            with torch.set_grad_enabled(graph), suppress(Exception):  # failures are named elsewhere
                backbone(given)
            if not is_same(given, forwarded, tolerance=0):
                raise FewshotError(
                    f"backbone: {type(backbone).__name__} changes its input in place; leave inplace=True out of its "
                    "first layer"
                )
            after = _kept_tensors(backbone)
            for (owner, name), value in before.items():
                if (owner, name) not in after or not is_same(after[owner, name], value, tolerance=0):
                    raise FewshotError(_state_fault(backbone, owner, name))


def _state_fault(backbone: nn.Module, owner: str, name: str) -> str:
    module = backbone.get_submodule(owner)
    remedy = "make it a function of its input that keeps nothing, or put it into eval() if its state is constant there"
    if isinstance(module, RunningNorm):
        remedy = "set backbone.network.norm=batch"
    elif isinstance(module, _BatchNorm):
        remedy = "build it with track_running_stats=False for statistics of the batch at hand, or take GroupNorm"
    elif isinstance(module, _NormBase):
        remedy = "build it with track_running_stats=False"
    return (
        f"backbone: {_layer(owner, module)} keeps running averages or other state (its tensor {name} changes with "
        f"every forward), which belongs to no one task; {remedy}"
    )


def _kept_tensors(backbone: nn.Module) -> dict[tuple[str, str], torch.Tensor]:
    """A copy of every tensor that a module keeps beside its parameters, in buffers or in attributes."""
    kept = {}
    for owner, module in backbone.named_modules():
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_modules")}
        for name, values in (own.pop("_buffers", {}) | own).items():
            for place, value in enumerate(tree_leaves(values)):
                if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                    kept[owner, f"{name}[{place}]" if place else name] = value.detach().clone()
    return kept


def _fickle_layer(backbone: nn.Module, x: torch.Tensor, passes: int = 2) -> str | None:
    """The innermost layer that draws random numbers in a forward, or whose output changes from one to the next.

    Returns:
        The layer and what it does; None where there is none.
    """
    names = {module: name for name, module in backbone.named_modules()}
    drew: list[str] = []
    passed: list[dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]]] = []  # inputs and outputs, by layer
    entered: list[Any] = []  # states of the generators, of the modules that are running

    def tensors(values: Any) -> list[torch.Tensor]:
        return [value.clone() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if entered.pop() != _generators(x.device):
            drew.append(_layer(names[module], module))
        passed[-1][names[module]] = tensors(inputs), tensors(output)

    hooks = [m.register_forward_pre_hook(lambda *_: entered.append(_generators(x.device))) for m in names]
    hooks += [module.register_forward_hook(leave) for module in names]
    try:
        with torch.no_grad(), suppress(Exception):  # failures are named elsewhere
            for _ in range(passes):
                passed.append({})
                backbone(x)
    finally:
        for hook in hooks:
            hook.remove()
    if drew:
        return f"{drew[0]} draws at random"
    for name, (inputs, output) in passed[0].items():
        inputs_again, output_again = passed[-1].get(name, (inputs, output))
        if _all_same(inputs, inputs_again) and not _all_same(output, output_again):
            return f"{_layer(name, backbone.get_submodule(name))} gives another output for the same input"
    return None


def _all_same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(map(is_same, some, others))


def _generators(device: torch.device) -> tuple[Any, ...]:
    """The state of every generator of random numbers that a network may draw from."""
    _, numbers, place, *_ = np.random.get_state()
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return *(state.numpy().tobytes() for state in states), np.asarray(numbers).tobytes(), place, random.getstate()


def check_outputs(outputs: Any, count: int, targets: torch.Tensor, way: int) -> None:
    """Hold predictions of `count` examples against the targets of a task.

    Args:
        targets: labels [B], or in regression floats [B] or [B, D].

    Raises:
        FewshotError: something else than floats of the right shape.
    """
    regression = targets.is_floating_point()
    width = targets[0].numel() if regression else way
    wanted = f"{'outputs' if regression else 'logits'} [{count}, {width}]"
    if not isinstance(outputs, torch.Tensor):
        raise FewshotError(
            f"backbone: its forward returns a {type(outputs).__name__}, and {wanted} of {count} examples are wanted; "
            "return that tensor alone"
        )
    shape, kind = list(outputs.shape), str(outputs.dtype).removeprefix("torch.")
    if shape == [count, width] and outputs.is_floating_point():
        if not outputs.isfinite().any():
            raise FewshotError("backbone: none of its outputs is finite; look at how it is initialised")
        return
    if len(shape) == 2 and shape[0] == count and outputs.is_floating_point() and not regression:
        raise FewshotError(
            f"backbone: made for {shape[1]} ways ({shape[1]} outputs), and the tasks have {width}; take tasks of "
            f"{shape[1]} ways, or a network of {width} outputs"
        )
    remedy = "keep the last axis, without squeeze" if regression and shape == [count] else "change its last layer"
    raise FewshotError(f"backbone: {count} examples give {kind} {shape}, and {wanted} of floats are wanted; {remedy}")


def check_parameters(backbone: nn.Module, params: Mapping[str, torch.Tensor], x: torch.Tensor) -> None:
    """Whether the network computes with the parameters that it is called with, and not with copies that it keeps.

    Raises:
        FewshotError: it does not.
    """
    shaken, twin = add_noise(params), copy_network(backbone)
    for name, value in twin.named_parameters():
        if name in shaken:
            value.data.copy_(shaken[name])
    if not is_same(functional_call(backbone, shaken, (x,)), twin(x)):
        raise FewshotError(
            f"backbone: {type(backbone).__name__} computes with tensors that it made of its parameters before; read "
            "the parameters anew in every forward"
        )


@contextmanager
def named_failures(backbone: nn.Module | None, x: torch.Tensor) -> Iterator[None]:
    """A failure of the network on examples like `x` in one line, which names the layer that was running."""
    running: list[str] = []
    hooks: list[Any] = []
    for name, module in [] if backbone is None else backbone.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda m, _, name=name: running.append(_layer(name, m))))
        hooks.append(module.register_forward_hook(lambda *_: running.pop() and None))
    try:
        yield
    except FewshotError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        where = f"{running[-1]} fails" if running else "learning fails"
        raise FewshotError(
            f"backbone: {where} on examples {list(x.shape[1:])} ({error_reason(error)}); its forward must run on such "
            "examples, under torch.func too"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def add_noise(values: Any) -> Any:
    """Tensors, in dictionaries or alone, with a tenth of their spread as noise, so that a zero hides nothing."""

    def noisy(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        spread = value.std() if value.numel() > 1 else value.abs().mean()
        return value + 0.1 * torch.where(spread > 0, spread, 1.0) * torch.randn_like(value)

    return tree_map(noisy, values)


def is_same(one: torch.Tensor, other: torch.Tensor, scale: torch.Tensor | None = None, tolerance: float = SAME) -> bool:
    """Whether two results are equal up to rounding.

    Args:
        scale: the tensor to whose largest value the tolerance is relative; None: `other`.
    """
    one, other = (v if v.layout == torch.strided else v.to_dense() for v in (one, other))
    if one.shape != other.shape or not other.is_floating_point():
        return torch.equal(one, other)
    whole = other if scale is None else scale
    largest = whole[whole.isfinite()].abs().max().item() if whole.isfinite().any() else 0.0
    return torch.allclose(one, other, rtol=0, atol=tolerance * largest, equal_nan=True)


def error_reason(error: BaseException) -> str:
    """What an error of torch says, short enough for one line with more."""
    return one_line(error)[:160]


def _layer(name: str, module: nn.Module) -> str:
    return f"layer {name} ({type(module).__name__})" if name else type(module).__name__
