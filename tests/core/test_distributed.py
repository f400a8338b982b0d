"""Several processes on one run: the result of one process, whoever fails or dies.

`python -m torch.distributed.run tests/core/test_distributed.py` makes of this file the processes whose results are
compared.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from fewshot.algorithms.leo import LEO
from fewshot.algorithms.leo_regression import LEORegression
from fewshot.algorithms.maml import FOMAML, MAML
from fewshot.algorithms.nearest import Nearest
from fewshot.algorithms.reptile import Reptile
from fewshot.backbones.conv4 import Conv4
from fewshot.backbones.identity import Identity
from fewshot.backbones.mlp import MLP
from fewshot.core import distributed
from fewshot.core.distributed import (
    RankZeroFailed,
    all_reduce_sum,
    check_shared_device,
    fails_everywhere,
    is_main,
    main_first,
    on_all_cores,
    on_rank_zero,
    pad_to_global,
    process_group,
    rank_slice,
    world,
)
from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.data.bank import Bank
from fewshot.engine import evaluate
from fewshot.engine.engine import Engine
from fewshot.engine.reduce import MetaGradient, over_processes
from fewshot.episodes import Episodes
from fewshot.experiment import make_record
from fewshot.experiment.build import read_sources
from fewshot.experiment.recipes import complete
from fewshot.experiment.run import training_run
from fewshot.tasks import functions
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import Sampler
from fewshot.training.checkpoint import load_checkpoint
from fewshot.training.loop import check_shareable, run_training
from fewshot.training.optimizer import replace_nan
from fewshot.training.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "tools/train.py")
COMMON = (
    "recipe=none",
    "train.steps=5",
    "train.validate_every=3",
    "train.checkpoint_every=2",
    "train.log_every=1",
    "validation.episodes=5",
    "validation.query=3",
    "protocol=common",
    "protocol.common.setting=transductive",
)
EPISODES = "protocol.common.episodes="
SMALL = ("backbone.network.filters=4", "protocol.common.query=3", EPISODES + "21")
EXTRACTOR = ("features.network.filters=4", "features.settings.epochs=1", "features.settings.episodes=20")
# Runs of the tool. A meta-batch of 5 is none that two processes share equally.
CASES = {
    "maml": (*SMALL, "algorithm=maml", "train.meta_batch=5", "train.checkpoint_every=100"),  # the only one is the last
    "leo": ("algorithm=leo", "train.meta_batch=5", EPISODES + "20", *EXTRACTOR),
}
# In float64: float32's last digit, which chunks in one process change too, becomes 3e-3 in 20 steps of LEO and Adam.
LEARNERS = ("maml", "fomaml", "reptile", "leo", "leo_regression", "nearest")
SETTINGS = TrainSettings(
    steps=5, meta_batch=5, way=None, shot=None, query=None, outer_optimizer="adam", outer_lr=0.01, outer_lr_end=0.0,
    clip=None, clip_norm=None, nan_guard=False, train_on_val=False, validate_every=0, select="last", checkpoint_every=2,
    log_every=1,
)  # fmt: skip


def make_case(name: str) -> tuple[Any, Any, Engine]:
    """A small learner of LEARNERS in the default dtype, its tasks, and an engine."""
    torch.manual_seed(0)
    labels = [row % 7 for row in range(84)]
    images = Bank.from_tensors(torch.randint(256, (84, 1, 16, 16), dtype=torch.uint8), labels)
    features = Bank.from_tensors(torch.randn(84, 8), labels)
    families = {"sine": {"amplitude": (1, 3), "phase": (0, 3)}, "line": {"slope": (-1, 1), "intercept": (-1, 1)}}
    curves = Regression(functions.read_functions(families, (-2, 2), 0.1)["train"], 5, 5, seed=0)
    conv4, perceptron = Conv4((1, 16, 16), 5, filters=4), MLP((1,), 1, widths=(8,), norm="none", head_init="xavier")
    learner: Any = {
        "maml": lambda: MAML(conv4, inner_lr=0.1, test_steps=2),
        "fomaml": lambda: FOMAML(conv4, inner_lr=0.1, test_steps=2),
        "reptile": lambda: Reptile(conv4, inner_batch=4, test_steps=3),
        "leo": lambda: LEO(Identity((8,), 5), latent=6, latent_lr=0.1),
        "leo_regression": lambda: LEORegression(perceptron, latent_steps=2, finetune_steps=2),
        "nearest": lambda: Nearest(Identity((1, 16, 16), 5)),
    }[name]()
    bank = features if name == "leo" else images
    tasks = curves if name == "leo_regression" else Sampler(bank, 5, 2, 3, seed=0)
    return learner, Float64(tasks), Engine("loop" if name == "fomaml" else "auto")


def train_and_score(folder: Path) -> dict[str, list[float]]:
    """The scores of each untrained learner on 13 tasks; all but the baseline are trained in a folder of their own."""
    found, at_once = {}, evaluate.EXAMPLES_AT_ONCE
    evaluate.EXAMPLES_AT_ONCE = 100  # several batches, which processes share
    torch.set_default_dtype(torch.float64)
    try:
        for name in LEARNERS:
            learner, tasks, engine = make_case(name)
            params, state = learner.init()
            setting = "inductive" if name == "reptile" else "transductive"
            scored = evaluate.score_episodes(learner, params, state, tasks, 13, setting=setting, engine=engine)
            found[name] = scored.tolist()
            if name != "nearest":
                run_training(learner, tasks, SETTINGS, engine, folder / name, lambda *_: 0.0, lambda *_: None)
    finally:
        torch.set_default_dtype(torch.float32)
        evaluate.EXAMPLES_AT_ONCE = at_once
    return found


@dataclass(frozen=True)
class Float64:
    """Tasks in float64."""

    tasks: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tasks, name)

    def episodes(self, first: int, count: int) -> Episodes:
        return self.tasks.episodes(first, count).to(torch.float64)


def composed_run(name: str, folder: Path, data: Path) -> Any:
    """The configuration of a run of the tool."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = (*COMMON, *CASES[name])
        cfg = compose("train", [*words, f"data_dir={data}", f"run_dir={folder}", "device=cpu"])
        complete(cfg, words)
        return cfg


