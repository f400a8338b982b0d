"""The support set of tools/predict.py: the images of class folders as they can be learned, and what there is to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fewshot.core.errors import FewshotError
from fewshot.data.sources.faults import MAX_SHOWN
from fewshot.data.sources.image_sets import ImageSet, load_images
from fewshot.data.sources.images import ImageSpec


@dataclass(frozen=True)
class SupportSet:
    """The images of a support set that can be read: M of all.

    Attributes:
        images: all.
        numbers: [M] places in `images`.
        labels: [M] names of their classes.
        pixels: [M, C, size, size] uint8.
        digests: of the pixels in the files.
        notes: lines on images that are left out or resized.
    """

    images: ImageSet
    numbers: list[int]
    labels: list[str]
    pixels: np.ndarray
    digests: set[bytes]
    notes: list[str]


def load_support(images: ImageSet, spec: ImageSpec) -> SupportSet:
    """Read the support images.

    Raises:
        FewshotError: none of a class can be read, or two classes have the same image.
    """
    every = dict(enumerate(load_images(images, spec)))
    damaged = {number: image.problem for number, image in every.items() if image.pixels is None}
    loaded = {number: image for number, image in every.items() if image.pixels is not None}
    labels = [images.labels[number] for number in loaded]
    if gone := set(images.classes) - set(labels):
        name = min(gone)
        number = images.labels.index(name)
        raise FewshotError(
            f"support={images.files.root}: no image of class {name} can be read, such as {images.names[number]} "
            f"({damaged[number]}); replace them, or remove the folder"
        )
    first: dict[bytes, int] = {}
    for number, image in loaded.items():
        other = first.setdefault(image.digest, number)
        if images.labels[other] != images.labels[number]:
            raise FewshotError(
                f"support={images.files.root}: {images.names[other]} and {images.names[number]} are the same image "
                "in two classes; remove one"
            )
    notes = list_damaged("support", images, damaged)
    if shapes := {image.shape for image in loaded.values()} - {spec.shape}:
        sizes = _size(min(shapes)) + (" and other sizes" if len(shapes) > 1 else "")
        notes.append(f"images are changed to {_size(spec.shape)}, which the learner knows, from {sizes}")
    pixels = np.stack([image.pixels for image in loaded.values() if image.pixels is not None])
    return SupportSet(images, list(loaded), labels, pixels, set(first), notes)


def list_damaged(key: str, images: ImageSet, damaged: Mapping[int, str]) -> list[str]:
    """A line that names the images that cannot be read; no line without them."""
    texts = [f"{images.names[number]} ({problem})" for number, problem in damaged.items()]
    if not texts:
        return []
    rest = f" and {len(texts) - MAX_SHOWN:,} more" if len(texts) > MAX_SHOWN else ""
    count = "1 image is" if len(texts) == 1 else f"{len(texts):,} images are"
    return [f"{key}: {count} left out, which cannot be read: {', '.join(texts[:MAX_SHOWN])}{rest}"]


def _size(shape: Sequence[int]) -> str:
    return f"{shape[2]}x{shape[1]} {'grey' if shape[0] == 1 else 'colour'}"
