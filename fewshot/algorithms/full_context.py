"""Full context embeddings of matching networks (Vinyals et al., 2016, appendix A): LSTMs over features.

The LSTM of the queries starts from h = f'(x), where the paper gives no start; the number of its steps is a setting.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.algorithms.learner import Tensors
from fewshot.backbones.identity import Identity
from fewshot.core.errors import FewshotError

INPUTS = {"ahead": 2, "back": 2, "query": 3}  # inputs of each LSTM, as multiples of D


def context_parameters(backbone: nn.Module) -> Tensors:
    """Weights [4D, inputs] and biases [4D] of the three LSTMs, at random as torch starts a linear layer.

    Raises:
        FewshotError: the backbone has no linear head that tells its number of features D.
    """
    head = getattr(backbone, "head", None)
    if isinstance(backbone, Identity):
        width = prod(backbone.shape)
    elif isinstance(head, nn.Linear):
        width = head.in_features
    else:
        raise FewshotError("algorithm.learner.context=true: needs a backbone whose last layer is a linear `head`")
    layers = {name: nn.Linear(inputs * width, 4 * width) for name, inputs in INPUTS.items()}
    return {f"{name}/{part}": v.detach() for name, layer in layers.items() for part, v in layer.named_parameters()}


def embed_support(params: Tensors, features: torch.Tensor) -> torch.Tensor:
    """g(x, S) of the support set, [N*K, D] in its order: features plus the outputs of an LSTM in each direction."""
    return features + _run(params, "ahead", features) + _run(params, "back", features.flip(0)).flip(0)


def embed_queries(params: Tensors, features: torch.Tensor, support: torch.Tensor, steps: int) -> torch.Tensor:
    """f(x, S) of queries [B, D], each for itself: `steps` of an LSTM that attends to the support set [N*K, D]."""
    h, c = features, torch.zeros_like(features)
    for _ in range(steps):
        read = (h @ support.T).softmax(-1) @ support
        h, c = _step(params, "query", torch.cat([features, h, read], -1), c)
        h = h + features
    return h


def _run(params: Tensors, name: str, features: torch.Tensor) -> torch.Tensor:
    h = c = torch.zeros_like(features[:1])
    outputs = []
    for row in features.split(1):
        h, c = _step(params, name, torch.cat([row, h], -1), c)
        outputs.append(h)
    return torch.cat(outputs)


def _step(params: Tensors, name: str, inputs: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(h, c) [B, D] of one step of an LSTM without peepholes, with torch's order of gates; inputs hold x and h."""
    write, keep, new, show = F.linear(inputs, params[f"{name}/weight"], params[f"{name}/bias"]).chunk(4, -1)
    c = keep.sigmoid() * c + write.sigmoid() * new.tanh()
    return show.sigmoid() * c.tanh(), c
