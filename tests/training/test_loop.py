"""The training loop: schedule, selection, resume to the same bits, and a loss that is not finite."""

from __future__ import annotations

import itertools
import json
import math
import random
import signal
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fewshot.algorithms.learner import Tensors, adapted_names
from fewshot.algorithms.maml import MAML
from fewshot.algorithms.maml_plus_plus import MAMLPlusPlus
from fewshot.algorithms.nearest import Nearest
from fewshot.algorithms.reptile import Reptile, minibatches
from fewshot.backbones.identity import Identity
from fewshot.backbones.mlp import MLP
from fewshot.core.errors import FewshotError
from fewshot.core.progress import print_note
from fewshot.data.bank import Bank, concat_banks
from fewshot.engine.engine import Engine
from fewshot.engine.reduce import MetaGradient
from fewshot.episodes import Tasks
from fewshot.tasks.functions import read_functions
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import Sampler
from fewshot.training.checkpoint import load_checkpoint, save_checkpoint
from fewshot.training.loop import _check_same_start, run_training
from fewshot.training.optimizer import NonFiniteGuard
from fewshot.training.selected import load_selected
from fewshot.training.settings import TrainSettings

SETTINGS = TrainSettings(
    steps=6, meta_batch=3, way=None, shot=None, query=None, outer_optimizer="adam", outer_lr=0.01, outer_lr_end=None,
    clip=None, clip_norm=None, nan_guard=False, train_on_val=False, validate_every=2, select="best",
    checkpoint_every=2, log_every=1,
)  # fmt: skip
REPTILE = replace(SETTINGS, outer_optimizer="sgd", outer_lr=1.0, outer_lr_end=0.0)
CPU = torch.device("cpu")


def bank() -> Bank:
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.rand(8, 1, 1, 6, 6, generator=generator).expand(8, 10, 1, 6, 6)
    noise = torch.rand(8, 10, 1, 6, 6, generator=generator)
    examples = ((prototypes * 0.7 + noise * 0.3) * 255).to(torch.uint8).flatten(0, 1)
    return Bank(examples, torch.arange(9) * 10, tuple("abcdefgh"), "train", "f", {})


def network() -> MLP:
    torch.manual_seed(0)
    return MLP((1, 6, 6), 3, widths=[8], norm="batch", norm_scale=True, norm_eps=1e-3, adapt_norm=True,
               head_init="xavier")  # fmt: skip


def maml() -> MAML:
    return MAML(network(), inner_lr=0.1, inner_steps=1, test_steps=2, first_order=False, inner_loss="mean",
                outer_loss="mean")  # fmt: skip


def maml_plus_plus() -> MAMLPlusPlus:
    """Whose loss and order change in the middle of six steps."""
    return MAMLPlusPlus(network(), inner_lr=0.1, inner_steps=2, test_steps=2, multi_step_until=0.7,
                        first_order_until=0.4)  # fmt: skip


class OfSines(MAML):
    """Whose tasks are functions."""


def of_sines() -> MAML:
    torch.manual_seed(0)
    backbone = MLP((1,), 1, widths=[40, 40], norm="none", norm_scale=False, norm_eps=1e-5, adapt_norm=True,
                   head_init="xavier")  # fmt: skip
    return OfSines(backbone, inner_lr=0.01, inner_steps=1, test_steps=2, first_order=False, inner_loss="mean",
                   outer_loss="mean")  # fmt: skip


def tasks_for(learner: Any) -> Tasks:
    if isinstance(learner, OfSines):
        return Regression(read_functions({"sine": {"amplitude": [1, 5], "phase": [0, 3]}}, [-5, 5], 0.3)["train"], 3, 2)
    return Sampler(bank(), 3, 2, 2, 0)


def reptile(adam_state: str = "sequential") -> Reptile:
    return Reptile(network(), inner_lr=0.01, inner_steps=2, inner_batch=4, test_steps=3, test_batch=2,
                   inner_optimizer="adam", inner_loss="sum", adam_state=adam_state)  # fmt: skip


