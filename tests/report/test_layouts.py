"""Tables by layout and format, from the committed records, and the command line that makes them."""

import csv
import io
import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.report.formats import FORMATS
from fewshot.report.published import read_published
from fewshot.report.table import refresh_tables

RESULTS = CONF.parent / "results"
DOCUMENTS = ("leo", "ablation", "omniglot", "mmfewshot", "sinusoid")  # layouts of published documents
EVERY = {
    **{layout: (f"layout={layout}",) for layout in ("comparison", *DOCUMENTS)},
    "free": ("layout=free", "rows=[method]", "cols=[task]"),
}
QUARTER, ABLATION = "omniglot_quarter_hour", "omniglot_leo"

# Layouts


@pytest.mark.parametrize("layout", EVERY)
def test_every_layout_renders_from_the_committed_records_in_every_format(layout: str, results: Any) -> None:
    page = results(*EVERY[layout])
    assert len(page.table) > 2
    assert page.notes or layout in ("comparison", "free")
    for render in FORMATS.values():
        text = render(page)
        assert not re.search(r"\bnan\b", text, re.IGNORECASE)
        assert ("LEO paper, Table 2" in text) == (layout in ("leo", "ablation"))
        assert ("open-mmlab/mmfewshot" in text) == (layout == "mmfewshot")


def test_every_source_that_a_layout_names_has_figures(lab: Any) -> None:
    named = {source for layout in DOCUMENTS for source in lab.settings(f"layout={layout}")["layout"]["sources"] or []}
    assert named and named <= {record["published"]["source"] for record in read_published()}


@pytest.mark.parametrize(
    ("layout", "source", "heading", "text"),
    [
        ("leo", "LEO paper, Table 2 (arXiv:1807.05960v3)", "mini 5-way 1-shot", "61.76 ± 0.08"),
        ("leo", "deepmind/leo README, released code (de9a0c2)", "tiered 5-way 5-shot", "81.77 ± 0.09"),
        ("leo", "measured here", "omniglot 5-way 1-shot", "92.67 ± 0.45"),
        ("sinusoid", "gaoyuankidult/MAML-tf README (5da411e)", "sinusoid 10-shot, 5 adaptation steps", "0.2024"),
        ("sinusoid", "MAML paper, Table 2 (arXiv:1703.03400v3)", "sinusoid 5-shot, 1 adaptation step", "0.67"),
    ],
)
def test_figures_stand_where_the_document_of_a_layout_has_them(
    lab: Any, results: Any, layout: str, source: str, heading: str, text: str
) -> None:
    page = results(f"layout={layout}", below=ABLATION)
    rows = {row["source"]: row for row in lab.texts(page) if "multi" not in row["method"]}
    assert rows[source][heading] == text
    nothing_measured = ["no run belongs to this layout: the table shows published figures only"]
    assert page.complaints == (nothing_measured if layout == "sinusoid" else [])


def test_mmfewshot_has_mean_and_interval_apart(lab: Any, results: Any) -> None:
    rows = lab.texts(results("layout=mmfewshot", below=QUARTER))
    wanted = {"test": "cub 5-way 1-shot", "arch": "resnet12", "input size": "84", "way": "5", "shot": "1"}
    [row] = [row for row in rows if wanted.items() <= row.items()]
    assert (row["mean"], row["interval"]) == ("70.44", "± 0.55")


def test_the_ablation_has_the_papers_rows_in_its_order(lab: Any, results: Any) -> None:
    rows = [row["method"].split(" ")[0] for row in lab.texts(results("layout=ablation")) if "paper" in row["source"]]
    assert rows == [
        "meta_sgd", "leo_generator", "leo_generator_finetuning", "leo_random_prior", "leo_deterministic",
        "leo_no_finetuning", "leo",
    ]  # fmt: skip


