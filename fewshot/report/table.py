"""Records to comparison tables: a row per method, a column per test protocol, the protocol and costs below it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from fewshot.core.checks import check_choice
from fewshot.core.errors import FewshotError, one_line
from fewshot.core.paths import CONF
from fewshot.report.cells import Layout
from fewshot.report.formats import render_markdown
from fewshot.report.gather import COMMON, gather_runs, select_protocol, select_tests, split_by_steps
from fewshot.report.page import Page, dataset_label, make_page
from fewshot.report.published import read_published
from fewshot.report.records import METRICS, Record, protocol_name, task_name

# Not between backticks, where a document shows how to write them.
START, END = re.compile(r"(?<!`)<!-- table((?: [\w.]+=\S+)*) -->"), re.compile("(?<!`)<!-- /table -->")
MARK_KEYS = ("runs", "published", "costs", "rows", "cols")  # beside layout and the keys of a layout


def markdown(records: list[Record], complaints: list[str] | None = None, warnings: list[str] | None = None) -> str:
    """The comparison of the records as GitHub Markdown: a table for each dataset, of the common protocol if any.

    Args:
        complaints: as of `make_tables`.
        warnings: gets a line for each run of a table that could not be compared.

    Raises:
        FewshotError: runs that were not measured alike would share a cell.
    """
    if not records:
        return ""
    runs = [run for record in records for run in split_by_steps(record)]
    layout = read_layout("comparison", CONF)
    settings = {"layout": layout, "published": False, "rows": None, "cols": None, "costs": False}
    pages = make_tables(runs, settings, complaints)
    if warnings is not None:
        warnings += [line for page in pages for line in page.complaints]
    return render_markdown(*pages)


def make_tables(runs: Sequence[Record], settings: Mapping[str, Any], complaints: list[str] | None = None) -> list[Page]:
    """The tables of runs: one for each dataset if the layout says `per_dataset`, else one.

    Args:
        runs, settings: as of `make_table`.
        complaints: gets a line for each table that cannot be made, while another can. None: an error, as of
            `make_table`.
    """
    pages, errors = [], []
    for group, layout in split_layout(runs, settings["layout"]):
        try:
            pages.append(make_table(group, {**settings, "layout": layout}))
        except FewshotError as error:
            errors.append(error)
    if errors and (complaints is None or not pages):
        raise errors[0]
    if complaints is not None:
        complaints += map(str, errors)
    return pages


def split_layout(runs: Sequence[Record], layout: dict[str, Any]) -> list[tuple[list[Record], dict[str, Any]]]:
    """The runs of each table of a layout with a layout of their own: all of them, or, if it says so, one by dataset.

    A dataset without a run that the layout shows has no table. If no dataset has one, the runs stay together.
    """
    if not layout["per_dataset"]:
        return [(list(runs), layout)]
    shown = [
        run
        for run in runs
        if _belongs_to(run, layout)
        and (layout["metric"] is None or layout["metric"] in run["test"])
        and layout["protocol"] in (None, COMMON, protocol_name(run))
    ]
    datasets = sorted({run["protocol"]["dataset"] for run in shown})
    tables = []
    for name in datasets:
        dataset_layout = {**layout, "datasets": [name] if layout["datasets"] else None}
        if layout["title"] and len(datasets) > 1:
            dataset_layout["title"] = f"{layout['title']}: {dataset_label(name)}"
        tables.append(([run for run in runs if run["protocol"]["dataset"] == name], dataset_layout))
    return tables or [(list(runs), layout)]


def make_table(runs: Sequence[Record], settings: Mapping[str, Any]) -> Page:
    """The table of runs; what could not be compared stands in its `complaints`.

    Args:
        runs: as `gather_runs` returns them.
        settings: the layout and its changes, in the form of `conf/table.yaml`.

    Raises:
        FewshotError: nothing is left to tabulate, the layout is invalid, or runs that were not measured alike would
            share a cell or a column.
    """
    options = settings["layout"]
    rows = options["rows"] if settings["rows"] is None else settings["rows"]
    cols = options["cols"] if settings["cols"] is None else settings["cols"]
    if isinstance(rows, Mapping):
        _check_fields("rows", list(rows.values()))
    else:
        rows = _headings(_check_fields("rows", rows))
    if not rows:
        raise FewshotError("a free layout needs rows, such as rows=[algorithm] cols=[task]")
    if not cols and (doubled := {f"test.{name}" for name in METRICS} & set(rows.values())):
        raise FewshotError(f"rows: leave {doubled.pop()} out; without cols, the table shows it and its interval anyway")
    metric, *others = metrics_of(runs, options)
    layout = Layout(
        rows=dict(rows), cols=_check_fields("cols", cols), metric=metric, title=options["title"] or "",
        mixed=options["mixed"],
    )  # fmt: skip
    chosen = [run for run in runs if _belongs_to(run, options) and metric in run["test"]]
    by_one = not options["mixed"] or options["protocol"] is not None
    chosen, left_out = select_protocol(chosen, options["protocol"]) if by_one else select_tests(chosen)
    published = _published(chosen, metric, options) if settings["published"] else []
    notices = [f"the table shows {metric}; for the runs scored by {name} set layout.metric={name}" for name in others]
    if settings["published"] and not (published or options["published"]):  # asked for, not the layout's own choice
        known = sorted({figure["protocol"]["dataset"] for figure in read_published()})
        tested = ", ".join(sorted({run["protocol"]["dataset"] for run in chosen})) or "no run"
        notices.append(
            f"{tested}: no published figures for these methods and tasks; there are some of {', '.join(known)}"
        )
    if not chosen:
        if not published:
            methods = ", ".join(sorted({run["algorithm"] for run in runs}))
            datasets = ", ".join(sorted({run["protocol"]["dataset"] for run in runs}))
            raise FewshotError(
                f"no run belongs to this layout: the runs are of {methods} on {datasets}; choose another, such as "
                "layout=comparison, or other layout.algorithms, datasets, leave_out or metric"
            )
        notices.append("no run belongs to this layout: the table shows published figures only")
    page = make_page(chosen, published, layout, settings["costs"])
    page.footer.extend([("left out", f"tests by other protocols: {left_out}")] if left_out else [])
    page.complaints[:0] = notices
    return page


def _check_fields(name: str, fields: object) -> list[str]:
    if not isinstance(fields, list | tuple) or not all(isinstance(field, str) for field in fields):
        raise FewshotError(f"{name}={fields}: must be a list of fields of a record: {name}=[algorithm,protocol.query]")
    return list(fields)


def _headings(fields: list[str]) -> dict[str, str]:
    """Fields by their headings: the last part of the name, but all of it for a score and where two fields end alike."""
    last = [field.rpartition(".")[2] for field in fields]
    return {
        short if last.count(short) == 1 and short not in METRICS else field.replace(".", " "): field
        for field, short in zip(fields, last, strict=True)
    }


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
    return (
        (algorithms is None or run["algorithm"] in algorithms)
        and run["algorithm"] not in (layout["leave_out"] or ())
        and (datasets is None or run["protocol"]["dataset"] in datasets)
    )


def _published(runs: list[Record], metric: str, layout: Mapping[str, Any]) -> list[Record]:
    """Published figures of the layout's sources and datasets, or else of the runs' methods and tasks."""
    figures = [
        figure
        for figure in read_published()
        if _belongs_to(figure, layout)
        and metric in figure["test"]
        and (layout["sources"] is None or figure["published"]["source"] in layout["sources"])
    ]
    if layout["datasets"] is not None or not runs:
        return figures
    tasks, algorithms = {task_name(run["protocol"]) for run in runs}, {run["algorithm"] for run in runs}
    return [f for f in figures if f["algorithm"] in algorithms and task_name(f["protocol"]) in tasks]


def refresh_tables(path: Path, settings: Mapping[str, Any]) -> tuple[str, list[str], list[str]] | None:
    """A Markdown file's text with new tables between its marks; None for a file without marks.

    A mark may hold values of conf/table.yaml: `<!-- table layout=sinusoid runs=sinusoid costs=true -->`. The folder
    `runs` is beside the file, and the file's own by default.

    Returns:
        The text, the complaints, and a line for each table that cannot be made and stays as it was, while others can.

    Raises:
        FewshotError: the marks do not pair, a mark has a value that there is not, or no table can be made.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FewshotError(f"{path}: cannot be read: {one_line(error)}") from error
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        if b"<!-- table" not in content:
            return None
        raise FewshotError(f"{path}: is not UTF-8 text: {one_line(error)}") from error
    newline = "\r\n" if 0 < text.count("\n") == text.count("\r\n") else "\n"
    text = text.replace("\r\n", "\n") if newline == "\r\n" else text
    starts, ends = list(START.finditer(text)), list(END.finditer(text))
    if not starts and not ends:
        return None
    edges = [match.start() for pair in zip(starts, ends, strict=False) for match in pair]
    if len(starts) != len(ends) or edges != sorted(edges):
        raise FewshotError(f"{path}: each table stands between a <!-- table --> and a <!-- /table --> after it")
    parts, complaints, errors, end = [], [], [], 0
    for start, stop in zip(starts, ends, strict=True):
        mark_settings = _read_mark(start[1].split(), settings, path)
        try:
            runs, unread = gather_runs(path.parent / mark_settings["runs"])
            pages = make_tables(runs, mark_settings)
        except FewshotError as error:
            errors.append(error)
            parts.append(text[end : stop.start()])
        else:
            complaints += [*unread, *(line for page in pages for line in page.complaints)]
            parts += [text[end : start.end()], f"\n\n{render_markdown(*pages)}\n\n"]
        end = stop.start()
    if len(errors) == len(starts):
        raise errors[0]
    whole = ("".join(parts) + text[end:]).replace("\n", newline)
    return whole, complaints, [f"{path}: a table stays as it was: {error}" for error in errors]