def process(folder: Path, data: Path) -> None:
    """What one of two processes does, and what it is told of the other. Writes `<rank>.json`."""
    rank, _ = world()
    found: dict[str, Any] = {}
    main_first(lambda: read_sources(composed_run("leo", folder / "run leo", data)))()
    found["scores"] = train_and_score(folder)

    lone = torch.tensor([1.0] if rank == 0 else [float("nan")])
    params = {"w": torch.ones(2)}
    whole = over_processes(MetaGradient({"w": torch.ones(2)}, {}, lone, lone), rank_slice(2), 2)
    found["nan"] = bool(replace_nan(whole.gradient, whole.loss, params)[1])

    calls = []
    found["by_main"] = on_rank_zero(lambda: calls.append(rank) or "said")()
    found["main_first"] = main_first(lambda: [*calls, rank, *world()])()
    try:
        on_rank_zero(_fail)(rank)
    except (FewshotError, RankZeroFailed) as error:
        found["failure"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(found))


def _fail(rank: int) -> None:
    raise FewshotError(f"in process {rank}")


def start(tmp: Path, data: Path, *words: str) -> subprocess.Popen[str]:
    """Two processes of a script, as torchrun starts them."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *words]
    # Other tests use the same cores: threads that wait for each other in a busy loop would take most of the time.
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    environment = os.environ | threads | {"FEWSHOT_DATA": str(data), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(launch, cwd=tmp, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def by_two(tmp: Path, data: Path, *words: str) -> tuple[str, str]:
    """(stdout, stderr) of two processes that end well."""
    pair = start(tmp, data, *words)
    out, errors = pair.communicate()
    assert pair.returncode == 0, errors
    return out, errors


def record(folder: Path) -> dict[str, Any]:
    """A run's record without what it cost, on how many threads, and the hash of weights that round otherwise."""
    found = json.loads((find_test(folder) / "record.json").read_text())
    del found["train"]["fingerprint"]
    return {key: value for key, value in found.items() if key not in ("cost", "command", "environment")}


