"""A convolution as the product of an image's patches with the weights, for tasks that have weights of their own.

Five linear maps, each of which is a derivative of others, so that all can be differentiated any number of times:
`_Patches` and `_Fold`, its transpose, and the three products of patches [N, K], weights [F, K] and outputs [N, F].
Written so, every result lies in memory channels last, in whichever order the engine differentiates. torch's own
derivatives of a batched product are now and then transposed, and all that follows on them is slow.

N counts the output pixels of a task's images, K = C * side * side, F filters.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function


def conv2d_by_patches(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> torch.Tensor:
    """`torch.nn.functional.conv2d` of [B, C, H, W] and [F, C, side, side]: [B, F, H', W'], channels last in memory."""
    patches = _Patches.apply(x.movedim(1, -1), weight.shape[-1], stride, padding)
    out = _Output.apply(patches.flatten(0, 2), weight.movedim(1, -1).flatten(1))
    if bias is not None:
        out = out + bias
    return out.unflatten(0, patches.shape[:3]).movedim(-1, 1)


class _Patches(Function):
    """Images [..., H, W, C], padded with zeros, to their patches [..., H', W', K]."""

    @staticmethod
    def forward(x: torch.Tensor, side: int, stride: int, padding: int) -> torch.Tensor:
        x = F.pad(x, (0, 0, *(padding,) * 4))
        return x.unfold(-3, side, stride).unfold(-3, side, stride).movedim(-3, -1).flatten(-3)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        x, *ctx.window = inputs
        ctx.height, ctx.width = x.shape[-3:-1]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[Any, ...]:
        return _Fold.apply(*grad_outputs, *ctx.window, ctx.height, ctx.width), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[torch.Tensor, int]:
        x, *window = args
        return _Patches.apply(x.movedim(in_dims[0], 0), *window), 0


class _Fold(Function):
    """Patches [..., H', W', K] to images [..., H, W, C]: each pixel is the sum of its copies."""

    @staticmethod
    def forward(patches: torch.Tensor, side: int, stride: int, padding: int, height: int, width: int) -> torch.Tensor:
        *leading, down, across, _ = patches.shape
        patches = patches.unflatten(-1, (side, side, -1))
        blocks = -(-side // stride)  # the image is cut into squares of stride pixels, of which a patch touches blocks²
        rows, columns = (
            max(n + blocks - 1, -(-(size + padding) // stride)) for n, size in ((down, height), (across, width))
        )
        x = patches.new_zeros(*leading, rows, stride, columns, stride, patches.shape[-1])
        for i in range(blocks):
            for j in range(blocks):
                part = patches[..., i * stride : (i + 1) * stride, j * stride : (j + 1) * stride, :].movedim(-3, -4)
                x[..., i : i + down, : part.shape[-4], j : j + across, : part.shape[-2], :] += part
        x = x.flatten(-5, -4).flatten(-3, -2)
        return x[..., padding : padding + height, padding : padding + width, :]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.window = inputs[1:4]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[Any, ...]:
        return _Patches.apply(*grad_outputs, *ctx.window), *(None,) * 5

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[torch.Tensor, int]:
        patches, *rest = args
        return _Fold.apply(patches.movedim(in_dims[0], 0), *rest), 0


class _Output(Function):
    """Patches [..., N, K] and weights [..., F, K] to outputs [..., N, F]."""

    @staticmethod
    def forward(patches: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return _product(patches, weight.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[Any, ...]:
        (gradient,), (patches, weight) = grad_outputs, ctx.saved_tensors
        by_patches, by_weight = ctx.needs_input_grad
        return (
            _OfPatches.apply(gradient, weight).sum_to_size(patches.shape) if by_patches else None,
            _OfWeight.apply(gradient, patches, weight.shape) if by_weight else None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[torch.Tensor, int]:
        return _Output.apply(*_lead(in_dims, *args)), 0


class _OfPatches(Function):
    """Outputs [..., N, F] and weights [..., F, K] to patches [..., N, K]."""

    @staticmethod
    def forward(output: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return _product(output, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[Any, ...]:
        (gradient,), (output, weight) = grad_outputs, ctx.saved_tensors
        by_output, by_weight = ctx.needs_input_grad
        return (
            _Output.apply(gradient, weight).sum_to_size(output.shape) if by_output else None,
            _OfWeight.apply(output, gradient, weight.shape) if by_weight else None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[torch.Tensor, int]:
        return _OfPatches.apply(*_lead(in_dims, *args)), 0


class _OfWeight(Function):
    """Outputs [..., N, F] and patches [..., N, K] to weights [..., F, K], summed over the axes that `shape` lacks."""

    @staticmethod
    def forward(output: torch.Tensor, patches: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 2:
            output, patches = output.flatten(0, -2), patches.flatten(0, -2)
        if patches.shape[-1] < output.shape[-1]:  # the faster order where patches are small, as of one channel
            return (patches.mT @ output).mT.contiguous().sum_to_size(shape)
        return (output.mT @ patches).sum_to_size(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[Any, ...]:
        (gradient,), (output, patches) = grad_outputs, ctx.saved_tensors
        by_output, by_patches, _ = ctx.needs_input_grad
        return (
            _Output.apply(patches, gradient).sum_to_size(output.shape) if by_output else None,
            _OfPatches.apply(output, gradient).sum_to_size(patches.shape) if by_patches else None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[torch.Tensor, int]:
        output, patches, shape = args
        return _OfWeight.apply(*_lead(in_dims, output, patches), (info.batch_size, *shape)), 0


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right, as one large product where all tasks share `right`."""
    if right.dim() == 2:
        return (left.flatten(0, -2) @ right).unflatten(0, left.shape[:-1])
    return left @ right


def _lead(in_dims: tuple[Any, ...], *operands: torch.Tensor) -> list[torch.Tensor]:
    """The operands with the axis of vmap first where they have it, and as many axes where both do."""
    moved = [x if dim is None else x.movedim(dim, 0) for x, dim in zip(operands, in_dims, strict=False)]
    if in_dims[0] is None or in_dims[1] is None:
        return moved
    most = max(x.dim() for x in moved)
    return [x.reshape(len(x), *(1,) * (most - x.dim()), *x.shape[1:]) for x in moved]
