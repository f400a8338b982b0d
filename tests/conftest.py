"""Fixtures that several tests share: a small bank in which learning is possible, small backbones and learners."""

from __future__ import annotations

import copy
import gc
import json
import logging
import os
import runpy
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import DictConfig
from torch import nn

from fewshot.algorithms.baseline import Baseline
from fewshot.algorithms.leo import LEO
from fewshot.algorithms.maml import MAML
from fewshot.algorithms.maml_plus_plus import MAMLPlusPlus
from fewshot.algorithms.matching_net import MatchingNet
from fewshot.algorithms.nearest import Nearest
from fewshot.algorithms.protonet import ProtoNet
from fewshot.algorithms.r2d2 import R2D2
from fewshot.algorithms.reptile import Reptile
from fewshot.backbones.conv4 import Conv4
from fewshot.backbones.identity import Identity
from fewshot.backbones.mlp import MLP
from fewshot.core.paths import CONF
from fewshot.core.progress import print_note
from fewshot.data.bank import Bank, Split, fingerprint
from fewshot.data.datasets import glyphs
from fewshot.episodes import Episodes
from fewshot.experiment.recipes import complete
from fewshot.tasks import functions
from fewshot.tasks.regression import Regression
from fewshot.tasks.sampler import Sampler

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # the many processes of the tests share compiled modules
os.fsync = lambda file: None  # slow, and only needed if the machine dies too
gc.freeze()  # a collection, as before each measurement of memory, need not look through all modules
gc.set_threshold(20_000)  # the many small objects of configurations start fewer of them


def read_once() -> None:
    """Let Hydra parse each file of conf/ and of its own once in a process: tests compose thousands of them."""
    Plugins.instance()  # executes the modules of Hydra's sources anew, and registers the classes of that
    parsed: dict[str, Any] = {}

    def remember(source: Any) -> None:
        parse = source.load_config

        def load_config(self: Any, config_path: str) -> Any:
            path = f"{self.path}/{config_path}"
            if not path.startswith((f"{CONF}/", "hydra.conf/")):
                return parse(self, config_path)
            if path not in parsed:
                parsed[path] = parse(self, config_path)
            return copy.deepcopy(parsed[path])

        source.load_config = load_config

    for scheme in ("file", "pkg"):
        remember(SourcesRegistry.instance().resolve(scheme))
    # Each composition copies its sources, and with them the one store of this process, which copies what it gives.
    setattr(ConfigStore, "__deepcopy__", lambda self, memo: self)  # noqa: B010


read_once()

TOOLS = Path(__file__).resolve().parent.parent / "tools"

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

TRAINED = (
    "maml", "fomaml", "meta_sgd", "maml_plus_plus", "anil", "boil", "reptile-sequential", "reptile-shared",
    "reptile-sgd", "leo", "protonet", "r2d2", "matching_net", "matching_net-context",
)  # fmt: skip

CONV4: dict[str, Any] = {
    "filters": 4, "downsample": "stride", "pool": "valid", "readout": "flatten", "norm": "batch", "norm_scale": True,
    "norm_eps": 1e-3, "adapt_norm": True, "conv_init": "xavier", "head_init": "xavier",
}  # fmt: skip
MLP_: dict[str, Any] = {
    "widths": (7, 6), "norm": "batch", "norm_scale": True, "norm_eps": 1e-3, "adapt_norm": True, "head_init": "xavier",
}  # fmt: skip
MAML_SETTINGS: dict[str, Any] = {
    "inner_lr": 0.1, "inner_steps": 2, "test_steps": 3, "first_order": False, "inner_loss": "mean",
    "outer_loss": "mean",
}  # fmt: skip
REPTILE_SETTINGS: dict[str, Any] = {
    "inner_lr": 0.01, "inner_steps": 3, "inner_batch": 4, "test_steps": 4, "test_batch": 3, "inner_optimizer": "adam",
    "inner_loss": "sum", "adam_state": "sequential",
}  # fmt: skip
LEO_SETTINGS: dict[str, Any] = {
    "latent": 6, "latent_steps": 3, "finetune_steps": 2, "latent_lr": 1.0, "finetune_lr": 0.01, "dropout": 0.3,
    "kl_weight": 0.1, "encoder_penalty_weight": 0.1, "l2_weight": 0.01, "orthogonality_weight": 0.05,
    "prior": "encoder", "deterministic": False,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "maml": {},
    "fomaml": {"first_order": True},
    "meta_sgd": {"learn_inner_lr": True},
    "maml_plus_plus": {"inner_lr": 0.1, "inner_steps": 3, "test_steps": 4},
    "anil": {"adapted": "head"},
    "boil": {"adapted": "body"},
    "protonet": {},
    "r2d2": {"regularization": 0.3, "learn_regularization": True, "scale": 2.0},
    "matching_net": {"scale": 5.0, "test_steps": 2},
    "matching_net-context": {"scale": 5.0, "context": True, "context_steps": 2},
    "leo": {},
    "reptile-sequential": {},
    "reptile-shared": {"adam_state": "shared"},
    "reptile-sgd": {"inner_optimizer": "sgd"},
}
# Learners on features as they are, and some of those on a network.
ON_FEATURES: dict[str, Callable[..., Any]] = {
    "nearest": lambda inputs, **_: Nearest(inputs),  # it takes no steps
    "baseline": partial(Baseline, test_steps=2),
    "leo": lambda inputs, **choices: LEO(inputs, **(LEO_SETTINGS | choices)),
}
ON_NETWORKS: dict[str, Callable[..., Any]] = {
    "protonet": ProtoNet, "r2d2": R2D2, "matching_net": MatchingNet, "maml_plus_plus": MAMLPlusPlus,
}  # fmt: skip


