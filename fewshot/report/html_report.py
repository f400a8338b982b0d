"""One HTML file of a folder of runs: tables, pictures, how configurations differ, what it took, which commands.

The file needs nothing else: the pictures are inside it, and there is no script in it.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fewshot.core.errors import FewshotError
from fewshot.report.charts import CHARTS
from fewshot.report.configurations import differences
from fewshot.report.records import Record
from fewshot.report.styles import saved
from fewshot.report.table import metrics_of, table_of
from fewshot.report.web import document, grid, section

OWN_STYLE = """
section { margin: 2.5rem 0 } nav { line-height: 2 } nav a { margin-right: 1.2rem; white-space: nowrap }
#configurations :is(th, td) { white-space: normal; overflow-wrap: break-word; min-width: 8rem }
header p, summary, figcaption { color: #555 } summary { cursor: pointer }
figure { margin: 1.5rem 0 } .picture { overflow-x: auto }
.picture img { display: block; min-width: 38rem; max-width: 100%; height: auto }
code { font-size: 13px; overflow-wrap: anywhere }
"""
CAPTIONS = {
    "bars": "Test scores by learner, a panel for each protocol. Lines are 95 % intervals, as in the table.",
    "curves": "Training scores, as logged, and validation scores over the outer steps, a line for each run.",
    "by_steps": "Test scores after several numbers of adaptation steps, with 95 % intervals.",
    "by_shots": "Test scores with several shots, with 95 % intervals.",
}


def report(
    folder: Path, runs: Sequence[Record], settings: Mapping[str, Any], unread: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """The report of a folder's runs, and a line for each thing that could not be read or compared.

    The layout chooses the runs of the tables; pictures, configurations and commands are those of all.

    Args:
        runs: every run below the folder, and `unread` a line for each that could not be read, as `measured` has them.
        settings: how to tabulate, of the form of conf/table.yaml.

    Raises:
        FewshotError: no run is of the layout, or a table would mix what was not measured alike.
    """
    complaints = list(unread)
    tables = costs = ""
    layout = settings["layout"]
    for metric in metrics_of(runs, layout):
        page = table_of(runs, {**settings, "layout": {**layout, "metric": metric}})
        complaints += page.complaints
        tables += f"<h2>{escape(page.title)}</h2>{section(page)}"
        costs += "" if page.cost is None else grid(page.cost)
    images, left_out = charts(runs, "svg")
    configurations, damaged = _configurations(runs, folder)
    sections = {
        "Tables": tables,
        "Pictures": "<h2>Pictures</h2>" + "".join(map(_figure, images, images.values())) + _list(left_out),
        "Configurations": "<h2>How the configurations differ</h2>" + configurations,
        "Costs": "<h2>What it took</h2>" + costs,
        "Commands": "<h2>Commands</h2>" + _commands(runs, folder),
    }
    complaints = list(dict.fromkeys([*complaints, *damaged]))
    if complaints:
        sections["Complaints"] = "<h2>What could not be read or compared</h2>" + _list(complaints)
    return _document(f"Report of {folder.resolve().name}", runs, sections), complaints


def charts(runs: Sequence[Record], format: str) -> tuple[dict[str, bytes], list[str]]:
    """Every chart that the runs have something for, by its name, and a line for each that is left out.

    Raises:
        FewshotError: a format other than png, pdf and svg.
    """
    images, left_out = {}, []
    for name, draw in CHARTS.items():
        try:
            figure = draw(runs)
        except FewshotError as error:
            left_out.append(f"{name} left out: {error}")
        else:
            images[name] = saved(figure, format)
    return images, left_out


def _figure(name: str, image: bytes) -> str:
    inside = base64.b64encode(image).decode()
    caption = CAPTIONS[name]
    return (
        f'<figure id="{name}"><div class="picture" tabindex="0"><img alt="{caption}" '
        f'src="data:image/svg+xml;base64,{inside}"></div><figcaption>{caption}</figcaption></figure>\n'
    )


def _configurations(runs: Sequence[Record], folder: Path) -> tuple[str, list[str]]:
    frame, missing, complaints = differences(runs)
    text = ""
    if len(frame):
        text += grid(frame)
    elif len(frame.columns) > 1:
        text += "<p>In nothing but the seed and places of files.</p>"
    if missing:
        records = len({run["folder"] for run in runs})
        text += _folded(f"no config.yaml beside {len(missing)} of {records} records", _below(missing, folder))
    return text, complaints


def _commands(runs: Sequence[Record], folder: Path) -> str:
    """Each command once, with the runs that it made."""
    made: dict[str, list[str]] = defaultdict(list)
    for place, run in {run["folder"]: run for run in runs}.items():
        made[str(run.get("command") or "command unknown")].append(place)
    parts = [
        f"<li><code>{escape(command)}</code>{_folded(f'{len(places)} records', _below(places, folder))}</li>"
        for command, places in made.items()
    ]
    return f"<ul>{''.join(parts)}</ul>"


def _below(places: Sequence[str], folder: Path) -> list[str]:
    return [str(Path(place).relative_to(folder)) for place in places]


def _folded(summary: str, lines: Sequence[str]) -> str:
    return f"<details><summary>{escape(summary)}</summary>{_list(lines)}</details>"


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _document(title: str, runs: Sequence[Record], sections: Mapping[str, str]) -> str:
    algorithms = ", ".join(dict.fromkeys(run["algorithm"] for run in runs))
    records = len({run["folder"] for run in runs})
    links = "\n".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    parts = "\n".join(f'<section id="{name.lower()}">{text}</section>' for name, text in sections.items())
    head = f"<header><h1>{escape(title)}</h1><p>{records} records of {escape(algorithms)}</p></header>"
    return document(title, f"{head}\n<nav>{links}</nav>\n<main>\n{parts}\n</main>", OWN_STYLE)
