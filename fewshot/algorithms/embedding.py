"""What learners share that compare features: a backbone without its head, and the means of classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fewshot.algorithms.learner import Tensors, backbone_parameters, may_be_tied
from fewshot.backbones.precision import call_network
from fewshot.core.errors import FewshotError
from fewshot.episodes import Episodes

HEAD = "head."  # what the names of the parameters of a backbone's head begin with


class Embedding(nn.Module):
    """A backbone without its head: [B, ...] to features [B, D]. A learner makes it once, beside its backbone.

    Raises:
        FewshotError: the backbone has no method `embed`.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        if not callable(getattr(backbone, "embed", None)):
            raise FewshotError(
                f"this algorithm compares features, and {type(backbone).__name__} has no method embed(x) for them; "
                "write one, or take a network of features with backbone=module backbone.outputs=features, in "
                "Python fewshot.WithHead(network, shape, way)"
            )
        self.backbone = backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        embed: Callable[[torch.Tensor], torch.Tensor] = self.backbone.embed  # pyright: ignore[reportAssignmentType]
        return embed(x).flatten(1)


def embedding_parameters(backbone: nn.Module) -> Tensors:
    """A copy of the parameters that are trained, by name, without those of its head (`backbone.head`)."""
    parameters = backbone_parameters(backbone)
    return {name: value for name, value in parameters.items() if not name.startswith(HEAD)}


def functional_embed(embedding: Embedding, params: Tensors, x: torch.Tensor) -> torch.Tensor:
    """Features [B, D] of x [B, ...] as a pure function of the backbone's parameters; other entries are left alone."""
    names = dict(embedding.backbone.named_parameters())
    values = {f"backbone.{name}": value for name, value in params.items() if name in names}
    return call_network(embedding.backbone, embedding, values, x, tied=may_be_tied(embedding))


def check_classification(task: Episodes) -> None:
    """Raises FewshotError if the task is a regression."""
    if task.support_y.is_floating_point():
        raise FewshotError("this algorithm needs classes, and functions have none; choose maml or reptile")


def members(features: torch.Tensor, task: Episodes) -> torch.Tensor:
    """Which class each support example is of: 1 or 0, [N, N*K], in the type of the features.

    Raises:
        FewshotError: the task is a regression.
    """
    check_classification(task)
    classes = torch.arange(task.way, device=task.support_y.device)
    return (task.support_y == classes[:, None]).to(features.dtype)


def class_means(features: torch.Tensor, task: Episodes) -> torch.Tensor:
    """The mean [N, D] of each class's support features [N*K, D]; classes may differ in size."""
    member = members(features, task)
    return member @ features / member.sum(1, keepdim=True)
