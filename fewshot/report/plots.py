"""Plots of runs: bars of test scores, scores by adaptation steps and by shots, and training curves.

Scores on different test episodes share no line and no panel. Error bars are 95 % intervals, over training seeds where
a point has several, else over the test episodes of the one run.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from fewshot.core.errors import FewshotError
from fewshot.report.cells import Cell
from fewshot.report.gather import STEPS, depth, one_per_seed
from fewshot.report.labels import ALGORITHMS, column_names, column_of, method_names, method_sort_key
from fewshot.report.page import SCORES
from fewshot.report.pictures import LINES, escape_math, make_panels
from fewshot.report.records import Record, metric_of, task_name

OTHERS = (("#117733", "d"), ("#332288", "8"), ("#999933", "H"), ("#44AA99", "o"), ("#661100", "s"), ("#000000", "^"))
LOG = "metrics.jsonl"
METRIC_LABELS = {"accuracy": "accuracy (%)", "mse": "mean squared error"}

Point = tuple[str, str, int, Record]  # title of the panel, method, x, a run
Panels = dict[str, dict[str, dict[int, list[Record]]]]  # the runs of several seeds by title, method and x


def plot_by_steps(runs: Sequence[Record]) -> Figure:
    """Test scores against the number of adaptation steps, for methods that were tested with several.

    Raises:
        FewshotError: there is no such method, or a run appears twice with different scores.
    """
    counted = [run for run in runs if type(run["protocol"]["adaptation_steps"]) is int]
    names, titles = method_names(counted, [STEPS]), column_names(counted)
    points = [
        (titles[column_of(run)], name, run["protocol"]["adaptation_steps"], run)
        for name, run in zip(names, counted, strict=True)
    ]
    panels = _group(titles.values(), points)
    return _plot_lines(panels, "adaptation steps at test", "after several numbers of adaptation steps")


def plot_by_shots(runs: Sequence[Record]) -> Figure:
    """Test scores against the shots of the test: of methods trained for each of them, and of runs tested with several.

    Raises:
        FewshotError: there is no such method, or a run appears twice with different scores.
    """
    chosen = own_tests(runs)
    any_shot = [{**run, "protocol": {**run["protocol"], "shot": "K", "manifest": ""}} for run in chosen]
    names, columns, titles = method_names(chosen), map(column_of, any_shot), column_names(any_shot)
    points = [
        (titles[column], name, run["protocol"]["shot"], run)
        for column, name, run in zip(columns, names, chosen, strict=True)
    ]
    lines = {point[:2] for point in points}
    for title, name, shot, run in list(points):
        other_shots = f"{name}, trained on {task_name(run)}"
        if run["shot"] == shot and (title, other_shots) in lines:  # the run's own test is a point of that line too
            points.append((title, other_shots, shot, run))
    return _plot_lines(_group(titles.values(), points), "shots of the test (K)", "with several shots")


def _group(titles: Iterable[str], points: Sequence[Point]) -> Panels:
    panels: Panels = {title: {} for title in titles}
    for title, name, x, run in points:
        panels[title].setdefault(name, {}).setdefault(x, []).append(run)
    return panels


def _plot_lines(panels: Panels, x_label: str, what: str) -> Figure:
    """Plot the lines that have at least two points."""
    panels = {title: {name: line for name, line in lines.items() if len(line) > 1} for title, lines in panels.items()}
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        raise FewshotError(f"nothing was tested {what}")
    first = {name: next(iter(line.values()))[0] for lines in panels.values() for name, line in lines.items()}
    styles = method_styles(list(first), list(first.values()))
    figure, axes = make_panels(list(panels), 3.4, 0.2 * len(styles))
    for panel, lines in zip(axes, panels.values(), strict=True):
        for name, line in lines.items():
            xs = sorted(line)
            means, halves = zip(*(_mean_and_half(name, line[x]) for x in xs), strict=True)
            panel.errorbar(xs, means, yerr=halves, capsize=3, elinewidth=1, **styles[name])
            panel.set(xlabel=x_label, ylabel=f"test {METRIC_LABELS[metric_of(first[name])]}")
        measured = sorted({x for line in lines.values() for x in line})
        panel.xaxis.set_major_locator(FixedLocator(measured) if len(measured) < 6 else MaxNLocator(integer=True))
    _add_legend(figure, styles, {name: name for name in first})
    return figure


def plot_bars(runs: Sequence[Record]) -> Figure:
    """A panel per test protocol with a bar per method.

    Raises:
        FewshotError: a run appears twice with different scores.
    """
    chosen = own_tests(runs)
    names, titles = method_names(chosen), column_names(chosen)
    points = [(titles[column_of(run)], name, 0, run) for name, run in zip(names, chosen, strict=True)]
    panels = _group(titles.values(), points)
    styles = method_styles(names, chosen)
    counts = [len(methods) for methods in panels.values()]
    figure = Figure(figsize=(9, 0.3 * sum(counts) + 0.9 * len(counts)), layout="constrained")
    axes = figure.subplots(len(counts), 1, squeeze=False, height_ratios=counts).flat
    for panel, (title, methods) in zip(axes, panels.items(), strict=True):
        shown = [name for name in styles if name in methods]
        metric, end = metric_of(methods[shown[0]][0][0]), 0.0
        for place, name in enumerate(shown):
            mean, half = _mean_and_half(name, methods[name][0])
            known = not math.isnan(half)
            panel.barh(place, mean, 0.7, xerr=half if known else None, capsize=2, color=styles[name]["color"])
            decimals = SCORES[metric][1]
            text = f"{mean:.{decimals}f}" + (f" ± {half:.{decimals}f}" if known else "")
            tip = mean + (half if known else 0)
            panel.annotate(text, (tip, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
            end = max(end, tip)
        panel.set_title(escape_math(title, 70), fontsize=10)
        panel.set_yticks(range(len(shown)), [escape_math(name, 60) for name in shown], fontsize=8)
        # The numbers beside the bars need room.
        panel.set(xlabel=f"test {METRIC_LABELS[metric]}", xlim=(0, 1.25 * end or 1), ylim=(len(shown) - 0.5, -0.5))
        panel.set_xticks([tick for tick in panel.get_xticks() if tick <= max(100, end)])
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _mean_and_half(name: str, runs: list[Record]) -> tuple[float, float]:
    """Mean and half width of the interval, NaN where unknown, of one method's runs on the same episodes."""
    cell, metric = Cell((), (), one_per_seed(runs, name)), metric_of(runs[0])
    unit, _ = SCORES[metric]
    half = cell.over_episodes() if len(cell.runs) == 1 else cell.over_seeds(metric)
    return cell.mean(metric) * unit, math.nan if half is None else half * unit


