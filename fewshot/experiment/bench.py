"""What tools/bench.py does: time full meta-training steps of each engine, in turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.learner import Learner
from fewshot.algorithms.maml import MAML
from fewshot.core.checks import check_choice, check_number
from fewshot.core.device import device_name, pick_device, set_single_threaded, tune_malloc
from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.core.paths import CONF
from fewshot.engine.engine import Engine, is_small
from fewshot.episodes import Episodes
from fewshot.experiment.build import instantiate_node
from fewshot.report.records import code, environment

Row = dict[str, Any]


def random_episodes(net: DictConfig, device: torch.device) -> Episodes:
    """A meta-batch of uniform noise in the network's shapes; with one way, a regression."""
    torch.manual_seed(0)

    def part(per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.rand(net.meta_batch, net.way * per_class, *net.shape, device=device)
        if net.way == 1:
            return x, torch.rand(net.meta_batch, per_class, device=device)
        return x, torch.arange(net.way, device=device).repeat_interleave(per_class).expand(net.meta_batch, -1)

    return Episodes(*part(net.shot), *part(net.query), torch.arange(net.meta_batch, device=device))


def make_learner(net: DictConfig, first_order: bool, adapted: str, device: torch.device) -> Learner:
    """MAML on the network, its `adapted` parameters in the inner loop; or LEO where the network is the identity."""
    torch.manual_seed(0)
    backbone = instantiate_node(net.network, shape=tuple(net.shape), way=net.way).to(device)
    if "inner_steps" not in net:
        return instantiate_node(OmegaConf.load(CONF / "algorithm/leo.yaml").algorithm.learner, backbone=backbone)
    return MAML(
        backbone, inner_lr=0.01, inner_steps=net.inner_steps, test_steps=net.inner_steps, first_order=first_order,
        inner_loss="mean", outer_loss="mean", adapted=adapted,
    )  # fmt: skip


def make_step(learner: Learner, engine: Engine, episodes: Episodes) -> Callable[[], None]:
    """A full outer step: adaptation, outer gradient, Adam."""
    params, state = ({k: v.to(episodes.key.device) for k, v in group.items()} for group in learner.init())
    optimizer = torch.optim.Adam(params.values(), lr=1e-4)

    def step() -> None:
        for name, value in engine.outer(learner, params, state, episodes).gradient.items():
            params[name].grad = value
        optimizer.step()

    return step


def steps_per_second(step: Callable[[], None], device: torch.device, seconds: float) -> float:
    """How often a function runs in a second, after a first call that does not count."""
    count, start = -1, perf_counter()
    while count < 1 or perf_counter() - start < seconds:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        count += 1
        if count == 0:
            start = perf_counter()
    return count / (perf_counter() - start)


def bench_network(cfg: DictConfig, name: str) -> list[Row]:
    """The rows of one network: an engine each, in first and in second order, for each choice of adapted parameters."""
    device, net = pick_device(cfg.device), cfg.networks[name]
    tune_malloc(one_arena=not is_small(prod(net.shape)))
    set_single_threaded(net.way == 1)
    episodes = random_episodes(net, device)
    rows = []
    for first_order in cfg.first_order if "inner_steps" in net else [False]:
        steps, rates = {}, {}
        for adapted in cfg.adapted if "inner_steps" in net else ["all"]:
            for engine in cfg.engines or net.engines:
                if adapted != "all" and engine == "learn2learn":
                    continue  # it adapts all
                learner = make_learner(net, first_order, adapted, device)
                steps[adapted, engine] = make_step(learner, Engine(engine), episodes)
                rates[adapted, engine] = []
        if not rates:
            raise FewshotError(f"adapted={list(cfg.adapted)}: learn2learn adapts all; choose all, or another engine")
        for _ in range(cfg.rounds):
            for (adapted, engine), step in steps.items():
                tune_malloc(as_glibc_does=engine == "learn2learn")
                rates[adapted, engine].append(net.meta_batch * steps_per_second(step, device, cfg.seconds))
        auto, first = Engine().method(episodes), median(next(iter(rates.values())))
        rows += [
            {
                "network": name,
                "order": "first" if first_order else "second",
                "adapted": adapted,
                "engine": f"{engine} (auto)" if engine == auto else engine,
                "tasks/s": f"{median(found):.3g}",
                "times": f"{median(found) / first:.2f}",
                "tasks/s of each round": " ".join(f"{rate:.3g}" for rate in found),
                "threads": torch.get_num_threads(),
            }
            for (adapted, engine), found in rates.items()
        ]
    return rows


def bench(cfg: DictConfig) -> None:
    """Print the rows of a network as a table, and write them to `cfg.out`.

    Raises:
        FewshotError: there is no such network or engine, or nothing that the engines can adapt.
    """
    import pandas as pd

    check_choice("network", cfg.network, tuple(cfg.networks))
    check_number("rounds", cfg.rounds, int, 1)
    rows, device = bench_network(cfg, cfg.network), device_name(pick_device(cfg.device))
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))
    print(f"\n{device}, torch {torch.__version__}")
    if cfg.out:
        record = {"format": 4, "bench": rows, "device": device, "code": code(), "environment": environment()}
        write_atomically(Path(cfg.out), (json.dumps(record, indent=1) + "\n").encode())
