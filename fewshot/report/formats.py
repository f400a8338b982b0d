"""A page in the format of the place where it will stand: Markdown, LaTeX with booktabs, CSV, or an HTML page."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable

import pandas as pd

from fewshot.report.page import Entry, Page
from fewshot.report.web import html


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


NEEDS = r"""% \usepackage{booktabs,graphicx}
\providecommand{\resizebox}[3]{#3}% without graphicx a table is as large as it is"""
NUMBER = re.compile(r"[\d,.]+|–")
WRAP, LONG = 28, 24  # letters of a cell's line, rows of a table whose height matters more than its width
WIDE = 6  # columns above which the width of a short table matters most


def latex(page: Page) -> str:
    """Table environments to paste, in need of the package booktabs, and of graphicx to shrink what is too large."""
    notes = (rf"\textsuperscript{{{number}}}~{_latex(note)}." for number, note in enumerate(page.notes, start=1))
    footer = (rf"\textbf{{{_latex(what)}}}: {_latex(text)}." for what, text in page.footer)
    parts = [NEEDS, _float(page.table, page.title, [" ".join(notes), " ".join(footer)])]
    if page.cost is not None:
        parts.append(_float(page.cost.map(Entry), "What it took", []))
    return "\n".join(parts)


def _float(table: pd.DataFrame, caption: str, below: list[str]) -> str:
    width = 2 * WRAP if len(table) >= LONG else WRAP
    if below and table.shape[1] > WIDE and len(table) < LONG // 2:  # the costs' own columns are narrow
        width = 2 * WRAP // 3

    def cell(entry: Entry) -> str:
        text = rf"\textbf{{{_stacked(entry.text, width)}}}" if entry.bold else _stacked(entry.text, width)
        return text + (rf"\textsuperscript{{{','.join(map(str, entry.notes))}}}" if entry.notes else "")

    def place(entries: Iterable[Entry]) -> str:
        return "r" if all(NUMBER.fullmatch(entry.text) and not entry.notes for entry in entries) else "l"

    places = [place(table[name].tolist()) for name in table]
    rows = [" & ".join(map(cell, row)) for row in table.itertuples(index=False, name=None)]
    apart = r" \\ \addlinespace[2pt]" if any("tabular" in row for row in rows) else r" \\"
    notes = "\n\\par\\smallskip\n".join(text for text in below if text)
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\resizebox{!}{\ifdim\height>.98\textheight.98\textheight\else\height\fi}{%",
        r"\begin{minipage}[b]{\linewidth}\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{_latex(caption)}.}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{@{{}}{''.join(places)}@{{}}}}",
        r"\toprule",
        " & ".join(_stacked(name, WRAP // 2 if len(places) > 4 else WRAP, "b") for name in table) + r" \\",
        r"\midrule",
        f"{apart}\n".join(rows) + r" \\",
        r"\bottomrule",
        r"\end{tabular}}",
    ]
    if notes:
        lines += [r"\par\smallskip", rf"\begin{{minipage}}[b]{{\linewidth}}\scriptsize {notes}", r"\end{minipage}"]
    return "\n".join([*lines, r"\end{minipage}}", r"\end{table}"])


def _stacked(text: str, width: int, place: str = "t") -> str:
    """Long text on several lines, the first (t) or the last (b) of them on the line of the row."""
    lines = [_latex(line) for line in _lines(text, width)]
    if len(lines) < 2:
        return "".join(lines)
    stack = r" \\ ".join(lines)
    return rf"\begin{{tabular}}[{place}]{{@{{}}l@{{}}}}{stack}\end{{tabular}}"


def _lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


# [ and * after the end of a row would be taken for its options.
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "*": "{*}", "±": r"$\pm$", "–": "--", "\n": " ",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def csv(page: Page) -> str:
    """One line per cell, numbers as they were measured."""
    return page.raw.to_csv(index=False, lineterminator="\n").rstrip("\n")


FORMATS: dict[str, Callable[[Page], str]] = {"markdown": markdown, "latex": latex, "csv": csv, "html": html}
