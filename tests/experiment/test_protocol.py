"""Protocols: how a run is tested, under which name, and which tests are made when."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from fewshot.algorithms.learner import with_defaults
from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.engine.engine import Engine
from fewshot.experiment.protocol import read_protocols
from fewshot.experiment.rows import apply_protocols
from fewshot.experiment.run_tests import _steps

from ..conftest import composed, read_test

FEW = ("protocol.common.query=2", "protocol.common.episodes=6")
QUICK = (
    "backbone.network.filters=4", "train.steps=4", "train.meta_batch=2", "train.checkpoint_every=1", "protocol=common",
    "logger=none", "train.validate_every=0", "train.select=last", *FEW,
)  # fmt: skip
SINES = ("algorithm=maml", "dataset=sinusoid", "run_dir=run", "train.steps=2", "train.meta_batch=2")
BOTH = [f"common-query=2-episodes=6-{setting}" for setting in ("inductive", "transductive")]


def records_of(run: str | Path) -> dict[str, int]:
    """When each record below the folder `tests` was written, by the name of its folder."""
    return {path.parent.name: path.stat().st_mtime_ns for path in sorted(Path(run).glob("tests/*/record.json"))}


def trained(run: str) -> tuple[dict[str, int], str]:
    """When each checkpoint was written, and the lines of the training."""
    times = {path.name: path.stat().st_mtime_ns for path in Path(run).glob("checkpoints/*")}
    return times, Path(run, "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("words", "tests"),
    [
        ("algorithm=maml dataset=omniglot shot=5", {"paper": (5, 600, "per_class", "transductive", None)}),
        ("algorithm=reptile dataset=omniglot", {"paper": (1, 10_000, "none", "both", None)}),
        ("algorithm=leo dataset=mini", {"paper": (599, 10_000, "none", "inductive", None)}),
        ("algorithm=leo dataset=omniglot", {}),
        ("algorithm=nearest dataset=omniglot", {}),
        ("algorithm=maml dataset=omniglot recipe=quarter_hour", {}),
        ("algorithm=maml dataset=glyphs", {}),
        (
            "algorithm=maml dataset=sinusoid shot=5",
            {"common": (5, 10_000, "none", "both", [1, 5, 10]), "paper": (5, 600, "none", "both", [1, 5, 10])},
        ),
        ("algorithm=maml dataset=sines_and_lines", {"common": (10, 10_000, "none", "both", None)}),
        ("algorithm=leo_regression dataset=sinusoid", {"common": (10, 10_000, "none", "both", None)}),
    ],
)
def test_each_task_is_tested_by_the_common_protocol_and_by_its_papers_if_there_is_one(
    words: str, tests: dict[str, tuple[Any, ...]]
) -> None:
    found = {
        each.name: (each.query, each.episodes, each.rotations, each.setting, each.steps)
        for each in read_protocols(composed(*words.split()))
    }
    assert found == {"common": (15, 1000, "none", "both", None)} | tests


@pytest.mark.parametrize(
    ("words", "name", "slug"),
    [
        ((), "common", "common"),
        (("protocol.common.setting=inductive", "protocol.common.query=15"), "common", "common"),
        (("protocol.common.episodes=100", "protocol.common.query=5"), "common, query=5, episodes=100", None),
        (("protocol.common.steps=[1,5]",), "common, steps=[1,5]", "common-steps=1-5"),
        (("protocol.common.steps=[5]",), "common, steps=5", "common-steps=5"),
        (("protocol.common.split=val", "protocol.common.rotations=per_class"),
         "common, split=val, rotations=per_class", None),
    ],
)  # fmt: skip
def test_a_protocols_name_says_the_values_that_are_not_its_files(
    words: tuple[str, ...], name: str, slug: str | None
) -> None:
    (protocol,) = read_protocols(composed("algorithm=maml", "dataset=glyphs", *words))
    assert (protocol.name, protocol.slug) == (name, slug or name.replace(", ", "-"))


def test_a_paper_that_has_no_test_of_a_task_lends_no_name_to_a_persons_own(call: Any) -> None:
    done = call("train", "algorithm=nearest", "protocol=paper", "protocol.paper.query=2", "protocol.paper.episodes=3")
    assert (done.code, done.err) == (0, "")
    assert read_test("runs")["protocol"]["name"].startswith("paper, split=test, query=2, episodes=3")


def test_a_test_on_validation_tasks_that_were_others_once_is_made_again(call: Any) -> None:
    few = ("protocol=common", "protocol.common.episodes=3", "protocol.common.steps=1")
    words = (*SINES, *few, "protocol.common.split=val")
    assert call("train", *words).code == 0
    (path,) = Path("run").rglob("record.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"protocol": record["protocol"] | {"manifest": "0" * 64}}))
    assert call("train", *words).code == 0
    assert json.loads(path.read_text())["protocol"]["manifest"] == record["protocol"]["manifest"]


def test_one_training_is_tested_by_two_protocols_and_later_by_others(call: Any) -> None:
    few = ("protocol.common.episodes=3", "protocol.common.steps=1", "protocol.paper.episodes=4")
    assert call("train", *SINES, *few).code == 0
    assert list(records_of("run")) == ["common-episodes=3-steps=1-inductive", "paper-episodes=4-inductive"]
    common, paper = (json.loads(Path(f"run/tests/{name}/record.json").read_text()) for name in records_of("run"))
    wanted = {"split": "test", "query": 10, "episode_seed": 0, "rotations": "none", "setting": "inductive"}
    for record, changed in (
        (common, {"name": "common, episodes=3, steps=1", "episodes": 3, "adaptation_steps": 1}),
        (paper, {"name": "paper, episodes=4", "episodes": 4, "adaptation_steps": [1, 5, 10]}),
    ):
        assert record["protocol"] | wanted | changed == record["protocol"]
        trained_on = {"way": 1, "shot": 10, "query": 10, "steps": 2, "paper_steps": 70_000, "engine": "auto"}
        assert record["train"] == trained_on | {"fingerprint": record["train"]["fingerprint"]}
        assert record["settings"]["train.steps"] == 2 and "seed" not in record["settings"]
    assert common["config"] == paper["config"]
    before = records_of("run"), trained("run")
    assert "finished before" in call("train", *SINES, *few).out
    other = call("train", *SINES, "protocol=common", *few[:2], "protocol.common.query=5")
    assert (other.code, other.err) == (0, "")
    assert len(records_of("run")) == 3
    assert before == ({name: time for name, time in records_of("run").items() if name in before[0]}, trained("run"))


def test_a_test_of_many_numbers_of_steps_has_a_folder_that_a_disk_can_have() -> None:
    slugs = [
        read_protocols(composed("algorithm=maml", "protocol=common", f"protocol.common.steps={list(range(end))}"))[
            0
        ].slug
        for end in (100, 101)
    ]
    assert slugs[0] != slugs[1] and all(len(slug) < 140 and slug.startswith("common-steps=0-1-2-") for slug in slugs)


def test_a_run_is_tested_in_both_settings_where_they_differ(call: Any) -> None:
    words = ("run_dir=run", *QUICK)
    assert call("train", *words, "protocol.common.setting=inductive").code == 0
    inductive, files = records_of("run"), trained("run")
    assert list(inductive) == BOTH[:1]
    done = call("train", *words, "copy_records_to=kept")
    assert (done.code, "finished before" in done.out) == (0, False)
    both = records_of("run")
    assert (list(both), both.items() >= inductive.items(), trained("run")) == (BOTH, True, files)
    one, two = (json.loads(Path(f"run/tests/{name}/record.json").read_text()) for name in BOTH)
    assert (one["protocol"], one["config"]) == (two["protocol"] | {"setting": "inductive"}, two["config"])
    scores = [Path(f"run/tests/{name}/episodes.csv").read_bytes() for name in BOTH]
    assert scores[0] != scores[1]
    assert [path.parent.name for path in sorted(Path("kept").rglob("record.json"))] == BOTH
    # A run that was killed between its tests makes the missing one.
    shutil.rmtree(f"run/tests/{BOTH[1]}")
    assert call("train", "resume=run").code == 0
    again = records_of("run")
    assert list(again) == BOTH and again[BOTH[0]] == both[BOTH[0]] and trained("run") == files
    assert "finished before" in call("train", *words).out


def test_a_learner_that_predicts_each_query_alone_has_the_inductive_test_alone(call: Any) -> None:
    words = ("algorithm=nearest", "run_dir=run", "protocol=common", *FEW)
    for setting in ("transductive", "both"):
        done = call("train", *words, f"protocol.common.setting={setting}")
        assert done.code == 0 and ("setting=transductive: the test is called" in done.err) == (setting != "both")
        assert list(records_of("run")) == BOTH[:1]
    assert read_test("run")["queries_independent"]
    assert "finished before" in call("train", *words).out


def test_a_run_that_is_not_finished_is_tested_under_the_name_of_its_step(
    call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, outer = [], Engine.outer

    def dies(*inputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return outer(*inputs)

    words = ("run_dir=run", *QUICK, "protocol.common.setting=transductive")
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "outer", dies)
        assert call("train", *words).code == 130
    assert call("evaluate", "run=run", *FEW, "protocol.common.setting=transductive").code == 0
    assert list(records_of("run")) == ["common-query=2-episodes=6-step2-transductive"]
    assert read_test("run")["train"]["steps"] == 2
    # Of a class of 20, tasks of the training would need 24.
    assert call("evaluate", "run=run", *FEW, "shot=12", "protocol.common.setting=transductive", "out=other").code == 0
    assert call("train", *words).code == 0
    assert list(records_of("run")) == ["common-query=2-episodes=6-step2-transductive", BOTH[1]]
    assert json.loads(Path(f"run/tests/{BOTH[1]}/record.json").read_text())["train"]["steps"] == 4


def test_a_trained_run_is_tested_again_with_other_values(call: Any) -> None:
    assert call("train", "run_dir=run", *QUICK, "protocol.common.setting=transductive").code == 0
    words = ("query=1", "episodes=3", "rotations=per_class", "steps=5", "setting=inductive")
    other = ("run=run", *(f"protocol.common.{word}" for word in words))
    for more in ((), ("shot=2",), ()):
        done = call("evaluate", *other, *more)
        assert (done.code, done.err) == (0, "")
    first, name, later = records_of("run"), "common-query=1-episodes=3-rotations=per_class-steps=5", records_of("run")
    assert list(later) == sorted([BOTH[1], f"{name}-5w2s-inductive", f"{name}-inductive"])
    one, two = (json.loads(Path(f"run/tests/{n}/record.json").read_text()) for n in (f"{name}-inductive", BOTH[1]))
    assert one["protocol"]["manifest"] != two["protocol"]["manifest"]
    assert (one["config"], one["protocol"]["adaptation_steps"]) == (two["config"], 5)
    assert call("evaluate", *other, "force=true").code == 0
    assert call("train", "run_dir=another", *QUICK, "seed=1").code == 0
    foreign = call("evaluate", "run=another", *other[1:], "out=run/tests", "force=true")
    assert foreign.err.endswith("holds a test of another run; choose another folder\n")
    assert [name for name, time in records_of("run").items() if time != first[name]] == [f"{name}-inductive"]


def test_a_later_test_keeps_the_values_that_the_run_was_tested_with(call: Any) -> None:
    assert call("train", "algorithm=nearest", "run_dir=run", "protocol=common", *FEW).code == 0
    for words in (("predictions=true",), ("protocol.common.query=1",), ("shot=2",)):
        done = call("evaluate", "run=run", *words)
        assert (done.code, done.err) == (0, "")
    names = [BOTH[0], "common-query=1-episodes=6-inductive", "common-query=2-episodes=6-5w2s-inductive"]
    assert list(records_of("run")) == sorted(names)


def test_a_protocol_of_ones_own_is_a_file(call: Any) -> None:
    path = Path("own/protocol/mine.yaml")
    path.parent.mkdir(parents=True)
    text = (CONF / "protocol/common.yaml").read_text().split("rows:")[0].replace("protocol.common", "protocol.mine")
    path.write_text(text.replace("query: 15", "query: 3").replace("episodes: 1000", "episodes: 4"))
    words = ("algorithm=nearest", "run_dir=run", "--config-dir", "own", "protocol=[mine,common]", *FEW)
    assert call("train", *words).code == 0
    assert (len(records_of("run")), sum(name.startswith("mine-") for name in records_of("run"))) == (2, 1)
    # What it says tomorrow is another test.
    path.write_text(path.read_text().replace("query: 3", "query: 4"))
    assert call("train", *words).code == 0
    again = call("evaluate", "run=run", "--config-dir", "own", "protocol=mine")
    assert (again.code, again.err) == (0, "")
    records = [json.loads(path.read_text())["protocol"] for path in Path("run/tests").glob("mine-*/record.json")]
    assert sorted((each["name"], each["query"], each["episodes"]) for each in records) == [
        ("mine", 3, 4),
        ("mine", 4, 4),
    ]


MISTAKES = {
    "protocol=[]": "protocol: names no test; choose some, such as protocol=common",
    "protocol=commo": "protocol=commo: no such option, did you mean common?",
    "protocol=paper": "protocol=paper: has no test for recipe=ours, dataset=glyphs, way=5, shot=1; choose protocol=",
    "protocol.common=3": "protocol.common: has parts, such as protocol.common.query",
    "protocol.common.rows=3": "protocol.common.rows: must be a list of",
    "protocol.common.rows=[{when:{shots:1},set:{}}]": "protocol.common.rows: no condition shots, did you mean shot?",
    "~protocol.common.query": "protocol.common: needs the keys split, query, ",
    "protocol.common.split=tset": "protocol.common.split=tset: there are train, val, test",
    "protocol.common.split=[val,test]": "protocol.common.split=['val', 'test']: must be one split: train, val or test",
    "protocol.common.steps=[1,1]": "protocol.common.steps=[1, 1]: name numbers of adaptation steps, each once",
    "protocol.common.steps=[]": "protocol.common.steps=[]: name numbers of adaptation steps",
    "protocol.common.steps=-1": "protocol.common.steps=-1: must be a whole number >= 0",
    "protocol.common.episodes=0": "protocol.common.episodes=0: must be a whole number >= 1",
    "protocol.common.setting=all": "protocol.common.setting=all: choose one of both, transductive, inductive",
    "protocol.common.rotations=some": "protocol.common.rotations=some: choose one of none, per_class, as_classes",
    "train.way=10": "train.way=10: maml learns a head of 5 ways, and is trained with no other number",
}


def test_a_protocol_that_has_no_test_for_the_task_is_named_where_a_word_asks_for_it() -> None:
    left_out = "protocol paper: no test for recipe=ours, dataset=glyphs, way=5, shot=1; left out"
    for words, said in ((["protocol.paper.episodes=3"], left_out), (["protocol.common.episodes=3"], "")):
        cfg = composed("algorithm=maml", "dataset=glyphs")
        OmegaConf.update(cfg, "protocol.paper", OmegaConf.load(CONF / "protocol/paper.yaml"), force_add=True)
        assert apply_protocols(cfg, words) == said


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_about_a_test_is_one_line_and_leaves_nothing(call: Any, word: str) -> None:
    done = call("train", "algorithm=maml", "run_dir=run", word)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert done.err.startswith(f"error: {MISTAKES[word]}"), done.err
    assert not list(Path().iterdir())


def test_learners_without_a_head_train_on_other_ways_than_they_are_tested_on(call: Any) -> None:
    quick = ("features.settings.epochs=1", "features.network.filters=4", "train.steps=1", "train.meta_batch=2")
    done = call("train", "algorithm=leo", "train.way=7", "run_dir=run", *quick, "train.validate_every=0", *QUICK[-3:])
    assert done.code == 0, done.err
    record = read_test("run")
    assert (record["train"]["way"], record["way"], record["protocol"]["way"]) == (7, 5, 5)


def test_steps_are_not_counted_for_a_learner_that_does_not_say_how_many_it_takes() -> None:
    class Own:
        def init(self) -> Any: ...
        def adapt(self, params: Any, state: Any, task: Any) -> Any: ...
        def predict(self, adapted: Any, x: Any) -> Any: ...

    run: Any = SimpleNamespace(learner=with_defaults(Own()), cfg=composed("algorithm=nearest"))
    protocol: Any = SimpleNamespace(key="protocol.common", steps=[1, 5])
    with pytest.raises(FewshotError, match="nearest has no single inner loop with steps to count"):
        _steps(run, protocol)
    run.learner = Own()
    run.learner.test_steps = 0
    assert _steps(SimpleNamespace(learner=with_defaults(run.learner), cfg=run.cfg), protocol) == [1, 5]  # type: ignore[arg-type]
