"""The lines below a table: the test, how to read the numbers, how the runs were trained, and where figures are from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

from fewshot.report.cells import Cell
from fewshot.report.footnotes import WORDS, per_class
from fewshot.report.gather import COMMON
from fewshot.report.labels import FROM_CLASSIFIER, column_of, is_from_classifier, label_test
from fewshot.report.published import UNKNOWN
from fewshot.report.records import Record, extractor_of, format_score, metric_of

FILTERS = "backbone.network.filters"  # among the settings of a record
FEW_COLUMNS = 4  # whose tests the line below a table tells apart


def footer(cells: Sequence[Cell], shown: Sequence[str]) -> list[tuple[str, str]]:
    """Lines below the table, as (subject, text): the test, how to read the numbers, and what else must be said."""
    measured = [cell for cell in cells if cell.figure is None]
    lines = []
    if measured:
        lines = [("test", _test_line(measured)), ("reading", _reading_line(measured, shown))]
        compared = {cell.column for cell in measured if cell.p is not None}
        if unreadable := [cell for cell in measured if cell.unreadable and cell.column in compared]:
            names = sorted({"{method} on {task}".format(**cell.runs[0]) for cell in unreadable})
            lines.append(("not compared", f"{'; '.join(names)}: no usable scores of the episodes"))
    figures = [cell.figure for cell in cells if cell.figure is not None]
    return [*lines, ("published", _published_line(figures))] if figures else lines


def _test_line(cells: Sequence[Cell]) -> str:
    """How the scores were measured: what all columns share once, and what they do not with its columns."""
    runs = [cell.runs[0] for cell in cells if cell.reference]
    firsts = {column_of(run): run for run in reversed(runs)}
    tests = [(run["task"], label_test(run), run) for run in firsts.values()]
    tests.sort(key=lambda test: test[2]["order"])
    names = list(dict.fromkeys(run["protocol"].get("name", "own") for run in runs))
    parts = [f"protocol {' and '.join(names)}"]
    if len(runs) < len(cells):
        parts[0] += " unless a footnote says otherwise"
    for i in (2, 0, 3, 1, 4, *range(5, len(tests[0][1]))):
        tasks: dict[str, list[str]] = defaultdict(list)
        for task, labels, run in tests:
            label = labels[i] + (per_class(run) if i == 1 else "")
            tasks[WORDS.get(label, label) if i > 4 else label].append(task)
        if len(tasks) == 1:
            parts += tasks
        elif not all(labels[i] in task for task, labels, _ in tests):  # else the columns' names say it
            few = len(tests) <= FEW_COLUMNS
            labels = [f"{label} ({'; '.join(held)})" if few else label for label, held in tasks.items() if label]
            parts.append((" and " if few else " or ").join(labels))
    if names == [COMMON] and metric_of(runs[0]) == "accuracy":
        parts.append("adaptation steps as each learner sets them")
    manifests = ", ".join(dict.fromkeys(f"{run['protocol']['manifest']:.8}" for _, _, run in tests))
    data = ", ".join(dict.fromkeys(f"{run['data']['fingerprint']:.8}" for _, _, run in tests))
    return f"{', '.join(filter(None, parts))}; manifests {manifests}; data {data}"


def _reading_line(cells: Sequence[Cell], shown: Sequence[str]) -> str:
    """What ± and bold mean, and how the runs were trained."""
    runs = [run for cell in cells for run in cell.runs]
    several_seeds = any(len(cell.runs) > 1 for cell in cells)
    parts = [f"± is the 95 % interval (Student t) over test episodes{_over_seeds(cells)}"]
    if compared := {cell.column for cell in cells if cell.p is not None}:
        others = any(not cell.reference for cell in cells)
        tested_so = " among the cells that were tested as above" if others else ""
        averaged = ", seeds averaged" if several_seeds else ""
        tests = {(cell.column, column_of(cell.runs[0])) for cell in cells if cell.reference and cell.column in compared}
        if len(tests) > len(compared):  # rows name tests too
            tested_so = " among rows of the same test episodes"
        both = len({run["protocol"]["setting"] for run in runs}) > 1
        counts = "; a method without batch norms counts in both" if both else ""
        if len({run["protocol"]["train_on_val"] for run in runs}) > 1:
            counts += "; trainings on the validation classes by themselves"
        parts.append(
            f"bold: {'of each setting ' * both}the best in a column{tested_so} and what cannot be told from it at 5 % "
            f"(paired t test over the episodes{averaged}, Holm's correction over all pairs that are compared; of these "
            f"trainings, not of other seeds{counts})"
        )
    if any(cell.r2() is not None for cell in cells):
        parts.append("R2 is 1 - error / variance of the queries around their task's mean")
    seeds = sorted({run["seed"] for run in runs})
    training = [f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"]
    if "backbone" not in shown:
        training.append(_networks(runs))
    training.append(_filters(runs))
    training.append(_without_recipe(runs))
    training += dict.fromkeys(filter(None, map(_pretrained, runs)))
    training.append(_checkpoints(runs))
    training.append(_validation_setting(runs))
    on_val = sorted({run["method"] for run in runs if run["protocol"]["train_on_val"]})
    training += [f"validation classes trained on by {'; '.join(on_val)}"] if on_val else []
    return "; ".join([*parts, f"training: {'; '.join(filter(None, training))}", f"code {_code_versions(runs)}"])


def _checkpoints(runs: Sequence[Record]) -> str:
    """How most checkpoints were chosen, and the methods of others."""
    trained = [run for run in runs if run["cost"]["train_tasks"]]
    names = _name_by_value([(str(run["protocol"]["selection"]), run) for run in trained])
    if not names:
        return ""
    first, *others = sorted(names, key=lambda value: -len(names[value]))
    return " or ".join([f"checkpoint: {first}", *(f"{value} ({', '.join(names[value])})" for value in others)])


def _validation_setting(runs: Sequence[Record]) -> str:
    """In which setting the validation chose checkpoints where queries share norms; empty where no record says so."""
    chosen = [run for run in runs if str(run["protocol"]["selection"]).startswith("best")]
    settings = [(run.get("settings") or {}, run) for run in chosen if not run.get("queries_independent", True)]
    key = "validation.transductive"
    names = _name_by_value([(own[key], run) for own, run in settings if key in own])
    if not names:
        return ""
    inductive = f"inductive ({', '.join(names[False])})" if len(names) > 1 else "inductive"
    parts = ["transductive"] * (True in names) + [inductive] * (False in names)
    return f"that validation: {' or '.join(parts)} for methods with batch norms"


def _over_seeds(cells: Sequence[Cell]) -> str:
    """What ± is of cells of several training seeds, with the least and most of both intervals; empty without such."""
    several = [cell for cell in cells if len(cell.runs) > 1]
    if not several:
        return ""
    ranges = []
    for halves in ([cell.over_episodes() for cell in several], [cell.over_seeds() for cell in several]):
        metrics = {half: cell.metric for half, cell in zip(halves, several, strict=True) if half is not None}
        ends = [format_score(half, metrics[half]) for half in (min(metrics), max(metrics))] if metrics else ["n/a"]
        ranges.append(" to ".join(dict.fromkeys(ends)))
    text = "; of several seeds the wider of two, the mean of their intervals ({}) and the interval over the seeds ({})"
    return text.format(*ranges)


def _networks(runs: Sequence[Record]) -> str:
    """The network of most runs, and the others with their algorithms."""
    algorithms: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        if run["backbone"]:
            algorithms[run["backbone"]].append(run["algorithm"])
    first, *others = sorted(algorithms, key=lambda backbone: -len(algorithms[backbone])) or [""]
    parts = [first, *(f"{other} ({', '.join(dict.fromkeys(algorithms[other]))})" for other in others)]
    return f"network: {', '.join(parts)}" if first else ""


def _filters(runs: Sequence[Record]) -> str:
    """The filters of a layer of the networks, with their methods; empty where all have as many."""
    numbered = [(str(own), run) for run in runs if (own := (run.get("settings") or {}).get(FILTERS)) is not None]
    parts = [f"{filters} ({', '.join(names)})" for filters, names in _name_by_value(numbered).items()]
    return f"filters of a layer: {', '.join(parts)}" if len(parts) > 1 else ""


def _without_recipe(runs: Sequence[Record]) -> str:
    """The methods that were trained without a recipe."""
    names = _name_by_value([(run["recipe"] is None, run) for run in runs if run["cost"]["train_tasks"]])
    if True not in names:
        return ""
    return f"without a recipe: {', '.join(names[True])}" if len(names) > 1 else "without a recipe"


def _name_by_value(pairs: Sequence[tuple[Hashable, Record]]) -> dict[Hashable, list[str]]:
    """Names for the runs of each value: the algorithm, the row, or row and task, the first that no other value has."""
    names: dict[Hashable, dict[str, None]] = defaultdict(dict)
    for value, run in pairs:
        other_labels = [_labels(other) for other_value, other in pairs if other_value != value]
        labels = _labels(run)
        name = next(
            (name for place, name in enumerate(labels) if all(name != each[place] for each in other_labels)), labels[-1]
        )
        names[value][name] = None
    return {value: list(own) for value, own in names.items()}


def _labels(run: Record) -> tuple[str, str, str]:
    row = run["method"].replace(", ", " ")
    return run["algorithm"], row, f"{row} on {run['task']}"


def _pretrained(run: Record) -> str:
    """How a run's network or extractor was trained before, and how that takes images; empty if neither was."""
    extractor, parts = extractor_of(run), []
    if is_from_classifier(run):
        parts.append(f"{FROM_CLASSIFIER}: the network was first trained to classify the training classes")
    for weights in filter(None, (extractor.get("weights"), run.get("weights"))):
        parts.append(f"{weights['file']} ({weights['sha256']:.8}): pretrained weights, which may know test classes")
    if view := extractor.get("preprocessing"):
        crop = f"cropped to {view['crop']} pixels, " if view["crop"] else ""
        mean, std = (" ".join(map(str, view[key])) for key in ("mean", "std"))
        parts[0] += f"; images {crop}resized to {view['size']} pixels, mean {mean}, std {std}"
    return "; ".join(parts)


