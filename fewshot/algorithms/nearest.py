"""Nearest neighbour on raw inputs: what a task gives away without any learning. The floor of every table."""

from __future__ import annotations

import torch

from fewshot.algorithms.learner import Tensors
from fewshot.backbones.pixels import Pixels
from fewshot.episodes import Episodes
from fewshot.errors import FewshotError


class Nearest:
    """Each query gets the class of the support example at the smallest Euclidean distance. Nothing is trained."""

    chained = False
    eager = False
    test_steps = 0

    def __init__(self, backbone: Pixels) -> None:
        if not isinstance(backbone, Pixels):
            raise FewshotError("algorithm=nearest compares inputs as they are; it runs with backbone=pixels only")
        self.backbone = backbone

    def initial(self) -> tuple[Tensors, Tensors]:
        """No parameters, no carry."""
        return {}, {}

    def adapt(self, params: Tensors, carry: Tensors, task: Episodes) -> Tensors:
        """The support set itself, [N*K, D]."""
        return {"support": self.backbone(task.support_x)}

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, N]: minus the distance to the nearest support example of each class."""
        # Without the matrix product, whose rounding depends on the other rows.
        distance = torch.cdist(self.backbone(x), adapted["support"], compute_mode="donot_use_mm_for_euclid_dist")
        return -distance.view(len(x), self.backbone.way, -1).amin(-1)
