"""The names of a table's rows and columns: long enough to tell different runs apart, and no longer.

Runs with different test episodes stand in two columns, runs that differ in more than the seed in two rows. A name holds
words that a person reads. Where words do not set two runs apart, numbers do, and a footnote says what each stands for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from fewshot.report.records import NUMBER, Record, field_of, metric_of, task_name
from fewshot.report.traits import STEPS, VARIATIONS, format_label, tell_apart

# The order of algorithms in tables, from simple to elaborate, LEO and its ablation as in LEO's Table 2; others follow
# by alphabet. Colour and marker are for plots: colours that colour-blind readers can tell apart (Okabe and Ito 2008;
# Tol 2021), and reds and purples for LEO's ablation.
ALGORITHMS = {
    "nearest": ("#999999", "X"), "nearest_mean": ("#555555", "P"), "simple_shot": ("#BBBBBB", "D"),
    "baseline": ("#888800", "v"), "baseline_plus_plus": ("#CCBB44", "^"), "matching_net": ("#66CCEE", "p"),
    "protonet": ("#228833", "o"), "r2d2": ("#AA3377", "s"), "maml": ("#0072B2", "o"), "fomaml": ("#56B4E9", "s"),
    "anil": ("#332288", "v"), "boil": ("#88CCEE", "<"), "maml_plus_plus": ("#004488", "P"),
    "reptile": ("#009E73", "^"), "meta_sgd": ("#E69F00", "D"), "leo_generator": ("#CC79A7", "v"),
    "leo_generator_finetuning": ("#882255", "<"), "leo_random_prior": ("#AA4499", ">"),
    "leo_deterministic": ("#6A3D9A", "h"), "leo_no_finetuning": ("#8C564B", "p"), "leo": ("#D55E00", "*"),
    "leo_regression": ("#D55E00", "d"),  # never in a plot with leo
}  # fmt: skip

SHORT_SETTINGS = {"inductive": "ind.", "transductive": "trans."}
SETTING = "protocol.setting"

# The fields that define the test episodes, and how a name writes each. Columns are sorted by them in this order.
COLUMN = {
    "protocol.dataset": "{}",
    "protocol.way": "{}-way",
    "protocol.shot": "{}-shot",
    "protocol.split": "{} split",
    "protocol.query": "{} queries",
    "protocol.episodes": "{:,} episodes",
    "protocol.episode_seed": "episode seed {}",
    "protocol.rotations": "rotations {}",
    "protocol.view": "{}",
    "protocol.manifest": "",  # hashes: in a name only where no word tells two columns apart
    "data.fingerprint": "",
}
PARTS = slice(3, 9)  # of COLUMN, in a name where columns of one task differ in it
# What the data's reader says of the images, in a name where columns of one task differ in it.
DATA = {"split": "split {}", "resample": "resample {}", "size": "{} pixels", "classes": "{} classes as in training"}

AS_SHOTS = "as many queries as shots"
FROM_CLASSIFIER = "from a classifier"  # of a run with features.role=start

Column = tuple[Hashable, ...]  # the values of COLUMN


def column_of(record: Record) -> Column:
    """The fields that define the record's test episodes; records with equal ones may share a column."""
    return tuple(field_of(record, field) for field in COLUMN)


def about_images(record: Record) -> dict[str, Any]:
    """What the data's reader says of its images, or of the images behind its features."""
    about = record["data"].get("about", {})
    return about.get("images", about)


def label_test(record: Record) -> tuple[str, ...]:
    """What defines the record's test episodes beside the task, as text, in the order of COLUMN and DATA."""
    values = [(form, field_of(record, field)) for field, form in list(COLUMN.items())[PARTS]]
    parts = ["" if value is None else format_label(form, value) for form, value in values]
    about = about_images(record)
    # A person's own reader may call another thing so.
    known = {key for key in DATA if key in about and (key != "classes" or about[key] == "same")}
    parts += [form.format(about[key]) if key in known else "" for key, form in DATA.items()]
    words = {"rotations none": "unrotated", "rotations per_class": "rotated"}
    if metric_of(record) == "mse":  # functions are not rotated
        words["rotations none"] = ""
        if record["protocol"]["query"] == record["protocol"]["shot"]:
            words[parts[1]] = AS_SHOTS
    return tuple(words.get(part, part) for part in parts)


def short_task(task: Record, with_dataset: bool) -> str:
    """`5-way 1-shot`, with the dataset before it where a table has several."""
    return task_name(task) if with_dataset else task_name(task).removeprefix(f"{task['dataset']} ")


