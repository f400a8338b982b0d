"""Properties of a learner, found by running it on one task.

Once for each learner and shape of task: whether its network fits, whether the prediction of one query depends on the
other queries, and whether torch.func.vmap can run several tasks at once with the right gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import vmap

from fewshot.algorithms.learner import Learner, Tensors, override_test_steps, with_defaults
from fewshot.backbones.checks import (
    SAME,
    add_noise,
    check_parameters,
    copy_network,
    ends_in_head,
    is_same,
)
from fewshot.backbones.failures import error_reason, named_failures
from fewshot.backbones.precision import check_bfloat16, products_in
from fewshot.backbones.purity import prepare_backbone
from fewshot.backbones.second_derivatives import check_second_derivatives
from fewshot.core.device import out_of_memory
from fewshot.core.errors import FewshotError
from fewshot.core.random import seeded
from fewshot.engine.compare import compare_vmap, initial_values, strict_vmap
from fewshot.engine.contract import (
    check_begin_step,
    check_gradient,
    check_names,
    check_predictions,
    check_scalars,
    check_sorted,
    check_unchanged,
    checked_outer_loss,
)
from fewshot.engine.lift import autograd_copy, lift_one, mean_outer
from fewshot.episodes import Episodes

EXAMPLES = 6  # of a task, on which the network is checked

Predict = Callable[[torch.Tensor], torch.Tensor]  # examples of one task to outputs


@dataclass
class Behaviour:
    """Properties of a learner on tasks of one shape."""

    queries_independent: bool  # no prediction depends on another query: transductive and inductive are the same
    queries_batched: bool  # vmap over queries, each beside the support set, gives what one query at a time gives
    notes: tuple[str, ...]  # for the user, one line each


def probe(learner: Learner, task: Episodes, params: Tensors | None = None, state: Tensors | None = None) -> Behaviour:
    """Run a copy of the learner on a task, once for each shape of task, and put the learner's backbone into eval().

    Args:
        task: one task; under vmap one of a shape that was probed before.
        params, state: those of a trained learner: checks again that its queries are independent.

    Raises:
        FewshotError: the network keeps state, draws at random, fails on such examples, or does not fit the task.
    """
    key = task.support_x.shape[1:], task.way, task.support_y.shape[1:], task.support_x.dtype
    behaviour = _find_once(with_defaults(learner), ("behaviour", *key), lambda: _find_behaviour(learner, task))
    backbone = getattr(learner, "backbone", None)
    if isinstance(backbone, nn.Module) and any(module.training for module in backbone.modules()):
        backbone.eval()  # a person may have called train() since
    if params:
        _check_dtype(params, task.support_x)
    if params is not None and behaviour.queries_independent:
        with seeded(0), torch.no_grad():
            predict = partial(learner.predict, learner.adapt(params, state or {}, task.without_queries()))
            if _mixes(predict, _queries(task)):
                behaviour.queries_independent = False
                behaviour.queries_batched = _is_batched(predict, _queries(task))
    return behaviour


def why_not_batched(learner: Learner, episodes: Episodes) -> str:
    """Why vmap cannot run this learner's tasks at once; empty where it can, with equal results.

    Raises:
        FewshotError: as `probe`; or single tasks cannot be trained on either.
    """
    probe(learner, episodes[0])
    key = "vmap", episodes.support_x.shape[1:], episodes.way, episodes.support_x.dtype
    return _find_once(learner, key, lambda: compare_vmap(learner, episodes[[0, len(episodes) - 1]]))


def parameter_count(learner: Learner) -> int:
    """The number of meta-parameters of a learner."""
    return _find_once(learner, ("parameters",), lambda: sum(value.numel() for value in learner.init()[0].values()))


def check_training(learner: Any, episodes: Episodes) -> str:
    """Meta-train a copy on the only task of `episodes`, once.

    Returns:
        A note for the user, see `check_second_derivatives`; empty where there is none.

    Raises:
        FewshotError: as `probe`; or the network cannot be trained, or has parameters of another type than the examples.
    """
    check_sorted(learner, episodes[0])
    probe(learner, episodes[0])
    _check_dtype(learner.init()[0], episodes.support_x)

    def train() -> str:
        single = autograd_copy(learner)
        if hasattr(single, "outer_loss"):
            single.outer_loss = checked_outer_loss(single)
        with named_failures(getattr(single, "backbone", None), episodes.support_x[0]):
            params, state = initial_values(single, episodes)
            if hasattr(single, "begin_step"):
                check_begin_step(copy_network(single))
            if hasattr(learner, "state_of") and not state:
                raise FewshotError(
                    f"algorithm.learner: {type(learner).__name__} has state_of, and init returns no state; let init "
                    "return one of the same names and shapes"
                )
            with check_unchanged(single, episodes.support_x.device):
                outer = mean_outer(single, params, state, episodes, lift_one)
            check_names(learner, "gradient", outer.gradient, params)
            check_names(learner, "state", outer.state, state)
            if hasattr(single, "outer_loss") and outer.loss.isfinite().all():  # else its gradient says nothing
                elsewhere = partial(mean_outer, single, add_noise(params), state, episodes, lift_one)
                check_gradient(single, outer.gradient, elsewhere)
            if hasattr(single, "scalars"):
                check_scalars(single, params)
            if getattr(learner, "first_order", True):
                return ""
            return check_second_derivatives(learner.backbone, episodes.support_x[0, :EXAMPLES])

    return _find_once(learner, ("training", episodes.support_x.shape[1:], episodes.query_x.shape[1:]), train)


def check_bfloat16_training(learner: Any, episodes: Episodes) -> None:
    """Meta-train a copy on the only task of `episodes`, in float32 and in bfloat16.

    Raises:
        FewshotError: the network fails in bfloat16, is too small for it, or nothing changes by it.
    """
    key, single = "train.precision", autograd_copy(learner)
    if isinstance(single.backbone, nn.Module):
        check_bfloat16(single.backbone, episodes.support_x[0], key)
    params, state = initial_values(single, episodes)
    with seeded(0):
        exact = mean_outer(single, params, state, episodes, lift_one)
        try:
            with products_in(single.backbone, "bfloat16"):
                rounded = mean_outer(single, params, state, episodes, lift_one)
        except Exception as error:
            if out_of_memory(error):
                raise
            reason = error_reason(error)
            raise FewshotError(f"{key}=bfloat16: this network fails in it ({reason}); set {key}=float32") from error
    if all(torch.equal(value, exact.gradient[name]) for name, value in rounded.gradient.items()):
        raise FewshotError(
            f"{key}=bfloat16: changes nothing, since this algorithm runs no network, or does not run its backbone by "
            f"functional_forward or functional_embed; set {key}=float32"
        )


def _check_dtype(params: Tensors, x: torch.Tensor) -> None:
    """Raises FewshotError where no parameter has the type of the examples."""
    types = {value.dtype for value in params.values()}
    if types and x.dtype not in types:
        own, examples = (str(kind).removeprefix("torch.") for kind in (types.pop(), x.dtype))
        raise FewshotError(
            f"backbone: its parameters are {own}, and the examples {examples}; call network.to(torch.{examples}), or "
            f"give examples of {own}"
        )


def _find_once(learner: Any, key: tuple[Any, ...], find: Callable[[], Any]) -> Any:
    """The result of `find`, which is called once for each learner with its backbone and for each key."""
    results = learner.__dict__.setdefault("_found", {})
    backbone = getattr(learner, "backbone", None)
    key = id(learner), id(backbone), *key  # a deep copy holds what its original found
    if key not in results:
        with seeded(0):
            results[key] = find(), backbone  # which it keeps alive, so that no other network gets its id
    return results[key][0]


def _find_behaviour(learner: Learner, task: Episodes) -> Behaviour:
    check_sorted(learner, task)
    x = torch.cat([task.support_x, task.query_x])
    x = x[torch.linspace(0, len(x) - 1, max(3, min(EXAMPLES, len(x))), device=x.device).round().long()]
    x = (x + 0.1 * torch.randn_like(x)).clamp(x.min(), x.max())
    copy = copy_network(learner)
    backbone = getattr(copy, "backbone", None)
    backbone = backbone.to(x.dtype) if isinstance(backbone, nn.Module) else None
    notes = () if backbone is None else prepare_backbone(backbone, x)
    params, state = initial_values(learner, task)
    if not params and (hasattr(learner, "outer_loss") or hasattr(learner, "outer_gradient")):
        values = [] if backbone is None else list(backbone.parameters())
        frozen = bool(values) and not any(value.requires_grad for value in values)
        raise FewshotError(
            f"this backbone has no parameters to train{' (all have requires_grad=False)' if frozen else ''}; choose "
            f"another, such as backbone={'conv4' if x.ndim == 4 else 'linear for features, or mlp_40 for functions'}"
        )
    with named_failures(backbone, x), torch.no_grad():
        with check_unchanged(copy, x.device):
            with override_test_steps(copy, 0):
                adapted = copy.adapt(params, state, task.without_queries())
            outputs = copy.predict(adapted, x)
        check_predictions(learner, outputs, x, task)
        if backbone is not None and params and params.keys() <= dict(backbone.named_parameters()).keys():
            check_parameters(backbone, params, x)
        if getattr(learner, "features_once", False) and not ends_in_head(backbone, x):
            vars(learner)["features_once"] = vars(copy)["features_once"] = False
        noisy = add_noise(adapted)
        predict = partial(copy.predict, noisy if copy.predict(noisy, x).isfinite().all() else adapted)
        independent = not _mixes(predict, _queries(task))
        batched = independent or _is_batched(predict, x)
    with (
        named_failures(backbone, x),
        check_unchanged(copy, x.device),
        override_test_steps(copy, min(1, copy.test_steps)),
    ):
        copy.adapt(params, state, task.without_queries())
    if backbone is not None:
        learner.backbone.eval()
        with torch.no_grad(), suppress(RuntimeError):  # parameters of another dtype than the tasks
            # A tensor that the first forward makes, such as a table of positions, is made outside torch.func.
            learner.backbone(x)
    own_notes = getattr(learner, "notes", ())
    own_notes = (own_notes,) if isinstance(own_notes, str) else own_notes
    return Behaviour(independent, batched, (*notes, *own_notes))


def _queries(task: Episodes) -> torch.Tensor:
    """The examples that a test forwards as one batch; at least three."""
    x = task.query_x if len(task.query_x) else task.support_x
    return x if len(x) >= 3 else torch.cat([x, task.support_x, task.support_x.flip(-1)])[:3]


def _mixes(predict: Predict, x: torch.Tensor) -> bool:
    """Whether the output of an example changes with the examples beside it, or with its place among them.

    Compares outputs in a batch as large as a test's (other orders, other companions, one example less), and takes
    gradients in a small one.
    """
    outputs, index = predict(x), torch.arange(len(x), device=x.device)
    order = torch.randperm(len(x), device=x.device)
    if not is_same(predict(x[order]), outputs[order], scale=outputs):
        return True
    if not is_same(predict(x[1:]), outputs[1:], scale=outputs, tolerance=10 * SAME):
        return True
    kept = index % 2 == 0
    mask = kept.view(-1, *(1,) * (x.dim() - 1))
    noise = x.min() + (x.max() - x.min()) * torch.rand_like(x)
    for others in (noise, x.flip(0), x[:1].expand_as(x), torch.zeros_like(x)):
        if not is_same(predict(torch.where(mask, x, others))[kept], outputs[kept], scale=outputs):
            return True
    with torch.enable_grad():
        leaf = x[:EXAMPLES].clone().requires_grad_()
        outputs = predict(leaf)
        for row in (0, len(leaf) - 1) if outputs.requires_grad else ():
            weighted = (outputs[row] * torch.randn_like(outputs[row])).sum()
            (gradient,) = torch.autograd.grad(weighted, leaf, retain_graph=True, allow_unused=True)
            if gradient is not None and gradient[index[: len(leaf)] != row].nan_to_num().any():
                return True
    return False


def _is_batched(predict: Predict, x: torch.Tensor) -> bool:
    """Whether vmap over queries gives what one query at a time gives, each beside the same support set."""
    support, queries = x[:-2], x[-2:]

    def predict_alone(query: torch.Tensor) -> torch.Tensor:
        return predict(torch.cat([support, query[None]]))[-1]

    try:
        with strict_vmap():
            outputs = vmap(predict_alone)(queries)
        return is_same(outputs, torch.stack([predict_alone(query) for query in queries]), tolerance=10 * SAME)
    except Exception as error:
        if out_of_memory(error):
            raise
        return False