def find_test(folder: Path) -> Path:
    """The folder of the only record below a folder; torchrun starts this file where no conftest is."""
    (path,) = folder.rglob("record.json")
    return path.parent


def scores(folder: Path) -> str:
    return (find_test(folder) / "episodes.csv").read_text()


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    groups, _ = load_checkpoint(folder / "checkpoints/last.safetensors", "cpu")
    return groups["params"] | groups.get("state", {})


def assert_close(one: Path, two: Path, atol: float) -> None:
    mine, theirs = parameters(one), parameters(two)
    assert mine.keys() == theirs.keys()
    for key in mine:
        torch.testing.assert_close(theirs[key], mine[key], rtol=0, atol=atol)


def files(folder: Path) -> list[str]:
    """What lies in a run folder; TensorBoard's files are named by time and process."""
    return sorted(path.relative_to(folder).as_posix().split(".tfevents")[0] for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> dict[str, Any]:
    """What two processes do, and then this one: their folders, the scores of this one, and what each process said."""
    tmp = tmp_path_factory.mktemp("both")
    one, two = tmp / "one", tmp / "two"
    two.mkdir()
    output, _ = by_two(tmp, data_dir, __file__, str(two), str(data_dir))
    said = [json.loads((two / f"{rank}.json").read_text()) for rank in (0, 1)]
    training_run(composed_run("maml", one / "run maml", data_dir))
    return {"one": one, "two": two, "scores": train_and_score(one), "said": said, "output": output}


@pytest.mark.parametrize("name", [name for name in LEARNERS if name != "nearest"])
def test_two_processes_learn_what_one_learns(both: dict[str, Any], name: str, float64: None) -> None:
    assert_close(both["one"] / name, both["two"] / name, atol=1e-9)
    started, learned = make_case(name)[0].init()[0], parameters(both["two"] / name)
    assert max((learned[key] - value).abs().max() for key, value in started.items()) > 1e-3


@pytest.mark.parametrize("name", LEARNERS)
def test_two_processes_give_the_scores_of_one(both: dict[str, Any], name: str) -> None:
    main, other = (said["scores"][name] for said in both["said"])
    assert both["scores"][name] == main == other
    assert len(set(main)) > 1


def test_what_process_0_prepares_the_other_finds(both: dict[str, Any]) -> None:
    assert len(re.findall(r"extractor conv4, .*: starts", both["output"])) == 1
    main, other = both["said"]
    assert main["by_main"] == other["by_main"] == "said"
    assert main["main_first"] == [0, 0, 0, 1]  # it called by_main's function; within, each is a world of its own
    assert other["main_first"] == [1, 0, 1]


def test_what_fails_in_process_0_is_said_there_alone(both: dict[str, Any]) -> None:
    assert [said["failure"] for said in both["said"]] == ["in process 0", ""]


def test_a_nan_in_one_process_is_a_nan_in_all(both: dict[str, Any]) -> None:
    assert [said["nan"] for said in both["said"]] == [True, True]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 12])
def test_shares_are_consecutive_and_equal_within_one(monkeypatch: pytest.MonkeyPatch, size: int, count: int) -> None:
    shares = []
    for rank in range(size):
        monkeypatch.setattr(distributed, "world", lambda rank=rank: (rank, size))
        shares.append(rank_slice(count))
    assert [place for part in shares for place in part] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_is_all_there_is_without_torchrun() -> None:
    with process_group():
        assert world() == (0, 1)
        assert is_main()
        assert rank_slice(5) == range(5)
        values = torch.arange(3.0)
        assert all_reduce_sum([pad_to_global(values, range(3), 3)])[0].equal(values)


def test_what_rank_zero_does_alone_takes_the_cores_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    before = torch.get_num_threads()
    for alone, threads in ((False, before), (True, 2 * before)):
        monkeypatch.setattr(distributed, "_alone", alone)
        with on_all_cores():
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("size", "local", "launcher"),
    [(1, 1, "python"), (2, 2, "torchrun --nproc_per_node=2"), (4, 2, "torchrun --nnodes=2 --nproc_per_node=2")],
)
def test_a_record_names_what_started_its_processes(
    monkeypatch: pytest.MonkeyPatch, size: int, local: int, launcher: str
) -> None:
    monkeypatch.setattr(make_record, "world", lambda: (0, size))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "shot=5"])
    assert make_record._command() == f"{launcher} tools/train.py shot=5"


