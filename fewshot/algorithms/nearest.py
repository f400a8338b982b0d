"""Nearest neighbour or nearest mean, on inputs or a network's features as they are: what needs no meta-learning."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.algorithms.learner import Learner, Tensors
from fewshot.backbones.identity import Identity
from fewshot.core.checks import check_choice
from fewshot.core.errors import FewshotError
from fewshot.episodes import Episodes

# Of probabilities; chosen on validation classes of glyphs and Omniglot, 5 and 20 ways, 1 and 5 shots. There
# probabilities from features are off by 0.2 to 2.2 per cent, from pixels by 4 to 17 (expected calibration error).
SHARPNESS_OF_FEATURES, SHARPNESS_OF_IMAGES = 14.0, 6.0


class Nearest(Learner):
    """Each query gets the class, or in regression the value, at the smallest Euclidean distance. Nothing is trained.

    The mean of many unit vectors is shorter than that of few, and nearer to all. Where classes differ in size, means of
    features get length 1 (Qi, Brown and Lowe 2018, Low-Shot Learning with Imprinted Weights).

    Args:
        backbone: the identity; or a network, as it is built, with a method `embed`, [B, ...] to features [B, D].
        reference: `neighbour`, the nearest support example of a class, or `mean`, the mean of them.

    Raises:
        FewshotError: a network without `embed`, or an unknown choice.
    """

    def __init__(self, backbone: nn.Module, *, reference: str = "neighbour") -> None:
        if not isinstance(backbone, Identity):
            if not callable(getattr(backbone, "embed", None)):
                raise FewshotError(
                    f"algorithm=nearest compares features, and {type(backbone).__name__} has no method embed(x) for "
                    "them; write one, or take a network of features with backbone=module backbone.outputs=features, in "
                    "Python fewshot.WithHead, or choose backbone=identity"
                )
            self.notes = ("nearest trains nothing: it compares the features of the network as it is built",)
        self.backbone = backbone
        self.on_features = isinstance(backbone, Identity) and len(backbone.shape) == 1
        self.mean = check_choice("algorithm.learner.reference", reference, ("neighbour", "mean")) == "mean"
        self.unequal_shots = self.mean

    def init(self) -> tuple[Tensors, Tensors]:
        """No parameters, no state."""
        return {}, {}

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """What is compared of examples [B, ...]: [B, D]."""
        if isinstance(self.backbone, Identity):
            return self.backbone(x)
        embed: Callable[[torch.Tensor], torch.Tensor] = self.backbone.embed  # pyright: ignore[reportAssignmentType]
        return embed(x).flatten(1)

    def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
        """The support examples of each class, or their mean: [N, K or 1, D]; in regression also their values."""
        x, y = self.embed(task.support_x), task.support_y
        if self.mean and not y.is_floating_point():  # of as many as each class has
            member = (y == torch.arange(task.way, device=y.device)[:, None]).to(x.dtype)  # [N, N*K]
            shots = member.sum(1, keepdim=True)
            means = member @ x / shots
            if self.on_features:
                means = torch.where((shots == shots[0]).all(), means, F.normalize(means, dim=-1))
            return {"support": means[:, None]}
        adapted = {"support": x.unflatten(0, (task.way, -1))}
        if y.is_floating_point():
            adapted["values"] = y.view(1, len(y), -1)
        return {name: value.mean(1, keepdim=True) for name, value in adapted.items()} if self.mean else adapted

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, N], minus the distance to the nearest of each class; or the value of the nearest, [B, D]."""
        support = adapted["support"].flatten(0, 1)
        # Without the matrix product, whose rounding depends on the other rows.
        distance = torch.cdist(self.embed(x), support, compute_mode="donot_use_mm_for_euclid_dist")
        if "values" in adapted:
            return adapted["values"][0][distance.argmin(-1)]
        return -distance.unflatten(-1, (len(adapted["support"]), -1)).amin(-1)

    def probabilities(self, adapted: Tensors, logits: torch.Tensor) -> torch.Tensor:
        """The probability of each class, [B, N], for the logits of queries; the most probable is still the nearest.

        As if each class were a Gaussian around its nearest reference, all of one variance: the softmax of minus the
        squared distance, in units of the mean squared distance between two classes, times a constant.
        """
        support = adapted["support"]  # [N, K or 1, D]
        way, references = len(support), support.flatten(0, 1)
        between = torch.cdist(references, references).square().view(way, -1, way, support.shape[1]).amin((1, 3))
        mean = between.fill_diagonal_(0).sum() / (way * (way - 1))
        sharpness = SHARPNESS_OF_FEATURES if self.on_features else SHARPNESS_OF_IMAGES
        return (-sharpness * logits.square() / mean.clamp_min(1e-12)).softmax(-1)
