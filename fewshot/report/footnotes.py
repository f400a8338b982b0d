"""The footnotes of a table: in what the test of a row or cell differs from that below the table, and its caveats."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from fewshot.report.cells import Cell
from fewshot.report.labels import AS_SHOTS, label_test
from fewshot.report.published import CAVEATS, UNKNOWN
from fewshot.report.records import Record, extractor_of, metric_of
from fewshot.report.traits import OLDER, format_label, label_setting

WORDS = {  # for labels of a test
    "rotated": "rotated characters",
    "unrotated": "unrotated characters",
    "split random1200": "unseen characters of known alphabets (split random1200)",
    "split vinyals": "characters of unseen alphabets (split vinyals)",
    "whole images": "",
}
# Caveats that stand in the words for the test, or once in the line on published figures.
SAID_ELSEWHERE = ("evaluation_size_unstated", "interval_unexplained", "protocol_from_code", "rotated_tests")

SETTINGS = re.compile(r", (?=[\w.]+=)")  # between two settings; lists have commas of their own
IMAGES_OF_A_CLASS = {"mini": 600}  # of datasets where some programs test on all of them
IMAGES_OF_A_TASK = 240  # in tests of R2-D2, whatever the number of shots

Test = tuple[str, ...]  # the labels of a test
Place = tuple[int, int | None]  # row, and cell of the row or None for all of it


def footnotes(
    rows: Sequence[Sequence[Cell]], reference: Test | None, steps_shown: bool = False, budget_shown: bool = False
) -> tuple[dict[Place, list[int]], list[str]]:
    """The numbers of the footnotes at each row and cell, and the footnotes.

    A text that holds for all cells of a row stands at the row. Texts that stand at the same places are one footnote.

    Args:
        reference: the test that the cells of mixed columns are held against; None where columns are not mixed.
        steps_shown: whether rows or columns say the adaptation steps of a test.
        budget_shown: whether rows say how many of the paper's steps a training has.
    """
    places: dict[str, list[Place]] = defaultdict(list)
    for i, (row, per_shot) in enumerate(zip(rows, _per_shot(rows), strict=True)):
        texts = [
            [*_cell_notes(cell, reference, per_shot, steps_shown), *_short_notes(cell, budget_shown), *_name_note(row)]
            for cell in row
        ]
        for text in dict.fromkeys(text for cell_texts in texts for text in cell_texts):
            holders: list[Place] = [(i, j) for j, cell_texts in enumerate(texts) if text in cell_texts]
            places[text] += [(i, None)] if len(holders) == len(row) else holders
    joined: dict[tuple[Place, ...], list[str]] = defaultdict(list)
    for text, held in places.items():
        joined[tuple(held)].append(text)
    marks: dict[Place, list[int]] = defaultdict(list)
    for number, held in enumerate(joined, start=1):
        for place in held:
            marks[place].append(number)
    return marks, ["; ".join(texts) for texts in joined.values()]


def _per_shot(rows: Sequence[Sequence[Cell]]) -> list[bool]:
    """Whether the tests of each row have as many queries as shots, and not one query for any number of shots.

    With 1 shot both are true; there the method's other rows decide.
    """
    protocols = [[cell.runs[0]["protocol"] for cell in row] for row in rows]
    numbers = [[(protocol.get("query"), protocol["shot"]) for protocol in row] for row in protocols]
    methods = [row[0].runs[0]["algorithm"] for row in rows]
    of_one = {m for m, own in zip(methods, numbers, strict=True) if any(query == 1 < shot for query, shot in own)}
    return [
        all(query == shot for query, shot in own) and (method not in of_one or any(shot > 1 for _, shot in own))
        for method, own in zip(methods, numbers, strict=True)
    ]


def _cell_notes(cell: Cell, reference: Test | None, per_shot: bool, steps_shown: bool) -> list[str]:
    run, figure = cell.runs[0], cell.figure
    if figure is not None:
        return _figure_notes(run, figure, reference or (), per_shot)
    notes = [] if cell.reference else [_test_difference(run, reference or (), per_shot)]
    notes += [] if steps_shown else [_changed_steps(run)]
    notes += [*_by_seed(cell, _training_note), *_diverged_notes(cell)]
    if len(cell.runs) > 1:
        extractors = {extractor_of(run).get("fingerprint") for run in cell.runs}
        alike = ", all with the same extractor" if len(extractors) == 1 and None not in extractors else ""
        over_them = "; ± is over the seeds" if cell.wider_over_seeds else "; ± is the mean of their intervals"
        notes.append(f"mean of {len(cell.runs)} training seeds{alike}{over_them}")
    return [note for note in notes if note]


def _by_seed(cell: Cell, note: Callable[[Record], str]) -> list[str]:
    """The notes of a cell's runs; with the seed where they are not the same of all."""
    notes = [note(run) for run in cell.runs]
    if len(set(notes)) == 1:
        return notes[:1]
    return [f"seed {run['seed']}: {text}" for run, text in zip(cell.runs, notes, strict=True) if text]


def _short_notes(cell: Cell, budget_shown: bool) -> list[str]:
    """That a training has fewer steps than its paper's, where no column says so."""
    if budget_shown or cell.figure is not None:
        return []
    steps = [(run["train"].get("steps") or 0, run["train"].get("paper_steps") or 0) for run in cell.runs]
    return list(dict.fromkeys(f"{done:,} of the paper's {paper:,} steps" for done, paper in steps if 0 < done < paper))


def _changed_steps(run: Record) -> str:
    """The adaptation steps of a test, where a person changed those of its protocol; else empty."""
    changed = "steps=" in run["protocol"].get("name", "") and "test step" not in run["method"]
    steps = run["protocol"]["adaptation_steps"]
    return f"tested with {format_label('{} steps', steps)}" if changed and isinstance(steps, int) else ""


