"""MAML and FOMAML against the numbers of cbfinn/maml, file by file; `pytest -s` prints the table of deviations."""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fewshot.algorithms.learner import score, task_loss
from fewshot.algorithms.maml import MAML
from fewshot.backbones.mlp import MLP
from fewshot.engine.engine import Engine
from fewshot.engine.evaluate import query_outputs
from fewshot.training.optimizer import clipped, make_optimizer, optimizer_step

from .originals import Original, deviations_of, golden_files, outer_settings

# Of outputs and losses, adapted weights, meta-gradients, weights after one and three steps of Adam (absolute), and the
# meta-loss after three. In float32 they are those of the goldens' README but for two with max pooling, where rounding
# decides which value of a window wins: the program's own two precisions are 2.8e-5 apart in meta-gradients (3e-5 in the
# README), and 0.14 in the meta-loss after three steps (of which the README says nothing).
TOLERANCES = {
    "float64": (1e-12, 1e-12, 1e-12, 1e-13, 1e-13, 1e-12),
    "strided": (6e-6, 4e-6, 2e-5, 3e-7, 3e-7, 6e-6),
    "max_pool": (9e-4, 2e-4, 6e-5, 1e-7, 6e-4, 0.2),
    "mlp": (1e-4, 1e-4, 1e-4, 5e-7, 5e-7, 1e-4),
    "sinusoid": (5e-7, 5e-7, 5e-7, 5e-7, 5e-7, 5e-7),
}


class MamlOriginal(Original):
    """A file of cbfinn/maml: its network and tasks, and the learner that its flags describe."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        config = self.config
        normed = config["norm"] == "batch_norm"
        network, layers = self._conv4() if config["conv"] else self._mlp(normed)
        weight, layer_type, last = ("conv", "conv", 5) if config["conv"] else ("w", "linear", len(layers) + 1)
        self.names = {f"w{last}": "head.weight", f"b{last}": "head.bias"}
        for i, layer in enumerate(layers):
            self.names[f"{weight}{i + 1}"] = f"{layer}.{layer_type}.weight"
            self.names[f"b{i + 1}"] = f"{layer}.{layer_type}.bias"
        offsets = sorted(key.removeprefix("param/") for key in self.arrays if key.startswith("param/beta"))
        self.names |= {name: f"{layer}.norm.offset" for name, layer in zip(offsets, layers, strict=normed)}
        loss = "mean" if config["datasource"] == "sinusoid" else "per_shot"
        self.learner = MAML(
            network, inner_lr=config["update_lr"], inner_steps=config["num_updates"], test_steps=0,
            first_order=config["stop_grad"], inner_loss=loss, outer_loss=loss,
        )  # fmt: skip
        self.tasks = self.episodes("data/inputa", "data/labela", "data/inputb", "data/labelb")
        kind = ("strided" if self.strided else "max_pool") if config["conv"] else "mlp" if normed else "sinusoid"
        self.tolerances = TOLERANCES["float64" if self.dtype == torch.float64 else kind]

    def _conv4(self) -> tuple[nn.Module, list[str]]:
        config = self.config
        self.strided = not config["max_pool"]
        self.filters, channels = config["dim_hidden"], 3 if config["datasource"] == "miniimagenet" else 1
        side = isqrt(config["dim_input"] // channels)
        self.image = (side, side, channels)
        shape = (channels, side, side)
        readout = "mean" if self.strided else "flatten"
        network = self.conv4(shape, config["dim_output"], pool="valid", readout=readout, adapted_scale=False)
        return network, [f"blocks.{i}" for i in range(4)]

    def _mlp(self, normed: bool) -> tuple[nn.Module, list[str]]:
        config = self.config
        network = MLP(
            (config["dim_input"],), config["dim_output"], widths=config["dim_hidden"],
            norm="batch" if normed else "none", norm_scale=False, norm_eps=config["norm_epsilon"], adapt_norm=False,
            head_init="zeros",
        )  # fmt: skip
        return network, [f"body.{i + 1}" for i in range(len(config["dim_hidden"]))]

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Our loss of each task: outputs [T, B, N] and targets [T, B] to [T]."""
        shot = self.config["update_batch_size"]
        pairs = zip(outputs, targets, strict=True)
        return torch.stack([task_loss(*pair, self.learner.outer_reduction, shot) for pair in pairs])


