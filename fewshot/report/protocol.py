"""The notes below a table: how its scores were measured, and the footnotes of published figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewshot.report.labels import column_labels, column_names, format_label
from fewshot.report.published import CAVEATS, UNKNOWN
from fewshot.report.records import Record

if TYPE_CHECKING:
    from fewshot.report.cells import Cell


def footnotes(figure: dict[str, Any]) -> list[str]:
    """The footnotes of a published figure: its source and test, and its caveats."""
    episodes, query = figure["episodes"], figure["query"]
    tested = "test tasks unknown" if episodes == UNKNOWN else f"{episodes:,} test tasks"
    queries = "queries unknown" if query == UNKNOWN else format_label("{} queries per class", query)
    kind = "what ± means is not stated" if figure["interval_kind"] == UNKNOWN else f"± {figure['interval_kind']}"
    interval = "" if figure["interval"] is None else f"; {kind}"
    source = f"{figure['source']} ({figure['version']}), as {figure['label']}: {tested}, {queries}{interval}"
    return [source, *(CAVEATS[caveat] for caveat in figure["caveats"] if caveat != "interval_unexplained")]


def protocol_lines(runs: list[Record], cells: list[Cell]) -> list[tuple[str, str]]:
    """How each column was measured, how its runs were trained, and what the signs mean, as (subject, text)."""
    lines = []
    for column, name in column_names(runs).items():
        _, way, _, split, query, episodes, seed, rotations, view, _, _ = column_labels(column)
        parts = [f"{episodes} of the {split}", seed, f"{query} per class" if way else query, rotations, view]
        *_, manifest, data = column
        stated = [part for part in parts if not part.endswith("None")]  # a regression has no rotations
        lines.append((name, f"{', '.join(stated)}; manifest {manifest!s:.12}, data {data!s:.12}"))
    seeds = sorted({run["seed"] for run in runs})
    selection = ", ".join(sorted({str(run["protocol"]["selection"]) for run in runs}))
    on_val = {cell.runs[0]["method"] for cell in cells if cell.runs[0]["protocol"].get("train_on_val")}
    val = f"validation classes trained on by {'; '.join(sorted(on_val))}" if on_val else "none on validation classes"
    label = "seeds" if len(seeds) > 1 else "seed"
    lines.append(("training", f"{label} {', '.join(map(str, seeds))}; checkpoint: {selection}; {val}"))
    several_seeds = any(len(cell.runs) > 1 for cell in cells)
    interval = "half width of the 95 % Student t interval over the test episodes of one run"
    if several_seeds:
        interval += (
            "; where a cell counts its seeds, over the means of those seeds, and apart from it one run's over episodes"
        )
    lines.append(("±", interval))
    compared = {cell.column for cell in cells if cell.p is not None}
    if compared:
        test = "paired t test over the same episodes" + (", each method's seeds averaged" if several_seeds else "")
        best = "the best of a column and what cannot be told from it at 5 %, for these trained models"
        lines.append(("bold", f"{best}: {test}, Holm's correction over all pairs of methods of all columns"))
    left_out = [cell for cell in cells if cell.figure is None and cell.p is None and cell.column in compared]
    if left_out:
        names = {f"{cell.runs[0]['method']} on {cell.runs[0]['task']}" for cell in left_out}
        lines.append(("not compared", f"{', '.join(sorted(names))}: no usable scores of the episodes"))
    lines.append(("code", ", ".join(sorted({_code_version(run["code"]) for run in runs}))))
    return lines


def _code_version(code: Record) -> str:
    dirty = " with uncommitted changes" if code["dirty"] else ""
    commit = code["commit"][:12] if code["commit"] else "unknown commit"
    return f"{code['version']} ({commit}{dirty})"
