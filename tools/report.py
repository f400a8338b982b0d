"""Report every run below a folder in one HTML file: `python tools/report.py runs=runs pictures=figures format=pdf`."""

import sys
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from fewshot.core.checks import check_bool
from fewshot.core.errors import FewshotError
from fewshot.core.files import write_atomically
from fewshot.experiment.cli import main
from fewshot.report.gather import read_runs
from fewshot.report.html_report import charts, report
from fewshot.report.styles import check_format


def write_report(cfg: DictConfig) -> None:
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    folder = Path(str(cfg.runs))
    out = folder / "report.html" if cfg.out is None else Path(cfg.out)
    check_format(cfg.format)
    for switch in ("published", "cost"):
        check_bool(switch, settings[switch])
    if out.is_dir():
        raise FewshotError(f"out={out}: a folder; name a file in it")
    runs, unread = read_runs(folder)
    text, complaints = report(folder, runs, settings, unread)
    files = {out: text.encode()}
    if cfg.pictures is not None:
        images, left_out = charts(runs, cfg.format)
        files |= {Path(cfg.pictures) / f"{name}.{cfg.format}": image for name, image in images.items()}
        complaints += left_out
    for line in complaints:
        print(f"warning: {line}", file=sys.stderr)
    for path, content in files.items():  # only now that all of them are made
        write_atomically(path, content)
        print(f"wrote {path}")


if __name__ == "__main__":
    main(write_report, "report")