def total(losses: torch.Tensor) -> torch.Tensor:
    """The program's losses of items [T, B] added up for each task, as differentiating the vector does; or [T]."""
    return losses.reshape(len(losses), -1).sum(1)


@pytest.mark.parametrize("path", golden_files("maml"))
def test_every_update_of_maml_is_the_original_programs(path: Path) -> None:
    original = MamlOriginal(path)
    learner, tasks, engine = original.learner, original.tasks, Engine("auto")
    params = original.weights("param")
    assert params.keys() == learner.init()[0].keys()
    at_output, at_weight, *_ = original.tolerances
    with deviations_of(path) as table:

        def compare(what: str, outputs: torch.Tensor, targets: torch.Tensor, place: Any = ...) -> None:
            table.compare("outputs", outputs, original[f"out/{what}_output"][place], at_output)
            losses = original[f"out/{what}_loss"][place]
            table.compare("losses", original.loss(outputs, targets), total(losses), at_output)

        compare(
            "support",
            engine.map(lambda learner, task: learner.predict(params, task.support_x), learner, tasks),
            tasks.support_y,
        )
        for updates in range(original.config["updates_stored"] + 1):
            learner.test_steps = updates
            outputs = engine.map(
                lambda learner, task: query_outputs(learner, params, {}, task, setting="transductive"), learner, tasks
            )
            compare("query", outputs, tasks.query_y, updates)
            if original.config["datasource"] != "sinusoid":
                shares = torch.stack([score(*pair) for pair in zip(outputs, tasks.query_y, strict=True)])
                table.compare("accuracies", shares, original["out/query_accuracy"][updates], 1e-6)
            if updates:
                fast = engine.map(lambda learner, task: learner.adapt(params, {}, task), learner, tasks)
                stored = {name: value[:, updates - 1] for name, value in original.weights("adapted").items()}
                assert stored.keys() == set(learner.adapted)
                table.compare("adapted weights", fast, stored, at_weight)


@pytest.mark.parametrize("path", golden_files("maml"))
def test_every_meta_step_of_maml_is_the_original_programs(path: Path) -> None:
    original = MamlOriginal(path)
    learner, tasks, params = original.learner, original.tasks, original.weights("param")
    at_output, _, at_gradient, at_first, at_third, at_end = original.tolerances
    settings = outer_settings("adam_tf", original.config["meta_lr"], clip=original.config["meta_gradient_clip"])
    losses = original["out/meta_loss_after_steps"]
    with deviations_of(path) as table:
        for engine in (Engine("vmap"), Engine("loop")):
            gradient = engine.outer(learner, params, {}, tasks).gradient
            table.compare("meta-gradients", gradient, original.weights("grad"), at_gradient)
            within = clipped(gradient, settings.clip, settings.clip_norm)
            table.compare("clipped meta-gradients", within, original.weights("grad_clipped"), at_gradient)
        optimizer = make_optimizer(settings, params)
        for done, loss in enumerate(losses):
            if done in (1, 3):
                stored, tolerance = original.weights(f"param_after_step_{done}"), at_first if done == 1 else at_third
                table.compare(f"weights after step {done} of Adam", params, stored, tolerance, absolute=True)
            outer = Engine("auto").outer(learner, params, {}, tasks)
            what, tolerance = ("meta-losses", at_output) if done < 3 else ("meta-loss after step 3", at_end)
            table.compare(what, outer.loss.mean(), loss, tolerance)
            optimizer_step(optimizer, params, outer.gradient, settings, done)
