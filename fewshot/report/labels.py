"""The names of a table's rows and columns: long enough to tell different runs apart, and no longer.

Runs with different test episodes stand in two columns. Runs that differ in more than the seed stand in two rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

from fewshot.core.errors import FewshotError
from fewshot.report.records import NUMBER, Record, field_of, task_name

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
    "protocol.manifest": "manifest {:.8}",
    "data.fingerprint": "data {:.8}",
}
SHORT_NAME, HASHES = 3, -2  # the first three are in every name; the last two only where no other label differs

# What a row's name adds where runs of one method differ in it within a column.
VARIATIONS = {
    "protocol.adaptation_steps": "{} adaptation steps",
    "protocol.selection": "selection: {}",
    "cost.train_tasks": "{:,} training tasks",
}
# The last resort: the hash of all training settings but the seed.
CONFIGURATION = {"config": "configuration {:.8}"}

Column = tuple[Hashable, ...]  # the values of COLUMN


def column_of(record: Record) -> Column:
    """The fields that define the record's test episodes; records with equal ones may share a column."""
    return tuple(field_of(record, field) for field in COLUMN)


def column_labels(column: Column) -> list[str]:
    """The column's values as text, in the order of COLUMN; the way of a regression, which is 1, is empty."""
    labels = [format_label(form, value) for form, value in zip(COLUMN.values(), column, strict=True)]
    return ["" if label == "1-way" else label for label in labels]


def column_names(records: list[Record]) -> dict[Column, str]:
    """The shortest name of each column that no other column has; the columns are sorted.

    Raises:
        FewshotError: two names differ only after the digits of a hash that a name shows.
    """
    columns = sorted({column_of(record) for record in records}, key=natural_sort_key)
    labels = {column: column_labels(column) for column in columns}
    names = {}
    for column, own in labels.items():
        rivals = [other for other in labels.values() if other is not own and other[:SHORT_NAME] == own[:SHORT_NAME]]
        hashes = range(len(own) + HASHES, len(own))
        differing = [i for i in range(SHORT_NAME, hashes.start) if any(other[i] != own[i] for other in rivals)]
        # Other episodes have another manifest too: a hash is shown only against a rival with the same labels.
        for i in hashes:
            if any(other[i] != own[i] and all(other[j] == own[j] for j in differing) for other in rivals):
                differing.append(i)
        names[column] = ", ".join([" ".join(filter(None, own[:SHORT_NAME])), *(own[i] for i in differing)])
    if len(set(names.values())) < len(names):
        raise FewshotError("two test protocols differ only beyond the first 8 digits of a hash: tabulate them apart")
    return names


def method_names(records: list[Record], shown: Sequence[str] = ()) -> list[str]:
    """The row name of each record: algorithm, backbone, setting, and what tells it apart from others in its column.

    Args:
        shown: fields that the table shows elsewhere; names leave them out.
    """
    recipes: dict[str, set[str | None]] = defaultdict(set)
    for record in records:
        recipes[record["algorithm"]].add(record["recipe"])
    names = [_short_name(record, len(recipes[record["algorithm"]]) > 1, shown) for record in records]
    for fields in (VARIATIONS, CONFIGURATION):
        names = _tell_apart(names, records, {field: form for field, form in fields.items() if field not in shown})
    return names


def _tell_apart(names: list[str], records: list[Record], fields: dict[str, str]) -> list[str]:
    """Extend names by each field in which records of the same name differ within a column."""
    values: dict[tuple[str, str], set[tuple[Column, Hashable]]] = defaultdict(set)
    for name, record in zip(names, records, strict=True):
        for field in fields:
            values[name, field].add((column_of(record), field_of(record, field)))
    # Steps or budgets may change from column to column; only within one do they make two methods.
    varying = {key for key, pairs in values.items() if len(pairs) > len({column for column, _ in pairs})}
    extended = []
    for name, record in zip(names, records, strict=True):
        labels = [format_label(form, field_of(record, f)) for f, form in fields.items() if (name, f) in varying]
        extended.append(", ".join([name, *labels]))
    return extended


def _short_name(record: Record, several_recipes: bool, shown: Sequence[str]) -> str:
    algorithm, protocol = record["algorithm"], record["protocol"]
    parts = [f"{algorithm} ({record['backbone']})" if record["backbone"] else algorithm, protocol["setting"]]
    if several_recipes:
        parts.append(f"recipe {record['recipe']}" if record["recipe"] else "no recipe")
    # A training on another task, or on validation classes, is always named: a reader does not expect it.
    shown_task = {key: record[key] for key in ("way", "shot") if {key, f"train.{key}"} & set(shown)}
    if task_name(record) != task_name(protocol | shown_task):
        parts.append(f"trained on {task_name(record)}")
    if protocol["train_on_val"]:
        parts.append("trained on train+val")
    return ", ".join(parts)


def method_sort_key(method: str, algorithm: str) -> list[tuple[bool, float, str]]:
    """A sort key of a method's name: algorithms in the order of ALGORITHMS, numbers in the name as numbers."""
    rank = [*ALGORITHMS, algorithm].index(algorithm)
    words = method.replace(",", "").split()
    return natural_sort_key([rank, *(int(word) if word.isdecimal() else word for word in words)])


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
