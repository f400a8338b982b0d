"""What sets runs of one algorithm apart: the words of a row's name, or a number and the footnote that explains it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

from fewshot.report.records import Record, field_of, protocol_name

STEPS = "protocol.adaptation_steps"
# How a name writes in what runs of one method differ, beside their settings.
VARIATIONS = {
    STEPS: "{} test steps",
    "recipe": "recipe {}",
    "protocol.selection": "selection: {}",
    "cost.train_tasks": "{:,} training tasks",
    "step": "at step {:,}",
}
# Settings of which no score depends: where a recipe is looked for, and how often something is written.
WITHOUT_EFFECT = ("algorithm.recipe", "train.checkpoint_every", "train.log_every")
OLDER = "an older record, which does not hold its settings: configuration "  # with the start of its hash
GIVEN = re.compile(r"(?<= )((?:algorithm|backbone|train)\.[\w.]+)=(\S+)")  # settings in a command
OF_TESTS = ("way", "shot", "query", "episodes")  # names of numbers that tests have too
SHORT = 8  # characters of a number in a name; longer ones are rounded
MOST_KEYS = 3  # in a name; runs that differ in more settings have numbers


def tell_apart(records: list[Record], shown: Sequence[str]) -> tuple[list[str], list[str]]:
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
    keys = _by_recipe(traits, contexts) if chosen is None else _add_recipe(chosen, traits, contexts)
    if keys is not None:
        named = [(own, [*mine, *steps]) for own, mine in zip(traits, keys, strict=True)]
        suffixes = [_suffix("", own, mine) for own, mine in named]
        if len(set(suffixes)) < len({tuple((key, own.get(key)) for key in mine) for own, mine in named}):
            suffixes = [_suffix("", own, mine, exact=True) for own, mine in named]
        return suffixes, [""] * len(traits)
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
        note = ", ".join(label_setting(key, own.get(key), settings) for key in settings)
        if "config" in own:
            note = f"{OLDER}{own['config']:.8}"
        notes.append(note)
    return suffixes, notes


def _add_recipe(
    chosen: list[str], traits: list[dict[str, Any]], contexts: list[tuple[Hashable, ...]]
) -> list[list[str]]:
    """For each record the keys in its name: the chosen ones, and its recipe where only tests set two recipes apart.

    Beside a recipe that is added, a name has only the keys that vary within that recipe.
    """
    tasks = [task for task, *_ in contexts]
    if "recipe" in chosen or "recipe" not in _varying(traits, tasks):
        return [chosen] * len(traits)
    within = _varying_within_recipes(traits, contexts)
    return [["recipe", *(key for key in chosen if key in within[own.get("recipe")])] for own in traits]


def _by_recipe(traits: list[dict[str, Any]], contexts: list[tuple[Hashable, ...]]) -> list[list[str]] | None:
    """For each record its recipe and the keys that vary within it; None where these are too many or not known."""
    within = _varying_within_recipes(traits, contexts)
    keys = {recipe: [key for key in varying if key != STEPS] for recipe, varying in within.items()}
    if len(keys) < 2 or any(len(each) > MOST_KEYS or "config" in each for each in keys.values()):
        return None
    return [["recipe", *keys[own.get("recipe")]] for own in traits]


def _varying_within_recipes(
    traits: list[dict[str, Any]], contexts: list[tuple[Hashable, ...]]
) -> dict[str | None, list[str]]:
    varying = {}
    for recipe in {own.get("recipe") for own in traits}:  # none where another column shows it
        pairs = [(own, context) for own, context in zip(traits, contexts, strict=True) if own.get("recipe") == recipe]
        varying[recipe] = _varying(*zip(*pairs, strict=True))
    return varying


def _suffix(number: str, traits: dict[str, Any], keys: list[str], exact: bool = False) -> str:
    return ", ".join([number, *(label_setting(key, traits[key], keys, exact) for key in keys if key in traits)])


def _traits(record: Record, shown: Sequence[str]) -> dict[str, Any]:
    """Everything but the task and the seed that makes two methods of two runs."""
    traits = {STEPS: field_of(record, STEPS), **(record.get("settings") or {}), "recipe": record["recipe"]}
    traits["protocol.selection"] = field_of(record, "protocol.selection")
    if 0 < (record["train"].get("steps") or 0) < traits.get("train.steps", 0):
        traits["step"] = record["train"]["steps"]  # of a run that was tested before its end
    if not record.get("settings"):  # an older record, with the settings that its command gives
        traits |= {field: field_of(record, field) for field in ("cost.train_tasks", "config")}
        traits |= {key: value for key, value in GIVEN.findall(record.get("command") or "") if "," not in value}
    left_out = (*(name.removeprefix("settings.") for name in shown), *WITHOUT_EFFECT)
    counted = {key: value for key, value in traits.items() if key not in left_out and not is_copy(key, traits)}
    return {key: str(value) if isinstance(value, list) else value for key, value in counted.items()}


def config_of(record: Record) -> str:
    """A hash of all settings that set methods apart; of an older record, which holds no settings, its own."""
    settings = record.get("settings")
    if not settings:
        return record["config"]
    kept = {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def is_copy(key: str, traits: dict[str, Any]) -> bool:
    """Whether a setting of an extractor or of its reader repeats one of the dataset, the backbone or `features`."""
    places = (
        ("features.reader.images.", "dataset.reader."),
        ("features.reader.view.", "dataset."),
        ("features.reader.network.", "backbone.network."),
        ("features.network.", "backbone.network."),
        ("features.reader.", "features."),
    )
    sources = (new + key.removeprefix(old) for old, new in places if key.startswith(old))
    return any(source in traits and traits[source] == traits[key] for source in sources)


def _context(record: Record) -> tuple[Hashable, ...]:
    """(task, data, protocol) of a test: within one, in any setting, two runs with other traits are two methods."""
    task = tuple(record["protocol"][key] for key in ("dataset", "way", "shot", "view"))
    return task, record["data"]["fingerprint"], protocol_name(record)


def _varying(traits: Sequence[dict[str, Any]], contexts: Sequence[Hashable]) -> list[str]:
    """The keys in which runs of one context differ; steps or budgets may change from task to task."""
    values: dict[tuple[str, Hashable], set[Hashable]] = defaultdict(set)
    keys = dict.fromkeys(key for own in traits for key in own)
    for own, context in zip(traits, contexts, strict=True):
        for key in keys:
            values[key, context].add(own.get(key))
    return [key for key in keys if any(len(values[key, context]) > 1 for context in set(contexts))]


def _separates(
    traits: list[dict[str, Any]], contexts: Sequence[Hashable], chosen: list[str], others: list[str]
) -> bool:
    """Whether runs of one context with equal values of the chosen keys are equal in all others."""
    groups: dict[Hashable, set[Hashable]] = defaultdict(set)
    for own, context in zip(traits, contexts, strict=True):
        groups[context, *(own.get(key) for key in chosen)].add(tuple(own.get(key) for key in others))
    return all(len(values) == 1 for values in groups.values())


def label_setting(key: str, value: Hashable, keys: list[str], exact: bool = False) -> str:
    """`inner_lr=0.1`: the last part of the dotted key, or all of it where another key, or one of a test, ends alike.

    Long numbers are rounded, unless `exact`.
    """
    if key == "recipe":
        return f"recipe {value}" if value else "no recipe"
    if key in VARIATIONS:
        return format_label(VARIATIONS[key], value)
    last = key.rpartition(".")[2]
    alike = last in OF_TESTS or sum(other.rpartition(".")[2] == last for other in keys) > 1
    name = key if alike else last
    if isinstance(value, float) and len(str(value)) > SHORT and not exact:  # of a search, which draws 17 digits
        value = f"{value:.4g}"
    return f"{name}={str(value).lower() if isinstance(value, bool) or value is None else value}"


def format_label(form: str, value: Hashable) -> str:
    """The form with the value in it, in the singular where the value is 1."""
    label = form.format(value)
    if value == 1:
        for plural, singular in (("queries", "query"), ("steps", "step"), ("episodes", "episode"), ("tasks", "task")):
            label = label.replace(plural, singular)
    return label