def test_omniglot_has_the_setting_in_a_column_and_published_figures_never_in_a_measured_protocol(
    lab: Any, results: Any
) -> None:
    page = results("layout=omniglot", below=QUARTER)
    rows = [row for row in lab.texts(page) if row["method"] == "reptile (conv4)"]
    assert {row["setting"] for row in rows} == {"inductive", "transductive"}
    for row in rows:
        measured = {heading for heading, text in row.items() if heading.endswith(("none", "per_class")) and text != "–"}
        assert bool(measured) == (row["source"] == "measured here")
        assert not measured or row["omniglot 5-way 1-shot, as published"] == "–"
    assert sum(row["omniglot 5-way 1-shot, as published"] != "–" for row in rows) == 4  # two versions, two settings
    # The footnotes of a figure tell what it really is.
    [row] = [row for row in page.table.to_dict("records") if "dragen1860" in row["source"].text]
    notes = " ".join(page.notes[number - 1] for number in row["omniglot 20-way 1-shot"].notes)
    assert "trains on the test split" in notes and "so it stands here as FOMAML" in notes


def test_published_figures_join_the_comparison_on_request(lab: Any, results: Any) -> None:
    assert "source" not in lab.texts(results("published=true", below=ABLATION))[0]  # nobody reports LEO on Omniglot
    sources = {row["source"] for row in lab.texts(results("published=true", below=QUARTER))}
    assert "MAML paper, Table 1 (arXiv:1703.03400v3)" in sources
    assert "source" not in lab.texts(results(below=QUARTER))[0]


def test_a_free_layout_takes_any_fields(lab: Any, results: Any) -> None:
    rows, cols = "rows=[algorithm,protocol.setting]", "cols=[protocol.query,protocol.rotations]"
    page = results("layout=free", rows, cols, below=QUARTER)
    second = lab.texts(page)[1]
    assert (second["algorithm"], second["setting"]) == ("maml", "transductive")
    assert second["15 queries, rotations per_class"] == "96.29 ± 0.32"
    assert page.table.iloc[1]["15 queries, rotations per_class"].bold


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rows=[algorithm,protocol.setting]", "cols=[protocol.query]"], r"rotations \(none and per_class\): add "),
        (["rows=[algorithm]", "cols=[task]"], r"protocol.setting \(inductive and transductive\): add protocol.setting"),
        (["rows=[algorithm,folder]", "cols=[protocol.query]"], "would share a column but their tests differ in"),
        (["rows=[algorithm,protocol.qery]"], "no field protocol.qery"),
        (["rows=[protocol]"], "protocol is a group of fields; name one of them, such as protocol.dataset"),
        (["rows=algorithm"], "rows=algorithm: must be a list of fields"),
        ([], "a free layout needs rows"),
    ],
)
def test_a_layout_that_mixes_protocols_or_names_no_field_is_refused(
    results: Any, words: list[str], message: str
) -> None:
    with pytest.raises(FewshotError, match=message):
        results("layout=free", *words, below=QUARTER)


# Bold


def test_bold_is_the_best_and_what_cannot_be_told_from_it_with_the_scores_of_seeds_averaged(lab: Any) -> None:
    random = np.random.default_rng(0)
    tasks = random.uniform(0.5, 0.9, 600)
    # The twin's seeds are a point off in opposite directions: each alone could be told from the best, their mean not.
    shifts = {("best", 0): 0.0, ("twin", 0): -0.0101, ("twin", 1): 0.01, ("near", 0): -0.005}
    for (name, seed), shift in shifts.items():
        scores = {"accuracy": tasks + shift + random.normal(0, 0.01, 600)}
        lab.write(f"{name}{seed}", scores, algorithm=name, seed=seed)
    rows = {row["method"].text.split(" ")[0]: row for row in lab.page().table.to_dict("records")}
    assert [name for name, row in rows.items() if row["omniglot 5-way 1-shot"].bold] == ["best", "twin"]


# Formats


