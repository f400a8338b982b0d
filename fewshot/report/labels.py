"""The names of a table's rows and columns: long enough to tell different runs apart, and no longer.

Runs with different test episodes stand in two columns, runs that differ in more than the seed in two rows. A name holds
words that a person reads. Where words do not set two runs apart, numbers do, and a footnote says what each stands for.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from fewshot.report.records import NUMBER, Record, field_of, metric_of, protocol_name, task_name

# The order of algorithms in tables, from simple to elaborate, LEO and its ablation as in LEO's Table 2; others follow
# by alphabet. Colour and marker are for plots: colours that colour-blind readers can tell apart (Okabe and Ito 2008),
# and reds and purples for LEO's ablation.
ALGORITHMS = {
    "nearest": ("#999999", "X"), "nearest_mean": ("#555555", "P"), "maml": ("#0072B2", "o"), "fomaml": ("#56B4E9", "s"),
    "reptile": ("#009E73", "^"), "meta_sgd": ("#E69F00", "D"), "leo_generator": ("#CC79A7", "v"),
    "leo_generator_finetuning": ("#882255", "<"), "leo_random_prior": ("#AA4499", ">"),
    "leo_deterministic": ("#6A3D9A", "h"), "leo_no_finetuning": ("#8C564B", "p"), "leo": ("#D55E00", "*"),
    "leo_regression": ("#D55E00", "d"),  # never in a plot with leo
}  # fmt: skip

SETTINGS = {"inductive": "ind.", "transductive": "trans."}
SETTING = "protocol.setting"
STEPS = "protocol.adaptation_steps"

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
    "protocol.manifest": "",  # hashes: never in a name
    "data.fingerprint": "",
}
TASK, PARTS = (
    slice(0, 3),
    slice(3, 9),
)  # what is in every name; what is in a name where columns of one task differ in it
# What the data's reader says of the images, in a name where columns of one task differ in it.
DATA = {"split": "split {}", "resample": "resample {}", "size": "{} pixels"}

# How a name writes in what runs of one method differ, beside their settings.
VARIATIONS = {
    STEPS: "{} test steps",
    "recipe": "recipe {}",
    "protocol.selection": "selection: {}",
    "cost.train_tasks": "{:,} training tasks",
}
AS_SHOTS = "as many queries as shots"
OLDER = "an older record, which does not hold its settings: configuration "  # with the start of its hash
GIVEN = re.compile(r"(?<= )((?:algorithm|backbone|train)\.[\w.]+)=(\S+)")  # settings in a command
MOST_KEYS = 3  # in a name; runs that differ in more settings have numbers

Column = tuple[Hashable, ...]  # the values of COLUMN


def column_of(record: Record) -> Column:
    """The fields that define the record's test episodes; records with equal ones may share a column."""
    return tuple(field_of(record, field) for field in COLUMN)


def about_images(record: Record) -> dict[str, Any]:
    """What the data's reader says of its images, or of the images behind its features."""
    about = record["data"].get("about", {})
    return about.get("images", about)


