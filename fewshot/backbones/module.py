"""Networks that a person brings: a head for those that end in features, their batch norms, and their frozen layers."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torch
from torch import nn

from fewshot.backbones.failures import named_failures
from fewshot.backbones.norm import replace_batch_norms
from fewshot.core.checks import check_choice
from fewshot.core.errors import FewshotError


class WithHead(nn.Module):
    """A network of features and a linear head: examples [B, ...] to logits [B, way].

    Args:
        model: examples [B, *shape] to features [B, ...], which are flattened.
        shape: shape of one example.
        way: classes N of the head, or in regression outputs D.

    Raises:
        FewshotError: the model fails on such examples, or does not give one tensor.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], way: int) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(feature_width(model, shape), way, device=device_of(model))

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """[B, ...] to [B, features] before the head."""
        return self.model(x).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter or buffer; the CPU without any."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def feature_width(model: nn.Module, shape: tuple[int, ...]) -> int:
    """The number of features of an example, found by running the model on examples [2, *shape].

    Raises:
        FewshotError: it fails on them, or its features are no tensor of floats with a row for each example.
    """
    x, modes = torch.zeros(2, *shape, device=device_of(model)), [(part, part.training) for part in model.modules()]
    try:
        with named_failures(model, x), torch.no_grad():
            features = model.eval()(x)
    finally:
        for part, mode in modes:
            part.training = mode
    if not isinstance(features, torch.Tensor) or features.dim() < 2 or len(features) != 2:
        returned = list(features.shape) if isinstance(features, torch.Tensor) else f"a {type(features).__name__}"
        raise FewshotError(
            f"backbone: 2 examples give {returned}, and features [2, D] are wanted; let {type(model).__name__} return "
            "that tensor alone"
        )
    return features[0].numel()


def fit_network(
    network: nn.Module,
    shape: tuple[int, ...],
    way: int,
    *,
    outputs: str = "logits",
    norm: str | None = None,
    frozen: Sequence[str] = (),
) -> nn.Module:
    """Make a backbone of a person's network; the network itself may be changed.

    Args:
        network: examples [B, *shape] to logits [B, way], or to features [B, ...].
        outputs: `logits`, or `features`, which get a linear head.
        norm: of its batch norms, see `replace_batch_norms`; None leaves them as they are.
        frozen: patterns of names of parameters that no loop changes.

    Raises:
        FewshotError: an unknown choice, or a pattern that no parameter matches; as `WithHead`.
    """
    check_choice("backbone.outputs", outputs, ("logits", "features"))
    if norm is not None:
        network = replace_batch_norms(network, norm)
    if outputs == "features":
        network = WithHead(network, shape, way)
    freeze_parameters(network, frozen)
    return network


def freeze_parameters(network: nn.Module, patterns: Sequence[str]) -> None:
    """Let the parameters whose names match a pattern, such as `model.layer1.*`, stay as they are.

    Raises:
        FewshotError: a pattern that no parameter matches.
    """
    parameters = dict(network.named_parameters())
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        names = fnmatch.filter(parameters, pattern)
        if not names:
            raise FewshotError(
                f"backbone: frozen={pattern}: no parameter has such a name; write patterns of names such as "
                f"{next(iter(parameters), 'model.*')}"
            )
        for name in names:
            parameters[name].requires_grad_(False)
