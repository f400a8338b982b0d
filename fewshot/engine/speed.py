"""What tools/bench.py times: a learner on one engine, and the device's own peaks to hold its speed against."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from fewshot.algorithms.learner import Learner, Tensors
from fewshot.core.device import peak_memory_bytes, reset_peak_memory
from fewshot.engine.engine import Engine
from fewshot.episodes import Episodes

SIDE, COPIED = {"cpu": 2048, "cuda": 8192}, 1 << 28  # of the matrices that are multiplied; floats that are copied


@dataclass
class Candidate:
    """Something to be timed in turns with others: `step` does `tasks` tasks."""

    step: Callable[[], object]
    tasks: int
    device: torch.device
    rates: list[float] = field(default_factory=list)  # tasks per second of each round
    memory: int = 0  # peak bytes

    def measure_memory(self) -> None:
        """Measure the peak memory of a step that is not the first, which imports and compiles.

        Apart from the rounds, as a heap that was trimmed is slow to regrow.
        """
        reset_peak_memory(self.device)
        self.step()
        self.memory = peak_memory_bytes(self.device)

    def round(self, seconds: float) -> None:
        """Time steps for about so many seconds."""
        self.rates.append(self.tasks * per_second(self.step, self.device, seconds))


def per_second(step: Callable[[], object], device: torch.device, seconds: float) -> float:
    """How often a function runs in a second, after a first time that does not count."""
    steps = -1
    start = perf_counter()
    while steps < 1 or perf_counter() - start < seconds:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if steps < 0:
            start = perf_counter()
        steps += 1
    return steps / (perf_counter() - start)


def outer_step(
    learner: Learner,
    params: Tensors,
    state: Tensors,
    engine: Engine,
    episodes: Callable[[], Episodes],
    change: Callable[[Tensors], Tensors] = dict,
) -> Callable[[], None]:
    """A full outer step: episodes, adaptation, outer gradient, what changes it, Adam."""
    optimizer = torch.optim.Adam(params.values(), lr=1e-4)

    def step() -> None:
        gradient = engine.outer(learner, params, state, episodes()).gradient
        for name, value in change(gradient).items():
            params[name].grad = value
        optimizer.step()

    return step


def flops_of_task(learner: Any, params: Tensors, task: Episodes) -> int:
    """Floating-point operations of the matrix products and convolutions of one task's outer gradient."""
    use_autograd = copy.deepcopy(learner)
    use_autograd.use_autograd = True
    leaves = {name: value.detach().clone().requires_grad_() for name, value in params.items()}
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(use_autograd.outer_loss(leaves, task)[0], list(leaves.values()), allow_unused=True)
    return counter.get_total_flops()


def peaks(device: torch.device, seconds: float) -> dict[str, float]:
    """What the device can do: `flops` of a float32 matrix product, `bytes` read and written by a copy, per second."""
    side = SIDE.get(device.type, SIDE["cpu"])
    a, b = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    product = torch.empty_like(a)
    source = torch.rand(COPIED // 4 if device.type == "cpu" else COPIED, device=device)
    target = torch.empty_like(source)
    return {
        "flops": 2 * side**3 * per_second(lambda: torch.mm(a, b, out=product), device, seconds),
        "bytes": 8 * len(source) * per_second(lambda: target.copy_(source), device, seconds),
    }
