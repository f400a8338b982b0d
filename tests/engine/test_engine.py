"""The engine: vmap, loop, compiled and learn2learn give one gradient, in any chunks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from fewshot.algorithms.learner import Tensors, override_test_steps
from fewshot.algorithms.maml import MAML
from fewshot.core.errors import FewshotError
from fewshot.engine import engine as engines
from fewshot.engine.engine import LONG, Engine
from fewshot.engine.reduce import MetaGradient
from fewshot.episodes import Episodes

Make = Callable[..., Any]

# All meta-parameters of these are the backbone's.
ON_A_BACKBONE = ("maml", "fomaml", "reptile-sequential", "reptile-shared", "reptile-sgd")

pytestmark = pytest.mark.usefixtures("float64")

both_engines = pytest.mark.parametrize("engine", ["vmap", "loop"])


@pytest.fixture(scope="module")
def learn2learn() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import brings gym and pkg_resources, which warn about themselves
        return pytest.importorskip("learn2learn")


def relative_error(mine: Tensors, theirs: Tensors) -> float:
    assert mine.keys() == theirs.keys()
    size = sum(float(value.square().sum()) for value in theirs.values()) ** 0.5
    gap = sum(float((mine[name] - theirs[name]).square().sum()) for name in theirs) ** 0.5
    assert size > 1e-6
    return gap / size


def assert_same(mine: MetaGradient, theirs: MetaGradient) -> None:
    assert relative_error(mine.gradient, theirs.gradient) < 1e-10
    torch.testing.assert_close(mine.gradient, theirs.gradient, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(mine.loss, theirs.loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mine.score, theirs.score)
    torch.testing.assert_close(mine.state, theirs.state, rtol=1e-9, atol=1e-12)


def outer(
    learner: Any, episodes: Episodes, name: str, chunk: int | None = None, state: Tensors | None = None
) -> MetaGradient:
    params, empty = learner.init()
    return Engine(name, chunk).outer(learner, params, state or empty, episodes)


NETWORKS: dict[str, dict[str, Any]] = {
    "stride": {"downsample": "stride", "readout": "mean"},
    "max_pool": {"downsample": "max_pool", "pool": "same", "adapt_norm": False},
    "no scale": {"norm_scale": False, "adapt_norm": False},
    "no norm": {"norm": "none"},
}


# One gradient


@pytest.mark.parametrize(
    ("name", "network", "many"),
    [
        *(("maml", *case) for case in (("stride", 0), ("stride", 64), ("no scale", 0), ("no norm", 0))),
        *((name, "max_pool", 64) for name in ("maml", "fomaml", "reptile-shared")),
    ],
)
def test_vmap_and_loop_give_the_same_gradient(
    monkeypatch: pytest.MonkeyPatch,
    make_conv4: Make,
    make_learner: Make,
    make_episodes: Make,
    name: str,
    network: str,
    many: int,
):
    monkeypatch.setattr("fewshot.backbones.convolution.MANY_IMAGES", many)  # 0: by patches
    learner = make_learner(name, make_conv4(**NETWORKS[network]), inner_steps=2)
    episodes = make_episodes(2)
    vmap, loop = (outer(learner, episodes, engine) for engine in ("vmap", "loop"))
    # Adam divides by moments down to 1e-8, and with them rounding: how torch splits its sums among threads shows.
    bound = 1e-9 if name.startswith("reptile") and learner.adam else 1e-10
    assert relative_error(vmap.gradient, loop.gradient) < bound
    torch.testing.assert_close(vmap.loss, loop.loss)
    torch.testing.assert_close(vmap.score, loop.score)


@pytest.mark.parametrize(
    ("network", "inner_loss", "first_order"),
    [
        ("stride", "mean", False),
        ("stride", "mean", True),
        ("max_pool", "per_shot", False),
        ("no scale", "mean", False),
        ("no norm", "per_shot", False),
        ("mlp", "mean", False),
        ("mlp", "mean", True),
    ],
)
def test_learn2learn_gives_the_same_gradient(
    learn2learn: ModuleType,
    make_conv4: Make,
    make_mlp: Make,
    make_learner: Make,
    make_episodes: Make,
    network: str,
    inner_loss: str,
    first_order: bool,
):
    backbone = make_mlp() if network == "mlp" else make_conv4(**NETWORKS[network] | {"adapt_norm": True})
    learner = make_learner("maml", backbone, inner_steps=3, inner_loss=inner_loss, first_order=first_order)
    episodes = make_episodes(2)
    theirs = outer(learner, episodes, "learn2learn")
    for engine in ("vmap", "loop"):
        assert_same(outer(learner, episodes, engine), theirs)


@pytest.mark.parametrize("name", [*ON_A_BACKBONE, "meta_sgd"])
def test_every_engine_gives_the_same_gradient_of_a_regression(
    learn2learn: ModuleType, make_regression: Make, make_learner: Make, name: str
):
    backbone, episodes = make_regression()
    learner = make_learner(name, backbone)
    results = [outer(learner, episodes, engine) for engine in ("vmap", "loop")]
    if name in ("maml", "fomaml"):
        results.append(outer(learner, episodes, "learn2learn"))
    for result in results[1:]:
        assert relative_error(result.gradient, results[0].gradient) < 1e-9
        torch.testing.assert_close(result.loss, results[0].loss)
        torch.testing.assert_close(result.score, results[0].score)


def test_chunks_make_no_difference(make_learner: Make, make_episodes: Make, trained_algorithm: str):
    learner, episodes = make_learner(trained_algorithm), make_episodes(3)
    whole = outer(learner, episodes, "vmap", 9)
    for engine, chunk in (("vmap", 2), ("loop", None)):
        assert_same(outer(learner, episodes, engine, chunk), whole)


@pytest.mark.parametrize(("engine", "chunk"), [("vmap", None), ("vmap", 2), ("loop", None)])
def test_a_mapped_function_gives_its_results_in_the_order_of_the_tasks(
    make_learner: Make, make_episodes: Make, engine: str, chunk: int | None
):
    episodes = make_episodes(5)
    results = Engine(engine, chunk).map(lambda _, task: task.query_x.sum((1, 2, 3)), make_learner("nearest"), episodes)
    torch.testing.assert_close(results, episodes.query_x.sum((2, 3, 4)))


def test_threads_run_a_learner_as_it_is_set_at_each_call(
    make_learner: Make, make_episodes: Make, monkeypatch: pytest.MonkeyPatch
):
    learner, episodes, engine = make_learner("maml"), make_episodes(5), Engine("loop")
    params, state = learner.init()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for steps in (2, 0, 3):
        with override_test_steps(learner, steps):
            adapted = engine.map(lambda learner, task: learner.adapt(params, state, task), learner, episodes)
            for number, task in enumerate(episodes):
                torch.testing.assert_close(
                    {n: v[number] for n, v in adapted.items()}, learner.adapt(params, state, task)
                )


def test_nothing_that_goes_in_is_changed(make_learner: Make, make_episodes: Make, trained_algorithm: str):
    learner, episodes = make_learner(trained_algorithm), make_episodes(2)
    params, state = learner.init()
    inputs = [params, state, dict(learner.backbone.named_parameters())]
    before = [{name: value.detach().clone() for name, value in tensors.items()} for tensors in inputs]
    for engine in ("vmap", "loop"):
        first, again = (Engine(engine).outer(learner, params, state, episodes) for _ in range(2))
        for tensors, kept in zip(inputs, before, strict=True):
            assert all(torch.equal(tensors[name], kept[name]) for name in kept)
        for name, value in first.gradient.items():
            assert torch.equal(value, again.gradient[name])
            assert not value.requires_grad


@both_engines
@pytest.mark.parametrize("name", ON_A_BACKBONE)
def test_the_parameters_that_are_given_count_and_not_those_of_the_backbone(
    make_learner: Make, make_episodes: Make, name: str, engine: str
):
    learner, episodes = make_learner(name), make_episodes(2)
    params, state = learner.init()
    elsewhere = {name: value + 0.1 * torch.randn_like(value) for name, value in params.items()}
    method = Engine(engine)
    here = method.outer(learner, params, state, episodes)
    there = method.outer(learner, elsewhere, state, episodes)
    learner.backbone.load_state_dict(elsewhere)
    assert relative_error(here.gradient, there.gradient) > 1e-3
    assert relative_error(there.gradient, outer(learner, episodes, engine).gradient) < 1e-12


# Threads and methods


@pytest.mark.parametrize("engine", ["auto", "loop", "vmap"])
def test_every_engine_puts_a_network_into_eval(make_episodes: Make, engine: str):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(3 * 42 * 42, 3))
    episodes = make_episodes(2, shape=(3, 42, 42))
    first, again = (outer(MAML(network.train()), episodes, engine).loss for _ in range(2))
    assert torch.equal(first, again) and not network.training


def test_the_loop_leaves_torchs_threads_alone(make_learner: Make, make_episodes: Make):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        episodes = make_episodes(3)
        threaded = outer(make_learner("maml"), episodes, "loop")
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert_same(threaded, outer(make_learner("maml"), episodes, "loop"))
    finally:
        torch.set_num_threads(before)


def test_large_learners_run_task_by_task_on_all_cores(
    make_learner: Make, make_episodes: Make, monkeypatch: pytest.MonkeyPatch
):
    learner, episodes = make_learner("maml"), make_episodes(3)
    params, state = learner.init()
    threads: set[int] = set()
    mean_outer = engines.mean_outer

    def noted(*args: Any) -> MetaGradient:
        threads.add(threading.get_ident())
        return mean_outer(*args)

    monkeypatch.setattr(engines, "mean_outer", noted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    by_size = []
    for large in (engines.LARGE, 0):
        monkeypatch.setattr(engines, "LARGE", large)
        threads.clear()
        by_size.append(Engine("loop").outer(learner, params, state, episodes))
        assert (threading.get_ident() in threads) == (large == 0)
    assert_same(*by_size)


def test_auto_is_vmap_for_small_examples_and_loop_for_large_ones_on_cpu(make_episodes: Make):
    small, large = (make_episodes(1, way=2, shot=1, query=1, shape=shape) for shape in ((1, 28, 28), (3, 84, 84)))
    assert Engine().method(small) == "vmap"
    assert Engine().method(large) == "loop"
    assert Engine().method(make_episodes(1, way=2, shot=1, query=1, shape=(2048,))) == "vmap"
    assert Engine("vmap").method(large) == "vmap"
    assert Engine().method(large.to("meta")) == "vmap"  # a device other than the CPU
    for side, engine in ((40, "vmap"), (41, "loop")):
        assert Engine().method(make_episodes(1, way=2, shot=1, query=1, shape=(1, 40, side))) == engine


def test_auto_is_loop_for_large_learners_on_cpu(
    make_learner: Make, make_episodes: Make, monkeypatch: pytest.MonkeyPatch
):
    learner, episodes = make_learner("maml"), make_episodes(1)
    count = sum(value.numel() for value in learner.backbone.parameters())
    for large, engine in ((count, "vmap"), (count - 1, "loop")):
        monkeypatch.setattr(engines, "LARGE", large)
        assert Engine().method(episodes, learner) == engine


def test_unknown_engines_and_empty_chunks_are_refused():
    with pytest.raises(FewshotError, match="engine=jax: choose one of auto, vmap, compiled, loop, learn2learn"):
        Engine("jax")
    with pytest.raises(FewshotError, match="task_chunk=0"):
        Engine("vmap", 0)


@pytest.mark.parametrize(
    ("name", "adapt_norm", "message"),
    [
        ("reptile-sequential", True, "only for maml and fomaml"),
        ("reptile-sgd", True, "only for maml and fomaml"),
        ("meta_sgd", True, "only for maml and fomaml"),
        ("maml", False, "adapt_norm=true"),
    ],
)
def test_learn2learn_refuses_what_it_cannot_do_in_one_line(
    make_conv4: Make, make_learner: Make, make_episodes: Make, name: str, adapt_norm: bool, message: str
):
    with pytest.raises(FewshotError, match=message) as caught:
        outer(make_learner(name, make_conv4(adapt_norm=adapt_norm)), make_episodes(1), "learn2learn")
    assert "\n" not in str(caught.value)


# torch.compile


def test_a_compiled_step_gives_the_same_gradient(
    compiling: Make, make_mlp: Make, make_regression: Make, make_learner: Make
):
    _, episodes = make_regression()
    learner = make_learner("maml", make_mlp((1,), 1, norm="none", widths=()), inner_steps=1)  # little to compile
    engine, (params, state) = Engine("compiled"), learner.init()
    with compiling():
        first = engine.outer(learner, params, state, episodes)
    assert_same(first, outer(learner, episodes, "vmap"))
    again = engine.outer(learner, params, state, episodes)
    assert all(torch.equal(value, again.gradient[name]) for name, value in first.gradient.items())


@pytest.mark.slow
def test_a_compiled_step_of_first_order_takes_norms(
    compiling: Make, make_conv4: Make, make_learner: Make, make_episodes: Make
):
    network = make_conv4(shape=(1, 2, 2), way=2)
    network.blocks = network.blocks[:1]  # little to compile
    learner, episodes = make_learner("fomaml", network, inner_steps=1), make_episodes(2, way=2, shape=(1, 2, 2))
    with compiling():
        assert_same(outer(learner, episodes, "compiled"), outer(learner, episodes, "vmap"))


@pytest.mark.slow
def test_a_compiled_step_follows_the_stages_of_a_training(
    compiling: Make, make_mlp: Make, make_regression: Make, make_learner: Make
):
    _, episodes = make_regression()
    network = make_mlp((1,), 1, norm="none", widths=())
    learner = make_learner("maml_plus_plus", network, inner_steps=2, multi_step_until=0.5)
    engine, (params, state), steps = Engine("compiled"), learner.init(), []
    for step in (0, 9, 0):
        learner.begin_step(step, 10)
        with compiling():
            steps.append(engine.outer(learner, params, state, episodes))
        assert_same(steps[-1], outer(learner, episodes, "vmap"))
    assert relative_error(steps[0].gradient, steps[1].gradient) > 1e-3


@pytest.mark.slow
def test_every_algorithms_compiled_step_gives_the_same_gradient(
    compiling: Make, make_learner: Make, make_episodes: Make, trained_algorithm: str
):
    # Normals are float32 whatever the rest is, and the compiler rounds them otherwise: see the next test.
    drawing = {"deterministic": True} if trained_algorithm == "leo" else {}
    learner, episodes = make_learner(trained_algorithm, **drawing), make_episodes(5)
    for chunk in (None, 2):
        with compiling():
            assert_same(outer(learner, episodes, "compiled", chunk), outer(learner, episodes, "vmap"))


@pytest.mark.slow
def test_a_compiled_step_that_draws_gives_the_same_gradient_up_to_float32(
    compiling: Make, make_learner: Make, make_episodes: Make
):
    learner, episodes = make_learner("leo"), make_episodes(5)
    with compiling():
        compiled = outer(learner, episodes, "compiled")
    vmap = outer(learner, episodes, "vmap")
    assert relative_error(compiled.gradient, vmap.gradient) < 1e-6
    torch.testing.assert_close(compiled.loss, vmap.loss, rtol=1e-6, atol=0)


def test_a_step_that_cannot_be_compiled_is_refused_in_one_line(
    compiling: Make, make_regression: Make, make_learner: Make
):
    class Asking(MAML):
        def outer_loss(self, params: Tensors, task: Episodes) -> tuple[torch.Tensor, torch.Tensor]:
            print(threading.current_thread())  # which no compiler can trace
            return super().outer_loss(params, task)

    backbone, episodes = make_regression()
    learner = make_learner("maml", backbone)
    learner.__class__ = Asking
    with compiling(), pytest.raises(FewshotError, match=r"engine=compiled: .*choose engine=vmap") as caught:
        outer(learner, episodes, "compiled")
    assert "\n" not in str(caught.value)


class TestAutoCompiles:
    @pytest.fixture(autouse=True)
    def _compiler(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("fewshot.engine.engine.has_compiler", lambda: True)

    @pytest.fixture
    def make_task(self, make_mlp: Make, make_learner: Make, make_episodes: Make) -> Make:
        """A learner on an MLP, and two tasks for it."""

        def make(algorithm: str, shape: tuple[int, ...] = (6,)) -> tuple[Any, Episodes]:
            return make_learner(algorithm, make_mlp(shape, 2)), make_episodes(2, way=2, shape=shape)

        return make

    @pytest.mark.parametrize(
        ("shape", "algorithm", "steps", "method"),
        [
            ((6,), "maml", LONG, "compiled"),
            ((6,), "maml", LONG - 1, "vmap"),
            ((6,), "maml_plus_plus", LONG, "vmap"),  # which would be compiled again and again
            ((1, 8, 8), "maml", LONG, "vmap"),
        ],
    )
    def test_auto_compiles_long_trainings_on_vectors(
        self, make_task: Make, shape: tuple[int, ...], algorithm: str, steps: int, method: str
    ):
        learner, episodes = make_task(algorithm, shape)
        assert Engine(steps=steps).method(episodes, learner) == method

    def test_auto_compiles_nothing_without_a_compiler(self, monkeypatch: pytest.MonkeyPatch, make_task: Make):
        monkeypatch.setattr("fewshot.engine.engine.has_compiler", lambda: False)
        learner, episodes = make_task("maml")
        assert Engine(steps=LONG).method(episodes, learner) == "vmap"

    @pytest.mark.parametrize("name", ["maml", "reptile-sequential"])
    def test_auto_goes_on_by_vmap_where_the_compiler_fails(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_task: Make, name: str
    ):
        def fail(*_: object) -> None:
            raise FewshotError(f"engine=compiled: no header for {name}")

        monkeypatch.setattr("fewshot.engine.engine.compiled", lambda step: fail)
        learner, episodes = make_task(name)
        engine, (params, state) = Engine(steps=LONG), learner.init()
        for _ in range(2):
            found, by_vmap = (each.outer(learner, params, state, episodes) for each in (engine, Engine("vmap")))
            assert all(torch.equal(value, by_vmap.gradient[name]) for name, value in found.gradient.items())
        assert capsys.readouterr().err.count(f"takes vmap after all: engine=compiled: no header for {name}") == 1
        assert engine.method(episodes, learner) == "vmap"

    def test_auto_stops_compiling_where_a_learner_changes_its_settings(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_task: Make
    ):
        monkeypatch.setattr("fewshot.engine.engine.compiled", lambda step: step)
        learner, episodes = make_task("maml")
        engine, (params, state) = Engine(steps=LONG), learner.init()
        for steps in (1, 2, 3):
            learner.inner_steps = steps
            assert_same(engine.outer(learner, params, state, episodes), outer(learner, episodes, "vmap"))
            assert engine.compiles == (steps == 1)
        assert "the learner changes its settings" in capsys.readouterr().err


# Memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("full"),
        RuntimeError("[...] DefaultCPUAllocator: full"),
        RuntimeError("could not create a primitive"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_tasks_that_do_not_fit_into_memory_are_halved_until_they_do_and_that_is_remembered(
    make_learner: Make, make_episodes: Make, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    learner, episodes = make_learner("maml"), make_episodes(5)
    params, state = learner.init()
    whole, tried = outer(learner, episodes, "vmap"), []
    lift, releases = engines.lift_all, []

    def with_room_for_two(function: Callable[..., Any], group: Episodes) -> Any:
        tried.append(len(group))
        if len(group) > 2:
            raise error
        return lift(function, group)

    monkeypatch.setattr(engines, "lift_all", with_room_for_two)
    monkeypatch.setattr(engines, "release_memory", lambda: releases.append(len(tried)))  # which takes a second
    engine = Engine("vmap")
    assert_same(engine.outer(learner, params, state, episodes), whole)
    assert (tried, releases) == ([5, 3, 2, 2, 1], [1, 2])
    for sizes in ([5, 3, 2, 2, 1], [2, 2, 1]):  # other functions take other memory: found anew for each of the two
        tried.clear()
        results = engine.map(lambda _, task: task.query_x.sum(), learner, episodes)
        torch.testing.assert_close(results, episodes.query_x.sum((1, 2, 3, 4)))
        assert tried == sizes
    tried.clear()
    assert_same(engine.outer(learner, params, state, episodes), whole)
    assert (tried, engine.task_chunk) == ([2, 2, 1], None)


def test_one_task_that_does_not_fit_is_an_error(make_learner: Make, make_episodes: Make):
    def too_large(_: Any, task: Episodes) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        Engine("vmap", 1).map(too_large, make_learner("nearest"), make_episodes(2))


# Four tasks on large images, in less and less memory until they do not fit at once: the chunk that fitted, and the
# gradient's deviation from that of single tasks.
LITTLE_MEMORY = """
import resource
from pathlib import Path
import torch
from fewshot.algorithms.maml import MAML
from fewshot.backbones.conv4 import Conv4
from fewshot.engine.engine import Engine
from fewshot.episodes import Episodes
torch.manual_seed(0), torch.set_default_dtype(torch.float64), torch.set_num_threads(1)
network = Conv4((3, 84, 84), 5, filters=4, downsample="max_pool", pool="valid", readout="flatten", norm="batch",
                norm_scale=True, norm_eps=1e-3, adapt_norm=True, conv_init="xavier", head_init="xavier")
