"""A run from its folder: its network, parameters and view, without its images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fewshot as fs
from fewshot.core.errors import FewshotError
from fewshot.experiment.run import training_run
from fewshot.experiment.run_dir import find_run
from fewshot.training.checkpoint import load_checkpoint, save_checkpoint

from ..conftest import composed

QUICK = (
    "way=3", "train.steps=2", "train.meta_batch=2", "train.validate_every=0", "logger=none", "protocol=common",
    "protocol.common.query=3", "protocol.common.episodes=4", "device=cpu",
)  # fmt: skip
MAML = ("algorithm=maml", "backbone.network.filters=4")


@pytest.fixture(scope="module")
def maml_run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of MAML on glyphs, made once."""
    return train_run(tmp_path_factory.mktemp("runs") / "maml", data_dir, *MAML)


@pytest.fixture
def maml_copy(maml_run: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return shutil.copytree(maml_run, tmp_path / "run")


def train_run(folder: Path, data: Path, *words: str) -> Path:
    return training_run(composed(*QUICK, f"data_dir={data}", f"run_dir={folder}", *words))[0]


def read_scores(folder: Path, setting: str) -> np.ndarray:
    (file,) = [path for path in folder.rglob("episodes.csv") if path.parent.name.endswith(f"-{setting}")]
    return np.loadtxt(file, delimiter=",", skiprows=1)[:, 1]


def glyphs(data_dir: Path) -> dict[str, fs.Bank]:
    return fs.read_glyphs(data_dir / "banks")


def check_scores(folder: Path, data_dir: Path) -> None:
    """Check that the loaded run has the scores of its record."""
    seed = fs.read_records(folder)[0]["protocol"]["episode_seed"]
    tasks = fs.Sampler(glyphs(data_dir)["test"], way=3, shot=1, query=3, seed=seed)
    scores = fs.evaluate(fs.load_run(folder, device="cpu"), tasks, episodes=4)
    np.testing.assert_allclose(scores, read_scores(folder, "inductive"), atol=1e-6)


def test_a_loaded_run_has_the_scores_of_its_record(maml_run: Path, data_dir: Path, tmp_path: Path) -> None:
    check_scores(maml_run, data_dir)
    check_scores(train_run(tmp_path / "nearest", data_dir, "algorithm=nearest"), data_dir)
    network = ("algorithm=nearest_mean", "features=none", "backbone=conv4", "backbone.network.filters=4")
    check_scores(train_run(tmp_path / "untrained", data_dir, *network), data_dir)  # its weights are in no checkpoint


@pytest.mark.parametrize("setting", ["transductive", "inductive"])
def test_the_validation_of_a_record_is_on_the_validation_classes_as_it_is_set(
    data_dir: Path, tmp_path: Path, setting: str
) -> None:
    folder = train_run(
        tmp_path / "run", data_dir, *MAML, "train.validate_every=2", "validation.query=3", "validation.episodes=6",
        f"validation.transductive={setting == 'transductive'}",
    )  # fmt: skip
    tasks = fs.Sampler(glyphs(data_dir)["val"], way=3, shot=1, query=3, seed=0)
    scores = {
        name: fs.evaluate(fs.load_run(folder, device="cpu"), tasks, episodes=6, setting=name).mean()
        for name in ("transductive", "inductive")
    }
    assert fs.read_records(folder)[0]["validation"]["accuracy"] == pytest.approx(scores[setting])
    assert scores["transductive"] != scores["inductive"]


def test_a_run_is_loaded_without_its_data(maml_copy: Path, data_dir: Path, tmp_path: Path) -> None:
    config = maml_copy / "config.yaml"
    config.write_text(config.read_text().replace(str(data_dir), str(tmp_path / "gone")))
    x = torch.zeros(3, 1, 28, 28, dtype=torch.uint8)
    assert fs.load_run(maml_copy, device="cpu").adapt(x, [1, 2, 3]).predict(x).shape == (3,)


def test_a_view_of_the_images_is_the_runs_own(data_dir: Path, tmp_path: Path) -> None:
    view = ("dataset.crop=24", "dataset.mean=[0.5]", "dataset.std=[0.25]")
    trained = fs.load_run(train_run(tmp_path / "run", data_dir, *MAML, "train.steps=1", *view), device="cpu")
    assert trained.inputs is not None and trained.inputs.shape == (1, 28, 28)  # before the crop
    x = glyphs(data_dir)["test"].examples[[0, 20, 40]]
    classifier = trained.adapt(x, ["a", "b", "c"])
    expected = (x[:, :, 2:26, 2:26] / 255 - 0.5) / 0.25
    torch.testing.assert_close(classifier.task.support_x, expected)
    large = x.repeat_interleave(4, -1).repeat_interleave(4, -2).expand(-1, 3, -1, -1)
    assert classifier.predict(large).shape == (3,)


def test_a_run_on_features_takes_images_while_its_extractor_is_there(data_dir: Path, tmp_path: Path) -> None:
    own = tmp_path / "data"
    (own / "banks").mkdir(parents=True)
    for bank in (data_dir / "banks").glob("glyphs-*"):
        (own / "banks" / bank.name).symlink_to(bank)
    folder = train_run(
        tmp_path / "run", own, "algorithm=leo", "features.settings.epochs=1", "features.network.filters=4",
        "features.settings.episodes=2", "validation.episodes=2", "train.query=3", "validation.query=3",
    )  # fmt: skip
    rows, names = [0, 20, 40, 60], list("abcd")  # of other ways than in training
    images, trained = glyphs(data_dir)["test"].examples, fs.load_run(folder, device="cpu")
    (features,) = (own / "banks").glob("features-*")
    values = fs.open_banks(features)["test"].examples
    classifier = trained.adapt(images[rows], names)
    torch.testing.assert_close(classifier.task.support_x, torch.nn.functional.normalize(values[rows]))
    found = trained.adapt(values[rows], names).predict_proba(values[:5])
    np.testing.assert_allclose(classifier.predict_proba(images[:5]), found, atol=1e-5)
    own = own.rename(tmp_path / "moved")
    with pytest.raises(
        FewshotError, match="they cannot be made of images: .* not in .*data/banks; put them back, or say by data_dir"
    ):
        fs.load_run(folder, device="cpu").adapt(images[rows], names)
    moved = fs.load_run(folder, device="cpu", data_dir=own).adapt(images[rows], names)
    np.testing.assert_array_equal(moved.predict_proba(images[:5]), classifier.predict_proba(images[:5]))
    own = own.rename(tmp_path / "data")
    (best,) = (own / "banks/extractors").glob("*/best.safetensors")
    groups, header = load_checkpoint(best, "cpu")
    next(iter(groups["weights"].values()))[:1] += 1
    save_checkpoint(best, groups, header)
    with pytest.raises(FewshotError, match="best.safetensors: not the extractor that made the features; put that one"):
        fs.load_run(folder, device="cpu").adapt(images[rows], names)
    shutil.rmtree(own / "banks/extractors")
    alone = fs.load_run(folder, device="cpu")
    assert alone.adapt(values[rows], names).predict(values[:5]).shape == (5,)
    with pytest.raises(FewshotError, match="they cannot be made of images: .*best.safetensors: .*; put it back"):
        alone.adapt(images[rows], names)


def test_a_run_of_functions_has_no_classes(data_dir: Path, tmp_path: Path) -> None:
    words = [word for word in QUICK if not word.startswith("way=")]
    cfg = composed("dataset=sinusoid", *words, f"data_dir={data_dir}", f"run_dir={tmp_path / 'run'}")
    trained = fs.load_run(training_run(cfg)[0], device="cpu")
    with pytest.raises(FewshotError, match="not trained on tasks of a Sampler"):
        trained.adapt(torch.zeros(2, 1), [0, 1])


def test_a_run_that_was_saved_under_a_former_name_is_loaded(maml_copy: Path) -> None:
    config = maml_copy / "config.yaml"
    assert "fewshot.MAML" in config.read_text()
    config.write_text(config.read_text().replace("fewshot.MAML", "fewshot.Maml"))
    assert type(fs.load_run(maml_copy, device="cpu").learner) is fs.MAML


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "not a run folder"),
        (lambda folder: (folder / "data.json").unlink(), "has not begun"),
        (lambda folder: shutil.rmtree(folder / "checkpoints"), "no checkpoint there"),
    ],
)
def test_what_is_no_trained_run_is_refused(maml_copy: Path, spoil: Any, said: str) -> None:
    spoil(maml_copy)
    with pytest.raises(FewshotError, match=said):
        fs.load_run(maml_copy)