def own_tests(runs: Sequence[Record]) -> list[Record]:
    """The runs without later tests of a training with other numbers of adaptation steps than its own.

    Its own number is that of the record whose folder lies highest; of several numbers in one record the largest.
    """

    def place(run: Record) -> tuple[int, int]:
        steps = run["protocol"]["adaptation_steps"]
        return depth(run), -steps if type(steps) is int else 0

    own: dict[Hashable, object] = {}
    trainings = [(run["config"], run["seed"], run["protocol"]["setting"]) for run in runs]
    for run, training in sorted(zip(runs, trainings, strict=True), key=lambda pair: place(pair[0])):
        own.setdefault(training, run["protocol"]["adaptation_steps"])
    return [run for run, key in zip(runs, trainings, strict=True) if run["protocol"]["adaptation_steps"] == own[key]]


def plot_curves(runs: Sequence[Record]) -> Figure:
    """Training and validation scores over the outer steps: a line per run, a row of two panels per test protocol.

    Training scores are means over the last twentieth of the log. They are of the training tasks' queries, but for
    Reptile, which holds out none, of its last inner minibatch.

    Raises:
        FewshotError: no run has a log.
    """
    logged = [run for run in {run["folder"]: run for run in runs}.values() if (Path(run["folder"]) / LOG).exists()]
    if not logged:
        raise FewshotError(f"no {LOG} beside the records")
    names, titles = method_names(logged, [STEPS]), column_names(logged)
    styles = method_styles(names, logged)
    titled = [f"{title}: {part}" for title in titles.values() for part in ("training", "validation")]
    figure, axes = make_panels(titled, 3.1, 0.2 * len(styles))
    panels = dict(zip(titled, axes, strict=True))
    seeds: dict[str, set[int]] = defaultdict(set)
    for name, run in zip(names, logged, strict=True):
        seeds[name].add(run["seed"])
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
    shown = {name: f"seed{'s' * (len(of) > 1)} {', '.join(map(str, sorted(of)))}" for name, of in seeds.items()}
    _add_legend(figure, styles, {name: f"{name}, {text}" for name, text in shown.items()})
    return figure


def method_styles(names: Sequence[str], runs: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """The look of each method's line, by the names of the runs' methods, in the order of a table's rows.

    Colour and marker are the algorithm's. Its methods in one picture differ by their lines, and are filled or hollow.
    """
    variants: dict[str, int] = defaultdict(int)
    styles = {}
    methods = {(name, run["algorithm"]) for name, run in zip(names, runs, strict=True)}
    for method, algorithm in sorted(methods, key=lambda each: method_sort_key(*each)):
        colour, marker = ALGORITHMS.get(algorithm) or OTHERS[zlib.crc32(algorithm.encode()) % len(OTHERS)]
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


def _add_legend(figure: Figure, styles: Mapping[str, dict[str, Any]], labels: Mapping[str, str]) -> None:
    """One legend below all panels, with the labels of the methods in the order of `styles`."""
    handles = [Line2D([], [], label=escape_math(labels[name], 100), **styles[name]) for name in styles]
    figure.legend(handles=handles, loc="outside lower center", fontsize=8, frameon=False, handlelength=4)


PLOTS: dict[str, Callable[[Sequence[Record]], Figure]] = {
    "bars": plot_bars, "curves": plot_curves, "by_steps": plot_by_steps, "by_shots": plot_by_shots,
}  # fmt: skip
