"""A convolution that is fast where each task has weights of its own.

Tasks that run at once turn their convolutions into a grouped one. On a GPU it is slow: as a matrix product, whose
operands torch.compile gathers in one pass, a step of MAML on Omniglot takes 1.4 ms where the grouped one takes 5.5 (32
tasks, H200, both as a CUDA graph). On a CPU the patches of a strided window, two to three times as large as the
image, pay: a step of second order on the same tasks takes 268 ms against 330, of first order 157 against 170 (one core
of an AMD EPYC). Those of stride 1 are nine times as large, and cost: 600 ms against 500 on 42x42 images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor  # which have no public names

from fewshot.backbones.patches import conv2d_by_patches

# Patches of outputs of at most so many pixels go into one large product for all images, in place of many small ones.
FEW_PIXELS = 256
# Patches pay for so many images at once, of all tasks together: torch.func spends half a millisecond on each call of a
# function of our own, which on 40 images of Omniglot is an eighth of a step of first order.
MANY_IMAGES = 64


def conv2d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> torch.Tensor:
    """`torch.nn.functional.conv2d` of [B, C, H, W] and [F, C, K, K], by what is fastest where it runs."""
    if torch.compiler.is_compiling():
        if x.device.type == "cuda":
            return conv2d_by_product(x, weight, bias, stride=stride, padding=padding)
    elif (
        x.device.type == "cpu"
        and stride > 1
        and is_functorch_wrapped_tensor(weight)
        and images_at_once(x) >= MANY_IMAGES
    ):
        return conv2d_by_patches(x, weight, bias, stride=stride, padding=padding)
    return F.conv2d(x, weight, bias, stride=stride, padding=padding)


def images_at_once(x: torch.Tensor) -> int:
    """The number of images that torch.func.vmap runs at once, given those of one task; what tasks share counts once."""
    pixels = x.shape[1:].numel()
    while is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    return x.numel() // pixels


def conv2d_by_product(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> torch.Tensor:
    """The same convolution as a matrix product with the patches of each image: [B, C, H, W] to [B, F, H', W'].

    Patches are stacked from shifted images, so that the derivative adds shifted images and needs no atomic operations,
    whose order, and with it the rounding, would change from run to run.
    """
    side = weight.shape[-1]
    height, width = ((size + 2 * padding - side) // stride + 1 for size in x.shape[-2:])
    x = F.pad(x, (padding,) * 4)

    def rows(i: int) -> torch.Tensor:
        down = x[..., i : i + stride * (height - 1) + 1 : stride, :]
        return torch.stack([down[..., j : j + stride * (width - 1) + 1 : stride] for j in range(side)], dim=2)

    patches = torch.stack([rows(i) for i in range(side)], dim=2)  # [B, C, K, K, height, width]
    if height * width <= FEW_PIXELS:
        out = weight.flatten(1) @ patches.movedim(0, 3).flatten(3).flatten(0, 2)  # [F, B * height * width]
        out = out.unflatten(1, (len(x), height, width)).transpose(0, 1)
    else:
        out = (weight.flatten(1) @ patches.flatten(4).flatten(1, 3)).unflatten(-1, (height, width))
    return out if bias is None else out + bias[:, None, None]
