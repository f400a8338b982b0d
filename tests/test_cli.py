"""The tools as a person uses them: what a run leaves, what a second call does, and how mistakes are answered."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fewshot
from fewshot.algorithms.maml import MAML
from fewshot.core import environment
from fewshot.data.bank import Bank, open_banks
from fewshot.data.datasets.leo_embeddings import read_leo_embeddings, write_originals
from fewshot.engine.engine import Engine
from fewshot.report.records import read_record
from fewshot.training.checkpoint import load_checkpoint, save_checkpoint

from .conftest import find_test, read_test

ROOT = Path(__file__).resolve().parent.parent
COUNTS = ("protocol.common.episodes=6", "protocol.common.query=2")
TEST = (*COUNTS, "protocol.common.setting=transductive")
QUICK = (
    "backbone.network.filters=4", "train.steps=4", "train.meta_batch=2", "train.checkpoint_every=1",
    "train.validate_every=2", "validation.episodes=4", "validation.query=2", "protocol=common", *TEST,
)  # fmt: skip


def _quick(*words: str) -> list[str]:
    """These words and QUICK, without a network and a transductive test for nearest neighbours, which have neither."""
    lacking = ("backbone", "protocol.common.setting") if "algorithm=nearest" in words else ()
    return [*words, *(word for word in QUICK if not word.startswith(lacking))]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by QUICK; the first test that wants the run trains it."""
    return tmp_path_factory.mktemp("once") / "run"


@pytest.fixture
def trained(call: Any, trained_once: Path) -> None:
    """A copy of that run, in the folder "run"."""
    if not (trained_once / "tests").exists():
        assert call("train", f"run_dir={trained_once}", *QUICK).code == 0
    shutil.copytree(trained_once, "run")


def comparable(record: dict[str, Any]) -> dict[str, Any]:
    """A record without its timings and the words that made it."""
    return {key: value for key, value in record.items() if key not in ("cost", "command")}


@pytest.mark.parametrize("algorithm", ["nearest", "maml", "reptile"])
def test_a_run_leaves_everything_that_the_design_says(call: Any, algorithm: str) -> None:
    done = call("train", "run_dir=run", *_quick(f"algorithm={algorithm}"))
    assert (done.code, done.err) == (0, "")
    *progress, summary = done.out.splitlines()
    title = f"{algorithm} glyphs 5-way 1-shot: "
    setting = "inductive" if algorithm == "nearest" else "transductive"
    assert progress[-1] == f"{title}test (common, query=2, episodes=6, {setting}): starts, 0 of 6"
    assert summary.startswith(title) and f" % (common, query=2, episodes=6, {setting}; " in summary
    folder = Path("run")
    record = read_test(folder)
    assert record["protocol"]["manifest"]
    assert record["test"]["episodes"] == 6
    lines = (find_test(folder) / "episodes.csv").read_text().splitlines()
    scores = [float(line.split(",")[1]) for line in lines[1:]]
    assert lines[0] == "episode,accuracy"
    assert np.mean(scores) == pytest.approx(record["test"]["accuracy"], abs=1e-6)
    assert (folder / "config.yaml").exists()
    assert (folder / "checkpoints/last.safetensors").exists()
    if algorithm != "nearest":
        assert list(folder.glob("events.out.tfevents.*"))
        assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()][-1] == 4
    assert not [path for path in Path().rglob("*") if path.name in ("outputs", "multirun", ".hydra")]


def test_the_costs_of_a_later_test_are_those_of_the_training(call: Any, trained: None) -> None:
    cost = read_test("run")["cost"]
    assert cost["processes"] == 1 and cost["peak_memory_bytes"] > 1e8
    last = Path("run/checkpoints/last.safetensors")
    groups, header = load_checkpoint(last, "cpu")
    [processor] = cost["processors"]
    assert environment.environment()["instructions"] in processor
    save_checkpoint(last, groups, header | {"processes": 7, "peak_memory_bytes": 5, "processors": ["another"]})
    assert call("evaluate", "run=run", *QUICK[-4:-1], SEVEN).code == 0
    later = json.loads(next(Path("run/tests").glob("*episodes=7*/record.json")).read_text())["cost"]
    assert (later["processes"], later["peak_memory_bytes"], later["processors"]) == (7, 5, ["another"])


def test_a_later_test_that_cannot_be_is_one_line(call: Any) -> None:
    assert call("train", "run_dir=run", *_quick("algorithm=nearest")).code == 0
    before = sorted(Path().rglob("*"))
    for words, said in (
        (("latents=2",), "latents=2: only LEO, on classes, has latent codes; leave it out"),
        (("latents=0",), "latents=0: must be at least 1"),
        (("out=run",), "out=run: holds a run; choose another folder"),
    ):
        done = call("evaluate", "run=run", *words)
        assert (done.code, done.err) == (1, f"error: {said}\n")
    assert sorted(Path().rglob("*")) == before


