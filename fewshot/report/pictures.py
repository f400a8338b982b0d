"""Pictures of single tasks: an episode as images with what was predicted, and fits of a regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fewshot.core.errors import FewshotError
from fewshot.report.styles import LINES, panels_of, plain, saved

RIGHT, WRONG = ("#1B7837", "✓"), ("#C51B2B", "✗")
GAP, BELOW = 0.12, 0.26  # between images, and below one for a name, in widths of an image
CURVES = ("#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#009E73", "#CC79A7")


def episode(
    support: np.ndarray,
    query: np.ndarray,
    true: np.ndarray,
    predicted: np.ndarray,
    names: Sequence[str],
    format: str = "png",
) -> bytes:
    """One episode as a picture: a row per way, its support images, then its queries with what they were taken for.

    Args:
        support: images [N, K, C, H, W] of 1 or 3 channels; the episode's own range of values is shown.
        query: images [N, Q, C, H, W].
        true: their ways [N, Q], places in `names`.
        predicted: the ways that they were taken for [N, Q].
        names: of the N classes; long ones are cut.
        format: png, pdf or svg.

    Raises:
        FewshotError: images of another number of channels, or another format.
    """
    return saved(draw_episode(support, query, true, predicted, names), format)


def draw_episode(
    support: np.ndarray, query: np.ndarray, true: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> Figure:
    """The figure of `episode`."""
    ways, shots, channels, height, width = support.shape
    if channels not in (1, 3):
        raise FewshotError(f"images of {channels} channels cannot be drawn: 1 or 3")
    values = np.concatenate([support.ravel(), query.ravel()])
    low, high = values.min(), values.max()
    queries, tall = query.shape[1], height / width
    pitch = tall + GAP + BELOW
    start = shots * (1 + GAP) + 0.5  # of the queries, right of the support set
    across, down = start + queries * (1 + GAP), ways * pitch + 0.4
    image = float(np.clip(13 / (across + 2), 0.35, 0.85))  # inches
    figure = Figure(figsize=((across + 2.2) * image, (down + 0.2) * image))
    panel = figure.add_axes((0, 0, 1, 1))
    panel.axis("off")
    size = 11 * image

    def show(pixels: np.ndarray, x: float, y: float) -> None:
        scaled = (pixels - low) / (high - low) if high > low else np.zeros_like(pixels)
        shown = scaled.transpose(1, 2, 0)
        shown = shown.squeeze(-1) if channels == 1 else shown
        panel.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(x, x + 1, y + tall, y), interpolation="nearest")

    for way in range(ways):
        y = way * pitch
        panel.text(-0.15, y + tall / 2, _cut(names[way], 18), ha="right", va="center", fontsize=size)
        for shot in range(shots):
            show(support[way, shot], shot * (1 + GAP), y)
        for place in range(queries):
            x, taken = start + place * (1 + GAP), int(predicted[way, place])
            right = taken == true[way, place]
            colour, sign = RIGHT if right else WRONG
            show(query[way, place], x, y)
            panel.add_patch(Rectangle((x, y), 1, tall, fill=False, edgecolor=colour, linewidth=3.5 * image))
            panel.text(
                x + 0.86, y + tall - 0.14, sign, color="white", ha="center", va="center", fontsize=0.75 * size,
                bbox={"facecolor": colour, "edgecolor": "none", "boxstyle": "square,pad=0.15"},
            )  # fmt: skip
            if not right:
                where = (x + 0.5, y + tall + 0.05)
                panel.text(*where, _cut(names[taken], 11), color=colour, ha="center", va="top", fontsize=0.7 * size)
    hits = int((predicted == true).sum())
    panel.text(0, -0.12, "support", va="bottom", fontsize=size, weight="bold")
    panel.text(start, -0.12, f"queries: {hits} of {true.size} right", va="bottom", fontsize=size, weight="bold")
    panel.set(xlim=(-2.1, across + 0.1), ylim=(ways * pitch, -0.6), aspect="equal")
    return figure


def _cut(name: str, letters: int) -> str:
    """The name without its middle, where it is long: classes of one group begin alike."""
    if len(name) > letters:
        tail = (letters - 1) * 2 // 3
        name = f"{name[: letters - 1 - tail]}…{name[-tail:]}"
    return plain(name)


@dataclass(frozen=True)
class Fit:
    """One regression task: the true function and what was fitted to it, over a grid of G inputs."""

    x: np.ndarray  # [G]
    truth: np.ndarray  # [G]
    support_x: np.ndarray  # [K]
    support_y: np.ndarray  # [K]
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)  # {label: [G]}, such as before, after 1
    samples: np.ndarray | None = None  # [S, G]: fits drawn at random


def fits(tasks: Sequence[Fit], format: str = "png") -> bytes:
    """A picture with a panel per task: the truth, its support points, and the fits before and after adaptation.

    Raises:
        FewshotError: no task, or a format other than png, pdf and svg.
    """
    return saved(draw_fits(tasks), format)


def draw_fits(tasks: Sequence[Fit]) -> Figure:
    """The figure of `fits`."""
    if not tasks:
        raise FewshotError("no fits to draw: give at least one task")
    labels = list(dict.fromkeys(label for task in tasks for label in task.curves))
    titles = [f"task {number}" for number in range(1, len(tasks) + 1)]
    figure, panels = panels_of(titles, 2.9, 0.3)
    for task, panel in zip(tasks, panels, strict=True):
        _draw_fit(task, panel, labels)
        panel.set(xlabel="x", ylabel="y")
    handles = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def _draw_fit(task: Fit, panel: Axes, labels: list[str]) -> None:
    panel.plot(task.x, task.truth, color="0.75", linewidth=4.5, label="truth")
    if task.samples is not None:
        for number, sample in enumerate(task.samples):
            panel.plot(task.x, sample, color="#AA4499", alpha=0.3, linewidth=0.8, label=None if number else "samples")
    for label, curve in task.curves.items():
        place = labels.index(label)
        colour, line = CURVES[place % len(CURVES)], LINES[(place + 1) % len(LINES)]  # the first one dashed
        panel.plot(task.x, curve, color=colour, linestyle=line, linewidth=1.6, label=plain(label))
    panel.plot(task.support_x, task.support_y, "^", color="black", markersize=6, label="support", zorder=5)