class Doubtful(MAML):
    """Some of whose tasks, and with them steps, have no finite loss."""

    def outer_loss(self, params: Tensors, task: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss, share = super().outer_loss(params, task)
        return torch.where(task.key % 5 == 2, math.nan, loss), share


def doubtful() -> MAML:
    return Doubtful(network(), inner_lr=0.1, inner_steps=1, test_steps=2, first_order=False, inner_loss="mean",
                    outer_loss="mean")  # fmt: skip


GUARDED = replace(SETTINGS, nan_guard=True, outer_lr=1e-3)
LEARNERS = {
    "guarded": (doubtful, GUARDED),
    "maml": (maml, SETTINGS),
    "bfloat16": (maml, replace(SETTINGS, precision="bfloat16")),
    "maml_plus_plus": (maml_plus_plus, replace(SETTINGS, outer_lr_end=0.0, outer_lr_schedule="cosine")),
    "sequential": (reptile, REPTILE),
    "shared": (lambda: reptile("shared"), REPTILE),
    "functions": (of_sines, SETTINGS),
}


def run(
    learner: Any, settings: TrainSettings, folder: Path, die_at: int | None = None, engine: Engine | None = None
) -> list[dict[str, float]]:
    shown = []

    def validate(params: Tensors, state: Tensors) -> float:
        return float(sum(value.sum() for value in params.values()).sin())  # any function of the parameters

    def show(step: int, values: dict[str, float]) -> None:
        shown.append(values)
        if step == die_at:
            raise KeyboardInterrupt

    run_training(learner, tasks_for(learner), settings, engine or Engine(), folder, validate, show)
    return shown


@pytest.mark.usefixtures("usual_ctrl_c")
@pytest.mark.parametrize(("presses", "at", "kept"), [(1, 2, 2), (2, 2, None), (1, 6, 6)])
def test_ctrl_c_ends_the_step_and_leaves_a_checkpoint_and_a_second_one_stops_at_once(
    presses: int, at: int, kept: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewshot.core.interrupt.AGAIN", -1.0)
    settings = replace(SETTINGS, checkpoint_every=100)
    run(maml(), settings, tmp_path / "whole")

    def press(step: int, values: dict[str, float]) -> None:
        for _ in range(presses if step == at else 0):
            signal.raise_signal(signal.SIGINT)

    tasks, last = Sampler(bank(), 3, 2, 2, 0), tmp_path / "stopped/checkpoints/last.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run_training(maml(), tasks, settings, Engine(), tmp_path / "stopped", lambda params, state: 0.0, press)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert (load_checkpoint(last, CPU)[1]["step"] if last.exists() else None) == kept
    run(maml(), settings, tmp_path / "stopped")
    whole, _ = load_checkpoint(tmp_path / "whole/checkpoints/last.safetensors", CPU)
    continued, _ = load_checkpoint(last, CPU)
    assert all(torch.equal(value, continued["params"][name]) for name, value in whole["params"].items())


@pytest.mark.usefixtures("usual_ctrl_c")
def test_ctrl_c_that_ended_the_compiler_too_does_not_keep_that_it_failed(tmp_path: Path) -> None:
    class Compiling(Engine):
        def outer(self, *inputs: Any) -> Any:
            self.compiles = False
            signal.raise_signal(signal.SIGINT)
            return super().outer(*inputs)

    engine = Compiling()
    engine.compiles = True
    with pytest.raises(KeyboardInterrupt):
        run(maml(), SETTINGS, tmp_path / "run", engine=engine)
    assert not (tmp_path / "run/checkpoints").exists()


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "train_seconds"} for line in lines]


def test_bfloat16_rounds_the_steps_and_not_the_validation(tmp_path: Path) -> None:
    learner, tasks, seen, validations = maml(), Sampler(bank(), 3, 2, 2, 0), [], []
    learner.backbone.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs.dtype))

    def validate(params: Tensors, state: Tensors) -> float:
        assert set(seen[-2:]) == {torch.bfloat16}  # of the last task of a step: an inner step, and the queries
        task = tasks.episodes(0, 1)[0]
        assert learner.predict(learner.adapt(params, state, task), task.query_x).dtype == torch.float32
        assert set(seen[-3:]) == {torch.float32}
        validations.append(task)
        return 0.0

    settings = replace(SETTINGS, precision="bfloat16")
    assert settings.validate_every
    run_training(learner, tasks, settings, Engine(), tmp_path, validate, lambda step, metrics: None)
    assert len(metrics(tmp_path)) == settings.steps and validations