def test_a_chain_and_a_meta_batch_too_small_are_refused(make_learner: Any) -> None:
    with pytest.raises(FewshotError, match="adam_state=sequential: each task waits .* 2 processes"):
        check_shareable(make_learner("reptile-sequential"), 4, 2)
    with pytest.raises(FewshotError, match=r"train.meta_batch=1: fewer tasks than processes \(2\)"):
        check_shareable(make_learner("maml"), 1, 2)
    check_shareable(make_learner("reptile-sequential"), 1, 1)
    check_shareable(make_learner("reptile-shared"), 2, 2)


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
@pytest.mark.parametrize("words", [["sede=0"], ["recipe=wrong"], ["-m", "sede=0,1"]], ids=" ".join)
def test_a_mistake_in_the_command_is_said_once(
    call: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], rank: str, lines: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    done = call("train", *words)
    assert (done.code, done.err.count("error: "), done.err.count("\n")) == (1, lines, lines)


def test_a_number_of_processes_that_nothing_started_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = "^WORLD_SIZE=2: .* these are not set: RANK, MASTER_ADDR, MASTER_PORT.*; start them by torchrun"
    with pytest.raises(FewshotError, match=message), process_group():
        pass
    monkeypatch.setenv("WORLD_SIZE", "")
    with process_group():
        assert world() == (0, 1)


def test_several_processes_share_no_numbered_gpu() -> None:
    check_shared_device("cuda:1", 1)
    check_shared_device("cuda", 2)
    with pytest.raises(FewshotError, match="^device=cuda:1: each process takes the GPU of its number"):
        check_shared_device("cuda:1", 2)


@pytest.mark.parametrize(("seconds", "said"), [("1", "another process of this run ended or hangs"), ("soon", "soon")])
def test_others_that_do_not_come_are_no_riddle(monkeypatch: pytest.MonkeyPatch, seconds: str, said: str) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in (place | {"FEWSHOT_TIMEOUT": seconds}).items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(FewshotError, match=said), process_group():
            pass
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_sweep_by_torchrun_leaves_what_its_runs_leave_and_survives_a_broken_one(
    both: dict[str, Any], data_dir: Path, tmp_path: Path
) -> None:
    words = ("-m", "shot=500,1", "runs=runs", "device=cpu", *COMMON, *CASES["maml"])
    pair = start(tmp_path, data_dir, TRAIN, *words)
    out, errors = pair.communicate()
    assert pair.returncode != 0
    assert errors.count("failed: shot=500: ") == 1
    assert errors.count("error: ") == 1
    assert out.count("maml glyphs 5-way 1-shot: starts, 0 of 5") == 1
    assert out.count(" % (common, query=3, episodes=21, transductive; ") == 1
    assert (out.count("Launching 2 jobs"), out.count("Glyphs, accuracy in per cent")) == (1, 1)
    one, [two] = both["one"] / "run maml", (tmp_path / "runs").glob("glyphs-5w1s/maml*")
    assert_close(one, two, atol=1e-6)
    assert record(two) == record(one)
    assert set(files(two)) == set(files(one))  # the tool opens TensorBoard's file again for the tests
    steps = [json.loads(line)["step"] for line in (two / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 6))
    written = json.loads((find_test(two) / "record.json").read_text())
    assert written["cost"]["processes"] == 2
    assert written["command"] == f"torchrun --nproc_per_node=2 {TRAIN} {' '.join(words)}"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["maml", "reptile"])
