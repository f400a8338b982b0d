"""The validation scores of one method's settings, by which a person chooses one before looking at test scores."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from fewshot.report.formats import escape_markdown, markdown_table
from fewshot.report.gather import label_rows, split_by_steps
from fewshot.report.labels import SETTING, method_sort_key
from fewshot.report.records import METRIC_NAMES, Record, format_score, metric_of
from fewshot.report.traits import STEPS


def render_validation(records: Sequence[Record]) -> str:
    """A Markdown table of the methods that were trained by several settings on one task; empty if there is none.

    A score is the mean over the training seeds that all settings have, since the seed draws the validation tasks too;
    where they share none, of its own seeds. Scores on the same validation tasks stand together, the best in bold.
    Runs whose training had the validation classes are left out.
    """
    groups: dict[Any, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for run in label_rows(_one_per_training(records), [], ["setting", SETTING, STEPS]):
        groups[run["order"], run["algorithm"], *_validation(run)][run["config"]].append(run)
    rows, notes, metrics = [], {}, set()
    for place, methods in enumerate(groups.values()):
        shared = set.intersection(*({run["seed"] for run in runs} for runs in methods.values()))
        if shared:
            methods = {name: [run for run in runs if run["seed"] in shared] for name, runs in methods.items()}
        scores = [_mean(runs) for runs in methods.values()]
        if len(methods) < 2 or all(map(math.isnan, scores)):
            continue
        metric = metric_of(next(iter(methods.values()))[0])
        metrics.add(metric)
        # Scores on other tasks are not compared.
        best = (
            math.nan
            if not shared
            else (min if metric == "mse" else max)(score for score in scores if not math.isnan(score))
        )
        for seeds, score in zip(methods.values(), scores, strict=True):
            text = "–" if math.isnan(score) else format_score(score, metric)
            first = seeds[0]
            names = escape_markdown(first["method"]), escape_markdown(first["task"])
            name = first["algorithm"]
            key = first["order"], method_sort_key(name, name), place, method_sort_key(first["method"], name)
            rows.append((key, [*names, f"**{text}**" if score == best else text, str(len(seeds))]))
            notes[names[0]] = escape_markdown(first["name_note"])
    if not rows:
        return ""
    units = " or ".join(name for metric, name in METRIC_NAMES.items() if metric in metrics)
    table = markdown_table(["method", "task", "validation", "seeds"], [row for _, row in sorted(rows)])
    explained = "".join(f"\n- {name}: {note}" for name, note in notes.items() if note)
    seeds = (
        "Means over the training seeds that all settings of a method have; without a shared seed nothing is compared. "
        "Bold: the best of a method on the same validation tasks."
    )
    parts = [f"Validation scores, by which to choose a setting ({units}):", table, seeds, explained.strip()]
    return "\n\n".join(filter(None, parts))


def _one_per_training(records: Sequence[Record]) -> list[Record]:
    """The first test of each training, but for those that had the validation classes."""
    trainings: dict[Any, Record] = {}
    for record in records:
        run = split_by_steps(record)[0]
        task = *(run[key] for key in ("dataset", "way", "shot")), run["data"]["fingerprint"]
        trainings.setdefault((run["algorithm"], run["config"], task, run["seed"]), run)
    return [run for run in trainings.values() if not run["protocol"]["train_on_val"]]


def _validation(run: Record) -> list[Any]:
    """What the validation tasks are, of a record that holds its settings."""
    settings = run.get("settings") or {}
    names = *(f"validation.{name}" for name in ("query", "episodes", "transductive")), "dataset.rotations"
    return [settings.get(name) for name in names]


def _mean(runs: Iterable[Record]) -> float:
    """The mean validation score of the selected checkpoints; NaN where one was not validated."""
    scores = [(run.get("validation") or {}).get(metric_of(run), math.nan) for run in runs]
    return sum(scores) / len(scores)
