"""Pictures of single tasks: an episode with its predictions, and fits of a regression; and how figures are saved."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from fewshot.core.checks import check_choice
from fewshot.core.errors import FewshotError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The formats, with metadata that leaves the date out: the same figure is the same bytes.
PICTURE_FORMATS: dict[str, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
PAGE = (10.0, 9.0)  # width and height at most of a figure of panels, in inches
LINES = ("-", "--", ":", "-.")
CURVES = ("#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#009E73", "#CC79A7")

# Of an episode: widths of the picture, of the names and at most of an image in inches; then, in widths of an image, the
# gaps between images and before the queries.
WIDTH, NAMES, IMAGE = 9.0, 1.3, 0.85
GAP, APART = 0.12, 0.4
RIGHT, WRONG = ("#1B7837", "✓"), ("#C51B2B", "✗")


def save_figure(figure: Figure, format: str = "png") -> bytes:
    """The figure as a file of a format: png, pdf or svg.

    Raises:
        FewshotError: another format.
    """
    import matplotlib

    check_choice("format", format, tuple(PICTURE_FORMATS))
    file = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "fewshot"}):
        warnings.simplefilter("ignore", UserWarning)  # about characters that matplotlib's font lacks
        figure.savefig(file, format=format, dpi=100, metadata=PICTURE_FORMATS[format])
    return file.getvalue()


def make_panels(titles: Sequence[str], height: float, extra: float = 0) -> tuple[list[Axes], list[Figure]]:
    """A panel per title, and the figures that hold them: two panels in a row, and no figure larger than a page.

    Args:
        height: of a panel, in inches.
        extra: inches below the panels of each figure, for a legend.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    axes, figures = [], []
    most = 2 * max(1, int((PAGE[1] - extra) / height))  # panels of a page
    for start in range(0, len(titles), most):
        page = titles[start : start + most]
        rows, columns = -(-len(page) // 2), min(2, len(titles))
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1)  # inches around each panel
        figures.append(Figure(figsize=(PAGE[0] if columns > 1 else 6.5, rows * height + extra), layout=layout))
        for place, title in enumerate(page):
            axes.append(figures[-1].add_subplot(rows, columns, place + 1))
            axes[-1].set_title(escape_math(title, 44), fontsize=10)
    return axes, figures


def escape_math(text: str, width: int = 0) -> str:
    """The text with matplotlib's signs of mathematics escaped, in lines of `width` letters; 0: in one line."""
    return (fill(text, width, break_on_hyphens=False) if width else text).replace("$", r"\$")


