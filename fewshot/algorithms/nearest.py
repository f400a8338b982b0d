"""Nearest neighbour or nearest mean on inputs as they are: what a task gives away without any learning."""

from __future__ import annotations

import torch

from fewshot.algorithms.learner import Learner, Tensors
from fewshot.backbones.identity import Identity
from fewshot.core.checks import check_choice
from fewshot.core.errors import FewshotError
from fewshot.episodes import Episodes


class Nearest(Learner):
    """Each query gets the class, or in regression the value, at the smallest Euclidean distance. Nothing is trained.

    Args:
        backbone: pixels or features as they are.
        reference: `neighbour`, the nearest support example of a class, or `mean`, the mean of them. Where shots
            differ, the mean of few examples is farther from all queries than that of many, by the variance of a class
            over its number of shots; the difference is taken off the squared distance.
    """

    def __init__(self, backbone: Identity, *, reference: str = "neighbour") -> None:
        if not isinstance(backbone, Identity):
            raise FewshotError("algorithm=nearest compares inputs as they are; choose backbone=identity")
        self.backbone = backbone
        self.mean = check_choice("algorithm.learner.reference", reference, ("neighbour", "mean")) == "mean"
        self.unequal_shots = self.mean

    def init(self) -> tuple[Tensors, Tensors]:
        """No parameters, no state."""
        return {}, {}

    def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
        """The support examples of each class, or their mean: [N, K or 1, D]; in regression also their values.

        Of means also the excess [N] of their squared distances.
        """
        x, y = self.backbone(task.support_x), task.support_y
        if self.mean and not y.is_floating_point():
            member = (y == torch.arange(task.way, device=y.device)[:, None]).to(x.dtype)  # [N, N*K]
            shots = member.sum(1)
            means = member @ x / shots[:, None]
            variance = (x - means[y]).square().sum() / (len(x) - task.way if len(x) > task.way else 1)
            return {"support": means[:, None], "excess": variance * (1 / shots - 1 / shots.max())}
        adapted = {"support": x.unflatten(0, (task.way, -1))}
        if y.is_floating_point():
            adapted["values"] = y.view(1, len(y), -1)
        return {name: value.mean(1, keepdim=True) for name, value in adapted.items()} if self.mean else adapted

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, N], minus the distance to the nearest of each class; or the value of the nearest, [B, D]."""
        support = adapted["support"].flatten(0, 1)
        # Without the matrix product, whose rounding depends on the other rows.
        distance = torch.cdist(self.backbone(x), support, compute_mode="donot_use_mm_for_euclid_dist")
        if "values" in adapted:
            return adapted["values"][0][distance.argmin(-1)]
        distance = distance.unflatten(-1, (len(adapted["support"]), -1)).amin(-1)
        if "excess" in adapted:  # 0 where all classes have as many shots
            excess = adapted["excess"]
            distance = torch.where(excess > 0, (distance.square() - excess).clamp_min(0).sqrt(), distance)
        return -distance