def test_csv_has_a_line_per_cell_with_raw_numbers(results: Any) -> None:
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](results(below=ABLATION)))))
    record = json.loads((RESULTS / ABLATION / "omniglot-5w1s/leo-features/record.json").read_text())
    leo = {line["shot"]: line for line in lines if line["algorithm"] == "leo"}
    assert len(lines) == 16
    assert float(leo["1"]["value"]) == pytest.approx(100 * record["test"]["accuracy"], rel=1e-12)
    assert float(leo["1"]["ci95_over_episodes"]) == pytest.approx(100 * record["test"]["ci95"], rel=1e-12)
    assert leo["1"]["manifest"] == record["protocol"]["manifest"]
    assert 0.05 < float(leo["1"]["p_holm"]) < 1 and leo["1"]["not_told_from_best"] == "True"
    assert float(leo["5"]["p_holm"]) < 0.05 and leo["5"]["not_told_from_best"] == "False"


def test_html_is_one_complete_page_that_fetches_nothing(results: Any) -> None:
    text = FORMATS["html"](results("layout=omniglot"))
    assert text.startswith("<!doctype html>") and text.endswith("</html>")
    assert not re.search(r"src=|href=|url\(|<script", text)
    tags = set(re.findall(r"</(\w+)>", text))
    assert {"table", "tr", "td", "sup", "li"} <= tags
    assert all(len(re.findall(rf"<{tag}\b", text)) == text.count(f"</{tag}>") for tag in tags)


ODD = r'[a|b_c*d <i>&"\%$#{e}~^ _f_'  # signs that some format takes for its own


@pytest.mark.parametrize(
    ("form", "escaped"),
    [
        ("markdown", r'\[a\|b_c\*d &lt;i>&"\\%$#{e}~^ \_f\_'),
        ("html", r"[a|b_c*d &lt;i&gt;&amp;&quot;\%$#{e}~^ _f_"),
        (
            "latex",
            r"{[}a\textbar{}b\_c{*}d \textless{}i\textgreater{}\&''\textbackslash{}\%\$\#\{e\}"
            r"\textasciitilde{}\textasciicircum{} \_f\_",
        ),
    ],
)
def test_signs_that_a_format_takes_for_its_own_are_escaped(lab: Any, form: str, escaped: str) -> None:
    lab.write("run", algorithm=ODD)
    assert FORMATS[form](lab.page()).count(escaped) == 2  # in the table and in that of costs


def compile_latex(folder: Path, body: str, packages: str) -> str:
    """The log of pdflatex for a document with the packages and this body."""
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex here: Debian's texlive-latex-recommended brings it")
    page = f"\\documentclass{{article}}\\usepackage[T1]{{fontenc}}\\usepackage{{{packages}}}\\begin{{document}}\n"
    (folder / "page.tex").write_text(f"{page}{body}\n\\end{{document}}\n", encoding="utf-8")
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


@pytest.mark.parametrize("layout", EVERY)
def test_latex_compiles_and_fits_the_page(tmp_path: Path, results: Any, layout: str) -> None:
    log = compile_latex(tmp_path, FORMATS["latex"](results(*EVERY[layout])), "booktabs,graphicx")
    assert "Overfull" not in log and "Float too large" not in log


def test_latex_needs_nothing_but_booktabs_and_stands_any_sign(lab: Any) -> None:
    lab.write("run", algorithm=ODD)
    compile_latex(lab.folder, FORMATS["latex"](lab.page()), "booktabs")


