"""LEO: Rusu et al., 2019, "Meta-learning with latent embedding optimization"; deepmind/leo de9a0c2.

Differences from the paper, as the original program has them:
1. Each class has K latents and K weight vectors, one per shot; the logit of a class is the mean over its K.
2. The encoder is one linear map; the paper names layers of it for regression alone. Standard deviations are exp(u) - 1
   (encoder) and exp(u) - 1 + sqrt(2 / (N + D)) (decoder), at least 1e-10. The decoder samples anew at every decode.
3. The KL term is a one-sample estimate, and it, the encoder penalty and the orthogonality penalty are means over
   elements where equations 5 to 7 sum squares or take norms. The decoder's own KL is discarded.
4. Dropout also acts on what the classifier sees, with fresh masks in every inner step and on the queries.

Differences from the original program:
5. Random draws come from the episode's key. The noise of a code is made of the same bits as the encoder's dropout
   mask. Dropout rates are rounded to multiples of 1/65536.
6. The relation network is rewritten by linearity: its first layer acts on each half of a pair, its last on the mean
   over partners and shots. Inner gradients are written out. Both give the same numbers.
7. Validation takes the same episodes each time; the original draws new ones.
8. `deterministic=true` leaves out the KL term too, since it is estimated from the samples.
9. `prior=random` draws z at evaluation too. The paper does not say; the prior's mean would be one code for all classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod, sqrt
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.algorithms.learner import Tensors, check_settings, score
from fewshot.algorithms.leo_common import KeyedNoise, LEOSteps, kl_estimate, orthogonality, rate_scalars
from fewshot.backbones.identity import Identity
from fewshot.core.checks import check_bool, check_choice, check_rate
from fewshot.core.errors import FewshotError
from fewshot.episodes import Episodes

SMALLEST_STDDEV = 1e-10


@dataclass(frozen=True)
class Solution:
    """The steps of Algorithm 1 on one task: S latent and F fine-tuning steps, N classes, K shots, L and D values."""

    encoding: tuple[torch.Tensor, torch.Tensor]  # mean and standard deviation of the encoder's distribution, [N, 1, L]
    latents: list[torch.Tensor]  # z before each latent step and after the last, S+1 of [N, K, L]
    weights: list[torch.Tensor]  # w at each decode, S+1 of [N, K, D]
    tuned: list[torch.Tensor]  # w as mean over K, before each fine-tuning step and after the last, F+1 of [N, 1, D]


class LEO(LEOSteps):
    """Adapt a low-dimensional code of the classifier's weights, which starts from an encoding of the support set.

    Sizes and steps are by default the paper's; conf/recipes/deepmind.yaml has its tuned rates for each data set.

    Args:
        backbone: the identity: LEO learns on pixels or features as they are, [B, D].
        latent: size L of a code.
        latent_steps: steps S on z, each with a decode after it.
        finetune_steps: steps F on the decoded weights.
        latent_lr, finetune_lr: start values of the meta-learned rates, one for each dimension of z and of w.
        dropout: rate of dropout on the features, in meta-training.
        kl_weight, encoder_penalty_weight, l2_weight, orthogonality_weight: beta, gamma, lambda_1, lambda_2.
        prior: `encoder`, or `random`: codes are drawn from N(0, I) (an ablation in the paper's Table 2).
        deterministic: means in place of samples in meta-training (another ablation), but for the codes of a random
            prior.

    Raises:
        FewshotError: another backbone, one class only, or a setting out of range.
    """

    outer_settings = MappingProxyType(
        {"outer_optimizer": "adam_tf", "clip": 0.1, "clip_norm": 0.1, "nan_guard": True, "meta_batch": 12}
    )

    def __init__(
        self,
        backbone: Identity,
        *,
        latent: int = 64,
        latent_steps: int = 5,
        finetune_steps: int = 5,
        latent_lr: float = 1.0,
        finetune_lr: float = 0.001,
        dropout: float = 0.3,
        kl_weight: float = 0.1,
        encoder_penalty_weight: float = 1e-6,
        l2_weight: float = 1e-8,
        orthogonality_weight: float = 0.01,
        prior: str = "encoder",
        deterministic: bool = False,
    ) -> None:
        if not isinstance(backbone, Identity) or backbone.way < 2:
            raise FewshotError(
                "algorithm=leo classifies inputs as they are: choose backbone=identity; on functions choose "
                "algorithm=leo_regression"
            )
        check_settings(int, 1, latent=latent)
        check_settings(int, 0, latent_steps=latent_steps, finetune_steps=finetune_steps)
        check_rate("algorithm.learner.dropout", dropout)
        check_settings(float, 0, kl_weight=kl_weight, encoder_penalty_weight=encoder_penalty_weight)
        check_settings(float, 0, l2_weight=l2_weight, orthogonality_weight=orthogonality_weight)
        check_settings(float, 0, latent_lr=latent_lr, finetune_lr=finetune_lr)
        self.backbone = backbone
        self.dim, self.latent = prod(backbone.shape), latent
        self.latent_steps, self.test_steps = latent_steps, finetune_steps
        self.dropout = dropout
        self.kl_weight, self.encoder_penalty_weight = kl_weight, encoder_penalty_weight
        self.l2_weight, self.orthogonality_weight = l2_weight, orthogonality_weight
        self.random_prior = check_choice("algorithm.learner.prior", prior, ("encoder", "random")) == "random"
        check_bool("algorithm.learner.deterministic", deterministic)
        still = "with prior=random the codes are drawn at random; deterministic=true changes the decoder alone"
        self.notes = (still,) if self.random_prior and deterministic else ()
        self.deterministic = deterministic
        self.initial = {
            "encoder": _glorot(self.dim, latent),
            **{f"relation_{i}": _glorot(2 * latent, 2 * latent) for i in range(3)},
            "decoder": _glorot(latent, 2 * self.dim),
            "latent_lr": torch.full((latent,), float(latent_lr)),  # alpha
            "finetune_lr": torch.full((self.dim,), float(finetune_lr)),
        }

    def outer_loss(self, params: Tensors, task: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
        """Equation 4 and the regularisers of one task in meta-training, []; and the query score []."""
        return self.objective(params, task, KeyedNoise(task.key, task.query_x.dtype))

    def objective(self, params: Tensors, task: Episodes, draws: KeyedNoise | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The outer loss with given draws; with None the loss of evaluation, where nothing is drawn."""
        solution = self.solve(params, task, draws)
        logits = self.query_logits(solution, task, draws)
        loss = F.cross_entropy(logits, task.query_y) + sum(self.penalties(params, solution, draws).values())
        return loss, score(logits.detach(), task.query_y)

    def query_logits(self, solution: Solution, task: Episodes, draws: KeyedNoise | None) -> torch.Tensor:
        """Logits [N*Q, N] from the final weights."""
        return self._drop(self.backbone(task.query_x), "query", draws) @ solution.tuned[-1][:, 0].T

    def solve(self, params: Tensors, task: Episodes, draws: KeyedNoise | None) -> Solution:
        """Algorithm 1, lines 5 to 12: encode, sample, decode, adapt z, fine-tune w; with None nothing is drawn."""
        x = self.backbone(task.support_x).view(task.way, -1, self.dim)
        mean, stddev = self.encode(params, x, draws)
        z = mean.expand(*x.shape[:2], self.latent)
        if self.random_prior:
            z = (draws or KeyedNoise(task.key, x.dtype)).normal("encoder", z.shape)
        elif draws is not None and not self.deterministic:
            z = z + stddev * draws.normal("encoder", z.shape)
        w, vjp = self.decode(params, z, "decoder_0", draws)
        grad_w = support_gradient(w, self._drop(x, "support_0", draws))
        latents, weights = [z], [w]
        for step in range(1, self.latent_steps + 1):
            z = z - params["latent_lr"] * vjp(grad_w)
            w, vjp = self.decode(params, z, f"decoder_{step}", draws)
            grad_w = support_gradient(w, self._drop(x, f"support_{step}", draws))
            latents.append(z)
            weights.append(w)
        # The K copies of a class now move together, and only their mean is ever used.
        w = w.mean(1, keepdim=True)
        tuned = [w]
        for step in range(1, self.test_steps + 1):
            w = w - params["finetune_lr"] * grad_w
            tuned.append(w)
            if step < self.test_steps:
                grad_w = support_gradient(w, self._drop(x, f"finetune_{step}", draws))
        return Solution((mean, stddev), latents, weights, tuned)

    def encode(self, params: Tensors, x: torch.Tensor, draws: KeyedNoise | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Equations 1 and 2: mean and standard deviation [N, 1, L] of each class's code from x [N, K, D]."""
        h = self._drop(x, "encoder", draws) @ params["encoder"]  # [N, K, L]
        first, partner = h @ params["relation_0"][: self.latent], h @ params["relation_0"][self.latent :]
        pairs = torch.relu(first[:, :, None, None] + partner)  # [N, K, N, K, 2L]
        related = torch.relu(pairs @ params["relation_1"]).flatten(1, 3)
        # Not .mean(): its derivative divides an expanded tensor, and all after it has a slow layout.
        related = related.sum(1, keepdim=True) * (1 / related.shape[1])
        mean, u = (related @ params["relation_2"]).split(self.latent, dim=-1)
        return mean, (u.exp() - 1).clamp_min(SMALLEST_STDDEV)

    def decode(
        self, params: Tensors, z: torch.Tensor, name: str, draws: KeyedNoise | None
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """Equation 3: weights w [N, K, D] of codes z [N, K, L], and the map from d/dw to d/dz."""
        centre, spread = params["decoder"].split(self.dim, dim=-1)
        w = z @ centre
        if draws is None or self.deterministic:
            return w, lambda grad_w: grad_w @ centre.T
        exp = (z @ spread).exp()
        stddev = exp - (1 - sqrt(2 / (len(z) + self.dim)))
        noise = draws.normal(name, w.shape)
        free = (stddev > SMALLEST_STDDEV) * noise * exp  # dw / d(z @ spread)
        w = w + stddev.clamp_min(SMALLEST_STDDEV) * noise
        return w, lambda grad_w: grad_w @ centre.T + (grad_w * free) @ spread.T

    def penalties(self, params: Tensors, solution: Solution, draws: KeyedNoise | None) -> Tensors:
        """The weighted terms beside the query loss, each []."""
        squares = sum(value.square().sum() for name, value in params.items() if not name.endswith("_lr"))
        terms = {
            "l2": 0.5 * self.l2_weight * squares,
            "orthogonality": self.orthogonality_weight * orthogonality(params["decoder"]),
        }
        if draws is not None:
            before, after = solution.latents[0], solution.latents[-1]
            terms["encoder_penalty"] = self.encoder_penalty_weight * (after.detach() - before).square().mean()
            if not self.random_prior and not self.deterministic:
                terms["kl"] = self.kl_weight * kl_estimate(before, *solution.encoding)
        return terms

    def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
        """The classifier's weights, the mean over the K copies of each class: [N, D]."""
        return {"weights": self.solve(params, task, None).tuned[-1][:, 0]}

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, N] of features [B, D]."""
        # In this order, the weights of many tasks on one x are a single matrix product.
        return (adapted["weights"] @ self.backbone(x).T).T

    def scalars(self, params: Tensors) -> dict[str, float]:
        """Mean and spread of the meta-learned rates, for the log."""
        return rate_scalars(params["latent_lr"], params["finetune_lr"])

    def _drop(self, x: torch.Tensor, name: str, draws: KeyedNoise | None) -> torch.Tensor:
        """Dropout with inverted scaling, in meta-training."""
        if draws is None or not self.dropout:
            return x
        return torch.where(draws.keep(name, x.shape, self.dropout), x * (1 / (1 - self.dropout)), 0.0)


def support_gradient(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """d/dw of the sum of the support items' cross-entropy, for weights w and items x, both [N, K, D].

    The K copies of a class have equal shares in its logit, so they have one gradient: [N, 1, D].
    """
    way, shot, _ = x.shape
    items = x.flatten(0, 1)
    labels = torch.eye(way, dtype=x.dtype, device=x.device).repeat_interleave(shot, 0)
    error = (items @ w.mean(1).T).softmax(-1) - labels
    return (error.T @ items)[:, None] / shot


def _glorot(rows: int, columns: int) -> torch.Tensor:
    return nn.init.xavier_uniform_(torch.empty(rows, columns))