def test_the_traceback_of_a_mistake_is_shown_where_it_is_asked_for(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake = ("train", "run_dir=run", *QUICK, "train.meta_batch=0")
    plain = call(*mistake)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    full = call(*mistake)
    assert plain.code == full.code == 1 and plain.err.count("\n") == 1
    assert full.err.startswith("Traceback") and full.err.endswith(plain.err)


def test_an_extractor_is_not_trained_to_begin_a_network(call: Any) -> None:
    done = call("pretrain", "features=conv4", "features.role=start")
    assert (done.code, done.err) == (1, "error: features.role=start: is of tools/train.py; leave it out\n")


def test_the_records_of_a_resumed_run_are_copied_to_their_place(call: Any) -> None:
    call("train", "runs=all/mine", "copy_records_to=kept", *QUICK)
    copies = {path: path.read_bytes() for path in Path("kept").rglob("record.json")}
    [run] = Path("all/mine").glob("*/*")
    assert len(copies) == 1 and call("train", f"resume={run}").code == 0
    assert {path: path.read_bytes() for path in Path("kept").rglob("record.json")} == copies
    # Also where the folder of runs has moved; in the folder's name the run's own values stand.
    Path("all").rename("moved")
    [run] = Path("moved/mine").glob("*/*")
    assert call("train", f"resume={run}", "copy_records_to='again/${dataset.name}'").code == 0
    assert [path.relative_to("again/glyphs") for path in Path("again").rglob("record.json")] == [
        path.relative_to("kept") for path in copies
    ]


def test_other_pretrained_weights_in_a_file_of_the_same_name_make_no_part_of_a_run(call: Any, weights: str) -> None:
    folders = Path("one"), Path("two")
    for folder in folders:
        folder.mkdir()
        (folder / "best.pth").write_bytes(Path(weights).read_bytes())
    tensors = torch.load(weights)
    torch.save({name: value + 0.5 for name, value in tensors.items()}, "two/best.pth")
    words = ["run_dir=run", "backbone=torchvision", "backbone.network.model=shufflenet_v2_x0_5", *QUICK[1:]]
    one, two = (f"backbone.network.weights={folder}/best.pth" for folder in folders)
    assert call("train", *words, one).code == 0
    assert read_test("run")["weights"]["file"] == "best.pth"
    for command in (["train", *words, two], ["train", *words, two, "protocol.common.episodes=7"]):
        done = call(*command)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert "run: this run began with other weights (best.pth, SHA-256 " in done.err
    assert "finished before" in call("train", *words, one).out


SEVEN = "protocol.common.episodes=7"
ONE_STEP = (SEVEN, "protocol.common.steps=1")
FEW = (
    "train.steps=3", "train.meta_batch=2", "train.validate_every=1", "validation.episodes=4", "protocol=common", SEVEN,
)  # fmt: skip


def test_a_regression_leaves_its_error_by_number_of_steps_and_a_drawing(call: Any) -> None:
    words = ("dataset=sinusoid", "run_dir=run", "protocol.common.steps=[0,2]", "plot=true", *FEW)
    done = call("train", "algorithm=maml", *words)
    assert (done.code, done.err) == (0, "")
    record = read_test("run")
    heading, *lines = (find_test("run") / "episodes.csv").read_text().splitlines()
    assert heading == "episode,mse_0,mse_2,variance"
    assert len(lines) == 7
    means = np.array([line.split(",") for line in lines], dtype=float).mean(0)
    assert list(record["test"]["mse"].values()) == pytest.approx(means[1:3], rel=1e-4)
    assert list(record["test"]["r2"].values()) == pytest.approx(1 - means[1:3] / means[3], rel=1e-4)
    assert record["protocol"]["adaptation_steps"] == [0, 2]
    assert record["way"] == 1
    assert Path("run/fits.png").stat().st_size > 10_000
    # One number of steps is one number, the same as among several.
    alone = call("evaluate", "run=run", "protocol.common.steps=2", "out=alone", SEVEN)
    assert (alone.code, alone.err) == (0, "")
    single = read_test("alone")
    assert single["test"]["mse"] == pytest.approx(record["test"]["mse"]["2"], rel=1e-6)
    assert single["protocol"]["adaptation_steps"] == 2
    # What the training cost does not depend on the test.
    assert single["cost"]["gradient_evaluations"] == record["cost"]["gradient_evaluations"] > 0
    fewer = call("evaluate", "run=run", "shot=3", "protocol.common.query=4", "checkpoint=last", SEVEN)
    assert fewer.code == 0, fewer.err
    assert "sinusoid 3-shot: MSE " in fewer.out


def test_leo_on_functions_leaves_both_its_loops_and_a_drawing(call: Any) -> None:
    done = call("train", "algorithm=leo_regression", "dataset=sines_and_lines", "run_dir=run", "plot=true", *FEW)
    assert (done.code, done.err) == (0, "")
    assert read_test("run")["protocol"]["adaptation_steps"] == "5 latent, 5 fine-tuning"
    assert Path("run/fits.png").stat().st_size > 10_000
    assert call("evaluate", "run=run", "protocol.common.steps=2", "out=two", SEVEN).code == 0
    assert read_test("two")["protocol"]["adaptation_steps"] == "5 latent, 2 fine-tuning"
    assert read_test("two")["cost"]["gradient_evaluations"] == read_test("run")["cost"]["gradient_evaluations"]
    several = call("evaluate", "run=run", "protocol.common.steps=[2,5]")
    assert several.code == 1
    assert "protocol.common.steps=[2, 5]: leo_regression has no single inner loop with steps to count" in several.err
    labels = call("evaluate", "run=run", "predictions=true")
    assert labels.code == 1
    assert "predictions=true: sines_and_lines is a regression, without classes; leave it out" in labels.err


def test_records_and_curves_are_copied_to_a_folder_of_their_own(call: Any) -> None:
    done = call("train", "runs=runs", "copy_records_to=kept", *QUICK, "train.validate_every=2", "train.log_every=1")
    assert (done.code, done.err) == (0, "")
    (record,) = Path("runs").rglob("record.json")
    copies = sorted(path.relative_to("kept") for path in Path("kept").rglob("*") if path.is_file())
    where = record.parent.relative_to("runs")
    assert copies == [where.parents[1] / "metrics.jsonl", where / "episodes.csv", where / "record.json"]
    assert (Path("kept") / where / "record.json").read_bytes() == record.read_bytes()
    steps, kept = (
        [json.loads(line) for line in (Path(runs) / where.parents[1] / "metrics.jsonl").read_text().splitlines()]
        for runs in ("runs", "kept")
    )
    assert 0 < len(kept) < len(steps)
    assert kept == [line for line in steps if "validation_accuracy" in line]


def test_checkpoints_are_those_of_the_run(call: Any) -> None:
    for run, seed in (("run", 0), ("other", 1)):
        words = ("dataset=sinusoid", f"run_dir={run}", f"seed={seed}", "train.select=last", *FEW)
        assert call("train", *words, *ONE_STEP).code == 0
    best = call("evaluate", "run=run", "checkpoint=best", "out=best", *ONE_STEP)
    by_path = call("evaluate", "run=run", "checkpoint=run/checkpoints/best.safetensors", "out=path", *ONE_STEP)
    assert (best.code, by_path.code) == (0, 0)
    found = [comparable(read_test(name)) for name in ("best", "path")]
    assert found[0] == found[1]
    assert found[0]["protocol"]["selection"] == "best validation mse"
    # Not even where a test of the run's own checkpoint of that name is there already.
    assert call("evaluate", "run=run", "checkpoint=last", *ONE_STEP).code == 0
    other = call("evaluate", "run=run", "checkpoint=other/checkpoints/last.safetensors", *ONE_STEP)
    assert other.code == 1
    assert "no checkpoint of the run; name a file in run/checkpoints" in other.err


def test_a_number_of_steps_that_diverges_is_left_out_with_a_word(call: Any) -> None:
    wild = ("algorithm.learner.inner_lr=50", "dataset=sinusoid", "run_dir=run", "recipe=none")
    done = call(
        "train",
        *wild,
        "protocol.common.steps=[0,60]",
        *(word for word in FEW if "train.steps" not in word),
        "train.steps=0",
    )
    assert done.code == 0
    assert "warning: mse_60 is not finite in " in done.err and "; left out of the record" in done.err
    test = read_test("run")["test"]
    assert list(test["mse"]) == ["0"] and 0 < test["diverged"]["60"] <= test["episodes"]
    alone = call("evaluate", "run=run", "protocol.common.steps=60", SEVEN)
    assert alone.code == 1
    assert "error: mse is not finite in " in alone.err


def test_the_order_of_words_makes_no_difference_and_a_last_part_finds_its_key(call: Any) -> None:
    done = call("train", "dataset.reader.noise=0.1", "dataset=sinusoid", "run_dir=run", "protocol.common.steps=1", *FEW)
    assert (done.code, done.err) == (0, "")
    assert read_test("run")["protocol"]["view"].endswith("noise 0.1")
    lost = call("train", "inner_lr=0.1")
    assert lost.code == 1
    assert lost.err == "error: inner_lr: no such key, did you mean algorithm.learner.inner_lr?\n"


def test_functions_of_ones_own_are_named_by_their_families(call: Any) -> None:
    own = ("dataset.reader.families.sine=null", "dataset.reader.families.line={slope:[-1,1],intercept:[0,0]}")
    done = call("train", "dataset=sinusoid", "run_dir=run", "protocol.common.steps=1", *own, *FEW)
    assert (done.code, done.err) == (0, "")
    view = read_test("run")["protocol"]["view"]
    assert view == "line: slope -1 to 1, intercept 0 to 0; x -5 to 5; noise 0"


def test_a_run_goes_on_to_the_same_bits_where_a_class_has_moved(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("train", "run_dir=whole", *QUICK).code == 0
    outer, calls = Engine.outer, []

    def dies(*inputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return outer(*inputs)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "outer", dies)
        assert call("train", "run_dir=died", *QUICK).code == 130
    moved = types.ModuleType("fewshot.elsewhere")
    moved.MAML = type("MAML", (MAML,), {})  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "fewshot.elsewhere", moved)
    monkeypatch.setitem(fewshot._PLACES, "MAML", "fewshot.elsewhere")
    done = call("train", "resume=died")
    assert (done.code, done.err) == (0, "")
    whole, died = (load_file(f"{run}/checkpoints/last.safetensors") for run in ("whole", "died"))
    assert whole.keys() == died.keys()
    assert all(torch.equal(value, died[name]) for name, value in whole.items())
    assert read_test("whole")["test"] == read_test("died")["test"]


def write_tables(folder: str, inputs: int, outputs: int) -> None:
    """Nine tables of a random linear map each, in folders of splits."""
    random = np.random.RandomState(0)
    header = [f"x{i}" for i in range(inputs)] + [f"y{i}" for i in range(outputs)]
    for number in range(9):
        path = Path(folder) / ("train", "val", "test")[number % 3] / f"{number}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        x = random.randn(12, inputs)
        rows = np.concatenate([x, 100 * x @ random.randn(inputs, outputs)], axis=1)
        path.write_text("\n".join([",".join(header), *(",".join(map(str, row)) for row in rows)]) + "\n")


TABLES = ("dataset=tables", "dataset.reader.root=tables", "shot=4", "validation.query=5", "protocol.common.query=6")


def test_tables_of_ones_own_are_learned_with_several_inputs_and_outputs(call: Any) -> None:
    write_tables("tables", 3, 2)
    done = call("train", "algorithm=maml", *TABLES, "run_dir=run", *FEW)
    assert (done.code, done.err) == (0, "")
    assert "after 1, " in done.out and "(R2 " in done.out
    record = read_test("run")
    assert record["protocol"]["view"] == "x0, x1, x2 to y0, y1; y in standard deviations of training"
    assert record["data"]["about"]["tables"] == {"train": 3, "val": 3, "test": 3}
    assert record["data"]["about"]["scale"]["y"][1][0] > 10
    variance = {steps: record["test"]["mse"][steps] / (1 - record["test"]["r2"][steps]) for steps in ("1", "5", "10")}
    assert max(variance.values()) == pytest.approx(min(variance.values()))
    again = call("evaluate", "run=run", "shot=2", "protocol.common.steps=3", "protocol.common.query=6", SEVEN)
    assert again.code == 0 and "tables 2-shot: MSE " in again.out
    assert fewshot.load_run("run").params["head.bias"].shape == (2,)


def test_fits_of_tables_are_drawn_over_one_input_and_refused_over_several(call: Any) -> None:
    write_tables("tables", 1, 2)
    done = call("train", *TABLES, "plot=true", "run_dir=run", *FEW)
    assert (done.code, done.err) == (0, "")
    assert Path("run/fits.png").stat().st_size > 10_000
    write_tables("tables", 2, 1)
    refused = call("train", *TABLES, "plot=true", "run_dir=other", *FEW)
    assert refused.err == "error: plot=true: tables has several columns of x, not one; leave plot out\n"
    assert not Path("other").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("way=5",), "way=5: tables is a regression, without classes; leave way out"),
        (("shot=20",), "tables, split test: shots and queries are 26 rows, which is more than table test/2 has (12)"),
        (("algorithm=leo",), "a regression is learned by maml, fomaml, reptile and leo_regression"),
        (("dataset.reader.root=none",), "none: no such file or folder"),
    ],
)
def test_mistakes_about_tables_are_one_line(call: Any, words: tuple[str, ...], said: str) -> None:
    write_tables("tables", 2, 2)
    done = call("train", *TABLES, "run_dir=run", *FEW, *words)
    assert done.code == 1
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("way=5",), "way=5: sinusoid is a regression, without classes; leave way out"),
        (("train.train_on_val=true",), "train.train_on_val: not for a regression"),
        (("features=conv4",), "features: not for a regression, such as sinusoid; leave it out"),
        (("features=resnet12", "features.role=start"), "features: not for a regression, such as sinusoid"),
        (("train.precision=bfloat16", "engine=vmap"), "engine=vmap: not with train.precision=bfloat16"),
        (("dataset.reader.families.sine.phase=3",), "dataset.reader.families.sine.phase=3: a range has two numbers"),
        (("algorithm=leo",), "a regression is learned by maml, fomaml, reptile and leo_regression"),
        (("features=none", "backbone=identity", "algorithm=leo"), "on functions choose algorithm=leo_regression"),
    ],
)
def test_mistakes_about_regressions_are_one_line(call: Any, words: tuple[str, ...], said: str) -> None:
    done = call("train", "dataset=sinusoid", "run_dir=run", *words)
    assert done.code == 1
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert not Path("run").exists()


