"""Checks that a network fits its tasks, before training. They run the network, whatever its class."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from fewshot.backbones.failures import error_reason
from fewshot.core.device import out_of_memory
from fewshot.core.errors import FewshotError

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
        if backbone is not network:
            copy_network(backbone)  # says so where the network itself cannot be copied
            raise FewshotError(
                f"algorithm.learner: {type(network).__name__} cannot be copied ({error_reason(error)}); keep in its "
                "attributes only what copy.deepcopy can copy"
            ) from error
        raise FewshotError(
            f"backbone: {type(backbone).__name__} cannot be copied ({error_reason(error)}); let it keep no tensors "
            "computed from its parameters, as torch.nn.utils.weight_norm does and parametrizations.weight_norm does not"
        ) from error


class WayError(FewshotError):
    """A network is made for other ways than the tasks have."""


def check_outputs(outputs: Any, count: int, targets: torch.Tensor, way: int) -> None:
    """Check the shape and type of the predictions of `count` examples.

    Args:
        targets: labels [B], or in regression floats [B] or [B, D].
        way: classes N of the task.

    Raises:
        WayError: they are logits of another number of classes.
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
            raise WayError(
                f"backbone: it is made for {shape[1]} ways, the tasks have {way}: change one of them (your own network "
                "may take '+backbone.network.num_classes=${way}'); or, if it gives features, take backbone=module "
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
