"""One HTML file about a folder of runs: its tables, a section per dataset, and details folded away.

The file needs no other file: the plots are inside it, and there is no script in it.
"""

from __future__ import annotations

import base64
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.report import confusion
from fewshot.report.confusion import html_test, read_confusion
from fewshot.report.formats import html_document, html_section, html_table
from fewshot.report.gather import select_protocol
from fewshot.report.labels import SETTING, method_names, short_task
from fewshot.report.page import DATASETS, NOTHING, Page
from fewshot.report.pictures import save_figure
from fewshot.report.records import PREDICTIONS, Record, protocol_name, task_name
from fewshot.report.table import make_table, metrics_of, read_layout, split_layout
from fewshot.report.traits import is_copy

if TYPE_CHECKING:
    import pandas as pd

OWN_STYLE = """
section { margin: 2.5rem 0 } nav { line-height: 2 } nav a { margin-right: 1.2rem; white-space: nowrap }
header p, figcaption, small { color: #555 } summary { cursor: pointer; font-weight: 600; margin: .6rem 0 }
figure { margin: 1.5rem 0 } .picture { overflow-x: auto }
.picture img { display: block; min-width: 38rem; max-width: 100%; height: auto }
code { font-size: 13px; overflow-wrap: anywhere }
"""
CAPTIONS = {
    "bars": "Test scores by method, with 95 % intervals.",
    "curves": "Validation scores during training, on each recipe's own validation episodes: a line for each training. "
    "The minutes hold the training of a feature extractor, and no validation.",
    "by_steps": "Test scores after several numbers of adaptation steps, with 95 % intervals.",
    "by_shots": "Test scores with several shots, with 95 % intervals.",
}


