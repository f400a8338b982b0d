"""What stands below a table: how it was measured, and the footnotes of what others published."""

from __future__ import annotations

from typing import Any

from fewshot.report.cells import Cell
from fewshot.report.labels import column_names, format_label, words_of
from fewshot.report.published import CAVEATS, UNKNOWN
from fewshot.report.records import Record


def remarks(figure: dict[str, Any]) -> list[str]:
    """The footnotes of a published figure: where it is from and how it was tested, and its caveats."""
    episodes, query = figure["episodes"], figure["query"]
    tested = "test tasks unknown" if episodes == UNKNOWN else f"{episodes:,} test tasks"
    asked = "queries unknown" if query == UNKNOWN else format_label("{} queries per class", query)
    kind = "what ± means is not stated" if figure["interval_kind"] == UNKNOWN else f"± {figure['interval_kind']}"
    interval = "" if figure["interval"] is None else f"; {kind}"
    source = f"{figure['source']} ({figure['version']}), as {figure['label']}: {tested}, {asked}{interval}"
    return [source, *(CAVEATS[caveat] for caveat in figure["caveats"] if caveat != "interval_unexplained")]


def footer(runs: list[Record], made: list[Cell]) -> list[tuple[str, str]]:
    """What was measured in each column, how its runs were trained, and what the signs mean, as (what, text)."""
    lines = []
    for column, name in column_names(runs).items():
        _, way, _, split, query, episodes, seed, *images, _, _ = words_of(column)
        *_, rotations, view, manifest, data = column
        parts = [f"{episodes} of the {split}", seed, f"{query} per class" if way else query]
        parts += [word for word, value in zip(images, (rotations, view), strict=True) if value is not None]
        lines.append((name, f"{', '.join(parts)}; manifest {manifest!s:.12}, data {data!s:.12}"))
    seeds = sorted({run["seed"] for run in runs})
    chosen = ", ".join(sorted({str(run["protocol"]["selection"]) for run in runs}))
    on_val = {cell.runs[0]["method"] for cell in made if cell.runs[0]["protocol"]["train_on_val"]}
    val = f"validation classes trained on by {'; '.join(sorted(on_val))}" if on_val else "none on validation classes"
    many = "seeds" if len(seeds) > 1 else "seed"
    lines.append(("training", f"{many} {', '.join(map(str, seeds))}; checkpoint: {chosen}; {val}"))
    several = any(len(cell.runs) > 1 for cell in made)
    interval = "half width of the 95 % Student t interval over the test episodes of one run"
    if several:
        interval += (
            "; where a cell counts its seeds, over the means of those seeds, and apart from it one run's over episodes"
        )
    lines.append(("±", interval))
    if any(cell.p is not None for cell in made):
        test = "paired t test over the same episodes" + (", each method's seeds averaged" if several else "")
        best = "the best of a column and what cannot be told from it at 5 %, for these trained models"
        lines.append(("bold", f"{best}: {test}, Holm's correction over all pairs of methods of all columns"))
    compared = {cell.column for cell in made if cell.p is not None}
    left_out = [cell for cell in made if cell.figure is None and cell.p is None and cell.column in compared]
    if left_out:
        names = {f"{cell.runs[0]['method']} on {cell.runs[0]['task']}" for cell in left_out}
        lines.append(("not compared", f"{', '.join(sorted(names))}: no usable scores of the episodes"))
    lines.append(("code", ", ".join(sorted({_commit(run["code"]) for run in runs}))))
    return lines


def _commit(code: Record) -> str:
    dirty = " with uncommitted changes" if code["dirty"] else ""
    commit = code["commit"][:12] if code["commit"] else "unknown commit"
    return f"{code['version']} ({commit}{dirty})"