@pytest.mark.parametrize("tool", ["prepare", "pretrain"])
def test_functions_are_refused_where_images_are_wanted(call: Any, tool: str) -> None:
    done = call(tool, "dataset=sinusoid")
    assert done.code == 1
    assert "dataset=sinusoid: is a regression, which only tools/train.py takes" in done.err
    assert len(done.err.splitlines()) == 1


def test_a_test_leaves_its_predictions_where_they_are_asked_for(call: Any, trained: None) -> None:
    test = find_test("run")
    kept = [(test / name).read_bytes() for name in ("record.json", "episodes.csv")]
    assert not (test / "predictions.csv").exists()
    done = call("evaluate", "run=run", "predictions=true", *TEST)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == f"predictions: {test}/predictions.csv"
    assert [(test / name).read_bytes() for name in ("record.json", "episodes.csv")] == kept
    table = (test / "predictions.csv").read_bytes()
    assert len(table.splitlines()) == 1 + 6 * 5 * 2
    # A test that is made again without them leaves none of the one that it replaces.
    assert call("evaluate", "run=run", "force=true", *TEST).code == 0
    assert not (test / "predictions.csv").exists()
    assert call("evaluate", "run=run", "force=true", "predictions=true", *TEST).code == 0
    assert (test / "predictions.csv").read_bytes() == table


