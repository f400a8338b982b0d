"""What tools/predict.py does: a learner adapts to a person's own examples and labels other images."""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from tabulate import tabulate

from fewshot.core.checks import check_choice, did_you_mean
from fewshot.core.errors import FewshotError
from fewshot.core.files import check_output, write_atomically
from fewshot.core.progress import progress_bar
from fewshot.data.sources.faults import MAX_SHOWN
from fewshot.data.sources.image_sets import ImageSet, load_images, read_bytes, read_query, read_support
from fewshot.data.sources.images import ImageSpec, make_thumbnail
from fewshot.engine.evaluate import SETTINGS
from fewshot.experiment.predictor import load_predictor
from fewshot.experiment.support_set import SupportSet, list_damaged, load_support
from fewshot.report.predictions import Predictions, confusion_table, count_table, render_page, render_predictions_csv
from fewshot.training.classifier import Classifier

AT_ONCE = 256  # queries that are predicted at once
TOGETHER = 2000  # queries at most that transductive mode forwards as one batch
SHOWN, SHOWN_SUPPORT = 1000, 20  # on a page: queries at most, and support images of each class
THUMBNAIL = 96  # pixels


def predict(cfg: DictConfig) -> None:
    """Label the query images, write the files, and print the tables.

    Raises:
        FewshotError: the run, the support set or the queries are unfit, or a file cannot be written.
    """
    start = time.perf_counter()
    check_choice("setting", cfg.setting, SETTINGS)
    places = {"out": Path(cfg.out)} | ({} if cfg.page is None else {"page": Path(cfg.page)})
    for key, path in places.items():
        check_output(key, path)
    if len({os.path.realpath(path) for path in places.values()}) < len(places):
        raise FewshotError(f"page={cfg.page}: is the file of out, too; choose another")
    predictor = load_predictor(cfg)
    images = read_support(Path(cfg.support))
    query = read_query(cfg.query, images.classes)
    if cfg.setting == "transductive" and len(query.names) > TOGETHER:
        raise FewshotError(
            f"setting=transductive: predicts all queries as one batch, and {len(query.names):,} are more than "
            f"{TOGETHER:,}; choose setting=inductive"
        )
    support = load_support(images, predictor.spec)
    dark_on_light = predictor.light_on_dark and float(support.pixels.mean()) > 255 / 2
    invert, notes = (dark_on_light if cfg.invert is None else cfg.invert), [*images.notes, *query.notes, *support.notes]
    if images.above:
        notes.append(f"the classes are the folders in {'/'.join(images.names[0].split('/')[: images.above])}")
    if known := sorted(predictor.known_classes.intersection(images.classes)):
        names = known[0] if len(known) == 1 else f"{known[0]} and {len(known) - 1:,} more"
        notes.append(f"the run was trained on classes of these names: {names}; images of that training are no test")
    if invert and cfg.invert is None:
        notes.append("light and dark are exchanged, since the run knows light strokes on dark; invert=false keeps them")
    try:
        classifier = predictor.trained.adapt(255 - support.pixels if invert else support.pixels, support.labels)
    except FewshotError as error:  # about the argument of `adapt`
        raise FewshotError(f"support={cfg.support}: {str(error).removeprefix('support_y: ')}") from error
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    predictions, problems = _predict(classifier, query, predictor.spec, invert, support.digests, cfg.setting)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    about = (
        f"{predictor.name}, {cfg.setting}, {len(support.labels)} support images of {len(predictions.classes)} classes, "
        f"{predictions.read.sum():,} images labelled in {time.perf_counter() - start:.1f} s"
    )
    contents = {"out": render_predictions_csv(predictions).encode("utf-8", "surrogateescape")}
    if "page" in places:
        shown = _thumbnails(images, _first_of_each(support))
        by_class: dict[str, list[bytes]] = {name: [] for name in predictions.classes}
        for number, image in shown.items():
            by_class[images.labels[number]].append(image)
        title = f"Predictions for {Path(cfg.query).absolute().name}"
        queries = _thumbnails(query, _select(predictions))
        text = render_page(predictions, title, [about], [*notes, *problems], by_class, queries)
        contents["page"] = text.encode("utf-8", "replace")
    _print_tables(predictions, [support.labels.count(name) for name in predictions.classes])
    print(about)
    for key, content in contents.items():  # nothing is written before all of them are made
        verb = "replaced" if places[key].exists() else "wrote"
        write_atomically(places[key], content)
        print(f"{verb} {places[key]}")


