"""What an algorithm is: pure functions of its parameters for one task, and the pieces that several share."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad
from torch.nn.parameter import is_lazy

from fewshot.backbones.norm import BatchStatNorm
from fewshot.core.errors import FewshotError
from fewshot.episodes import Episodes

Tensors = dict[str, torch.Tensor]

REDUCTIONS = ("mean", "sum", "per_shot")
_TIED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class Learner(Protocol):
    """An algorithm on a backbone. Tasks come without their leading axis: support_x [N*K, ...], key [].

    A learner that is trained also has one of
    `outer_loss(params, task) -> (loss [], score [])`, which the engine differentiates, or
    `outer_gradient(params, state, task) -> (gradient, state, loss [], score [])`, with the `score` of this module, and
    `gradient_evaluations: int`, the gradients through its network that one training task costs, the outer one counted.
    It may have `scalars(params) -> dict[str, float]`, what the log should say of its parameters, and
    `adaptation_steps: str`, what the record should say in place of `test_steps`.
    The values below are those of a learner that says nothing of them.
    """

    backbone: nn.Module
    test_steps: int = 0  # adaptation steps at evaluation
    sequential: bool = False  # each task needs the state of the one before: tasks cannot run at once
    use_autograd: bool = False  # set by the engine on its copies that run single tasks; see `differentiate`

    def init(self) -> tuple[Tensors, Tensors]:
        """The meta-parameters, trained by the outer optimiser, and the state: tensors that tasks pass on."""
        ...

    def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
        """Learn the support set by the test procedure; what it returns is what `predict` takes."""
        ...

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, N] of examples [B, ...] forwarded as one batch; in regression outputs [B, D]."""
        ...


def with_defaults(learner: Any) -> Learner:
    """The learner, with the values of `Learner` where it has none of its own.

    Raises:
        FewshotError: it lacks one of the methods.
    """
    for name in ("init", "adapt", "predict"):
        if not callable(getattr(learner, name, None)):
            raise FewshotError(f"algorithm.learner: {type(learner).__name__} has no method {name}; see `Learner`")
    defaults = {name: getattr(Learner, name) for name in ("test_steps", "sequential", "use_autograd")} | {
        "backbone": nn.Identity()
    }
    for name, value in defaults.items():
        if not hasattr(learner, name):
            setattr(learner, name, value)
    return learner


@contextmanager
def override_test_steps(learner: Learner, steps: int) -> Iterator[None]:
    """The learner takes so many adaptation steps at evaluation."""
    before, learner.test_steps = learner.test_steps, steps
    try:
        yield
    finally:
        learner.test_steps = before


def backbone_parameters(backbone: nn.Module) -> Tensors:
    """A copy of the parameters that are trained, by name, outside any graph; frozen ones stay in the module.

    Raises:
        FewshotError: a layer that has no size yet.
    """
    for name, value in backbone.named_parameters():
        if is_lazy(value):
            raise FewshotError(
                f"backbone: parameter {name} has no size before the first forward; give the layer its input size"
            )
    return {name: value.detach().clone() for name, value in backbone.named_parameters() if value.requires_grad}


def backbone_constants(backbone: nn.Module) -> Tensors:
    """What of the backbone is not trained, by name: frozen parameters and buffers, the module's own tensors."""
    frozen = {name: value for name, value in backbone.named_parameters() if not value.requires_grad}
    return {name: value.detach() for name, value in (*frozen.items(), *backbone.named_buffers())}


def functional_forward(backbone: nn.Module, params: Tensors, x: torch.Tensor) -> torch.Tensor:
    """The backbone as a pure function: logits [B, N] of x [B, ...]."""
    # To look for parameters of two names at each call takes a tenth of a small step, but not of a compiled one.
    return functional_call(backbone, params, (x,), tie_weights=torch.compiler.is_compiling() or _tied(backbone))


def _tied(backbone: nn.Module) -> bool:
    """Whether a parameter of the backbone has two names, looked up once for each backbone."""
    if backbone not in _TIED:
        names = [name for name, _ in backbone.named_parameters(remove_duplicate=False)]
        _TIED[backbone] = len(names) > len(list(backbone.parameters()))
    return _TIED[backbone]