def test_a_run_that_lost_a_process_says_so_and_continues_to_the_same_bits(
    algorithm: str, data_dir: Path, tmp_path: Path
) -> None:
    words = (*COMMON, *SMALL, f"algorithm={algorithm}", "train.meta_batch=5", "train.steps=80")
    by_two(tmp_path, data_dir, TRAIN, "run_dir=whole", *words)
    died = start(tmp_path, data_dir, TRAIN, "run_dir=died", *words)
    metrics = tmp_path / "died/metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 20:
        assert died.poll() is None
        time.sleep(0.01)
    os.kill(child(died.pid, rank=1), signal.SIGKILL)
    _, errors = died.communicate()
    assert died.returncode != 0
    assert "the same command, or resume=<run folder>, continues" in errors
    assert "SIGKILL" in errors
    assert not (tmp_path / "died/tests").exists()
    _, header = load_checkpoint(tmp_path / "died/checkpoints/last.safetensors", "cpu")
    assert 18 <= header["step"] < 80
    out, _ = by_two(tmp_path, data_dir, TRAIN, "resume=died")
    assert out.count(f"goes on from step {header['step']}\n") == 1
    assert_close(tmp_path / "whole", tmp_path / "died", atol=0)
    assert record(tmp_path / "whole") == record(tmp_path / "died")


def child(launcher: int, rank: int) -> int:
    """The process of this rank that torchrun started."""
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_a_test_again_by_torchrun_is_that_of_one_process(call: Any, data_dir: Path, tmp_path: Path) -> None:
    assert call("train", "run_dir=run", *COMMON, *CASES["leo"]).code == 0
    protocol = ("run=run", "protocol.common.query=4", EPISODES + "430", "protocol.common.episode_seed=3")
    out, _ = by_two(tmp_path, data_dir, str(ROOT / "tools/evaluate.py"), "out=two", *protocol)
    assert out.count(" % (common, query=4, episodes=430, episode_seed=3, inductive; ") == 1
    assert call("evaluate", "out=one", *protocol).code == 0
    assert record(Path("one")) == record(Path("two"))
    assert scores(Path("one")) == scores(Path("two"))


def test_a_failure_is_known_to_every_process_if_rank_zero_alone_could_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere, task = ValueError("in what rank 0 does alone"), FewshotError("said in other words")
    everywhere.everywhere = True  # type: ignore[attr-defined]
    task.__cause__ = everywhere
    assert fails_everywhere(ValueError())  # of one process
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not fails_everywhere(ValueError())
    assert all(map(fails_everywhere, (RankZeroFailed(), everywhere, task)))


@pytest.mark.slow
def test_a_sweep_ends_where_one_process_fails_and_the_others_would_wait(
    call: Any, data_dir: Path, tmp_path: Path
) -> None:
    words = ("logger=none", "device=cpu", *COMMON, *CASES["maml"])
    assert call("train", f"run_dir={tmp_path}/run0", *words).code == 0
    for part in ("tests", "checkpoints"):
        shutil.rmtree(tmp_path / "run0" / part)
    (tmp_path / "run0/checkpoints").touch()  # rank 0 cannot save
    pair = start(tmp_path, data_dir, TRAIN, "-m", "seed=0,1", "run_dir=run${seed}", *words)
    _, errors = pair.communicate(timeout=100)
    assert pair.returncode != 0
    assert "run0/checkpoints" in next(line for line in errors.splitlines() if line.startswith("error: "))
    assert not (tmp_path / "run1").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train.steps=-1",), "train.steps=-1: must be"),
        (("logger=nonsense",), "logger=nonsense"),
        (("algorithm=reptile", "algorithm.learner.adam_state=sequential"), "adam_state=sequential: each task waits"),
        (("train.meta_batch=1",), "train.meta_batch=1: fewer tasks than processes (2)"),
        (("way=2000",), "lower way"),
    ],
)
def test_a_mistake_is_said_once_and_leaves_nothing(
    words: tuple[str, ...], said: str, data_dir: Path, tmp_path: Path
) -> None:
    pair = start(tmp_path, data_dir, TRAIN, "run_dir=run", *words)
    out, errors = pair.communicate()
    assert pair.returncode != 0
    assert out.count("recipe ours: ") == len(out.splitlines()) == 1
    [line] = [line for line in errors.splitlines() if "error: " in line]
    assert said in line
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    with process_group():
        process(Path(sys.argv[1]), Path(sys.argv[2]))