def test_labels(record: Record) -> tuple[str, ...]:
    """What defines the record's test episodes beside the task, as text, in the order of COLUMN and DATA."""
    values = [(form, field_of(record, field)) for field, form in list(COLUMN.items())[PARTS]]
    parts = ["" if value is None else format_label(form, value) for form, value in values]
    about = about_images(record)
    parts += [form.format(about[key]) if key in about else "" for key, form in DATA.items()]
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

    Columns that no words set apart have numbers.

    Args:
        with_dataset: whether the dataset is in the names; by default where there are several.
    """
    firsts = {column_of(record): record for record in reversed(records)}
    columns = sorted(firsts, key=natural_sort_key)
    if with_dataset is None:
        with_dataset = len({column[0] for column in columns}) > 1
    tasks = {column: short_task(firsts[column]["protocol"], with_dataset) for column in columns}
    parts = {column: test_labels(firsts[column]) for column in columns}
    names = {}
    for column in columns:
        rivals = [parts[other] for other in columns if tasks[other] == tasks[column]]
        differing = [part for i, part in enumerate(parts[column]) if any(other[i] != part for other in rivals)]
        names[column] = ", ".join([tasks[column], *filter(None, differing)])
    twins = [name for name in names.values() if list(names.values()).count(name) > 1]
    counts: dict[str, int] = defaultdict(int)
    for column, name in names.items():
        if name in twins:
            counts[name] += 1
            names[column] = f"{name} ({counts[name]})"
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
        suffixes, numbered = _tell_apart([records[i] for i in measured], shown)
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
    return "" if metric_of(record) == "mse" else SETTINGS.get(record["protocol"]["setting"], "")


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
    return ", ".join(parts)


def _tell_apart(records: list[Record], shown: Sequence[str]) -> tuple[list[str], list[str]]:
    """For each record of one base name what its name adds, and what a number in that stands for."""
    traits = [_traits(record, shown) for record in records]
    contexts = [_context(record) for record in records]
    varying = _varying(traits, contexts)
    steps = [key for key in varying if key == STEPS]  # a test with several numbers of steps has a row for each
    others = [key for key in varying if key != STEPS]
    words = [key for key in others if key != "config"]
    recipe = [key for key in words if key == "recipe"]
    choices = (recipe, [key for key in words if key != "recipe"], [key for key in words if key in VARIATIONS])
    fitting = (keys for keys in choices if len(keys) <= MOST_KEYS and _separates(traits, contexts, keys, others))
    chosen = next(fitting, None)
    if others and _separates(traits, contexts, others if chosen is None else chosen, steps):
        steps = []
    if chosen is not None:
        return [_suffix("", own, [*chosen, *steps]) for own in traits], [""] * len(traits)
    held = [(own, context) for own, context in zip(traits, contexts, strict=True) if "config" not in own]
    settings = [key for key in _varying(*zip(*held, strict=True)) if key not in VARIATIONS] if held else []
    # Without their settings runs of several tasks cannot be matched: each task counts its own.
    numbers: dict[Hashable, dict[Hashable, int]] = defaultdict(dict)
    suffixes: list[str] = []
    notes: list[str] = []
    for own, context in zip(traits, contexts, strict=True):
        counted = numbers[context if "config" in own else None]
        number = counted.setdefault(tuple(own.get(key) for key in others), len(counted) + 1)
        suffixes.append(_suffix(f" ({number})", own, steps))
        note = ", ".join(_trait_label(key, own.get(key), settings) for key in settings)
        if "config" in own:
            note = f"{OLDER}{own['config']:.8}"
        notes.append(note)
    return suffixes, notes


def _suffix(number: str, traits: dict[str, Any], keys: list[str]) -> str:
    return ", ".join([number, *(_trait_label(key, traits[key], keys) for key in keys if key in traits)])


def _traits(record: Record, shown: Sequence[str]) -> dict[str, Any]:
    """Everything but the task and the seed that makes two methods of two runs."""
    traits = {STEPS: field_of(record, STEPS), **(record.get("settings") or {}), "recipe": record["recipe"]}
    if not record.get("settings"):  # an older record, with the settings that its command gives
        traits |= {field: field_of(record, field) for field in ("protocol.selection", "cost.train_tasks", "config")}
        traits |= {key: value for key, value in GIVEN.findall(record.get("command") or "") if "," not in value}
    return {key: str(value) if isinstance(value, list) else value for key, value in traits.items() if key not in shown}


def _context(record: Record) -> Hashable:
    """The task, setting and protocol of a test: within one, two runs with other traits are two methods."""
    tested = [record["protocol"][key] for key in ("dataset", "way", "shot", "view", "setting")]
    return (*tested, record["data"]["fingerprint"], protocol_name(record))


def _varying(traits: Sequence[dict[str, Any]], contexts: Sequence[Hashable]) -> list[str]:
    """The keys in which runs of one context differ; steps or budgets may change from task to task."""
    values: dict[tuple[str, Hashable], set[Hashable]] = defaultdict(set)
    keys = dict.fromkeys(key for own in traits for key in own)
    for own, context in zip(traits, contexts, strict=True):
        for key in keys:
            values[key, context].add(own.get(key))
    return [key for key in keys if any(len(values[key, context]) > 1 for context in set(contexts))]


def _separates(traits: list[dict[str, Any]], contexts: list[Hashable], chosen: list[str], others: list[str]) -> bool:
    """Whether runs of one context with equal values of the chosen keys are equal in all others."""
    found: dict[Hashable, set[Hashable]] = defaultdict(set)
    for own, context in zip(traits, contexts, strict=True):
        found[context, *(own.get(key) for key in chosen)].add(tuple(own.get(key) for key in others))
    return all(len(values) == 1 for values in found.values())


def _trait_label(key: str, value: Hashable, keys: list[str]) -> str:
    """`inner_lr=0.1`: the last part of the dotted key, or all of it where another key ends alike."""
    if key == "recipe":
        return f"recipe {value}" if value else "no recipe"
    if key in VARIATIONS:
        return format_label(VARIATIONS[key], value)
    last = key.rpartition(".")[2]
    name = key if sum(other.rpartition(".")[2] == last for other in keys) > 1 else last
    return f"{name}={str(value).lower() if isinstance(value, bool) or value is None else value}"


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


def format_label(form: str, value: Hashable) -> str:
    """The form with the value in it, in the singular where the value is 1."""
    label = form.format(value)
    if value == 1:
        for plural, singular in (("queries", "query"), ("steps", "step"), ("episodes", "episode"), ("tasks", "task")):
            label = label.replace(plural, singular)
    return label
