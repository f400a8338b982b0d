"""tools/predict.py as a person uses it: on class folders of unequal sizes, labelled or not, with mistakes in them."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from fewshot.data.bank import open_banks
from fewshot.experiment.config import resolved
from fewshot.experiment.run import training_run

from ..conftest import composed

WORDS = (
    "train.steps=30", "train.meta_batch=4", "train.validate_every=0", "train.select=last", "protocol=common",
    "protocol.common.episodes=2", "protocol.common.query=2", "backbone.network.filters=8", "way=3", "shot=2",
)  # fmt: skip
NAMES = ("alpha", "b & c", "gamma, the third")


@pytest.fixture(scope="module")
def runs(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that trains a small run of an algorithm on the glyphs, once."""
    folder = tmp_path_factory.mktemp("runs")

    def run(algorithm: str) -> Path:
        words = [word for word in WORDS if algorithm != "nearest_mean" or not word.startswith("backbone")]
        if algorithm == "nearest_mean":
            words += ["features.settings.epochs=1", "features.network.filters=4", "features.settings.episodes=2"]
        if not (folder / algorithm).exists():
            training_run(
                composed(f"algorithm={algorithm}", f"run_dir={folder / algorithm}", f"data_dir={data_dir}", *words)
            )
        return folder / algorithm

    return run


@pytest.fixture
def pictures(data_dir: Path, tmp_path: Path) -> Path:
    """Dark characters on white at 56x56: `support` of 1 to 3 images, `labelled` and `query` of 4 of each class."""
    bank = open_banks(next((data_dir / "banks").glob("glyphs-*")))["test"]
    for number, name in enumerate(NAMES):
        rows = bank.examples[bank.offsets[40 * number] :][:20, 0].numpy()
        for place, pixels in enumerate(rows[: number + 5]):
            image = Image.fromarray(255 - pixels).resize((56, 56)).convert("RGB")
            label = "support" if place <= number else "labelled"
            for path in [tmp_path / label / name / f"{place}.png"] + (
                [tmp_path / "query" / f"{number}_{place}.png"] if label == "labelled" else []
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
    return tmp_path


def read_rows(path: str | Path = "predictions.csv") -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("algorithm", ["maml", "nearest_mean"])
def test_unlabelled_images_get_a_label_and_probabilities(call: Any, runs: Any, pictures: Path, algorithm: str) -> None:
    done = call("predict", f"run={runs(algorithm)}", "support=support", "query=query", "page=page.html")
    assert done.code == 0
    assert done.err.splitlines() == [
        "note: images are changed to 28x28 grey, which the learner knows, from 56x56 colour",
        "note: light and dark are exchanged, since the run knows light strokes on dark; invert=false keeps them",
    ]
    assert f"{algorithm}, inductive, 6 support images of 3 classes, 12 images labelled in " in done.out
    assert done.out.endswith("wrote predictions.csv\nwrote page.html\n") and "accuracy" not in done.out
    rows = read_rows()
    assert [row["file"] for row in rows] == sorted(path.name for path in Path("query").iterdir())
    right = 0
    for row in rows:
        found = {name: float(row[f"probability {name}"]) for name in NAMES}
        assert sum(found.values()) == pytest.approx(1, abs=1e-4)
        assert row["predicted"] == max(found, key=lambda name: found[name]) and "true" not in row
        right += row["predicted"] == NAMES[int(row["file"][0])]
    assert right >= 8  # 4 by chance
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 12 and page.count("<img") == 18 and "b &amp; c" in page


def test_class_folders_of_queries_give_accuracy_and_confusions(call: Any, runs: Any, pictures: Path) -> None:
    call("predict", f"run={runs('maml')}", "support=support", "query=query")
    unlabelled = read_rows()
    (pictures / "labelled" / "other").mkdir()
    shutil.copy(pictures / "query" / "0_1.png", pictures / "labelled" / "other" / "0.png")
    done = call("predict", f"run={runs('maml')}", "support=support", "query=labelled", "out=far/away.csv")
    assert done.err.endswith("\nwarning: query: folders named after no class, left out of the accuracy: other\n")
    rows = read_rows("far/away.csv")
    right = sum(row["predicted"] == row["true"] for row in rows)
    assert f"accuracy: {100 * right / 12:.2f} % ({right} of 12 right, 95 % interval " in done.out
    assert "true \\ predicted" in done.out
    assert [row["true"] for row in rows] == [*(name for name in NAMES for _ in range(4)), ""]
    probability = f"probability {NAMES[0]}"
    assert sorted(row[probability] for row in rows[:12]) == sorted(row[probability] for row in unlabelled)


def test_what_the_run_says_of_classes_it_knows_and_of_its_end_is_passed_on(
    call: Any, runs: Any, pictures: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(runs("maml"), tmp_path / "own")
    for name, old, new in (
        ("config.yaml", "  steps: 30", "  steps: 90"),
        ("data.json", '"classes": [', '"classes": ["gamma, the third",'),
    ):
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new))
    (pictures / "labelled").rename("renamed")
    for place in Path("renamed").iterdir():
        place.rename(place.with_name(place.name.upper()))
    done = call("predict", f"run={run}", "support=support", "query=renamed")
    assert done.code == 0 and "maml of run own after 30 of 90 steps, inductive" in done.out
    assert (
        "note: the run was trained on classes of these names: gamma, the third; images of that training are no test"
        in done.err
    )
    lines = "named after no class, so there is no accuracy: ALPHA, B & C, GAMMA, THE THIRD\n"
    assert done.err.endswith(lines)