def test_an_episode_is_drawn_with_its_predictions(call: Any) -> None:
    done = call("train", "run_dir=run", "plot=true", *QUICK)
    assert (done.code, done.err) == (0, "")
    assert Path("run/episode.png").stat().st_size > 5_000
    again = call("train", "run_dir=run", "plot=true", *QUICK)
    assert again.code == 0
    assert "drawn: run/episode.png" in again.out


def test_a_test_by_number_of_steps_is_each_of_them(call: Any, trained: None) -> None:
    assert call("evaluate", "run=run", "protocol.common.steps=[0,2,3]", "out=several", *TEST).code == 0
    several = read_test("several")["test"]
    for steps in (0, 2, 3):
        assert call("evaluate", "run=run", f"protocol.common.steps={steps}", f"out=one{steps}", *TEST).code == 0
        one = read_test(f"one{steps}")["test"]
        assert several["accuracy"][str(steps)] == one["accuracy"]
        assert several["ci95"][str(steps)] == one["ci95"]


def test_a_finished_run_is_not_run_again_unless_told_to(call: Any, trained: None) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    again = call("train", "run_dir=run", *QUICK)
    assert again.code == 0
    assert before == {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    first = read_test("run")
    assert call("evaluate", "run=run", *TEST).out.endswith("\n  tested before; force=true tests again\n")
    assert call("train", "run_dir=run", "force=true", *QUICK).code == 0
    record = find_test("run") / "record.json"
    assert record.stat().st_mtime_ns > before[record]
    assert comparable(read_test("run")) == comparable(first)


def test_a_sweep_ends_with_a_table_and_survives_a_broken_run(call: Any) -> None:
    done = call("train", "-m", "algorithm=maml,fomaml", "shot=1,30", "runs=sweep", *QUICK)
    assert done.code == 1
    assert "| maml" in done.out, done.err
    assert "| fomaml" in done.out
    assert done.err.count("error: ") == 2
    assert done.err.count("failed: ") == 2
    assert len(list(Path("sweep").rglob("record.json"))) == 2
    before = {path: path.stat().st_mtime_ns for path in Path("sweep").rglob("record.json")}
    call("train", "-m", "algorithm=maml,fomaml", "shot=1", "runs=sweep", *QUICK)
    assert before == {path: path.stat().st_mtime_ns for path in Path("sweep").rglob("record.json")}


def test_a_key_that_only_a_swept_choice_has_is_answered_in_one_line(call: Any) -> None:
    done = call("train", "-m", "algorithm=leo,nearest_mean", "features.settings.epochs=1")
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert "choose its group for the whole sweep, such as features=conv4" in done.err


@pytest.fixture
def published(tmp_path: Path) -> None:
    """Features in the layout of deepmind/leo, 600 of each of a few classes."""
    banks = {}
    for seed, split in enumerate(("train", "val", "test")):
        rows = np.random.RandomState(seed).randn(6, 1, 64) + np.random.RandomState(9 + seed).randn(6, 600, 64)
        offsets = torch.arange(0, 3601, 600)
        names = tuple(f"n0{seed}{i}" for i in range(6))
        examples = torch.from_numpy(rows.astype(np.float32).reshape(3600, 64))
        banks[split] = Bank(examples, offsets, names, split, "made up", {})
    write_originals(tmp_path / "mine/embeddings", banks, "mini", "center")


LEO = (
    "algorithm=leo", "dataset=mini", "shot=5", "data_dir=mine", "features.reader.width=64", "train.steps=4",
    "train.log_every=1", "train.validate_every=2", "validation.episodes=4", "protocol=paper",
    "protocol.paper.episodes=6",
)  # fmt: skip


def test_leo_trains_selects_and_tests_on_published_features_as_the_original_does(call: Any, published: None) -> None:
    done = call("train", "run_dir=run", *LEO)
    assert (done.code, done.err) == (0, "")
    record = read_test("run")
    assert (record["recipe"], record["backbone"]) == ("deepmind", "published features")
    assert record["protocol"] | {"query": 595, "setting": "inductive", "train_on_val": False} == record["protocol"]
    assert record["protocol"]["selection"] == "best validation accuracy"
    assert record["validation"]["step"] in (2, 4)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and all(line["loss"] is not None for line in lines)
    assert record["cost"]["nan_guarded_steps"] == 0
    assert {"latent_lr_mean", "latent_lr_stddev", "finetune_lr_mean", "finetune_lr_stddev"} <= set(lines[-1])
    inside = call("evaluate", "run=run", "latents=5", *COUNTS)
    assert (inside.code, inside.err) == (0, "")
    assert (len(list(Path("run/tests").iterdir())), len(list(Path("run").rglob("latents.png")))) == (2, 1)


def test_training_on_train_and_val_together_is_done_and_said(call: Any, published: None) -> None:
    assert call("train", "run_dir=run", "train.train_on_val=true", "train.select=last", *LEO).code == 0
    assert call("train", "run_dir=apart", "train.select=last", *LEO).code == 0
    refused = call("train", "run_dir=best", "train.train_on_val=true", *LEO, "train.validate_every=1")
    assert refused.err.startswith("error: train.train_on_val=true: the best checkpoint would be chosen on classes")
    assert not Path("best").exists()
    run, apart = read_test("run"), read_test("apart")
    assert (run["protocol"]["train_on_val"], apart["protocol"]["train_on_val"]) == (True, False)
    assert run["data"]["train_fingerprint"] != apart["data"]["train_fingerprint"]
    losses = [json.loads(Path(f"{f}/metrics.jsonl").read_text().splitlines()[0])["loss"] for f in ("run", "apart")]
    assert losses[0] != losses[1]
    assert "trained on train+val" in call("table", "runs=run").out


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("dataset.crop=42", "dataset.crop=42: published features do not use it; leave it out"),
        (
            "features=torchvision features.weights=w dataset.mean=[0.5]",
            "resnet18 features do not use it; set features.mean",
        ),
    ],
)
def test_settings_of_images_that_features_do_not_use_are_refused(
    call: Any, published: None, word: str, said: str
) -> None:
    own = [each for each in LEO if not (each.startswith("features.reader") and "features=" in word)]
    done = call("train", "run_dir=run", *own, *word.split())
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert said in done.err and not Path("run").exists()


