"""A person's own arrays: examples and labels, checked once, with one line for each mistake."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from fewshot.core.errors import FewshotError

Examples = torch.Tensor | np.ndarray | Sequence[Any]  # [B, ...], or B arrays of one shape
Labels = torch.Tensor | np.ndarray | Sequence[Hashable]  # [B] of any hashable kind


def as_examples(name: str, x: Examples) -> torch.Tensor:
    """Examples as one tensor, not copied where they are one already.

    Args:
        name: of the argument, for messages.
        x: uint8 images [B, C, H, W], or floats [B, ...]: images, features [B, D], sequences.

    Returns:
        uint8 or float32 [B, ...].

    Raises:
        FewshotError: there are none, or their shape or type is another.
    """
    try:
        if not isinstance(x, torch.Tensor | np.ndarray):
            x = torch.stack([_as_tensor(each) for each in x])
        x = _as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FewshotError(f"{name}: no array of examples; give a tensor [B, ...], all of one shape") from error
    if x.dim() < 2 or not x.numel():
        raise FewshotError(f"{name}: shape {list(x.shape)} holds no examples; give [B, C, H, W] or [B, D]")
    if x.dtype == torch.uint8:
        if x.dim() == 3:
            raise FewshotError(f"{name}: images {list(x.shape)} without a channel axis; give {name}[:, None]")
        if x.dim() != 4:
            raise FewshotError(f"{name}: uint8 of shape {list(x.shape)}; images are [B, C, H, W], features are floats")
    elif not x.is_floating_point():
        kind = str(x.dtype).removeprefix("torch.")
        raise FewshotError(f"{name}: {kind} values; give uint8 images, or floats as by .float()")
    if x.dim() == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        raise FewshotError(f"{name}: images {list(x.shape)} end in their channels; give [B, C, H, W]")
    return x if x.dtype == torch.uint8 else x.float()


def _as_tensor(x: Any) -> torch.Tensor:
    """The tensor of an array. Torch takes no negative strides, such as those of a flipped array."""
    return torch.as_tensor(np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x)


def check_finite(name: str, x: torch.Tensor) -> None:
    """Raises FewshotError where a value is NaN or infinite."""
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise FewshotError(f"{name}: holds values that are not finite; look for NaN in it")


def number_labels(name: str, y: Labels, count: int) -> tuple[tuple[Any, ...], torch.Tensor]:
    """The labels that occur, sorted where they can be, and for each example the number of its label.

    Args:
        name: of the argument, for messages.
        y: one label for each example.
        count: the number of examples.

    Returns:
        (N labels, [count] int64 in 0..N-1)

    Raises:
        FewshotError: there are not so many labels, or one cannot be a label.
    """
    values: Any = y.tolist() if isinstance(y, torch.Tensor | np.ndarray) else y
    try:
        values = list(values)
    except TypeError as error:
        raise FewshotError(f"{name}: {values!r} is no list; give a label for each of the {count} examples") from error
    if len(values) != count:
        raise FewshotError(f"{name}: {len(values)} labels for {count} examples; give one for each")
    values = [each.item() if isinstance(each, torch.Tensor | np.generic) else each for each in values]
    try:
        labels = list(dict.fromkeys(values))
    except TypeError as error:
        raise FewshotError(f"{name}: {values[0]} is no label; give one number or name for each example") from error
    if any(isinstance(label, float) and label != label for label in labels):
        raise FewshotError(f"{name}: NaN is no label; leave those examples out, or give them a label")
    with suppress(TypeError):  # labels of several kinds stay in the order in which they come
        labels.sort()
    numbers = {label: number for number, label in enumerate(labels)}
    return tuple(labels), torch.tensor([numbers[value] for value in values], dtype=torch.int64)
