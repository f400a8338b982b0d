"""Baseline and Baseline++: Chen et al., 2019, "A closer look at few-shot classification";
wyharveychen/CloserLookFewShot e03aca8.

Differences from the original program:
1. Initial weights and the order of the minibatches come from the episode's key.
2. Any features can be used. Here both methods get those of an extractor with a linear head; the program trains the
   extractor of Baseline++ with a cosine head.
3. A linear head gets features of length 1 here, and in the program features of any length. So its rate is 1, and not
   the program's 0.01, with which it would hardly move. The weight decay is the program's number: a step shrinks the
   weights by a hundred times as much as there.
4. A cosine head scales features to length 1 in both. Its rate is 0.1, and not the program's 0.01: on validation tasks
   that was better (results/experiments.md). A step shrinks the weights by ten times as much.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fewshot.algorithms.embedding import check_classification
from fewshot.algorithms.learner import Learner, Tensors, check_settings, differentiate
from fewshot.backbones.identity import Identity
from fewshot.core.checks import check_choice
from fewshot.core.errors import FewshotError
from fewshot.core.random import fold_in, permutation, split, uniform
from fewshot.episodes import Episodes

MOMENTUM = DAMPENING = 0.9


class Baseline(Learner):
    """A new head is trained on the features of the support set, by SGD with momentum. Nothing is meta-trained.

    Where classes differ in size, a larger one weighs more.

    Args:
        backbone: the identity, on features.
        head: `linear`, Baseline; or `cosine`, Baseline++: cosines to a vector per class, each times a learned norm.
        test_steps: epochs over the support set.
        batch: size of a minibatch.
        lr, weight_decay: of SGD. None: a rate of 1 for a linear head, on features of length 1; 0.1 for a cosine head.
        scale: factor of the cosines.

    Raises:
        FewshotError: another backbone, a setting out of range, or an unknown choice.
    """

    unequal_shots = True

    def __init__(
        self,
        backbone: Identity,
        *,
        head: str = "linear",
        test_steps: int = 100,
        batch: int = 4,
        lr: float | None = None,
        weight_decay: float = 0.001,
        scale: float = 2.0,
    ) -> None:
        if not isinstance(backbone, Identity):
            raise FewshotError("this algorithm trains a head on features as they are: choose backbone=identity")
        check_settings(int, 0, test_steps=test_steps)
        check_settings(int, 1, batch=batch)
        self.cosine = check_choice("algorithm.learner.head", head, ("linear", "cosine")) == "cosine"
        lr = (0.1 if self.cosine else 1.0) if lr is None else lr
        check_settings(float, 0, lr=lr, weight_decay=weight_decay, scale=scale)
        self.backbone = backbone
        if len(backbone.shape) != 1:
            self.notes = (
                f"the head is trained on examples {list(backbone.shape)} as they are; its rate is made for features of "
                f"length 1, so try others (algorithm.learner.lr={lr})",
            )
        self.test_steps, self.batch, self.lr, self.weight_decay, self.scale = test_steps, batch, lr, weight_decay, scale

    def init(self) -> tuple[Tensors, Tensors]:
        """No parameters, no state."""
        return {}, {}

    def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
        """The head that `test_steps` epochs leave."""
        check_classification(task)
        x, count = self.backbone(task.support_x), len(task.support_y)
        head = self.start(task, x.shape[-1], x.dtype)
        velocity: Tensors = {}
        for epoch in range(self.test_steps):
            for rows in permutation(fold_in(task.key, epoch + 1), count).split(self.batch):

                def loss(moving: Tensors, rows: torch.Tensor = rows) -> tuple[torch.Tensor, tuple[()]]:
                    return F.cross_entropy(self.logits(moving, x[rows]), task.support_y[rows]), ()

                gradient, _ = differentiate(loss, head, use_autograd=self.use_autograd, create_graph=False)
                for name, value in head.items():  # as torch.optim.SGD, whose first velocity is the first gradient
                    slope = gradient[name] + self.weight_decay * value
                    known = name in velocity
                    velocity[name] = MOMENTUM * velocity[name] + (1 - DAMPENING) * slope if known else slope
                head = {name: value - self.lr * velocity[name] for name, value in head.items()}
        return head

    def start(self, task: Episodes, width: int, dtype: torch.dtype) -> Tensors:
        """The head before training, uniform in ± 1 / sqrt(D) as torch's linear layer."""
        values = uniform(split(fold_in(task.key, 0), task.way * (width + 1))).to(dtype)
        weight, bias = ((2 * values - 1) / width**0.5).split([task.way * width, task.way])
        weight = weight.view(task.way, width)
        return {"weight": weight, "norm": weight.norm(dim=-1)} if self.cosine else {"weight": weight, "bias": bias}

    def logits(self, head: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, N] of features [B, D]."""
        if not self.cosine:
            return F.linear(x, head["weight"], head["bias"])
        return self.scale * head["norm"] * (F.normalize(x, dim=-1) @ F.normalize(head["weight"], dim=-1).T)

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, N] of x [B, ...]."""
        return self.logits(adapted, self.backbone(x))