def test_a_training_by_the_python_interface_is_continued_there(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(FewshotError, match=r"a training by fewshot.train, .*; there call fewshot.train again"):
        fs.load_run(tmp_path)


def test_a_test_names_its_run_and_a_folder_of_runs_is_told_one(maml_run: Path) -> None:
    test = maml_run / "tests" / "common-inductive"
    assert find_run(test) == find_run(maml_run) == maml_run
    with pytest.raises(FewshotError, match=f"name a run in it, such as {maml_run}"):
        find_run(maml_run.parent)


def test_records_become_a_table_of_dotted_columns(maml_run: Path, tmp_path: Path) -> None:
    runs, records = fs.read_runs(maml_run), fs.read_records(maml_run)
    assert len(runs) == len(records) > 0
    assert runs["test.accuracy"].tolist() == [record["test"]["accuracy"] for record in records]
    assert {"algorithm", "seed", "protocol.setting", "folder"} <= set(runs.columns)
    with pytest.raises(FewshotError, match=r"no record\.json below"):
        fs.read_runs(tmp_path)


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_files_are_read_as_the_training_read_its_own(data_dir: Path, tmp_path: Path, resize: str) -> None:
    dice = np.random.RandomState(0)
    for number in range(9):
        folder = tmp_path / f"pictures/kind{number}"
        folder.mkdir(parents=True)
        for index in range(4):
            pixels = dice.randint(0, 256, (20, 31, 4), np.uint8)  # not square, and partly transparent
            Image.fromarray(pixels).save(folder / f"{index}.png")
    words = ("dataset=folder", f"dataset.reader.root={tmp_path / 'pictures'}", f"dataset.reader.resize={resize}",
             "dataset.reader.size=16", "dataset.reader.fractions=[0.34,0.33,0.33]", "validation.query=2")  # fmt: skip
    run = train_run(tmp_path / "run", tmp_path / "data", *words, *MAML)
    bank = fs.open_banks(next((tmp_path / "data/banks").glob("*/bank.json")).parent)["test"]
    files = [tmp_path / "pictures" / name for name in bank.image_names()]
    trained = fs.load_run(run)
    np.testing.assert_array_equal(trained.read_images(files), bank.examples)
    in_memory = fs.train(
        fs.MAML(fs.Conv4((3, 16, 16), 3, filters=2)), fs.Sampler(bank, 3, 1, 2), steps=0, progress=False
    )
    np.testing.assert_array_equal(in_memory.read_images(files[:2]), bank.examples[:2])
    with pytest.raises(FewshotError, match="config.yaml: damaged, or no image"):
        trained.read_images([run / "config.yaml"])
    with pytest.raises(FewshotError, match="is one path; give a list of files"):
        trained.read_images(files[0])  # pyright: ignore[reportArgumentType]
