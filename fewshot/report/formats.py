"""Pages in the format of the place where they will stand: Markdown, LaTeX with booktabs, CSV or HTML."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING

from fewshot.report.page import Entry, Page

if TYPE_CHECKING:
    import pandas as pd

# LaTeX
PREAMBLE = r"""% \usepackage{booktabs,graphicx}
\providecommand{\resizebox}[3]{#3}% without graphicx a table is as large as it is"""
NUMBER = re.compile(r"[\d,.]+|–")
WRAP = 28  # letters of a cell's line
LONG = 24  # rows of a table whose height matters more than its width
WIDE = 6  # columns above which the width of a short table matters most
# [ and * after the end of a row would be taken for its options.
ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "[": "{[}", "*": "{*}", "±": r"$\pm$", "–": "--", "\n": " ",
}  # fmt: skip

# Markdown
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")  # narrow in a terminal too

# HTML
HEADING = 14  # letters of a heading's line
# A table larger than the screen scrolls by itself; its headings and its first column stay.
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 80rem; padding: 0 1rem; color: #1b1b1b }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem }
.scroll { overflow: auto; max-height: 90vh; margin: 1rem 0; border-bottom: 2px solid; border-top: 2px solid }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; min-width: 4rem; max-width: 16rem }
th { position: sticky; top: 0; z-index: 1; background: #fff; border-bottom: 1px solid }
th { vertical-align: bottom; white-space: nowrap }
td { border-bottom: 1px solid #e4e4e4 }
tr.published td { border-top: 1px solid }
tr > :first-child { position: sticky; left: 0; background: #fff; min-width: 8rem } th:first-child { z-index: 2 }
sup { line-height: 0; margin-left: .15em; white-space: nowrap }
li, p { overflow-wrap: anywhere }
@media (max-width: 40rem) { tr > :first-child { overflow-wrap: anywhere; max-width: 8rem } }
"""


def render_markdown(*pages: Page) -> str:
    """Markdown as GitHub reads it; published rows follow a row that says so."""
    return "\n\n".join(map(_markdown_page, pages))


def _markdown_page(page: Page) -> str:
    rows = [
        [entry.render(escape_markdown, "**%s**", lambda numbers: numbers.translate(SUPERSCRIPTS)) for entry in row]
        for row in page.table.itertuples(index=False, name=None)
    ]
    if 0 < page.measured < len(rows):
        rows.insert(page.measured, ["**published**", *[""] * (page.table.shape[1] - 1)])
    parts = [f"{escape_markdown(page.title)}:", markdown_table(list(page.table), rows)]
    parts.append("\n".join(f"{number}. {escape_markdown(note)}" for number, note in enumerate(page.notes, start=1)))
    parts.append("\n".join(f"- **{escape_markdown(what)}**: {escape_markdown(text)}" for what, text in page.footer))
    if page.costs is not None:
        texts = [[escape_markdown(text) for text in row] for row in page.costs.itertuples(index=False, name=None)]
        parts.append(markdown_table(list(page.costs), texts))
    return "\n\n".join(filter(None, parts))


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    """A table whose columns are aligned in the source text too."""
    lines = [[escape_markdown(heading) for heading in headings], *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, [f":{'-' * (width - 1)}" for width in widths])
    padded = ([text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def escape_markdown(text: str) -> str:
    """The text on one line, without Markdown's own signs."""
    text = re.sub(r"([\\`*|\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # inside a word an underscore is one


def render_latex(*pages: Page) -> str:
    """Table environments to paste. They need the package booktabs, and graphicx to shrink what is too large."""
    return "\n".join([PREAMBLE, *map(_latex_page, pages)])


def _latex_page(page: Page) -> str:
    notes = (rf"\textsuperscript{{{number}}}~{escape_latex(note)}." for number, note in enumerate(page.notes, start=1))
    footer = (rf"\textbf{{{escape_latex(what)}}}: {escape_latex(text)}." for what, text in page.footer)
    width = 2 * WRAP if len(page.table) >= LONG else WRAP
    if page.table.shape[1] > WIDE and len(page.table) < LONG // 2:
        width = 2 * WRAP // 3
    label = re.sub(r"[^a-z0-9]+", "-", page.title.lower()).strip("-")
    below = [" ".join(notes), " ".join(footer)]
    parts = [_latex_table(page.table, page.measured, page.title, label, width, below)]
    if page.costs is not None:
        width = 2 * WRAP if len(page.costs) >= LONG else WRAP
        costs = page.costs.map(Entry)
        parts.append(_latex_table(costs, len(costs), f"{page.title}: what it took", f"{label}-costs", width, []))
    return "\n".join(parts)


def _latex_table(table: pd.DataFrame, measured: int, caption: str, label: str, width: int, below: list[str]) -> str:
    numbers = table.map(lambda entry: bool(NUMBER.fullmatch(entry.text)) and not entry.notes).all()
    alignment = "".join(numbers.map({True: "r", False: "l"}))

    def cell(entry: Entry) -> str:
        return entry.render(lambda text: _stack_lines(text, width), r"\textbf{%s}", r"\textsuperscript{{{}}}".format)

    rows = [" & ".join(map(cell, row)) for row in table.itertuples(index=False, name=None)]
    if 0 < measured < len(rows):
        rows[measured] = "\\midrule\n" + rows[measured]
    row_end = r" \\ \addlinespace[2pt]" if any("tabular" in row for row in rows) else r" \\"
    heading_width = WRAP // 2 if table.shape[1] > 4 else WRAP
    notes = "\n\\par\\smallskip\n".join(filter(None, below))
    lines = [
        r"\begin{table}",
        r"\centering",
        r"\resizebox{!}{\ifdim\height>.98\textheight.98\textheight\else\height\fi}{%",
        r"\begin{minipage}[b]{\linewidth}\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{escape_latex(caption)}.}}\label{{tab:{label}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}",
        r"\toprule",
        " & ".join(_stack_lines(name, heading_width, "b") for name in table) + r" \\",
        r"\midrule",
        f"{row_end}\n".join(rows) + r" \\",
        r"\bottomrule",
        r"\end{tabular}}",
    ]
    if notes:
        lines += [r"\par\smallskip", rf"\begin{{minipage}}[b]{{\linewidth}}\scriptsize {notes}", r"\end{minipage}"]
    return "\n".join([*lines, r"\end{minipage}}", r"\end{table}"])


def _stack_lines(text: str, width: int, position: str = "t") -> str:
    """Long text on several lines, the first (t) or the last (b) of them on the line of the row."""
    lines = [escape_latex(line) for line in _wrap(text, width)]
    if len(lines) < 2:
        return "".join(lines)
    stack = r" \\ ".join(lines)
    return rf"\begin{{tabular}}[{position}]{{@{{}}l@{{}}}}{stack}\end{{tabular}}"


def escape_latex(text: str) -> str:
    """The text without LaTeX's own signs."""
    return "".join(ESCAPES.get(letter, letter) for letter in text)


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def render_csv(*pages: Page) -> str:
    """One line per cell with its numbers as measured."""
    import pandas as pd

    return pd.concat([page.raw for page in pages]).to_csv(index=False, lineterminator="\n").rstrip("\n")


def render_html(*pages: Page) -> str:
    """A complete HTML document that needs no other file."""
    parts = []
    for page in pages:
        cost = "" if page.costs is None else f"<h2>What it took</h2>{html_table(page.costs)}"
        parts.append(f"<h1>{escape(page.title)}</h1>{html_section(page)}{cost}")
    return html_document("; ".join(page.title for page in pages), "\n".join(parts))


def html_document(title: str, body: str, style: str = "") -> str:
    """The body with a head."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n{body}\n</body></html>"
    )


def html_section(page: Page) -> str:
    """The table with its footnotes and its protocol."""
    parts = [html_table(page.table, page.measured)]
    if page.notes:
        parts.append("<ol>" + "".join(f"<li>{escape(note)}</li>" for note in page.notes) + "</ol>")
    if page.footer:
        items = (f"<li><b>{escape(what)}</b>: {escape(text)}</li>" for what, text in page.footer)
        parts.append("<ul>" + "".join(items) + "</ul>")
    return "\n".join(parts)


def html_table(table: pd.DataFrame, measured: int = 0) -> str:
    """A table of entries or texts, with a rule below the rows that were measured."""

    def cell(entry: Entry | str) -> str:
        if isinstance(entry, str):
            return escape(entry)
        return entry.render(
            lambda text: escape(text).replace(" ± ", "&nbsp;±&nbsp;"), "<b>%s</b>", "<sup>{}</sup>".format
        )

    texts = table.map(cell).rename(columns=lambda name: "<br>".join(map(escape, _wrap(name, HEADING))))
    rows = texts.to_html(index=False, escape=False, border=0).split("<tr>")  # the row of headings has a style
    if 0 < measured < len(table):
        rows[measured + 1] = f'<tr class="published">{rows[measured + 1]}'
    html = "<tr>".join(rows).replace('<tr><tr class="published">', '<tr class="published">')
    return f'<div class="scroll" tabindex="0">{html}</div>'


FORMATS: dict[str, Callable[..., str]] = {
    "markdown": render_markdown, "latex": render_latex, "csv": render_csv, "html": render_html,
}  # fmt: skip
