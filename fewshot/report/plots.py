"""Plots of the runs on one dataset: bars of test scores, validation curves, scores by adaptation steps and by shots.

A plot is a list of figures, each of the size of a page; the list is empty where there is nothing to show. Scores on
different test episodes share no line and no panel. Error bars are 95 % intervals, over the test episodes or, of several
training seeds, over these, whichever is wider.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fewshot.report.cells import Cell, Layout, build_cells
from fewshot.report.gather import one_per_seed
from fewshot.report.labels import (
    ALGORITHMS,
    SETTING,
    STEPS,
    column_names,
    column_of,
    method_names,
    method_sort_key,
    short_task,
)
from fewshot.report.pictures import LINES, escape_math, make_panels
from fewshot.report.records import NUMBER, SCORES, Record, format_score, metric_of

OTHERS = (("#117733", "d"), ("#DD77BB", "8"), ("#999933", "H"), ("#44AA99", "o"), ("#661100", "s"), ("#000000", "^"))
METRIC_LABELS = {"accuracy": "accuracy (%)", "mse": "mean squared error"}
BARS, METHODS = 30, 16  # bars of a panel, and methods with lines of a figure, at most


class Line(NamedTuple):
    """One line of a plot, in the panel of its title and x."""

    title: str
    x_label: str
    name: str  # of the method
    run: Record
    x: Sequence[float]
    y: Sequence[float]
    half: Sequence[float] | None = None  # half widths of the intervals


def plot_bars(runs: Sequence[Record]) -> list[Figure]:
    """Test scores: a panel per column of the comparison table, with a bar per row.

    Raises:
        FewshotError: a run appears twice with different scores.
    """
    cells, columns, _ = build_cells(list(runs), [], Layout())
    dataset = runs[0]["protocol"]["dataset"]
    panels: list[tuple[str, list[Cell]]] = []
    for column in columns:
        bars = [cell for cell in cells if cell.column == column]
        size = math.ceil(len(bars) / math.ceil(len(bars) / BARS))
        panels += [(f"{dataset} {column[0]}", bars[start : start + size]) for start in range(0, len(bars), size)]
    most = max(len(bars) for _, bars in panels)
    axes, figures = make_panels([title for title, _ in panels], 0.9 + 0.25 * most)
    for panel, (_, bars) in zip(axes, panels, strict=True):
        metric, end = bars[0].metric, 0.0
        for place, cell in enumerate(bars):
            mean, half = _mean_and_half(cell)
            colour, _ = _look(cell.runs[0]["algorithm"])
            paler = 0.6 if cell.row[1] == "trans." else 1
            above = min(half, 100 - mean) if metric == "accuracy" else half  # min(nan, x) is nan
            panel.barh(place, mean, 0.7, xerr=[[half], [above]], capsize=2, color=colour, alpha=paler)
            width = cell.half_width()
            text = format_score(cell.mean(), metric) + ("" if width is None else f" ± {format_score(width, metric)}")
            tip = mean + (0 if math.isnan(half) else above)
            panel.annotate(text, (tip, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
            end = max(end, tip)
        names = [", ".join(str(part) for part in cell.row[:2] if part) for cell in bars]  # method and setting
        panel.set_yticks(range(len(bars)), [escape_math(name, 44) for name in names], fontsize=8)
        # The numbers beside the bars need room; bars are as thick in all panels.
        panel.set(xlabel=f"test {METRIC_LABELS[metric]}", xlim=(0, 1.4 * end or 1), ylim=(most - 0.5, -0.5))
        panel.set_xticks([tick for tick in panel.get_xticks() if tick <= max(100, end)])
        panel.spines[["top", "right"]].set_visible(False)
    return figures


def plot_by_steps(runs: Sequence[Record]) -> list[Figure]:
    """Test scores against the number of adaptation steps, for methods that were tested with several.

    Raises:
        FewshotError: a run appears twice with different scores.
    """
    counted = [run for run in runs if type(run["protocol"]["adaptation_steps"]) is int]
    cells, columns, _ = build_cells(counted, [], Layout({"method": "method"}, ("task", STEPS)))
    cells.sort(key=lambda cell: columns.index(cell.column))
    return _draw_lines(_join_cells(cells, "adaptation steps at test"), "test")


def plot_by_shots(runs: Sequence[Record]) -> list[Figure]:
    """Test scores against the shots of the test: of methods trained for each of them, and of runs tested with several.

    Raises:
        FewshotError: a run appears twice with different scores.
    """
    any_shot = [{**run, "protocol": {**run["protocol"], "shot": "K", "manifest": ""}} for run in runs]
    for run in any_shot:
        if run["way"] == 1:  # a regression is tested on as many queries as it has shots
            run["protocol"]["query"] = "K"
    titles = column_names(any_shot)
    own_shot = [{**run, "protocol": {**run["protocol"], "shot": run["shot"]}} for run in runs]
    points: dict[tuple[str, str, int], list[Record]] = defaultdict(list)
    for name, run, column in zip(method_names(own_shot)[0], runs, map(column_of, any_shot), strict=True):
        title, shot = titles[column], run["protocol"]["shot"]
        points[title, f"{name}, trained {run['shot']}-shot", shot].append(run)
        if run["shot"] == shot:
            points[title, name, shot].append(run)
    cells = [Cell((name,), (title, x), one_per_seed(group, name)) for (title, name, x), group in points.items()]
    cells.sort(key=lambda cell: list(titles.values()).index(str(cell.column[0])))
    return _draw_lines(_join_cells(cells, "shots of the test (K)"), "test")


def plot_curves(runs: Sequence[Record]) -> list[Figure]:
    """Validation scores against minutes and against tasks of training: two panels per task, a line per training.

    Seeds of one method look alike. Each recipe validates on its own episodes. The minutes count the training of a
    feature extractor, and no validation.
    """
    trainings: dict[Path, Record] = {}
    for run in runs:
        folder = Path(run["folder"])
        folder = folder.parents[1] if folder.parent.name == "tests" else folder  # a training has several tests
        task = {key: run[key] for key in ("dataset", "way", "shot")}
        if (folder / "metrics.jsonl").exists():
            run = {**run, "data": {**run["data"], "fingerprint": ""}}  # no line is of the test's images
            trainings.setdefault(folder, {**run, "protocol": {**run["protocol"], **task, "name": ""}})
    names, _ = method_names(list(trainings.values()), [SETTING, STEPS])
    lines = []
    for name, (folder, run) in zip(names, trainings.items(), strict=True):
        metric = f"validation_{metric_of(run)}"
        log = _read_curve(folder / "metrics.jsonl", metric)
        scores = [SCORES[metric_of(run)][0] * line[metric] for line in log]
        minutes = [(line["train_seconds"] + (run["cost"].get("extractor_seconds") or 0)) / 60 for line in log]
        for x, values in (("minutes", minutes), ("tasks", [line["tasks"] for line in log])):
            lines.append(Line(short_task(run, False), f"{x} of training", name, run, values, scores))
    return _draw_lines([line for line in lines if line.x], "validation")


def _read_curve(path: Path, metric: str) -> list[dict[str, Any]]:
    """The lines of a training's log that have a validation score, its tasks and seconds; others are passed over.

    Older logs have no tasks, and the last line of a process that was killed may be cut.
    """
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and all(type(line.get(key)) in NUMBER for key in (metric, "tasks", "train_seconds")):
            lines.append(line)
    return lines


def _join_cells(cells: Iterable[Cell], x_label: str) -> list[Line]:
    """A line through the cells of each row and title, where there are several; a cell's column is its title and x."""
    groups: dict[tuple[Any, Any], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.column[0], cell.row[0]].append(cell)
    lines = []
    for (title, name), group in groups.items():
        points = sorted((cell.column[1], *_mean_and_half(cell)) for cell in group)
        if len(points) > 1:
            lines.append(Line(title, x_label, name, group[0].runs[0], *zip(*points, strict=True)))
    return lines


