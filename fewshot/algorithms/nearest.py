"""Nearest neighbour or nearest mean, on inputs or a network's features as they are: what needs no meta-learning.

With `centre`, SimpleShot: Wang, Chao, Weinberger and van der Maaten, 2019, "SimpleShot: revisiting nearest-neighbor
classification for few-shot learning", the transformation CL2N. Difference from the paper:
1. Features have length 1 before the mean of the training features is subtracted, since tasks give them so; there the
   mean is subtracted first.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.algorithms.embedding import Embedding, class_means, members
from fewshot.algorithms.learner import Learner, Tensors
from fewshot.backbones.identity import Identity
from fewshot.core.checks import check_bool, check_choice
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
        centre: on features, subtract the mean of all training examples and scale to length 1 (CL2N of SimpleShot, Wang
            et al. 2019).

    Raises:
        FewshotError: a network without `embed`, an unknown choice, or `centre` without features.
    """

    def __init__(self, backbone: nn.Module, *, reference: str = "neighbour", centre: bool = False) -> None:
        self.backbone, self.embedding = backbone, Embedding(backbone)
        if not isinstance(backbone, Identity):
            self.notes = ("this algorithm trains nothing: it compares the features of the network as it is built",)
        self.on_features = isinstance(backbone, Identity) and len(backbone.shape) == 1
        self.mean = check_choice("algorithm.learner.reference", reference, ("neighbour", "mean")) == "mean"
        self.unequal_shots = self.mean
        check_bool("algorithm.learner.centre", centre)
        self.centre = centre
        if centre and not self.on_features:
            raise FewshotError("algorithm.learner.centre=true: needs features and backbone=identity")

    def init(self) -> tuple[Tensors, Tensors]:
        """No parameters; with `centre` the state is the mean of the training examples, zero until they are seen."""
        if self.centre and isinstance(self.backbone, Identity):
            return {}, {"mean": torch.zeros(self.backbone.shape)}
        return {}, {}

    def state_of(self, blocks: Iterable[torch.Tensor]) -> Tensors:
        """The state from all training examples, in blocks [M, D]."""
        sums, counts = zip(*((block.sum(0), len(block)) for block in blocks), strict=True)
        return {"mean": torch.stack(sums).sum(0) / sum(counts)}

    def embed(self, x: torch.Tensor, state: Tensors) -> torch.Tensor:
        """What is compared of examples [B, ...]: [B, D]."""
        features = self.embedding(x)
        return F.normalize(features - state["mean"], dim=-1) if self.centre else features

    def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
        """The support examples of each class, or their mean: [N, K or 1, D]; in regression also their values."""
        x, y = self.embed(task.support_x, state), task.support_y
        if self.mean and not y.is_floating_point():  # of as many as each class has
            means = class_means(x, task)
            if self.on_features:
                shots = members(x, task).sum(1)
                means = torch.where((shots == shots[0]).all(), means, F.normalize(means, dim=-1))
            return state | {"support": means[:, None]}
        adapted = {"support": x.unflatten(0, (task.way, -1))}
        if y.is_floating_point():
            adapted["values"] = y.view(1, len(y), -1)
        if self.mean:
            adapted = {name: value.mean(1, keepdim=True) for name, value in adapted.items()}
        return state | adapted

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, N], minus the distance to the nearest of each class; or the value of the nearest, [B, D]."""
        support = adapted["support"].flatten(0, 1)
        # Without the matrix product, whose rounding depends on the other rows.
        distance = torch.cdist(self.embed(x, adapted), support, compute_mode="donot_use_mm_for_euclid_dist")
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
