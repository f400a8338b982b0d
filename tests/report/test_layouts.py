"""Tables by layout and format, from the committed records, and the command line that makes them."""

import csv
import io
import json
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from scipy import stats

from fewshot.core.errors import FewshotError
from fewshot.core.paths import CONF
from fewshot.report.formats import FORMATS
from fewshot.report.gather import read_runs
from fewshot.report.page import Page
from fewshot.report.published import published
from fewshot.report.records import write_record
from fewshot.report.table import refreshed, table_of

RESULTS = CONF.parent / "results"
NAMED = ("leo", "ablation", "omniglot", "mmfewshot", "sinusoid")
EVERY = {
    **{layout: (f"layout={layout}",) for layout in ("comparison", *NAMED)},
    "free": ("layout=free", "rows=[method]", "cols=[task]"),
}
QUARTER, ABLATION = RESULTS / "omniglot_quarter_hour", RESULTS / "omniglot_leo"


def settings(*words: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = OmegaConf.to_container(compose("table", list(words)), resolve=True)
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}


def table(*words: str, runs: Path = RESULTS) -> Page:
    found, complaints = read_runs(runs)
    page = table_of(found, settings(*words))
    page.complaints[:0] = complaints
    return page


def texts(page: Page) -> list[dict[str, str]]:
    return page.table.map(lambda entry: entry.text).to_dict("records")


# Layouts


@pytest.mark.parametrize("layout", EVERY)
@pytest.mark.parametrize("form", FORMATS)
def test_every_layout_renders_from_the_committed_records_in_every_format(layout: str, form: str) -> None:
    page = table(*EVERY[layout])
    text = FORMATS[form](page)
    assert len(page.table) > 2
    assert page.notes or layout in ("comparison", "free")
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    assert ("LEO paper, Table 2" in text) == (layout in ("leo", "ablation"))
    assert ("open-mmlab/mmfewshot" in text) == (layout == "mmfewshot")


def test_every_source_that_a_layout_names_has_figures() -> None:
    sources = {figure["source"] for figure in published()}
    named = [source for layout in NAMED for source in settings(f"layout={layout}")["layout"]["sources"] or []]
    assert named and set(named) <= sources


def test_leo_stands_as_paper_as_released_and_as_measured() -> None:
    rows = {row["source"]: row for row in texts(table("layout=leo", runs=ABLATION)) if "multi" not in row["method"]}
    assert rows["LEO paper, Table 2 (arXiv:1807.05960v3)"]["mini 5-way 1-shot"] == "61.76 ± 0.08"
    assert rows["deepmind/leo README, released code (de9a0c2)"]["tiered 5-way 5-shot"] == "81.77 ± 0.09"
    assert rows["measured here"]["omniglot 5-way 1-shot"] == "92.67 ± 0.45"


def test_the_ablation_has_the_papers_rows_in_its_order() -> None:
    published = [row["method"].split(" ")[0] for row in texts(table("layout=ablation")) if "paper" in row["source"]]
    assert published == [
        "meta_sgd", "leo_generator", "leo_generator_finetuning", "leo_random_prior", "leo_deterministic",
        "leo_no_finetuning", "leo",
    ]  # fmt: skip


def test_omniglot_has_the_regime_in_a_column_and_published_figures_never_in_a_measured_protocol() -> None:
    page = table("layout=omniglot", runs=QUARTER)
    rows = [row for row in texts(page) if row["method"] == "reptile (conv4)"]
    assert {row["setting"] for row in rows} == {"inductive", "transductive"}
    assert not any("inductive" in row["method"] for row in rows)
    for row in rows:
        measured = {heading for heading, text in row.items() if heading.endswith(("none", "per_class")) and text != "–"}
        assert bool(measured) == (row["source"] == "measured here")
        assert not measured or row["omniglot 5-way 1-shot, as published"] == "–"
    assert sum(row["omniglot 5-way 1-shot, as published"] != "–" for row in rows) == 4  # two versions, two settings


def test_mmfewshot_has_mean_and_interval_apart() -> None:
    rows = texts(table("layout=mmfewshot", runs=QUARTER))
    wanted = {"test": "cub 5-way 1-shot", "arch": "resnet12", "input size": "84", "way": "5", "shot": "1"}
    [row] = [row for row in rows if wanted.items() <= row.items()]
    assert (row["mean"], row["interval"]) == ("70.44", "± 0.55")


