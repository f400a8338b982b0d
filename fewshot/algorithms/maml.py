"""MAML and FOMAML: Finn, Abbeel and Levine, 2017, "Model-agnostic meta-learning"; cbfinn/maml a7f45f1.

Differences from the original:
1. Evaluation reports the score after the numbers of steps that the protocol names; the original after each step.
2. Norm statistics come from the batch at hand, as in the original; whether test queries share that batch is chosen by
   the protocol (`setting`), where the original always does so.
3. Meta-SGD (Li et al., 2017) is MAML with learned step sizes, one for each weight, all starting at `inner_lr`.
4. ANIL (Raghu et al., 2020, "Rapid learning or feature reuse?") is MAML whose inner loop changes the head alone; the
   features of the support set are computed once for all its steps. BOIL (Oh et al., 2021, "BOIL: towards representation
   change for few-shot learning") is MAML whose inner loop changes all but the head. Their inner rate, inner steps and
   queries are ours, not those of their papers.

tests/algorithms/test_originals_maml.py compares our numbers with the original program's: losses and outputs after each
update, adapted weights, meta-gradients of both orders, and steps of its Adam (`outer_optimizer=adam_tf`). The program's
second-order meta-gradient depends on the version of TensorFlow: see tests/algorithms/goldens/README.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fewshot.algorithms.embedding import HEAD, Embedding, functional_embed
from fewshot.algorithms.learner import (
    REDUCTIONS,
    Learner,
    Tensors,
    adapted_names,
    backbone_parameters,
    check_network,
    check_settings,
    differentiate,
    functional_forward,
    head_prefix,
    may_be_tied,
    score,
    task_loss,
)
from fewshot.backbones.norm import prepare_for_second_order
from fewshot.backbones.precision import call_network
from fewshot.core.checks import check_bool, check_choice
from fewshot.episodes import Episodes

ALPHA = "inner_lr/"  # prefix of the names of meta-learned step sizes


class MAML(Learner):
    """Learn an initialisation from which a few gradient steps solve a task (Algorithm 2 of the paper).

    The defaults are the original's for miniImageNet, but for `test_steps`, 10 there.

    Args:
        backbone: examples [B, ...] to logits [B, N], or in regression to outputs [B, D].
        inner_lr: step size of the inner loop (alpha).
        learn_inner_lr: meta-learn a step size for each weight, from `inner_lr` (Meta-SGD, Li et al. 2017).
        inner_steps: inner gradient steps at training.
        test_steps: inner gradient steps at evaluation; None: as many as `inner_steps`.
        first_order: take the inner gradients as constants (FOMAML; stop_grad in the original).
        inner_loss: scale of the support loss, see `task_loss`; it multiplies into inner_lr.
        outer_loss: scale of the query loss, which the method `outer_loss` gives.
        adapted: the parameters that the inner loop changes: `all`, `head` (ANIL), `body` (BOIL) or patterns, see
            `adapted_names`.

    Raises:
        FewshotError: a setting out of range, an unknown choice, or a pattern that no parameter matches.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        test_steps: int | None = None,
        first_order: bool = False,
        inner_loss: str = "per_shot",
        outer_loss: str = "per_shot",
        learn_inner_lr: bool = False,
        adapted: str | Sequence[str] = "all",
    ) -> None:
        self.backbone = backbone
        self.inner_lr, self.learn_inner_lr = inner_lr, learn_inner_lr
        self.inner_steps, self.test_steps = inner_steps, inner_steps if test_steps is None else test_steps
        self.first_order = first_order
        check_network(backbone)
        check_settings(float, 0, inner_lr=inner_lr)
        check_settings(int, 0, inner_steps=inner_steps, test_steps=self.test_steps)
        check_bool("algorithm.learner.first_order", first_order)
        check_bool("algorithm.learner.learn_inner_lr", learn_inner_lr)
        self.inner_reduction = check_choice("algorithm.learner.inner_loss", inner_loss, REDUCTIONS)
        self.outer_reduction = check_choice("algorithm.learner.outer_loss", outer_loss, REDUCTIONS)
        self.adapted = adapted_names(backbone, adapted)
        self.notes = () if adapted == "all" else (f"the inner loop adapts {', '.join(self.adapted)}",)
        own, moved = head_prefix(backbone), {id(v) for n, v in backbone.named_parameters() if n in self.adapted}
        named = backbone.named_parameters(remove_duplicate=False)  # a tied weight has another name, too
        head = [v for name, v in named if own and name.startswith(own) and not is_lazy(v) and v.dim() > 1]
        if head and not any(id(value) in moved or value.any() for value in head):
            self.notes += (
                "the head starts at zero and the inner loop does not move it, so the body learns little; let it start "
                "at other values (backbone.network.head_init=uniform)",
            )
        # To an inner loop that changes the head alone the features are constants, computed once (ANIL).
        embeds = callable(getattr(backbone, "embed", None)) and isinstance(getattr(backbone, "head", None), nn.Module)
        self._embedding = Embedding(backbone) if embeds else None
        of_head = all(name.startswith(HEAD) for name in self.adapted)
        self.features_once = embeds and of_head and not may_be_tied(backbone)  # a tied weight has another name
        if not first_order:
            prepare_for_second_order(backbone)

    @property
    def gradient_evaluations(self) -> int:
        """Gradients through the backbone that one training task costs: those of the inner steps and the outer one."""
        return 1 if self.features_once else self.inner_steps + 1

    def init(self) -> tuple[Tensors, Tensors]:
        """The backbone's parameters (theta), with Meta-SGD their step sizes (alpha), and no state."""
        theta = backbone_parameters(self.backbone)
        if not self.learn_inner_lr:
            return theta, {}
        return theta | {ALPHA + name: torch.full_like(theta[name], self.inner_lr) for name in self.adapted}, {}

    def support_loss(self, params: Tensors, task: Episodes, features: torch.Tensor | None = None) -> torch.Tensor:
        """L_task(f_theta) on the support set, []; its features [N*K, D], where they are given, spare the body."""
        if features is None:
            outputs = self.predict(params, task.support_x)
        else:
            head = {name.removeprefix(HEAD): value for name, value in params.items() if name.startswith(HEAD)}
            outputs = call_network(self.backbone, self.backbone.get_submodule("head"), head, features, tied=False)
        return task_loss(outputs, task.support_y, self.inner_reduction, task.shot)

    def inner_loop(self, params: Tensors, task: Episodes, steps: int) -> Tensors:
        """theta' after `steps` gradient steps on the support set, differentiable in theta unless first_order."""
        fast: Tensors = {}
        for fast in self.trajectory(params, task, steps):  # noqa: B007  (the last is wanted, and no list of all)
            pass
        return fast

    def trajectory(self, params: Tensors, task: Episodes, steps: int) -> Iterator[Tensors]:
        """theta, and theta' after each of `steps` gradient steps."""
        theta = {name: value for name, value in params.items() if not name.startswith(ALPHA)}
        start = _detached(theta) if self.first_order else theta
        features = []
        if self._embedding is not None and self.features_once and steps:
            features = [functional_embed(self._embedding, start, task.support_x)]

        def loss(moving: Tensors, step: int) -> tuple[torch.Tensor, tuple[()]]:
            return self.support_loss(self.at_step(start, step) | moving, task, *features), ()

        moving = {name: theta[name] for name in self.adapted}
        yield self.at_step(theta, 0) | moving
        for step in range(steps):
            at = _detached(moving) if self.first_order else moving
            gradient, _ = differentiate(
                partial(loss, step=step), at, use_autograd=self.use_autograd, create_graph=not self.first_order
            )
            moving = {n: value - self.rate(params, n, step) * gradient[n] for n, value in moving.items()}
            yield self.at_step(theta, step) | moving

    def at_step(self, theta: Tensors, step: int) -> Tensors:
        """The parameters that the inner step of this number sees, before it moves some of them."""
        return theta

    def rate(self, params: Tensors, name: str, step: int) -> torch.Tensor | float:
        """The learning rate of a parameter at the inner step of this number."""
        return params.get(ALPHA + name, self.inner_lr)

    def outer_loss(self, params: Tensors, task: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
        """Query loss [] and score [] at theta'."""
        logits = self.predict(self.inner_loop(params, task, self.inner_steps), task.query_x)
        loss = task_loss(logits, task.query_y, self.outer_reduction, task.shot)
        return loss, score(logits.detach(), task.query_y)

    def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
        """theta' after `test_steps` steps."""
        return self.inner_loop(params, task, self.test_steps)

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, N] of x [B, ...], or in regression outputs [B, D]."""
        return functional_forward(self.backbone, adapted, x)


def FOMAML(backbone: nn.Module, **options: Any) -> MAML:
    """First-order MAML: MAML that takes the inner gradients as constants. Other options are those of MAML."""
    return MAML(backbone, first_order=True, **options)


def MetaSGD(
    backbone: nn.Module, *, inner_lr: float = 0.01, inner_steps: int = 1, test_steps: int | None = None, **options: Any
) -> MAML:
    """Meta-SGD: MAML that learns a step size for each weight, and takes one step. Other options are those of MAML."""
    steps = {"inner_steps": inner_steps, "test_steps": test_steps}
    return MAML(backbone, learn_inner_lr=True, inner_lr=inner_lr, **steps, **options)


def _detached(params: Tensors) -> Tensors:
    return {name: value.detach() for name, value in params.items()}
