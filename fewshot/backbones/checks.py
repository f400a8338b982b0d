"""Checks of a network before training. They run the network, whatever its class.

Meta-learning needs a pure function of parameters and examples: a forward changes no state, draws nothing at random, and
returns one tensor of the right shape. An error names the layer that is at fault and says what to do.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from fewshot.backbones.norm import RunningNorm
from fewshot.core.device import out_of_memory
from fewshot.core.errors import FewshotError, error_location, one_line

T = TypeVar("T")

SAME = 1e-5  # results of one computation differ by less than this, relative to the largest value


def copy_network(network: T) -> T:
    """A deep copy of a network, or of a learner with its network; running the copy does not change the original.

    Raises:
        FewshotError: it cannot be copied, or holds a scripted module, which takes no parameters from outside.
    """
    backbone = getattr(network, "backbone", network)
    parts = backbone.modules() if isinstance(backbone, nn.Module) else ()
    if any(isinstance(part, torch.jit.ScriptModule) for part in parts):
        raise FewshotError(
            f"backbone: {type(backbone).__name__} is scripted, and takes no parameters from outside; give the "
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
        f"backbone: {_layer(layer, module)} keeps running averages or other state (its tensor {name} changes with "
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
        states.append(_generator_states(x.device))

    def leave(module: nn.Module, *_: Any) -> None:
        if states.pop() != _generator_states(x.device):
            drew.append(module)

    with _hooks(enter, leave), torch.no_grad(), suppress(Exception):  # `named_failures` reports what fails
        backbone(x)
    return _layer_names(backbone)[drew[0]] if drew else ""


def _generator_states(device: torch.device) -> tuple[Any, ...]:
    """The state of every generator of random numbers that a network may draw from."""
    _, numbers, position, *_ = np.random.get_state()
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return *(state.numpy().tobytes() for state in states), np.asarray(numbers).tobytes(), position, random.getstate()


def check_outputs(outputs: Any, count: int, targets: torch.Tensor, way: int) -> None:
    """Check the shape and type of the predictions of `count` examples.

    Args:
        targets: labels [B], or in regression floats [B] or [B, D].
        way: classes N of the task.

    Raises:
        FewshotError: they are not floats [count, N], or in regression [count, D], or none is finite.
    """
    regression = targets.is_floating_point()
    width = targets[0].numel() if regression else way
    if not isinstance(outputs, torch.Tensor):
        given, remedy = f"a {type(outputs).__name__}", "return that tensor alone"
    else:
        shape, floats = list(outputs.shape), outputs.is_floating_point()
        if shape == [count, width] and floats:
            if not outputs.isfinite().any():
                raise FewshotError("backbone: none of its outputs is finite; look at how it is initialised")
            return
        given = f"{str(outputs.dtype).removeprefix('torch.')} {shape}"
        remedy = "change its last layer"
        if regression and shape == [count]:
            remedy = "keep the last axis, without squeeze"
        elif len(shape) == 2 and shape[0] == count and floats and not regression:
            remedy = (
                f"it is made for {shape[1]} ways, the tasks have {way}: change one of them, as by an argument "
                "'+backbone.network.num_classes=${way}', or, if these are features, take backbone=module "
                "backbone.outputs=features, in Python fewshot.WithHead(network, shape, way)"
            )
    wanted = f"{'outputs' if regression else 'logits'} [{count}, {width}]"
    raise FewshotError(f"backbone: {count} examples give {given}, and {wanted} of floats are wanted; {remedy}")


def check_parameters(backbone: nn.Module, params: Mapping[str, torch.Tensor], x: torch.Tensor) -> None:
    """Check that the network computes with the parameters of each call, not with tensors made of them before.

    Raises:
        FewshotError: it does not.
    """
    noisy, network = add_noise(params), copy_network(backbone)
    for name, value in network.named_parameters():
        if name in noisy:
            value.data.copy_(noisy[name])
    if not is_same(functional_call(backbone, noisy, (x,)), network(x)):
        raise FewshotError(
            f"backbone: {type(backbone).__name__} computes with tensors that it made of its parameters before; read "
            "the parameters anew in every forward"
        )


def ends_in_head(backbone: Any, x: torch.Tensor) -> bool:
    """Whether the network's output is its `head` on its flat features, `embed(x)`, and nothing else."""
    network = copy_network(backbone)
    for value in network.parameters():  # a head of zeros would hide what is between
        value.data.add_(torch.rand_like(value))
    try:
        return is_same(network.head(network.embed(x).flatten(1)), network(x))
    except Exception:
        return False


@contextmanager
def named_failures(backbone: nn.Module | None, x: torch.Tensor) -> Iterator[None]:
    """Report a failure of the network on examples like `x` in one line, with the layer that was running."""
    running: list[nn.Module] = []

    def leave(*_: Any) -> None:
        running.pop()

    try:
        with _hooks(lambda module, _: running.append(module), leave):
            yield
    except FewshotError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        names = _layer_names(backbone) if backbone is not None else {}
        failed = [f"{names[module]} fails" for module in running if module in names]
        if not failed and (location := error_location(error)):  # the person's own algorithm
            raise FewshotError(
                f"algorithm.learner: {location}: {error_reason(error)}; HYDRA_FULL_ERROR=1 shows the traceback"
            ) from error
        raise FewshotError(
            f"backbone: {failed[-1] if failed else 'learning fails'} on examples {list(x.shape[1:])} "
            f"({error_reason(error)}); its forward must run on such examples, under torch.func too"
        ) from error


@contextmanager
def _hooks(enter: Callable[..., None], leave: Callable[..., None]) -> Iterator[None]:
    """Call `enter(module, inputs)` before the forward of every module, and `leave(module, inputs, output)` after it."""
    handles = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer_names(backbone: nn.Module) -> dict[nn.Module, str]:
    return {module: _layer(name, module) for name, module in backbone.named_modules()}


def _layer(name: str, module: nn.Module) -> str:
    return f"layer {name} ({type(module).__name__})" if name else type(module).__name__


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
        scale: the tolerance is relative to the largest value of this tensor; None: of `other`.
    """
    one, other = (v if v.layout == torch.strided else v.to_dense() for v in (one, other))
    if one.shape != other.shape or not other.is_floating_point():
        return torch.equal(one, other)
    whole = other if scale is None else scale
    largest = whole[whole.isfinite()].abs().max().item() if whole.isfinite().any() else 0.0
    return torch.allclose(one, other, rtol=0, atol=tolerance * largest, equal_nan=True)


def error_reason(error: BaseException) -> str:
    """The message of an error, short enough to stand in one line with more; with its type if it is not torch's."""
    name = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
    return f"{name}{one_line(error)}"[:160]