def test_sinusoids_have_a_column_per_shots_and_updates() -> None:
    page = table("layout=sinusoid", runs=ABLATION)
    rows = {row["source"]: row for row in texts(page)}
    assert rows["gaoyuankidult/MAML-tf README (5da411e)"]["sinusoid 10-shot, 5 adaptation steps"] == "0.2024"
    assert rows["MAML paper, Table 2 (arXiv:1703.03400v3)"]["sinusoid 5-shot, 1 adaptation step"] == "0.67"
    assert {row["training shots"] for row in rows.values()} == {"10"}
    assert page.complaints == ["no run of 16 is of this layout: it shows published figures only"]


def test_what_a_figure_really_is_stands_in_its_footnote() -> None:
    page = table("layout=omniglot", runs=QUARTER)
    [row] = [row for row in page.table.to_dict("records") if "dragen1860" in row["source"].text]
    notes = " ".join(page.notes[number - 1] for number in row["omniglot 20-way 1-shot"].notes)
    assert "trains on the test split" in notes and "so it stands here as FOMAML" in notes


def test_published_figures_join_the_comparison_on_request() -> None:
    assert "source" not in texts(table("published=true", runs=ABLATION))[0]  # nobody reports LEO on Omniglot
    sources = {row["source"] for row in texts(table("published=true", runs=QUARTER))}
    assert "MAML paper, Table 1 (arXiv:1703.03400v3)" in sources
    assert "source" not in texts(table(runs=QUARTER))[0]


def test_a_free_layout_takes_any_fields() -> None:
    rows = "rows=[algorithm,protocol.setting]"
    page = table("layout=free", rows, "cols=[protocol.query,protocol.rotations]", runs=QUARTER)
    first = texts(page)[1]
    assert (first["algorithm"], first["setting"]) == ("maml", "transductive")
    assert first["15 queries, rotations per_class"] == "96.29 ± 0.32"
    assert page.table.iloc[1]["15 queries, rotations per_class"].bold


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rows=[algorithm,protocol.setting]", "cols=[protocol.query]"], r"rotations \(none and per_class\): add "),
        (["rows=[algorithm]", "cols=[task]"], r"protocol.setting \(inductive and transductive\): add protocol.setting"),
        (["rows=[algorithm,folder]", "cols=[protocol.query]"], "would share a column but their tests differ in"),
        (["rows=[algorithm,protocol.qery]"], "no field protocol.qery"),
        (["rows=[protocol]"], "protocol is a group of fields; name one of them, such as protocol.dataset"),
        (["rows=algorithm"], "rows=algorithm: it is a list of fields"),
        ([], "a free layout needs its rows"),
    ],
)
def test_a_layout_that_mixes_protocols_or_names_no_field_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(FewshotError, match=message):
        table("layout=free", *words, runs=QUARTER)


# Formats


def test_csv_has_a_line_per_cell_with_raw_numbers() -> None:
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](table(runs=ABLATION)))))
    record = json.loads((ABLATION / "omniglot-5w1s/leo-features/record.json").read_text())
    [line] = [line for line in lines if (line["algorithm"], line["shot"]) == ("leo", "1")]
    assert len(lines) == 16
    assert float(line["value"]) == pytest.approx(100 * record["test"]["accuracy"], rel=1e-12)
    assert float(line["ci95_over_episodes"]) == pytest.approx(100 * record["test"]["ci95"], rel=1e-12)
    assert line["manifest"] == record["protocol"]["manifest"]
    assert 0.05 < float(line["p_holm"]) < 1 and line["not_told_from_best"] == "True"
    [other] = [line for line in lines if (line["algorithm"], line["shot"]) == ("leo", "5")]
    assert float(other["p_holm"]) < 0.05 and other["not_told_from_best"] == "False"


class Reader(HTMLParser):
    """Counts what is open, and collects addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_one_complete_page_that_fetches_nothing() -> None:
    text = FORMATS["html"](table("layout=omniglot"))
    reader = Reader()
    reader.feed(text)
    assert text.startswith("<!doctype html>") and text.endswith("</html>")
    assert not reader.open and not reader.addresses and "url(" not in text


def odd(folder: Path) -> Path:
    """A folder with one run whose algorithm's name holds every sign that a format could take for its own."""
    shutil.copytree(QUARTER / "maml/test-1s1q-none-inductive-1steps-600e0", folder / "run")
    path = folder / "run" / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "algorithm": r'[a|b_c*d <i>&"\%$#{e}~^ _f_'}))
    return folder


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
def test_signs_that_a_format_takes_for_its_own_are_escaped(tmp_path: Path, form: str, escaped: str) -> None:
    text = FORMATS[form](table(runs=odd(tmp_path)))
    assert text.count(escaped) == 2  # in the table and in that of costs


