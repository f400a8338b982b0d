"""A run from its folder: its network, parameters and view, without its images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fewshot as fs
from fewshot.core.errors import FewshotError

QUICK = (
    "way=3", "train.steps=2", "train.meta_batch=2", "train.validate_every=0", "protocol=common",
    "protocol.common.query=3", "protocol.common.episodes=4", "run_dir=run",
)  # fmt: skip
SMALL = "backbone.network.filters=4"


@pytest.fixture
def make_run(call: Any) -> Callable[..., Path]:
    """A function that trains a small run of glyphs."""

    def make(*words: str) -> Path:
        done = call("train", *QUICK, *words)
        assert (done.code, done.err) == (0, "")
        return Path("run")

    return make


def read_scores(folder: Path, setting: str) -> np.ndarray:
    (file,) = [path for path in folder.rglob("episodes.csv") if path.parent.name.endswith(f"-{setting}")]
    return np.loadtxt(file, delimiter=",", skiprows=1)[:, 1]


def glyphs(data_dir: Path) -> dict[str, fs.Bank]:
    return fs.read_glyphs(data_dir / "banks")


@pytest.mark.parametrize("words", [("algorithm=maml", SMALL), ("algorithm=reptile", SMALL), ("algorithm=nearest",)])
def test_a_loaded_run_has_the_scores_of_its_record(make_run: Callable[..., Path], data_dir: Path, words: Any) -> None:
    folder = make_run(*words)
    trained = fs.load_run(folder, device="cpu")
    record = fs.read_records(folder)[0]["protocol"]
    tasks = fs.Sampler(glyphs(data_dir)["test"], way=3, shot=1, query=3, seed=record["episode_seed"])
    scores = fs.evaluate(trained, tasks, episodes=4)
    np.testing.assert_allclose(scores, read_scores(folder, "inductive"), atol=1e-6)


def test_a_view_of_the_images_is_the_runs_own(make_run: Callable[..., Path], data_dir: Path) -> None:
    view = ("dataset.crop=24", "dataset.mean=[0.5]", "dataset.std=[0.25]")
    trained = fs.load_run(make_run("algorithm=maml", SMALL, *view), device="cpu")
    x = glyphs(data_dir)["test"].examples[[0, 20, 40]]
    classifier = trained.adapt(x, ["a", "b", "c"])
    expected = (x[:, :, 2:26, 2:26] / 255 - 0.5) / 0.25
    torch.testing.assert_close(classifier.task.support_x, expected)
    large = x.repeat_interleave(4, -1).repeat_interleave(4, -2).expand(-1, 3, -1, -1)
    assert classifier.predict(large).shape == (3,)


def test_a_run_is_loaded_without_its_data(make_run: Callable[..., Path], data_dir: Path, tmp_path: Path) -> None:
    folder = make_run("algorithm=maml", SMALL)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(data_dir), str(tmp_path / "gone")))
    x = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
    assert fs.load_run(folder, device="cpu").adapt(x, [1, 2, 3]).predict(x).shape == (3,)


def test_a_run_on_features_takes_images_while_its_extractor_is_there(
    make_run: Callable[..., Path], data_dir: Path, tmp_path: Path
) -> None:
    own = tmp_path / "data"
    (own / "banks").mkdir(parents=True)
    for bank in (data_dir / "banks").glob("glyphs-*"):
        (own / "banks" / bank.name).symlink_to(bank)
    folder = make_run(
        "algorithm=leo", f"data_dir={own}", "features.settings.epochs=1", "features.network.filters=4",
        "features.settings.episodes=2", "validation.episodes=2", "train.query=3", "validation.query=3",
    )  # fmt: skip
    x = glyphs(data_dir)["test"].examples[[0, 20, 40, 60]]
    trained = fs.load_run(folder, device="cpu")
    classifier = trained.adapt(x, list("abcd"))  # of other ways than in training
    (features,) = (own / "banks").glob("features-*")
    bank = fs.open_banks(features)["test"]
    torch.testing.assert_close(classifier.task.support_x, torch.nn.functional.normalize(bank.examples[[0, 20, 40, 60]]))
    found = trained.adapt(bank.examples[[0, 20, 40, 60]], list("abcd")).predict_proba(bank.examples[:5])
    images = glyphs(data_dir)["test"].examples[:5]
    np.testing.assert_allclose(classifier.predict_proba(images), found, atol=1e-5)
    shutil.rmtree(own / "banks/extractors")
    alone = fs.load_run(folder, device="cpu")
    assert alone.adapt(bank.examples[[0, 20]], [0, 1]).predict(bank.examples[:5]).shape == (5,)
    with pytest.raises(FewshotError, match="knows features .*; give features of the extractor"):
        alone.adapt(x, list("abcd"))


def test_a_run_of_functions_has_no_classes(call: Any) -> None:
    assert (
        call(
            "train", "dataset=sinusoid", *QUICK[1:4], "protocol=common", "protocol.common.episodes=4", "run_dir=run"
        ).code
        == 0
    )
    trained = fs.load_run("run", device="cpu")
    with pytest.raises(FewshotError, match="trained on functions"):
        trained.adapt(torch.zeros(2, 1), [0, 1])


def test_a_run_that_was_saved_under_a_former_name_is_loaded_and_goes_on(
    make_run: Callable[..., Path], call: Any
) -> None:
    folder = make_run("algorithm=maml", SMALL)
    config = folder / "config.yaml"
    assert "fewshot.MAML" in config.read_text()
    config.write_text(config.read_text().replace("fewshot.MAML", "fewshot.Maml"))
    assert type(fs.load_run(folder, device="cpu").learner) is fs.MAML
    again = call("train", *QUICK, "algorithm=maml", SMALL)
    assert (again.code, again.err) == (0, "")
    assert "finished before" in again.out


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "not a run folder"),
        (lambda folder: (folder / "data.json").unlink(), "has not begun"),
        (lambda folder: shutil.rmtree(folder / "checkpoints"), "no checkpoint there"),
    ],
)
def test_what_is_no_trained_run_is_refused(make_run: Callable[..., Path], spoil: Any, said: str) -> None:
    folder = make_run("algorithm=maml", SMALL)
    spoil(folder)
    with pytest.raises(FewshotError, match=said):
        fs.load_run(folder)


def test_records_become_a_table_of_dotted_columns(make_run: Callable[..., Path]) -> None:
    folder = make_run("algorithm=maml", SMALL)
    runs = fs.read_runs(folder)
    records = fs.read_records(folder)
    assert len(runs) == len(records) > 0
    assert runs["test.accuracy"].tolist() == [record["test"]["accuracy"] for record in records]
    assert {"algorithm", "seed", "protocol.setting", "folder"} <= set(runs.columns)
    with pytest.raises(FewshotError, match=r"no record\.json below"):
        fs.read_runs("nowhere")
