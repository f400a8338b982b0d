"""A convolution as the product of an image's patches with the weights, for tasks that have weights of their own.

Its first derivative is a function of its own, whose derivative is written in torch's operations, for two reasons: every
result lies in memory channels last, where torch's own derivatives of a batched product are now and then transposed, and
all that follows on them is slow; and torch.func spends half a millisecond on each function of ours that it meets. There
is no forward mode (torch.func.jvp).

Shapes: images [..., B, H, W, C]; patches [..., B, H', W', K], K = side * side * C; weights [..., F, K]; outputs
[..., B, H', W', F]. Tasks, the dots, are those that torch.func.vmap runs at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function


@dataclass(frozen=True)
class Window:
    """Of a square patch; a class, since torch.func takes tuples apart."""

    side: int
    stride: int
    padding: int


def conv2d_by_patches(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> torch.Tensor:
    """`torch.nn.functional.conv2d` of [B, C, H, W] and [F, C, side, side]: [B, F, H', W'], channels last in memory."""
    window = Window(weight.shape[-1], stride, padding)
    out, _ = _Convolution.apply(x.movedim(1, -1), weight.movedim(1, -1).flatten(1), window)
    return (out if bias is None else out + bias).movedim(-1, 1)


class _Convolution(Function):
    """Outputs, and the patches of the images."""

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        patches = _patches(x, window)
        return _product(patches, weight.mT), patches

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        x, weight, ctx.window = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, output[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[Any, ...]:
        x, weight, patches = ctx.saved_tensors
        by_x = ctx.needs_input_grad[0]
        of_weight, *of_x = _Derivative.apply(grad_outputs[0], x, weight, patches, ctx.window, weight.shape, by_x)
        return of_x[0] if by_x else None, of_weight, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, ...]:
        x, weight, window = args
        (x,), weight = _lead(info.batch_size, in_dims, (x,), weight, in_dims[1])
        return _Convolution.apply(x, weight, window), (0, 0)


class _Derivative(Function):
    """The gradient by weights, in `shape`, which lacks the axes to sum over; and by images where `by_x`."""

    @staticmethod
    def forward(
        output: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        patches: torch.Tensor,
        window: Window,
        shape: torch.Size,
        by_x: bool,
    ) -> tuple[torch.Tensor, ...]:
        of_weight = _weight(output, patches, shape)
        return (of_weight, _fold(_product(output, weight), window, x.shape)) if by_x else (of_weight,)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        *tensors, ctx.window, _, _ = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[Any, ...]:
        output, x, weight, patches = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a third derivative, which depends on the images
            patches = _patches(x, ctx.window)
        v_weight, *v_x = grad_outputs
        v_patches = _patches(v_x[0], ctx.window) if v_x else None
        by_output = _product(patches, v_weight.mT)
        if v_patches is not None:
            by_output = by_output + _product(v_patches, weight.mT)
        by_x = _fold(_product(output, v_weight), ctx.window, x.shape) if ctx.needs_input_grad[1] else None
        by_weight = None if v_patches is None else _weight(output, v_patches, weight.shape)
        return by_output, by_x, by_weight, *(None,) * 4

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, ...]:
        output, x, weight, patches, window, shape, by_x = args
        dims = in_dims[0], in_dims[1], in_dims[3]
        (output, x, patches), weight = _lead(info.batch_size, dims, (output, x, patches), weight, in_dims[2])
        kept = torch.Size((info.batch_size, *(1,) * (x.dim() - 3 - len(shape)), *shape))
        of_weight, *of_x = _Derivative.apply(output, x, weight, patches, window, kept, by_x)
        return (of_weight.reshape(info.batch_size, *shape), *of_x), (0,) * (1 + by_x)


def _lead(
    size: int, dims: tuple[Any, ...], images: tuple[torch.Tensor, ...], weight: torch.Tensor, weight_dim: int | None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Images, or their like, and weights with the axis of vmap first; weights that all tasks share stay as they are."""
    moved = [
        x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0) for x, dim in zip(images, dims, strict=False)
    ]
    if weight_dim is not None:
        weight = weight.movedim(weight_dim, 0)
        weight = weight.reshape(size, *(1,) * (moved[0].dim() - 2 - weight.dim()), *weight.shape[1:])
    return moved, weight


def _patches(x: torch.Tensor, window: Window) -> torch.Tensor:
    side, stride, padding = window.side, window.stride, window.padding
    x = F.pad(x, (0, 0, *(padding,) * 4))
    return x.unfold(-3, side, stride).unfold(-3, side, stride).movedim(-3, -1).flatten(-3)


def _fold(patches: torch.Tensor, window: Window, shape: torch.Size) -> torch.Tensor:
    """Images of this shape, each pixel the sum of its copies in the patches."""
    side, stride, padding = window.side, window.stride, window.padding
    (down, across), (height, width) = patches.shape[-3:-1], shape[-3:-1]
    patches = patches.unflatten(-1, (side, side, -1))
    blocks = -(-side // stride)  # the image is cut into squares of stride pixels, of which a patch touches blocks²
    rows, columns = (
        max(n + blocks - 1, -(-(size + padding) // stride)) for n, size in ((down, height), (across, width))
    )
    x = patches.new_zeros(*patches.shape[:-5], rows, stride, columns, stride, patches.shape[-1])
    for i in range(blocks):
        for j in range(blocks):
            part = patches[..., i * stride : (i + 1) * stride, j * stride : (j + 1) * stride, :].movedim(-3, -4)
            x[..., i : i + down, : part.shape[-4], j : j + across, : part.shape[-2], :] += part
    x = x.flatten(-5, -4).flatten(-3, -2)
    return x[..., padding : padding + height, padding : padding + width, :]


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """[..., B, H', W', A] by [..., A, D]: as one large product where all tasks share `right`."""
    if right.dim() == 2:
        return (left.flatten(0, -2) @ right).unflatten(0, left.shape[:-1])
    return (left.flatten(-4, -2) @ right).unflatten(-2, left.shape[-4:-1])


def _weight(output: torch.Tensor, patches: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The products of outputs and patches, summed over pixels, and over the axes that `shape` lacks."""
    axes = 0 if len(shape) == 2 else -4
    output, patches = output.flatten(axes, -2), patches.flatten(axes, -2)
    if patches.shape[-1] < output.shape[-1]:  # the faster order where patches are small, as of one channel
        return (patches.mT @ output).mT.contiguous().sum_to_size(shape)
    return (output.mT @ patches).sum_to_size(shape)