# After step 1 there is no checkpoint yet, and every training begins anew alike.
@pytest.mark.parametrize(
    ("name", "die_at"), [("maml", 1), ("maml", 5), ("maml_plus_plus", 5), *((name, 3) for name in LEARNERS)]
)
def test_a_run_that_died_and_was_resumed_is_the_same_to_the_bit(
    name: str, die_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewshot.training.loop.DRAWN_STEPS", 4)  # a resumed run begins within a block or at its end
    make, settings = LEARNERS[name]
    run(make(), settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(make(), settings, tmp_path / "died", die_at=die_at)
    last = tmp_path / "died/checkpoints/last.safetensors"
    before = load_checkpoint(last, CPU)[1] if last.exists() else {"step": 0, "train_seconds": 0}
    assert before["step"] == (die_at - 1) // 2 * 2  # it dies before it writes the checkpoint of its step
    assert len(run(make(), settings, tmp_path / "died")) == settings.steps - before["step"]
    lines = [json.loads(line) for line in (tmp_path / "died/metrics.jsonl").read_text().splitlines()]
    seconds = [line["train_seconds"] for line in lines]
    assert seconds == sorted(seconds) and seconds[before["step"]] >= before["train_seconds"]
    for file in ("last", "best"):
        (whole, one), (died, two) = (
            load_checkpoint(tmp_path / where / f"checkpoints/{file}.safetensors", CPU) for where in ("whole", "died")
        )
        assert whole.keys() == died.keys()
        for group in whole:
            assert all(whole[group][key].equal(died[group][key]) for key in whole[group] | died[group])
        for header in (one, two):
            assert header["processes"] == 1 and header["peak_memory_bytes"] > 1e8
            del header["train_seconds"], header["peak_memory_bytes"]
        assert one == two
    _, header = load_checkpoint(tmp_path / "died/checkpoints/last.safetensors", CPU)
    assert (0 < header["nan_guarded"] < header["step"]) == settings.nan_guard
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "died")
    assert [line["step"] for line in metrics(tmp_path / "died")] == [1, 2, 3, 4, 5, 6]


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    losses = [v["loss"] for v in run(maml(), replace(SETTINGS, steps=60, meta_batch=8), tmp_path)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"outer_lr_end": 0.0}, [1.0, 0.75, 0.5, 0.25]),
        (
            {"outer_lr_end": 0.2, "outer_lr_schedule": "cosine"},
            [0.6 + 0.4 * math.cos(math.pi * i / 4) for i in range(4)],
        ),
        ({"outer_lr_end": None, "outer_lr_halve_every": 3}, [1.0, 1.0, 1.0, 0.5]),
        ({"outer_lr_end": 0.0, "outer_lr_halve_every": 2}, [1.0, 0.75, 0.25, 0.125]),
    ],
)
def test_the_outer_rate_falls(schedule: dict[str, Any], expected: list[float], tmp_path: Path) -> None:
    rates = [v["outer_lr"] for v in run(reptile(), replace(REPTILE, steps=4, **schedule), tmp_path)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"outer_lr_schedule": "cosine"}, "needs the rate that it falls to; set train.outer_lr_end=0"),
        ({"outer_lr_schedule": "step"}, "train.outer_lr_schedule"),
        ({"outer_lr_halve_every": 0}, "train.outer_lr_halve_every=0"),
        ({"precision": "half"}, "train.precision=half: .*choose one of float32, bfloat16"),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(FewshotError, match=said):
        run(maml(), replace(SETTINGS, **settings), tmp_path)


def test_an_interrupted_training_leaves_the_learner_as_at_its_end(tmp_path: Path) -> None:
    learner = maml_plus_plus()
    with pytest.raises(KeyboardInterrupt):
        run(learner, SETTINGS, tmp_path, die_at=1)
    assert not learner.first_order


