"""tools/bench.py: it saves what it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fewshot.experiment import bench


@pytest.fixture(autouse=True)
def _no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of the machine, which takes half a second and is only printed, is not measured here."""
    monkeypatch.setattr(bench, "product_gigaflops", lambda device: 1.0)


FAST = ("rounds=2", "seconds=0.02", "device=cpu", "engines=[loop,vmap]")


def test_engines_are_compared_with_the_first_and_the_record_has_what_is_printed(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    megabytes = iter(range(100))
    monkeypatch.setattr(bench, "_step_megabytes", lambda step, device: step() or float(next(megabytes)))
    done = call("bench", "network=sinusoid", "adapted=[all,head]", *FAST, "out=bench.json")
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "bench.json").read_text())["bench"]
    assert [(row["order"], row["adapted"], row["engine"], row["of"]) for row in rows] == [
        (order, adapted, engine, "loop")
        for order in ("second", "first")
        for adapted in ("all", "head")
        for engine in ("loop", "vmap (auto)")
    ]
    for loop, *others in (rows[:4], rows[4:]):
        assert loop["times"] == "1.00"
        for row in others:
            ratio = float(row["tasks/s"]) / float(loop["tasks/s"])
            assert abs(float(row["times"]) - ratio) < 0.02 * ratio
    assert [row["MB"] for row in rows] == [str(count) for count in range(8)]
    assert all(row["tasks/s"] in done.out for row in rows)


def test_the_median_of_the_rounds_counts(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rates = iter([10.0, 10.0, 90.0, 20.0, 20.0, 60.0])  # the engines take turns
    monkeypatch.setattr(bench, "steps_per_second", lambda step, device, seconds: next(rates))
    words = ("network=sinusoid", "first_order=[true]", *FAST[2:], "out=bench.json")
    assert call("bench", *words).code == 0
    loop, vmap = json.loads((tmp_path / "bench.json").read_text())["bench"]
    assert [row["tasks/s of each round"] for row in (loop, vmap)] == ["250 2.25e+03 500", "250 500 1.5e+03"]
    assert (loop["tasks/s"], vmap["tasks/s"], vmap["times"]) == ("500", "500", "1.00")


@pytest.mark.parametrize(("rate", "rounds"), [(0.28, 1), (0.4, 3)])
def test_a_long_step_is_timed_once(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, rounds: int
):
    monkeypatch.setattr(bench, "steps_per_second", lambda step, device, seconds: rate)
    assert call("bench", "network=sinusoid", "first_order=[true]", *FAST[2:], "out=bench.json").code == 0
    rows = json.loads((tmp_path / "bench.json").read_text())["bench"]
    assert [len(row["tasks/s of each round"].split()) for row in rows] == [rounds] * 2


def test_products_in_bfloat16_are_timed_beside_the_others(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: set[str] = set()
    products_in = bench.products_in
    monkeypatch.setattr(bench, "products_in", lambda *args: asked.add(args[1]) or products_in(*args))
    done = call("bench", "network=protonet", "networks.protonet.shape=[3,28,28]", "networks.protonet.network.filters=4",
                *FAST[:3], "engines=[loop,bfloat16]", "out=bench.json")  # fmt: skip
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "bench.json").read_text())["bench"]
    assert [row["engine"] for row in rows] == ["loop (auto)", "bfloat16"]
    assert asked == {"float32", "bfloat16"}


def test_libraries_that_are_not_installed_are_left_out_unless_they_are_named(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for module in ("learn2learn.algorithms", "jax", "easyfsl.methods"):
        monkeypatch.setitem(sys.modules, module, None)
    words = ("network=sinusoid", "first_order=[false]", *FAST[:3])
    own = "networks.sinusoid.engines=[learn2learn,jax,easyfsl,loop]"
    done = call("bench", *words, own, "out=bench.json")
    assert done.code == 0, done.err
    assert [row["engine"] for row in json.loads((tmp_path / "bench.json").read_text())["bench"]] == ["loop"]
    assert (done.out + done.err).count("not installed; `uv sync --group") == 3
    for engine in ("learn2learn", "jax", "easyfsl"):
        named = call("bench", *words, f"engines=[{engine},loop]")
        assert named.code == 1
        assert named.err.startswith(f"error: engine={engine}: not installed") and named.err.count("\n") == 1


def test_what_cannot_be_timed_is_refused_in_one_line(call: Any):
    for choices, said in (
        (["network=leo_1shot", "engines=[keras]"], "engine=keras: choose one of"),
        (
            ["network=sinusoid", "engines=[learn2learn]", "adapted=[head]"],
            "adapted=['head']: these engines adapt all",
        ),
    ):
        done = call("bench", *choices)
        assert done.code == 1
        assert done.err.startswith(f"error: {said}") and done.err.count("\n") == 1
