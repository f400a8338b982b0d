"""Records to one comparison table: a row per method, a column per test protocol, a footer that says what was measured.

Two rules keep it honest. Accuracies share a column only where every test episode was the same, and they are averaged
only over training seeds of runs that differ in nothing else the record knows.
"""

import math
from collections.abc import Hashable, Iterable

import pandas as pd
from scipy import stats

from fewshot.errors import FewshotError
from fewshot.report.record import NUMBER, Record, field_of

# Simple to elaborate, the last seven as in LEO's Table 2; algorithms that are not named here follow by alphabet.
ALGORITHMS = (
    "nearest", "nearest_mean", "maml", "fomaml", "reptile", "meta_sgd", "leo_generator", "leo_generator_finetuning",
    "leo_random_prior", "leo_deterministic", "leo_no_finetuning", "leo",
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


def comparison(records: list[Record]) -> pd.DataFrame:
    """Text cells such as "95.43 ± 0.41", in per cent; index: methods; columns: tasks; "–" where nothing was measured.

    Raises FewshotError where two records are the same method, task and seed: an average would hide one of them.
    """
    cells = _cells(records)
    table = cells.pivot(index="method", columns="task", values="cell").fillna("–")
    # The pivot sorts by alphabet: take rows and columns in their own order.
    return table.loc[cells["method"].unique(), list(_column_names(records).values())]


def cost(records: list[Record]) -> pd.DataFrame:
    """What each cell of the comparison took, one line per cell; minutes and tasks/s are means over its seeds."""
    return _cells(records).drop(columns="cell").set_index("method")


def markdown(records: list[Record]) -> str:
    """The comparison, its footer, and the table of costs, as GitHub Markdown."""
    return "\n\n".join((_markdown(comparison(records)), _footer(records), _markdown(cost(records))))


def _markdown(table: pd.DataFrame) -> str:
    # Cells are finished text: left to itself, tabulate reads "95.40" as a number and prints 95.4.
    return table.to_markdown(disable_numparse=True)


def _column(record: Record) -> tuple[Hashable, ...]:
    return tuple(field_of(record, field) for field in COLUMN)


def _words(column: tuple[Hashable, ...]) -> list[str]:
    return [_say(form, value) for form, value in zip(COLUMN.values(), column, strict=True)]


def _column_names(records: list[Record]) -> dict[tuple[Hashable, ...], str]:
    """Each column's shortest name that no other column has, in the order of the columns."""
    words = {column: _words(column) for column in sorted({_column(record) for record in records}, key=_natural)}

    def name(column: tuple[Hashable, ...]) -> str:
        own, others = words[column], [words[other] for other in words if other != column]
        rivals = [other for other in others if other[:SHORT_NAME] == own[:SHORT_NAME]]
        readable = range(SHORT_NAME, len(own) + HASHES)
        differing = [i for i in readable if any(other[i] != own[i] for other in rivals)]
        # Other episodes have another manifest too: a hash is worth reading only where the words leave a doubt.
        for i in range(len(own) + HASHES, len(own)):
            if any(other[i] != own[i] and all(other[j] == own[j] for j in differing) for other in rivals):
                differing.append(i)
        return ", ".join([" ".join(own[:SHORT_NAME]), *(own[i] for i in differing)])

    names = {column: name(column) for column in words}
    if len(set(names.values())) < len(names):
        raise FewshotError("two test protocols differ only beyond the first 8 digits of a hash: tabulate them apart")
    return names


def _methods(records: list[Record]) -> list[str]:
    """For each record its row's name: algorithm, backbone, regime, and whatever sets it apart from its neighbours."""
    names = [_plain_method(record, records) for record in records]
    for fields in (VARIATIONS, CONFIGURATION):
        names = _set_apart(names, records, fields)
    return names


def _set_apart(names: list[str], records: list[Record], fields: dict[str, str]) -> list[str]:
    """The names, longer by each of the fields in which records of one name differ within a column."""
    rows = list(zip(names, records, strict=True))

    def varies(field: str, name: str) -> bool:
        # Steps or budgets may well change from column to column; only within one do they make two methods.
        pairs = {(_column(record), field_of(record, field)) for other, record in rows if other == name}
        return len(pairs) > len({column for column, _ in pairs})

    varying = {name: [field for field in fields if varies(field, name)] for name in set(names)}
    return [
        ", ".join([name, *(_say(fields[field], field_of(record, field)) for field in varying[name])])
        for name, record in rows
    ]


def _plain_method(record: Record, records: list[Record]) -> str:
    algorithm, protocol = record["algorithm"], record["protocol"]
    words = [f"{algorithm} ({record['backbone']})" if record["backbone"] else algorithm, protocol["regime"]]
    if len({other["recipe"] for other in records if other["algorithm"] == algorithm}) > 1:
        words.append(f"recipe {record['recipe']}" if record["recipe"] else "no recipe")
    # Said even where no neighbour differs: either one changes what the usual reader of the column takes for granted.
    trained_on = [record[key] for key in ("dataset", "way", "shot")]
    if trained_on != [protocol[key] for key in ("dataset", "way", "shot")]:
        words.append("trained on {} {}-way {}-shot".format(*trained_on))
    if protocol["train_on_val"]:
        words.append("trained on train+val")
    return ", ".join(words)


def _cells(records: list[Record]) -> pd.DataFrame:
    """One line per cell of the comparison, in the order of rows, then columns; every value finished text."""
    names = _column_names(records)
    order = list(names)
    runs: dict[tuple[str, tuple[Hashable, ...]], list[Record]] = {}
    for method, record in sorted(zip(_methods(records), records, strict=True), key=_row_order):
        runs.setdefault((method, _column(record)), []).append(record)
    methods = list(dict.fromkeys(method for method, _ in runs))
    lines = []
    for method, column in sorted(runs, key=lambda cell: (methods.index(cell[0]), order.index(cell[1]))):
        cell = runs[method, column]
        _refuse_duplicates(cell, f"{method} on {names[column]}")
        lines.append(
            {
                "method": method,
                "task": names[column],
                "cell": _accuracy(cell),
                "seeds": _amount(len(cell)),
                "training tasks": _amount(_mean(cell, "cost.train_tasks")),
                "minutes": _amount(_mean(cell, "cost.train_seconds", unit=60), decimals=1),
                "tasks/s": _amount(_mean(cell, "cost.tasks_per_second")),
                "peak MiB": _amount(_mean(cell, "cost.peak_memory_bytes", unit=2**20)),
                "device": _distinct(cell, "cost.device"),
                "adaptation steps": _distinct(cell, "protocol.adaptation_steps"),
                "selection": _distinct(cell, "protocol.selection"),
            }
        )
    return pd.DataFrame(lines)


def _row_order(row: tuple[str, Record]) -> tuple[Hashable, list[tuple[bool, float, str]]]:
    name, algorithm = row[0], row[1]["algorithm"]
    rank = ALGORITHMS.index(algorithm) if algorithm in ALGORITHMS else len(ALGORITHMS)
    words = name.replace(",", "").split()
    return rank, _natural(int(word) if word.isdecimal() else word for word in words)


def _refuse_duplicates(cell: list[Record], name: str) -> None:
    folders: dict[int, str] = {}
    for record in cell:
        seed, folder = record["seed"], record["folder"]
        if seed in folders:
            raise FewshotError(
                f"{folders[seed]} and {folder} are both {name} with seed {seed}: take one of them out of the folder"
            )
        folders[seed] = folder


def _accuracy(cell: list[Record]) -> str:
    """Accuracy and the half width of its 95 % interval in per cent: over seeds, or over one run's episodes."""
    means = [record["test"]["accuracy"] for record in cell]
    if len(means) == 1:
        half = cell[0]["test"]["ci95"]
    else:
        half = stats.t.ppf(0.975, len(means) - 1) * stats.sem(means)
    # One episode has no interval; a record says so with null or NaN.
    interval = "n/a" if half is None or math.isnan(half) else f"{100 * half:.2f}"
    seeds = f" ({len(means)} seeds)" if len(means) > 1 else ""
    return f"{100 * sum(means) / len(means):.2f} ± {interval}{seeds}"


def _footer(records: list[Record]) -> str:
    lines = []
    for column, name in _column_names(records).items():
        _, _, _, split, query, episodes, seed, rotations, _, _ = _words(column)
        manifest, data = column[HASHES:]
        lines.append(
            f"- **{name}**: {episodes} of the {split}, {seed}, {query} per class, {rotations}; "
            f"manifest {manifest!s:.12}, data {data!s:.12}"
        )
    lines.append(
        "- **±**: half width of the 95 % Student t interval; over the test episodes of one training seed, or, where a "
        "cell counts its seeds, over the means of those seeds"
    )
    commits = {_commit(record["code"]) for record in records}
    lines.append(f"- **code**: {', '.join(sorted(commits))}")
    return "Accuracy in per cent.\n\n" + "\n".join(lines)


def _commit(code: Record) -> str:
    dirty = " with uncommitted changes" if code["dirty"] else ""
    commit = code["commit"][:12] if code["commit"] else "unknown commit"
    return f"{code['version']} ({commit}{dirty})"


def _mean(cell: list[Record], field: str, unit: float = 1) -> float | None:
    values = [field_of(record, field) for record in cell]
    return None if None in values else sum(values) / len(values) / unit


def _distinct(cell: list[Record], field: str) -> str:
    return ", ".join(sorted({_amount(field_of(record, field)) for record in cell}))


def _amount(value: float | str | None, decimals: int = 0) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:,.{decimals}f}"


def _natural(values: Iterable[Hashable]) -> list[tuple[bool, float, str]]:
    """A sort key that takes 3 before 10, and text before any number."""
    return [(True, value, "") if isinstance(value, NUMBER) else (False, 0.0, str(value)) for value in values]


def _say(form: str, value: Hashable) -> str:
    said = form.format(value)
    if value == 1:
        for many, one in (("queries", "query"), ("steps", "step"), ("episodes", "episode"), ("tasks", "task")):
            said = said.replace(many, one)
    return said