def test_settings_of_files_that_are_not_read_are_noted(call: Any, published: None) -> None:
    done = call("train", "run_dir=run", *LEO, "dataset.reader.size=42")
    assert done.code == 0
    assert "note: dataset.reader.size=42: has no effect, since published features are read as they are" in done.err


def test_a_run_whose_every_step_had_a_nan_says_so(call: Any, published: None) -> None:
    done = call("train", "run_dir=run", *LEO, "algorithm.learner.latent_lr=1e30")
    assert "WARNING: 4 steps had a NaN" in done.out
    assert read_test("run")["cost"]["nan_guarded_steps"] == 4


def test_a_run_on_other_data_than_it_began_with_is_refused(call: Any, published: None, tmp_path: Path) -> None:
    assert call("train", "run_dir=run", *LEO).code == 0
    first = read_test("run")
    for seed, split in enumerate(("train", "val", "test")):
        file = tmp_path / f"mine/embeddings/embeddings/miniImageNet/center/{split}_embeddings.pkl"
        file.rename(tmp_path / f"{split}{seed}.pkl")
    for split, other in (("train", "val1"), ("val", "train0"), ("test", "test2")):
        target = tmp_path / f"mine/embeddings/embeddings/miniImageNet/center/{split}_embeddings.pkl"
        (tmp_path / f"{other}.pkl").rename(target)
    for words in (["train", "run_dir=run", *LEO], ["evaluate", "run=run", *TEST], ["train", "resume=run"]):
        done = call(*words)
        assert (done.code, len(done.err.splitlines())) == (1, 1), done.err
        assert "this run is on other data" in done.err
    assert read_test("run") == first
    Path("run/data.json").write_text("{")
    done = call("evaluate", "run=run", *TEST)
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "data.json: damaged" in done.err