def test_each_image_is_predicted_alone_unless_asked_otherwise(call: Any, runs: Any, pictures: Path) -> None:
    words = (f"run={runs('maml')}", "support=support")

    def predict(query: str, *more: str) -> dict[str, float]:
        assert call("predict", *words, f"query={query}", *more).code == 0
        return {Path(row["file"]).name: float(row[f"probability {NAMES[0]}"]) for row in read_rows()}

    every, few, one = predict("query"), predict("query/0*.png"), predict("query/1_2.png")
    assert few == pytest.approx({name: every[name] for name in few}, abs=1e-4)
    assert len(few) == 4 and one == pytest.approx({"1_2.png": every["1_2.png"]}, abs=1e-4)
    together = predict("query", "setting=transductive")
    assert together.keys() == every.keys() and together != pytest.approx(every, abs=1e-3)


def test_damaged_and_repeated_images_are_listed_and_the_rest_is_done(call: Any, runs: Any, pictures: Path) -> None:
    Path("labelled/alpha/broken.png").write_bytes(b"no image")
    Path("support/alpha/empty.png").write_bytes(b"")
    Image.open("support/alpha/0.png").save("labelled/alpha/again.bmp")
    done = call("predict", f"run={runs('maml')}", "support=support", "query=labelled", "page=page.html")
    assert done.code == 0
    lines = done.err.splitlines()
    assert lines[0] == "note: support: 1 image is left out, which cannot be read: alpha/empty.png (it is empty)"
    assert lines[-2:] == [
        "warning: query: 1 image is left out, which cannot be read: alpha/broken.png (damaged, or no image that Pillow "
        "can open)",
        "warning: query: 1 image is in the support set too, such as alpha/again.bmp; left out of the accuracy",
    ]
    assert "of 12 right" in done.out
    (broken,) = [row for row in read_rows() if row["predicted"] == ""]
    assert broken["file"] == "alpha/broken.png" and broken[f"probability {NAMES[0]}"] == ""
    assert "alpha/broken.png (damaged" in Path("page.html").read_text()


def test_class_means_of_a_pretrained_network_need_no_run(call: Any, weights: str, pictures: Path) -> None:
    features = ("features=torchvision", "features.model=shufflenet_v2_x0_5", "features.size=32")
    words = ("method=nearest_mean", *features, f"features.weights={weights}", "support=support")
    done = call("predict", *words, "query=labelled", "device=cpu")
    assert done.code == 0, done.err
    assert done.err == "note: images are changed to 32x32 colour, which the learner knows, from 56x56 colour\n"
    assert "nearest_mean of shufflenet_v2_x0_5 features, inductive, 6 support images of 3 classes, 12 im" in done.out
    labelled = read_rows()
    larger = Path("support", NAMES[0], "0.png")
    Image.open(larger).resize((60, 60)).save(larger)
    done = call("predict", *words, "query=query", "device=cpu")
    assert done.code == 0 and done.err.endswith(", from 56x56 colour and other sizes\n")
    assert done.out.endswith("replaced predictions.csv\n")
    assert sorted(row["predicted"] for row in read_rows()) == sorted(row["predicted"] for row in labelled)


