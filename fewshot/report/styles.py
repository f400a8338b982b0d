"""How pictures look: a colour and a marker for each algorithm, panels, legends, and files that tell no date."""

from __future__ import annotations

import io
import warnings
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from fewshot.core.checks import did_you_mean
from fewshot.core.errors import FewshotError
from fewshot.report.labels import method_place
from fewshot.report.records import Record

# Colours that stay apart to colour-blind readers (Okabe and Ito 2008), and reds and purples for LEO's ablation.
STYLES = {
    "nearest": ("#999999", "X"), "nearest_mean": ("#555555", "P"), "maml": ("#0072B2", "o"), "fomaml": ("#56B4E9", "s"),
    "reptile": ("#009E73", "^"), "meta_sgd": ("#E69F00", "D"), "leo_generator": ("#CC79A7", "v"),
    "leo_generator_finetuning": ("#882255", "<"), "leo_random_prior": ("#AA4499", ">"),
    "leo_deterministic": ("#6A3D9A", "h"), "leo_no_finetuning": ("#8C564B", "p"), "leo": ("#D55E00", "*"),
    "leo_regression": ("#D55E00", "d"),  # never in a panel with leo
}  # fmt: skip
OTHERS = (("#117733", "d"), ("#332288", "8"), ("#999933", "H"), ("#44AA99", "o"), ("#661100", "s"), ("#000000", "^"))
LINES = ("-", "--", ":", "-.")
SCORES = {"accuracy": ("accuracy (%)", 100, 2), "mse": ("mean squared error", 1, 4)}  # label, unit, decimals
FORMATS: dict[str, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def saved(figure: Figure, format: str = "png") -> bytes:
    """A figure as a file of this format: png, pdf or svg; the same figure makes the same bytes.

    Raises:
        FewshotError: another format.
    """
    check_format(format)
    file = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "fewshot"}):
        warnings.simplefilter("ignore", UserWarning)  # of characters that matplotlib's font lacks
        figure.savefig(file, format=format, dpi=150, metadata=FORMATS[format])
    return file.getvalue()


def check_format(format: str) -> None:
    """Raise FewshotError unless pictures can be of this format."""
    if format not in FORMATS:
        raise FewshotError(
            f"format={format}: no such format{did_you_mean(str(format), list(FORMATS))}; {', '.join(FORMATS)}"
        )


def plain(text: str, width: int = 0) -> str:
    """The text as it is written, whatever matplotlib takes for mathematics, in lines of `width`; 0: as they are."""
    return (fill(text, width, break_on_hyphens=False) if width else text).replace("$", r"\$")


def styles_of(names: Sequence[str], runs: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """How each method's line looks, by the names of the runs' methods, in the order of a table's rows.

    Colour and marker are the algorithm's; its methods in one picture differ by their lines, and are filled or hollow.
    """
    seen: dict[str, int] = defaultdict(int)
    styles = {}
    methods = {(name, run["algorithm"]) for name, run in zip(names, runs, strict=True)}
    for method, algorithm in sorted(methods, key=lambda each: method_place(*each)):
        colour, marker = STYLES.get(algorithm) or OTHERS[zlib.crc32(algorithm.encode()) % len(OTHERS)]
        variant = seen[algorithm]
        seen[algorithm] += 1
        hollow = variant // len(LINES) % 2 or variant % 2
        styles[method] = {
            "color": colour,
            "marker": marker,
            "markersize": 8 if marker == "*" else 5,
            "markerfacecolor": "white" if hollow else colour,
            "linestyle": LINES[variant % len(LINES)],
            "linewidth": 1.4,
        }
    return styles


def panels_of(titles: Sequence[str], height: float, extra: float = 0, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each title, two in a row, each so many inches high, and `extra` inches below."""
    width = min(2, len(titles))
    rows = -(-len(titles) // width)
    room = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1)  # inches around each panel
    figure = Figure(figsize=(9 if width > 1 else 6.5, rows * height + extra), layout=room)
    panels = list(figure.subplots(rows, width, squeeze=False, **shared).flat)
    for panel in panels[len(titles) :]:
        panel.remove()
    for panel, title in zip(panels, titles, strict=False):
        panel.set_title(plain(title, 44), fontsize=10)
    return figure, panels[: len(titles)]


def legend(figure: Figure, styles: Mapping[str, dict[str, Any]], labels: Mapping[str, str]) -> None:
    """One legend below all panels, where it covers none; `labels` by method, those of `styles` that were drawn."""
    handles = [Line2D([], [], label=plain(labels[name], 100), **styles[name]) for name in styles if name in labels]
    figure.legend(handles=handles, loc="outside lower center", fontsize=8, frameon=False, handlelength=4)
