"""The interface of an algorithm, written for one task, and the functions that several algorithms share."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad

from fewshot.backbones.norm import norm_names
from fewshot.backbones.precision import call_network
from fewshot.core.checks import check_number
from fewshot.core.errors import FewshotError
from fewshot.episodes import Episodes

Tensors = dict[str, torch.Tensor]

REDUCTIONS = ("mean", "sum", "per_shot")
_TIED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class Learner(Protocol):
    """An algorithm on a backbone, written for one task. To add one, write a class with the three methods below.

    A task is an `Episodes` without its leading axis: support_x [N*K, ...], support_y [N*K], query_x [N*Q, ...],
    query_y [N*Q] and key []. The engine runs the methods on many tasks at once, so each is a pure function: it changes
    neither its arguments nor the learner, and draws random numbers from `task.key` alone (`fewshot.core.random`). Use
    operations that `torch.func.vmap` can batch; with `engine=auto`, a learner that it cannot batch runs task by task.
    Call the backbone by `functional_forward`, or by `functional_embed` of embedding.py: these obey `train.precision`.

    A learner that is meta-trained also has one of these two methods:

    - `outer_loss(params, task) -> (loss [], score [])`. The engine differentiates the loss with respect to `params`.
    - `outer_gradient(params, state, task) -> (gradient, state, loss [], score [])`. The learner computes the outer
      gradient itself, with the names and shapes of `params`, and returns the state for the next task.

    `score` comes from the function `score` of this module. A learner may have these members as well:

    - `state_of(blocks of [M, ...]) -> state`: the state at the start, from all training examples, such as their mean,
      in place of the one that `init` returns, with its names and shapes;
    - `begin_step(step, steps)`: called before each outer step of the training, and may change attributes that are a
      number, a text, true or false; after the training it is called with `steps, steps`. A change costs a compiled or
      recorded step its compilation, so change them a few times in a training, and not at every step;
    - `scalars(params) -> dict[str, float]`: values for the log, such as the mean of a learned rate;
    - `gradient_evaluations: int`: gradients that one training task costs, the outer one included; inner ones of a head
      alone, on features that are computed once, do not count, but those of LEO's two inner loops do;
    - `adaptation_steps: str`: the text that the record shows in place of `test_steps`;
    - `outer_settings: Mapping[str, Any]`: what `fewshot.train` takes for this learner where the caller does not say
      otherwise: `meta_batch`, `outer_lr`, `outer_optimizer`, and what its `**settings` may name;
    - `features_once: bool`: `adapt` changes the backbone's `head` alone, on features that it computes once by `embed`;
      set to False where a network's output is found to be something else than its head on its features;
    - `notes: tuple[str, ...]`: lines that are printed at the start of a run;
    - `unequal_shots: bool`: `adapt` takes classes of different sizes, by `support_y`. To others a person's support set
      is given with the examples of smaller classes repeated;
    - `probabilities(adapted, logits) -> [B, N]`: what a person sees in place of the logits' softmax: 0 or more,
      and the sum of a row is 1.

    The class need not inherit from this one: attributes that it lacks have the values below.
    """

    backbone: nn.Module
    test_steps: int = 0  # adaptation steps at evaluation; of LEO the fine-tuning steps, in training too
    sequential: bool = False  # each task starts from the state that the task before it left, so none run at once
    use_autograd: bool = False  # set by the engine on copies that run single tasks; pass it on to `differentiate`

    def init(self) -> tuple[Tensors, Tensors]:
        """The start of meta-training: (params, state).

        `params` are the meta-parameters, which the outer optimiser trains. `state` holds tensors that one task hands on
        to the next, such as the moments of an inner optimiser: of tasks that ran at once, their mean. Most algorithms
        have none: {}. All are floats.
        """
        ...

    def adapt(self, params: Tensors, state: Tensors, task: Episodes) -> Tensors:
        """Learn the support set as at evaluation; the result is the first argument of `predict`.

        A test gives it a task without queries, and calls it below torch.no_grad(), which `differentiate` undoes.
        """
        ...

    def predict(self, adapted: Tensors, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, N] of examples x [B, ...], in one forward; in regression outputs [B, D].

        The caller decides which examples share a batch, and with it the statistics of norms.
        """
        ...