def test_the_state_of_all_training_examples_is_kept_and_not_calculated_again(tmp_path: Path) -> None:
    learner = Nearest(Identity((5,), 3), reference="mean", centre=True)
    features = torch.rand(80, 5, generator=torch.Generator().manual_seed(0))
    tasks = Sampler(Bank(features, torch.arange(9) * 10, tuple("abcdefgh"), "train", "f", {}), 3, 2, 2, 0)
    expected = torch.nn.functional.normalize(features, dim=1).mean(0)
    for _ in range(2):
        run_training(learner, tasks, replace(SETTINGS, steps=0), Engine(), tmp_path, lambda *_: 0.0, lambda *_: None)
        trained = load_selected(learner, replace(SETTINGS, select="last"), tmp_path, CPU)
        torch.testing.assert_close(trained.state["mean"], expected)
        learner.state_of = lambda blocks: pytest.fail("calculated again")


def test_a_meta_step_of_one_is_the_mean_of_the_tasks_weights(tmp_path: Path) -> None:
    learner, sampler = reptile("shared"), Sampler(bank(), 3, 2, 2, 0)
    run(learner, replace(REPTILE, steps=1, outer_lr_end=None, select="last"), tmp_path)
    params, state = learner.init()
    tasks = sampler.episodes(0, 3)
    ends = [learner.inner_loop(params, state, tasks[i], minibatches(tasks[i], 2, 4))[0] for i in range(3)]
    moved = load_selected(learner, replace(REPTILE, select="last"), tmp_path, CPU).params
    for name in params:
        torch.testing.assert_close(moved[name], sum(end[name] for end in ends) / 3)


def test_clipping_bounds_each_element_of_the_outer_gradient(tmp_path: Path) -> None:
    sgd = replace(SETTINGS, steps=1, outer_optimizer="sgd", outer_lr=1.0, select="last")
    start, _ = maml().init()
    moves = {}
    for clip in (None, 1e-3):
        run(maml(), replace(sgd, clip=clip), tmp_path / str(clip))
        end = load_selected(maml(), sgd, tmp_path / str(clip), CPU).params
        moves[clip] = torch.cat([(end[name] - start[name]).flatten() for name in start])
    torch.testing.assert_close(moves[1e-3], moves[None].clamp(-1e-3, 1e-3), atol=1e-6, rtol=0)
    assert (moves[None].abs() > 1e-3).any()


def test_a_failure_of_a_learner_says_in_which_step_it_was(tmp_path: Path) -> None:
    class Failing(MAML):
        def begin_step(self, step: int, steps: int) -> None:
            if step == 3:
                raise KeyError("rate")

    learner = Failing(network(), inner_lr=0.1)
    with pytest.raises(KeyError, match="rate") as failure:
        run(learner, SETTINGS, tmp_path)
    assert failure.value.__notes__ == ["in step 4 of the training (last checkpoint: 2)"]


def test_the_best_on_validation_is_selected_and_the_first_of_equals(tmp_path: Path) -> None:
    scores = iter([0.2, 0.8, 0.8])
    run_training(
        maml(), Sampler(bank(), 3, 2, 2, 0), SETTINGS, Engine(), tmp_path, lambda *_: next(scores), lambda *_: None
    )
    best = load_selected(maml(), SETTINGS, tmp_path, CPU)
    assert best.validation == {"accuracy": 0.8, "step": 4}
    last = load_selected(maml(), replace(SETTINGS, select="last"), tmp_path, CPU)
    assert last.validation == {"accuracy": 0.8, "step": 6}
    assert any(not best.params[name].equal(last.params[name]) for name in best.params)
    assert best.steps == last.steps == 6


def test_the_state_of_a_step_is_validated_and_kept_with_its_parameters(tmp_path: Path) -> None:
    scores, states = iter([0.2, 0.8, 0.5]), []

    def validate(params: Tensors, state: Tensors) -> float:
        states.append({name: value.clone() for name, value in state.items()})
        return next(scores)

    tasks, learner = Sampler(bank(), 3, 2, 2, 0), reptile("shared")
    run_training(learner, tasks, REPTILE, Engine(), tmp_path, validate, lambda *_: None)
    best, last = (load_selected(learner, replace(REPTILE, select=name), tmp_path, CPU) for name in ("best", "last"))
    for trained, validated, other in ((best, states[1], states[2]), (last, states[2], states[1])):
        assert trained.state.keys() == validated.keys() and trained.state
        assert all(torch.equal(value, validated[name]) for name, value in trained.state.items())
        assert any(not torch.equal(value, other[name]) for name, value in trained.state.items())


