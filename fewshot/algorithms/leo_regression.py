"""LEO for regression: Rusu et al., 2019, "Meta-learning with latent embedding optimization", section 4.1, appendix.

No program was released for this experiment. From the paper, as later texts cite its appendix: a code of 16 values
decodes to all weights of a 1-40-40-1 network; encoder, relation network and decoder have three layers, with 16, 32 and
32 hidden units (one text has 32 in the encoder too). Our choices:
1. Layers have biases. Those of the decoder's last layer start at the backbone's initial weights, so that a code of zero
   decodes to an ordinary network.
2. Standard deviations are exp(u). That of a code starts near 1, its prior's; that of weights at `weight_stddev`.
3. Losses of both loops are mean squared errors. Their rates are meta-learned as logarithms, and no inner gradient is
   longer than `inner_clip`: lines reach values of 18, where a step that diverges is not mended by the next four.
4. Numbers of steps, rates and weights, as conf/algorithm has them.

As in `fewshot.algorithms.leo`, which follows the program of the classification experiments:
5. The decoder samples anew at every decode, and its KL is left out; the encoder's is a one-sample estimate. KL, encoder
   penalty and orthogonality are means over elements. The orthogonality penalty is on the rows of the decoder's last
   layer, one for each hidden unit.
6. Random draws come from the episode's key. At evaluation, means take the place of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from types import MappingProxyType

import torch
from torch import nn

from fewshot.algorithms.learner import (
    Tensors,
    backbone_parameters,
    check_settings,
    differentiate,
    functional_forward,
    score,
    task_loss,
)
from fewshot.algorithms.leo_common import KeyedNoise, LEOSteps, kl_estimate, orthogonality, rate_scalars
from fewshot.backbones.mlp import MLP
from fewshot.core.errors import FewshotError
from fewshot.episodes import Episodes

SMALLEST = 1e-10  # value of a setting that must be above 0


@dataclass(frozen=True)
class Fit:
    """The result of Algorithm 1 on one task: L values of a code, D weights of a network."""

    mean: torch.Tensor  # of the encoder's distribution, [L]
    stddev: torch.Tensor  # [L]
    first: torch.Tensor  # z before the latent steps, [L]
    last: torch.Tensor  # z after them, [L]
    weights: torch.Tensor  # decoded from the last z and fine-tuned, [D]


class LEORegression(LEOSteps):
    """Adapt a low-dimensional code of all weights of a small network, which starts from an encoding of the support set.

    Args:
        backbone: the network whose weights are decoded: x [B, inputs] to outputs [B, 1], without norms.
        latent: size L of a code.
        encoder_width, relation_width, decoder_width: hidden units of these three, two layers each.
        weight_stddev: standard deviation of the decoded weights at the start of meta-training.
        latent_steps: steps S on z, each with a decode after it.
        finetune_steps: steps F on the decoded weights.
        latent_lr, finetune_lr: start values of the meta-learned rates, one for each dimension of z and of the weights.
        inner_clip: largest norm of a gradient in the inner loops.
        kl_weight, encoder_penalty_weight, l2_weight, orthogonality_weight: beta, gamma, lambda_1, lambda_2.

    Raises:
        FewshotError: a backbone of another kind, or a setting out of its range.
    """

    outer_settings = MappingProxyType(
        {"meta_batch": 12, "outer_lr": 0.003, "outer_lr_end": 0.0, "clip": 0.1, "clip_norm": 0.1}
    )

    def __init__(
        self,
        backbone: nn.Module,
        *,
        latent: int = 16,
        encoder_width: int = 16,
        relation_width: int = 32,
        decoder_width: int = 32,
        weight_stddev: float = 0.01,
        latent_steps: int = 5,
        finetune_steps: int = 5,
        latent_lr: float = 0.3,
        finetune_lr: float = 0.005,
        inner_clip: float = 2.0,
        kl_weight: float = 0.01,
        encoder_penalty_weight: float = 1e-6,
        l2_weight: float = 1e-8,
        orthogonality_weight: float = 0.01,
    ) -> None:
        if not isinstance(backbone, MLP) or backbone.has_norms or backbone.head.out_features != 1:
            raise FewshotError(
                "algorithm=leo_regression decodes an MLP without norms: choose backbone=mlp_40 and a dataset of "
                "functions, such as sines_and_lines; on classes choose algorithm=leo"
            )
        check_settings(int, 1, latent=latent, encoder_width=encoder_width)
        check_settings(int, 1, relation_width=relation_width, decoder_width=decoder_width)
        check_settings(int, 0, latent_steps=latent_steps, finetune_steps=finetune_steps)
        check_settings(float, SMALLEST, latent_lr=latent_lr, finetune_lr=finetune_lr)
        check_settings(float, SMALLEST, weight_stddev=weight_stddev, inner_clip=inner_clip)
        check_settings(float, 0, kl_weight=kl_weight, encoder_penalty_weight=encoder_penalty_weight)
        check_settings(float, 0, l2_weight=l2_weight, orthogonality_weight=orthogonality_weight)
        self.inner_clip = inner_clip
        self.backbone = backbone
        self.latent_steps, self.test_steps = latent_steps, finetune_steps
        self.kl_weight, self.encoder_penalty_weight = kl_weight, encoder_penalty_weight
        self.l2_weight, self.orthogonality_weight = l2_weight, orthogonality_weight
        start = {name: value.cpu() for name, value in backbone_parameters(backbone).items()}
        self._shapes = {name: value.shape for name, value in start.items()}
        flat = torch.cat([value.flatten() for value in start.values()])
        inputs = next(iter(start.values())).shape[1]
        self._networks = nn.ModuleDict(
            {
                "encoder": _three_layers(inputs + 1, encoder_width, latent),
                "relation": _three_layers(2 * latent, relation_width, 2 * latent),
                "decoder": _three_layers(latent, decoder_width, 2 * len(flat)),
            }
        )
        self.initial = backbone_parameters(self._networks) | {
            "decoder.head.bias": torch.cat([flat, torch.full_like(flat, log(weight_stddev))]),
            "log_latent_lr": torch.full((latent,), log(latent_lr)),  # alpha
            "log_finetune_lr": torch.full_like(flat, log(finetune_lr)),
        }

    def outer_loss(self, params: Tensors, task: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
        """Equation 4 and the regularisers of one task in meta-training, []; and the query score []."""
        fit = self.solve(params, task, KeyedNoise(task.key, task.query_x.dtype))
        outputs = self.predict(self.network(fit.weights), task.query_x)
        loss = task_loss(outputs, task.query_y, "mean", len(task.support_y)) + sum(self.penalties(params, fit).values())
        return loss, score(outputs.detach(), task.query_y)

    def solve(self, params: Tensors, task: Episodes, draws: KeyedNoise | None) -> Fit:
        """Algorithm 1, lines 5 to 12: encode, sample, decode, adapt z, fine-tune w; with None nothing is drawn."""
        mean, stddev = self.encode(params, task)
        first = z = mean if draws is None else mean + stddev * draws.normal("encoder", mean.shape)
        for step in range(self.latent_steps):
            grad_z = self._gradient(
                lambda z, step=step: self.support_loss(self.decode(params, z, f"decoder_{step}", draws), task), z
            )
            z = z - params["log_latent_lr"].exp() * grad_z
        w = self.decode(params, z, f"decoder_{self.latent_steps}", draws)
        for _ in range(self.test_steps):
            grad_w = self._gradient(lambda w: self.support_loss(w, task), w)
            w = w - params["log_finetune_lr"].exp() * grad_w
        return Fit(mean, stddev, first, z, w)

    def encode(self, params: Tensors, task: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
        """Equations 1 and 2: mean and standard deviation [L] of the code from all pairs of support points."""
        points = torch.cat([task.support_x.flatten(1), task.support_y.view(-1, 1)], 1)
        h = self._run("encoder", params, points)  # [K, L]
        shape = (len(h), *h.shape)
        pairs = torch.cat([h[:, None].expand(shape), h.expand(shape)], -1).flatten(0, 1)  # [K*K, 2L]
        mean, u = self._run("relation", params, pairs).mean(0).chunk(2)
        return mean, u.exp()

    def decode(self, params: Tensors, z: torch.Tensor, name: str, draws: KeyedNoise | None) -> torch.Tensor:
        """Equation 3: weights w [D] of a code z [L]."""
        mean, u = self._run("decoder", params, z[None])[0].chunk(2)
        return mean if draws is None else mean + u.exp() * draws.normal(name, mean.shape)

    def network(self, w: torch.Tensor) -> Tensors:
        """Weights [D] as the backbone's parameters."""
        parts = w.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)}

    def support_loss(self, w: torch.Tensor, task: Episodes) -> torch.Tensor:
        """L_task(f_w) on the support set, []."""
        outputs = self.predict(self.network(w), task.support_x)
        return task_loss(outputs, task.support_y, "mean", len(task.support_y))

    def penalties(self, params: Tensors, fit: Fit) -> Tensors:
        """The weighted terms beside the query loss, each []."""
        weights = [value for name, value in params.items() if name.endswith("weight")]
        return {
            "l2": 0.5 * self.l2_weight * torch.stack([value.square().sum() for value in weights]).sum(),
            "orthogonality": self.orthogonality_weight * orthogonality(params["decoder.head.weight"].T),
            "encoder_penalty": self.encoder_penalty_weight * (fit.last.detach() - fit.first).square().mean(),
            "kl": self.kl_weight * kl_estimate(fit.first, fit.mean, fit.stddev),
        }

    def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
        """The backbone's parameters, with means in place of samples."""
        return self.network(self.solve(params, task, None).weights)

    def sampled(self, params: Tensors, task: Episodes, key: torch.Tensor) -> Tensors:
        """The backbone's parameters from samples, as in meta-training: one of the fits that the support set allows.

        Args:
            key: [] int64, the source of the draws; each key gives a fit of its own.
        """
        return self.network(self.solve(params, task, KeyedNoise(key, task.support_x.dtype)).weights)

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Outputs [B, 1] of x [B, inputs]."""
        return functional_forward(self.backbone, adapted, x)

    def scalars(self, params: Tensors) -> dict[str, float]:
        """Mean and spread of the meta-learned rates, for the log."""
        return rate_scalars(params["log_latent_lr"].exp(), params["log_finetune_lr"].exp())

    def _gradient(self, loss: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor) -> torch.Tensor:
        """Gradient of a loss of one vector, of a norm of at most `inner_clip`; differentiable."""
        gradient, _ = differentiate(
            lambda p: (loss(p["at"]), ()), {"at": at}, use_autograd=self.use_autograd, create_graph=True
        )
        return gradient["at"] * (self.inner_clip / gradient["at"].norm().clamp_min(self.inner_clip))

    def _run(self, part: str, params: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Forward x through the part `encoder`, `relation` or `decoder`."""
        prefix = f"{part}."
        weights = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
        return functional_forward(self._networks[part], weights, x)


def _three_layers(inputs: int, width: int, outputs: int) -> MLP:
    return MLP(
        (inputs,), outputs, widths=(width, width), norm="none", norm_scale=False, norm_eps=0.0, adapt_norm=False,
        head_init="xavier", init="xavier",
    )  # fmt: skip
