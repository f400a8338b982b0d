"""The `learn2learn` engine: MAML and FOMAML by an independent implementation, as a reference for our gradients."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from fewshot.algorithms.learner import Learner, Tensors, score, task_loss
from fewshot.algorithms.maml import MAML
from fewshot.backbones.checks import copy_network
from fewshot.backbones.norm import BatchStatNorm
from fewshot.core.errors import FewshotError
from fewshot.engine.reduce import MetaGradient
from fewshot.episodes import Episodes


def outer_by_learn2learn(learner: Learner, params: Tensors, episodes: Episodes) -> MetaGradient:
    """Mean outer gradient of T tasks, task by task, by learn2learn's MAML (clone, adapt, backward).

    Raises:
        FewshotError: learn2learn is not installed, or cannot do what the learner does.
    """
    if type(learner) is not MAML or learner.learn_inner_lr:
        raise FewshotError(
            "engine=learn2learn: only for maml and fomaml whose rates are not learned; choose engine=vmap or loop"
        )
    if len(learner.adapted) != len(params):
        raise FewshotError(
            "engine=learn2learn: adapts every parameter that is not frozen; set algorithm.learner.adapted=all and "
            "backbone.network.adapt_norm=true, or choose engine=vmap"
        )
    original = import_maml()
    backbone = copy_network(learner.backbone)
    backbone.load_state_dict(params, strict=False)  # frozen parameters stay as they are
    for part in backbone.modules():
        if isinstance(part, BatchStatNorm):
            part.fused = True  # torch's own batch norm, as in a user's network
    meta = original(
        backbone, lr=learner.inner_lr, first_order=learner.first_order, allow_unused=True, allow_nograd=True
    )
    losses, scores = [], []
    for task in (episodes[i] for i in range(len(episodes))):
        clone = meta.clone()
        for _ in range(learner.inner_steps):
            clone.adapt(task_loss(clone(task.support_x), task.support_y, learner.inner_reduction, task.shot))
        logits = clone(task.query_x)
        loss = task_loss(logits, task.query_y, learner.outer_reduction, task.shot)
        (loss / len(episodes)).backward()
        losses.append(loss.detach())
        scores.append(score(logits.detach(), task.query_y))
    gradient = {
        name: torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in backbone.named_parameters()
        if name in params
    }
    return MetaGradient(gradient, {}, torch.stack(losses), torch.stack(scores))


def import_maml() -> Any:
    """learn2learn's class MAML. Raises FewshotError: learn2learn is not installed."""
    with warnings.catch_warnings():  # its import brings gym, which warns about itself
        warnings.simplefilter("ignore")
        try:
            from learn2learn.algorithms import MAML as Original
        except ImportError as error:
            raise FewshotError(
                "engine=learn2learn: not installed; `uv sync --group test` builds it, `pip install` cannot"
            ) from error
    return Original