def test_the_best_of_a_regression_has_the_least_error(make_regression: Any, tmp_path: Path) -> None:
    backbone, _ = make_regression()
    learner = MAML(backbone, inner_lr=0.01, inner_steps=1, test_steps=1, first_order=False, inner_loss="mean",
                   outer_loss="mean")  # fmt: skip
    functions = read_functions({"sine": {"amplitude": (1, 2), "phase": (0, 1)}}, (-1, 1), 0)["train"]
    found = iter([0.7, 0.2, 0.4])
    shown: list[dict[str, float]] = []
    run_training(
        learner, Regression(functions, 3, 3, 0), SETTINGS, Engine(), tmp_path, lambda params, state: next(found),
        lambda step, values: shown.append(values),
    )  # fmt: skip
    trained = load_selected(learner, SETTINGS, tmp_path, CPU)
    assert (trained.validation, trained.selection) == ({"mse": 0.2, "step": 4}, "best validation mse")
    assert [line["validation_mse"] for line in metrics(tmp_path) if "validation_mse" in line] == [0.7, 0.2, 0.4]
    assert shown[0]["mse"] == shown[0]["loss"] > 0
    last = load_selected(learner, SETTINGS, tmp_path, CPU, "last")
    assert (last.validation, last.selection) == ({"mse": 0.4, "step": 6}, "last")


@pytest.mark.parametrize(
    ("at", "log_every", "checkpoint_every", "kept"), [(4, 1, 2, 2), (3, 100, 2, 2), (2, 3, 100, None), (4, 2, 3, 3)]
)
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    at: int, log_every: int, checkpoint_every: int, kept: int | None, tmp_path: Path
) -> None:
    class Diverging(Engine):
        calls = 0

        def outer(self, *inputs: Any) -> MetaGradient:
            self.calls += 1
            outer = super().outer(*inputs)
            return replace(outer, loss=outer.loss * math.nan) if self.calls == at else outer

    settings = replace(SETTINGS, log_every=log_every, checkpoint_every=checkpoint_every, validate_every=0)
    word = r"no checkpoint was written yet" if kept is None else r"last good checkpoint is .*last\.safetensors"
    with pytest.raises(FewshotError, match=rf"step {at}: .*not finite.*{word}") as caught:
        run(maml(), settings, tmp_path, engine=Diverging())
    assert caught.value.everywhere  # of several processes, so that a sweep goes on
    if kept is None:
        assert not list(tmp_path.rglob("*.safetensors"))
        return
    groups, header = load_checkpoint(tmp_path / "checkpoints/last.safetensors", CPU)
    assert header["step"] == kept
    assert all(value.isfinite().all() for value in groups["params"].values())


def test_the_chunk_that_fitted_into_memory_is_kept_for_the_same_bits(tmp_path: Path) -> None:
    engine, resumed = Engine(), Engine()
    engine.fitted_chunk["outer"] = 2
    for steps, each in ((2, engine), (4, resumed)):
        settings = replace(SETTINGS, steps=steps, validate_every=0)
        run_training(
            maml(), Sampler(bank(), 3, 2, 2, 0), settings, each, tmp_path, lambda p, c: 0.0, lambda step, values: None
        )
    assert resumed.fitted_chunk == {"outer": 2}
    assert load_checkpoint(tmp_path / "checkpoints/last.safetensors", CPU)[1]["chunks"] == [2]


@pytest.mark.parametrize("began", [False, True])
def test_a_training_goes_on_compiled_or_not_as_it_began(tmp_path: Path, began: bool) -> None:
    engine, resumed = Engine(), Engine()
    engine.compiles, resumed.compiles = began, True  # images are never compiled
    for steps, each in ((2, engine), (4, resumed)):
        settings = replace(SETTINGS, steps=steps, validate_every=0)
        run(maml(), settings, tmp_path, engine=each)
    assert resumed.compiles == began