def with_defaults(learner: Any) -> Learner:
    """The learner itself, with the defaults of `Learner` for the attributes that it lacks.

    Raises:
        FewshotError: it lacks one of the methods, keeps its network under another name, or is frozen.
    """
    for name in ("init", "adapt", "predict"):
        method = getattr(learner, name, None)
        if not callable(method) or getattr(method, "__func__", None) is getattr(Learner, name):
            raise FewshotError(f"algorithm.learner: {type(learner).__name__} has no method {name}; see `Learner`")
    for name in ("outer_loss", "outer_gradient", "state_of", "begin_step", "scalars", "probabilities"):
        if hasattr(learner, name) and not callable(getattr(learner, name)):
            raise FewshotError(f"algorithm.learner: {type(learner).__name__}.{name} is no method; see `Learner`")
    defaults = {"backbone": nn.Identity(), "test_steps": 0, "sequential": False, "use_autograd": False}
    if lacking := [name for name in defaults if not hasattr(learner, name)]:
        members = vars(learner) | getattr(learner, "_modules", {})
        modules = {name: value for name, value in members.items() if isinstance(value, nn.Module)}
        networks = [name for name, module in modules.items() if next(module.parameters(), None) is not None]
        if "backbone" in lacking and networks:
            raise FewshotError(
                f"algorithm.learner: {type(learner).__name__} keeps its network as {networks[0]}, where nothing "
                "checks, moves or saves it; keep it as backbone"
            )
        try:
            for name in lacking:
                setattr(learner, name, defaults[name])
            learner._counts_steps = "test_steps" not in lacking
        except AttributeError as error:  # a frozen dataclass
            raise FewshotError(
                f"algorithm.learner: the attributes of {type(learner).__name__} cannot be set, and training sets some; "
                "write a class that is not frozen"
            ) from error
    check_network(learner.backbone)
    return learner


def check_settings(kind: type, least: float, **settings: float) -> None:
    """Raises FewshotError where a setting of a learner is no number of this kind, int or float, or is below `least`."""
    for name, value in settings.items():
        check_number(f"algorithm.learner.{name}", value, kind, least)


@contextmanager
def override_test_steps(learner: Learner, steps: int) -> Iterator[None]:
    """Within the block, the learner takes `steps` adaptation steps at evaluation."""
    was_set = "test_steps" in vars(learner)
    before, learner.test_steps = learner.test_steps, steps
    try:
        yield
    finally:
        if was_set:
            learner.test_steps = before
        else:
            del learner.test_steps  # the class's again


def check_network(backbone: Any) -> None:
    """Raises FewshotError if a learner's network is no nn.Module."""
    if not isinstance(backbone, nn.Module):
        description = f"the class {backbone.__name__}" if isinstance(backbone, type) else repr(backbone)[:60]
        raise FewshotError(f"backbone: must be an nn.Module, such as nn.Sequential(...), and is {description}")


def backbone_parameters(backbone: nn.Module) -> Tensors:
    """A copy of the parameters that are trained, by name, outside any graph; frozen ones stay in the module."""
    return {name: value.detach().clone() for name, value in backbone.named_parameters() if value.requires_grad}


def backbone_constants(backbone: nn.Module) -> Tensors:
    """The tensors of the backbone that are not trained, by name: frozen parameters and buffers, not copied."""
    frozen = {name: value for name, value in backbone.named_parameters() if not value.requires_grad}
    return {name: value.detach() for name, value in (*frozen.items(), *backbone.named_buffers())}


def functional_forward(backbone: nn.Module, params: Tensors, x: torch.Tensor) -> torch.Tensor:
    """The backbone as a pure function of its parameters: logits [B, N] of x [B, ...]."""
    return call_network(backbone, backbone, params, x, tied=may_be_tied(backbone))


def may_be_tied(backbone: nn.Module) -> bool:
    """Whether a parameter of the backbone has two names, looked up once for each backbone.

    To look for tied weights in every call takes a tenth of a small step. A compiled step does it once.
    """
    if torch.compiler.is_compiling():
        return True
    if backbone not in _TIED:
        names = [name for name, _ in backbone.named_parameters(remove_duplicate=False)]
        _TIED[backbone] = len(names) > len(list(backbone.parameters()))
    return _TIED[backbone]


def differentiate(
    function: Callable[[Tensors], tuple[torch.Tensor, Any]], at: Tensors, *, use_autograd: bool, create_graph: bool
) -> tuple[Tensors, Any]:
    """(gradient, auxiliary) of a function with a scalar and an auxiliary result.

    Args:
        function: params to (loss [], auxiliary).
        at: the params at which the gradient is taken.
        use_autograd: True takes torch.autograd, which is faster for a single task; False takes torch.func, which vmap
            can batch. A learner passes on its own `use_autograd`, which the engine sets.
        create_graph: whether the gradient will be differentiated itself (torch.func always allows it); below
            torch.no_grad(), as in a test, it is not.
    """
    if not use_autograd:
        return grad(function, has_aux=True)(at)
    create_graph = create_graph and torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = {n: v if create_graph and v.requires_grad else v.detach().requires_grad_() for n, v in at.items()}
        loss, auxiliary = function(leaves)
        values = torch.autograd.grad(loss, list(leaves.values()), create_graph=create_graph, materialize_grads=True)
    return dict(zip(at, values, strict=True)), auxiliary