def test_light_and_dark_are_exchanged_as_a_person_says(call: Any, runs: Any, pictures: Path) -> None:
    rows, notes = [], []
    for words in ((), ("invert=true",), ("invert=false",)):
        done = call("predict", f"run={runs('maml')}", "support=support", "query=query", *words)
        assert done.code == 0, done.err
        rows.append(read_rows())
        notes.append("light and dark are exchanged" in done.err)
    assert notes == [True, False, False] and rows[0] == rows[1] != rows[2]
    for path in [*Path("support").rglob("*.png"), *Path("query").iterdir()]:  # now light on dark, as the run knows
        ImageOps.invert(Image.open(path)).save(path)
    done = call("predict", f"run={runs('maml')}", "support=support", "query=query")
    assert "light and dark" not in done.err
    for row, dark in zip(read_rows(), rows[0], strict=True):  # but for rounding, where images are made smaller
        assert row["file"] == dark["file"]
        for name in (f"probability {name}" for name in NAMES):
            assert float(row[name]) == pytest.approx(float(dark[name]), abs=1e-3)
    assert not any(row == other for row, other in zip(read_rows(), rows[2], strict=True))


def test_each_run_of_a_sweep_has_a_file_of_its_own(call: Any, runs: Any, pictures: Path) -> None:
    Path("far").mkdir()
    words = ("-m", f"run={runs('maml')}", "support=support", "query=query/0*.png,query/1*.png", "out=far/found.csv")
    done = call("predict", *words)
    assert done.code == 1 and [path.name for path in Path("far").iterdir()] == ["found.csv"]
    (advised,) = re.findall(
        r"error: out=far/found.csv: was written by an earlier run of this sweep; set '(.*)'", done.err
    )
    assert call("predict", *words[:-1], advised).code == 0
    assert sorted(path.name for path in Path("far").iterdir()) == ["found.csv", "found_0.csv", "found_1.csv"]
    assert [Path(row["file"]).name[0] for row in read_rows("far/found_1.csv")] == ["1"] * 4


def test_photos_are_turned_upright(call: Any, runs: Any, pictures: Path) -> None:
    words = (f"run={runs('maml')}", "support=support", "query=query")
    call("predict", *words)
    rows, exif = read_rows(), Image.Exif()
    exif[0x112] = 6  # the camera was turned by a quarter
    for path in [*Path("support").rglob("*.png"), *Path("query").iterdir()]:
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    call("predict", *words)
    assert read_rows() == rows


def test_a_page_shows_the_most_and_the_least_probable_of_too_many_queries(
    call: Any, runs: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewshot.experiment.predict.SHOWN", 4)
    monkeypatch.setattr("fewshot.experiment.predict.TOGETHER", 11)
    words = (f"run={runs('maml')}", "support=support", "query=query", "page=page.html")
    assert call("predict", *words).code == 0
    page, best = Path("page.html").read_text(encoding="utf-8"), {}
    for row in read_rows():
        best[row["file"]] = max(float(row[f"probability {name}"]) for name in NAMES)
    order = sorted(best, key=lambda name: -best[name])
    assert page.count("<figure") == 4
    assert [name in page for name in order] == [True] * 2 + [False] * 8 + [True] * 2
    refused = call("predict", *words, "setting=transductive")
    assert refused.code == 1 and "as one batch, and 12 are more than 11; choose setting=inductive" in refused.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "run: has no value; set run=<run folder>, or method=nearest_mean features=torchvision"),
        (["method=nearest_mean"], "method=nearest_mean: takes features=torchvision features.weights=<file>; for an"),
        (["method=nearest_mean", "features=conv4"], "method=nearest_mean: takes features=torchvision features.w"),
        (["method=nearest_mean", "features=published"], "method=nearest_mean: takes features=torchvision features."),
        (["method=nearest_mean", "features=torchvision"], "features.weights: has no value; set features.weights="),
        (["method=nearest"], "method=nearest: compares pixels by a run; train algorithm=nearest, and give its run"),
        (["method=nearest_mean", "run=mine"], "method=nearest_mean: needs no run; leave run out, or method"),
        (["features=torchvision", "features.weights=w", "run=mine"], "features: a run has its own; leave fea"),
    ],
)  # fmt: skip
def test_a_method_and_a_run_exclude_each_other(call: Any, tmp_path: Path, words: list[str], said: str) -> None:
    done = call("predict", *words, "support=support", "query=query")
    assert done.code == 1 and done.err.startswith(f"error: {said}") and done.err.count("\n") == 1