class Reads(TorchDispatchMode):
    """Counts what makes a GPU wait: numbers that the program asks of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "equal")
        return func(*args, **(kwargs or {}))


def test_a_step_that_is_replaced_leaves_the_state_as_it_was() -> None:
    old, params = {"moment": torch.ones(2)}, {"w": torch.ones(2)}
    guard = NonFiniteGuard(replace(SETTINGS, nan_guard=True), 0, torch.device("cpu"))
    for value, gradient_after, state_after, replaced in ((2.0, 2.0, 2.0, 0), (math.nan, 1.0, 1.0, 1)):
        outer = MetaGradient({"w": torch.full((2,), value)}, {"moment": torch.full((2,), value)}, *torch.ones(2, 1))
        gradient, state = guard.filter(outer, params, old, 0)
        assert gradient["w"].tolist() == [gradient_after] * 2 and state["moment"].tolist() == [state_after] * 2
        assert guard.check(Path()) == replaced


@pytest.mark.parametrize(
    ("name", "nan_guard"),
    [("maml", False), ("shared", False), ("shared", True), ("functions", False), ("both splits", False)],
)
def test_a_step_that_is_not_logged_asks_nothing_of_the_device(
    name: str, nan_guard: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A guarded step takes adam, which reads its step count in main memory; these steps take sgd, which reads nothing.
    monkeypatch.setattr("fewshot.training.loop.check_train_settings", lambda settings: None)
    make, settings = LEARNERS.get(name, LEARNERS["maml"])
    learner, tasks = make(), Sampler(bank(), 3, 2, 2, 0, "as_classes")
    if name == "both splits":
        tasks = Sampler(concat_banks(bank(), replace(bank(), names=tuple("ijklmnop"))), 3, 2, 2, 0, "as_classes")
    if name == "functions":
        functions = read_functions({"sine": {"amplitude": (1, 2), "phase": (0, 1)}}, (-1, 1), 0.1)["train"]
        learner.backbone = MLP((1,), 1, widths=[8], norm="none", norm_scale=False, norm_eps=1e-3, adapt_norm=True,
                               head_init="xavier")  # fmt: skip
        learner.adapted = adapted_names(learner.backbone)
        tasks = Regression(functions, 3, 3, 0)
    settings = replace(settings, steps=9, validate_every=0, checkpoint_every=9, log_every=3, outer_optimizer="sgd",
                       nan_guard=nan_guard)  # fmt: skip
    counts: list[int] = []
    with Reads() as reads:

        def show(step: int, values: dict[str, float]) -> None:
            counts.append(reads.count)
            reads.count = 0

        run_training(learner, tasks, settings, Engine("vmap"), tmp_path, lambda params, state: 0.0, show)
    assert len(counts) == 9
    assert all((count > 0) == (step % 3 == 0) for step, count in enumerate(counts[1:], 2))


def test_a_run_knows_its_devices_and_says_where_a_checkpoint_did_not(tmp_path: Path) -> None:
    run(maml(), replace(SETTINGS, steps=2), tmp_path)
    trained = load_selected(maml(), SETTINGS, tmp_path, CPU)
    assert trained.devices == ("cpu",) and len(trained.processors) == 1
    last = tmp_path / "checkpoints/last.safetensors"
    groups, progress = load_checkpoint(last, CPU)
    del progress["devices"], progress["processors"]  # as before these were kept
    save_checkpoint(last, groups, progress)
    assert load_selected(maml(), SETTINGS, tmp_path, CPU, "last").devices == ()
    run(maml(), replace(SETTINGS, steps=4), tmp_path)
    later = load_selected(maml(), SETTINGS, tmp_path, CPU, "last")
    assert later.devices == ("unknown", "cpu") and later.processors == ("unknown", *trained.processors)


def test_a_run_that_goes_on_by_another_torch_or_on_other_threads_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(maml(), replace(SETTINGS, steps=2), tmp_path)
    run(maml(), replace(SETTINGS, steps=4), tmp_path)
    (own,) = load_selected(maml(), SETTINGS, tmp_path, CPU, "last").software
    assert own == f"torch {version('torch')}, processes: 1, threads of each: {torch.get_num_threads()}"
    assert not capsys.readouterr().err
    monkeypatch.setattr("fewshot.core.environment._version", lambda package: "9.9")
    print_note.cache_clear()
    run(maml(), SETTINGS, tmp_path)
    other = own.replace(version("torch"), "9.9")
    assert load_selected(maml(), SETTINGS, tmp_path, CPU, "last").software == (own, other)
    assert capsys.readouterr().err.startswith(f"note: trained so far by {own}; from here by {other}: ")


def test_a_checkpoint_of_another_learner_is_refused(tmp_path: Path) -> None:
    run(maml(), SETTINGS, tmp_path)
    with pytest.raises(FewshotError, match="another algorithm or backbone"):
        run(reptile(), REPTILE, tmp_path)


class HalfFrozen(nn.Module):
    """A frozen layer and a constant buffer, which differ from one instance to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(36, 8).requires_grad_(False)
        self.register_buffer("centre", torch.rand(36))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(x.flatten(1) - self.centre)))


