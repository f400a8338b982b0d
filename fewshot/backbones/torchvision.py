"""torchvision's classifiers by name, with a head for N ways, and with pretrained weights where a file has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.backbones.module import feature_width, freeze_parameters
from fewshot.backbones.norm import replace_batch_norms
from fewshot.backbones.parts import initialise_head
from fewshot.backbones.weights import find_weights, hash_file, load_weights
from fewshot.core.checks import check_number, did_you_mean
from fewshot.core.errors import FewshotError, ImageShapeError


class TorchVision(nn.Module):
    """A classifier of torchvision without its last layer, and a linear head: images [B, C, H, W] to logits [B, way].

    Grey images are copied to three channels. Pretrained weights expect images that are normalised as in their training,
    which the `view` of a `Sampler` does, see `ImageTransform`.

    Args:
        shape: (C, H, W) of one image, C being 1 or 3.
        way: classes N of the head.
        model: torchvision's name, such as `resnet18`.
        weights: None, or weights of all layers but the head, see `find_weights`.
        norm: of batch norms: `batch`, `running` (the averages of the weights, as constants) or `none`.
        size: side that images are resized to (bilinear, antialiased); None: as they are.
        frozen: patterns of names of parameters that no loop changes, such as `model.layer1.*`.
        head_init: zeros | xavier | normal | truncated_normal | kaiming | uniform, see `initialise_head`.

    Attributes:
        weights: {"file": its name, "sha256": its hash}; None without weights.

    Raises:
        FewshotError: no such model, choice or weights, or images that the model does not take.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        way: int,
        *,
        model: str,
        weights: str | None = None,
        norm: str = "batch",
        size: int | None = None,
        frozen: Sequence[str] = (),
        head_init: str = "zeros",
    ) -> None:
        super().__init__()
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ImageShapeError(
                f"backbone torchvision takes images of 1 or 3 channels, not shape {tuple(shape)}; choose mlp or linear"
            )
        if size is not None:
            check_number("backbone.network.size", size, int, 1)
        if norm == "running" and weights is None:
            raise FewshotError(
                "backbone.network.norm=running: without weights there are no averages; set backbone.network.weights, "
                "or norm=batch"
            )
        self.size, self.weights = size, None
        path = None if weights is None else find_weights(checked_name(model), weights)
        self.model = make_model(model, pretrained=path is not None, side=size or shape[1])
        head = head_name(self.model)
        if path is not None:
            load_weights(self.model, path, head)
            self.weights = {"file": path.name, "sha256": hash_file(path)}
        self.model.set_submodule(head, nn.Identity())
        replace_batch_norms(self.model, norm)
        side = (size, size) if size is not None else shape[1:]
        self.head = nn.Linear(feature_width(self.model, (3, *side)), way)
        initialise_head(self.head, head_init)
        freeze_parameters(self, frozen)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to [B, features] before the head."""
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if self.size is not None and x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=self.size < max(x.shape[2:]))
        return self.model(x).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))


def checked_name(model: str) -> str:
    """The name of a classifier of torchvision. Raises FewshotError if it has no such classifier."""
    from torchvision import models

    names = models.list_models(module=models)
    if model not in names:
        hint = did_you_mean(str(model), names) or f"; there are {', '.join(names)}"
        raise FewshotError(f"torchvision has no classifier {model}{hint}")
    return model


def make_model(name: str, *, pretrained: bool, side: int) -> nn.Module:
    """A classifier of torchvision with random weights, for images of this side.

    Args:
        pretrained: whether weights are loaded into it, with which some models change their input.
        side: of the images; models that are made for one size, such as vit_b_16, are made for it.

    Raises:
        FewshotError: no such classifier, or it takes no images of this side.
    """
    from torchvision import models

    choices: dict[str, Any] = {}
    if checked_name(name) in ("googlenet", "inception_v3"):  # their other heads are for training as classifiers
        choices = {"aux_logits": False, "init_weights": not pretrained, "transform_input": pretrained}
    if name.startswith("vit_"):
        choices = {"image_size": side}
    if name.startswith("maxvit"):
        choices = {"input_size": (side, side)}
    try:
        return models.get_model(name, weights=None, **choices)
    except Exception as error:
        raise FewshotError(
            f"{name} takes no images of {side}x{side} pixels ({error}); set its size, such as 224"
        ) from error


def head_name(model: nn.Module) -> str:
    """The name of the last layer, which has the last parameter."""
    return [name for name, _ in model.named_parameters()][-1].rpartition(".")[0]
