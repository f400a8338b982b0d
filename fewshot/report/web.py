"""HTML: a page as a complete document, and its parts for a longer one."""

from __future__ import annotations

import textwrap
from html import escape

import pandas as pd

from fewshot.report.page import Entry, Page

HEADING = 14  # letters of a line of a heading
# A table that is larger than the screen scrolls in itself; its headings and its first column stay.
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 80rem; padding: 0 1rem; color: #1b1b1b }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem }
.scroll { overflow: auto; max-height: 90vh; margin: 1rem 0; border-bottom: 2px solid; border-top: 2px solid }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; min-width: 4rem; max-width: 16rem }
th { position: sticky; top: 0; z-index: 1; background: #fff; border-bottom: 1px solid }
th { vertical-align: bottom; white-space: nowrap }
td { border-bottom: 1px solid #e4e4e4 }
tr > :first-child { position: sticky; left: 0; background: #fff; min-width: 8rem } th:first-child { z-index: 2 }
sup { line-height: 0; margin-left: .15em; white-space: nowrap }
li, p { overflow-wrap: anywhere }
@media (max-width: 40rem) { tr > :first-child { overflow-wrap: anywhere; max-width: 8rem } }
"""


def html(page: Page) -> str:
    """A complete document that needs nothing else."""
    cost = "" if page.cost is None else f"<h2>What it took</h2>{grid(page.cost)}"
    return document(page.title, f"<h1>{escape(page.title)}</h1>{section(page)}{cost}")


def document(title: str, body: str, style: str = "") -> str:
    """The body with a head."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n{body}\n</body></html>"
    )


def section(page: Page) -> str:
    """The table with its footnotes and its protocol."""
    parts = [grid(page.table)]
    if page.notes:
        parts.append("<ol>" + "".join(f"<li>{escape(note)}</li>" for note in page.notes) + "</ol>")
    if page.footer:
        items = (f"<li><b>{escape(what)}</b>: {escape(text)}</li>" for what, text in page.footer)
        parts.append("<ul>" + "".join(items) + "</ul>")
    return "\n".join(parts)


def grid(table: pd.DataFrame) -> str:
    """Entries, or plain text, as a table that scrolls in itself."""
    rows = table.map(_cell).rename(columns=_heading).to_html(index=False, escape=False, border=0)
    return f'<div class="scroll" tabindex="0">{rows}</div>'


def _cell(entry: Entry | str) -> str:
    if isinstance(entry, str):
        return escape(entry)
    text = escape(entry.text).replace(" ± ", "&nbsp;±&nbsp;")
    text = f"<b>{text}</b>" if entry.bold else text
    return text + (f"<sup>{', '.join(map(str, entry.notes))}</sup>" if entry.notes else "")


def _heading(text: str) -> str:
    lines = textwrap.wrap(text, HEADING, break_long_words=False, break_on_hyphens=False)
    return "<br>".join(map(escape, lines))