@pytest.mark.parametrize("algorithm", ["maml", "nearest_mean"])
def test_other_algorithms_run_on_the_same_features(call: Any, published: None, algorithm: str) -> None:
    words = [f"algorithm={algorithm}", "features=published", *LEO[1:-2], "protocol=common", *COUNTS]
    done = call("train", "run_dir=run", *words, *(["backbone=linear"] if algorithm == "maml" else []))
    assert (done.code, done.err) == (0, "")
    wanted = "published features" if algorithm == "nearest_mean" else "linear on published features"
    assert read_test("run")["backbone"] == wanted


def test_mistakes_with_features_are_one_line(call: Any, published: None, data_dir: Path) -> None:
    for words, said in (
        (("features.reader.width=640",), "width 64, not 640"),
        (("protocol.paper.query=596",), "shot=5 plus query=596 is more than class n020 has (600 examples)"),
        (("features=none", "protocol=common"), "no miniImageNet is there"),
        (("features=conv4", "protocol=common"), "no miniImageNet is there"),
        (
            ("dataset=glyphs", f"data_dir={data_dir}", "features=bank", "features.reader.folder=no", "protocol=common"),
            "no features there",
        ),
    ):
        named = {word.split("=")[0].split(".")[0] for word in words}
        others = [word for word in LEO if word.split("=")[0].split(".")[0] not in named]
        done = call("train", "run_dir=run", *others, *words)
        assert done.code == 1
        assert len(done.err.splitlines()) == 1
        assert said in done.err, done.err
        assert not Path("run").exists()


def test_an_extractor_is_trained_once_for_pretraining_and_leo_alike(call: Any, data_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(data_dir / "banks", "mine/banks", ignore=shutil.ignore_patterns("features-*", "extractors"))
    words = ["features.network.filters=4", "data_dir=mine"]
    words += ["features.settings.epochs=1", "features.settings.episodes=2"]
    done = call("pretrain", "backbone=conv4", *words, "export_leo_format=original")
    assert done.code == 0, done.err
    assert done.out.startswith("extractor conv4") and "validation accuracy" in done.out
    quick = [word for word in QUICK if not word.startswith(("backbone", "protocol.common.setting"))]
    again = call("train", "algorithm=leo", "features=conv4", "run_dir=run", *words, *quick)
    assert again.code == 0 and again.err.startswith("note: conv4 features: those in ")
    assert again.err.endswith(", made before\n") and again.err.count("\n") == 1
    (features,) = Path("mine/banks").glob("features-*")
    data = read_test("run")["data"]
    assert (data["about"]["extractor"]["name"], data["about"]["folder"]) == ("conv4", features.name)
    read_back = read_leo_embeddings("original", "cache", dataset="glyphs", width=None)
    for split, bank in open_banks(features).items():
        both = [each.examples.split(each.sizes.tolist()) for each in (bank, read_back[split])]
        mine, theirs = (sorted(block.tolist() for block in blocks) for blocks in both)
        assert mine == theirs  # class by class, in another order
    twice = call("pretrain", "backbone=conv4", "data_dir=other", "export_leo_format=original")
    assert twice.err.startswith("error: original/embeddings/glyphs/center: is there already")
    assert not Path("other").exists()  # it was not trained first
    refused = call("pretrain", "backbone=conv4", "backbone.network.filters=4")
    assert refused.err == "error: backbone.network.filters=4: of an extractor, write features.network.filters=4\n"


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ("published", "choose features=conv4, resnet12 or wrn28_10"),
        ("torchvision", "features=torchvision: trains nothing"),
    ],
)
def test_features_that_are_not_trained_here_are_refused_by_pretrain(call: Any, features: str, said: str) -> None:
    refused = call("pretrain", "dataset=mini", *f"features={features}".split())
    assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
    assert said in refused.err