def column_names(records: Sequence[Record], with_dataset: bool | None = None) -> dict[Column, str]:
    """The shortest name of each column that no other column has; the columns are sorted.

    Columns that no words set apart have the start of the hash of their data or of their episodes.

    Args:
        with_dataset: whether the dataset is in the names; by default where there are several.
    """
    firsts = {column_of(record): record for record in reversed(records)}
    columns = sorted(firsts, key=natural_sort_key)
    if with_dataset is None:
        with_dataset = len({column[0] for column in columns}) > 1
    tasks = {column: short_task(firsts[column]["protocol"], with_dataset) for column in columns}
    parts = {column: label_test(firsts[column]) for column in columns}
    names = {}
    for column in columns:
        rivals = [parts[other] for other in columns if tasks[other] == tasks[column]]
        differing = [part for i, part in enumerate(parts[column]) if any(other[i] != part for other in rivals)]
        names[column] = ", ".join([tasks[column], *filter(None, differing)])
    twins: dict[str, list[Any]] = defaultdict(list)
    for column, name in names.items():
        twins[name].append(column)
    for name, alike in twins.items():
        if len(alike) == 1:
            continue
        hashes = [(firsts[c]["data"]["fingerprint"], firsts[c]["protocol"]["manifest"]) for c in alike]
        forms = ("data {0:.8}", "manifest {1:.8}", "data {0:.8}, manifest {1:.8}")
        form = next((form for form in forms if len({form.format(*each) for each in hashes}) == len(alike)), forms[-1])
        for column, each in zip(alike, hashes, strict=True):
            names[column] = f"{name} ({form.format(*each)})"
    return names


def method_names(records: Sequence[Record], shown: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """The row name of each record: the algorithm, and in words what sets runs of one algorithm apart.

    Runs that differ in the recipe, or in at most three settings, have these in their names. Others have numbers, as in
    `maml (2)`.

    Args:
        records: runs and published figures.
        shown: fields that the table shows elsewhere, such as `protocol.setting` or `backbone`; names leave them out.

    Returns:
        The names, and what the number in each stands for; empty for a name without one.
    """
    backbones: dict[str, set[str]] = defaultdict(set)
    for record in records:
        backbones[record["algorithm"]] |= {record["backbone"]} - {None}
    groups: dict[str, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        groups[_base_name(record, len(backbones[record["algorithm"]]) > 1, shown)].append(i)
    names, notes = [""] * len(records), [""] * len(records)
    for base, places in groups.items():
        measured = [i for i in places if "published" not in records[i]]
        suffixes, numbered = tell_apart([records[i] for i in measured], shown)
        for i in places:
            names[i] = _place_setting(base, records[i], shown)
        for i, suffix, note in zip(measured, suffixes, numbered, strict=True):
            names[i], notes[i] = _place_setting(base + suffix, records[i], shown), note
    return names, notes


def _place_setting(name: str, record: Record, shown: Sequence[str]) -> str:
    setting = setting_label(record)
    return name if SETTING in shown or "setting" in shown or not setting else f"{name}, {setting}"


def setting_label(record: Record) -> str:
    """`ind.` or `trans.`; empty for a regression and where a source does not state it."""
    return "" if metric_of(record) == "mse" else SHORT_SETTINGS.get(record["protocol"]["setting"], "")


def _base_name(record: Record, several_backbones: bool, shown: Sequence[str]) -> str:
    parts = [record["algorithm"]]
    if several_backbones and record["backbone"] and "backbone" not in shown:
        parts[0] += f" ({record['backbone']})"
    if "published" in record:
        if metric_of(record) == "mse" and STEPS not in shown:  # errors are published after several numbers of steps
            parts.append(format_label(VARIATIONS[STEPS], record["protocol"]["adaptation_steps"]))
        return ", ".join(parts)
    # A training on another task, or on validation classes, is always named: a reader does not expect it.
    protocol = record["protocol"]
    shown_task = {key: record[key] for key in ("way", "shot") if {key, f"train.{key}"} & set(shown)}
    own, tested = task_name(record), task_name(protocol | shown_task)
    if own != tested:
        parts.append(f"trained on {short_task(record, record['dataset'] != protocol['dataset'])}")
    train_way = record["train"].get("way", record["way"])
    if train_way != record["way"] and "train.way" not in shown:
        parts.append(f"trained {train_way}-way")
    if protocol["train_on_val"]:
        parts.append("trained on train+val")
    if is_from_classifier(record):
        parts.insert(1, FROM_CLASSIFIER)
    return ", ".join(parts)


def is_from_classifier(record: Record) -> bool:
    """Whether a run's network was first a classifier of the training classes."""
    return (record.get("settings") or {}).get("features.role") == "start"


def method_sort_key(method: str, algorithm: str) -> list[tuple[bool, float, str]]:
    """A sort key of a method's name: algorithms in the order of ALGORITHMS, numbers in the name as numbers."""
    rank = [*ALGORITHMS, algorithm].index(algorithm)
    words = method.replace(",", "").replace("=", " ").split()
    return natural_sort_key([rank, *(float(word) if _is_number(word) else word for word in words)])


def _is_number(word: str) -> bool:
    try:
        return float(word) == float(word)
    except ValueError:
        return False


def natural_sort_key(values: Iterable[Hashable]) -> list[tuple[bool, float, str]]:
    """A sort key that puts 3 before 10, and text before any number."""
    return [(True, value, "") if isinstance(value, NUMBER) else (False, 0.0, str(value)) for value in values]
