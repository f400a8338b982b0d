"""Training curves: what runs logged as they went."""

from __future__ import annotations

import contextlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fewshot.core.errors import FewshotError
from fewshot.report.gather import STEPS
from fewshot.report.labels import column_names, column_of, method_names
from fewshot.report.records import NUMBER, Record, metric_of
from fewshot.report.styles import SCORES, legend, panels_of, styles_of

PARTS = ("training", "validation")


def curves(runs: Sequence[Record]) -> Figure:
    """Training and validation scores over the outer steps: a line per run, a row of two panels per test protocol.

    Training scores are as logged, each a mean over the last twentieth of the lines: of the training tasks' queries, but
    of Reptile, which holds out none, of its last inner minibatch.

    Raises:
        FewshotError: no run has a log.
    """
    by_folder = {run["folder"]: run for run in runs}
    logs = {folder: log for folder in by_folder if (log := _log(Path(folder)))}
    logged = [by_folder[folder] for folder in logs]
    if not logged:
        raise FewshotError("no metrics.jsonl beside the records")
    names, titles = method_names(logged, [STEPS]), column_names(logged)
    styles = styles_of(names, logged)
    parts = [f"{title}: {part}" for title in titles.values() for part in PARTS]
    figure, panels = panels_of(parts, 3.1, 0.2 * len(styles))
    rows = dict(zip(titles, zip(panels[::2], panels[1::2], strict=True), strict=True))
    seeds: dict[str, set[int]] = defaultdict(set)
    for name, run in zip(names, logged, strict=True):
        seeds[name].add(run["seed"])
        log, metric = logs[run["folder"]], metric_of(run)
        label, unit, _ = SCORES[metric]
        for panel, part in zip(rows[column_of(run)], PARTS, strict=True):
            score = metric if part == "training" else f"validation_{metric}"
            panel.set(xlabel="outer steps", ylabel=f"{part} {label}")
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            known = [(line["step"], line[score] * unit) for line in log if type(line.get(score)) in NUMBER]
            steps, shown = [step for step, _ in known], pd.Series([value for _, value in known], dtype=float)
            if part == "training":
                shown = shown.rolling(_share(known, 20), min_periods=1).mean()
            panel.plot(steps, shown, markevery=_share(known, 10), alpha=0.85, **styles[name])
    legend(figure, styles, {name: f"{name}, {_seeds(found)}" for name, found in seeds.items()})
    return figure


def _log(folder: Path) -> list[dict[str, Any]]:
    """The lines logged beside a record, to the first that is none: a run that was killed may leave half a line."""
    lines = []
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            lines.append({**found, "step": int(found["step"])})
    return lines


def _share(lines: Sequence[object], parts: int) -> int:
    return max(1, math.ceil(len(lines) / parts))


def _seeds(seeds: set[int]) -> str:
    return f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, sorted(seeds)))}"