def render_report(
    folder: Path, runs: Sequence[Record], settings: dict[str, Any], unread: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """The report of a folder's runs, and a line for each thing that could not be read or compared.

    It opens with the tables of the layout. The rest is about all runs.

    Args:
        runs: every run below the folder, and `unread` a line for each unreadable one, as `gather_runs` returns them.
        settings: the layout and its changes, in the form of conf/report.yaml.

    Raises:
        FewshotError: there is no table: no run is of the layout, or it would mix what was not measured alike.
    """
    complaints = list(unread)
    pages = _make_pages(runs, settings, complaints)
    if not pages:
        raise FewshotError(complaints[-1])
    sections = {"Results": "".join(map(_table, pages))}
    for dataset, images in draw_plots(runs, settings["layout"]["protocol"], "svg", complaints).items():
        dataset_runs = [run for run in runs if run["protocol"]["dataset"] == dataset]
        papers = [settings | paper for paper in _paper_layouts(dataset)]
        tables = [_table(page) for paper in papers for page in _make_pages(dataset_runs, paper, complaints)]
        figures = [_figure(name, image) for name, image in images.items()]
        confused = _confusions(dataset_runs, complaints)
        name = DATASETS.get(dataset) or dataset
        published = [DATASETS[each] for each in DATASETS if each != dataset]
        taken = {slug(other) for other in (*sections, "Details", *published)}
        while slug(name) in taken:  # a person's dataset may be called as another, or as a part of the page
            name += " (data)"
        sections[name] = "".join([*tables, *figures, *confused])
    details = _details(folder, runs, pages, settings, complaints)
    complaints = list(dict.fromkeys(complaints))
    if complaints:
        items = (f"<li>{escape(line)}</li>" for line in complaints)
        details["What could not be read or compared"] = f"<ul>{''.join(items)}</ul>"
    folded = (f"<details><summary>{escape(name)}</summary>{text}</details>" for name, text in details.items())
    sections["Details"] = "\n".join(folded)
    title = f"Report of {folder.resolve().name}"
    algorithms = ", ".join(dict.fromkeys(run["algorithm"] for run in runs))
    count = len({run["folder"] for run in runs})
    about = f"{count} record{'s' * (count > 1)} of {algorithms}"
    head = f"<header><h1>{escape(title)}</h1><p>{escape(about)}</p></header>"
    links = "\n".join(f'<a href="#{slug(name)}">{escape(name)}</a>' for name in sections)
    parts = "\n".join(
        f'<section id="{slug(name)}"><h2>{escape(name)}</h2>{text}</section>' for name, text in sections.items()
    )
    return html_document(
        title, f"{head}\n<nav>{links}</nav>\n<main>\n{parts}\n</main>", OWN_STYLE + confusion.STYLE
    ), complaints


def _make_pages(runs: Sequence[Record], settings: dict[str, Any], complaints: list[str]) -> list[Page]:
    """The pages of a layout, one for each of its tables and metrics; what is wrong with one is a complaint."""
    pages = []
    for group, own in split_layout(runs, settings["layout"]):
        for metric in metrics_of(group, own):
            try:
                layout = {**own, "metric": metric}
                pages.append(make_table(group, {**settings, "layout": layout, "costs": True}))
                complaints += pages[-1].complaints
            except FewshotError as error:
                complaints.append(str(error))
    return pages


def _confusions(runs: Sequence[Record], complaints: list[str]) -> list[str]:
    """Which classes are confused, for each test that kept its predictions; folded away where there are several."""
    kept = [run for run in runs if (Path(run["folder"]) / PREDICTIONS).is_file()]
    parts = []
    for name, run in zip(method_names(kept)[0], kept, strict=True):
        try:
            text = html_test(read_confusion(run))
        except FewshotError as error:
            complaints.append(str(error))
            continue
        task = f"{short_task(run['protocol'], False)}, seed {run['seed']}, protocol {protocol_name(run)}"
        is_open = " open" if len(kept) == 1 else ""
        summary = f"<summary>{escape(f'Confusions of {name}')} <small>({escape(task)})</small></summary>"
        parts.append(f"<details{is_open}>{summary}{text}</details>")
    return parts


def _paper_layouts(dataset: str) -> list[dict[str, Any]]:
    """The settings of the layouts of a dataset's papers, of any algorithm."""
    files = sorted((CONF / "layout").glob("*.yaml"))
    layouts = [layout for path in files if not (layout := read_layout(path.stem, path))["algorithms"]]
    shown = [layout for layout in layouts if dataset in (layout["datasets"] or ())]
    return [{"layout": layout, "published": layout["published"], "rows": None, "cols": None} for layout in shown]


def _details(
    folder: Path, runs: Sequence[Record], pages: Sequence[Page], settings: dict[str, Any], complaints: list[str]
) -> dict[str, str]:
    """What is folded away, by its heading: the tests by other protocols, settings, costs and commands."""
    layout, details = settings["layout"], {}
    # A dataset without tests by the layout's protocol has its others in the table above.
    datasets = {run["protocol"]["dataset"] for run in runs if protocol_name(run) == layout["protocol"]}
    others = [run for run in runs if run["protocol"]["dataset"] in datasets]
    for name in sorted({protocol_name(run) for run in others} - {layout["protocol"]}):
        protocol_runs = [run for run in others if protocol_name(run) == name]
        tables = _make_pages(protocol_runs, {**settings, "layout": {**layout, "protocol": name}}, complaints)
        details[f"Tests by the protocol {name}"] = "".join(map(_table, tables))
    records = {str(Path(run["folder"]).relative_to(folder)): run for run in runs}
    differences, missing = compare_settings(list(records.values()))
    same = "<p>No two records differ in the settings that they hold.</p>"
    old = f"<p>{missing} older records do not hold their settings.</p>" if missing else ""
    details["How the trainings differ"] = (html_table(differences) if len(differences) else same) + old
    costs = ((page.title, page.costs) for page in pages if page.costs is not None)
    details["What it took"] = "".join(f"<h3>{escape(title)}</h3>{html_table(table)}" for title, table in costs)
    commands: dict[str, list[str]] = defaultdict(list)
    for name, run in records.items():
        commands[str(run.get("command") or "unknown")].append(escape(name))
    items = (
        f"<li><code>{escape(text)}</code><br><small>{', '.join(own)}</small></li>" for text, own in commands.items()
    )
    details["Commands"] = f"<ul>{''.join(items)}</ul>"
    return details


def draw_plots(
    runs: Sequence[Record], protocol: str | None, format: str, complaints: list[str]
) -> dict[str, dict[str, bytes]]:
    """For each dataset the plots that its runs have data for, by their file names.

    Args:
        protocol: of the tests that are shown, as `select_protocol` takes it.
        complaints: gets a line for each plot that cannot be drawn.

    Raises:
        FewshotError: a format other than png, pdf and svg.
    """
    from fewshot.report.plots import PLOTS

    images: dict[str, dict[str, bytes]] = {}
    slugs: set[str] = set()
    for dataset in sorted({run["protocol"]["dataset"] for run in runs}):
        dataset_runs = [run for run in runs if run["protocol"]["dataset"] == dataset]
        images[dataset], of_dataset = {}, slug(dataset)
        while of_dataset in slugs:
            of_dataset += "_"
        slugs.add(of_dataset)
        for kind, plot in PLOTS.items():
            try:
                figures = plot(dataset_runs if kind == "curves" else select_protocol(dataset_runs, protocol)[0])
            except FewshotError as error:
                complaints.append(f"{kind} of {dataset} left out: {error}")
                continue
            for number, figure in enumerate(figures, start=1):
                name = f"{kind}_{of_dataset}" + (f"_{number}" if len(figures) > 1 else "")
                images[dataset][name] = save_figure(figure, format)
    return images


def compare_settings(runs: Sequence[Record]) -> tuple[pd.DataFrame, int]:
    """A line per setting in which trainings differ, a column per training; and how many records do not hold theirs.

    Trainings that differ in the seed alone share a column.
    """
    import pandas as pd

    groups: dict[str, list[Record]] = defaultdict(list)
    for run in runs:
        if run.get("settings"):
            groups[run["config"]].append(run)
    first = [group[0] for group in groups.values()]
    headings = [
        f"{name}; {task_name(group[0])}; seed {', '.join(map(str, sorted({run['seed'] for run in group})))}"
        for name, group in zip(method_names(first, [SETTING])[0], groups.values(), strict=True)
    ]
    texts = [
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in run["settings"].items()}
        for run in first
    ]
    # Classes have names, a record says which recipe was taken, and some settings repeat another in every training.
    useful = {
        key
        for key in {key for own in texts for key in own}
        if not key.endswith(("_", "algorithm.recipe")) and not all(is_copy(key, own) for own in texts if key in own)
    }
    texts = [{key: text for key, text in own.items() if key in useful} for own in texts]
    frame = pd.DataFrame(texts, index=pd.Index(headings)).fillna(NOTHING)
    missing = len(runs) - sum(map(len, groups.values()))
    return frame.loc[:, frame.nunique() > 1].T.reset_index(names="setting"), missing


def slug(name: str) -> str:
    """The name as part of a file's name or of an address."""
    return re.sub(r"\W+", "_", name).strip("_").lower()


def _table(page: Page) -> str:
    return f"<h3>{escape(page.title)}</h3>{html_section(page)}"


def _figure(name: str, image: bytes) -> str:
    caption = next(text for kind, text in CAPTIONS.items() if name.startswith(kind))
    source = f"data:image/svg+xml;base64,{base64.b64encode(image).decode()}"
    return (
        f'<figure id="{name}"><div class="picture" tabindex="0"><img alt="{caption}" src="{source}"></div>'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )
