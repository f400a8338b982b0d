"""Damaged variants of the documented commands: none ends in a traceback or leaves half of something."""

from __future__ import annotations

import concurrent.futures
import random
import re
import shlex
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from fewshot.core.paths import CONF
from fewshot.experiment.config import key_names

ROOT = Path(__file__).resolve().parents[2]
COUNT = 300
SECONDS = 20  # of one command; what takes longer was accepted

# What a variant that is still a command should cost: given first, so that a variant's own words win.
TEST = (
    "protocol=common", "protocol.common.episodes=3", "protocol.common.query=2", "protocol.common.setting=transductive",
)  # fmt: skip
BUDGETS = {
    "train": (
        "train.steps=1", "train.meta_batch=2", "train.validate_every=0", "train.select=last", "validation.episodes=2",
        "runs=runs", *TEST,
    ),
    "evaluate": TEST,
    "bench": ("seconds=0.01", "rounds=1", "engines=[loop]", "first_order=[true]"),
}  # fmt: skip
VALUES = (
    "five", "1.5", "-1", "0", "nan", "inf", "-inf", "true", "null", "[1,2]", "[]", "{a:1}", "99999999999999999999",
    "-99999999999999999999", "1e400", "", '"x', "'x", "[1", "{a", "x)", "a (1)", "müller", "a=b", "a#b", "a b", "a,b",
    "${x}", "${oc.env:NOWHERE}", "$HOME/x", "~/x", "\udcff", "a\nb", "interval(1,2)", "choice(1,2)", "glob(*)", "x:y",
)  # fmt: skip
FLAGS = (
    "-m", "--multirn", "--cfg", "--cfg job", "--cfg=all", "--info", "--info searchpath", "--config-dir", "--resolve",
    "--config-dir=nowhere", "--config-name=trian", "--config-path nowhere", "-p x", "--run", "--seed=3", "-x", "--",
    "--hydra-help", "--help", "--shell-completion", "--package=train --cfg job", "--experimental-rerun nowhere",
)  # fmt: skip
WORDS = (
    "algorithm", "folder", "=", "=1", "1=2", "~seed", "~dataset", "~nothing", "~protocol.common.steps", "+new=1",
    "++new=1", "+seed=1", "protocol=[]", "protocol.common=3", "dataset@other=glyphs", "seed@other=1",
    "algorithm=mamal", "datset=mini", "hydra.run.dir=/dev/null",
    "hydra.mode=MULTIRUN", "hydra/launcher=nowhere", "hydra.nothing=1", "a..b=1", "ü=1", "", " ", "train=3",
    "dataset.reader=null", "dataset={a:1}", "hydra.searchpath=[nowhere]", "experiment=[papers,cpu_benchmark]",
)  # fmt: skip


def commands() -> list[tuple[str, list[str]]]:
    """(tool, words) of every command in the Markdown files of the toolkit and in the comments of conf."""
    pages = [ROOT / "README.md", *sorted((ROOT / "fewshot").rglob("README.md")), *sorted((ROOT / "conf").rglob("*.*"))]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    found = []
    for line in re.findall(r"python tools/[^`\n]*", "\n".join(texts)):
        line = re.sub(r"<[^>]*>|runs/glyphs\S*", "run", line.split("  #")[0]).split(": ")[0]
        script, *words = shlex.split(line)[1:]
        found.append((Path(script).stem, [word for word in words if word != "..."]))
    # The same on data that is there.
    there = [(tool, [re.sub("omniglot$|mini$|cub$", "glyphs", word) for word in words]) for tool, words in found]
    return [pair for place, pair in enumerate(found + there) if pair not in (found + there)[:place]]


