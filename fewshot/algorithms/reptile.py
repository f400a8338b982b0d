"""Reptile: Nichol, Achiam and Schulman, 2018, "On first-order meta-learning algorithms"; supervised-reptile 8f2b71c.

Differences from the original:
1. Minibatch orders come from the episode's key instead of a global generator.
2. `adam_state=shared` runs the tasks of a meta-batch at once: all start from the same second moments, whose mean
   is kept. `sequential` is the original: each task starts from the moments that the task before it left.
3. Strokes are 1 on 0; the original feeds the raw images, 0 on 1.
4. The recipe trains on 1100 Omniglot characters, the original on 1200: it holds none out for validation.
5. The original's options for weight decay and for minibatches with replacement are not here.

Its class FOML is the option `foml` here, with its `tail_shots`. tests/algorithms/test_originals_reptile.py compares our
numbers with the original program's: weights and second moments after each inner step, meta-steps and predictions.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log
from types import MappingProxyType

import torch
from torch import nn

from fewshot.algorithms.learner import (
    REDUCTIONS,
    Learner,
    Tensors,
    backbone_parameters,
    check_network,
    check_settings,
    differentiate,
    functional_forward,
    score,
    task_loss,
)
from fewshot.core.checks import check_bool, check_choice
from fewshot.core.errors import FewshotError
from fewshot.core.random import permutation, split
from fewshot.episodes import Episodes

BETA2, EPSILON = 0.999, 1e-8  # of the inner Adam, whose beta1 is 0


class Reptile(Learner):
    """Move the initialisation towards the weights that each task's own training ends at (Algorithm 2 of the paper).

    The outer gradient of a task is phi - phi_task: the meta-step is plain SGD with the step size as learning rate.

    It trains on support sets alone, which may be larger than those of the test: the original takes 15 shots where it
    tests 1, `Sampler(bank, way=5, shot=15, query=0)`. The defaults are the original's for miniImageNet with 1 shot, but
    for adam_state; with 5 shots its test_batch is 15.

    Args:
        backbone: examples [B, ...] to logits [B, N], or in regression to outputs [B, D].
        inner_lr: learning rate of the inner optimiser.
        inner_steps, inner_batch: minibatch steps at training and their size.
        test_steps, test_batch: the same at evaluation.
        inner_optimizer: `adam` (beta1 = 0, the original) or `sgd`.
        inner_loss: scale of the minibatch loss, see `task_loss`, whose K is here the size of a minibatch divided by N,
            rounded down; the original sums, Adam hides it.
        adam_state: `sequential` or `shared`, see difference 2.
        foml: the outer gradient is the move of the last inner step alone: first-order MAML as supervised-reptile has
            it, through the inner optimiser.
        tail_shots: with foml, examples of each class that make up the minibatch of the last inner step and are in no
            other (the paper's "separate tail"); None: the last minibatch is drawn like the others ("shared tail").

    Raises:
        FewshotError: a setting out of range, an unknown choice, or a tail without `foml`.
    """

    outer_settings = MappingProxyType({"outer_optimizer": "sgd", "outer_lr": 1.0, "outer_lr_end": 0.0, "meta_batch": 5})

    def __init__(
        self,
        backbone: nn.Module,
        *,
        inner_lr: float = 0.001,
        inner_steps: int = 8,
        inner_batch: int = 10,
        test_steps: int = 50,
        test_batch: int = 5,
        inner_optimizer: str = "adam",
        inner_loss: str = "sum",
        adam_state: str = "shared",
        foml: bool = False,
        tail_shots: int | None = None,
    ) -> None:
        check_network(backbone)
        self.backbone = backbone
        self.inner_lr = inner_lr
        self.inner_steps, self.inner_batch = inner_steps, inner_batch
        self.test_steps, self.test_batch = test_steps, test_batch
        check_settings(float, 0, inner_lr=inner_lr)
        check_settings(int, 1, inner_steps=inner_steps, inner_batch=inner_batch, test_batch=test_batch)
        check_settings(int, 0, test_steps=test_steps)
        check_bool("algorithm.learner.foml", foml)
        self.foml, self.tail_shots = foml, tail_shots
        if tail_shots is not None:
            check_settings(int, 1, tail_shots=tail_shots)
            if not foml or inner_steps < 2:
                raise FewshotError(
                    f"algorithm.learner.tail_shots={tail_shots}: needs algorithm=foml and at least 2 inner steps; "
                    "choose them, or set it to null"
                )
        self.adam = check_choice("algorithm.learner.inner_optimizer", inner_optimizer, ("adam", "sgd")) == "adam"
        self.reduction = check_choice("algorithm.learner.inner_loss", inner_loss, REDUCTIONS)
        check_choice("algorithm.learner.adam_state", adam_state, ("sequential", "shared"))
        self.sequential = self.adam and adam_state == "sequential"

    @property
    def gradient_evaluations(self) -> int:
        """Gradients through the backbone that one training task costs."""
        return self.inner_steps

    def init(self) -> tuple[Tensors, Tensors]:
        """The backbone's parameters (phi), and the inner Adam's second moments and step count."""
        params = backbone_parameters(self.backbone)
        if not self.adam:
            return params, {}
        moments = {name: torch.zeros_like(value) for name, value in params.items()}
        return params, moments | {"inner_step": torch.zeros(())}

    def inner_loop(
        self, params: Tensors, state: Tensors, task: Episodes, batches: Iterable[torch.Tensor]
    ) -> tuple[Tensors, Tensors, torch.Tensor, torch.Tensor]:
        """(phi_task, state, loss [], score []) after these minibatches; loss and score are those of the last one.

        Args:
            batches: indices of support items, [B] each, see `minibatches`.
        """
        loss = accuracy = torch.zeros(())
        for items in batches:
            x, y = task.support_x[items], task.support_y[items]

            def objective(
                params: Tensors, x: torch.Tensor = x, y: torch.Tensor = y
            ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
                logits = functional_forward(self.backbone, params, x)
                loss = task_loss(logits, y, self.reduction, max(1, len(y) // task.way))
                return loss, (loss.detach(), score(logits.detach(), y))

            gradient, (loss, accuracy) = differentiate(
                objective, params, use_autograd=self.use_autograd, create_graph=False
            )
            params, state = self._step(params, state, gradient)
        return params, state, loss, accuracy

    def _step(self, params: Tensors, state: Tensors, gradient: Tensors) -> tuple[Tensors, Tensors]:
        """One step of the inner optimiser, in TensorFlow's form of Adam (epsilon beside the uncorrected root)."""
        if not self.adam:
            return {name: value - self.inner_lr * gradient[name] for name, value in params.items()}, state
        count = state["inner_step"] + 1
        moments = {n: state[n] * BETA2 + g.square() * (1 - BETA2) for n, g in gradient.items()}
        # In float32, 1 - BETA2**count would lose what the moments keep: the first steps would be 6e-6 too short.
        rate = self.inner_lr * (-torch.expm1(count * log(BETA2))).sqrt()
        stepped = {n: value - rate * (gradient[n] / (moments[n].sqrt() + EPSILON)) for n, value in params.items()}
        return stepped, moments | {"inner_step": count}

    def outer_gradient(
        self, params: Tensors, state: Tensors, task: Episodes
    ) -> tuple[Tensors, Tensors, torch.Tensor, torch.Tensor]:
        """(phi - phi_task, state, loss [], score []) of one training task; with `foml` phi is before the last step."""
        start, batches = params, self._training_minibatches(task)
        if self.foml:
            start, state, *_ = self.inner_loop(params, state, task, batches[:-1])
            batches = batches[-1:]
        end, state, loss, accuracy = self.inner_loop(start, state, task, batches)
        return {name: start[name] - end[name] for name in params}, state, loss, accuracy

    def _training_minibatches(self, task: Episodes) -> list[torch.Tensor]:
        """Indices of the support items of each inner step. A tail is the first `tail_shots` examples of each class.

        Raises:
            FewshotError: the tail leaves no examples for the other steps.
        """
        if self.tail_shots is None:
            return list(minibatches(task, self.inner_steps, self.inner_batch))
        items = torch.arange(len(task.support_y), device=task.support_y.device).view(task.way, -1)
        if self.tail_shots >= items.shape[1]:
            raise FewshotError(
                f"algorithm.learner.tail_shots={self.tail_shots}: leaves none of {items.shape[1]} shots for the steps "
                "before the last; set train.shot above it, or tail_shots to null"
            )
        rest = items[:, self.tail_shots :].flatten()
        first = minibatches(task, self.inner_steps - 1, self.inner_batch, len(rest))
        return [*rest[first], items[:, : self.tail_shots].T.flatten()]

    def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
        """phi_task after `test_steps` minibatches, from the second moments of training, which are not changed."""
        return self.inner_loop(params, state, task, minibatches(task, self.test_steps, self.test_batch))[0]

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, N] of x [B, ...], or in regression outputs [B, D]."""
        return functional_forward(self.backbone, adapted, x)


def minibatches(task: Episodes, steps: int, batch: int, pool: int | None = None) -> torch.Tensor:
    """[steps, batch] indices of support items: passes without replacement, cut into consecutive batches.

    A batch that a pass cannot fill takes the rest from the next pass, which has its own order.

    Args:
        pool: how many items there are; None: the whole support set.
    """
    pool = len(task.support_x) if pool is None else pool
    keys = split(task.key, -(-steps * batch // pool))  # one for each pass
    return permutation(keys, pool).flatten()[: steps * batch].view(steps, batch)
