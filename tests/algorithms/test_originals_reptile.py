"""Reptile and FOML against the numbers of openai/supervised-reptile; `pytest -s` prints the table of deviations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fewshot.algorithms import reptile
from fewshot.algorithms.learner import Tensors
from fewshot.algorithms.reptile import Reptile
from fewshot.engine.engine import Engine
from fewshot.engine.evaluate import query_outputs
from fewshot.episodes import Episodes
from fewshot.training.optimizer import make_optimizer, optimizer_step

from .originals import Original, deviations_of, golden_files, outer_settings

# Of weights, Adam's second moments, losses and logits. In float32 they are those of the goldens' README but for two,
# 6e-7 of strided weights and 1e-2 of max-pooled moments there: the program's own two precisions are 7.3e-7 and 8.4e-3
# apart. Its 1 - 0.999 is 1.3e-5 too small in float32, so its moments are.
TOLERANCES = {
    "float64": (1e-12, 1e-12, 1e-12),
    "strided": (1e-6, 2e-5, 2e-6),
    "max_pool": (1e-3, 2e-2, 2e-3),
}


class ReptileOriginal(Original):
    """A file of openai/supervised-reptile: its network and tasks, and the learner that its options describe."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        config = self.config
        self.strided, self.filters = config["model"] == "OmniglotModel", config["filters"]
        self.image = (28, 28, 1) if self.strided else (84, 84, 3)
        parts = {
            "conv2d{}/kernel": "conv.weight",
            "conv2d{}/bias": "conv.bias",
            "batch_normalization{}/gamma": "norm.scale",
            "batch_normalization{}/beta": "norm.offset",
        }
        self.names = {
            name.format(f"_{i}" if i else ""): f"blocks.{i}.{ours}" for i in range(4) for name, ours in parts.items()
        } | {"dense/kernel": "head.weight", "dense/bias": "head.bias"}
        height, width, channels = self.image
        shape = (channels, height, width)
        network = self.conv4(shape, config["num_classes"], pool="same", readout="flatten", adapted_scale=True)
        self.learner = Reptile(
            network, inner_lr=config["learning_rate"], inner_steps=config["inner_iters"],
            inner_batch=config["inner_batch"], test_steps=config["eval_iters"], test_batch=config["eval_batch"],
            inner_optimizer="sgd" if config["optimizer"] == "sgd" else "adam", inner_loss="sum",
            adam_state="sequential", foml=config["learner"] == "FOML", tail_shots=config["tail_shots"],
        )  # fmt: skip
        self.tasks = self.episodes("data/pool_x", "data/pool_y", "data/pool_x", "data/pool_y")
        kind = "strided" if self.strided else "max_pool"
        self.tolerances = TOLERANCES["float64" if self.dtype == torch.float64 else kind]

    def start(self) -> tuple[Tensors, Tensors]:
        """Weights and state before the first task."""
        params, (ours, state) = self.weights("param"), self.learner.init()
        assert params.keys() == ours.keys()
        return params, {name: value.to(self.dtype) for name, value in state.items()}


def take_stored_minibatches(monkeypatch: pytest.MonkeyPatch, stored: torch.Tensor) -> None:
    """The learner takes these places in the pool [T, S, B] for its minibatches, of the task that its key names."""

    def minibatches(task: Episodes, steps: int, batch: int, pool: int | None = None) -> torch.Tensor:
        places = stored[task.key]
        if pool is None:
            return places[:steps]
        # A separate tail is the learner's own choice: it asks for places in what the stored tail leaves.
        rest = [i for i in range(len(task.support_y)) if i not in places[-1]]
        assert len(rest) == pool
        return torch.searchsorted(torch.tensor(rest), places[:steps])

    monkeypatch.setattr(reptile, "minibatches", minibatches)


@pytest.mark.parametrize("path", golden_files("reptile", "foml"))
def test_every_inner_step_of_reptile_is_the_original_programs(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    original = ReptileOriginal(path)
    learner, tasks, (params, state) = original.learner, original.tasks, original.start()
    at_weight, at_moment, at_output = original.tolerances
    take_stored_minibatches(monkeypatch, original["data/batches"])
    weights, moments = original.weights("inner"), original.weights("adam_v") if learner.adam else {}
    with deviations_of(path) as table:
        for task in range(len(tasks)):
            before = state  # at the end of the task before: weights are put back between tasks, moments are not
            for step in range(learner.inner_steps):
                batches = reptile.minibatches(tasks[task], step + 1, learner.inner_batch)
                end, state, loss, _ = learner.inner_loop(params, before, tasks[task], batches)
                stored = {name: value[task, step] for name, value in weights.items()}
                table.compare("weights after inner steps", end, stored, at_weight)
                losses = original["inner/minibatch_loss_before_step"]
                table.compare("losses of minibatches", loss, losses[task, step], at_output)
                if learner.adam:
                    stored = {name: value[task, step] for name, value in moments.items()}
                    table.compare("Adam's second moments", state, stored, at_moment)
                    power = 0.999 ** (state["inner_step"].double() + 1)
                    table.compare("Adam's step count", power, original["adam/beta2_power"][task, step], at_output)


@pytest.mark.parametrize("path", golden_files("reptile", "foml"))
def test_a_meta_step_of_reptile_and_the_test_after_it_are_the_original_programs(
    monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    original = ReptileOriginal(path)
    learner, tasks, (params, state) = original.learner, original.tasks, original.start()
    at_weight, at_moment, at_output = original.tolerances
    settings = outer_settings("sgd", original.config["meta_step"])
    with deviations_of(path) as table:
        take_stored_minibatches(monkeypatch, original["data/batches"])
        outer = Engine("auto").outer(learner, params, state, tasks)
        optimizer_step(make_optimizer(settings, params), params, outer.gradient, settings, 0)
        table.compare("weights after the meta-step", params, original.weights("param_after_meta_step"), at_weight)
        if learner.adam:
            stored = {name: value[-1, -1] for name, value in original.weights("adam_v").items()}
            table.compare("second moments after the meta-batch", outer.state, stored, at_moment)
        if "eval/train_x" not in original.arrays:
            return
        support, query = ((original.x(f"eval/{part}_x"), original[f"eval/{part}_y"]) for part in ("train", "test"))
        task = Episodes(*support, *query, torch.tensor(0))
        take_stored_minibatches(monkeypatch, original["eval/batches"][None])
        fast = learner.adapt(params, outer.state, task)
        table.compare("weights after adaptation", fast, original.weights("eval/adapted"), at_weight)
        for setting in ("transductive", "inductive"):
            logits = query_outputs(learner, params, outer.state, task, setting)
            table.compare(f"{setting} logits", logits, original[f"eval/logits_{setting}"], at_output)
            assert torch.equal(logits.argmax(-1), original[f"eval/predictions_{setting}"])
