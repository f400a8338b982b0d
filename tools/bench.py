"""Speed of the engines, side by side: `python tools/bench.py network=omniglot`, or `network=all`.

Tasks per second of a full meta-training step (adaptation, outer gradient, Adam) on random examples, for each engine in
turn, several rounds in one process for each network. The first engine of a network is what the others are held
against: learn2learn, which gains here from the large pages and the grown heap of this project, or, for LEO, the tasks
one by one; LEO's sampling is counted, and its evaluation timed too. `of peak` are the operations of matrix products and
convolutions, as a share of what a matrix product alone reaches in the same process; convolutions that a library does
with fewer operations than their definition has can pass 100 %. `network=sampling` opens made-up banks of a data set's
full size and samples episodes from them.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from math import prod
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from fewshot.algorithms.learner import score
from fewshot.algorithms.leo import Leo
from fewshot.algorithms.maml import Maml
from fewshot.backbones.identity import Identity
from fewshot.core.device import peak_memory_bytes, pick_device, reset_peak_memory, set_single_threaded, tune_malloc
from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.core.paths import CONF
from fewshot.data.bank import Bank, open_banks
from fewshot.engine.engine import Engine, is_small
from fewshot.engine.evaluate import evaluate, query_outputs
from fewshot.engine.speed import Candidate, flops_of_task, outer_step, peaks
from fewshot.episodes import Episodes
from fewshot.experiment.build import instantiate_node
from fewshot.experiment.cli import format_error, main
from fewshot.report.records import code, device_name, environment
from fewshot.tasks.sampler import Sampler
from fewshot.training.optimizer import clipped

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


def learner_of(net: DictConfig, first_order: bool, device: torch.device) -> Maml:
    """MAML on the network, initialised alike for every engine."""
    torch.manual_seed(0)
    backbone = instantiate_node(net.network, shape=tuple(net.shape), way=net.way).to(device)
    return Maml(
        backbone, inner_lr=0.01, inner_steps=net.inner_steps, test_steps=net.inner_steps, first_order=first_order,
        inner_loss="mean", outer_loss="mean",
    )  # fmt: skip


def bench_maml(cfg: DictConfig, name: str, net: DictConfig, device: torch.device, peak: float) -> list[Row]:
    """Rows of MAML and FOMAML, every parameter adapted, which is what learn2learn does: training with each engine."""
    rows = []
    episodes = random_episodes(net, device)
    for first_order in cfg.first_order:
        contenders: dict[str, Candidate] = {}
        for engine in cfg.engines or net.engines:
            learner = learner_of(net, first_order, device)
            step = outer_step(learner, *learner.init(), Engine(engine), lambda: episodes)
            auto = " (auto)" if Engine("auto").method(episodes) == engine else ""
            contenders[engine + auto] = Candidate(step, net.meta_batch, device)
        learner = learner_of(net, first_order, device)
        flops = flops_of_task(learner, learner.init()[0], episodes[0])
        take_turns(cfg, contenders)
        head = {"network": name, "what": f"{'first' if first_order else 'second'} order"}
        rows += _rows(head, contenders, flops / peak)
    return rows


def bench_leo(cfg: DictConfig, name: str, net: DictConfig, device: torch.device, peak: float) -> list[Row]:
    """Rows of LEO on random features: training, and evaluation with each number of queries per class."""
    torch.manual_seed(0)
    offsets = torch.arange(0, net.classes * net.per_class + 1, net.per_class)
    features = torch.randn(net.classes * net.per_class, net.dim)
    bank = Bank(features, offsets, tuple(map(str, range(net.classes))), "train", "random", {}).to(device)
    settings = OmegaConf.load(CONF / "algorithm/leo.yaml").algorithm.learner
    network = Identity((net.dim,), net.way)
    learner = Leo(network, **{key: value for key, value in settings.items() if key != "_target_"})
    params = {name: value.to(device) for name, value in learner.init()[0].items()}
    rows = []
    for query in (None, *net.test_queries):
        sampler = Sampler(bank, net.way, net.shot, net.query if query is None else query, 0)
        contenders = {}
        for engine in cfg.engines or net.engines:
            if query is None:
                turns = iter(range(0, 1 << 60, net.meta_batch))
                draw = partial(_next_episodes, sampler, turns, net.meta_batch)
                own = {name: value.clone() for name, value in params.items()}
                clip = partial(clipped, element=0.1, norm=0.1)
                contenders[engine] = Candidate(
                    outer_step(learner, own, {}, Engine(engine), draw, clip), net.meta_batch, device
                )
            elif engine == "loop":
                turns = iter(range(1 << 60))
                contenders[engine] = Candidate(partial(_evaluate_one, learner, params, sampler, turns), 1, device)
            elif engine == "vmap":
                run = partial(evaluate, learner, params, {}, sampler, 200, transductive=False, engine=Engine(engine))
                contenders[engine] = Candidate(run, 200, device)
        if not contenders:  # evaluation by `compiled` is that by `vmap`
            continue
        take_turns(cfg, contenders)
        what = "training" if query is None else f"evaluation, {query} queries"
        share = flops_of_task(learner, params, sampler.episodes(0, 1)[0]) / peak if query is None else None
        rows += _rows({"network": name, "what": what}, contenders, share)
    return rows


def _next_episodes(sampler: Sampler, firsts: Any, count: int) -> Episodes:
    return sampler.episodes(next(firsts), count)


def _evaluate_one(learner: Leo, params: dict[str, torch.Tensor], sampler: Sampler, firsts: Any) -> float:
    task = sampler.episodes(next(firsts), 1)[0]
    return score(query_outputs(learner, params, {}, task, False), task.query_y).item()


def take_turns(cfg: DictConfig, contenders: Mapping[str, Candidate]) -> None:
    """A first step, memory, then rounds, of all; learn2learn keeps of freed memory what glibc by itself does."""
    turns = [lambda each: each.step(), Candidate.measure_memory, *[lambda each: each.round(cfg.seconds)] * cfg.rounds]
    for turn in turns:
        for engine, contender in contenders.items():
            tune_malloc(as_glibc_does=engine == "learn2learn")
            turn(contender)


def _rows(head: Row, contenders: Mapping[str, Candidate], share: float | None) -> list[Row]:
    base = median(next(iter(contenders.values())).rates)
    return [
        {
            **head,
            "engine": engine,
            "tasks/s": _rate(median(contender.rates)),
            "times": f"{median(contender.rates) / base:.2f}",
            "of peak": "" if share is None else f"{share * median(contender.rates):.1%}",
            "peak MiB": f"{contender.memory / 2**20:.0f}",
            "tasks/s of each round": " ".join(map(_rate, contender.rates)),
        }
        for engine, contender in contenders.items()
    ]


def _rate(rate: float) -> str:
    return f"{rate:.1f}" if rate >= 10 else f"{rate:.3g}"


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
            for turn in range(-net.warm, cfg.rounds * net.quarter_turns):
                start = perf_counter()
                sampler.episodes(turn % net.quarter_turns * net.meta_batch, net.meta_batch)
                seconds += [perf_counter() - start] * (turn >= 0)
            row = {"bank": f"{name}, {shape[0]:,} images, {prod(shape) / 1e9:.1f} GB"}
            row["opened in ms"] = f"{1e3 * opened:.1f}"
            row[f"{net.meta_batch} episodes in ms"] = f"{1e3 * median(seconds):.1f}"
            row["slowest"] = f"{1e3 * max(seconds):.1f}"
            rows.append(row | {"peak MiB": round(peak_memory_bytes(torch.device("cpu")) / 2**20)})
            del sampler  # to unmap its file is no part of opening the next
    return rows


def bench_network(cfg: DictConfig, name: str) -> tuple[list[Row], dict[str, float]]:
    """All rows of one network; the threads that it had, and the device's peaks meanwhile."""
    device, net = pick_device(cfg.device), cfg.networks[name]
    if "banks" in net:
        return bench_sampling(cfg, net), {"threads": torch.get_num_threads()}
    tune_malloc(one_arena=not is_small(prod(net.get("shape", [1]))))
    found = peaks(device, cfg.seconds)
    set_single_threaded(net.way == 1)
    found["threads"] = torch.get_num_threads()
    bench_one: Callable[..., list[Row]] = bench_leo if "test_queries" in net else bench_maml
    return bench_one(cfg, name, net, device, found["flops"]), found


