"""The convolution by patches is that of torch, with its derivatives, in whichever way tasks are batched."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradgradcheck
from torch.func import grad, vmap

from fewshot.backbones.patches import conv2d_by_patches

Convolve = Callable[..., torch.Tensor]

pytestmark = pytest.mark.usefixtures("float64")

SHAPES = [(7, 7, 3, 2, 1), (6, 9, 3, 2, 1), (5, 6, 3, 1, 1), (9, 8, 5, 2, 2), (10, 11, 2, 2, 0), (7, 6, 3, 4, 1)]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("height", "width", "side", "stride", "padding"), SHAPES)
def test_every_window_gives_torchs_convolution_and_can_be_differentiated_twice(
    height: int, width: int, side: int, stride: int, padding: int
):
    x, weight, bias = random(2, 3, height, width), random(4, 3, side, side), random(4)
    window = {"stride": stride, "padding": padding}
    mine, torchs = (each(x, weight, bias, **window) for each in (conv2d_by_patches, F.conv2d))
    torch.testing.assert_close(mine, torchs, rtol=1e-12, atol=1e-12)
    assert mine.movedim(1, -1).is_contiguous()
    assert gradgradcheck(
        partial(conv2d_by_patches, **window), (x.requires_grad_(), weight.requires_grad_()), fast_mode=True
    )


@pytest.mark.parametrize("shared", ["neither", "weights", "images"])
def test_tasks_at_once_have_the_meta_gradient_of_torchs_convolution(shared: str):
    x, weight = random(3, 2, 4, 7, 7), random(3, 6, 4, 3, 3)
    dims = (None if shared == "images" else 0, None if shared == "weights" else 0)
    x, weight = x[0] if shared == "images" else x, weight[0] if shared == "weights" else weight

    def meta_gradient(convolve: Convolve) -> tuple[torch.Tensor, ...]:
        def loss(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return convolve(x, weight, stride=2, padding=1).tanh().square().sum()

        def outer_loss(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return loss(weight - 0.01 * grad(loss)(weight, x), x)

        mine = x.clone().requires_grad_(), weight.clone().requires_grad_()
        return torch.autograd.grad(vmap(outer_loss, dims)(*mine).sum(), mine)

    for mine, torchs in zip(meta_gradient(conv2d_by_patches), meta_gradient(F.conv2d), strict=True):
        torch.testing.assert_close(mine, torchs, rtol=1e-10, atol=1e-10)


def test_queries_at_once_within_tasks_at_once_have_the_outputs_of_torchs_convolution():
    x, weight = random(3, 5, 2, 4, 7, 7), random(3, 6, 4, 3, 3)  # 3 tasks, 5 queries each beside an example

    def outputs(convolve: Convolve) -> torch.Tensor:
        def of_task(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return vmap(lambda x: convolve(x, weight, stride=2, padding=1))(x)

        return vmap(of_task)(x, weight)

    torch.testing.assert_close(outputs(conv2d_by_patches), outputs(F.conv2d), rtol=1e-12, atol=1e-12)


def test_the_third_derivative_is_that_of_torchs_convolution():
    def third(convolve: Convolve) -> torch.Tensor:
        x, weight = random(1, 1, 5, 5).requires_grad_(), random(2, 1, 3, 3).requires_grad_()
        slope = convolve(x, weight, stride=2, padding=1).pow(4).sum()
        for _ in range(2):
            slope = sum(each.pow(3).sum() for each in torch.autograd.grad(slope, (x, weight), create_graph=True))
        return torch.cat([each.flatten() for each in torch.autograd.grad(slope, (x, weight))])

    torch.testing.assert_close(third(conv2d_by_patches), third(F.conv2d), rtol=1e-9, atol=0)
