"""Matching networks: Vinyals et al., 2016, "Matching networks for one shot learning". No program was released.

Where the paper is silent, or users expect otherwise:
1. `scale` multiplies the cosines before the softmax. The paper has none (1); Chen et al. (2019, "A closer look at
   few-shot classification") take 100, after a ReLU, since a softmax of cosines alone is nearly uniform.
2. Logits are the logarithm of the attention-weighted labels plus 1e-6, as theirs, so that no loss is infinite.
3. Fine-tuning at a test (`test_steps`) is gradient descent on the support set's own loss, beside the whole support
   set. The paper says only that it fine-tunes on the support set.
4. Norms take the statistics of the batch at hand, as in `fewshot.algorithms.protonet`.
5. With full context the LSTMs read the support set sorted by class, so that an example's place tells its class. The
   paper gives no order. No LSTM has peepholes. That of the queries starts from h = f'(x) and takes `context_steps`
   steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.algorithms.embedding import Embedding, embedding_parameters, functional_embed, members
from fewshot.algorithms.full_context import context_parameters, embed_queries, embed_support
from fewshot.algorithms.learner import Learner, Tensors, check_settings, differentiate, score
from fewshot.core.checks import check_bool
from fewshot.episodes import Episodes

SUPPORT, LABELS = "support/features", "support/labels"  # beside the names of parameters
FLOOR = 1e-6


class MatchingNet(Learner):
    """The label of a query is the mean of the support set's labels, weighted by attention. Any way, any shot.

    Where classes differ in size, a larger one weighs more.

    Args:
        backbone: a network with a method `embed`, [B, ...] to features [B, D]; its head takes no part.
        context: full context embeddings: LSTMs let the support set change all features. They see it in its order.
        context_steps: steps of the queries' LSTM.
        scale: of the cosines; 1 in the paper.
        test_steps: steps of fine-tuning at a test.
        finetune_lr: their learning rate.

    Raises:
        FewshotError: a network without `embed`, or with `context` without a head, or a setting out of range.
    """

    unequal_shots = True
    gradient_evaluations = 1  # of a training task

    def __init__(
        self,
        backbone: nn.Module,
        *,
        context: bool = False,
        context_steps: int = 5,
        scale: float = 10.0,
        test_steps: int = 0,
        finetune_lr: float = 0.01,
    ) -> None:
        self.backbone, self.embedding = backbone, Embedding(backbone)
        check_settings(int, 0, test_steps=test_steps)
        check_settings(int, 1, context_steps=context_steps)
        check_settings(float, 0, finetune_lr=finetune_lr, scale=scale)
        check_bool("algorithm.learner.context", context)
        self.context_steps, self.scale = context_steps, scale
        self.test_steps, self.finetune_lr = test_steps, finetune_lr
        self.context = context_parameters(backbone) if context else {}
        if context:  # the square of the features: 149 million on Conv-4-64 and 84 pixels
            self.notes = (f"full context has {sum(v.numel() for v in self.context.values()):,} weights of its own",)

    def init(self) -> tuple[Tensors, Tensors]:
        """The parameters of the embedding and of the LSTMs, no state."""
        return embedding_parameters(self.backbone) | {name: v.clone() for name, v in self.context.items()}, {}

    def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
        """The parameters, fine-tuned, and the support set's features [N*K, D] and labels [N*K, N]."""

        def loss(moving: Tensors) -> tuple[torch.Tensor, tuple[()]]:
            return F.cross_entropy(self.predict(self._attend(moving, task), task.support_x), task.support_y), ()

        for _ in range(self.test_steps):
            gradient, _ = differentiate(loss, params, use_autograd=self.use_autograd, create_graph=False)
            params = {name: value - self.finetune_lr * gradient[name] for name, value in params.items()}
        return self._attend(params, task)

    def _attend(self, params: Tensors, task: Episodes) -> Tensors:
        features = functional_embed(self.embedding, params, task.support_x)
        if self.context:
            features = embed_support(params, features)
        return params | {SUPPORT: features, LABELS: members(features, task).T}

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, N]: logarithms of the probabilities of equation 1."""
        features, support = functional_embed(self.embedding, adapted, x), adapted[SUPPORT]
        if self.context:
            features = embed_queries(adapted, features, support, self.context_steps)
        cosines = F.normalize(features, dim=-1) @ F.normalize(support, dim=-1).T
        return ((self.scale * cosines).softmax(-1) @ adapted[LABELS] + FLOOR).log()

    def outer_loss(self, params: Tensors, task: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
        """The cross-entropy of the queries [], and their score []. Nothing is fine-tuned."""
        logits = self.predict(self._attend(params, task), task.query_x)
        return F.cross_entropy(logits, task.query_y), score(logits.detach(), task.query_y)
