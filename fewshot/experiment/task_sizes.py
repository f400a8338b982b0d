"""One's own images that are too few for the tasks: all that does not fit in one error, and a command that does fit."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fewshot.core.errors import TaskSizeError
from fewshot.data.bank import SPLITS
from fewshot.data.sources.random_split import split_at_random, split_sizes
from fewshot.experiment.config import flatten, given_overrides, resolved
from fewshot.experiment.make_learner import instantiate_node

Sizes = Mapping[str, Mapping[str, int]]  # examples of each class by split
FRACTIONS, CLASSES = "dataset.reader.fractions", "dataset.reader.classes"
SHARES = ([0.5, 0.25, 0.25], [0.34, 0.33, 0.33])  # for few classes or images, in place of those that are set


@dataclass(frozen=True)
class TaskSize:
    """The keys that say the size of the tasks of a split."""

    split: str
    way: str
    shot: str
    query: str


@contextmanager
def explain_task_sizes(cfg: DictConfig) -> Iterator[None]:
    """Let an error of the block about too few classes or images list all that does not fit a person's own images.

    Raises:
        FewshotError: that of the block; if it is about the sizes of tasks on dataset=folder, with a command that fits.
    """
    try:
        yield
    except TaskSizeError as error:
        reader = resolved(cfg)["dataset"]["reader"]
        if not {"fractions", "classes", "root"} <= reader.keys():
            raise
        fixed = None
        if error.class_sizes is not None:
            pooled = dict(error.class_sizes)
        else:  # the images are converted already
            banks = instantiate_node(cfg.dataset.reader)
            by_split = {s: dict(zip(bank.names, bank.sizes.tolist(), strict=True)) for s, bank in banks.items()}
            pooled: dict[str, int] = {}
            for classes in by_split.values():
                for name, count in classes.items():
                    pooled[name] = pooled.get(name, 0) + count
            fixed = None if "shuffled" in banks["train"].metadata["split_source"] else by_split
        raise TaskSizeError(describe_misfit(resolved(cfg), pooled, fixed) or str(error)) from error


def describe_misfit(config: Mapping[str, Any], pooled: Mapping[str, int], fixed: Sizes | None) -> str:
    """All settings of a configuration that ask for more than its images give, and a command that fits them.

    Args:
        pooled: the number of images of each class.
        fixed: the same by split, where folders or a CSV file split them; None: the split is random.
    """
    values, sizes_of_tasks = dict(flatten(config)), _task_sizes(config)
    sizes = _split(values, pooled) if fixed is None else fixed
    if not (problems := _list_problems(values, sizes_of_tasks, sizes)):
        return ""
    start = f"{values['dataset.reader.root']}: {'; '.join(problems)}"
    changes = _find_fit(values, sizes_of_tasks, pooled, fixed)
    if changes is None and len(pooled) == 1:
        return (
            f"{start}; one class is there, {next(iter(pooled))}, and tasks need two: give each its own folder of images"
        )
    if changes is None:
        return f"{start}; add images or classes, or leave small classes out"
    if CLASSES not in changes:
        return f"{start}; this fits: {_command(changes)}"
    new = _find_fit(values, sizes_of_tasks, pooled, fixed, new_classes=True)
    by_new = f"this fits, with new classes in the test: {_command(new)}; " if new else ""
    return (
        f"{start}; {by_new}this fits, with other images of the same classes in training and test: {_command(changes)}"
    )


def _task_sizes(config: Mapping[str, Any]) -> list[TaskSize]:
    train, features = config["train"], config["features"]

    def train_key(key: str, other: str) -> str:
        return other if train[key] is None else f"train.{key}"

    shot = train_key("shot", "shot")
    sizes = [TaskSize("train", train_key("way", "way"), shot, train_key("query", shot))]
    sizes.append(TaskSize("val", "way", "shot", "validation.query"))
    for name, protocol in config["protocol"].items():
        sizes.append(TaskSize(protocol["split"], "way", "shot", f"protocol.{name}.query"))
    if "settings" in features:
        sizes.append(TaskSize("val", *(f"features.settings.{key}" for key in ("way", "shot", "query"))))
    return [size for size in sizes if size.split in SPLITS]


def _split(values: Mapping[str, Any], pooled: Mapping[str, int]) -> Sizes:
    """The sizes of the classes of each split of a random split, as the reader makes it."""
    shares = values[FRACTIONS]
    if values[CLASSES] is None:
        names = split_at_random(list(pooled), shares, values["dataset.reader.seed"])
        return {split: {name: pooled[name] for name in chosen} for split, chosen in names.items()}
    counts = {name: split_sizes(count, shares) for name, count in pooled.items()}
    return {split: {name: count[place] for name, count in counts.items()} for place, split in enumerate(SPLITS)}


def _list_problems(values: Mapping[str, Any], tasks: Sequence[TaskSize], sizes: Sizes) -> list[str]:
    problems = []
    for key in dict.fromkeys(task.way for task in tasks):
        splits = dict.fromkeys(task.split for task in tasks if task.way == key)
        few = [f"{split} ({len(sizes[split])})" for split in splits if values[key] > len(sizes[split])]
        if few:
            problems.append(f"{key}={values[key]} is more than the classes of {_join(few)}")
    short: dict[int, list[str]] = {}  # by the images of the smallest class
    where: dict[int, str] = {}
    for task in tasks:
        classes = sizes[task.split]
        name = min(classes, key=classes.__getitem__, default=None)
        if name is not None and values[task.shot] + values[task.query] > classes[name]:
            shot = f"{task.shot}={values[task.shot]}"
            as_many = task.query == task.shot  # train.query=null
            wanted = f"{shot} plus as many queries" if as_many else f"{task.query}={values[task.query]} plus {shot}"
            short.setdefault(classes[name], []).append(wanted)
            where.setdefault(classes[name], f"{classes[name]} images of class {name} in {task.split}")
    for count, wanted in short.items():
        problems.append(f"{_join(wanted)} {'is' if len(wanted) == 1 else 'are'} more than the {where[count]}")
    return problems


def _find_fit(
    values: Mapping[str, Any],
    tasks: Sequence[TaskSize],
    pooled: Mapping[str, int],
    fixed: Sizes | None,
    new_classes: bool = False,
) -> dict[str, Any] | None:
    """The changes of settings that fit the images; None if there are none, with `new_classes` in the test or without.

    They change queries, and as little as needed of `train.shot`, fractions, classes, ways and shots, in this order.
    """
    way, count, same = values["way"], len(pooled), {CLASSES: "same"}
    if fixed is not None:
        least = min(len(classes) for classes in fixed.values())
        groups: list[dict[str, Any]] = [{}, {"way": min(way, least)}, {"way": min(way, least), "shot": 1}]
    else:
        groups = [{}, same, {"way": min(way, count // 3)}, same | {"way": min(way, count)}]
        groups += [{"shot": 1}, groups[2] | {"shot": 1}, groups[3] | {"shot": 1}]
    for group in (group for group in groups if not (new_classes and CLASSES in group)):
        for fewest in (2, 1):  # queries of each class
            for shares in [{}] if fixed is not None else [{}, *({FRACTIONS: share} for share in SHARES)]:
                changes = {key: value for key, value in (group | shares).items() if value != values[key]}
                changed = {**values, **changes}
                fitted = _fit(changed, tasks, _split(changed, pooled) if fixed is None else fixed, fewest)
                if fitted is not None:
                    return changes | fitted
    return None


def _fit(values: dict[str, Any], tasks: Sequence[TaskSize], sizes: Sizes, fewest: int) -> dict[str, Any] | None:
    """The changes of queries, of ways other than `way`, and of `train.shot`, that fit; None if too little is there."""
    changes: dict[str, Any] = {}
    for task in tasks:
        classes = sizes[task.split]
        if len(classes) < 2 or not min(classes.values()) or values["way"] > len(classes) or values["way"] < 2:
            return None
        if values[task.way] > len(classes):
            changes[task.way] = len(classes)
        smallest, shot = min(classes.values()), values[task.shot]
        if task.shot == "train.shot" and fewest == 1 and shot + min(1, values[task.query]) > smallest:
            shot = smallest - min(1, values[task.query])
            if shot < 1:
                return None
            changes[task.shot] = shot
        room = smallest - shot
        if values[task.query] > room:
            if room < min(fewest, values[task.query]):
                return None
            changes[task.query if task.query.endswith("query") else "train.query"] = room
    return changes


def _command(changes: Mapping[str, Any]) -> str:
    """The command line of this run with the changes, for a POSIX shell."""
    words = _words(changes)
    if HydraConfig.initialized():
        words = [word for word in given_overrides() if word.lstrip("+").partition("=")[0] not in changes] + words
        for source in HydraConfig.get().runtime.config_sources:
            if source.provider == "command-line":
                words = ["--config-dir", source.path, *words]
    return f"python tools/train.py {shlex.join(words)}"


def _words(changes: Mapping[str, Any]) -> list[str]:
    return [f"{key}={str(value).replace(' ', '')}" for key, value in changes.items()]


def _join(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