def _diverged_notes(cell: Cell) -> list[str]:
    """The numbers of steps that records of a cell leave out, since some of their scores are not finite."""
    return [
        f"seed {run['seed']} has no score after {format_label('{} test steps', int(steps))}: it is not finite in "
        f"{count:,} of {run['test']['episodes']:,} test episodes"
        for run in cell.runs
        for steps, count in run["test"].get("diverged", {}).items()
    ]


def _training_note(run: Record) -> str:
    """What a reader does not expect of a training: that it had not ended, or that steps of it were replaced."""
    done, planned = run["train"].get("steps") or 0, (run.get("settings") or {}).get("train.steps") or 0
    early = 0 < done < planned and "at step" not in run["method"]
    replaced = run["cost"].get("nan_guarded_steps") or 0
    parts = [f"tested at step {done:,} of {planned:,}" if early else ""]
    parts += [format_label("{:,} outer steps with a NaN replaced", replaced) if replaced else ""]
    changed = _recipe_changes(run)
    usual = "as its recipe" if run["recipe"] else "the defaults"
    parts += [f"not {usual}: {', '.join(changed)}"] if changed else []
    return ", ".join(filter(None, parts))


def _recipe_changes(run: Record) -> list[str]:
    """The settings of a run that are not as its recipe has them, each as `inner_lr=0.1`."""
    settings, train = run.get("settings") or {}, run["train"]
    short = 0 < (train.get("steps") or 0) < (train.get("paper_steps") or 0)  # which the budget or a note says
    chosen = str(run["protocol"]["selection"]).startswith("best")  # by its validation; else no score depends on that
    changes = [
        key
        for key in run.get("recipe_changes", [])
        if key in settings
        and not (key == "train.steps" and short)
        and (chosen or not key.startswith(("validation.", "train.validate_every")))
    ]
    return [label_setting(key, settings[key], changes) for key in changes]


def _name_note(row: Sequence[Cell]) -> list[str]:
    """What the number in a row's name stands for; older runs of several tasks each add their configuration."""
    first, *others = dict.fromkeys(cell.runs[0]["name_note"] for cell in row)
    note = ", ".join([first, *(other.removeprefix(OLDER) for other in others)])
    changes = set() if row[0].figure is not None else set(_recipe_changes(row[0].runs[0]))  # beside it
    left = [part for part in SETTINGS.split(note) if part and part not in changes]
    return [", ".join(left)] if left else []


def _test_difference(run: Record, reference: Test, per_shot: bool) -> str:
    """In what the test of a run differs from the reference: queries, rotations, episodes, seed, images."""
    split, query, episodes, seed, rotations, *images = (
        value if value != other else "" for value, other in zip(label_test(run), reference, strict=True)
    )
    if query:
        query = _queries(run, run["protocol"]["query"], per_shot)
    parts = [query, rotations, episodes.replace("episode", "test episode"), seed, split, *images]
    hashes = run["protocol"]["manifest"], run["data"]["fingerprint"]
    others = "other images or test episodes (manifest {:.8}, data {:.8})".format(*hashes)
    return ", ".join(filter(None, (WORDS.get(part) or part for part in parts))) or others


def _queries(run: Record, query: int, per_shot: bool) -> str:
    shot = run["protocol"]["shot"]
    if query + shot == IMAGES_OF_A_CLASS.get(run["protocol"]["dataset"]):
        return f"all {query + shot} images of each class"
    if run["algorithm"] == "r2d2" and run["protocol"]["way"] * (shot + query) == IMAGES_OF_A_TASK:
        return f"tasks of {IMAGES_OF_A_TASK} images"
    return AS_SHOTS if per_shot else format_label("{} queries", query) + per_class(run)


def per_class(run: Record) -> str:
    """What follows a number of queries: functions have no classes."""
    return " per class" if metric_of(run) == "accuracy" else ""


def _figure_notes(run: Record, figure: dict[str, Any], reference: Test, per_shot: bool) -> list[str]:
    """How a published figure was tested, where that differs from the reference, and its caveats."""
    query, episodes = figure["query"], figure["episodes"]
    unknown = [name for name, value in (("queries", query), ("test episodes", episodes)) if value == UNKNOWN]
    if "few_test_tasks" in figure["caveats"] and "test episodes" in unknown:  # says more
        unknown.remove("test episodes")
    parts = []
    if query != UNKNOWN:
        query_label = _queries(run, query, per_shot)
        parts.append("" if {query_label, format_label("{} queries", query)} & set(reference) else query_label)
    size, sizes = f"{figure['input_size']} pixels", [part for part in reference if part.endswith(" pixels")]
    parts.append(size if figure["input_size"] != UNKNOWN and sizes and size not in sizes else "")
    if "rotated_tests" in figure["caveats"]:
        parts.append("" if "rotated" in reference else WORDS["rotated"])
    elif figure["dataset"] == "omniglot" and not {"rotated_as_classes", "protocol_from_code"} & set(figure["caveats"]):
        unknown.append("rotations")
    elif "rotated" in reference and "rotated_as_classes" not in figure["caveats"]:
        parts.append(f"{WORDS['unrotated']} or not stated")
    if episodes != UNKNOWN:
        label = format_label("{:,} episodes", episodes)
        parts.append("" if label in reference else label.replace("episode", "test episode"))
    if unknown:
        parts.append(" and ".join(filter(None, [", ".join(unknown[:-1]), f"{unknown[-1]} not stated"])))
    caveats = [CAVEATS[caveat] for caveat in figure["caveats"] if caveat not in SAID_ELSEWHERE]
    return [note for note in (", ".join(filter(None, parts)), *caveats) if note]
