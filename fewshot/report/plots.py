"""Plots of the runs on one dataset: bars of test scores, validation curves, scores by adaptation steps and by shots.

A plot is a list of figures, each of the size of a page; the list is empty where there is nothing to show. Scores on
different test episodes share no line and no panel. Error bars are 95 % intervals, over training seeds where a point has
several, else over the test episodes of the one run.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

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
)
from fewshot.report.page import SCORES
from fewshot.report.pictures import LINES, escape_math, make_panels
from fewshot.report.records import Record, metric_of, task_name

OTHERS = (("#117733", "d"), ("#332288", "8"), ("#999933", "H"), ("#44AA99", "o"), ("#661100", "s"), ("#000000", "^"))
METRIC_LABELS = {"accuracy": "accuracy (%)", "mse": "mean squared error"}
BARS = 30  # at most in a panel


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
        panels += [(f"{dataset} {column[0]}", bars[start : start + BARS]) for start in range(0, len(bars), BARS)]
    most = max(len(bars) for _, bars in panels)
    axes, figures = make_panels([title for title, _ in panels], 0.9 + 0.25 * most)
    for panel, (_, bars) in zip(axes, panels, strict=True):
        metric, end = bars[0].metric, 0.0
        for place, cell in enumerate(bars):
            mean, half = _mean_and_half(cell)
            decimals = SCORES[metric][1]
            colour, _ = _look(cell.runs[0]["algorithm"])
            paler = 0.6 if cell.row[1] == "trans." else 1
            panel.barh(place, mean, 0.7, xerr=half, capsize=2, color=colour, alpha=paler)
            text = f"{mean:.{decimals}f}" + ("" if math.isnan(half) else f" ± {half:.{decimals}f}")
            tip = mean + (0 if math.isnan(half) else half)
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
    return _plot_lines(cells, [column[0] for column in columns], "adaptation steps at test")


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
    return _plot_lines(cells, titles.values(), "shots of the test (K)")


def _plot_lines(cells: list[Cell], titles: Iterable[Any], x_label: str) -> list[Figure]:
    """Plot cells as points, where a line has several.

    Args:
        cells: the row is the method, the column the title of the panel and x.
        titles: of all cells, in the order of the panels.
    """
    lines: dict[Any, dict[Any, dict[Any, Cell]]] = {title: defaultdict(dict) for title in titles}
    for cell in cells:
        lines[cell.column[0]][cell.row[0]][cell.column[1]] = cell
    panels = {
        title: {name: dict(sorted(line.items())) for name, line in part.items() if len(line) > 1}
        for title, part in lines.items()
    }
    panels = {title: part for title, part in panels.items() if part}
    drawn = [(name, next(iter(line.values())).runs[0]) for part in panels.values() for name, line in part.items()]
    styles = method_styles(*zip(*drawn, strict=True)) if drawn else {}
    axes, figures = _line_panels([f"{cells[0].runs[0]['protocol']['dataset']} {title}" for title in panels], styles)
    for panel, part in zip(axes, panels.values(), strict=True):
        for name, line in part.items():
            means, halves = zip(*map(_mean_and_half, line.values()), strict=True)
            panel.errorbar(list(line), means, yerr=halves, capsize=3, elinewidth=1, **styles[name])
            panel.set(xlabel=x_label, ylabel=f"test {METRIC_LABELS[next(iter(line.values())).metric]}")
        xs = sorted({x for line in part.values() for x in line})
        panel.xaxis.set_major_locator(FixedLocator(xs) if len(xs) < 6 else MaxNLocator(integer=True))
    return figures


def _mean_and_half(cell: Cell) -> tuple[float, float]:
    """Mean and half width of the interval, NaN where it is unknown, in the unit of the plot."""
    unit, _ = SCORES[cell.metric]
    half = cell.half_width()
    return cell.mean() * unit, math.nan if half is None else half * unit


def plot_curves(runs: Sequence[Record]) -> list[Figure]:
    """Validation scores against minutes and against tasks of training: two panels per task, a line per training.

    Seeds of one method look alike. Each recipe validates on its own episodes. The minutes count the training of a
    feature extractor, and no validation.
    """
    logs: dict[Path, pd.DataFrame] = {}
    trained: list[Record] = []
    for run in runs:
        folder = Path(run["folder"])
        folder = folder.parents[1] if folder.parent.name == "tests" else folder  # a training has several tests
        if folder not in logs and (log := _read_log(folder / "metrics.jsonl", run)) is not None:
            logs[folder] = log
            own = {key: run[key] for key in ("dataset", "way", "shot")}
            trained.append({**run, "protocol": {**run["protocol"], **own, "name": ""}})
    names, _ = method_names(trained, [SETTING, STEPS])
    styles = method_styles(names, trained)
    tasks = list(dict.fromkeys(map(task_name, trained)))
    axes, figures = _line_panels([task for task in tasks for _ in range(2)], styles)
    for name, run, log in zip(names, trained, logs.values(), strict=True):
        for place, x in enumerate(("minutes", "tasks")):
            panel = axes[2 * tasks.index(task_name(run)) + place]
            panel.plot(log[x], log["score"], markevery=max(1, len(log) // 10), alpha=0.85, **styles[name])
            panel.set(xlabel=f"{x} of training", ylabel=f"validation {METRIC_LABELS[metric_of(run)]}")
    return figures


def _read_log(path: Path, run: Record) -> pd.DataFrame | None:
    """Minutes, tasks and score of each validation in a training's log; None where there is none."""
    if not path.exists():
        return None
    unit, _ = SCORES[metric_of(run)]
    log = pd.DataFrame([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    log = log.reindex(columns=["train_seconds", "tasks", f"validation_{metric_of(run)}"]).dropna()
    minutes = (log["train_seconds"] + (run["cost"].get("extractor_seconds") or 0)) / 60
    log = pd.DataFrame({"minutes": minutes, "tasks": log["tasks"], "score": unit * log.iloc[:, 2]})
    return log if len(log) else None


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


def _line_panels(titles: Sequence[str], styles: Mapping[str, dict[str, Any]]) -> tuple[list[Axes], list[Figure]]:
    """A panel per title, and their figures, each with one legend of the methods below its panels."""
    handles = [Line2D([], [], label=escape_math(name, 60), **style) for name, style in styles.items()]
    columns = max(1, 85 // (12 + max((len(name) for name in styles), default=0)))
    axes, figures = make_panels(titles, 3.4, 0.1 + 0.2 * math.ceil(len(styles) / columns))
    for figure in figures:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False, handlelength=4
        )
    return axes, figures


PLOTS: dict[str, Callable[[Sequence[Record]], list[Figure]]] = {
    "bars": plot_bars, "curves": plot_curves, "by_steps": plot_by_steps, "by_shots": plot_by_shots,
}  # fmt: skip
