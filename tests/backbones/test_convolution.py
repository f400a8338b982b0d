"""The convolution by a matrix product is that of torch, with its derivatives, for tasks with weights of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from fewshot.backbones.convolution import FEW_PIXELS, MANY_IMAGES, conv2d, conv2d_by_product
from fewshot.backbones.patches import conv2d_by_patches

Convolve = Callable[..., torch.Tensor]

pytestmark = pytest.mark.usefixtures("float64")


CASES = [(28, 2, 1), (20, 1, 1), (5, 1, 1), (4, 2, 1), (19, 1, 0)]  # size, stride, padding


@pytest.mark.parametrize(("size", "stride", "padding"), CASES)
def test_a_product_gives_the_convolution_and_its_derivatives_of_two_orders(size: int, stride: int, padding: int):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 4, size, size, generator=generator)  # 3 tasks, 2 images
    weight, bias = torch.randn(3, 6, 4, 3, 3, generator=generator), torch.randn(3, 6, generator=generator)

    def results(convolve: Convolve) -> tuple[torch.Tensor, torch.Tensor]:
        def outputs(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            return convolve(x, weight, bias, stride=stride, padding=padding)

        def slope(weight: torch.Tensor, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            return grad(lambda x: outputs(x, weight, bias).tanh().sum())(x).square().sum()

        return vmap(outputs)(x, weight, bias), vmap(grad(slope))(weight, x, bias)

    for mine, torchs in zip(results(conv2d_by_product), results(F.conv2d), strict=True):
        assert mine.shape == torchs.shape
        torch.testing.assert_close(mine, torchs, rtol=1e-9, atol=1e-9)


def test_images_of_both_sizes_were_compared():
    pixels = [((size + 2 * padding - 3) // stride + 1) ** 2 for size, stride, padding in CASES]
    assert min(pixels) <= FEW_PIXELS < max(pixels)


def test_a_cpu_takes_torchs_own_convolution_in_a_compiled_step(monkeypatch: pytest.MonkeyPatch):
    for other in ("conv2d_by_product", "conv2d_by_patches"):
        monkeypatch.setattr(f"fewshot.backbones.convolution.{other}", None)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x, weight = torch.randn(MANY_IMAGES, 1, 3, 5, 5), torch.randn(MANY_IMAGES, 4, 3, 3, 3)
    out = vmap(lambda x, weight: conv2d(x, weight, stride=2, padding=1))(x, weight)
    assert torch.equal(out, vmap(lambda x, weight: F.conv2d(x, weight, stride=2, padding=1))(x, weight))


@pytest.mark.parametrize(
    ("tasks", "stride", "weights", "by_patches"),
    [
        (MANY_IMAGES // 2, 2, "own", 1),
        (MANY_IMAGES // 2, 2, "start", 1),
        (MANY_IMAGES // 2 - 1, 2, "own", 0),
        (MANY_IMAGES // 2, 1, "own", 0),
        (MANY_IMAGES // 2, 2, "constant", 0),
    ],
)
def test_a_cpu_takes_patches_for_strided_windows_of_many_tasks_that_adapt_the_weights(
    monkeypatch: pytest.MonkeyPatch, tasks: int, stride: int, weights: str, by_patches: int
):
    calls = []

    def counted(*inputs: torch.Tensor, **window: int) -> torch.Tensor:
        calls.append(window)
        return conv2d_by_patches(*inputs, **window)

    def loss(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return conv2d(x, weight, stride=stride, padding=1).sum()

    monkeypatch.setattr("fewshot.backbones.convolution.conv2d_by_patches", counted)
    x, weight = torch.randn(tasks, 2, 4, 7, 7), torch.randn(6, 4, 3, 3)  # 2 images
    if weights == "own":
        vmap(loss)(weight.expand(tasks, *weight.shape), x)
    elif weights == "start":  # of which each task has its own gradient
        vmap(grad(loss), (None, 0))(weight, x)
    else:
        vmap(partial(loss, weight))(x)
    assert len(calls) == by_patches