MISTAKES = {
    "missing embeddings": (
        ["algorithm=leo", "dataset=mini", "shot=5", "data_dir=nowhere"],
        ["embeddings.zip", "features.reader.download=true", "features of your own"],
    ),
    "a backbone that LEO cannot use": (["algorithm=leo", "backbone=conv4", "features=none"], ["backbone=identity"]),
    "norms with running averages": (
        ["backbone.network.norm=running"],
        ["layer blocks.0.norm (RunningNorm)", "set backbone.network.norm=batch"],
    ),
    "more ways than classes": (["way=2000"], ["way=2000", "classes", "lower way"]),
    "more examples than the smallest class": (
        ["shot=5", "protocol.common.query=16"],
        ["protocol.common: ", "shot=5", "query=16", "20 examples", "U+", "lower shot or protocol.common.query"],
    ),
    "missing data": (["dataset=omniglot"], ["images_background", "dataset.reader.download=true"]),
    "unknown nested key": (["train.step=5"], ["train.step", "did you mean", "train.steps"]),
    "unknown value": (["engine=fast"], ["engine=fast", "vmap"]),
    "no number": (["algorithm.learner.inner_lr=fast"], ["algorithm.learner.inner_lr=fast", "a number"]),
    "no queries to learn from": (["train.query=0"], ["train.query=0"]),
    "nothing to train": (["backbone=identity"], ["no parameters", "such as backbone=conv4"]),
    "a backbone that the algorithm cannot use": (["dataset=sinusoid", "backbone=conv4"], ["choose mlp or linear"]),
    "a file in place of a folder": (["run_dir=/dev/null"], ["/dev/null"]),
    "no override": (["algorithm"], ["command line"]),
    "unknown choice in the backbone": (["backbone.network.readout=max"], ["readout=max", "flatten, mean"]),
    "no such device": (["device=cuda:77"], ["device=cuda:77"]),
    "resume of nothing": (["resume=nowhere"], ["nowhere", "not a run folder"]),
    "resume with other settings": (["resume=nowhere", "way=3"], ["leave out way=3"]),
    "no steps": (["train.meta_batch=0"], ["train.meta_batch=0"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_on_stderr_and_leaves_nothing(call: Any, mistake: str) -> None:
    words, said = MISTAKES[mistake]
    done = call("train", *words)
    assert done.code == 1
    assert all(line.startswith("recipe ") for line in done.out.splitlines())
    assert len(done.err.splitlines()) == 1
    assert all(part in done.err for part in said), done.err
    assert not list(Path().iterdir())


def test_a_folder_that_holds_something_else_is_left_alone(call: Any, trained: None) -> None:
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    done = call("train", "run_dir=run", "seed=1", *QUICK)
    assert done.code == 1
    assert done.err == "error: run: holds another run (other seed); choose another run_dir\n"
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("mine")
    assert "not empty and not a run" in call("train", "run_dir=mine", *QUICK).err
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]


def test_keys_of_ones_own_are_kept_and_unknown_keys_of_the_program_are_refused(call: Any) -> None:
    words = ("run_dir=run", *QUICK, "+base_lr=0.01", "train.outer_lr=${base_lr}")
    assert call("train", *words).code == 0
    assert "finished before" in call("train", *words).out
    assert call("evaluate", "run=run", *QUICK[-2:]).code == 0
    for word, said in (
        ("+train.momentum=0.9", "train.momentum: no such key"),
        ("+validation.querry=5", "validation.querry: no such key, did you mean validation.query?"),
    ):
        done = call("train", "run_dir=other", *QUICK, word)
        assert done.code == 1 and done.err.startswith(f"error: {said}") and done.err.count("\n") == 1
    assert not Path("other").exists()


def test_a_damaged_or_foreign_checkpoint_is_one_line(call: Any, trained: None) -> None:
    call("train", "run_dir=other", "algorithm=reptile", *QUICK)
    last, best = Path("run/checkpoints/last.safetensors"), Path("run/checkpoints/best.safetensors")
    best.write_bytes(Path("other/checkpoints/last.safetensors").read_bytes())
    done = call("evaluate", "run=run")
    assert done.code == 1
    assert "another algorithm or backbone" in done.err
    last.write_bytes(last.read_bytes()[:100])
    done = call("evaluate", "run=run")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "damaged" in done.err
    assert len(list(Path("run").rglob("record.json"))) == 1


def test_a_learner_with_a_head_is_not_tested_with_another_number_of_classes(call: Any, trained: None) -> None:
    done = call("evaluate", "run=run", "way=3")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "error: way=3: the learner was trained for 5 classes and takes no other number; leave way out, or train with "
        "this way\n"
    )


BEFORE_TRAINING = "before the meta-training; the same command begins it, and keeps what was made of data or extractor"
MISSING_TESTS = "the training has ended; the same command, or `{}`, runs the missing tests"


@pytest.mark.parametrize(
    ("words", "at", "message"),
    [
        ((), "training.loop.is_better", "the same command, or `{}`, continues after step 3"),
        ((), "experiment.run.write_tests", MISSING_TESTS),
        (("algorithm=nearest",), "experiment.run.write_tests", MISSING_TESTS),
        (("force=true",), "training.loop.optimizer_step", "`{}` starts at step 0: it had no checkpoint yet"),
        ((), "experiment.run._check_tasks", BEFORE_TRAINING),
    ],
)
def test_an_interrupted_run_says_how_to_go_on(
    call: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], at: str, message: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"fewshot.{at}", lambda *_: _interrupt())
        done = call("train", "run_dir=run", *_quick(*words))
    assert done.code == 130
    assert done.err.strip() == f"interrupted: {message.format('python tools/train.py resume=run')}"
    assert call("train", "run_dir=run", *_quick(*words)).code == 0


def test_a_forced_run_that_is_interrupted_before_its_training_does_not_offer_the_old_one(
    call: Any, trained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fewshot.experiment.run._check_tasks", lambda *_: _interrupt())
        done = call("train", "run_dir=run", "force=true", *QUICK)
    assert done.err.strip() == f"interrupted: {BEFORE_TRAINING}"


def test_a_run_of_a_gpu_is_resumed_where_there_is_none(call: Any, trained: None) -> None:
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("device: cpu", "device: cuda"))
    shutil.rmtree("run/tests")
    if not torch.cuda.is_available():
        assert "use device=cpu or device=auto" in call("train", "resume=run").err
    assert call("train", "resume=run", "device=auto").code == 0
    assert len(list(Path("run/tests").rglob("record.json"))) == 1


def test_the_configuration_of_a_resumed_run_is_in_its_folder(call: Any) -> None:
    shown = call("train", "resume=run", "--cfg", "job")
    assert shown.err == "error: resume=run: the run has its own configuration; see config.yaml in its folder\n"


