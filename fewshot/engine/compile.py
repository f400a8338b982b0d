"""torch.compile for a step of fixed shapes, with its failures in one line."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from fewshot.core.errors import FewshotError, one_line
from fewshot.core.random import stream

T = TypeVar("T")


def has_compiler() -> bool:
    """Whether there is a C++ compiler where torch looks for one on a CPU."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


def compiled(step: Callable[..., T]) -> Callable[..., T]:
    """A function of tensors, compiled anew for each shape that it meets, up to eight.

    Everything that was compiled before in this process is forgotten, since torch counts all steps as one function.

    Raises:
        FewshotError: at the first call, where there is no C++ compiler for a CPU, or torch cannot trace the function.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that a CPU is no GPU
    torch.compiler.assume_constant_result(stream)  # torch cannot trace its hashlib
    torch.compiler.reset()
    fused = torch.compile(step, dynamic=False, fullgraph=True)

    def run(*inputs: object) -> T:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException  # slow to import

        try:
            return fused(*inputs)
        except FailOnRecompileLimitHit as error:
            raise FewshotError("engine=compiled: too many shapes; set task_chunk, or choose engine=vmap") from error
        except TorchDynamoException as error:
            raise FewshotError(
                "engine=compiled: torch.compile failed (on a CPU it needs a C++ compiler, such as g++); choose "
                f"engine=vmap ({type(error).__name__}: {one_line(error)[:160]})"
            ) from error

    return run
