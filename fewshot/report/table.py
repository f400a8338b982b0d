"""Records to one comparison table: a row per method, a column per test protocol, the protocol and costs below it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fewshot.core.checks import check_choice
from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.report.cells import Layout
from fewshot.report.formats import render_markdown
from fewshot.report.gather import read_runs, split_by_steps
from fewshot.report.page import Page, make_page
from fewshot.report.published import read_published
from fewshot.report.records import METRICS, Record, task_name

START, END = re.compile(r"<!-- table(?: layout=(\w+))? -->"), re.compile("<!-- /table -->")


def markdown(records: list[Record]) -> str:
    """A comparison of the records as GitHub Markdown, one table after the other for accuracies and errors."""
    runs = [run for record in records for run in split_by_steps(record)]
    by_metric = {metric: [run for run in runs if metric in run["test"]] for metric in METRICS}
    pages = [make_page(chosen, layout=Layout(metric=metric)) for metric, chosen in by_metric.items() if chosen]
    return "\n\n".join(map(render_markdown, pages))


def make_table(runs: Sequence[Record], settings: Mapping[str, Any]) -> Page:
    """The table of runs; what could not be compared stands in its `complaints`.

    Args:
        runs: as `read_runs` returns them.
        settings: the layout and its changes, in the form of `conf/table.yaml`.

    Raises:
        FewshotError: nothing is left to tabulate, the layout is invalid, or runs that were not measured alike would
            share a cell or a column.
    """
    options = settings["layout"]
    rows = options["rows"] if settings["rows"] is None else settings["rows"]
    cols = options["cols"] if settings["cols"] is None else settings["cols"]
    if not isinstance(rows, Mapping):
        rows = _headings(_check_fields("rows", rows))
    if not rows:
        raise FewshotError("a free layout needs rows, such as rows=[algorithm] cols=[task]")
    metric, *others = metrics_of(runs, options)
    layout = Layout(rows=dict(rows), cols=_check_fields("cols", cols), metric=metric, title=options["title"] or "")
    chosen = [run for run in runs if _belongs_to(run, options) and metric in run["test"]]
    published = _published(chosen, metric, options) if settings["published"] else []
    notices = [f"the table shows {metric}; for the runs scored by {name} set layout.metric={name}" for name in others]
    if not chosen:
        if not published:
            raise FewshotError("no run belongs to this layout: choose layout=comparison")
        notices.append("no run belongs to this layout: the table shows published figures only")
    page = make_page(chosen, published, layout, settings["cost"])
    page.complaints[:0] = notices
    return page


def _check_fields(name: str, fields: object) -> list[str]:
    if not isinstance(fields, list | tuple) or not all(isinstance(field, str) for field in fields):
        raise FewshotError(f"{name}={fields}: must be a list of fields of a record: {name}=[algorithm,protocol.query]")
    return list(fields)


def _headings(fields: list[str]) -> dict[str, str]:
    """Fields by their headings: the last part of the name where no other field has it."""
    last = [field.rpartition(".")[2] for field in fields]
    return {short if last.count(short) == 1 else field: field for field, short in zip(fields, last, strict=True)}


def metrics_of(runs: Sequence[Record], layout: Mapping[str, Any]) -> list[str]:
    """The metric that the layout asks for, or else those of its runs; accuracy without runs.

    Raises:
        FewshotError: the layout asks for an unknown metric.
    """
    if layout["metric"] is not None:
        return [check_choice("layout.metric", layout["metric"], METRICS)]
    metrics = [metric for metric in METRICS if any(metric in run["test"] for run in runs if _belongs_to(run, layout))]
    return metrics or [METRICS[0]]


def _belongs_to(run: Record, layout: Mapping[str, Any]) -> bool:
    algorithms, datasets = layout["algorithms"], layout["datasets"]
    return (algorithms is None or run["algorithm"] in algorithms) and (
        datasets is None or run["protocol"]["dataset"] in datasets
    )


def _published(runs: list[Record], metric: str, layout: Mapping[str, Any]) -> list[Record]:
    """Published figures of the layout's sources, or else of its datasets, or else of the runs' methods and tasks."""
    figures = [figure for figure in read_published() if _belongs_to(figure, layout) and metric in figure["test"]]
    if layout["sources"] is not None:
        return [figure for figure in figures if figure["published"]["source"] in layout["sources"]]
    if layout["datasets"] is not None:
        return figures
    tasks, algorithms = {task_name(run["protocol"]) for run in runs}, {run["algorithm"] for run in runs}
    return [f for f in figures if f["algorithm"] in algorithms and task_name(f["protocol"]) in tasks]


def refresh_table(path: Path, settings: Mapping[str, Any]) -> tuple[str, Page] | None:
    """A Markdown file's text with a new table between its marks, of the runs beside it; None for a file without marks.

    The first mark may name a layout of conf/layout: `<!-- table layout=sinusoid -->`.

    Raises:
        FewshotError: the marks do not pair, or there is no such layout.
    """
    text = path.read_text(encoding="utf-8")
    starts, ends = list(START.finditer(text)), list(END.finditer(text))
    if not starts and not ends:
        return None
    if len(starts) != 1 or len(ends) != 1 or ends[0].start() < starts[0].end():
        raise FewshotError(f"{path}: a table stands between one <!-- table --> and one <!-- /table --> after it")
    if name := starts[0][1]:
        layout = _read_layout(name, path)
        settings = {**settings, "layout": layout, "published": layout["published"]}
    runs, complaints = read_runs(path.parent)
    page = make_table(runs, settings)
    page.complaints[:0] = complaints
    return f"{text[: starts[0].end()]}\n\n{render_markdown(page)}\n\n{text[ends[0].start() :]}", page


def _read_layout(name: str, path: Path) -> dict[str, Any]:
    """A layout of conf/layout over the values that all layouts start from."""
    files = [CONF / "layout" / "base" / "all.yaml", CONF / "layout" / f"{name}.yaml"]
    if not files[1].is_file():
        raise FewshotError(f"{path}: layout={name}: no such layout; see {CONF / 'layout'}")
    merged: Any = OmegaConf.to_container(OmegaConf.merge(*map(OmegaConf.load, files)), resolve=True)
    return {key: value for key, value in merged.items() if key != "defaults"}
