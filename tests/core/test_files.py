"""Files below a folder, wherever links lead."""

from __future__ import annotations

from pathlib import Path

from fewshot.core.files import find_below


def test_files_are_found_behind_links_and_each_once(tmp_path: Path) -> None:
    for place in ("runs/a", "elsewhere/b/c"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "record.json").touch()
    (tmp_path / "runs/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs/0-latest").symlink_to(tmp_path / "runs/a")
    (tmp_path / "elsewhere/b/round").symlink_to(tmp_path / "runs")
    found = find_below(tmp_path / "runs", "record.json")
    assert [path.relative_to(tmp_path / "runs").as_posix() for path in found] == [
        "a/record.json",
        "linked/b/c/record.json",
    ]