def keys(tool: str) -> list[str]:
    """Every key of a tool's configuration."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return key_names(compose(tool))


def damage(words: list[str], known: list[str], dice: random.Random) -> list[str]:
    """The words with one mistake more; `known` are keys of the tool."""
    words = list(words) or ["seed=1"]
    place = dice.randrange(len(words))
    word = words[place] or "x"
    key, _, value = word.partition("=")
    letter = dice.randrange(len(word))
    other = dice.choice(VALUES)
    changed: list[Callable[[], list[str]]] = [
        lambda: [word[:letter] + word[letter + 1 :]],
        lambda: [word[:letter] + word[letter] + word[letter:]],
        lambda: [word[:letter] + word[letter : letter + 2][::-1] + word[letter + 2 :]],
        lambda: [word.upper()],
        lambda: [word.replace("=", "", 1)],
        lambda: [word.replace("=", " = ", 1)],
        lambda: [f"{key}={other}"],
        lambda: [f"{key}={other}"],
        lambda: [f"{key}={value}{other}"],
        lambda: [dice.choice(("+", "++", "~", "-", "--")) + word],
        lambda: [f"~{key}"],
        lambda: [word, f"{key}={other}"],
        lambda: [word, word],
        lambda: [],
        lambda: [word, *dice.choice(FLAGS).split()],
        lambda: [word, *dice.choice(FLAGS).split()],
        lambda: [word, dice.choice(WORDS)],
        lambda: [word, dice.choice(WORDS)],
        lambda: [word, f"{dice.choice(known)}={other}"],
        lambda: [word, f"{dice.choice(known)}={other}"],
        lambda: [word, f"~{dice.choice(known)}"],
        lambda: [f"{key}@{key}={value}"],
        lambda: [f"{key}.{key}={value}"],
    ]
    return [*words[:place], *dice.choice(changed)(), *words[place + 1 :]]


class Late(BaseException):
    """A command took its time: it was accepted."""


class Inline(concurrent.futures.Executor):
    """Does in this process what another was to do."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


def files() -> set[Path]:
    return {path for path in Path().rglob("*") if path.is_file()}


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="ends what takes long by a signal")
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_damaged_commands_end_in_one_line(
    call: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Inline)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def late(*_: Any) -> None:
        raise Late

    before_alarm = signal.signal(signal.SIGALRM, late)
    assert call("train", *BUDGETS["train"], "run_dir=run").code == 0
    whole = {path: path.read_bytes() for path in files()}
    dice, counts, faults = random.Random(0), Counter[str](), []
    every = commands()
    known = {tool: keys(tool) for tool, _ in every}
    try:
        for number in range(COUNT):
            tool, words = every[number % len(every)]
            for _ in range(dice.choice((1, 1, 2))):
                words = damage(words, known[tool], dice)
            said = f"{number}: {tool} {shlex.join(words)}"
            before = files()
            signal.alarm(SECONDS)
            try:
                done = call(tool, *BUDGETS.get(tool, ()), *words)
            except Late:
                counts["accepted, and took its time"] += 1
                continue
            except Exception as error:
                counts["traceback"] += 1
                faults.append(f"{said}\n    raised {type(error).__name__}: {error}")
                continue
            finally:
                signal.alarm(0)
            counts["accepted" if done.code == 0 else "refused"] += 1
            swept = "Launching" in done.out
            lines = [
                line for line in done.err.splitlines() if not line.startswith(("note: ", "warning: ", "extractor "))
            ]
            if "Traceback" in done.out + done.err:
                counts["traceback"] += 1
                faults.append(f"{said}\n    {done.err.splitlines()[-1]}")
            elif done.code not in (0, 1):
                faults.append(f"{said}\n    exit code {done.code}: {done.err}")
            elif done.code == 1 and not swept and [line[:7] for line in lines] != ["error: "]:
                counts["other than one line"] += 1
                faults.append(f"{said}\n    {lines}")
            elif done.code == 1 and not swept and files() - before:
                counts["left files"] += 1
                faults.append(f"{said}\n    {lines} left {sorted(map(str, files() - before))[:3]}")
    finally:
        signal.signal(signal.SIGALRM, before_alarm)
    with capsys.disabled():
        print(f"\n{COUNT} damaged commands: {dict(counts)}")
        if faults:
            print("\n".join(faults))
    assert not faults
    assert counts["refused"] >= COUNT / 2
    assert {path: path.read_bytes() for path in whole if path.parts[0] == "run" and len(path.parts) == 2} == {
        path: content for path, content in whole.items() if path.parts[0] == "run" and len(path.parts) == 2
    }
