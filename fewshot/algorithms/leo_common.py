"""What both forms of LEO share, for classes and for functions: random draws, penalties, fields of log and record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fewshot.algorithms.learner import Learner, Tensors
from fewshot.core.random import bernoulli, fold_in, normal, stream


@dataclass(frozen=True)
class KeyedNoise:
    """Random numbers that are functions of the episode's key and of a name for each draw."""

    key: torch.Tensor  # [] int64
    dtype: torch.dtype

    def normal(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """Standard normals of a shape."""
        return normal(fold_in(self.key, stream(name)), shape).to(self.dtype)

    def keep(self, name: str, shape: Sequence[int], rate: float) -> torch.Tensor:
        """A dropout mask: False with probability `rate`."""
        return ~bernoulli(fold_in(self.key, stream(name)), shape, rate)


class LEOSteps(Learner):
    """Start values and step counts of the two LEO learners."""

    latent_steps: int  # on the code z; `test_steps` counts the fine-tuning steps on the weights w
    initial: Tensors  # meta-parameters before training

    def init(self) -> tuple[Tensors, Tensors]:
        """Encoder, relation network, decoder and both learning rates; no state."""
        return {name: value.clone() for name, value in self.initial.items()}, {}

    @property
    def gradient_evaluations(self) -> int:
        """Gradients that one training task costs: both inner loops and the outer one."""
        return self.latent_steps + self.test_steps + 1

    @property
    def adaptation_steps(self) -> str:
        """Both inner loops of a test episode, for the record."""
        return f"{self.latent_steps} latent, {self.test_steps} fine-tuning"


def kl_estimate(z: torch.Tensor, mean: torch.Tensor, stddev: torch.Tensor) -> torch.Tensor:
    """One-sample estimate of KL(N(mean, stddev) || N(0, I)) from the sample z, mean over its elements: []."""
    # The noise is computed from z, as in the original: in float32 a clipped deviation of 1e-10 vanishes in z. It is a
    # constant: if it were differentiated, terms of 1e10 would have to cancel.
    noise = ((z - mean) / stddev).detach()
    return (0.5 * (z.square() - noise.square()) - stddev.log()).mean()


def orthogonality(decoder: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the row correlations of decoder [L, 2D] from the identity: []."""
    norms = decoder.norm(dim=1)
    correlations = decoder @ decoder.T / (norms[:, None] * norms + 1e-32)
    return (correlations - torch.eye(len(decoder), dtype=decoder.dtype, device=decoder.device)).square().mean()


def rate_scalars(latent_lr: torch.Tensor, finetune_lr: torch.Tensor) -> dict[str, float]:
    """Mean and spread of the meta-learned rates, [L] of a code and [D] of weights, for the log."""
    rates = {"latent_lr": latent_lr, "finetune_lr": finetune_lr}
    means = {f"{name}_mean": float(rate.mean()) for name, rate in rates.items()}
    return means | {f"{name}_stddev": float(rate.std()) for name, rate in rates.items()}