# Each page in a frame as narrow as a telephone: its rows, and by how much it is wider than the frame.
FRAMES = """<!doctype html><meta charset="utf-8"><body>%s<pre id="found"></pre><script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(({contentDocument: page}) => ({
    texts: [...page.querySelectorAll("td:first-child")].map(cell => cell.innerText),
    sideways: page.documentElement.scrollWidth - page.documentElement.clientWidth,
  }));
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""


def test_a_browser_shows_every_row_of_every_layout_on_a_narrow_screen(tmp_path: Path, results: Any) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        pytest.skip("neither chromium nor google-chrome here: Debian's chromium brings one")
    pages = [results(*words) for words in EVERY.values()]
    frames = (f'<iframe width="390" height="800" srcdoc="{escape(FORMATS["html"](page))}"></iframe>' for page in pages)
    (tmp_path / "frames.html").write_text(FRAMES % "".join(frames), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    command = [browser, *options, (tmp_path / "frames.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    for page, shown in zip(pages, json.loads(unescape(match[1])), strict=True):
        assert shown["texts"][: len(page.table)] == [entry.text for entry in page.table.iloc[:, 0]]
        assert shown["sideways"] <= 0


# Tables in Markdown files


def test_the_tables_in_results_are_current(lab: Any) -> None:
    found = {path: refresh_tables(path, lab.settings()) for path in RESULTS.rglob("*.md")}
    with_tables = {path: made[0] for path, made in found.items() if made is not None}
    assert {RESULTS / ABLATION / "README.md", RESULTS / QUARTER / "README.md"} <= set(with_tables)
    for path, text in with_tables.items():
        assert path.read_text(encoding="utf-8") == text, "run `python tools/table.py refresh=results`"


def test_refresh_writes_the_table_between_its_marks_and_nothing_else(call: Any, lab: Any, tmp_path: Path) -> None:
    lab.write("results/maml")
    page = tmp_path / "results" / "README.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n")
    done = call("table", "refresh=results")
    assert (done.code, done.out, done.err) == (0, "results/README.md: written\n", "")
    text = page.read_text()
    assert text.startswith("before\n<!-- table -->\n\n| method") and text.endswith("|\n\n<!-- /table -->\nafter\n")
    assert call("table", "refresh=results").out == "results/README.md: current\n"


def test_a_mark_may_name_its_layout(lab: Any, tmp_path: Path) -> None:
    lab.write("maml")
    path = tmp_path / "README.md"
    path.write_text("<!-- table layout=omniglot -->\n<!-- /table -->\n")
    made = refresh_tables(path, lab.settings())
    assert made is not None
    wanted = FORMATS["markdown"](lab.page("layout=omniglot"))
    assert made[0] == f"<!-- table layout=omniglot -->\n\n{wanted}\n\n<!-- /table -->\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table -->\n", "a table stands between one <!-- table -->"),
        ("<!-- /table --><!-- table -->", "a table stands between one <!-- table -->"),
        (2 * "<!-- table --><!-- /table -->", "a table stands between one <!-- table -->"),
        ("<!-- table layout=omnigloss --><!-- /table -->", "layout=omnigloss: no such layout"),
    ],
)
def test_marks_that_do_not_pair_or_name_no_layout_are_refused(
    lab: Any, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(FewshotError, match=message):
        refresh_tables(path, lab.settings())


# The command


def test_a_table_goes_to_a_file_and_what_cannot_be_read_is_one_line(call: Any, lab: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        lab.write(f"runs/{name}")
    (tmp_path / "runs/a/record.json").write_text("{")
    done = call("table", "runs=runs", "format=latex", "out=paper/table.tex", "costs=false")
    assert (done.code, done.out) == (0, "wrote paper/table.tex\n")
    assert done.err.startswith("warning: runs/a/record.json cannot be read") and len(done.err.splitlines()) == 1
    assert (tmp_path / "paper/table.tex").read_text().count(r"\begin{table}") == 1
    (tmp_path / "runs/b/record.json").write_text("{")
    done = call("table", "runs=runs")
    assert (done.code, done.out) == (1, "")
    assert "no record below runs can be read" in done.err and "(and 1 more)" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("format=tex", "format=tex: choose one of markdown, latex, csv, html"),
        ("layout=leoo", "did you mean leo?"),
        ("published=maybe", "published=maybe: must be true or false"),
        ("refresh=.", "no Markdown file below . has a place for a table"),
    ],
)
def test_a_mistake_is_answered_in_one_line(call: Any, word: str, message: str) -> None:
    done = call("table", word)
    assert (done.code, done.out) == (1, "")
    assert message in done.err and len(done.err.splitlines()) == 1
