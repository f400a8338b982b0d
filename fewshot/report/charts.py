"""Charts of test scores: by adaptation steps, by shots, and learners beside each other.

The tables' rule holds: what was not measured on the same test episodes shares no line and no panel. Error bars are
95 % intervals: over training seeds where a point has several, else over the test episodes of the one run.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fewshot.core.errors import FewshotError
from fewshot.report.cells import Cell
from fewshot.report.curves import curves
from fewshot.report.gather import STEPS, depth, one_per_seed
from fewshot.report.labels import Column, column_names, column_of, method_names
from fewshot.report.records import Record, metric_of
from fewshot.report.styles import SCORES, legend, panels_of, plain, styles_of

Lines = dict[str, dict[int, list[Record]]]  # {method: {x: the runs of its seeds}}


def by_steps(runs: Sequence[Record]) -> Figure:
    """Test score against the number of adaptation steps at test, of what was tested after several numbers of them.

    Raises:
        FewshotError: there is no such run, or one twice with different scores.
    """
    counted = [run for run in runs if type(run["protocol"]["adaptation_steps"]) is int]
    names, titles = method_names(counted, [STEPS]), column_names(counted)
    panels: dict[str, Lines] = {title: defaultdict(lambda: defaultdict(list)) for title in titles.values()}
    for name, run in zip(names, counted, strict=True):
        panels[titles[column_of(run)]][name][run["protocol"]["adaptation_steps"]].append(run)
    return _lines(panels, "adaptation steps at test", "after several numbers of adaptation steps")


def by_shots(runs: Sequence[Record]) -> Figure:
    """Test score against the shots of the test: of methods trained for each of them, and of runs tested with several.

    Raises:
        FewshotError: there is no such run, or one twice with different scores.
    """
    chosen = own_steps(runs)
    names = method_names(chosen)
    anywhere = [{**run, "protocol": {**run["protocol"], "shot": "K", "manifest": ""}} for run in chosen]
    titles = column_names(anywhere)
    places = [titles[column_of(run)] for run in anywhere]
    panels: dict[str, Lines] = {title: defaultdict(lambda: defaultdict(list)) for title in titles.values()}
    away: dict[tuple[Hashable, ...], set[str]] = defaultdict(set)  # methods tested with shots not trained for
    for name, run, title in zip(names, chosen, places, strict=True):
        panels[title][name][run["protocol"]["shot"]].append(run)
        if run["shot"] != run["protocol"]["shot"]:
            away[title, run["config"], run["protocol"]["setting"]].add(name)
    for name, run, title in zip(names, chosen, places, strict=True):
        # The test with the shots that it was trained for is a point of the same line, and of its method's own.
        if run["shot"] == run["protocol"]["shot"]:
            for other in away[title, run["config"], run["protocol"]["setting"]] - {name}:
                panels[title][other][run["shot"]].append(run)
    return _lines(panels, "shots of the test (K)", "with several shots")


def _lines(panels: dict[str, Lines], x_label: str, what: str) -> Figure:
    """Draw the lines that have two points or more."""
    drawn = {title: {name: line for name, line in lines.items() if len(line) > 1} for title, lines in panels.items()}
    drawn = {title: lines for title, lines in drawn.items() if lines}
    if not drawn:
        raise FewshotError(f"nothing was tested {what}")
    first = {name: next(iter(line.values()))[0] for lines in drawn.values() for name, line in lines.items()}
    styles = styles_of(list(first), list(first.values()))
    figure, axes = panels_of(list(drawn), 3.4, 0.2 * len(styles))
    for panel, lines in zip(axes, drawn.values(), strict=True):
        for name, line in lines.items():
            label, unit, _ = SCORES[metric_of(first[name])]
            xs = sorted(line)
            means, halves = zip(*(_point(name, line[x]) for x in xs), strict=True)
            scaled = [[value * unit for value in values] for values in (means, halves)]
            panel.errorbar(xs, scaled[0], yerr=scaled[1], capsize=3, elinewidth=1, **styles[name])
            panel.set(xlabel=x_label, ylabel=f"test {label}")
        _mark(panel, {x for line in lines.values() for x in line})
    legend(figure, styles, {name: name for name in first})
    return figure


def _mark(panel: Axes, xs: set[int]) -> None:
    """Ticks at the numbers that were measured, where there is room for them."""
    if min(np.diff(sorted(xs))) * 16 >= max(xs) - min(xs):
        panel.set_xticks(sorted(xs))
    else:
        panel.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def bars(runs: Sequence[Record]) -> Figure:
    """A panel per test protocol, and in it a bar per method.

    Raises:
        FewshotError: a run is there twice with different scores.
    """
    chosen = own_steps(runs)
    names, titles = method_names(chosen), column_names(chosen)
    found: dict[tuple[str, Column], list[Record]] = defaultdict(list)
    for name, run in zip(names, chosen, strict=True):
        found[name, column_of(run)].append(run)
    styles = styles_of(names, chosen)
    places = {name: len(styles) - place for place, name in enumerate(styles)}
    figure, panels = panels_of(list(titles.values()), 0.32 * len(styles) + 1.1, sharey=True)
    for panel in panels:
        panel.set_yticks(list(places.values()), [plain(name, 40) for name in places], fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    ends: dict[Column, float] = defaultdict(float)
    for (name, column), group in found.items():
        panel = panels[list(titles).index(column)]
        label, unit, decimals = SCORES[metric_of(group[0])]
        mean, half = (value * unit for value in _point(name, group))
        known = not math.isnan(half)
        panel.barh(places[name], mean, 0.7, xerr=half if known else None, capsize=2, color=styles[name]["color"])
        text = f"{mean:.{decimals}f}" + (f" ± {half:.{decimals}f}" if known else "")
        end = mean + (half if known else 0)
        panel.annotate(text, (end, places[name]), (5, 0), textcoords="offset points", va="center", fontsize=8)
        panel.set_xlabel(f"test {label}")
        ends[column] = max(ends[column], end)
    for panel, column in zip(panels, titles, strict=True):
        panel.set_xlim(0, 1.4 * ends[column] or 1)  # the numbers beside the bars want room
        panel.set_xticks([tick for tick in panel.get_xticks() if tick <= max(100, ends[column])])
    return figure


def _point(name: str, runs: list[Record]) -> tuple[float, float]:
    """Mean and half width of the interval, NaN where it is unknown, of one method's runs on the same episodes."""
    cell, metric = Cell((), (), one_per_seed(runs, name)), metric_of(runs[0])
    half = cell.over_episodes() if len(cell.runs) == 1 else cell.over_seeds(metric)
    return cell.mean(metric), float("nan") if half is None else half


def own_steps(runs: Sequence[Record]) -> list[Record]:
    """The runs without further tests of a training with a number of adaptation steps other than its own.

    Its own is that of the record whose folder lies highest; of several numbers in one record the largest.
    """

    def training(run: Record) -> tuple[Hashable, ...]:
        return run["config"], run["seed"], run["protocol"]["setting"]

    def place(run: Record) -> tuple[int, int]:
        steps = run["protocol"]["adaptation_steps"]
        return depth(run), -steps if type(steps) is int else 0

    own: dict[Hashable, object] = {}
    for run in sorted(runs, key=place):
        own.setdefault(training(run), run["protocol"]["adaptation_steps"])
    return [run for run in runs if run["protocol"]["adaptation_steps"] == own[training(run)]]


CHARTS: dict[str, Callable[[Sequence[Record]], Figure]] = {
    "bars": bars,
    "curves": curves,
    "by_steps": by_steps,
    "by_shots": by_shots,
}