def test_a_record_names_the_code_that_its_process_began_with(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    began, begin = environment.code(), fewshot.experiment.run._begin
    environment.code.cache_clear()

    def begin_and_commit(*inputs: Any) -> None:
        begin(*inputs)
        patch.setattr(environment.subprocess, "check_output", lambda *_, **__: "committed meanwhile")

    with monkeypatch.context() as patch:
        patch.setattr("fewshot.experiment.run._begin", begin_and_commit)
        assert call("train", "run_dir=run", *QUICK).code == 0
    assert read_test("run")["code"] == began | {"training": [began]}


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_loss_that_is_not_finite_stops_the_run(call: Any) -> None:
    words = [word for word in QUICK if word != "train.outer_optimizer=adam"]
    done = call("train", "run_dir=run", "train.outer_optimizer=sgd", "train.outer_lr=1e30", *words)
    assert done.code == 1
    assert done.err.startswith("error: step 2: the loss or its gradient is not finite")
    assert not Path("run/tests").exists()


def test_memory_that_does_not_suffice_is_one_line(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory\nframe #0")

    def unmapped(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(Engine, "outer", full)
    by_step = call("train", "run_dir=run", *QUICK)
    monkeypatch.setattr(np, "load", unmapped)
    by_bank = call("train", "run_dir=other", *QUICK)
    for done, reason in ((by_step, "can't allocate memory)"), (by_bank, "Cannot allocate memory)")):
        assert (done.code, len(done.err.splitlines())) == (1, 1)
        assert done.err.startswith("error: out of memory: take a smaller network, ")
        assert done.err.endswith(f"{reason}\n")


def test_a_truncated_archive_is_one_line(call: Any) -> None:
    Path("omniglot").mkdir()
    for name in ("background", "evaluation"):
        Path(f"omniglot/images_{name}.zip").write_bytes(b"PK\x03\x04 and no more")
    done = call("train", "dataset=omniglot", "data_dir=.", "run_dir=run")
    assert (done.code, len(done.err.splitlines())) == (1, 1)
    assert "images_background.zip" in done.err
    assert sorted(path.name for path in Path().iterdir()) == ["omniglot"]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["maml", "reptile"])
def test_a_run_killed_at_random_moments_ends_with_the_record_of_a_whole_one(
    algorithm: str, data_dir: Path, tmp_path: Path
) -> None:
    words = [
        f"algorithm={algorithm}", "train.steps=40", "train.meta_batch=2", "train.checkpoint_every=3",
        "train.validate_every=8", "train.select=best", "validation.episodes=10", "validation.query=3",
        "backbone.network.filters=8", "protocol=common", "protocol.common.episodes=50", "protocol.common.query=3",
        "protocol.common.setting=transductive",
    ]  # fmt: skip
    environment = os.environ | {"FEWSHOT_DATA": str(data_dir), "OMP_NUM_THREADS": "1"}

    def start(*words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(ROOT / "tools/train.py"), *words], env=environment, cwd=tmp_path)

    assert start("run_dir=whole", *words).wait() == 0
    dice, deaths = random.Random(0), 0
    process = start("run_dir=died", *words)
    while deaths < 4:
        time.sleep(dice.uniform(0.05, 1.5) if (tmp_path / "died/checkpoints/last.safetensors").exists() else 0.5)
        if process.poll() is not None:
            break
        if (tmp_path / "died/config.yaml").exists():
            process.send_signal(signal.SIGKILL)
            process.wait()
            deaths += 1
            process = start("resume=died")
    assert process.wait() == 0
    assert deaths >= 1
    whole, died = read_test(tmp_path / "whole"), read_test(tmp_path / "died")
    assert comparable(whole) == comparable(died)
    scores = [(find_test(tmp_path / run) / "episodes.csv").read_bytes() for run in ("whole", "died")]
    assert scores[0] == scores[1]


def test_records_of_another_run_are_not_replaced_and_those_of_a_replaced_training_go(call: Any) -> None:
    words = ("copy_records_to=kept", *QUICK)
    both = ("protocol=[common,paper]", "protocol.paper.query=1", "protocol.paper.episodes=3")
    assert call("train", "run_dir=a/one", *words, *both, "protocol.paper.setting=inductive").code == 0
    other = call("train", "run_dir=b/one", *words, "seed=1")
    assert other.code == 1 and "holds a record of another run, maml glyphs 5-way 1-shot, seed 0; copy to" in other.err
    assert not Path("b").exists()  # it is known before the training
    (paper,) = Path("kept").rglob("paper-*/record.json")
    assert call("train", "run_dir=a/one", *words, "force=true").code == 0
    assert paper.exists()  # of the same weights, which another training of these settings has
    paper.write_text(paper.read_text().replace(read_record(paper)["train"]["fingerprint"], "0" * 64))
    assert call("train", "run_dir=a/one", *words, "force=true").code == 0
    assert not paper.exists() and len(list(Path("kept").rglob("record.json"))) == 1


def test_a_test_of_other_weights_is_made_again(call: Any, trained: None) -> None:
    (record,) = Path("run").rglob("record.json")
    test = ("evaluate", "run=run", *QUICK[-2:])
    first, content = record.stat().st_mtime_ns, json.loads(record.read_text())
    assert len(content["train"]["fingerprint"]) == 64
    assert call(*test).code == 0 and record.stat().st_mtime_ns == first
    content["train"]["fingerprint"] = "0" * 64
    record.write_text(json.dumps(content))
    assert call(*test).code == 0
    assert json.loads(record.read_text())["train"]["fingerprint"] != "0" * 64


def test_a_table_says_where_a_run_is_not_as_its_recipe(call: Any) -> None:
    words = ("recipe=ours", "algorithm.learner.inner_lr=0.3", *QUICK)
    assert call("train", *words).code == 0
    record = json.loads(next(Path("runs").rglob("record.json")).read_text())
    assert {"algorithm.learner.inner_lr", "train.steps"} <= set(record["recipe_changes"])
    (note,) = re.findall(r"not as its recipe: (.*)", call("table").out)
    assert {"inner_lr=0.3", "steps=4"} <= set(note.split(", "))
