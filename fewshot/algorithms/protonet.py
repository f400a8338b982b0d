"""Prototypical networks: Snell, Swersky and Zemel, 2017, "Prototypical networks for few-shot learning";
jakesnell/prototypical-networks c9bb4d2.

Differences from the original program:
1. Norms take the statistics of the batch at hand: of the support set, and of the queries. There support set and
   queries are one batch in training, and a test takes running averages.
2. It trains on one task per step; here a meta-batch is a setting, 1 in its recipe.
3. Its split of Omniglot, its choice of the epoch and its second training: see conf/recipes/jakesnell.yaml.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.algorithms.embedding import Embedding, class_means, embedding_parameters, functional_embed
from fewshot.algorithms.learner import Learner, Tensors, score
from fewshot.episodes import Episodes

PROTOTYPES = "prototypes/"  # beside the names of parameters


class ProtoNet(Learner):
    """A query belongs to the class whose mean of support features, its prototype, is nearest. Any way, any shot.

    Args:
        backbone: a network with a method `embed`, [B, ...] to features [B, D]; its head takes no part.

    Raises:
        FewshotError: a network without `embed`.
    """

    unequal_shots = True
    gradient_evaluations = 1  # of a training task

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone, self.embedding = backbone, Embedding(backbone)

    def init(self) -> tuple[Tensors, Tensors]:
        """The parameters of the embedding, no state."""
        return embedding_parameters(self.backbone), {}

    def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
        """The parameters, and the prototypes [N, D] (equation 1)."""
        return params | {PROTOTYPES: class_means(functional_embed(self.embedding, params, task.support_x), task)}

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, N]: minus the squared Euclidean distance to each prototype (equation 2)."""
        features, prototypes = functional_embed(self.embedding, adapted, x), adapted[PROTOTYPES]
        # Expanded, as in section 2.4: a matrix product holds no [B, N, D].
        squares = features.square().sum(-1, keepdim=True) + prototypes.square().sum(-1)
        return 2 * features @ prototypes.T - squares

    def outer_loss(self, params: Tensors, task: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
        """The cross-entropy of the queries [], and their score []."""
        logits = self.predict(self.adapt(params, {}, task), task.query_x)
        return F.cross_entropy(logits, task.query_y), score(logits.detach(), task.query_y)