def _code_versions(runs: Sequence[Record]) -> str:
    """The versions that tested the runs and, where a record has them, those that trained them and their extractors."""
    commits: dict[str, dict[str, None]] = defaultdict(dict)
    of_runs = [run["code"] for run in runs]
    of_extractors = [code for run in runs if (code := extractor_of(run).get("code"))]
    for code in (each for own in (*of_runs, *of_extractors) for each in (own, *own.get("training", ()))):
        dirty = " with uncommitted changes" if code["dirty"] else ""
        commits[code["version"]][f"{(code['commit'] or '')[:7] or 'unknown commit'}{dirty}"] = None
    named = {version: "of a version not recorded" if version == "absent" else version for version in commits}
    return ", ".join(f"{named[version]} ({', '.join(sorted(own))})" for version, own in commits.items())


def _published_line(figures: Sequence[dict[str, Any]]) -> str:
    """Where published figures are from, and what holds for many of them."""
    sources: dict[str, dict[str, None]] = {}
    for figure in figures:
        rest = f"{figure['source']}, {figure['version']}".removeprefix(f"{figure['short']}, ")
        sources.setdefault(figure["short"], {})[rest] = None
    parts = ["; ".join(f"{short} ({'; '.join(places)})" for short, places in sources.items())]
    stated = sorted({figure["short"] for figure in figures if figure["interval_kind"] == "95 % over tasks"})
    if any(figure["interval"] is not None for figure in figures):
        parts.append(f"± is 95 % over test episodes in {', '.join(stated)}" if stated else "")
        unstated = any(figure["interval_kind"] == UNKNOWN for figure in figures)
        parts.append(f"the {'other ' if stated else ''}sources do not say what ± means" if unstated else "")
    if any("protocol_from_code" in figure["caveats"] for figure in figures):
        parts.append("queries and test episodes are partly from released code and appendices")
    return ". ".join(part[0].upper() + part[1:] if i else part for i, part in enumerate(filter(None, parts)))