def differentiate(
    function: Callable[[Tensors], tuple[torch.Tensor, Any]], at: Tensors, *, use_autograd: bool, create_graph: bool
) -> tuple[Tensors, Any]:
    """Gradient of a scalar function that also returns something else: (gradient, the something).

    Args:
        function: params to (loss [], auxiliary).
        use_autograd: by torch.autograd, which costs least for a single task; else by torch.func, which vmap can batch.
        create_graph: whether the gradient will be differentiated itself (torch.func always allows it).
    """
    if not use_autograd:
        return grad(function, has_aux=True)(at)
    with torch.enable_grad():
        leaves = at if create_graph else {name: value.detach().requires_grad_() for name, value in at.items()}
        loss, auxiliary = function(leaves)
        values = torch.autograd.grad(loss, list(leaves.values()), create_graph=create_graph, materialize_grads=True)
    return dict(zip(at, values, strict=True)), auxiliary


def adapted_names(backbone: nn.Module, adapted: str | Sequence[str] = "all") -> list[str]:
    """Names of the parameters that the inner loop changes; frozen ones are never among them.

    Args:
        adapted: `all`; `head`, the module that holds the last parameter (ANIL, Raghu et al. 2020); or patterns of
            parameter names, such as `blocks.3.*`. Of `all`, norms are left out where the backbone has
            `adapt_norm` false.

    Raises:
        FewshotError: a pattern that no parameter matches, or nothing left to adapt.
    """
    names = [name for name, value in backbone.named_parameters() if value.requires_grad]
    if adapted == "all":
        fixed: set[str] = set()
        if not getattr(backbone, "adapt_norm", True):
            for prefix, module in backbone.named_modules():
                if isinstance(module, BatchStatNorm):
                    fixed.update(f"{prefix}.{name}" for name, _ in module.named_parameters())
        return [name for name in names if name not in fixed]
    patterns = [adapted] if isinstance(adapted, str) else list(adapted) if isinstance(adapted, Sequence) else []
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise FewshotError(f"algorithm.learner.adapted={adapted}: write all, head, or patterns of parameter names")
    if patterns == ["head"]:
        last = [name for name, _ in backbone.named_parameters()][-1]
        layer = last.partition(".parametrizations.")[0] if ".parametrizations." in last else last.rpartition(".")[0]
        if not layer:
            raise FewshotError(
                f"algorithm.learner.adapted=head: the last parameter, {last}, belongs to no layer of its own; write "
                f"patterns of parameter names, such as [{last}]"
            )
        patterns = [f"{layer}.*"]
    for pattern in patterns:
        if not fnmatch.filter(names, str(pattern)):
            raise FewshotError(
                f"algorithm.learner.adapted={pattern}: no parameter that is trained has such a name; write "
                f"all, head, or patterns such as {names[-1] if names else 'head.*'}"
            )
    return [name for name in names if any(fnmatch.fnmatchcase(name, str(pattern)) for pattern in patterns)]


def task_loss(outputs: torch.Tensor, targets: torch.Tensor, reduction: str, shot: int) -> torch.Tensor:
    """Cross-entropy of logits [B, N] and labels [B], or squared error of outputs [B, D] and float targets: [].

    Float targets are [B, D], or [B] where D is 1. The squared error of an item is the mean over its D values.
    The originals differ in the scale: `mean` over items; `sum` over items (supervised-reptile, LEO); `per_shot`, the
    sum divided by K (cbfinn/maml, which divides each item's cross-entropy by K and differentiates the vector: N times
    the mean).
    """
    over = "mean" if reduction == "mean" else "sum"
    if targets.is_floating_point():
        loss = F.mse_loss(outputs, targets.view(outputs.shape), reduction=over)
        loss = loss if reduction == "mean" else loss / outputs.shape[-1]
    else:
        loss = F.cross_entropy(outputs, targets, reduction=over)
    return loss / shot if reduction == "per_shot" else loss


def score(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What a test reports of the items, []: the share whose largest logit is the label's, or the mean squared error."""
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets.view(outputs.shape))
    return (outputs.argmax(-1) == targets).to(outputs.dtype).mean()