def adapted_names(backbone: nn.Module, adapted: str | Sequence[str] = "all") -> list[str]:
    """Names of the parameters that the inner loop changes; frozen ones are never among them.

    Args:
        adapted: `all`, but for the norms where the backbone has `adapt_norm` false; `head`, the layer that holds the
            last parameter (ANIL, Raghu et al. 2020); `body`, all but that (BOIL, Oh et al. 2021); or patterns of
            parameter names, such as `blocks.3.*`.

    Raises:
        FewshotError: a pattern that no parameter matches, or no pattern at all.
    """
    names = [name for name, value in backbone.named_parameters() if value.requires_grad]
    if adapted in ("all", "body"):
        if not getattr(backbone, "adapt_norm", True):
            norms = norm_names(backbone)
            names = [name for name in names if name not in norms]
        if adapted == "body":
            names = [name for name in names if not name.startswith(_head_prefix(backbone, adapted))]
        if adapted == "body" and not names:
            raise FewshotError("algorithm.learner.adapted=body: this network has nothing but a head; write all")
        return names
    patterns = [adapted] if isinstance(adapted, str) else list(adapted) if isinstance(adapted, Sequence) else []
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise FewshotError(f"algorithm.learner.adapted={adapted}: write all, head, body, or patterns of names")
    if patterns == ["head"]:
        patterns = [f"{_head_prefix(backbone, 'head')}*"]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise FewshotError(
                f"algorithm.learner.adapted={pattern}: no parameter that is trained has such a name; write "
                f"all, head, body, or patterns such as {names[-1] if names else 'head.*'}"
            )
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _head_prefix(backbone: nn.Module, adapted: str) -> str:
    """As `head_prefix`. Raises FewshotError where it is empty."""
    names = [name for name, _ in backbone.named_parameters()]
    if not names:
        raise FewshotError(f"algorithm.learner.adapted={adapted}: {type(backbone).__name__} has no parameters")
    prefix = head_prefix(backbone)
    if not prefix:
        raise FewshotError(
            f"algorithm.learner.adapted={adapted}: the last parameter, {names[-1]}, belongs to no layer of its own; "
            f"write patterns of parameter names, such as [{names[-1]}]"
        )
    return prefix


def head_prefix(backbone: nn.Module) -> str:
    """What the names of the parameters of the last layer begin with; empty where there is no such layer."""
    *_, last = ["", *(name for name, _ in backbone.named_parameters())]
    layer = last.partition(".parametrizations.")[0] if ".parametrizations." in last else last.rpartition(".")[0]
    return f"{layer}." if layer else ""


def task_loss(outputs: torch.Tensor, targets: torch.Tensor, reduction: str, shot: int) -> torch.Tensor:
    """The loss [] of a batch: cross-entropy of logits [B, N] and labels [B], or squared error of outputs [B, D].

    Args:
        targets: labels [B] int64, or floats [B, D], or floats [B] where D is 1. The squared error of an item is the
            mean over its D values.
        reduction: the scale, in which the originals differ: `mean` over items; `sum` over items (supervised-reptile,
            LEO); `per_shot`, the sum divided by K (cbfinn/maml, which divides each item's cross-entropy by K and
            differentiates the vector): N times the mean of N*K support items, N*Q/K times that of N*Q queries.
        shot: K.
    """
    torch_reduction = "mean" if reduction == "mean" else "sum"
    if targets.is_floating_point():
        loss = F.mse_loss(outputs, targets.view(outputs.shape), reduction=torch_reduction)
        loss = loss if reduction == "mean" else loss / outputs.shape[-1]
    else:
        loss = F.cross_entropy(outputs, targets, reduction=torch_reduction)
    return loss / shot if reduction == "per_shot" else loss


def score(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The figure that a test reports of a batch, []: accuracy of logits, or mean squared error of outputs.

    The accuracy is NaN if any logit of the batch is.
    """
    if targets.is_floating_point():
        return F.mse_loss(outputs, targets.view(outputs.shape))
    at_least_float32 = torch.promote_types(outputs.dtype, torch.float32)  # a network may return bfloat16
    accuracy = (outputs.argmax(-1) == targets).to(at_least_float32).mean()
    return accuracy.masked_fill(outputs.isnan().any(), float("nan"))
