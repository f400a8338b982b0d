"""Records to one comparison table: a row per method, a column per test protocol, and below it what was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.report.cells import Layout
from fewshot.report.formats import FORMATS
from fewshot.report.gather import by_steps, published_records, read_runs
from fewshot.report.page import Page, page
from fewshot.report.records import METRICS, Record

START, END = re.compile(r"<!-- table(?: layout=(\w+))? -->"), re.compile("<!-- /table -->")


def markdown(records: list[Record]) -> str:
    """The comparison, its footer, and the table of costs, as GitHub Markdown; one after the other for each metric."""
    runs = [run for record in records for run in by_steps(record)]
    parts = {metric: [run for run in runs if metric in run["test"]] for metric in METRICS}
    return "\n\n".join(
        FORMATS["markdown"](page(part, layout=Layout(metric=metric))) for metric, part in parts.items() if part
    )


def table_of(runs: Sequence[Record], settings: Mapping[str, Any]) -> Page:
    """The table of runs in the layout that `settings`, of the form of `conf/table.yaml`, describe.

    What could not be compared stands in its `complaints`.

    Args:
        runs: as `measured` reads them.

    Raises:
        FewshotError: nothing is left to tabulate, the layout is none, or it would mix what was not measured alike.
    """
    given = settings["layout"]
    rows = given["rows"] if settings["rows"] is None else settings["rows"]
    cols = given["cols"] if settings["cols"] is None else settings["cols"]
    if not isinstance(rows, Mapping):
        rows = _headings(_fields("rows", rows))
    if not rows:
        raise FewshotError("a free layout needs its rows, and cols where you want some: rows=[algorithm] cols=[task]")
    metric, *others = metrics_of(runs, given)
    layout = Layout(
        rows=dict(rows),
        cols=_fields("cols", cols),
        metric=metric,
        title=given["title"] or "",
    )
    chosen = [run for run in runs if _wanted(run, given) and metric in run["test"]]
    published = _figures(chosen, metric, given) if settings["published"] else []
    left = [f"the table shows {metric}; for the runs scored by {other} say layout.metric={other}" for other in others]
    if not chosen:
        none = f"no run of {len(runs)} is of this layout"
        if not published:
            raise FewshotError(f"{none}: take layout=comparison")
        left.append(f"{none}: it shows published figures only")
    made = page(chosen, published, layout, settings["cost"])
    made.complaints[:0] = left
    return made


def _fields(name: str, given: object) -> list[str]:
    if not isinstance(given, list | tuple) or not all(isinstance(field, str) for field in given):
        raise FewshotError(f"{name}={given}: it is a list of fields of a record: {name}=[algorithm,protocol.query]")
    return [str(field) for field in given]


def _headings(fields: list[str]) -> dict[str, str]:
    short = [field.rpartition(".")[2] for field in fields]
    return {last if short.count(last) == 1 else field: field for field, last in zip(fields, short, strict=True)}


def metrics_of(runs: Sequence[Record], layout: Mapping[str, Any]) -> list[str]:
    """The metric that a layout asks for, or else those of its runs, of which a table shows one; accuracy without runs.

    Raises:
        FewshotError: the layout asks for none of METRICS.
    """
    asked = layout["metric"]
    if asked is not None:
        if asked not in METRICS:
            raise FewshotError(f"layout.metric={asked}: {' or '.join(METRICS)}")
        return [asked]
    found = [metric for metric in METRICS if any(metric in run["test"] for run in runs if _wanted(run, layout))]
    return found or [METRICS[0]]


def _wanted(run: Record, layout: Mapping[str, Any]) -> bool:
    algorithms, datasets = layout["algorithms"], layout["datasets"]
    return (algorithms is None or run["algorithm"] in algorithms) and (
        datasets is None or run["protocol"]["dataset"] in datasets
    )


def _figures(runs: list[Record], metric: str, layout: Mapping[str, Any]) -> list[Record]:
    """The layout's published figures; without sources of its own, those of a measured algorithm and task."""
    tasks = {tuple(run["protocol"][key] for key in ("dataset", "way", "shot")) for run in runs}
    algorithms = {run["algorithm"] for run in runs}
    chosen = []
    for figure in published_records():
        if not _wanted(figure, layout) or metric not in figure["test"]:
            continue
        if layout["sources"] is not None:
            wanted = figure["published"]["source"] in layout["sources"]
        elif layout["datasets"] is not None:
            wanted = True
        else:
            task = tuple(figure["protocol"][key] for key in ("dataset", "way", "shot"))
            wanted = figure["algorithm"] in algorithms and task in tasks
        if wanted:
            chosen.append(figure)
    return chosen


def refreshed(path: Path, settings: Mapping[str, Any]) -> tuple[str, Page] | None:
    """A Markdown file's text with the table between its marks made anew from the runs beside it; None without marks.

    The first mark may name a layout of conf/layout: `<!-- table layout=sinusoid -->`.

    Raises:
        FewshotError: one of the marks is missing, they are out of order, or there is no such layout.
    """
    text = path.read_text(encoding="utf-8")
    starts, ends = list(START.finditer(text)), list(END.finditer(text))
    if not starts and not ends:
        return None
    if len(starts) != 1 or len(ends) != 1 or ends[0].start() < starts[0].end():
        raise FewshotError(f"{path}: a table stands between one <!-- table --> and one <!-- /table --> after it")
    if name := starts[0][1]:
        layout = _layout(name, path)
        settings = {**settings, "layout": layout, "published": layout["published"]}
    runs, complaints = read_runs(path.parent)
    made = table_of(runs, settings)
    made.complaints[:0] = complaints
    return f"{text[: starts[0].end()]}\n\n{FORMATS['markdown'](made)}\n\n{text[ends[0].start() :]}", made


def _layout(name: str, path: Path) -> dict[str, Any]:
    """A layout as its file and the one that all of them start from have it."""
    files = [CONF / "layout" / "base" / "all.yaml", CONF / "layout" / f"{name}.yaml"]
    if not files[1].is_file():
        raise FewshotError(f"{path}: layout={name}: no such layout; see {CONF / 'layout'}")
    merged = OmegaConf.to_container(OmegaConf.merge(*map(OmegaConf.load, files)), resolve=True)
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items() if key != "defaults"}
