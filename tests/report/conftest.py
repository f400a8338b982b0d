"""What the tests of tables, plots and reports share: records, run folders, and pages of them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from scipy import stats

import fewshot.experiment.config  # noqa: F401  (the types of the configurations)
from fewshot.core.paths import CONF
from fewshot.report.cells import Layout
from fewshot.report.gather import gather_runs
from fewshot.report.page import Page, make_page
from fewshot.report.published import VIEWS
from fewshot.report.records import write_record
from fewshot.report.table import make_table

TEMPLATE: dict[str, Any] = {
    "format": 2, "algorithm": "maml", "backbone": "conv4", "dataset": "omniglot", "way": 5, "shot": 1,
    "train": {"way": 5, "shot": 1, "query": 1, "steps": 4000, "paper_steps": 4000}, "seed": 0, "recipe": None,
    "settings": {"algorithm.learner.inner_lr": 0.4, "train.steps": 4000, "train.meta_batch": 32, "train.lr": 0.1},
    "protocol": {
        "name": "common", "dataset": "omniglot", "split": "test", "way": 5, "shot": 1, "query": 15, "episodes": 600,
        "episode_seed": 0,
        "rotations": "per_class", "view": "whole images", "setting": "transductive", "adaptation_steps": 3,
        "train_on_val": False, "selection": "best validation accuracy", "manifest": "0123456789abcdef" * 4,
    },
    "validation": None,
    "test": {"accuracy": 0.9543, "ci95": 0.0041, "episodes": 600},
    "cost": {
        "train_seconds": 882.0, "train_tasks": 120000, "tasks_per_second": 136.0, "peak_memory_bytes": 2**30,
        "gradient_evaluations": None, "device": "cpu",
    },
    "code": {"version": "0.1.0", "commit": "abc1234", "dirty": False},
    "config": "c0ffee00" * 8, "environment": {},
    "data": {"fingerprint": "feedc0de" * 8}, "command": "python tools/train.py",
}  # fmt: skip


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables need no data: `call` gets an empty folder."""
    return tmp_path_factory.mktemp("no-data")


@functools.cache
def composed(words: tuple[str, ...], config: str) -> Any:
    """The configuration of a tool with overrides."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose(config, list(words)), resolve=True)


class Lab:
    """Records and run folders of a test, and pages of them."""

    def __init__(self, folder: Path, gather: Callable[..., Any] = gather_runs) -> None:
        self.folder, self.gather = folder, gather

    def record(self, folder: str = "run", **changes: Any) -> dict[str, Any]:
        """A record that differs from the template in `changes`; `protocol__way=20` reaches into a part of it."""
        record = {**copy.deepcopy(TEMPLATE), "folder": folder}
        for path, value in changes.items():
            *parents, key = path.split("__")
            functools.reduce(dict.__getitem__, parents, record)[key] = value
        return record

    def shots(self, count: int, **changes: Any) -> dict[str, Any]:
        """A record of a training and a test with this number of shots."""
        return self.record(shot=count, protocol__shot=count, **changes)

    def write(self, name: str, scores: dict[str, np.ndarray] | None = None, **changes: Any) -> dict[str, Any]:
        """Write a record of scores [episodes], by their columns in episodes.csv, and return it."""
        scores = scores or {"accuracy": np.random.default_rng(len(name)).uniform(0.4, 0.6, 20).round(6)}
        metric, _, steps = next(iter(scores)).partition("_")
        episodes = len(scores[next(iter(scores))])
        t = stats.t.ppf(0.975, episodes - 1)
        means = {column.partition("_")[2]: float(values.mean()) for column, values in scores.items()}
        halves = {column.partition("_")[2]: float(t * stats.sem(values)) for column, values in scores.items()}
        test = {metric: means, "ci95": halves} if steps else {metric: means[""], "ci95": halves[""]}
        record = self.record(**({"test": test | {"episodes": episodes}, "protocol__episodes": episodes} | changes))
        del record["folder"]
        write_record(self.folder / name, record, scores)
        return record

    def write_regression(
        self, name: str, algorithm: str = "maml", shot: int = 10, shift: float = 0.0,
        steps: tuple[int, ...] = (1, 5, 10), **changes: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """Write a run on sinusoids that trained with 10 shots and was tested on 40 tasks."""
        errors = np.random.default_rng(shot).gamma(2, 0.1, 40)
        noise = {count: np.random.default_rng(count).uniform(0, 0.01, 40) for count in steps}
        protocol = {
            "dataset": "sinusoid", "way": 1, "shot": shot, "query": shot, "rotations": None, "view": VIEWS["sinusoid"],
            "setting": "inductive", "adaptation_steps": list(steps), "manifest": f"{shot:02d}" * 32,
        }  # fmt: skip
        run = {
            "algorithm": algorithm, "backbone": "mlp", "dataset": "sinusoid", "way": 1, "shot": 10,
            "train": {"shot": 10, "query": 10}, **{f"protocol__{key}": value for key, value in protocol.items()},
        }  # fmt: skip
        scores = {f"mse_{count}": errors / count + shift + noise[count] for count in steps}
        return self.write(name, scores, **(run | changes))

    def settings(self, *words: str, config: str = "table") -> dict[str, Any]:
        """The configuration of tools/table.py with overrides."""
        return copy.deepcopy(composed(words, config))

    def page(self, *words: str, below: str = "") -> Page:
        """The page of the runs below the folder."""
        runs, complaints = self.gather(self.folder / below)
        page = make_table(runs, self.settings(*words))
        page.complaints[:0] = complaints
        return page

    def texts(self, page: Page) -> list[dict[str, str]]:
        """The texts of the page's table, a mapping from heading to text for each row."""
        return page.table.map(lambda entry: entry.text).to_dict("records")

    def cells(self, *records: dict[str, Any]) -> dict[str, dict[str, str]]:
        """{row: {column: cell}} of the comparison, both in its order; the setting in the names."""
        layout = Layout(rows={"method": "method"})
        return {row.pop("method"): row for row in self.texts(make_page(list(records), layout=layout))}


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Records and run folders in tmp_path."""
    return Lab(tmp_path)


@pytest.fixture(scope="session")
def results() -> Callable[..., Page]:
    """The page of a folder of the committed results, made once: results("layout=leo", below="leo_ablation")."""
    lab = Lab(CONF.parent / "results", functools.cache(gather_runs))

    @functools.cache
    def page(*words: str, below: str = "") -> Page:
        return lab.page(*words, below=below)

    return page