learner = MAML(network, inner_lr=0.01, inner_steps=10, test_steps=0, first_order=False, inner_loss="mean",
               outer_loss="mean")
x, y = torch.rand(4, 5, 3, 84, 84), torch.arange(5).expand(4, -1)
tasks, (params, state) = Episodes(x, y, x, y, torch.arange(4)), learner.init()
single = Engine("vmap", 1).outer(learner, params, state, tasks).gradient
data = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
for room in (256, 192, 128):
    resource.setrlimit(resource.RLIMIT_DATA, (data + room * 2**20, resource.RLIM_INFINITY))
    engine = Engine("vmap")
    chunked = engine.outer(learner, params, state, tasks).gradient
    if engine.fitted_chunk:
        break
worst = max(float((chunked[name] - value).norm() / (value.norm() + 1e-9)) for name, value in single.items())
print(engine.fitted_chunk.get("outer", 4), worst)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits on a process's memory are Linux's")
def test_second_order_stays_within_a_memory_limit():
    # Large pages and arenas of other threads would count as data that nobody uses.
    env = os.environ | {"THP_MEM_ALLOC_ENABLE": "0", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY], capture_output=True, text=True, env=env, timeout=120, check=True
    )
    chunk, worst = map(float, done.stdout.split())
    assert 1 <= chunk < 4
    assert worst < 1e-9
