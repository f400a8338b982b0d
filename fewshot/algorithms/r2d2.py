"""R2-D2: Bertinetto, Henriques, Torr and Vedaldi, 2019, "Meta-learning with differentiable closed-form solvers";
bertinetto/r2d2 d55964e.

Differences from the original program:
1. The system is solved, not its matrix inverted.
2. Norms take the statistics of the batch at hand, as in `fewshot.algorithms.protonet`.
3. The number of shots of a training task is fixed; there it is drawn from 1 to 9 for each task.
4. `learn_regularization` trains the logarithm of lambda, as the paper has it. The program leaves lambda at 50; its
   option trains lambda itself or, with a base other than 1, its exponent.
"""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.algorithms.embedding import Embedding, embedding_parameters, functional_embed, members
from fewshot.algorithms.learner import Learner, Tensors, check_settings, score
from fewshot.core.checks import check_bool
from fewshot.episodes import Episodes

# Names of what is learned beside the embedding, and of a task's solution.
SCALE, BIAS, LAMBDA, WEIGHTS = "logits/scale", "logits/bias", "log_lambda/", "weights/"


class R2D2(Learner):
    """A ridge regression from features to one-hot labels, solved for each task; its solution is differentiated.

    Where classes differ in size, a larger one weighs more.

    Args:
        backbone: a network with a method `embed`, [B, ...] to features [B, D]; its head takes no part.
        regularization: lambda, at the start if it is learned.
        learn_regularization: whether it is meta-learned.
        scale: alpha at the start, a factor of the regression's outputs; it and a bias are meta-learned.

    Raises:
        FewshotError: a network without `embed`, or a setting out of range.
    """

    unequal_shots = True
    gradient_evaluations = 1  # of a training task

    def __init__(
        self,
        backbone: nn.Module,
        *,
        regularization: float = 50.0,
        learn_regularization: bool = False,
        scale: float = 1e-4,
    ) -> None:
        self.backbone, self.embedding = backbone, Embedding(backbone)
        check_settings(float, 1e-12, regularization=regularization, scale=scale)
        check_bool("algorithm.learner.learn_regularization", learn_regularization)
        self.regularization, self.learned, self.scale = regularization, learn_regularization, scale

    def init(self) -> tuple[Tensors, Tensors]:
        """The parameters of the embedding, scale and bias of the logits, and log lambda if it is learned; no state."""
        start = {SCALE: float(self.scale), BIAS: 0.0} | ({LAMBDA: log(self.regularization)} if self.learned else {})
        return embedding_parameters(self.backbone) | {name: torch.tensor(value) for name, value in start.items()}, {}

    def embed(self, params: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Features and a one, [B, D + 1], so that the regression has a bias."""
        features = functional_embed(self.embedding, params, x)
        return torch.cat([features, torch.ones_like(features[:, :1])], -1)

    def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
        """The parameters, and the weights [D + 1, N] of the ridge regression (equations 4 to 6)."""
        x = self.embed(params, task.support_x)
        y = members(x, task).T
        x, y = x / len(y) ** 0.5, y / len(y) ** 0.5
        strength = params[LAMBDA].exp() if self.learned else self.regularization
        # In the smaller space (Woodbury): in the larger one a small lambda alone would keep the matrix regular.
        few_examples = len(x) <= x.shape[1]
        matrix = x @ x.T if few_examples else x.T @ x
        matrix = matrix + strength * torch.eye(len(matrix), dtype=x.dtype, device=x.device)
        # Without the check of `solve`, which waits for a GPU: lambda makes the matrix positive definite, unless it
        # is lost in the rounding of float32 (1e-7 of the largest entry); outputs may then not be finite.
        solved, _ = torch.linalg.solve_ex(matrix, y if few_examples else x.T @ y)
        return params | {WEIGHTS: x.T @ solved if few_examples else solved}

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, N]."""
        return adapted[SCALE] * (self.embed(adapted, x) @ adapted[WEIGHTS]) + adapted[BIAS]

    def outer_loss(self, params: Tensors, task: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
        """The cross-entropy of the queries [], and their score []."""
        logits = self.predict(self.adapt(params, {}, task), task.query_x)
        return F.cross_entropy(logits, task.query_y), score(logits.detach(), task.query_y)
