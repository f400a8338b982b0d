"""One HTML file about a folder of runs: tables, plots, differing settings, costs and commands.

The file needs no other file: the plots are inside it, and there is no script in it.
"""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fewshot.core.errors import FewshotError
from fewshot.core.paths import UNHASHED_KEYS
from fewshot.report.formats import html_document, html_section, html_table
from fewshot.report.labels import STEPS, column_names, column_of, method_names
from fewshot.report.page import NOTHING
from fewshot.report.records import Record
from fewshot.report.table import make_table, metrics_of

if TYPE_CHECKING:
    import pandas as pd

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


def render_report(
    folder: Path, runs: Sequence[Record], settings: Mapping[str, Any], unread: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """The report of a folder's runs, and a line for each thing that could not be read or compared.

    The layout chooses the runs of the tables. Plots, configurations and commands are of all runs.

    Args:
        runs: every run below the folder, and `unread` a line for each unreadable one, as `read_runs` returns them.
        settings: the layout and its changes, in the form of conf/table.yaml.

    Raises:
        FewshotError: no run is of the layout, or a table would mix what was not measured alike.
    """
    import pandas as pd

    complaints = list(unread)
    tables = costs = ""
    for metric in metrics_of(runs, settings["layout"]):
        page = make_table(runs, {**settings, "layout": {**settings["layout"], "metric": metric}})
        complaints += page.complaints
        tables += f"<h2>{escape(page.title)}</h2>{html_section(page)}"
        costs += "" if page.costs is None else html_table(page.costs)
    images, left_out = draw_plots(runs, "svg")
    figures = [
        f'<figure id="{name}"><div class="picture" tabindex="0"><img alt="{CAPTIONS[name]}" '
        f'src="data:image/svg+xml;base64,{base64.b64encode(image).decode()}"></div>'
        f"<figcaption>{CAPTIONS[name]}</figcaption></figure>\n"
        for name, image in images.items()
    ]
    records = {str(Path(run["folder"]).relative_to(folder)): run for run in runs}
    configurations, missing = compare_configurations(runs)
    commands = [str(run.get("command") or "unknown") for run in records.values()]
    sections = {
        "Tables": tables,
        "Pictures": "<h2>Pictures</h2>" + "".join(figures) + _list(left_out),
        "Configurations": "<h2>How the configurations differ</h2>"
        + (html_table(configurations) if len(configurations) else "<p>No two of them differ in a setting.</p>")
        + (f"<p>{missing} of {len(records)} records have no readable config.yaml.</p>" if missing else ""),
        "Costs": "<h2>What it took</h2>" + costs,
        "Commands": "<h2>Commands</h2>" + html_table(pd.DataFrame({"record": list(records), "command": commands})),
    }
    if complaints:
        sections["Complaints"] = "<h2>What could not be read or compared</h2>" + _list(complaints)
    title = f"Report of {folder.resolve().name}"
    algorithms = ", ".join(dict.fromkeys(run["algorithm"] for run in runs))
    links = "\n".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    parts = "\n".join(f'<section id="{name.lower()}">{text}</section>' for name, text in sections.items())
    head = f"<header><h1>{escape(title)}</h1><p>{len(records)} records of {escape(algorithms)}</p></header>"
    return html_document(title, f"{head}\n<nav>{links}</nav>\n<main>\n{parts}\n</main>", OWN_STYLE), complaints


def draw_plots(runs: Sequence[Record], format: str) -> tuple[dict[str, bytes], list[str]]:
    """Every plot that the runs have data for, by its name, and a line for each that is left out.

    Raises:
        FewshotError: a format other than png, pdf and svg.
    """
    from fewshot.report.pictures import save_figure
    from fewshot.report.plots import PLOTS

    images, left_out = {}, []
    for name, plot in PLOTS.items():
        try:
            figure = plot(runs)
        except FewshotError as error:
            left_out.append(f"{name} left out: {error}")
        else:
            images[name] = save_figure(figure, format)
    return images, left_out


def compare_configurations(runs: Sequence[Record]) -> tuple[pd.DataFrame, int]:
    """A line per key of `config.yaml` in which runs differ, a column per configuration; and how many records have none.

    Runs that differ in the seed and in paths alone share a column. A test that lies below the folder of its run needs
    no configuration of its own.
    """
    import pandas as pd

    groups: dict[tuple[tuple[str, str], ...], list[Record]] = defaultdict(list)
    missing = 0
    for folder, run in {Path(run["folder"]): run for run in runs}.items():
        try:
            config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
            chosen = {key: value for key, value in config.items() if key not in (*UNHASHED_KEYS, "seed")}
        except (OSError, AttributeError, OmegaConfBaseException, YAMLError):
            missing += not (folder.parents[1] / "config.yaml").exists()
            continue
        flat = pd.json_normalize(chosen).to_dict("records")[0]  # nested keys as `train.steps`
        texts = {
            key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in flat.items()
        }
        groups[tuple(texts.items())].append(run)
    first = [group[0] for group in groups.values()]
    tasks = column_names(first)
    headings = [
        f"{name}; {tasks[column_of(group[0])]}; seed {', '.join(str(run['seed']) for run in group)}"
        for name, group in zip(method_names(first, [STEPS])[0], groups.values(), strict=True)
    ]
    settings = pd.DataFrame([dict(flat) for flat in groups], index=headings).fillna(NOTHING)
    settings = settings[[key for key in settings if not str(key).endswith("_")]]  # classes have names beside them
    return settings.loc[:, settings.nunique() > 1].T.reset_index(names="key"), missing


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
