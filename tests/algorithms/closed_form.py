"""What the tests of learners share that have a closed form."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fewshot.episodes import Episodes


def assert_gradient(learner: Any, network: nn.Module, task: Episodes, logits: torch.Tensor) -> None:
    """The outer gradient of the network's parameters is that of the cross-entropy of logits that are written out."""
    params = {name: value.requires_grad_() for name, value in learner.init()[0].items()}
    own = dict(network.named_parameters())
    names = [name for name in params if name in own]
    loss, _ = learner.outer_loss(params, task)
    ours = torch.autograd.grad(loss, [params[name] for name in names], materialize_grads=True)
    written = F.cross_entropy(logits, task.query_y)
    theirs = torch.autograd.grad(written, [own[name] for name in names], materialize_grads=True)
    assert names and sum(float(value.square().sum()) for value in theirs) > 1e-12
    torch.testing.assert_close(ours, theirs)
