"""What runs took: the budget of a row's training, and the table of costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from fewshot.report.cells import Cell, Key, Layout
from fewshot.report.records import NUMBER, Record, extractor_of, format_field, task_name

NOTHING = "–"
NAMED = {"cpu": "CPU", "unknown": "an unknown device"}
COSTS = {  # heading: field, unit, decimals
    "training tasks": ("train_tasks", 1, 0),
    "minutes": ("train_seconds", 60, 1),
    "extractor minutes": ("extractor_seconds", 60, 1),
    "tasks/s": ("tasks_per_second", 1, 0),
    "peak MiB": ("peak_memory_bytes", 2**20, 0),
    "gradients": ("gradient_evaluations", 1, 0),
}


def list_costs(cells: list[Cell], layout: Layout) -> list[dict[str, str]]:
    """What the runs took, means over seeds: a line per cell, but one for cells of a row that show the same runs."""
    groups: dict[tuple[Key, Key], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.figure is None:
            groups[cell.row, tuple(run["folder"] for run in cell.runs)].append(cell)
    lines = []
    for same_runs in groups.values():
        cell = same_runs[0]
        values = layout.values_of(cell.row)
        fields = {name: key for name, key in layout.rows.items() if key not in ("source", "budget")}
        line = {name: format_field(key, values[key]) or NOTHING for name, key in fields.items()}
        if "task" not in layout.rows.values():
            line["task"] = cell.runs[0]["task"]
        line["seeds"] = str(len(cell.runs))
        for heading, (field, unit, decimals) in COSTS.items():
            mean = mean_cost(cell, field)
            line[heading] = NOTHING if mean is None else f"{mean / unit:,.{decimals}f}"
        for heading, part in (("device", "cost"), ("adaptation_steps", "protocol"), ("selection", "protocol")):
            values = (run[part][heading] for each in same_runs for run in each.runs)
            texts = (f"{value:,.0f}" if isinstance(value, NUMBER) else _text(value) for value in values)
            line[heading.replace("_", " ")] = ", ".join(dict.fromkeys(texts))
        lines.append(line)
    # Images have no extractor, and not every learner counts gradients.
    empty = [name for name in ("extractor minutes", "gradients") if all(line[name] == NOTHING for line in lines)]
    return [{name: text for name, text in line.items() if name not in empty} for line in lines]


def mean_cost(cell: Cell, field: str) -> float | None:
    """The mean over the runs; None where a run does not know it."""
    values = [run["cost"].get(field) for run in cell.runs]
    return sum(values) / len(values) if all(isinstance(value, NUMBER) for value in values) else None


def _text(value: Any) -> str:
    return NOTHING if value is None or value == "" else str(value)


def is_short(run: Record) -> bool:
    """Whether a run was not trained for all the steps of its paper's recipe."""
    if "published" in run:
        return False
    steps, paper = run["train"].get("steps"), run["train"].get("paper_steps")
    return steps is None or paper is None or steps < paper


def join_budgets(row: Sequence[Cell]) -> str:
    """How long a row's runs and their extractors were trained: `15 min`, or `14 and 8 min, 1,200 and 800 of 60k steps`.

    Two cells in the order of their columns; of more, and of several seeds, the least and the most. Each device has its
    own minutes; where all are CPUs, none is named. `1 to 3 min on NVIDIA H200, 14 min on CPU (20-way 1-shot)` says
    which of many cells is not of the first device.
    """
    if row[0].figure is not None:
        return ""
    seconds = [_training_seconds(cell) for cell in row]
    if not any(value and value[1] for value in seconds):
        return NOTHING
    steps: dict[str, list[int]] = defaultdict(list)  # by the end of the words
    for train in (cell.runs[0]["train"] for cell in row):
        paper = train.get("paper_steps")
        if paper is not None and train.get("steps"):
            of_paper = f" of {_thousands(paper)}" if train["steps"] < paper else ""
            steps[f"{of_paper} steps"].append(train["steps"])
    minutes: dict[str, list[tuple[str, list[int]]]] = defaultdict(list)  # tasks, least and most minutes, by the device
    for cell, value in zip(row, seconds, strict=True):
        if value is None:  # a record that does not know it
            continue
        task = task_name(cell.runs[0]["protocol"]).partition(" ")[2]
        minutes[_device(cell)].append((task, [max(1, round(each / 60)) for each in value]))
    times = []
    for device, own in sorted(minutes.items(), key=lambda item: -len(item[1])):
        on = "" if set(minutes) == {"CPU"} else f" on {device}"
        tasks, values = zip(*own, strict=True)
        where = f" ({' and '.join(tasks)})" if times else ""
        if len(values) == 2:
            shown = " and ".join(dict.fromkeys(_range(ends, "{:,}".format) for ends in values))
        else:
            shown = _range([minutes for ends in values for minutes in ends], "{:,}".format)
        times.append(f"{shown} min{on}{where}")
    return ", ".join([*times, *(f"{_join(counts)}{words}" for words, counts in steps.items())])


def _training_seconds(cell: Cell) -> tuple[float, float] | None:
    """Least and most seconds of a training and of the extractor before it; None where a record does not know them."""
    costs = [run["cost"] for run in cell.runs]
    if any(cost["train_tasks"] and not isinstance(cost.get("train_seconds"), NUMBER) for cost in costs):
        return None
    totals = [(cost.get("train_seconds") or 0) + (cost.get("extractor_seconds") or 0) for cost in costs]
    return min(totals), max(totals)


def _device(cell: Cell) -> str:
    """Where the runs of a cell and, as far as records say it, their extractors were trained.

    The device of a run that trained nothing is that of its test, and is named only where its extractor's is not known.
    """
    devices: set[str] = set()
    for run in cell.runs:
        cost, of_extractor = run["cost"], extractor_of(run).get("device")
        devices |= set(of_extractor.split(" and ")) if of_extractor else set()
        if cost["train_tasks"] or not of_extractor:
            names = (cost["device"] or "unknown").split(" and ")
            processes = cost.get("processes") or 1
            several = processes > 1 and len(names) == 1 and names[0] not in NAMED
            devices |= {f"{processes} processes on {names[0]}"} if several else set(names)
    return " and ".join(NAMED.get(name, name) for name in sorted(devices))


def _join(values: Sequence[int]) -> str:
    return " and ".join(dict.fromkeys(map(_thousands, values))) if len(values) == 2 else _range(values, _thousands)


def _range(values: Sequence[int], write: Callable[[int], str]) -> str:
    return " to ".join(dict.fromkeys(map(write, (min(values), max(values)))))


def _thousands(steps: int) -> str:
    return f"{steps // 1000}k" if steps >= 10_000 or steps % 1000 == 0 else f"{steps:,}"
