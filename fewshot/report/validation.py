"""The validation scores of one method's settings, by which a person chooses one before looking at test scores."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence

from fewshot.report.formats import escape_markdown, markdown_table
from fewshot.report.gather import label_rows, split_by_steps
from fewshot.report.labels import method_sort_key, natural_sort_key
from fewshot.report.records import Record, format_score, metric_of, task_name

UNITS = {"accuracy": "accuracy in per cent", "mse": "mean squared error"}


def render_validation(records: Sequence[Record]) -> str:
    """A Markdown table of the methods that were trained by several settings on one task; empty if there is none.

    A score is the mean over training seeds. The best of a method on a task is bold.
    """
    groups: dict[tuple[str, str], dict[str, dict[int, Record]]] = defaultdict(lambda: defaultdict(dict))
    for run in label_rows([split_by_steps(record)[0] for record in records], [], ["setting"]):
        groups[task_name(run), run["algorithm"]][run["method"]].setdefault(run["seed"], run)  # one of a run's tests
    rows, metrics = [], set()
    for (task, algorithm), methods in sorted(groups.items(), key=lambda group: natural_sort_key(group[0])):
        scores = {method: _mean(runs.values()) for method, runs in methods.items()}
        trained = {run["config"] for runs in methods.values() for run in runs.values()}
        if min(len(methods), len(trained)) < 2 or all(map(math.isnan, scores.values())):
            continue
        metric = metric_of(next(iter(next(iter(methods.values())).values())))
        metrics.add(metric)
        best = (min if metric == "mse" else max)(score for score in scores.values() if not math.isnan(score))
        for method in sorted(methods, key=lambda method: method_sort_key(method, algorithm)):
            score = scores[method]
            text = "–" if math.isnan(score) else format_score(score, metric)
            text = f"**{text}**" if score == best else text
            rows.append([escape_markdown(method), escape_markdown(task), text, str(len(methods[method]))])
    if not rows:
        return ""
    units = " or ".join(unit for metric, unit in UNITS.items() if metric in metrics)
    headings = ["method", "task", "validation", "seeds"]
    return f"Validation scores, by which to choose a setting ({units}):\n\n{markdown_table(headings, rows)}"


def _mean(runs: Collection[Record]) -> float:
    """The mean validation score of the selected checkpoints; NaN where one was not validated."""
    scores = [(run.get("validation") or {}).get(metric_of(run), math.nan) for run in runs]
    return sum(scores) / len(scores)
