"""Print the comparison table of every run below a folder: `python tools/table.py runs=runs`."""

from pathlib import Path

from omegaconf import DictConfig

from fewshot.cli import main
from fewshot.report.record import read_records
from fewshot.report.table import markdown


def table(cfg: DictConfig) -> None:
    print(markdown(read_records(Path(cfg.runs))))


if __name__ == "__main__":
    main(table, "table")
