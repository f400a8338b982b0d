"""Images that are too few for the tasks: the message lists all that does not fit, and its command fits."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig

from fewshot.core.errors import FewshotError
from fewshot.data.bank import Bank
from fewshot.data.sources.random_split import split_at_random
from fewshot.experiment.task_sizes import describe_misfit
from fewshot.tasks.sampler import Sampler

CONFIG: dict[str, Any] = {
    "way": 5,
    "shot": 1,
    "train": {"way": None, "shot": None, "query": None},
    "validation": {"query": 15},
    "protocol": {"common": {"split": "test", "query": 15}},
    "features": {"settings": {"way": 5, "shot": 1, "query": 15}},
    "dataset": {"reader": {"root": "mine", "fractions": [0.64, 0.16, 0.2], "classes": None, "seed": 0}},
}


WORDS = (
    ["way=2"], ["way=5"], ["way=3", "shot=5"], ["train.way=9", "train.query=12"],
    ["way=2", "train.shot=16", "train.query=0"], ["way=2", "train.shot=16"],
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the command line that another test of this process ran: the advised command would begin with its words."""
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)


def with_words(config: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """The configuration with the words of a command line."""
    changed = json.loads(json.dumps(config))
    for word in words:
        key, _, value = word.partition("=")
        *groups, last = key.split(".")
        node = changed
        for group in groups:
            node = node[group]
        node[last] = value if value == "same" else json.loads(value)
    return changed


def advice(message: str, which: int = -1) -> list[str]:
    """The words of a command of the message, by default of the last."""
    return shlex.split(message.split("python tools/train.py ")[which].partition("; this fits")[0])


def test_eight_folders_of_twelve_pictures_get_one_message_with_a_command() -> None:
    message = describe_misfit(CONFIG, {f"kind{number}": 12 for number in range(8)}, None)
    assert "mine: way=5 is more than the classes of val (1) and test (2)" in message
    for part in ("validation.query=15 plus shot=1", "protocol.common.query=15 plus shot=1", "12 images of class kind"):
        assert part in message
    assert advice(message) == [
        "dataset.reader.classes=same", "dataset.reader.fractions=[0.5,0.25,0.25]", "validation.query=2",
        "protocol.common.query=2", "features.settings.query=2",
    ]  # fmt: skip
    assert "; this fits, with new classes in the test: python" in message
    assert "; this fits, with other images of the same classes in training and test: python" in message
    smaller = advice(message, 1)
    assert smaller[:2] == ["way=2", "dataset.reader.fractions=[0.5,0.25,0.25]"]
    assert not describe_misfit(with_words(CONFIG, smaller), {f"kind{number}": 12 for number in range(8)}, None)


@pytest.mark.parametrize("count", [2, 6, 9, 15])
@pytest.mark.parametrize("images", [6, 17])
@pytest.mark.parametrize("words", WORDS)
def test_the_advised_command_fits(count: int, images: int, words: list[str]) -> None:
    config = with_words(CONFIG, words)
    sizes = {f"kind{number:02d}": images + number % 3 for number in range(count)}
    message = describe_misfit(config, sizes, None)
    assert bool(message) != fits(config, sizes)
    assert not message or (advice(message) and not describe_misfit(with_words(config, advice(message)), sizes, None))


def fits(config: dict[str, Any], sizes: dict[str, int]) -> bool:
    """Whether every sampler of a run on a random split of these classes can be made."""
    names = split_at_random(list(sizes), config["dataset"]["reader"]["fractions"], 0)
    train, settings, query = config["train"], config["features"]["settings"], config["validation"]["query"]
    way, shot = (config[key] if train[key] is None else train[key] for key in ("way", "shot"))
    for split, *task in (
        ("train", way, shot, shot if train["query"] is None else train["query"]),
        ("val", config["way"], config["shot"], query),
        ("test", config["way"], config["shot"], config["protocol"]["common"]["query"]),
        ("val", settings["way"], settings["shot"], settings["query"]),
    ):
        counts = [sizes[name] for name in names[split]]
        y = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
        try:
            Sampler(Bank.from_tensors(torch.zeros(len(y), 1), y), *task)
        except FewshotError:
            return False
    return True


def test_classes_that_folders_split_get_another_way_and_fewer_queries() -> None:
    fixed = {"train": {"a": 20, "b": 20, "c": 20}, "val": {"d": 9, "e": 9}, "test": {"f": 20, "g": 7}}
    pooled = {name: count for classes in fixed.values() for name, count in classes.items()}
    words = advice(describe_misfit(CONFIG, pooled, fixed))
    assert words == ["way=2", "validation.query=8", "protocol.common.query=6", "features.settings.way=2",
                     "features.settings.query=8"]  # fmt: skip
    assert not describe_misfit(with_words(CONFIG, words), pooled, fixed)


def test_shots_are_lowered_where_classes_are_small() -> None:
    words = advice(describe_misfit(with_words(CONFIG, ["shot=5"]), dict.fromkeys("abcdefghijklmnopqrst", 4), None))
    assert "shot=1" in words and not any(word.startswith("dataset.reader.classes") for word in words)


def test_the_shots_of_the_training_alone_are_lowered_where_they_alone_are_too_many() -> None:
    reptile = with_words(CONFIG, ["way=2", "train.shot=10", "train.query=0", "validation.query=2"])
    words = advice(describe_misfit(reptile, {f"kind{number}": 8 for number in range(12)}, None))
    assert "train.shot=8" in words and not any(word.startswith("shot=") for word in words)


def test_a_test_on_training_classes_gets_fewer_queries_of_its_own() -> None:
    config = with_words(CONFIG, ["way=2", "validation.query=2"])
    config["protocol"]["common"]["split"] = "train"
    pooled = {f"kind{number}": 12 for number in range(15)}
    words = advice(describe_misfit(config, pooled, None))
    assert "protocol.common.query=11" in words and not any(word.startswith("train.query") for word in words)
    assert not describe_misfit(with_words(config, words), pooled, None)


def test_one_class_alone_gets_no_command() -> None:
    said = describe_misfit(CONFIG, {"a": 90}, None)
    assert said.endswith("; one class is there, a, and tasks need two: give each its own folder of images")


def test_the_command_is_that_of_the_run_with_other_values(call: Any) -> None:
    for number in range(8):
        Path(f"mine/kind {number}").mkdir(parents=True)
        for image in range(3):
            Path(f"mine/kind {number}/{image}.png").touch()  # which is not read: the classes cannot be split
    words = ["algorithm=nearest", "dataset=folder", "dataset.reader.root=mine", "way=2", "validation.query=9"]
    done = call("train", *words, "protocol=common")
    assert done.err.startswith("error: mine: way=2 is more than the classes of val (1); ") and not Path("runs").exists()
    assert advice(done.err) == [
        *words[:-1], "protocol=common", "dataset.reader.fractions=[0.5,0.25,0.25]", "validation.query=2",
        "protocol.common.query=2",
    ]  # fmt: skip
