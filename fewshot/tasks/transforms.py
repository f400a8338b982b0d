"""How a learner sees the images of a bank: cropped, randomly augmented in training, resized, normalised.

On gathered batches, on their device. The augmentation of an image is a function of the image's own key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log
from typing import Any

import torch
import torch.nn.functional as F

from fewshot.core.checks import check_choice, check_number
from fewshot.core.errors import FewshotError
from fewshot.core.random import split, uniform

RATIO = (3 / 4, 4 / 3)  # width to height of a random crop: torchvision's RandomResizedCrop


@dataclass(frozen=True)
class Strength:
    """How far a random augmentation goes."""

    area: float  # of a random crop, as a share of the image, at least
    jitter: float  # brightness, contrast and saturation are multiplied with 1 - jitter to 1 + jitter


AUGMENTATIONS = {"none": None, "gentle": Strength(0.5, 0.0), "natural": Strength(0.08, 0.4)}


@dataclass(frozen=True)
class ImageTransform:
    """Changes of images, in this order: `crop` or `augment`, `shape`, `mean` and `std`. Features stay as they are.

    Networks with pretrained weights expect the mean and std of their training: `Sampler(bank, way=5, shot=1,
    view=ImageTransform(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))` for those on ImageNet.

    Args:
        shape: (C, H, W) that images are changed to, for a learner that was trained on others: resized (bilinear,
            antialiased), grey copied to three channels, colour made grey. None: as they are.
        crop: side of the square cut from the middle. None: all. With `augment` the side of a random crop instead.
        augment: "none"; or "natural": a random crop resized to `shape`, else to `crop`, a mirror image in half of the
            cases, and colour jitter, drawn for each image (mmfewshot's training); or "gentle": the same without colour
            jitter, and with at least half of the image in a crop.
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
        for name in ("shape", "mean", "std"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        check_choice("dataset.augment", self.augment, tuple(AUGMENTATIONS))
        if self.crop is not None:
            check_number("dataset.crop", self.crop, int, 1)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is None:
                continue
            if not isinstance(values, tuple) or not all(type(v) in (int, float) and isfinite(v) for v in values):
                raise FewshotError(f"dataset.{name}={values}: must be a list of numbers, one for each channel, or null")
            if name == "mean" and not all(0 <= value <= 1 for value in values):
                raise FewshotError(f"dataset.mean={list(values)}: is in units of 0..1; divide by 255")
            if name == "std" and min(values, default=0) <= 0:
                raise FewshotError(f"dataset.std={list(values)}: must be above 0")
        if (shape := self.shape) is None:
            return
        three_numbers = isinstance(shape, tuple) and len(shape) == 3 and all(type(side) is int for side in shape)
        if not three_numbers or shape[0] not in (1, 3) or min(shape) < 1:
            raise FewshotError(f"dataset.shape={shape}: must be [1 or 3, height, width], or null")

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that the learner sees of an example of this shape.

        Raises:
            FewshotError: the settings do not fit such examples.
        """
        if len(shape) != 3:
            kind = f"features of {shape[0]} values" if len(shape) == 1 else f"examples of shape {list(shape)}"
            if (self.shape, self.crop, self.augment) != (None, None, "none"):
                raise FewshotError(
                    f"{kind} cannot be cropped, resized or augmented: leave dataset.crop, dataset.shape and "
                    "dataset.augment.episodes out"
                )
            if len(shape) > 1 and (self.mean, self.std) != (None, None):
                raise FewshotError(f"{kind} have no channels: leave dataset.mean and dataset.std out")
            return shape
        strength = AUGMENTATIONS[self.augment]
        if shape[0] not in (1, 3) and (self.shape is not None or (strength is not None and strength.jitter)):
            name = "shape" if self.shape is not None else "augment.episodes=natural"
            raise FewshotError(f"dataset.{name}: is for images of 1 or 3 channels, and these have {shape[0]}")
        if self.crop is not None:
            if self.crop > min(shape[1:]):
                raise FewshotError(f"dataset.crop={self.crop}: the images are {shape[2]}x{shape[1]}; crop at most that")
            shape = shape[0], self.crop, self.crop
        shape = shape if self.shape is None else self.shape
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != shape[0]:
                raise FewshotError(f"dataset.{name} has {len(values)} values, the images {shape[0]} channels")
        return shape

    def check_range(self, where: str, images: torch.Tensor) -> None:
        """Raises FewshotError for float images, whose values colour jitter would cut off at 0 or 1."""
        strength = AUGMENTATIONS[self.augment]
        if strength is None or not strength.jitter or not images.is_floating_point() or not images.numel():
            return
        if images.min() < 0 or images.max() > 1:
            raise FewshotError(
                f"{where}augment={self.augment}: changes colours from 0 to 1, and the images have others; divide by "
                "255 if they reach 255, or choose gentle"
            )

    def __call__(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """Change images [..., C, H, W], uint8 or float32 (in 0..1 to augment them); the result is float32.

        Args:
            keys: [...] int64 for the random augmentation in training; None: no augmentation.
        """
        # Divided by a Python number, a GPU multiplies by the rounded 1/255. Divided by a tensor, it gives a CPU's bits.
        x = images / torch.full((), 255.0, device=images.device) if images.dtype == torch.uint8 else images
        strength = AUGMENTATIONS[self.augment]
        if keys is not None and strength is not None:
            side = x.shape[-2:] if self.crop is None else (self.crop, self.crop)
            side = side if self.shape is None else self.shape[1:]
            x = random_augment(x.flatten(0, -4), keys.flatten(), side, strength).unflatten(0, keys.shape)
        elif self.crop is not None:
            top, left = (round((side - self.crop) / 2) for side in x.shape[-2:])
            x = x[..., top : top + self.crop, left : left + self.crop]
        if self.shape is not None and x.shape[-3:] != self.shape:
            x = _adapt(x, self.shape)
            x = x.clamp(0, 1) if images.dtype == torch.uint8 else x  # floats may have any range
        if self.mean is not None:
            x = x - x.new_tensor(self.mean).view(-1, 1, 1)
        if self.std is not None:
            x = x / x.new_tensor(self.std).view(-1, 1, 1)
        return x


def view_of(settings: Mapping[str, Any]) -> ImageTransform:
    """The view of a dataset's configuration, from its `shape`, `crop`, `mean` and `std`."""

    def setting(name: str) -> Any:
        value = settings.get(name)
        return tuple(value) if isinstance(value, Sequence) else value

    return ImageTransform(setting("shape"), setting("crop"), mean=setting("mean"), std=setting("std"))


def _adapt(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Resize images [..., C, H, W] to a shape (C, H, W), grey or colour."""
    if x.shape[-3] != shape[0]:
        x = _grey(x) if shape[0] == 1 else x.expand(*x.shape[:-3], shape[0], -1, -1)
    if x.shape[-2:] == shape[1:]:
        return x
    flat = F.interpolate(x.flatten(0, -4), shape[1:], mode="bilinear", antialias=True)
    return flat.view(*x.shape[:-3], *shape)


def random_augment(x: torch.Tensor, keys: torch.Tensor, side: Sequence[int], strength: Strength) -> torch.Tensor:
    """A random crop, mirror image and colour jitter of each image: [B, C, H, W] in 0..1 to [B, C, *side].

    Torchvision's RandomResizedCrop, RandomHorizontalFlip and ColorJitter, drawn for each image, where torchvision
    changes a whole batch alike. Differences: a crop that would not fit is narrowed, not drawn again; it lies between
    pixels and is read bilinearly; where an image is not square, the ratio is relative to that of the image; brightness,
    contrast and saturation always come in this order.

    Args:
        keys: [B] int64, from which the changes of each image are drawn.
        side: height and width of the result.
    """
    if not len(x):  # tasks without queries
        return x.new_empty(0, x.shape[1], *side)
    u = uniform(split(keys, 8))  # [B, 8]
    area = strength.area + (1 - strength.area) * u[:, 0]
    ratio = torch.exp(log(RATIO[0]) + (log(RATIO[1]) - log(RATIO[0])) * u[:, 1])
    # In affine_grid's units, where the image reaches from -1 to 1.
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    mirror = torch.where(u[:, 2] < 0.5, -1.0, 1.0)
    left, top = (2 * u[:, 3] - 1) * (1 - width), (2 * u[:, 4] - 1) * (1 - height)
    nothing = torch.zeros_like(width)
    rows = [torch.stack([width * mirror, nothing, left], 1), torch.stack([nothing, height, top], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [*x.shape[:2], *side], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    if not strength.jitter:
        return x
    brightness, contrast, saturation = (1 + strength.jitter * (2 * u[:, 5:, None, None, None] - 1)).unbind(1)
    x = (x * brightness).clamp(0, 1)
    x = x.lerp(_grey(x).mean((1, 2, 3), keepdim=True), 1 - contrast).clamp(0, 1)
    return x.lerp(_grey(x), 1 - saturation).clamp(0, 1)


def _grey(x: torch.Tensor) -> torch.Tensor:
    """Grey [..., 1, H, W] of colour [..., 3, H, W] by ITU-R 601-2's luma, as in Pillow and torchvision."""
    if x.shape[-3] == 1:
        return x
    return (x * x.new_tensor([0.2989, 0.587, 0.114]).view(-1, 1, 1)).sum(-3, keepdim=True)