def _draw_lines(lines: Sequence[Line], part: str) -> list[Figure]:
    """A panel for each title and x, and below the panels of a figure one legend of the methods."""
    styles = method_styles([line.name for line in lines], [line.run for line in lines])
    if len(styles) > METHODS:
        pages = [list(styles)[start : start + METHODS] for start in range(0, len(styles), METHODS)]
        return [figure for page in pages for figure in _draw_lines([x for x in lines if x.name in page], part)]
    handles = [Line2D([], [], label=escape_math(name, 60), **style) for name, style in styles.items()]
    panels = list(dict.fromkeys(map(_panel, lines)))
    ncols = max(1, (85 if len(panels) < 2 else 130) // (12 + max(map(len, styles), default=0)))  # by letters
    axes, figures = make_panels([title for title, _ in panels], 3.4, 0.1 + 0.2 * math.ceil(len(styles) / ncols))
    for panel, key in zip(axes, panels, strict=True):
        shown = [line for line in lines if _panel(line) == key]
        for line in shown:
            every = max(1, len(line.x) // 10)
            panel.errorbar(line.x, line.y, line.half, capsize=3, elinewidth=1, markevery=every, **styles[line.name])
        panel.set(xlabel=key[1], ylabel=f"{part} {METRIC_LABELS[metric_of(shown[0].run)]}")
        xs = sorted({x for line in shown if line.half is not None for x in line.x})
        if 0 < len(xs) < 6:
            panel.set_xticks(xs)
    for figure in figures:
        place = {"loc": "outside lower center", "ncols": ncols}
        figure.legend(handles=handles, fontsize=8, frameon=False, handlelength=4, **place)
    return figures


def _panel(line: Line) -> tuple[str, str]:
    """Title and x of the panel that a line is in."""
    return f"{line.run['protocol']['dataset']} {line.title}", line.x_label


def _mean_and_half(cell: Cell) -> tuple[float, float]:
    """Mean and half width of the interval, NaN where it is unknown, in the unit of the plot."""
    unit, _ = SCORES[cell.metric]
    half = cell.half_width()
    return cell.mean() * unit, math.nan if half is None else half * unit


def method_styles(names: Sequence[str], runs: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """The look of each method's line, by the names of the runs' methods, in the order of a table's rows.

    Colour and marker are the algorithm's. Its methods in one picture differ by their lines, and are filled or hollow.
    """
    variants: dict[tuple[str, str], int] = defaultdict(int)  # of a look, which two algorithms of one's own may share
    styles = {}
    methods = {(name, run["algorithm"]) for name, run in zip(names, runs, strict=True)}
    for method, algorithm in sorted(methods, key=lambda each: method_sort_key(*each)):
        colour, marker = _look(algorithm)
        variant = variants[colour, marker]
        variants[colour, marker] += 1
        styles[method] = {
            "color": colour,
            "marker": marker,
            "markersize": 8 if marker == "*" else 5,
            "markerfacecolor": "white" if variant // len(LINES) % 2 else colour,
            "linestyle": LINES[variant % len(LINES)],
            "linewidth": 1.4,
        }
    return styles


def _look(algorithm: str) -> tuple[str, str]:
    """Colour and marker; an algorithm without its own has the same ones in all plots."""
    return ALGORITHMS.get(algorithm) or OTHERS[zlib.crc32(algorithm.encode()) % len(OTHERS)]


PLOTS: dict[str, Callable[[Sequence[Record]], list[Figure]]] = {
    "bars": plot_bars, "curves": plot_curves, "by_steps": plot_by_steps, "by_shots": plot_by_shots,
}  # fmt: skip
