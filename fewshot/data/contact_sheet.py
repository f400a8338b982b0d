"""Draw a contact sheet: a few images of a few classes of every split, to see at a glance whether the data are right."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn import functional

from fewshot.core.errors import writing
from fewshot.data.bank import Bank

CLASSES, IMAGES = 4, 8  # classes of each split and images of each class, evenly spread


def contact_sheet(banks: Mapping[str, Bank], path: Path) -> None:
    """Draw images [C, H, W] of 1 or 3 channels: one row per class, with its name, split and size.

    Raises:
        FewshotError: the file cannot be written.
    """
    rows = [(bank, int(label)) for bank in banks.values() for label in _spread(0, len(bank.names), CLASSES)]
    figure = Figure(figsize=(IMAGES + 4, len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), squeeze=False)
    for (cell,), (bank, label) in zip(axes, rows, strict=True):
        start, end = bank.offsets[label : label + 2].tolist()
        images = bank.examples[_spread(start, end, IMAGES)]
        if images.is_floating_point():  # of any range
            images = 255 * (images - images.min()) / (images.max() - images.min()).clamp(min=1e-6)
            images = images.to(torch.uint8)
        images = functional.pad(images, (0, max(1, images.shape[-1] // 20)), value=255)  # a gap between two images
        strip = torch.cat(list(images), dim=-1).permute(1, 2, 0).numpy()
        cell.axis("off")
        cell.set_anchor("W")
        cell.imshow(strip.squeeze(-1) if strip.shape[-1] == 1 else strip, cmap="gray", vmin=0, vmax=255)
        text = f"{bank.split}: {bank.names[label]}\n{end - start:,} images"  # a name may look like mathematics
        cell.text(-0.02, 0.5, text, transform=cell.transAxes, ha="right", va="center", parse_math=False)
    with writing(path, "another sheet"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about characters that matplotlib's font lacks
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=80)


def _spread(start: int, end: int, count: int) -> list[int]:
    """Up to `count` whole numbers of start..end-1, evenly spread."""
    return torch.linspace(start, end - 1, min(count, end - start)).round().long().unique().tolist()
