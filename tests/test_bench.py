"""tools/bench.py: what it prints is what it saves, and what breaks in a network's own process is said in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent / "tools"


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "bench.py"), "rounds=2", "seconds=0.02", "device=cpu", *words]
    env = os.environ | {"PYTHONPATH": str(TOOLS.parent)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=300)


def test_engines_are_held_against_the_first_and_the_record_has_what_is_printed(tmp_path: Path):
    saved = tmp_path / "bench.json"
    done = bench("network=sinusoid", "engines=[loop,vmap]", f"out={saved}")
    assert done.returncode == 0, done.stderr
    record = json.loads(saved.read_text())
    rows = record["bench"]
    assert [(row["what"], row["engine"].split()[0]) for row in rows] == [
        (order, engine) for order in ("second order", "first order") for engine in ("loop", "vmap")
    ]
    for loop, vmap in zip(rows[::2], rows[1::2], strict=True):
        assert loop["times"] == "1.00"
        ratio = float(vmap["tasks/s"]) / float(loop["tasks/s"])
        assert abs(float(vmap["times"]) - ratio) < 0.01 * ratio
        assert all(len(row["tasks/s of each round"].split()) == 2 for row in (loop, vmap))
    for row in rows:
        assert all(word in done.stdout for word in (row["tasks/s"], row["peak MiB"], row["of peak"]))
    assert record["networks"]["sinusoid"]["threads"] == 1
    assert "sinusoid: 1 threads; peaks of the device: " in done.stdout


def test_what_a_network_cannot_be_timed_with_is_one_line(tmp_path: Path):
    done = bench("network=sinusoid", "engines=[jax]", f"out={tmp_path}/bench.json")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: network=sinusoid: engine=jax: choose one of")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
