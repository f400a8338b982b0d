"""Failures of a person's network in one line, with the layer that was running."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from fewshot.core.device import out_of_memory
from fewshot.core.errors import FewshotError, error_location, one_line


@contextmanager
def named_failures(backbone: nn.Module | None, x: torch.Tensor) -> Iterator[None]:
    """Report a failure of the network on examples like `x` in one line, with the layer that was running."""
    running: list[nn.Module] = []

    def leave(*_: Any) -> None:
        running.pop()

    try:
        with forward_hooks(lambda module, _: running.append(module), leave):
            yield
    except FewshotError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        names = layer_names(backbone) if backbone is not None else {}
        failed = [f"{names[module]} fails" for module in running if module in names]
        if not failed and (location := error_location(error)):  # the person's own algorithm
            raise FewshotError(f"algorithm.learner: {location}: {error_reason(error)}") from error
        raise FewshotError(
            f"backbone: {failed[-1] if failed else 'learning fails'} on examples {list(x.shape[1:])} "
            f"({error_reason(error)}); its forward must run on such examples, under torch.func too"
        ) from error


@contextmanager
def forward_hooks(enter: Callable[..., None], leave: Callable[..., None]) -> Iterator[None]:
    """Call `enter(module, inputs)` before the forward of every module, and `leave(module, inputs, output)` after it."""
    handles = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_names(backbone: nn.Module) -> dict[nn.Module, str]:
    """What a message calls each module of a network."""
    return {module: layer_name(name, module) for name, module in backbone.named_modules()}


def layer_name(name: str, module: nn.Module) -> str:
    """What a message calls a module; `name` is its path in the network, empty for the network itself."""
    return f"layer {name} ({type(module).__name__})" if name else type(module).__name__


def error_reason(error: BaseException) -> str:
    """The message of an error, short enough to stand in one line with more; with its type if it is not torch's."""
    name = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
    return f"{name}{one_line(error)}"[:160]
