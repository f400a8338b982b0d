"""MAML++: Antoniou, Edwards and Storkey, 2019, "How to train your MAML"; AntreasAntoniou/HowToTrainYourMAMLPytorch
8696470.

It is MAML with four changes, each a setting; the fifth, a rate of the outer loop that falls as a cosine, is in
`outer_settings`, on the command line `train.outer_lr_schedule`. With all of them off it is MAML.

Differences from the program:
1. The paper keeps running averages of norms for each inner step. Here, and in the program's outputs, norms take the
   statistics of the batch at hand.
2. The weights of the multi-step loss change five times and not every epoch, without the program's floor of 0.03 / S: a
   step is compiled or recorded anew only then. The outer rate falls at every step, there at every epoch of 500.
3. Steps at a test beyond those of the training take the rates and norms of the last one.
4. First-order steps at the start are off, as in the program's configurations; the paper has them for its first 50
   epochs (`first_order_until` is a share of the training).
5. The outer rate ends at 0; in the program's configurations at 1e-5 on Omniglot, and on miniImageNet it stays at its
   start. On miniImageNet the program also clips outer gradients to ±10, and its multi-step loss lasts 15 epochs of 100,
   not 10.
6. One checkpoint is tested. The program averages the outputs of its five best.
7. The network is that of MAML, on Omniglot with strides. The program's has leaky ReLUs, max pooling on Omniglot too,
   48 filters on miniImageNet, norms with an epsilon of 1e-5, and miniImageNet normalised as ImageNet is.
8. The program takes 5 inner steps; in an outer step 8 tasks on Omniglot and 2 on miniImageNet, there with 15 queries of
   each class; 50,000 outer steps at a rate of 0.001; and Omniglot's classes as 1,150, 50 and 423. conf/algorithm and
   the recipes have 3 inner steps, and the recipes other tasks, queries on miniImageNet, lengths and rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import nn

from fewshot.algorithms.learner import Tensors, check_settings, score, task_loss
from fewshot.algorithms.maml import ALPHA, MAML
from fewshot.backbones.norm import BatchStatNorm, norm_names
from fewshot.core.checks import check_bool
from fewshot.core.errors import FewshotError
from fewshot.episodes import Episodes

STEP = "steps/"  # prefix of the names of norms' parameters, which have a value for each inner step
STAGES = 5  # of the multi-step loss


class MAMLPlusPlus(MAML):
    """MAML whose rates, norms and losses know the number of the inner step.

    Args:
        step_rates: a rate for each parameter tensor and inner step is meta-learned, from `inner_lr`.
        step_norms: the scales and offsets of norms are others at each step, and no inner step changes them.
        multi_step_until: share of the training in which the query loss after every step counts, the last more and more.
        first_order_until: share of the training in which inner gradients are constants.
        backbone, inner_lr, inner_steps, test_steps, inner_loss, outer_loss, adapted: as MAML.

    Raises:
        FewshotError: as MAML.
    """

    outer_settings = MappingProxyType({"outer_lr_end": 0.0, "outer_lr_schedule": "cosine"})

    def __init__(
        self,
        backbone: nn.Module,
        *,
        inner_lr: float = 0.1,
        inner_steps: int = 5,
        test_steps: int | None = None,
        inner_loss: str = "mean",
        outer_loss: str = "mean",
        adapted: str | Sequence[str] = "all",
        step_rates: bool = True,
        step_norms: bool = True,
        multi_step_until: float = 0.1,
        first_order_until: float = 0.0,
    ) -> None:
        super().__init__(
            backbone, inner_lr=inner_lr, inner_steps=inner_steps, test_steps=test_steps, inner_loss=inner_loss,
            outer_loss=outer_loss, adapted=adapted,
        )  # fmt: skip
        check_settings(int, 1, inner_steps=inner_steps)
        for name, share in (("multi_step_until", multi_step_until), ("first_order_until", first_order_until)):
            check_settings(float, 0, **{name: share})
            if share > 1:
                raise FewshotError(f"algorithm.learner.{name}={share}: is a share of the training, at most 1")
        check_bool("algorithm.learner.step_rates", step_rates)
        check_bool("algorithm.learner.step_norms", step_norms)
        self.step_rates, self.multi_step_until, self.first_order_until = step_rates, multi_step_until, first_order_until
        of_norms = norm_names(backbone, (BatchStatNorm,))
        self.step_norms = of_norms if step_norms else []
        if step_norms:
            self.adapted = [name for name in self.adapted if name not in of_norms]
            self.features_once = self.features_once and not of_norms  # features change from step to step
        if not self.adapted:
            raise FewshotError(f"algorithm.learner.adapted={adapted}: norms alone, which step_norms leaves as they are")
        if adapted != "all":  # the first note, without the norms that step_norms leaves as they are
            self.notes = (f"the inner loop adapts {', '.join(self.adapted)}", *self.notes[1:])
        if step_norms and not of_norms:
            self.notes += ("step_norms does nothing: this network has no norm of the class BatchStatNorm",)
        self.begin_step(1, 1)

    @property
    def gradient_evaluations(self) -> int:
        """As MAML's, and the queries after each earlier step while they count; the mean over the training, rounded."""
        return super().gradient_evaluations + round(self.multi_step_until * (self.inner_steps - 1))

    def begin_step(self, step: int, steps: int) -> None:
        """Set what the share of the training that is done decides: the order, and how much earlier steps count."""
        self.first_order = step < self.first_order_until * steps
        self._earlier = 0.0  # weight of each earlier step's loss, in units of an equal weight
        if step < self.multi_step_until * steps:
            self._earlier = 1 - int(STAGES * step / (self.multi_step_until * steps)) / STAGES

    def init(self) -> tuple[Tensors, Tensors]:
        """The backbone's parameters, those of norms once per step [S, C], and a rate per tensor and step [S]."""
        theta, state = super().init()
        for name in self.step_norms:
            theta[STEP + name] = theta.pop(name).repeat(self.inner_steps, 1)
        if self.step_rates:
            rates = {name: theta[name].new_full((self.inner_steps,), self.inner_lr) for name in self.adapted}
            theta |= {ALPHA + name: rate for name, rate in rates.items()}
        return theta, state

    def at_step(self, theta: Tensors, step: int) -> Tensors:
        """The parameters with the norms of this step."""
        step = min(step, self.inner_steps - 1)
        return {n.removeprefix(STEP): value[step] if n.startswith(STEP) else value for n, value in theta.items()}

    def rate(self, params: Tensors, name: str, step: int) -> torch.Tensor | float:
        """The rate of a tensor at this step."""
        return params[ALPHA + name][min(step, self.inner_steps - 1)] if self.step_rates else self.inner_lr

    def outer_loss(self, params: Tensors, task: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted query losses [] after each step, or the last alone, and the score [] after the last."""
        if not self._earlier:
            return super().outer_loss(params, task)
        _, *path = self.trajectory(params, task, self.inner_steps)
        outputs = [self.predict(fast, task.query_x) for fast in path]
        losses = torch.stack([task_loss(each, task.query_y, self.outer_reduction, task.shot) for each in outputs])
        weight = self._earlier / len(path)  # the program's vector: all equal at first, then the last more and more
        loss = weight * losses.sum() + (1 - weight * len(path)) * losses[-1]
        return loss, score(outputs[-1].detach(), task.query_y)
