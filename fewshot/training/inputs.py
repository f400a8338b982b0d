"""How a person's examples become what a trained learner sees: resized, normalised, or turned into features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank
from fewshot.data.sources.images import FILTERS, LARGEST_SIDE, RESIZES, ImageSpec
from fewshot.data.tensors import check_finite
from fewshot.episodes import Tasks
from fewshot.tasks.sampler import Sampler, unit_vectors
from fewshot.tasks.transforms import ImageTransform

PIXELS_AT_ONCE = 1 << 21  # of the images that an extractor forwards at once, which bounds its memory: 41 of 224x224


@dataclass(frozen=True)
class Inputs:
    """The examples that a learner was trained on."""

    shape: tuple[int, ...]  # of one example as it was stored, before the view: images (C, H, W), features (D,)
    view: ImageTransform  # of images, as in the test
    way: int  # N of the training tasks
    dtype: torch.dtype  # of the stored examples: uint8 images, or floats
    extractor: nn.Module | None = None  # makes the learner's features [B, D] of such images
    features: int = 0  # D, with an extractor
    no_extractor: str = ""  # why features cannot be made of images, and what to do
    unit_range: bool = True  # whether the values lie within 0..1, or are uint8, which are divided by 255
    spec: ImageSpec | None = None  # how an image file becomes one of them; None where they are no 8-bit images

    def prepare(self, name: str, x: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Examples as the learner sees them, float32 on the device.

        Args:
            name: of the argument, for messages.
            x: [B, ...] as `as_examples` returns them. Images of another size or number of channels are changed to
                those that the learner knows.

        Raises:
            FewshotError: they are of another kind or scale than the learner's, or hold values that are not finite.
        """
        self.check(name, x)
        check_finite(name, x)
        x = x.to(device)
        if x.dim() == 2:
            return unit_vectors(x)
        if len(self.shape) != 3:
            return x
        # Floats that were scaled by the training images may lie a little beyond these.
        beyond = 0 if self.dtype == torch.uint8 else 1
        if self.unit_range and x.is_floating_point() and (x.min() < -beyond or x.max() > 1 + beyond):
            remedy = "scale them as those of the training" if beyond else "divide by 255, or give uint8"
            raise FewshotError(f"{name}: float images have values from 0 to 1 here; {remedy}")
        if self.extractor is None:
            return self._see(x)
        embed: Callable[[torch.Tensor], torch.Tensor] = self.extractor.embed  # pyright: ignore[reportAssignmentType]
        _, height, width = self.view.output_shape(self.shape)
        parts = x.split(max(1, PIXELS_AT_ONCE // (height * width)))
        with torch.no_grad():
            return unit_vectors(torch.cat([embed(self._see(part)) for part in parts]))

    def _see(self, images: torch.Tensor) -> torch.Tensor:
        """Images of any size and number of channels as the learner, or its extractor, sees them, squashed."""
        if images.shape[1:] != self.shape:
            images = ImageTransform(shape=self.shape)(images)
        return self.view(images)

    def check(self, name: str, x: torch.Tensor) -> None:
        """Raises FewshotError where examples [B, ...] are of another kind than the learner's."""
        given, wanted = tuple(x.shape[1:]), self.shape
        if self.extractor is not None and len(given) == 1 and x.is_floating_point():
            if given == (self.features,):
                return  # the features themselves
            raise FewshotError(
                f"{name}: {given[0]} features, and the learner knows {self.features}; give images {list(wanted)}, or "
                "features of the extractor that it was trained with"
            )
        if len(given) == len(wanted) == 3 and x.dtype == torch.uint8 and not self.unit_range:
            raise FewshotError(
                f"{name}: uint8 images, and the learner was trained on floats that are not within 0..1; give floats "
                "made as those of the training"
            )
        if len(given) == len(wanted) == 3 and ({given[0], wanted[0]} <= {1, 3} or given == wanted):
            return
        if len(given) == len(wanted) == 3 and given[0] == wanted[0]:
            there, size = ("x".join(map(str, reversed(shape[1:]))) for shape in (given, wanted))
            raise FewshotError(f"{name}: images of {there} and of {given[0]} channels are not resized; give {size}")
        if given == wanted and (x.is_floating_point() or self.dtype == torch.uint8):
            return
        kind = {1: "features", 3: "images"}.get(len(wanted), "examples")
        remedy = "give features of the extractor that it was trained with" if len(wanted) == 1 else f"give {kind}"
        if self.no_extractor and len(given) == 3:
            remedy = f"they cannot be made of images: {self.no_extractor}"
        raise FewshotError(
            f"{name}: examples of shape {list(given)}, and the learner knows {kind} {list(wanted)}; {remedy}"
        )

    def sampler(self, tasks: Sampler) -> Sampler:
        """The same episodes with examples as the learner sees them.

        Raises:
            FewshotError: they are of another kind than the learner's, or are turned and cannot be.
        """
        self.check("tasks", tasks.bank.examples[:0])
        shape = (0,) if self.extractor is not None else self.view.output_shape(self.shape)
        if tasks.rotations != "none" and (len(shape) < 3 or shape[-1] != shape[-2]):
            kind = "features" if len(shape) < 3 else f"images of {shape[-1]}x{shape[-2]}"
            raise FewshotError(
                f"rotations={tasks.rotations}: the learner sees {kind}, which cannot be turned; set none"
            )
        return replace(tasks, view=_View(inputs=self)) if len(tasks.bank.shape) == 3 else tasks


@dataclass(frozen=True)
class _View(ImageTransform):
    """The view of a learner's inputs, for a sampler of other images."""

    inputs: Inputs | None = None

    def __call__(self, images: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        assert self.inputs is not None
        x = self.inputs.prepare("tasks", images.flatten(0, -4), images.device)
        return x.unflatten(0, images.shape[:-3])


def inputs_of(tasks: Tasks) -> Inputs | None:
    """The examples of classification tasks; None for other tasks, such as regression. Reads all float images."""
    if not isinstance(tasks, Sampler):
        return None
    bank: Bank = tasks.bank
    x = bank.examples
    unit_range = x.dtype == torch.uint8 or len(bank.shape) != 3 or bool(x.min() >= 0 and x.max() <= 1)
    view = replace(tasks.view, augment="none")
    about = bank.metadata
    is_resized = {"resize", "resample"} <= about.keys() and bank.shape[1:] == bank.shape[-1:] * 2
    spec = spec_of(bank.shape, about, upright=about.get("upright", False)) if is_resized else None
    return Inputs(bank.shape, view, tasks.way, x.dtype, unit_range=unit_range, spec=spec)


def spec_of(shape: tuple[int, ...], reader: Mapping[str, Any], *, upright: bool) -> ImageSpec | None:
    """How an image file becomes an example [C, H, W], by what is known of the reader of the others; None of others."""
    resize, resample = reader.get("resize") or "squash", reader.get("resample") or "lanczos"
    square = len(shape) == 3 and shape[0] in (1, 3) and max(shape) <= LARGEST_SIDE
    if not square or resize not in RESIZES or resample not in FILTERS:  # a person's own reader has its own words
        return None
    return ImageSpec(max(shape[1:]), shape[0], resize, resample, upright)