def composed(*overrides: str, completed: bool = True) -> DictConfig:
    """The configuration of tools/train.py; without `completed` as Hydra composes it, without recipe and protocols."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides))
    if completed:
        complete(cfg, overrides)
    return cfg


def find_test(folder: str | Path) -> Path:
    """The folder of the only record below a folder."""
    (record,) = Path(folder).rglob("record.json")
    return record.parent


def read_test(folder: str | Path) -> dict[str, Any]:
    """The only record below a folder."""
    return json.loads((find_test(folder) / "record.json").read_text())


def pytest_xdist_setupnodes() -> None:
    """Workers that share the cores (`-n auto`), and the processes that they start, take one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def float64() -> Iterator[None]:
    """Everything that is made during the test is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def compiling() -> Callable[[], AbstractContextManager[None]]:
    """Makes a context without torch.compile's warnings; skips where there is no compiler."""
    if not shutil.which("g++") and not shutil.which("clang++"):
        pytest.skip("torch.compile needs a C++ compiler")

    @contextmanager
    def without_warnings() -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield

    return without_warnings


@pytest.fixture(params=("nearest", "baseline", *TRAINED))
def algorithm(request: pytest.FixtureRequest) -> str:
    """Each algorithm in turn."""
    return request.param


@pytest.fixture(params=TRAINED)
def trained_algorithm(request: pytest.FixtureRequest) -> str:
    """Each algorithm that has an outer gradient, in turn."""
    return request.param


@pytest.fixture
def make_bank() -> Callable[..., Bank]:
    """A function that makes a bank; each class is a random pattern under noise."""

    def make(
        counts: tuple[int, ...] = (9, 7, 8, 10, 7),
        shape: tuple[int, ...] = (1, 8, 8),
        seed: int = 0,
        split: str = "train",
        noise: int = 60,
    ) -> Bank:
        random = np.random.RandomState(seed)
        patterns = random.randint(0, 256 - noise, size=(len(counts), *shape))
        items = np.repeat(patterns, counts, axis=0) + random.randint(0, noise, size=(sum(counts), *shape))
        data = Split(items.astype(np.uint8), list(counts), [f"class {i}" for i in range(len(counts))])
        offsets = torch.tensor([0, *counts]).cumsum(0)
        examples, about = torch.from_numpy(data.examples), {"dataset": "patterns"}
        return Bank(examples, offsets, tuple(data.names), split, fingerprint(data), about)

    return make


@pytest.fixture
def make_episodes(make_bank: Callable[..., Bank]) -> Callable[..., Episodes]:
    """A function that makes `count` episodes in the default dtype."""

    def make(
        count: int = 5, way: int = 3, shot: int = 2, query: int = 2, shape: tuple[int, ...] = (1, 8, 8), **bank: Any
    ) -> Episodes:
        sampler = Sampler(make_bank(shape=shape, **bank), way, shot, query, seed=0)
        return sampler.episodes(0, count).to(torch.get_default_dtype())

    return make