def _predict(
    classifier: Classifier, query: ImageSet, spec: ImageSpec, invert: bool, known: Collection[bytes], setting: str
) -> tuple[Predictions, list[str]]:
    """The predictions of all queries, and lines on those that cannot be read or are support images too."""
    classes, total = [str(name) for name in classifier.labels], len(query.names)
    probabilities = np.full((total, len(classes)), np.nan, np.float32)
    damaged: dict[int, str] = {}
    copies: list[int] = []
    images, first = load_images(query, spec), 0
    with progress_bar("predicting", total) as advance:
        while batch := list(islice(images, TOGETHER if setting == "transductive" else AT_ONCE)):
            good = [number for number, image in enumerate(batch, start=first) if image.pixels is not None]
            damaged |= {n: image.problem for n, image in enumerate(batch, start=first) if image.pixels is None}
            copies += [number for number in good if batch[number - first].digest in known]
            if good:
                x = np.stack([image.pixels for image in batch if image.pixels is not None])
                x = 255 - x if invert else x
                probabilities[good] = classifier.predict_proba(x, setting=setting)
            first += len(batch)
            advance(by=len(batch))
    if len(damaged) == total:
        raise FewshotError(f"query: no image can be read, such as {query.names[0]} ({damaged[0]}); name others")
    problems = list_damaged("query", query, damaged)
    number_of = {name: number for number, name in enumerate(classes)}
    true = np.array([number_of.get(label, -1) for label in query.labels])
    counted = true >= 0
    counted[[*damaged, *copies]] = False
    folders = sorted(set(query.labels) - {"", *classes})
    if folders and ((true >= 0).any() or any(did_you_mean(name, classes) for name in folders)):
        rest = f" and {len(folders) - MAX_SHOWN:,} more" if len(folders) > MAX_SHOWN else ""
        result = "left out of the accuracy" if (true >= 0).any() else "so there is no accuracy"
        names = ", ".join(folders[:MAX_SHOWN])
        problems.append(f"query: folders named after no class, {result}: {names}{rest}")
    if copies:
        count = "1 image is" if len(copies) == 1 else f"{len(copies):,} images are"
        left_out = "; left out of the accuracy" if (true >= 0).any() else ""
        problems.append(f"query: {count} in the support set too, such as {query.names[copies[0]]}{left_out}")
    return Predictions(classes, query.names, probabilities, true, counted), problems


def _select(predictions: Predictions) -> list[int]:
    """The queries of a page: all or, of too many, as many of the most as of the least probable."""
    numbers = np.flatnonzero(predictions.read)
    order = numbers[np.argsort(-predictions.probabilities[numbers].max(1), kind="stable")].tolist()
    return order if len(order) <= SHOWN else order[: SHOWN // 2] + order[-SHOWN // 2 :]


def _first_of_each(support: SupportSet) -> list[int]:
    """The numbers of the first SHOWN_SUPPORT images of each class."""
    chosen: dict[str, list[int]] = defaultdict(list)
    for label, number in zip(support.labels, support.numbers, strict=True):
        if len(chosen[label]) < SHOWN_SUPPORT:
            chosen[label].append(number)
    return sorted(number for numbers in chosen.values() for number in numbers)


def _thumbnails(images: ImageSet, numbers: Sequence[int]) -> dict[int, bytes]:
    """Small images of some of a set, by their numbers; of one that has gone since, nothing."""
    small = {}
    for number, data in zip(numbers, read_bytes(images, numbers), strict=True):
        try:
            small[number] = b"" if isinstance(data, ValueError) else make_thumbnail(data, THUMBNAIL)
        except ValueError:
            small[number] = b""
    return small


def _print_tables(predictions: Predictions, support: Sequence[int]) -> None:
    headings, rows = count_table(predictions, support)
    print(tabulate(rows, headings, disable_numparse=True, colalign=("left", *["right"] * (len(headings) - 1))))
    if predictions.accuracy:
        headings, rows = confusion_table(predictions)
        print(f"\naccuracy: {predictions.accuracy}\n\n{tabulate(rows, headings, disable_numparse=True)}\n")