def bench(cfg: DictConfig) -> None:
    timed = [name for name, net in cfg.networks.items() if "banks" not in net]
    if cfg.network not in (*cfg.networks, "all"):
        raise FewshotError(f"network={cfg.network}: choose one of {', '.join(cfg.networks)}, all")
    device = pick_device(cfg.device)
    rows: list[Row] = []
    networks: dict[str, dict[str, float]] = {}
    failed: list[str] = []
    for name in timed if cfg.network == "all" else [cfg.network]:
        # A process of its own for each: what one network asks of the C library's heap cannot be undone for the next.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own_process:
            try:
                part, networks[name] = own_process.submit(bench_network, cfg, name).result()
                rows += part
            except BrokenProcessPool:
                failed.append(f"network={name}: its process was killed, most often for want of memory")
            except Exception as error:  # whatever it is, the rows of the others are kept
                failed.append(f"network={name}: {format_error(error)}")
    if rows:
        print(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))
        print(f"\n{device_name(device)}, torch {torch.__version__}")
    for name, found in networks.items():
        about = f"{name}: {found['threads']} threads"
        if "flops" in found:
            about += f"; peaks of the device: {found['flops'] / 1e9:,.0f} GFLOP/s, {found['bytes'] / 1e9:,.0f} GB/s"
        print(about)
    if cfg.out and rows:
        record = {
            "format": 2,
            "bench": rows,
            "networks": networks,
            "device": device_name(device),
            "code": code(),
            "environment": environment(),
        }
        write_atomically(Path(cfg.out), (json.dumps(record, indent=1) + "\n").encode())
    if failed:
        raise FewshotError("; ".join(failed))


if __name__ == "__main__":
    main(bench, "bench")