@pytest.mark.parametrize("algorithm", ["maml", "reptile"])
def test_what_is_frozen_is_not_trained_and_comes_back_with_the_checkpoint(algorithm: str, tmp_path: Path) -> None:
    def learner() -> Any:
        if algorithm == "maml":
            choices: dict[str, Any] = {"inner_steps": 1, "test_steps": 2, "first_order": False}
            return MAML(HalfFrozen(), inner_lr=0.1, inner_loss="mean", outer_loss="mean", **choices)
        return Reptile(HalfFrozen(), inner_lr=0.01, inner_steps=2, inner_batch=4, test_steps=3, test_batch=2,
                       inner_optimizer="adam", inner_loss="sum", adam_state="shared")  # fmt: skip

    settings = replace(SETTINGS if algorithm == "maml" else REPTILE, steps=4)
    one, other = learner(), learner()
    before = {name: value.clone() for name, value in one.backbone.state_dict().items()}
    run(one, settings, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in one.backbone.state_dict().items())
    assert not torch.equal(one.backbone.body.weight, other.backbone.body.weight)
    trained = load_selected(other, settings, tmp_path, CPU)
    assert set(trained.params) == {"head.weight", "head.bias"}
    assert not torch.equal(trained.params["head.weight"], before["head.weight"])
    for name in ("body.weight", "body.bias", "centre"):
        assert torch.equal(other.backbone.state_dict()[name], before[name])
    groups, _ = load_checkpoint(tmp_path / "checkpoints/last.safetensors", CPU)
    assert not [name for name in groups.get("outer", {}) if "body" in name]
    run(learner(), replace(settings, steps=6), tmp_path)  # goes on with the same frozen layer
    again, _ = load_checkpoint(tmp_path / "checkpoints/last.safetensors", CPU)
    assert torch.equal(again["constants"]["body.weight"], before["body.weight"])


def test_the_best_of_a_training_that_goes_on_has_its_own_step(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=9, validate_every=3, checkpoint_every=4, select="best")
    scores = itertools.count()

    def die(step: int, values: dict[str, float]) -> None:
        if step == 7:
            raise KeyboardInterrupt

    def validate(params: Tensors, state: Tensors) -> float:
        return float(next(scores))

    with pytest.raises(KeyboardInterrupt):
        run_training(maml(), Sampler(bank(), 3, 2, 2, 0), settings, Engine(), tmp_path, validate, die)
    assert load_checkpoint(tmp_path / "checkpoints/last.safetensors", CPU)[1]["step"] == 6
    assert load_selected(maml(), settings, tmp_path, CPU).steps == 6


class Drawn(MAML):
    """Whose `init` draws a parameter by each of the global generators."""

    def init(self) -> tuple[Tensors, Tensors]:
        params, state = super().init()
        drawn = [float(torch.randn(())), float(np.random.randn()), random.gauss(0, 1)]
        return params | {"drawn": torch.tensor(drawn)}, state


def test_what_init_draws_follows_from_the_seed_of_the_tasks(tmp_path: Path) -> None:
    before, drawn = torch.get_rng_state(), []
    for number, seed in enumerate((0, 0, 1)):
        settings, folder = replace(SETTINGS, steps=1, validate_every=0), tmp_path / str(number)
        tasks = Sampler(bank(), 3, 2, 2, seed)
        learner = Drawn(network())
        torch.manual_seed(number)
        run_training(learner, tasks, settings, Engine(), folder, lambda params, state: 0.0, lambda step, values: None)
        drawn.append(load_selected(learner, settings, folder, CPU).params["drawn"])
    assert torch.equal(drawn[0], drawn[1]) and not (drawn[0] == drawn[2]).any()
    torch.set_rng_state(before)