def _read_mark(words: list[str], settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The settings of one table: its layout, and the values that its mark gives."""
    values = dict(word.split("=", 1) for word in words)
    mark_settings = {**settings, "runs": "."}
    if name := values.pop("layout", None):
        layout = read_layout(name, path)
        mark_settings |= {"layout": layout, "published": layout["published"]}
    for key, value in values.items():
        inner = key.removeprefix("layout.")
        group = mark_settings if inner == key else mark_settings["layout"]
        if inner not in (MARK_KEYS if group is mark_settings else group.keys() - {"published"}):
            raise FewshotError(f"{path}: {key}={value}: a table's mark has no such value; see {CONF / 'table.yaml'}")
        changed = {**group, inner: _read_value(f"{path}: {key}={value}", inner, value)}
        mark_settings = changed if group is mark_settings else {**mark_settings, "layout": changed}
    return mark_settings


def _read_value(place: str, key: str, value: str) -> Any:
    """A value in a mark: text, true or false, or a list, as in conf/table.yaml.

    Raises:
        FewshotError: it is none of these, or not what the key wants.
    """
    if key == "runs" or (key in ("title", "protocol", "metric") and value != "null"):
        return value
    if value == "null":
        return None
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise FewshotError(f"{place}: cannot be read: {one_line(error)}") from error
    wanted = bool if key in ("published", "costs", "mixed", "per_dataset") else list
    if read is not None and not isinstance(read, wanted):
        raise FewshotError(f"{place}: must be {'true or false' if wanted is bool else 'a list, such as [maml,leo]'}")
    return read


def read_layout(name: str, path: Path) -> dict[str, Any]:
    """A layout of conf/layout over the values of the layouts that it starts from, with all keys of a layout."""
    return {"rows": {}} | _read_layout("base/all", path) | _read_layout(name, path)


def _read_layout(name: str, path: Path) -> dict[str, Any]:
    file = CONF / "layout" / f"{name}.yaml"
    if not file.is_file():
        raise FewshotError(f"{path}: layout={name}: no such layout; see {CONF / 'layout'}")
    node: Any = OmegaConf.load(file)
    bases = [base.partition("@")[0] for base in node.pop("defaults", []) if base != "_self_"]
    folder = name.rpartition("/")[0]
    layouts = [_read_layout(f"{folder}/{base}".lstrip("/"), path) for base in bases]
    merged: Any = OmegaConf.to_container(OmegaConf.merge(*layouts, node))
    return merged
