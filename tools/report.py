"""Report every run below a folder in one HTML file: `python tools/report.py runs=runs pictures=figures format=pdf`."""

import sys
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from fewshot.core.checks import check_bool, check_choice
from fewshot.core.files import check_output, write_atomically
from fewshot.experiment.cli import main


def write_report(cfg: DictConfig) -> None:
    """Write the report, and its pictures where a folder for them is given."""
    from fewshot.report.gather import gather_runs
    from fewshot.report.html_report import draw_plots, render_report
    from fewshot.report.pictures import PICTURE_FORMATS

    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    folder = Path(str(cfg.runs))
    out = folder / "report.html" if cfg.out is None else Path(cfg.out)
    check_choice("format", cfg.format, tuple(PICTURE_FORMATS))
    check_bool("published", settings["published"])
    check_output("out", out)
    runs, unread = gather_runs(folder)
    text, complaints = render_report(folder, runs, settings, unread)
    files = {out: text.encode()}
    if cfg.pictures is not None:
        for images in draw_plots(runs, cfg.layout.protocol, cfg.format, []).values():  # it complained in the report
            files |= {Path(cfg.pictures) / f"{name}.{cfg.format}": image for name, image in images.items()}
    for line in complaints:
        print(f"warning: {line}", file=sys.stderr)
    for path, content in files.items():  # nothing is written before all of them are made
        write_atomically(path, content)
        print(f"wrote {path}")


if __name__ == "__main__":
    main(write_report, "report")