def test_processes_that_would_start_from_different_values_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewshot.training.loop.world", lambda: (0, 2))
    for other, same in ((0, True), (1, False)):
        monkeypatch.setattr("fewshot.training.loop.all_reduce_sum", lambda parts, add=other: [2 * parts[0] + add])
        with nullcontext() if same else pytest.raises(FewshotError, match="start with different parameters"):
            _check_same_start({"w": torch.ones(2)}, CPU)


def test_a_best_checkpoint_of_a_training_that_was_lost_is_not_tested(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=6, checkpoint_every=1)
    last, older = tmp_path / "checkpoints/last.safetensors", tmp_path / "older"

    def go(scores: dict[int, float], die_at: int = 0) -> None:
        given = iter(scores.values())

        def show(step: int, values: dict[str, float]) -> None:
            if step == 4 and die_at:
                older.write_bytes(last.read_bytes())
            if step == die_at:
                raise KeyboardInterrupt

        tasks = Sampler(bank(), 3, 2, 2, 0)
        run_training(maml(), tasks, settings, Engine(), tmp_path, lambda params, state: next(given), show)

    with pytest.raises(KeyboardInterrupt):
        go({2: 0.5, 4: 0.9}, die_at=5)
    last.write_bytes(older.read_bytes())  # of step 3; the best is of step 4
    go({4: 0.4, 6: 0.3})
    assert load_selected(maml(), settings, tmp_path, CPU).validation == {"accuracy": 0.4, "step": 4}


class Staged(MAML):
    """Whose rate at a test is set by how much of the training is done."""

    share = 0.0

    def begin_step(self, step: int, steps: int) -> None:
        self.share = step / steps


def test_a_learner_in_another_process_is_as_after_the_last_step(tmp_path: Path) -> None:
    run(Staged(network()), SETTINGS, tmp_path)
    learner = Staged(network())
    load_selected(learner, SETTINGS, tmp_path, CPU)
    assert learner.share == 1.0


@pytest.mark.parametrize(("clip", "stops"), [(None, True), (1.0, False)])
def test_the_guard_lets_an_infinite_gradient_pass_only_where_it_is_clipped(clip: float | None, stops: bool) -> None:
    params = {"w": torch.ones(2)}
    guard = NonFiniteGuard(replace(SETTINGS, nan_guard=True, clip=clip), 0, CPU)
    guard.filter(MetaGradient({"w": torch.full((2,), math.inf)}, {}, *torch.ones(2, 1)), params, {}, 0)
    with (
        pytest.raises(FewshotError, match="step 1: the loss or its gradient is not finite") if stops else nullcontext()
    ):
        assert guard.check(Path()) == 0


def test_a_run_that_died_between_its_last_and_its_best_checkpoint_has_both(tmp_path: Path) -> None:
    settings = replace(SETTINGS, checkpoint_every=100)
    run(maml(), settings, tmp_path / "whole")
    best = load_selected(maml(), settings, tmp_path / "whole", CPU)
    assert best.validation is not None
    run(maml(), replace(settings, steps=best.validation["step"]), tmp_path / "killed")
    (tmp_path / "killed/checkpoints/best.safetensors").unlink()
    run(maml(), settings, tmp_path / "killed")
    again = load_selected(maml(), settings, tmp_path / "killed", CPU)
    assert again.validation == best.validation
    assert all(torch.equal(value, best.params[name]) for name, value in again.params.items())


class Remembering(MAML):
    """Whose state has another shape once it has seen the examples."""

    def init(self) -> tuple[Tensors, Tensors]:
        return super().init()[0], {"mean": torch.zeros(8)}

    def state_of(self, blocks: Any) -> Tensors:
        return {"mean": torch.zeros(5)}


def test_a_state_of_another_shape_is_refused_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(FewshotError, match=r"state of the training examples .* mean \(5,\), and init has \(8,\)"):
        run(Remembering(network()), SETTINGS, tmp_path)
