"""A page in the format of the place where it will stand: Markdown, LaTeX with booktabs, CSV, or an HTML page."""

from __future__ import annotations

import html as hypertext
import re
from collections.abc import Callable

import pandas as pd

from fewshot.report.page import Entry, Page

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 75rem; padding: 0 1rem; color: #1b1b1b }
.scroll { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; border-bottom: 2px solid; border-top: 2px solid }
th, td { padding: .25rem .7rem; text-align: left; white-space: nowrap; font-variant-numeric: tabular-nums }
th { border-bottom: 1px solid }
li, p { overflow-wrap: anywhere }
"""


def markdown(page: Page) -> str:
    """As GitHub reads it."""

    def cell(entry: Entry) -> str:
        text = f"**{_markdown(entry.text)}**" if entry.bold else _markdown(entry.text)
        return text + (f" <sup>{', '.join(map(str, entry.notes))}</sup>" if entry.notes else "")

    parts = [_grid(page.table, cell, _markdown), f"{_markdown(page.title)}."]
    if page.notes:
        parts.append("\n".join(f"{number}. {_markdown(note)}" for number, note in enumerate(page.notes, start=1)))
    if page.footer:
        parts.append("\n".join(f"- **{_markdown(what)}**: {_markdown(text)}" for what, text in page.footer))
    if page.cost is not None:
        parts.append(_grid(page.cost, _markdown, _markdown))
    return "\n\n".join(parts)


def _grid(table: pd.DataFrame, cell: Callable[..., str], heading: Callable[[str], str]) -> str:
    # Cells are finished text: left to itself, tabulate reads "95.40" as a number and prints 95.4.
    return table.map(cell).rename(columns=heading).to_markdown(index=False, disable_numparse=True)


def _markdown(text: str) -> str:
    text = re.sub(r"([\\`*|\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # inside a word an underscore is one


def latex(page: Page) -> str:
    """Table environments to paste, in need of the package booktabs."""

    def cell(entry: Entry) -> str:
        text = rf"\textbf{{{_latex(entry.text)}}}" if entry.bold else _latex(entry.text)
        return text + (rf"\textsuperscript{{{','.join(map(str, entry.notes))}}}" if entry.notes else "")

    notes = [rf"\textsuperscript{{{number}}} {_latex(note)}" for number, note in enumerate(page.notes, start=1)]
    notes += [rf"\textbf{{{_latex(what)}}}: {_latex(text)}" for what, text in page.footer]
    parts = ["% \\usepackage{booktabs}", _float(page.table.map(cell), page.title, notes)]
    if page.cost is not None:
        parts.append(_float(page.cost.map(_latex), "What it took", []))
    return "\n".join(parts)


def _float(table: pd.DataFrame, caption: str, notes: list[str]) -> str:
    body = (
        table.rename(columns=_latex).style.hide(axis="index").to_latex(hrules=True, column_format="l" * table.shape[1])
    )
    below = ""
    if notes:
        lines = "\\\\\n".join(notes)
        below = (
            f"\n\\smallskip\n\\begin{{minipage}}{{\\linewidth}}\\footnotesize\\raggedright\n{lines}\n\\end{{minipage}}"
        )
    return f"\\begin{{table}}\n\\centering\\small\n\\caption{{{_latex(caption)}.}}\n{body}{below}\n\\end{{table}}"


# [ and * after the end of a row would be taken for its options.
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "*": "{*}", "±": r"$\pm$", "–": "--", "\n": " ",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def html(page: Page) -> str:
    """A complete page that needs nothing else."""
    escape = hypertext.escape

    def cell(entry: Entry) -> str:
        text = f"<b>{escape(entry.text)}</b>" if entry.bold else escape(entry.text)
        return text + (f"<sup>{', '.join(map(str, entry.notes))}</sup>" if entry.notes else "")

    def grid(table: pd.DataFrame) -> str:
        rows = table.rename(columns=escape).to_html(index=False, escape=False, border=0)
        return f'<div class="scroll">{rows}</div>'

    parts = [f"<h1>{escape(page.title)}</h1>", grid(page.table.map(cell))]
    if page.notes:
        parts.append("<ol>" + "".join(f"<li>{escape(note)}</li>" for note in page.notes) + "</ol>")
    if page.footer:
        items = (f"<li><b>{escape(what)}</b>: {escape(text)}</li>" for what, text in page.footer)
        parts.append("<ul>" + "".join(items) + "</ul>")
    if page.cost is not None:
        parts.append(f"<h2>What it took</h2>{grid(page.cost.map(escape))}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(page.title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>"
    )


def csv(page: Page) -> str:
    """One line per cell, numbers as they were measured."""
    return page.raw.to_csv(index=False, lineterminator="\n").rstrip("\n")


FORMATS: dict[str, Callable[[Page], str]] = {"markdown": markdown, "latex": latex, "csv": csv, "html": html}
