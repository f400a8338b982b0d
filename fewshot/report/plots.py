"""Plots of runs: bars of test scores, scores by adaptation steps and by shots, and training curves.

Scores on different test episodes share no line and no panel. Error bars are 95 % intervals, over training seeds where
a point has several, else over the test episodes of the one run.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from fewshot.core.errors import FewshotError
from fewshot.report.cells import Cell, Layout, build_cells
from fewshot.report.gather import one_per_seed
from fewshot.report.labels import ALGORITHMS, STEPS, column_names, column_of, method_names, method_sort_key
from fewshot.report.page import SCORES
from fewshot.report.pictures import LINES, escape_math, make_panels
from fewshot.report.records import Record, metric_of, task_name

OTHERS = (("#117733", "d"), ("#332288", "8"), ("#999933", "H"), ("#44AA99", "o"), ("#661100", "s"), ("#000000", "^"))
LOG = "metrics.jsonl"
METRIC_LABELS = {"accuracy": "accuracy (%)", "mse": "mean squared error"}


def plot_by_steps(runs: Sequence[Record]) -> Figure:
    """Test scores against the number of adaptation steps, for methods that were tested with several.

    Raises:
        FewshotError: there is no such method, or a run appears twice with different scores.
    """
    counted = [run for run in runs if type(run["protocol"]["adaptation_steps"]) is int]
    cells, _, _ = build_cells(counted, [], Layout(cols=("task", STEPS)))
    return _plot_lines(cells, "adaptation steps at test", "after several numbers of adaptation steps")


def plot_by_shots(runs: Sequence[Record]) -> Figure:
    """Test scores against the shots of the test: of methods trained for each of them, and of runs tested with several.

    Raises:
        FewshotError: there is no such method, or a run appears twice with different scores.
    """
    any_shot = [{**run, "protocol": {**run["protocol"], "shot": "K", "manifest": ""}} for run in runs]
    titles = column_names(any_shot)
    points: dict[tuple[str, str, int], list[Record]] = defaultdict(list)
    for name, run, column in zip(method_names(list(runs))[0], runs, map(column_of, any_shot), strict=True):
        points[titles[column], name, run["protocol"]["shot"]].append(run)
    for (title, name, shot), group in list(points.items()):
        longer = f"{name}, trained on {task_name(group[0])}"  # the name of its tests with other shots
        if group[0]["shot"] == shot and any(key[:2] == (title, longer) for key in list(points)):
            points[title, longer, shot] += group
    cells = [Cell((name,), (title, x), one_per_seed(group, name)) for (title, name, x), group in points.items()]
    return _plot_lines(cells, "shots of the test (K)", "with several shots")


def _plot_lines(cells: list[Cell], x_label: str, what: str) -> Figure:
    """Plot cells as points; a cell's row is its method, its column the title of its panel and its x.

    Raises:
        FewshotError: no line has two points; `what` says for the message how nothing was tested.
    """
    lines: dict[tuple[Any, Any], dict[Any, Cell]] = defaultdict(dict)
    for cell in cells:
        lines[cell.column[0], cell.row[0]][cell.column[1]] = cell
    lines = {key: dict(sorted(line.items())) for key, line in lines.items() if len(line) > 1}
    if not lines:
        raise FewshotError(f"nothing was tested {what}")
    styles = method_styles([name for _, name in lines], [next(iter(line.values())).runs[0] for line in lines.values()])
    titles = list(dict.fromkeys(title for title, _ in lines))
    figure, axes = make_panels(titles, 3.4, 0.2 * len(styles))
    for panel, title in zip(axes, titles, strict=True):
        shown = {name: line for (panel_title, name), line in lines.items() if panel_title == title}
        for name, line in shown.items():
            means, halves = zip(*map(_mean_and_half, line.values()), strict=True)
            panel.errorbar(list(line), means, yerr=halves, capsize=3, elinewidth=1, **styles[name])
            panel.set(xlabel=x_label, ylabel=f"test {METRIC_LABELS[next(iter(line.values())).metric]}")
        xs = sorted({x for line in shown.values() for x in line})
        panel.xaxis.set_major_locator(FixedLocator(xs) if len(xs) < 6 else MaxNLocator(integer=True))
    _add_legend(figure, styles)
    return figure


def plot_bars(runs: Sequence[Record]) -> Figure:
    """A panel per column of the comparison table, with a bar per row.

    Raises:
        FewshotError: a run appears twice with different scores.
    """
    cells, columns, _ = build_cells(list(runs), [], Layout())
    groups = [[cell for cell in cells if cell.column == column] for column in columns]
    counts = [len(group) for group in groups]
    figure = Figure(figsize=(9, 0.3 * sum(counts) + 0.9 * len(counts)), layout="constrained")
    axes = figure.subplots(len(counts), 1, squeeze=False, height_ratios=counts).flat
    for panel, column, group in zip(axes, columns, groups, strict=True):
        metric, end = group[0].metric, 0.0
        for place, cell in enumerate(group):
            mean, half = _mean_and_half(cell)
            decimals = SCORES[metric][1]
            colour, _ = _look(cell.runs[0]["algorithm"])
            panel.barh(place, mean, 0.7, xerr=half, capsize=2, color=colour)
            text = f"{mean:.{decimals}f}" + ("" if math.isnan(half) else f" ± {half:.{decimals}f}")
            tip = mean + (0 if math.isnan(half) else half)
            panel.annotate(text, (tip, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
            end = max(end, tip)
        panel.set_title(escape_math(str(column[0]), 70), fontsize=10)
        panel.set_yticks(range(len(group)), [escape_math(str(cell.row[0]), 60) for cell in group], fontsize=8)
        # The numbers beside the bars need room.
        panel.set(xlabel=f"test {METRIC_LABELS[metric]}", xlim=(0, 1.25 * end or 1), ylim=(len(group) - 0.5, -0.5))
        panel.set_xticks([tick for tick in panel.get_xticks() if tick <= max(100, end)])
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _mean_and_half(cell: Cell) -> tuple[float, float]:
    """Mean and half width of the interval, NaN where it is unknown, in the unit of the plot."""
    unit, _ = SCORES[cell.metric]
    half = cell.over_episodes() if len(cell.runs) == 1 else cell.over_seeds()
    return cell.mean() * unit, math.nan if half is None else half * unit


def plot_curves(runs: Sequence[Record]) -> Figure:
    """Training and validation scores over the outer steps: a line per run, a row of two panels per test protocol.

    Seeds of one method look alike. Training scores are means over the last twentieth of the log. They are of the
    training tasks' queries, but for Reptile, which holds out none, of its last inner minibatch.

    Raises:
        FewshotError: no run has a log.
    """
    logged = [run for run in {run["folder"]: run for run in runs}.values() if (Path(run["folder"]) / LOG).exists()]
    if not logged:
        raise FewshotError(f"no {LOG} beside the records")
    names, titles = method_names(logged, [STEPS])[0], column_names(logged)
    styles = method_styles(names, logged)
    titled = [f"{title}: {part}" for title in titles.values() for part in ("training", "validation")]
    figure, axes = make_panels(titled, 3.1, 0.2 * len(styles))
    panels = dict(zip(titled, axes, strict=True))
    for name, run in zip(names, logged, strict=True):
        metric = metric_of(run)
        text = (Path(run["folder"]) / LOG).read_text(encoding="utf-8")
        log = pd.DataFrame([json.loads(line) for line in text.splitlines()])
        for part, key in (("training", metric), ("validation", f"validation_{metric}")):
            panel = panels[f"{titles[column_of(run)]}: {part}"]
            panel.set(xlabel="outer steps", ylabel=f"{part} {METRIC_LABELS[metric]}")
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            line = log.reindex(columns=["step", key]).dropna()
            window = max(1, math.ceil(len(line) / 20)) if part == "training" else 1
            values = (SCORES[metric][0] * line[key]).rolling(window, min_periods=1).mean()
            every = max(1, math.ceil(len(line) / 10))
            panel.plot(line["step"], values, markevery=every, alpha=0.85, **styles[name])
    _add_legend(figure, styles)
    return figure


def method_styles(names: Sequence[str], runs: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """The look of each method's line, by the names of the runs' methods, in the order of a table's rows.

    Colour and marker are the algorithm's. Its methods in one picture differ by their lines, and are filled or hollow.
    """
    variants: dict[str, int] = defaultdict(int)
    styles = {}
    methods = {(name, run["algorithm"]) for name, run in zip(names, runs, strict=True)}
    for method, algorithm in sorted(methods, key=lambda each: method_sort_key(*each)):
        colour, marker = _look(algorithm)
        variant = variants[algorithm]
        variants[algorithm] += 1
        styles[method] = {
            "color": colour,
            "marker": marker,
            "markersize": 8 if marker == "*" else 5,
            "markerfacecolor": "white" if variant % 2 else colour,
            "linestyle": LINES[variant % len(LINES)],
            "linewidth": 1.4,
        }
    return styles


def _look(algorithm: str) -> tuple[str, str]:
    """Colour and marker; an algorithm without its own has the same ones in all plots."""
    return ALGORITHMS.get(algorithm) or OTHERS[zlib.crc32(algorithm.encode()) % len(OTHERS)]


def _add_legend(figure: Figure, styles: Mapping[str, dict[str, Any]]) -> None:
    """One legend of the methods below all panels."""
    handles = [Line2D([], [], label=escape_math(name, 100), **style) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", fontsize=8, frameon=False, handlelength=4)


PLOTS: dict[str, Callable[[Sequence[Record]], Figure]] = {
    "bars": plot_bars, "curves": plot_curves, "by_steps": plot_by_steps, "by_shots": plot_by_shots,
}  # fmt: skip