@pytest.fixture
def make_conv4() -> Callable[..., Conv4]:
    """A Conv-4 with 4 filters and norms; its conv biases, offsets and scales are not at their start values."""

    def make(shape: tuple[int, ...] = (1, 8, 8), way: int = 3, **choices: Any) -> Conv4:
        return _seeded(lambda: _shaken(Conv4(shape, way, **(CONV4 | choices))))

    return make


@pytest.fixture
def make_mlp() -> Callable[..., MLP]:
    """An MLP with two hidden layers and norms; its offsets and scales are not at their start values."""

    def make(shape: tuple[int, ...] = (1, 8, 8), way: int = 3, **choices: Any) -> MLP:
        return _seeded(lambda: _shaken(MLP(shape, way, **(MLP_ | choices))))

    return make


@pytest.fixture
def make_regression(make_mlp: Callable[..., MLP]) -> Callable[..., tuple[MLP, Episodes]]:
    """A network without norms and `count` regression tasks, sines and lines with noise, in the default dtype."""

    def make(count: int = 3, shot: int = 4) -> tuple[MLP, Episodes]:
        families = {
            "sine": {"amplitude": (1, 3), "phase": (0, 3)},
            "line": {"slope": (-1, 1), "intercept": (-1, 1)},
        }
        tasks = Regression(functions.read_functions(families, (-2, 2), 0.1)["train"], shot, 5, seed=0)
        return make_mlp((1,), 1, norm="none"), tasks.episodes(0, count).to(torch.get_default_dtype())

    return make


@pytest.fixture
def make_learner(make_conv4: Callable[..., Conv4]) -> Callable[..., Any]:
    """A learner by the name of `algorithm`, on a small Conv-4 unless a backbone is given."""

    def make(name: str, backbone: nn.Module | None = None, **choices: Any) -> Any:
        if name in ON_FEATURES:
            inputs: Any = backbone or Identity((1, 8, 8), 3)
            return _seeded(lambda: ON_FEATURES[name](inputs, **choices))
        backbone, settings = backbone or make_conv4(), VARIANTS[name] | choices
        if name.partition("-")[0] in ON_NETWORKS:
            return _seeded(lambda: ON_NETWORKS[name.partition("-")[0]](backbone, **settings))
        if name in ("maml", "fomaml", "meta_sgd", "anil", "boil"):
            return MAML(backbone, **(MAML_SETTINGS | settings))
        return Reptile(backbone, **(REPTILE_SETTINGS | settings))

    return make


def _seeded(build: Callable[[], T]) -> T:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def _shaken(backbone: M) -> M:
    """One-dimensional parameters start at 0 or 1, where mistakes can hide."""
    with torch.no_grad():
        for value in backbone.parameters():
            if value.dim() == 1:
                value.add_(0.3 * torch.randn_like(value))
    return backbone


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of this process, with the glyphs, which are drawn once for all processes of pytest-xdist."""
    base, folder = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("data")
    drawn = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    glyphs.read_glyphs(drawn / "banks")
    shutil.copytree(drawn / "banks", folder / "banks")
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of weights of torchvision's shufflenet_v2_x0_5 whose running averages are not at their start values."""
    from torchvision import models

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.get_model("shufflenet_v2_x0_5", weights=None)
        model.train()(torch.rand(4, 3, 32, 32))
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(model.state_dict(), path)
    return str(path)


class Outcome(NamedTuple):
    """Exit code, stdout and stderr of a tool that was called in this process."""

    code: int
    out: str
    err: str


@pytest.fixture
def usual_ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal; the background jobs of a shell ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def new_notes() -> None:
    """Forget the notes of other tests: each is printed once in a process, and a process runs many tests."""
    print_note.cache_clear()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], data_dir: Path, tmp_path: Path) -> Any:
    """call("train", "way=5", ...) runs tools/train.py in an empty working folder."""
    monkeypatch.setenv("FEWSHOT_DATA", str(data_dir))
    monkeypatch.chdir(tmp_path)

    def run(tool: str, *words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *words])
        monkeypatch.setattr(logging.root, "handlers", [])  # Hydra's would outlive the stream that they write to
        monkeypatch.setattr(logging.root, "level", logging.WARNING)
        print_note.cache_clear()  # a tool is a process of its own, in which no note was printed yet
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(TOOLS / f"{tool}.py"), run_name="__main__")
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run