def compiled(folder: Path, body: str, packages: str) -> str:
    """What pdflatex says of a document with the packages and this in it."""
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
def test_latex_compiles_and_fits_the_page(tmp_path: Path, layout: str) -> None:
    said = compiled(tmp_path, FORMATS["latex"](table(*EVERY[layout])), "booktabs,graphicx")
    assert "Overfull" not in said and "Float too large" not in said
    assert (tmp_path / "page.pdf").stat().st_size > 1000


def test_latex_needs_nothing_but_booktabs_and_stands_any_sign(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    compiled(tmp_path, FORMATS["latex"](table(runs=odd(tmp_path / "runs"))), "booktabs")


# Each page in a frame as narrow as a telephone; what stands in the frames, and which are wider than they should be.
FRAMES = """<!doctype html><meta charset="utf-8"><body>%s<pre id="found"></pre><script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(({contentDocument: page}) => ({
    tables: [...page.querySelectorAll("table")].map(table => [...table.rows].map(row => row.cells.length)),
    texts: [...page.querySelectorAll("td:first-child")].map(cell => cell.innerText),
    sideways: page.documentElement.scrollWidth - page.documentElement.clientWidth,
  }));
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""


def test_a_browser_shows_every_row_of_every_layout_on_a_narrow_screen(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        pytest.skip("neither chromium nor google-chrome here: Debian's chromium brings one")
    pages = [table(*words) for words in EVERY.values()]
    frames = (f'<iframe width="390" height="800" srcdoc="{escape(FORMATS["html"](page))}"></iframe>' for page in pages)
    (tmp_path / "frames.html").write_text(FRAMES % "".join(frames), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={tmp_path}"]
    command = [browser, *options, "--dump-dom", (tmp_path / "frames.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "CONSOLE" not in done.stderr
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match, done.stderr[-2000:]
    for page, shown in zip(pages, json.loads(unescape(match[1])), strict=True):
        sizes = [len(page.table) + 1] + ([] if page.cost is None else [len(page.cost) + 1])
        assert [len(rows) for rows in shown["tables"]] == sizes
        assert all(len(set(rows)) == 1 for rows in shown["tables"])
        assert shown["texts"][: len(page.table)] == [entry.text for entry in page.table.iloc[:, 0]]
        assert shown["sideways"] <= 0


# The command


def test_the_tables_in_results_are_current() -> None:
    found = {path: refreshed(path, settings()) for path in RESULTS.rglob("*.md")}
    with_tables = {path: made[0] for path, made in found.items() if made is not None}
    assert {ABLATION / "README.md", QUARTER / "README.md"} <= set(with_tables)
    for path, text in with_tables.items():
        assert path.read_text(encoding="utf-8") == text, "run `python tools/table.py refresh=results`"


def test_refresh_writes_the_table_between_its_marks_and_nothing_else(call: Any, tmp_path: Path) -> None:
    shutil.copytree(QUARTER / "maml", tmp_path / "results" / "maml")
    page = tmp_path / "results" / "README.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n")
    done = call("table", "refresh=results")
    assert (done.code, done.out, done.err) == (0, "results/README.md: written\n", "")
    text = page.read_text()
    assert text.startswith("before\n<!-- table -->\n\n| method") and text.endswith("|\n\n<!-- /table -->\nafter\n")
    assert call("table", "refresh=results").out == "results/README.md: current\n"


def test_a_mark_may_name_its_layout(tmp_path: Path) -> None:
    shutil.copytree(QUARTER / "maml", tmp_path / "maml")
    path = tmp_path / "README.md"
    path.write_text("<!-- table layout=omniglot -->\n<!-- /table -->\n")
    made = refreshed(path, settings())
    assert made is not None
    wanted = FORMATS["markdown"](table("layout=omniglot", runs=tmp_path))
    assert made[0] == f"<!-- table layout=omniglot -->\n\n{wanted}\n\n<!-- /table -->\n"
    path.write_text("<!-- table layout=omnigloss -->\n<!-- /table -->\n")
    with pytest.raises(FewshotError, match="layout=omnigloss: no such layout"):
        refreshed(path, settings())


@pytest.mark.parametrize(
    "text", ["<!-- table -->\n", "<!-- /table --><!-- table -->", 2 * "<!-- table --><!-- /table -->"]
)
def test_marks_that_do_not_pair_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(FewshotError, match="a table stands between one <!-- table -->"):
        refreshed(path, settings())


def test_a_table_goes_to_a_file(call: Any, tmp_path: Path) -> None:
    done = call("table", f"runs={QUARTER}", "format=latex", "out=paper/table.tex", "cost=false")
    assert (done.code, done.out, done.err) == (0, "wrote paper/table.tex\n", "")
    assert (tmp_path / "paper/table.tex").read_text().count(r"\begin{table}") == 1


def break_(folder: Path, **changes: Any) -> None:
    record = json.loads((folder / "record.json").read_text())
    record.update(changes)
    (folder / "record.json").write_text(json.dumps({key: value for key, value in record.items() if value != "gone"}))


def test_what_cannot_be_read_is_one_line_each_and_the_rest_is_tabulated(call: Any, tmp_path: Path) -> None:
    for method in ("maml", "fomaml", "reptile"):
        shutil.copytree(QUARTER / method, tmp_path / "runs" / method)
    folders = sorted(path.parent for path in (tmp_path / "runs").rglob("record.json"))
    whole = len(table(runs=tmp_path / "runs").raw)
    break_(folders[0], seed="gone")
    break_(folders[1], format=3)
    break_(folders[2], test={"accuracy": float("nan"), "ci95": None, "episodes": 600})
    (folders[3] / "episodes.csv").write_text("episode,accuracy\n0,0.5\n")
    (folders[4] / "episodes.csv").unlink()
    done = call("table", "runs=runs", "format=csv")
    lines = done.err.splitlines()
    assert done.code == 0
    assert len(done.out.splitlines()) - 1 == whole - 3
    assert len(lines) == 5
    for line, folder, words in zip(
        lines,
        folders,
        ["it lacks seed", "newer version of records (3,", "nan, not a fraction", "has 1 lines", "cannot be read"],
        strict=False,
    ):
        assert line.startswith("warning: ") and folder.name in line and words in line


def test_a_run_without_usable_scores_is_said_below_the_table(tmp_path: Path) -> None:
    for method in ("maml", "fomaml", "reptile"):
        for path in (QUARTER / method).glob("test-1s15q-none-transductive*"):
            shutil.copytree(path, tmp_path / method)
    (tmp_path / "reptile" / "episodes.csv").write_text("")
    page = table(runs=tmp_path)
    assert [entry.bold for entry in page.table.iloc[:, 1]] == [True, False, False]
    assert dict(page.footer)["not compared"].startswith("reptile (conv4), transductive on omniglot 5-way 1-shot:")


def test_bold_is_the_best_and_what_cannot_be_told_from_it_with_the_scores_of_seeds_averaged(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    template = json.loads((QUARTER / "maml/test-1s15q-none-transductive-1steps-600e0/record.json").read_text())
    tasks = random.uniform(0.5, 0.9, 600)
    # The twin's seeds are a point off in opposite directions: each alone could be told from the best, their mean not.
    shifts = {("best", 0): 0.0, ("twin", 0): -0.0101, ("twin", 1): 0.01, ("near", 0): -0.005}
    for (name, seed), shift in shifts.items():
        scores = tasks + shift + random.normal(0, 0.01, 600)
        record = {**template, "algorithm": name, "seed": seed}
        write_record(tmp_path / f"{name}{seed}", {**record, "test": summary_of(scores)}, {"accuracy": scores})
    rows = {row["method"].text.split(" ")[0]: row for row in table(runs=tmp_path).table.to_dict("records")}
    assert [name for name, row in rows.items() if row["omniglot 5-way 1-shot"].bold] == ["best", "twin"]


def summary_of(scores: np.ndarray) -> dict[str, Any]:
    half = stats.t.ppf(0.975, len(scores) - 1) * stats.sem(scores)
    return {"accuracy": float(scores.mean()), "ci95": float(half), "episodes": len(scores)}


def test_where_nothing_is_left_it_ends_with_1(call: Any, tmp_path: Path) -> None:
    assert call("table", "runs=runs").code == 1
    shutil.copytree(QUARTER / "maml", tmp_path / "runs")
    for path in (tmp_path / "runs").rglob("record.json"):
        path.write_text("{}")
    done = call("table", "runs=runs")
    assert (done.code, done.out) == (1, "")
    assert "no record below runs can be read" in done.err and "(and 7 more)" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("format=tex", "format=tex: no such format, did you mean latex?"),
        ("layout=leoo", "did you mean leo?"),
        ("published=maybe", "published=maybe: must be true or false"),
        ("refresh=.", "no Markdown file below . has a place for a table"),
    ],
)
def test_a_mistake_is_answered_in_one_line(call: Any, word: str, message: str) -> None:
    done = call("table", f"runs={QUARTER}", word)
    assert (done.code, done.out) == (1, "")
    assert message in done.err and len(done.err.splitlines()) == 1
