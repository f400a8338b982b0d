"""What a learner sees of the bank's images: another shape, a crop, training's random changes, normalisation.

All of it happens on gathered batches, on their device; an image's random changes are a function of a key of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log
from typing import Any

import torch
import torch.nn.functional as F

from fewshot.core.errors import FewshotError
from fewshot.core.random import split, uniform

AREA = (0.08, 1.0)  # of a random crop, as a share of the image: torchvision's RandomResizedCrop
RATIO = (3 / 4, 4 / 3)  # width to height of a random crop
JITTER = 0.4  # brightness, contrast and saturation are multiplied with 1 - JITTER to 1 + JITTER


@dataclass(frozen=True)
class ImageTransform:
    """How images are looked at, in this order: `crop` or `augment`, `shape`, `mean` and `std`; features pass by it.

    Args:
        shape: (C, H, W) that images are adapted to, for a learner trained on others: resized (bilinear, antialiased),
            grey copied to three channels, colour made grey. None: as they are.
        crop: side of the square cut from the middle or, in training with `augment`, from anywhere. None: all.
        augment: "none", or "natural": a random crop resized to `crop`, a mirror image in half of the cases, and colour
            jitter, each image its own; mmfewshot's training.
        mean, std: of each channel, in units of 0..1. None: 0 and 1.

    Raises:
        FewshotError: an argument out of range.
    """

    shape: tuple[int, ...] | None = None
    crop: int | None = None
    augment: str = "none"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.augment not in ("none", "natural"):
            raise FewshotError(f"dataset.augment: {self.augment}: choose none or natural")
        if self.crop is not None and (type(self.crop) is not int or self.crop < 1):
            raise FewshotError(f"dataset.crop={self.crop}: must be a whole number of pixels, or null")
        for name, values in (("mean", self.mean), ("std", self.std)):
            numbers = isinstance(values, tuple) and all(type(v) in (int, float) and isfinite(v) for v in values)
            if values is not None and not numbers:
                raise FewshotError(f"dataset.{name}={values}: must be a list of numbers, one for each channel, or null")
        if self.mean is not None and not all(0 <= value <= 1 for value in self.mean):
            raise FewshotError(f"dataset.mean={list(self.mean)}: is in units of 0..1; divide by 255")
        if self.std is not None and min(self.std, default=0) <= 0:
            raise FewshotError(f"dataset.std={list(self.std)}: must be above 0")
        good = isinstance(self.shape, tuple) and len(self.shape) == 3 and all(type(side) is int for side in self.shape)
        if self.shape is not None and not (good and self.shape[0] in (1, 3) and min(self.shape) > 0):
            raise FewshotError(f"dataset.shape={self.shape}: must be [1 or 3, height, width], or null")

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of what the learner gets of an example of this shape.

        Raises:
            FewshotError: the view is not for such examples.
        """
        if len(shape) != 3:
            if (self.shape, self.crop, self.augment) != (None, None, "none"):
                raise FewshotError(
                    f"features of {shape[0]} values cannot be cropped, resized or changed: leave dataset.crop, "
                    "dataset.shape and dataset.augment.episodes out"
                )
            return shape
        if self.crop is not None:
            if not 1 <= self.crop <= min(shape[1:]):
                raise FewshotError(f"dataset.crop={self.crop}: the images are {shape[2]}x{shape[1]}; crop at most that")
            shape = shape[0], self.crop, self.crop
        shape = shape if self.shape is None else self.shape
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != shape[0]:
                raise FewshotError(f"dataset.{name} has {len(values)} values, the images {shape[0]} channels")
        return shape

    def __call__(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """Images [..., C, H, W], uint8 or float32 in 0..1, to what the learner gets, in float32.

        Args:
            keys: [...] int64 for the random changes of training; without, there are none.
        """
        x = images / 255 if images.dtype == torch.uint8 else images
        if keys is not None and self.augment == "natural":
            side = x.shape[-2:] if self.crop is None else (self.crop, self.crop)
            changed = random_augment(x.flatten(0, -4), keys.flatten(), side)
            x = changed.unflatten(0, keys.shape)
        elif self.crop is not None:
            top, left = (round((side - self.crop) / 2) for side in x.shape[-2:])
            x = x[..., top : top + self.crop, left : left + self.crop]
        if self.shape is not None and x.shape[-3:] != self.shape:
            x = _adapted(x, self.shape)
        if self.mean is not None:
            x = x - x.new_tensor(self.mean).view(-1, 1, 1)
        if self.std is not None:
            x = x / x.new_tensor(self.std).view(-1, 1, 1)
        return x


def view_of(settings: Mapping[str, Any]) -> ImageTransform:
    """The view that a dataset's configuration says by `shape`, `crop`, `mean` and `std`."""

    def fixed(name: str) -> Any:
        value = settings.get(name)
        return tuple(value) if isinstance(value, Sequence) else value

    return ImageTransform(shape=fixed("shape"), crop=settings.get("crop"), mean=fixed("mean"), std=fixed("std"))


def _adapted(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if x.shape[-3] != shape[0]:
        x = _grey(x) if shape[0] == 1 else x.expand(*x.shape[:-3], shape[0], -1, -1)
    if x.shape[-2:] == shape[1:]:
        return x
    flat = F.interpolate(x.flatten(0, -4), shape[1:], mode="bilinear", antialias=True)
    return flat.view(*x.shape[:-3], *shape).clamp(0, 1)


def random_augment(x: torch.Tensor, keys: torch.Tensor, side: Sequence[int]) -> torch.Tensor:
    """A random crop, mirror image and colour jitter of each image: [B, C, H, W] in 0..1 to [B, C, *side].

    Torchvision's RandomResizedCrop, RandomHorizontalFlip and ColorJitter, which change a whole batch alike, for each
    image of a batch apart. Differences: a crop that would not fit is narrowed, not drawn again; it lies between
    pixels and is read bilinearly; brightness, contrast and saturation always come in this order.

    Args:
        keys: [B] int64; what happens to an image is a function of its key.
    """
    u = uniform(split(keys, 8))  # [B, 8]
    area = AREA[0] + (AREA[1] - AREA[0]) * u[:, 0]
    ratio = torch.exp(log(RATIO[0]) + (log(RATIO[1]) - log(RATIO[0])) * u[:, 1])
    # In affine_grid's units, where the image reaches from -1 to 1.
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    mirror = torch.where(u[:, 2] < 0.5, -1.0, 1.0)
    left, top = (2 * u[:, 3] - 1) * (1 - width), (2 * u[:, 4] - 1) * (1 - height)
    nothing = torch.zeros_like(width)
    rows = [torch.stack([width * mirror, nothing, left], 1), torch.stack([nothing, height, top], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [*x.shape[:2], *side], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    brightness, contrast, saturation = (1 + JITTER * (2 * u[:, 5:, None, None, None] - 1)).unbind(1)
    x = (x * brightness).clamp(0, 1)
    x = x.lerp(_grey(x).mean((1, 2, 3), keepdim=True), 1 - contrast).clamp(0, 1)
    return x.lerp(_grey(x), 1 - saturation).clamp(0, 1)


def _grey(x: torch.Tensor) -> torch.Tensor:
    """[..., 1, H, W] of [..., 3, H, W] by ITU-R 601-2's luma, as Pillow and torchvision have it."""
    if x.shape[-3] == 1:
        return x
    return (x * x.new_tensor([0.2989, 0.587, 0.114]).view(-1, 1, 1)).sum(-3, keepdim=True)
