"""Speed of the engines, side by side in one process: `python tools/bench.py network=omniglot`.

Tasks per second of a full meta-training step (adaptation, outer gradient, Adam) on random images, for each engine in
turn, several rounds; ratios are to plain learn2learn on the same network, batch and threads.
"""

import json
from pathlib import Path
from statistics import median
from time import perf_counter

import pandas as pd
import torch
from omegaconf import DictConfig

from fewshot.algorithms.engine import Engine
from fewshot.algorithms.maml import Maml
from fewshot.backbones.conv4 import Conv4
from fewshot.checkpoint import write_atomically
from fewshot.cli import main
from fewshot.device import peak_memory_bytes, pick_device, reset_peak_memory
from fewshot.episodes import Episodes
from fewshot.errors import FewshotError
from fewshot.report.record import code, device_name, environment


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
        reset_peak_memory(self.device)
        self.step()
        self._wait()
        start, steps = perf_counter(), 0
        while perf_counter() - start < seconds:
            self.step()
            self._wait()
            steps += 1
        self.rates.append(steps * len(self.episodes) / (perf_counter() - start))
        self.memory = max(self.memory, peak_memory_bytes(self.device))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def bench(cfg: DictConfig) -> None:
    device = pick_device(cfg.device)
    if cfg.network not in cfg.networks:
        raise FewshotError(f"network={cfg.network}: choose one of {', '.join(cfg.networks)}")
    net, rows = cfg.networks[cfg.network], []
    for first_order in cfg.first_order:
        contenders = {engine: Contender(net, engine, first_order, device) for engine in cfg.engines}
        for _ in range(cfg.rounds):
            for contender in contenders.values():
                contender.round(cfg.seconds)
        base = median(contenders[cfg.engines[0]].rates)
        for engine, contender in contenders.items():
            rows.append(
                {
                    "network": cfg.network,
                    "order": "first" if first_order else "second",
                    "engine": engine + (" (auto)" if contender.is_auto() else ""),
                    "tasks/s": round(median(contender.rates), 1),
                    f"times {cfg.engines[0]}": round(median(contender.rates) / base, 2),
                    "peak MiB": round(contender.memory / 2**20),
                    "tasks/s of each round": " ".join(f"{rate:.1f}" for rate in contender.rates),
                }
            )
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