def episode(
    support: np.ndarray, query: np.ndarray, true: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> bytes:
    """An episode as a PNG: a row per class, its support images on the left, its queries and predictions on the right.

    Args:
        support: images [N, K, C, H, W] of 1 or 3 channels; their values are scaled to the range of the episode.
        query: images [N, Q, C, H, W].
        true: the classes of the queries [N, Q], as places in `names`.
        predicted: the predicted classes of the queries [N, Q].
        names: of the N classes, such as `Greek/character03`. Long names are cut, and predictions are numbers then.

    Raises:
        FewshotError: the images have another number of channels.
    """
    png = save_figure(draw_episode(support, query, true, predicted, names))
    if support.shape[2] == 3:
        return png
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:  # a palette is enough for greys, and makes a third of the bytes
        image.convert("RGB").quantize(64).save(file, "png", optimize=True)
    return file.getvalue()


def draw_episode(
    support: np.ndarray, query: np.ndarray, true: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> Figure:
    """The figure of `episode`."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    ways, shots, channels, height, width = support.shape
    if channels not in (1, 3):
        raise FewshotError(f"images of {channels} channels cannot be drawn: 1 or 3")
    images = np.concatenate([support, query], axis=1)
    images = (images - images.min()) / (np.ptp(images) or 1)
    x = np.arange(images.shape[1]) * (1 + GAP) + APART * (np.arange(images.shape[1]) >= shots)
    across = x[-1] + 1 + GAP
    inch = min((WIDTH - NAMES) / across, IMAGE)  # the width of an image
    size = max(6.0, min(9.0, 12 * inch))  # of letters, in points
    line_height = 1.7 * size / 72 / inch
    y = np.arange(ways) * (height / width + line_height + GAP)
    down = y[-1] + height / width + line_height
    figure = Figure(figsize=(NAMES + across * inch, (down + 2 * line_height) * inch))
    panel = figure.add_axes((0, 0, 1, 1))
    labels = [name.rpartition("/")[2] for name in names]
    if len(set(labels)) < ways or max(map(len, labels)) > 115 * inch / size - 2:  # they do not fit below an image
        labels = [str(way + 1) for way in range(ways)]
        names = [f"{label}: {name}" for label, name in zip(labels, names, strict=True)]
    for way, image in np.ndindex(images.shape[:2]):
        left, top = x[image], y[way]
        pixels = images[way, image].transpose(1, 2, 0)
        panel.imshow(
            pixels.squeeze(-1) if channels == 1 else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest",
            extent=(left, left + 1, top + height / width, top),
        )  # fmt: skip
        colour, line = "0.6", 0.6
        if image >= shots:
            guess, line = int(predicted[way, image - shots]), 2.0
            colour, sign = RIGHT if guess == true[way, image - shots] else WRONG
            label, below = f"{sign} {escape_math(labels[guess])}", top + height / width + 0.06
            panel.text(left + 0.5, below, label, color=colour, ha="center", va="top", fontsize=size)
        panel.add_patch(Rectangle((left, top), 1, height / width, fill=False, edgecolor=colour, linewidth=line))
    for way in range(ways):
        name = "\n".join(shorten(part, int(165 / size)) for part in names[way].split("/"))
        panel.text(-GAP, y[way] + height / width / 2, name, ha="right", va="center", fontsize=size)
    hits = int((predicted == true).sum())
    for left, heading in ((0, "support set"), (x[shots], f"queries: {hits} of {true.size} right")):
        panel.text(left, -GAP, heading, va="bottom", fontsize=size + 1, weight="bold")
    panel.axis("off")
    panel.set(xlim=(-NAMES / inch, across), ylim=(down, -2 * line_height), aspect="equal")
    return figure


def shorten(name: str, letters: int) -> str:
    """The name without its middle, where it is long: classes of one group begin alike."""
    if len(name) > letters:
        tail = (letters - 1) * 2 // 3
        name = f"{name[: letters - 1 - tail]}…{name[-tail:]}"
    return escape_math(name)


@dataclass(frozen=True)
class Fit:
    """One regression task: the true function, or the rows of the table, and the fits over a grid of G inputs."""

    x: np.ndarray  # [G]
    truth: np.ndarray | tuple[np.ndarray, np.ndarray]  # [G], or x and y of R rows, [R] each
    support_x: np.ndarray  # [K]
    support_y: np.ndarray  # [K]
    curves: Mapping[str, np.ndarray] = field(default_factory=dict)  # {label, such as before or after 1: [G]}
    samples: np.ndarray | None = None  # [S, G]: fits drawn at random
    name: str = ""  # of the task
    axes: tuple[str, str] = ("x", "y")


def fits(tasks: Sequence[Fit]) -> bytes:
    """A PNG with a panel per task: the truth, the support points, and the fits before and after adaptation."""
    return save_figure(draw_fits(tasks))


def draw_fits(tasks: Sequence[Fit]) -> Figure:
    """The figure of `fits`."""
    names = [task.name or f"task {number}" for number, task in enumerate(tasks, start=1)]
    panels, (figure,) = make_panels(names, 2.85, 0.3)
    for task, panel in zip(tasks, panels, strict=True):
        if isinstance(task.truth, tuple):
            panel.plot(*task.truth, ".", color="0.75", markersize=7, label="all rows")
        else:
            panel.plot(task.x, task.truth, color="0.75", linewidth=4.5, label="truth")
        for number, sample in enumerate(() if task.samples is None else task.samples):
            label = None if number else "samples"
            panel.plot(task.x, sample, color="#AA4499", alpha=0.3, linewidth=0.8, label=label)
        for number, (label, curve) in enumerate(task.curves.items()):
            colour, line = CURVES[number % len(CURVES)], LINES[(number + 1) % len(LINES)]  # the first one dashed
            panel.plot(task.x, curve, color=colour, linestyle=line, linewidth=1.6, label=escape_math(label))
        panel.plot(task.support_x, task.support_y, "^", color="black", markersize=6, label="support", zorder=5)
        panel.set(xlabel=escape_math(task.axes[0]), ylabel=escape_math(task.axes[1]))
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure
