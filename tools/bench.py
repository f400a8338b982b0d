"""Speed of the engines, side by side in one process: `python tools/bench.py network=omniglot`.

Tasks per second of a full meta-training step (adaptation, outer gradient, Adam) on random images, for each engine in
turn, several rounds; ratios are to plain learn2learn on the same network, batch and threads. For LEO on random
features, sampling is counted, evaluation is timed too, and ratios are to one task after the other. `network=sampling`
opens made-up banks of a data set's full size and samples episodes from them.
"""

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.engine import Engine
from fewshot.algorithms.learner import score
from fewshot.algorithms.leo import Leo
from fewshot.algorithms.maml import Maml
from fewshot.backbones.conv4 import Conv4
from fewshot.backbones.inputs import Inputs
from fewshot.checkpoint import write_atomically
from fewshot.cli import main
from fewshot.config import CONF
from fewshot.data.bank import Bank, open_banks
from fewshot.device import peak_memory_bytes, pick_device, reset_peak_memory
from fewshot.episodes import Episodes
from fewshot.errors import FewshotError
from fewshot.evaluation import evaluate, query_outputs
from fewshot.report.record import code, device_name, environment
from fewshot.tasks.sampler import Sampler
from fewshot.training import clipped


def random_episodes(net: DictConfig, device: torch.device) -> Episodes:
    """A meta-batch of uniform noise in the network's shapes."""
    torch.manual_seed(0)

    def part(per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.rand(net.meta_batch, net.way * per_class, *net.shape, device=device)
        return x, torch.arange(net.way, device=device).repeat_interleave(per_class).expand(net.meta_batch, -1)

    return Episodes(*part(net.shot), *part(net.query), torch.arange(net.meta_batch, device=device))


def learner_of(net: DictConfig, first_order: bool, device: torch.device) -> Maml:
    """MAML on the network, every parameter adapted: what learn2learn does."""
    backbone = Conv4(
        tuple(net.shape), net.way, filters=net.filters, downsample=net.downsample, pool="valid", readout=net.readout,
        norm="batch", norm_scale=True, norm_eps=1e-5, adapt_norm=True, conv_init="xavier", head_init="xavier",
    ).to(device)  # fmt: skip
    return Maml(
        backbone, inner_lr=0.01, inner_steps=net.inner_steps, test_steps=net.inner_steps, first_order=first_order,
        inner_loss="mean", outer_loss="mean",
    )  # fmt: skip


class Contender:
    """One engine on one network, ready to be timed in turns with the others."""

    def __init__(self, net: DictConfig, engine: str, first_order: bool, device: torch.device) -> None:
        self.learner, self.episodes = learner_of(net, first_order, device), random_episodes(net, device)
        self.engine, self.device = Engine(engine), device
        self.params, self.carry = self.learner.initial()
        self.optimizer = torch.optim.Adam(self.params.values(), lr=1e-3)
        self.rates: list[float] = []
        self.memory = 0

    def is_auto(self) -> bool:
        """Whether `engine=auto` would choose this engine."""
        return Engine("auto").method(self.episodes) == self.engine.name

    def step(self) -> None:
        """One outer step."""
        gradient = self.engine.outer(self.learner, self.params, self.carry, self.episodes).gradient
        for name, value in self.params.items():
            value.grad = gradient[name]
        self.optimizer.step()

    def round(self, seconds: float) -> None:
        """Time steps for about so many seconds."""
        self.rates.append(len(self.episodes) * steps_per_second(self.step, self.device, seconds))
        self.memory = max(self.memory, peak_memory_bytes(self.device))


class LeoContender:
    """LEO on random features, all tasks at once or one by one: a training step, or some episodes of evaluation."""

    def __init__(self, net: DictConfig, engine: str, query: int | None, device: torch.device) -> None:
        torch.manual_seed(0)
        offsets = torch.arange(0, net.classes * net.per_class + 1, net.per_class)
        rows = torch.randn(net.classes * net.per_class, net.dim)
        bank = Bank(rows, offsets, tuple(map(str, range(net.classes))), "train", "random", {}).to(device)
        settings = OmegaConf.load(CONF / "algorithm/leo.yaml").algorithm.learner
        network = Inputs((net.dim,), net.way)
        self.learner = Leo(network, **{key: value for key, value in settings.items() if key != "_target_"})
        self.params, self.carry = ({k: v.to(device) for k, v in group.items()} for group in self.learner.initial())
        self.optimizer = torch.optim.Adam(self.params.values(), lr=1e-4)
        self.training, self.one_by_one, self.engine, self.device = (
            query is None,
            engine == "loop",
            Engine(engine),
            device,
        )
        self.sampler = Sampler(bank, net.way, net.shot, net.query if query is None else query, 0)
        self.tasks = net.meta_batch if self.training else 1 if self.one_by_one else 200
        self.first, self.rates, self.memory = 0, [], 0

    def step(self) -> None:
        """One outer step, or the evaluation of some tasks; new episodes each time."""
        self.first += self.tasks
        if self.training:
            episodes = self.sampler.episodes(self.first, self.tasks)
            gradient = self.engine.outer(self.learner, self.params, self.carry, episodes).gradient
            for name, value in clipped(gradient, 0.1, 0.1).items():
                self.params[name].grad = value
            self.optimizer.step()
        elif self.one_by_one:
            task = self.sampler.episodes(self.first, 1)[0]
            score(query_outputs(self.learner, self.params, self.carry, task, False), task.query_y).item()
        else:
            evaluate(
                self.learner, self.params, self.carry, self.sampler, self.tasks, transductive=False, engine=self.engine
            )

    def round(self, seconds: float) -> None:
        """Time steps for about so many seconds."""
        self.rates.append(self.tasks * steps_per_second(self.step, self.device, seconds))
        self.memory = max(self.memory, peak_memory_bytes(self.device))


def steps_per_second(step: Callable[[], None], device: torch.device, seconds: float) -> float:
    """How often a function runs in a second, after a first time that does not count."""
    reset_peak_memory(device)
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


def bench_leo(cfg: DictConfig, net: DictConfig, device: torch.device) -> list[dict[str, Any]]:
    """Rows of LEO: training, and evaluation with each number of queries per class."""
    rows = []
    for query in (None, *net.test_queries):
        contenders = {engine: LeoContender(net, engine, query, device) for engine in ("loop", "vmap")}
        for _ in range(cfg.rounds):
            for contender in contenders.values():
                contender.round(cfg.seconds)
        what = "training" if query is None else f"evaluation, {query} queries"
        rows += _rows({"network": cfg.network, "what": what}, contenders, "loop")
    return rows


def _rows(head: dict[str, Any], contenders: Mapping[str, Any], base: str) -> list[dict[str, Any]]:
    return [
        {
            **head,
            "engine": engine,
            "tasks/s": round(median(contender.rates), 1),
            f"times {base}": round(median(contender.rates) / median(contenders[base].rates), 2),
            "peak MiB": round(contender.memory / 2**20),
            "tasks/s of each round": " ".join(f"{rate:.1f}" for rate in contender.rates),
        }
        for engine, contender in contenders.items()
    ]


def bench_maml(cfg: DictConfig, net: DictConfig, device: torch.device) -> list[dict[str, Any]]:
    """Rows of MAML and FOMAML: training with each engine."""
    rows = []
    for first_order in cfg.first_order:
        contenders = {engine: Contender(net, engine, first_order, device) for engine in cfg.engines}
        for _ in range(cfg.rounds):
            for contender in contenders.values():
                contender.round(cfg.seconds)
        named = {engine + (" (auto)" if c.is_auto() else ""): c for engine, c in contenders.items()}
        head = {"network": cfg.network, "order": "first" if first_order else "second"}
        rows += _rows(head, named, next(iter(named)))
    return rows


def bench_sampling(cfg: DictConfig, net: DictConfig) -> list[dict[str, Any]]:
    """Rows of banks of a data set's size, as sparse files: opening, then drawing and gathering a meta-batch, warm."""
    rows = []
    for name, (classes, per_class) in net.banks.items():
        with TemporaryDirectory() as place:
            shape = [classes * per_class, *net.shape]
            np.lib.format.open_memmap(f"{place}/train.npy", mode="w+", dtype=np.uint8, shape=tuple(shape))
            listing = {"counts": [per_class] * classes, "names": [f"class {i}" for i in range(classes)]}
            listing |= {"sha256": "", "dtype": "uint8", "shape": shape}
            Path(place, "bank.json").write_text(json.dumps({"format": 1, "about": {}, "splits": {"train": listing}}))
            reset_peak_memory(torch.device("cpu"))
            start = perf_counter()
            sampler = Sampler(open_banks(Path(place))["train"], net.way, net.shot, net.query, 0)
            opened, seconds = perf_counter() - start, []
            for turn in range(-net.warm, cfg.rounds * net.turns):
                start = perf_counter()
                sampler.episodes(turn % net.turns * net.meta_batch, net.meta_batch)
                seconds += [perf_counter() - start] * (turn >= 0)
            row = {"bank": f"{name}, {shape[0]:,} images, {prod(shape) / 1e9:.1f} GB"}
            row["opened in ms"] = f"{1e3 * opened:.1f}"
            row[f"{net.meta_batch} episodes in ms"] = f"{1e3 * median(seconds):.1f}"
            row["slowest"] = f"{1e3 * max(seconds):.1f}"
            rows.append(row | {"peak MiB": round(peak_memory_bytes(torch.device("cpu")) / 2**20)})
            del sampler  # to unmap its file is no part of opening the next
    return rows


def bench(cfg: DictConfig) -> None:
    device = pick_device(cfg.device)
    if cfg.network not in cfg.networks:
        raise FewshotError(f"network={cfg.network}: choose one of {', '.join(cfg.networks)}")
    net = cfg.networks[cfg.network]
    if "banks" in net:
        rows = bench_sampling(cfg, net)
    else:
        rows = bench_leo(cfg, net, device) if "test_queries" in net else bench_maml(cfg, net, device)
    print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))
    print(f"\n{device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if cfg.out:
        record = {
            "format": 1,
            "bench": rows,
            "device": device_name(device),
            "code": code(),
            "environment": environment(),
        }
        write_atomically(Path(cfg.out), (json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    main(bench, "bench")
