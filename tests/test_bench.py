"""tools/bench.py: it saves what it prints, and a network that fails is named in one line."""

from __future__ import annotations

import json
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

FAST = ("rounds=2", "seconds=0.02", "device=cpu", "engines=[loop,vmap]")


def test_engines_are_compared_with_the_first_and_the_record_has_what_is_printed(call: Any, tmp_path: Path):
    done = call("bench", "network=sinusoid", *FAST, "out=bench.json")
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "bench.json").read_text())["bench"]
    assert [(row["order"], row["engine"].split()[0]) for row in rows] == [
        (order, engine) for order in ("second", "first") for engine in ("loop", "vmap")
    ]
    for loop, vmap in zip(rows[::2], rows[1::2], strict=True):
        assert loop["times"] == "1.00" and vmap["engine"] == "vmap (auto)"
        ratio = float(vmap["tasks/s"]) / float(loop["tasks/s"])
        assert abs(float(vmap["times"]) - ratio) < 0.02 * ratio
        assert all(len(row["tasks/s of each round"].split()) == 2 for row in (loop, vmap))
    assert all(row["tasks/s"] in done.out for row in rows)


def test_the_rows_of_the_other_networks_are_kept_where_one_fails(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Threads in place of processes, which take seconds to start.
    monkeypatch.setattr(futures, "ProcessPoolExecutor", lambda count, mp_context: futures.ThreadPoolExecutor(count))
    others = [f"~networks.{name}" for name in ("leo_5shot", "omniglot", "mini", "resnet12")]
    done = call("bench", "network=all", *FAST, "networks.sinusoid.network.norm=layer", *others, "out=bench.json")
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("error: network=sinusoid: ") and "Traceback" not in done.err
    rows = json.loads((tmp_path / "bench.json").read_text())["bench"]
    assert [(row["network"], row["engine"]) for row in rows] == [("leo_1shot", "loop"), ("leo_1shot", "vmap (auto)")]