def add_class() -> None:
    Path("support/more").mkdir()
    Image.new("L", (9, 9)).save("support/more/0.png")


def add_heic() -> None:
    Path("support/more").mkdir()
    Path("support/more/0.heic").touch()


def fill(folder: str, *names: str) -> None:
    for name in names:
        (Path(folder) / name).mkdir(parents=True)
        shutil.copy("support/alpha/0.png", Path(folder) / name / f"{len(name)}.png")


@pytest.mark.parametrize(
    ("prepare", "words", "said"),
    [
        (lambda: Path("support/none").mkdir(), [], "support=support: class none has no images; put some there, or"),
        (add_heic, [], "support=support: class more has no images (it holds 1 .heic); put some there, or"),
        (lambda: fill("set", "train/a", "test/b2"), ["support=set"], "its folders are splits, not classes; name o"),
        (lambda: fill("two", "a", "b2"), ["support=two"], "a/1.png and b2/2.png are the same image in two classes"),
        (
            lambda: Path("support/alpha/0.png").write_bytes(b""),
            [],
            "support=support: no image of class alpha can be read, such as alpha/0.png (it is empty)",
        ),
        (add_class, [], "support=support: 4 classes, and the le"),
        (lambda: None, ["query=none"], "query=none: no such file or folder; name a folder of images, a file, or"),
        (lambda: Path("x.png").write_bytes(b"x"), ["query=x.png"], "query: no image can be read, such as x.png (dam"),
        (lambda: Path("there").mkdir(), ["out=there"], "out=there: is a folder; name a file in it"),
        (lambda: None, ["page=support"], "page=support: is a folder; name a file in it"),
        (lambda: None, ["page=p.html", "out=./p.html"], "page=p.html: is the file of out, too; choose another"),
        (lambda: None, ["setting=both"], "setting=both: choose one of transductive, inductive"),
        (lambda: None, ["run=support"], "support: not a run folder"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing(
    call: Any, runs: Any, pictures: Path, prepare: Callable[[], Any], words: list[str], said: str
) -> None:
    prepare()
    given = {"run": f"run={runs('maml')}", "support": "support=support", "query": "query=query"}
    given |= {word.split("=")[0]: word for word in words}
    before = set(Path().rglob("*"))
    done = call("predict", *given.values())
    assert done.code == 1
    (line,) = [line for line in done.err.splitlines() if not line.startswith("note: ")]
    assert line.startswith("error: ") and said in line
    assert set(Path().rglob("*")) == before


def test_a_run_whose_reader_has_its_own_words_is_refused(call: Any, runs: Any, pictures: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs("maml"), tmp_path / "own")
    listed = run / "config.yaml"
    listed.write_text(
        listed.read_text().replace("    _target_: fewshot.read_glyphs", "    _target_: mine.read\n    resize: pad")
    )
    done = call("predict", f"run={run}", f"support={pictures / 'support'}", f"query={pictures / 'query'}")
    assert done.code == 1 and "its reader, mine.read, makes images in its own way; label examples from" in done.err


def test_a_run_on_functions_is_refused(call: Any, pictures: Path, tmp_path: Path) -> None:
    words = [word for word in WORDS if not word.startswith(("way", "backbone"))]
    cfg = composed("algorithm=maml", "dataset=sinusoid", f"run_dir={tmp_path / 'sines'}", *words)
    assert resolved(cfg)["way"] == 1
    training_run(cfg)
    done = call("predict", "run=sines", "support=support", "query=query")
    assert done.err == "error: run=sines: learned functions, which have no classes; name a run on images\n"
