"""Copy the records of a run, their scores and the training's curve to another folder."""

from __future__ import annotations

import os
from pathlib import Path

from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.report.records import Record, read_record, summary_of_run


def check_copy(copy: Path, config: str, seed: int) -> dict[Path, Record]:
    """Check that records of a run can be copied to a folder.

    Args:
        copy: the folder of the copied run.
        config: the hash of the run's configuration, as in its records.
        seed: of the run.

    Returns:
        The run's records that are there already, by the folders of their tests.

    Raises:
        FewshotError: there are records of another run there, or it cannot be written to.
    """
    nearest = next(path for path in (copy, *copy.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise FewshotError(f"{nearest}: cannot be written to; choose another folder by copy_records_to")
    there = {path.parent: read_record(path) for path in sorted(copy.glob("tests/*/record.json"))}
    for test, record in there.items():
        if (record["config"], record["seed"]) != (config, seed):
            raise FewshotError(
                f"{test}: holds a record of another run, {summary_of_run(record)}; copy to another folder by "
                "copy_records_to, or train in another run_dir"
            )
    return there


def copy_record(test: Path, copy: Path) -> None:
    """Copy the record and scores of a test, `<run>/tests/<name>`, to `<copy>/tests/<name>`.

    Of the run's `metrics.jsonl` the lines with validation scores are copied too: its curve. Tests of an earlier
    training of the same run, which `force` replaced, are removed there. A run is not copied onto itself.

    Raises:
        FewshotError: as `check_copy`.
    """
    run, record = test.parents[1], read_record(test / "record.json")
    if copy.resolve() == run.resolve():
        return
    others = check_copy(copy, record["config"], record["seed"])
    target = copy / "tests" / test.name
    for name in ("episodes.csv", "record.json"):
        write_atomically(target / name, (test / name).read_bytes())
    log = run / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
    if curve := b"".join(line for line in lines if b'"validation_' in line):
        write_atomically(copy / log.name, curve)
    for old, other in others.items():
        if old != target and not _is_of_one_training(other, record):
            for name in ("record.json", "episodes.csv"):
                (old / name).unlink(missing_ok=True)


def _is_of_one_training(one: Record, other: Record) -> bool:
    """Whether two records of one run are of one training: by the fingerprints of what was tested, or its seconds."""
    prints = one["train"].get("fingerprint"), other["train"].get("fingerprint")
    # Two checkpoints have two fingerprints, and older records have none.
    if None in prints or one["protocol"]["selection"] != other["protocol"]["selection"]:
        return one["cost"]["train_seconds"] == other["cost"]["train_seconds"]
    return prints[0] == prints[1]
