"""The names of a table's rows and columns: long enough that no two runs that differ share one, and no longer.

Test episodes that differ make two columns; runs that differ in more than the training seed make two rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

from fewshot.core.errors import FewshotError
from fewshot.report.records import NUMBER, Record, field_of, task_name

# Simple to elaborate, LEO and its ablation as in LEO's Table 2; those that are not named here follow by alphabet.
ALGORITHMS = (
    "nearest", "nearest_mean", "maml", "fomaml", "reptile", "meta_sgd", "leo_generator", "leo_generator_finetuning",
    "leo_random_prior", "leo_deterministic", "leo_no_finetuning", "leo", "leo_regression",
)  # fmt: skip

# What makes two runs' test episodes the same, and how a name says each. The order is the columns' order.
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
SHORT_NAME, HASHES = 3, -2  # the first three always name a column; the last two only when nothing readable tells apart

# What a row's name adds when runs of one method differ in it within a column.
VARIATIONS = {
    "protocol.adaptation_steps": "{} adaptation steps",
    "protocol.selection": "selection: {}",
    "query": "trained for {} queries",
    "cost.train_tasks": "{:,} training tasks",
}
# What is left when nothing above tells two runs apart: a hash of everything that they were trained with but the seed.
CONFIGURATION = {"config": "configuration {:.8}"}

Column = tuple[Hashable, ...]


def column_of(record: Record) -> Column:
    """What the run's test episodes are: runs with equal ones may share a column."""
    return tuple(field_of(record, field) for field in COLUMN)


def words_of(column: Column) -> list[str]:
    """A column's values as a name says them, in the order of COLUMN; a regression, which has way 1, has none to say."""
    words = [format_label(form, value) for form, value in zip(COLUMN.values(), column, strict=True)]
    return ["" if word == "1-way" else word for word in words]


def column_names(records: list[Record]) -> dict[Column, str]:
    """Each column's shortest name that no other column has, in the order of the columns.

    Raises FewshotError where two names could differ only beyond the digits of a hash that a name shows.
    """
    words = {
        column: words_of(column) for column in sorted({column_of(record) for record in records}, key=natural_sort_key)
    }
    rivals: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for own in words.values():
        rivals[tuple(own[:SHORT_NAME])].append(own)

    def name(own: list[str]) -> str:
        others = [other for other in rivals[tuple(own[:SHORT_NAME])] if other is not own]
        readable = range(SHORT_NAME, len(own) + HASHES)
        differing = [i for i in readable if any(other[i] != own[i] for other in others)]
        # Other episodes have another manifest too: a hash is worth reading only where the words leave a doubt.
        for i in range(len(own) + HASHES, len(own)):
            if any(other[i] != own[i] and all(other[j] == own[j] for j in differing) for other in others):
                differing.append(i)
        return ", ".join([" ".join(filter(None, own[:SHORT_NAME])), *(own[i] for i in differing)])

    names = {column: name(own) for column, own in words.items()}
    if len(set(names.values())) < len(names):
        raise FewshotError("two test protocols differ only beyond the first 8 digits of a hash: tabulate them apart")
    return names


def method_names(records: list[Record], shown: Sequence[str] = ()) -> list[str]:
    """For each record its row's name: algorithm, backbone, setting, and whatever sets it apart from its neighbours.

    Fields that are `shown` elsewhere in the table set runs apart there.
    """
    recipes: dict[str, set[str | None]] = defaultdict(set)
    for record in records:
        recipes[record["algorithm"]].add(record["recipe"])
    names = [_plain_method(record, len(recipes[record["algorithm"]]) > 1, shown) for record in records]
    for fields in (VARIATIONS, CONFIGURATION):
        names = _set_apart(names, records, {field: form for field, form in fields.items() if field not in shown})
    return names


def _set_apart(names: list[str], records: list[Record], fields: dict[str, str]) -> list[str]:
    """The names, longer by each of the fields in which records of one name differ within a column."""
    seen: dict[tuple[str, str], set[tuple[Column, Hashable]]] = defaultdict(set)
    for name, record in zip(names, records, strict=True):
        for field in fields:
            seen[name, field].add((column_of(record), field_of(record, field)))
    # Steps or budgets may well change from column to column; only within one do they make two methods.
    varying = {key for key, pairs in seen.items() if len(pairs) > len({column for column, _ in pairs})}
    return [
        ", ".join(
            [name, *(format_label(form, field_of(record, f)) for f, form in fields.items() if (name, f) in varying)]
        )
        for name, record in zip(names, records, strict=True)
    ]


def _plain_method(record: Record, several_recipes: bool, shown: Sequence[str]) -> str:
    algorithm, protocol = record["algorithm"], record["protocol"]
    words = [f"{algorithm} ({record['backbone']})" if record["backbone"] else algorithm, protocol["setting"]]
    if several_recipes:
        words.append(f"recipe {record['recipe']}" if record["recipe"] else "no recipe")
    # Said even where no neighbour differs: either one changes what the usual reader of the column takes for granted.
    told = {key: record[key] for key in ("way", "shot") if {key, f"train.{key}"} & set(shown)}  # in a column of its own
    if task_name(record) != task_name(protocol | told):
        words.append(f"trained on {task_name(record)}")
    if protocol["train_on_val"]:
        words.append("trained on train+val")
    return ", ".join(words)


def method_place(method: str, algorithm: str) -> list[tuple[bool, float, str]]:
    """A sort key of a method's name: algorithms from simple to elaborate, numbers in the name as numbers."""
    rank = ALGORITHMS.index(algorithm) if algorithm in ALGORITHMS else len(ALGORITHMS)
    words = method.replace(",", "").split()
    return natural_sort_key([rank, *(int(word) if word.isdecimal() else word for word in words)])


def natural_sort_key(values: Iterable[Hashable]) -> list[tuple[bool, float, str]]:
    """A sort key that takes 3 before 10, and text before any number."""
    return [(True, value, "") if isinstance(value, NUMBER) else (False, 0.0, str(value)) for value in values]


def format_label(form: str, value: Hashable) -> str:
    """The form with the value in it, in the singular where the value is 1."""
    said = form.format(value)
    if value == 1:
        for many, one in (("queries", "query"), ("steps", "step"), ("episodes", "episode"), ("tasks", "task")):
            said = said.replace(many, one)
    return said
