"""What tools/bench.py does: time full meta-training steps of each engine, in turns."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.learner import Learner, Tensors
from fewshot.algorithms.maml import MAML
from fewshot.backbones.precision import products_in
from fewshot.core.checks import check_choice, check_number
from fewshot.core.device import (
    device_name,
    peak_memory_bytes,
    pick_device,
    release_memory,
    reset_peak_memory,
    set_single_threaded,
    tune_malloc,
)
from fewshot.core.environment import code, environment
from fewshot.core.errors import FewshotError
from fewshot.core.files import check_output, write_atomically
from fewshot.core.paths import CONF
from fewshot.core.progress import print_note, progress_bar
from fewshot.engine.engine import ENGINES, LONG, Engine, is_small
from fewshot.engine.learn2learn import import_maml
from fewshot.episodes import Episodes
from fewshot.experiment.bench_others import easyfsl_gradient, jax_step
from fewshot.experiment.make_learner import instantiate_node

Row = dict[str, Any]

OTHERS = ("learn2learn", "jax", "easyfsl")  # other libraries' steps, which are left out where they are not installed
ROUNDED = "bfloat16"  # `loop` with products in this precision
OUTER_LR = 1e-4


def random_episodes(net: DictConfig, device: torch.device) -> Episodes:
    """A meta-batch of uniform noise in the network's shapes; with one way, a regression."""
    torch.manual_seed(0)

    def part(per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.rand(net.meta_batch, net.way * per_class, *net.shape, device=device)
        if net.way == 1:
            return x, torch.rand(net.meta_batch, per_class, device=device)
        return x, torch.arange(net.way, device=device).repeat_interleave(per_class).expand(net.meta_batch, -1)

    return Episodes(*part(net.shot), *part(net.query), torch.arange(net.meta_batch, device=device))


def make_bench_learner(net: DictConfig, first_order: bool, adapted: str, device: torch.device) -> Learner:
    """The network's algorithm; where it names none, MAML, with its `adapted` parameters in the inner loop."""
    torch.manual_seed(0)
    backbone = instantiate_node(net.network, shape=tuple(net.shape), way=net.way).to(device)
    if "algorithm" in net:
        node = OmegaConf.load(CONF / f"algorithm/{net.algorithm}.yaml").algorithm.learner
        return instantiate_node(node, backbone=backbone)
    return MAML(
        backbone, inner_lr=0.01, inner_steps=net.inner_steps, test_steps=net.inner_steps, first_order=first_order,
        inner_loss="mean", outer_loss="mean", adapted=adapted,
    )  # fmt: skip


def make_step(learner: Learner, engine: str, episodes: Episodes) -> Callable[[], None]:
    """A full outer step: adaptation, outer gradient, Adam.

    Raises:
        FewshotError: there is no such engine, it is not installed, or cannot run the learner.
    """
    check_choice("engine", engine, tuple(dict.fromkeys((*ENGINES, *OTHERS, ROUNDED))))
    if engine == "learn2learn":
        import_maml()  # the first step would be late to find that it is not there
    if engine == "jax":
        return jax_step(learner, episodes, OUTER_LR)[0]
    precision, engine = (ROUNDED, "loop") if engine == ROUNDED else ("float32", engine)
    params, state = ({k: v.to(episodes.key.device) for k, v in group.items()} for group in learner.init())
    optimizer = torch.optim.Adam(params.values(), lr=OUTER_LR)
    if engine == "easyfsl":
        gradient = easyfsl_gradient(learner, episodes)
    else:
        gradient = partial(_our_gradient, Engine(engine), learner, episodes, state)

    def step() -> None:
        with products_in(learner.backbone, precision):
            gradients = gradient(params)
        for name, value in gradients.items():
            params[name].grad = value
        optimizer.step()

    return step


def _our_gradient(engine: Engine, learner: Learner, episodes: Episodes, state: Tensors, params: Tensors) -> Tensors:
    return engine.outer(learner, params, state, episodes).gradient


def steps_per_second(step: Callable[[], None], device: torch.device, seconds: float) -> float:
    """How often a function runs in a second, after a first call that does not count."""
    count, start = -1, perf_counter()
    while count < 1 or perf_counter() - start < seconds:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        count += 1
        if count == 0:
            start = perf_counter()
    return count / (perf_counter() - start)


def bench_network(cfg: DictConfig, name: str) -> list[Row]:
    """The rows of one network: an engine each, in first and in second order, for each choice of adapted parameters."""
    device, net = pick_device(cfg.device), cfg.networks[name]
    tune_malloc(one_arena=not is_small(net.shape))
    set_single_threaded(net.way == 1)
    episodes = random_episodes(net, device)
    has_orders = "inner_steps" in net
    rows = []
    for first_order in cfg.first_order if has_orders else [False]:
        steps: dict[tuple[str, str], Callable[[], None]] = {}
        for adapted in cfg.adapted if has_orders else ["all"]:
            for engine in cfg.engines or net.engines:
                if adapted != "all" and engine in ("learn2learn", "jax"):
                    continue  # they adapt all
                learner = make_bench_learner(net, first_order, adapted, device)
                try:
                    steps[adapted, engine] = make_step(learner, engine, episodes)
                except FewshotError as error:
                    if cfg.engines or engine not in OTHERS:
                        raise
                    print_note(f"left out: {error}")
        if not steps:
            raise FewshotError(f"adapted={list(cfg.adapted)}: these engines adapt all; choose all, or others")
        memory: dict[tuple[str, str], float] = {}
        rates: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
        rounds = min(cfg.rounds, net.get("rounds", cfg.rounds)) if cfg.network == "all" else cfg.rounds
        for _ in range(rounds):
            for key, step in steps.items():
                if rates[key] and net.meta_batch / rates[key][0] > 3 * cfg.seconds:
                    continue  # a long step is timed once
                tune_malloc(as_glibc_does=key[1] in OTHERS)
                if key not in memory:
                    memory[key] = _step_megabytes(step, device)
                rates[key].append(net.meta_batch * steps_per_second(step, device, cfg.seconds))
        learner = make_bench_learner(net, first_order, "all", device)
        auto = {Engine(steps=LONG).method(episodes, learner): " (auto, long)"}
        auto[Engine().method(episodes, learner)] = " (auto)"
        base = next(iter(rates))
        rows += [
            {
                "network": name,
                "order": ("first" if first_order else "second") if has_orders else "",
                "adapted": adapted,
                "engine": f"{engine}{auto.get(engine, '')}",
                "tasks/s": f"{median(found):.3g}",
                "times": f"{median(found) / median(rates[base]):.2f}",
                "of": base[1],
                "tasks/s of each round": " ".join(f"{rate:.3g}" for rate in found),
                "MB": f"{memory[adapted, engine]:.0f}",
                "threads": os.cpu_count() if engine == "jax" else torch.get_num_threads(),
            }
            for (adapted, engine), found in rates.items()
        ]
    return rows


def _step_megabytes(step: Callable[[], None], device: torch.device) -> float:
    """The memory that a step takes beside what is in use before: of the second one, since the first also compiles."""
    step()
    release_memory()
    reset_peak_memory(device)
    before = peak_memory_bytes(device)
    step()
    return (peak_memory_bytes(device) - before) / 1e6


def product_gigaflops(device: torch.device) -> float:
    """Billions of operations a second of a product of float32 matrices of 2,048 rows: the most to expect of a step."""
    matrix = torch.rand(2048, 2048, device=device)
    return 2 * 2048**3 * steps_per_second(lambda: [matrix @ matrix].clear(), device, 0.5) / 1e9


def bench(cfg: DictConfig) -> None:
    """Print the rows of a network as a table, and write them to `cfg.out`.

    Raises:
        FewshotError: there is no such network or engine, or nothing that the engines can adapt.
    """
    import pandas as pd

    check_choice("network", cfg.network, ("all", *cfg.networks))
    check_number("rounds", cfg.rounds, int, 1)
    if cfg.out is not None:
        check_output("out", Path(cfg.out))
    names = list(cfg.networks) if cfg.network == "all" else [cfg.network]
    rows, device, start = [], device_name(pick_device(cfg.device)), perf_counter()
    with progress_bar("bench", len(names)) as advance:
        for name in names:
            rows += bench_network(cfg, name)
            advance(name)
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))
    peak = product_gigaflops(pick_device(cfg.device))
    minutes = (perf_counter() - start) / 60
    print(
        f"\n{device}, torch {torch.__version__}; product of matrices: {peak:,.0f} billion operations a second; "
        f"{minutes:.1f} minutes in all"
    )
    if cfg.out:
        record = {"format": 5, "bench": rows, "device": device, "product_gigaflops": round(peak, 1)}
        record["minutes"] = round(minutes, 2)
        record |= {"code": code(), "environment": environment()}
        write_atomically(Path(cfg.out), (json.dumps(record, indent=1) + "\n").encode())
