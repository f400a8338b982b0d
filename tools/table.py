"""Tabulate every run below a folder: `python tools/table.py runs=runs format=latex out=table.tex`."""

import sys
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from fewshot.core.checks import check_bool, did_you_mean
from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.experiment.cli import main
from fewshot.report.formats import FORMATS
from fewshot.report.gather import read_runs
from fewshot.report.table import refreshed, table_of


def table(cfg: DictConfig) -> None:
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    if cfg.format not in FORMATS:
        known = list(FORMATS)
        raise FewshotError(
            f"format={cfg.format}: no such format{did_you_mean(str(cfg.format), known)}; {', '.join(known)}"
        )
    for switch in ("published", "cost"):
        check_bool(switch, settings[switch])
    if cfg.refresh is not None:
        refresh(Path(cfg.refresh), settings)
        return
    runs, unread = read_runs(Path(str(cfg.runs)))
    made = table_of(runs, settings)
    complain([*unread, *made.complaints])
    text = FORMATS[cfg.format](made)
    if cfg.out is None:
        print(text)
    else:
        write_atomically(Path(cfg.out), f"{text}\n".encode())
        print(f"wrote {cfg.out}")


def refresh(folder: Path, settings: dict[str, Any]) -> None:
    """Write the tables of every Markdown file below a folder anew; a file that is current is left as it is."""
    count = 0
    for path in sorted(folder.rglob("*.md")):
        found = refreshed(path, settings)
        if found is not None:
            text, made = found
            complain(made.complaints)
            current = text == path.read_text(encoding="utf-8")
            if not current:
                write_atomically(path, text.encode())
            count += 1
            print(f"{path}: {'current' if current else 'written'}")
    if not count:
        raise FewshotError(f"no Markdown file below {folder} has a place for a table: <!-- table --> <!-- /table -->")


def complain(lines: list[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


if __name__ == "__main__":
    main(table, "table")
