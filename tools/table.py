"""Tabulate every run below a folder: `python tools/table.py runs=runs format=latex out=table.tex`."""

import sys
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from fewshot.core.checks import check_bool, check_choice
from fewshot.core.errors import FewshotError
from fewshot.core.files import check_output, write_atomically
from fewshot.experiment.cli import main


def table(cfg: DictConfig) -> None:
    """Print or write the tables, or refresh those of Markdown files."""
    from fewshot.report.formats import FORMATS
    from fewshot.report.gather import gather_runs
    from fewshot.report.table import make_tables

    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    check_choice("format", cfg.format, tuple(FORMATS))
    for switch in ("published", "costs"):
        check_bool(switch, settings[switch])
    if cfg.refresh is not None:
        refresh(Path(cfg.refresh), settings)
        return
    if cfg.out is not None:
        check_output("out", Path(cfg.out))
    runs, unread = gather_runs(*(Path(str(each)) for each in (cfg.runs, cfg.more_runs) if each is not None))
    pages = make_tables(runs, settings, unread)
    warn([*unread, *(line for page in pages for line in page.complaints)])
    text = FORMATS[cfg.format](*pages)
    if cfg.out is None:
        print(text)
    else:
        write_atomically(Path(cfg.out), f"{text}\n".encode())
        print(f"wrote {cfg.out}")


def refresh(folder: Path, settings: dict[str, Any]) -> None:
    """Write the tables of every Markdown file below a folder anew; a file whose tables are current stays untouched.

    Raises:
        FewshotError: there is no such file, or a table cannot be made; the others are written before.
    """
    from fewshot.report.table import refresh_tables

    if not folder.is_dir():
        raise FewshotError(f"refresh={folder}: is no folder; name one that has Markdown files")
    count, failures = 0, []
    for path in sorted(path for path in folder.rglob("*.md") if path.is_file()):
        try:
            refreshed = refresh_tables(path, settings)
        except FewshotError as error:
            failures.append(str(error))
            continue
        if refreshed is not None:
            text, complaints, failed = refreshed
            warn(complaints)
            failures += failed
            current = text.encode() == path.read_bytes()
            if not current:
                write_atomically(path, text.encode())
            count += 1
            print(f"{path}: {'current' if current else 'written'}")
    if failures:
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise FewshotError(failures[0] + more)
    if not count:
        raise FewshotError(f"no Markdown file below {folder} has a place for a table: <!-- table --> <!-- /table -->")


def warn(lines: list[str]) -> None:
    """Print each line as a warning on stderr."""
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


if __name__ == "__main__":
    main(table, "table")
