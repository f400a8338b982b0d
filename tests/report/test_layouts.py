"""Tables by layout and format, from the committed records, and the command line that makes them."""

import copy
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
from fewshot.report.table import markdown, refresh_tables
from tests.report.conftest import TEMPLATE

RESULTS = CONF.parent / "results"
PAPERS = ("omniglot", "mini", "tiered", "cub", "sinusoid", "leo", "ablation")  # layouts as the tables of papers
EVERY = {
    **{layout: (f"layout={layout}",) for layout in ("comparison", *PAPERS)},
    "ablation": ("layout=ablation", "layout.datasets=[omniglot]"),
    "free": ("layout=free", "rows=[method,protocol.setting]", "cols=[task]", "layout.protocol=common"),
}
QUARTER, ABLATION = "quarter_hour", "leo_ablation"
OWN = "layout.protocol=own"  # of the quarter hour's records

# Layouts


@pytest.mark.parametrize("layout", EVERY)
def test_every_layout_renders_from_the_committed_records_in_every_format(layout: str, results: Any) -> None:
    page = results(*EVERY[layout])
    assert len(page.table) > 1
    for render in FORMATS.values():
        text = render(page)
        assert not re.search(r"\bnan\b", text, re.IGNORECASE)
        assert ("LEO paper" in text) == (layout in ("mini", "tiered", "leo"))


@pytest.mark.parametrize("layout", PAPERS)
def test_tables_of_papers_have_at_most_five_columns_and_twenty_footnotes(layout: str, results: Any) -> None:
    page = results(*EVERY[layout])
    figures = [heading for heading in page.table if re.search("-shot|test step", heading)]
    assert 0 < len(figures) <= 5 and len(page.notes) <= 20 and len(set(page.notes)) == len(page.notes)
    assert not any((page.table[heading].map(lambda entry: entry.text) == "–").all() for heading in page.table)
    assert not any(entry.bold for row in page.table.iloc[page.measured :].to_numpy() for entry in row)


def test_runs_of_several_recipes_are_named_by_them_and_a_budget_says_their_steps(results: Any) -> None:
    page = results("layout=mini")
    names = [entry.text for entry in page.table["method"]]
    assert "maml, recipe cbfinn" in names and not any(re.search(r"\(\d+\)", name) for name in names)
    assert not any("as its recipe" in note for note in page.notes)


def test_every_source_that_a_layout_names_has_figures(lab: Any) -> None:
    named = {source for layout in PAPERS for source in lab.settings(f"layout={layout}")["layout"]["sources"] or []}
    assert named and named <= {record["published"]["source"] for record in read_published()}


@pytest.mark.parametrize(
    ("layout", "source", "row", "heading", "text"),
    [
        ("leo", "LEO paper", {}, "mini 5-way 1-shot", "61.76 ± 0.08"),
        ("leo", "LEO's code", {}, "tiered 5-way 5-shot", "81.77 ± 0.09"),
        ("omniglot", "", {"method": "leo, no recipe", "budget": "4 min"}, "5-way 1-shot", "92.67 ± 0.45"),
        ("sinusoid", "MAML-tf", {"task": "10-shot"}, "5 test steps", "0.2024"),
        ("sinusoid", "MAML paper", {}, "1 test step", "0.67"),
        ("cub", "mmfewshot", {"method": "maml", "backbone": "resnet12"}, "5-way 1-shot", "70.44 ± 0.55"),
    ],
)
def test_figures_stand_where_the_document_of_a_layout_has_them(
    lab: Any, results: Any, layout: str, source: str, row: dict[str, str], heading: str, text: str
) -> None:
    rows = [own for own in lab.texts(results(f"layout={layout}")) if {"source": source, **row}.items() <= own.items()]
    assert [own[heading] for own in rows] == [text]


def test_the_ablation_has_the_papers_rows_in_its_order(lab: Any) -> None:
    lab.write("run", algorithm="maml")
    rows = [row["method"] for row in lab.texts(lab.page("layout=ablation"))]
    assert rows == [
        "meta_sgd", "leo_generator", "leo_generator_finetuning", "leo_random_prior", "leo_deterministic",
        "leo_no_finetuning", "leo",
    ]  # fmt: skip


def test_measured_rows_stand_above_published_ones_in_the_same_columns(lab: Any) -> None:
    scores = {"accuracy": np.random.default_rng(0).uniform(0.9, 1, 600).round(6)}
    paper = {"protocol__name": "paper", "protocol__query": 1, "protocol__manifest": "f" * 64, "recipe": "cbfinn"}
    common = {"protocol__rotations": "none"}
    lab.write("common", scores, **common, recipe="cbfinn")
    lab.write("paper", scores, **paper)
    lab.write("other", {"accuracy": scores["accuracy"] / 2}, **common, algorithm="reptile")
    page = lab.page("layout=omniglot")
    assert list(page.table)[2:] == ["5-way 1-shot", "5-way 5-shot", "20-way 1-shot", "20-way 5-shot", "source"]
    rows = page.table.to_dict("records")
    measured = [(row["method"].text, row["method"].notes, row["5-way 1-shot"].bold) for row in rows[: page.measured]]
    assert measured == [("maml (conv4)", (), True), ("maml (conv4)", (1,), False), ("reptile", (), False)]
    assert page.notes[0] == "as many queries as shots, rotated characters"
    assert rows[page.measured]["source"].text == "Matching Nets paper"
    signs = {
        "markdown": "| **published** ",
        "latex": "\\midrule\nmatching",
        "html": '<tr class="published">',
    }
    assert all(FORMATS[form](page).count(sign) == 1 for form, sign in signs.items())
    # The paper's figures are of tests by the same words, but for the number of tasks that is the reference's here.
    assert next(row["source"].notes for row in rows if row["source"].text == "MAML paper") == (1,)


def test_a_figure_of_rotated_characters_has_a_footnote_where_no_run_is_rotated_either(lab: Any) -> None:
    lab.write("one", protocol__rotations="none")
    page = lab.page("layout=comparison", "published=true")
    (numbers,) = {row["source"].notes for row in page.table.to_dict("records") if row["source"].text == "MAML paper"}
    assert "rotated characters" in "; ".join(page.notes[number - 1] for number in numbers)


def test_a_figure_of_another_image_size_has_a_footnote(lab: Any) -> None:
    images = {"dataset": "mini", "protocol__dataset": "mini", "protocol__rotations": "none"}
    for pixels, noted in ((42, True), (84, False)):
        data = {"fingerprint": f"{pixels}" * 32, "about": {"size": pixels}}
        lab.write(f"{pixels}/one", **images, data=data, protocol__manifest=f"{pixels}" * 32)
        page = lab.page("layout=mini", below=str(pixels))
        assert f"{pixels} pixels" in dict(page.footer)["test"]
        figures = [row["source"] for row in page.table.to_dict("records") if row["source"].text == "MAML paper"]
        assert figures and ("84 pixels" in "; ".join(page.notes[number - 1] for number in figures[0].notes)) == noted


@pytest.mark.parametrize(("layout", "noted"), [("comparison", True), ("mini", False)])
def test_a_training_that_was_cut_short_says_so_in_every_table(lab: Any, layout: str, noted: bool) -> None:
    images = {"dataset": "mini", "protocol__dataset": "mini", "protocol__rotations": "none"}
    train = {**lab.record()["train"], "steps": 3000, "paper_steps": 60_000}
    lab.write("short", **images, train=train, settings={"train.steps": 3000})
    page = lab.page(f"layout={layout}")
    assert ("3,000 of the paper's 60,000 steps" in page.notes) == noted
    shown = [entry.text for entry in page.table.iloc[0]]
    assert any("3k of 60k steps" in text for text in shown) != noted


@pytest.mark.parametrize(
    ("ahead", "on_val", "bold"),
    [
        (0.05, False, {("b", "trans."), ("c", "ind.")}),
        (0.2, False, {("c", "ind.")}),
        (0.2, True, {("b", "trans."), ("b", "ind.")}),  # trained on the validation classes, c is no match for others
    ],
)
def test_each_setting_has_its_best_and_independent_queries_count_in_both(
    lab: Any, ahead: float, on_val: bool, bold: set[tuple[str, str]]
) -> None:
    episodes = np.random.default_rng(0).uniform(0.4, 0.6, 200)
    for name, setting, shift, both in (
        ("a", "inductive", 0.0, False),
        ("a", "transductive", 0.1, False),
        ("b", "inductive", 0.02, False),
        ("b", "transductive", 0.12, False),
        ("c", "inductive", ahead, True),
    ):
        noise = np.random.default_rng(100 * ord(name) + len(setting)).uniform(-0.01, 0.01, 200)
        lab.write(
            f"{name}{setting}",
            {"accuracy": (episodes + shift + noise).round(6)},
            algorithm=name,
            protocol__setting=setting,
            protocol__train_on_val=on_val and name == "c",
            queries_independent=both,
        )
    page = lab.page()
    rows = page.table.to_dict("records")
    assert {(row["method"].text, row["setting"].text) for row in rows if row["5-way 1-shot"].bold} == bold
    said = dict(page.footer)["reading"]
    assert "bold: of each setting the best in a column and what" in said
    assert ("trainings on the validation classes by themselves" in said) == on_val


def test_a_row_that_is_alone_on_its_test_is_not_said_to_lack_scores(lab: Any) -> None:
    for name, query in (("maml", 15), ("fomaml", 15), ("reptile", 5)):
        manifest = {"protocol__manifest": f"{query:02d}" * 32, "protocol__name": f"common, query={query}"}
        lab.write(name, algorithm=name, protocol__query=query, **manifest)
    page = lab.page("layout=free", "rows=[algorithm,protocol.query]", "cols=[protocol.shot]", "layout.protocol=null")
    footer = dict(page.footer)
    assert (
        "not compared" not in footer and "bold: the best in a column among rows of the same test" in footer["reading"]
    )


def test_of_a_run_without_the_two_protocols_the_test_nearest_to_common_is_shown(lab: Any) -> None:
    for query, rotations in ((1, "none"), (15, "none"), (15, "per_class")):
        manifest = {"protocol__manifest": f"{query:02d}{len(rotations):02d}" * 16, "protocol__name": "mine"}
        lab.write(f"{query}{rotations}", protocol__query=query, protocol__rotations=rotations, **manifest)
    page = lab.page("layout=omniglot", "published=false")
    assert len(page.table) == 1
    footer = dict(page.footer)
    assert "15 queries per class, unrotated" in footer["test"]
    assert footer["left out"] == "tests by other protocols: layout=comparison layout.protocol=mine (2 tests)"


def test_a_footnote_stands_at_the_row_where_all_its_cells_have_it_and_texts_of_equal_places_are_one(lab: Any) -> None:
    lab.write("run")
    page = lab.page("layout=mini")
    rows = [row for row in page.table.to_dict("records") if row["source"].text == "mmfewshot"]
    [row] = [row for row in rows if (row["method"].text, row["backbone"].text) == ("maml", "resnet12")]
    whole, one = row["source"].notes, row["5-way 1-shot"].notes
    assert (len(whole), len(one), row["5-way 5-shot"].notes) == (1, 1, ())
    assert page.notes[whole[0] - 1].startswith("15 queries per class, 2,000 test episodes; the column is headed std")
    assert page.notes[one[0] - 1].startswith("meta-trained 5-way 5-shot")


DATASETS = "cub, mini, omniglot, sinusoid, tiered"


@pytest.mark.parametrize("form", FORMATS)
def test_the_comparison_has_a_table_for_each_dataset(call: Any, lab: Any, form: str) -> None:
    lab.write("runs/a", protocol__name="paper")
    lab.write("runs/b", dataset="mini", protocol__dataset="mini")
    lab.write_regression("runs/c")
    titles = ["miniImageNet, accuracy", "Omniglot, accuracy", "Sinusoid, mean squared error"]
    if form == "csv":  # the numbers of all tables below one line of names
        titles = ["mini,5,1,accuracy in per cent", "omniglot,5,1,accuracy in per cent", "sinusoid,1,10,mse"]

    def shown(*words: str) -> list[str]:
        done = call("table", f"format={form}", *words)
        assert done.code == 0
        assert done.out.count("method,setting,") == (form == "csv") and done.out.count("providecommand") == (
            form == "latex"
        )
        places = {title: done.out.find(title) for title in titles if title in done.out}
        assert sorted(places, key=lambda title: places[title]) == list(places)
        return list(places)

    assert shown() == titles
    if form == "latex":
        labels = re.findall(r"\\label\{(.*)\}", call("table", "format=latex", "costs=true").out)
        assert labels[:2] == ["tab:miniimagenet-accuracy-in-per-cent", "tab:miniimagenet-accuracy-in-per-cent-costs"]
        assert len(labels) == len(set(labels)) == 6
    assert shown("layout.protocol=paper") == titles[1:2]
    assert shown("layout.metric=mse") == titles[2:]
    assert shown("layout.datasets=[mini,sinusoid]") == titles[::2]


def test_a_comparison_of_several_datasets_is_one_table_on_request(call: Any, lab: Any) -> None:
    lab.write("runs/a")
    lab.write("runs/b", dataset="mini", protocol__dataset="mini")
    done = call("table", "layout.per_dataset=false")
    assert (
        "\nAccuracy in per cent:\n" in f"\n{done.out}" and "| mini 5-way 1-shot | omniglot 5-way 1-shot |" in done.out
    )
    of_both = call("table", "layout.datasets=[mini,omniglot]", "published=true").out
    assert of_both.index("miniImageNet, accuracy") < of_both.index("48.70") < of_both.index("Omniglot, accuracy")
    titled = call("table", "layout.title=Ours").out
    assert "Ours: miniImageNet:\n" in titled and "Ours: Omniglot:\n" in titled


def test_a_mistake_in_the_records_of_one_dataset_leaves_the_tables_of_the_others(call: Any, lab: Any) -> None:
    lab.write("runs/a", dataset="mini", protocol__dataset="mini")
    lab.write("runs/first")
    lab.write("runs/the second")  # of the same seed, with another score
    done = call("table")
    assert done.code == 0 and "miniImageNet, accuracy" in done.out and "Omniglot" not in done.out
    assert "warning: " in done.err and "runs/first and runs/the second are both maml" in done.err
    records = [lab.record("a"), lab.record("b", test__accuracy=0.5), lab.record("c", protocol__dataset="mini")]
    with pytest.raises(FewshotError, match="a and b are both maml"):
        markdown(records)
    complaints: list[str] = []
    assert markdown(records, complaints).count("accuracy in per cent") == len(complaints) == 1
    with pytest.raises(FewshotError, match="a and b are both maml"):
        markdown(records[:2], complaints)


def test_a_score_beside_a_row_has_the_unit_of_the_cells_in_tables_costs_and_csv(call: Any, lab: Any) -> None:
    lab.write("runs/a", validation={"accuracy": 0.97654, "step": 1})
    words = ("layout=free", "rows=[method,validation.accuracy]", "costs=true")
    assert call("table", *words).out.count("| 97.65 ") == 2
    [line] = csv.DictReader(io.StringIO(call("table", *words, "format=csv").out))
    assert float(line["validation accuracy"]) == pytest.approx(97.654)


def test_the_test_score_is_no_label_of_a_row_where_it_is_a_column_already(call: Any, lab: Any) -> None:
    lab.write("runs/a")
    done = call("table", "layout=free", "rows=[method,test.accuracy]")
    assert done.code == 1 and "rows: leave test.accuracy out" in done.err
    assert call("table", "layout=free", "rows=[method,test.accuracy]", "cols=[task]").code == 0


def test_published_figures_join_the_comparison_on_request(lab: Any, results: Any) -> None:
    leo = results("published=true", below=ABLATION)  # which nobody reports on Omniglot
    assert "source" not in lab.texts(leo)[0]
    assert leo.complaints == [
        f"omniglot: no published figures for these methods and tasks; there are some of {DATASETS}"
    ]
    page = results("published=true", OWN, below=QUARTER)
    assert page.measured == 6
    assert "MAML paper" in {row["source"] for row in lab.texts(page)}
    assert "source" not in lab.texts(results(OWN, below=QUARTER))[0]


def test_a_cropped_test_stands_in_a_papers_table_with_a_footnote(lab: Any) -> None:
    better, worse = ({"accuracy": np.random.default_rng(0).normal(mean, 0.01, 20)} for mean in (0.9, 0.5))
    lab.write("whole", better, dataset="mini", protocol__dataset="mini", protocol__rotations="none")
    other = {"config": "2" * 64, "settings": {"dataset.crop": 84}, "recipe": "mmfewshot"}
    lab.write("cropped", worse, dataset="mini", protocol__dataset="mini", protocol__rotations="none",
              protocol__view="crop 84", data={"fingerprint": "3" * 64}, **other)  # fmt: skip
    page = lab.page("layout=mini", "layout.sources=null")
    assert page.measured == 2 and "crop 84" in page.notes and "whole images" not in page.notes


def test_seeds_that_learned_from_other_data_are_not_averaged(lab: Any) -> None:
    one, two = ({"fingerprint": "f" * 64, "train_fingerprint": sign * 64} for sign in "12")
    lab.write("one", data=one)
    lab.write("two", data=two, seed=1)
    with pytest.raises(FewshotError, match=r"fall into one cell but differ in data.train_fingerprint"):
        lab.page()
    lab.write("two", data=two | {"features_fingerprint": "4" * 64}, seed=1)
    lab.write("one", data=one | {"features_fingerprint": "5" * 64})
    assert lab.page().notes == ["mean of 2 training seeds; ± is the mean of their intervals"]
    extractors = ({"extractor": {"images": {"train": sign}}} for sign in "12")
    for seed, about in enumerate(extractors):
        lab.write(("one", "two")[seed], data=one | {"features_fingerprint": "4" * 64, "about": about}, seed=seed)
    with pytest.raises(FewshotError, match=r"differ in data.about.extractor.images.train"):
        lab.page()


def test_validation_scores_beside_test_scores_have_names_of_their_own(lab: Any) -> None:
    lab.write("one", validation={"accuracy": 0.5419999942, "step": 2})
    words = "layout=free", "rows=[method,validation.accuracy]"
    [row] = lab.texts(lab.page(*words))
    assert list(row) == ["method", "validation accuracy", "test accuracy", "interval"]
    assert row["validation accuracy"] == "54.20"
    with pytest.raises(FewshotError, match="no field validation.acuracy, did you mean validation.accuracy"):
        lab.page("layout=free", "rows=[method,validation.acuracy]")


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
        (["rows=[protocol]"], "protocol is a group of fields; name one of them, such as protocol.name"),
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
    rows = {row["method"].text: row for row in lab.page().table.to_dict("records")}
    assert [name for name, row in rows.items() if row["5-way 1-shot"].bold] == ["best", "twin"]


@pytest.mark.parametrize(("best", "marked"), [(0.8, "few"), (0.6, "most")])
def test_bold_is_in_the_test_of_a_columns_best_score_though_most_rows_have_another(
    lab: Any, best: float, marked: str
) -> None:
    random = np.random.default_rng(0)
    smaller = {"protocol__manifest": "f" * 64, "protocol__rotations": "none"}
    for name, mean, test in (
        ("few", best, {}), ("few2", best - 0.1, {}), ("most", 0.7, smaller), ("most2", 0.5, smaller),
        ("most3", 0.4, smaller),
    ):  # fmt: skip
        lab.write(name, {"accuracy": random.normal(mean, 0.01, 600)}, algorithm=name, **test)
    rows = lab.page("layout=omniglot", "published=false").table.to_dict("records")
    found = {row["method"].text.partition(" ")[0]: row for row in rows}
    assert [name for name, row in found.items() if row["5-way 1-shot"].bold] == [marked]
    assert bool(found["few"]["method"].notes) == (marked == "most")  # the other tests have a footnote


@pytest.mark.parametrize(
    "other", [{"protocol__manifest": "e" * 64}, {"data": {"fingerprint": "d" * 64, "about": {"dataset": "omniglot"}}}]
)
def test_a_papers_table_compares_one_set_of_episodes_and_says_which_rows_have_another(
    lab: Any, other: dict[str, Any]
) -> None:
    own = {"data": {"fingerprint": "feedc0de" * 8, "about": {"resample": "nearest", "size": 28}}}
    for name, mean, test in (
        ("best", 0.8, own),
        ("worse", 0.7, own),
        ("worst", 0.6, own),
        ("else1", 0.6, other),
        ("else2", 0.5, other),
    ):
        scores = {"accuracy": np.random.default_rng(0).normal(mean, 0.01, 20)}
        lab.write(name, scores, algorithm=name, **(own | test))
    page = lab.page("layout=omniglot", "published=false")
    rows = {row["method"].text: row for row in page.table.to_dict("records")}
    assert [name for name, row in rows.items() if row["5-way 1-shot"].bold] == ["best"]
    assert [name for name, row in rows.items() if row["method"].notes] == ["else1", "else2"]
    assert len(page.notes) == 1 and page.notes[0].startswith("other images or test episodes (manifest ")
    test_line = dict(page.footer)["test"]
    assert "eeeeeeee" not in test_line and "dddddddd" not in test_line
    assert "not compared" not in dict(page.footer)
    (lab.folder / "best/episodes.csv").unlink()
    assert dict(lab.page("layout=omniglot", "published=false").footer)["not compared"].startswith("best on 5-way")


@pytest.mark.parametrize("layout", ["comparison", "omniglot"])
@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"protocol__name": "common, steps=30", "protocol__adaptation_steps": 30}, "tested with 30 steps"),
        ({"train": {"way": 5, "shot": 1, "query": 1, "steps": 10}}, "tested at step 10 of 4,000"),
        ({"cost__nan_guarded_steps": 7}, "7 outer steps with a NaN replaced"),
    ],
)
def test_what_a_reader_does_not_expect_of_a_test_or_a_training_has_a_footnote(
    lab: Any, layout: str, changes: dict[str, Any], note: str
) -> None:
    record = copy.deepcopy(TEMPLATE["cost"]) | {"nan_guarded_steps": 0}
    lab.write("one", algorithm="one", cost=record)
    lab.write("other", algorithm="other", **({"cost": record} | changes))
    page = lab.page(f"layout={layout}", "published=false")
    assert note in page.notes
    assert [bool(row["method"].notes) for row in page.table.to_dict("records")] == [False, True]


def test_what_is_not_the_same_of_all_seeds_is_said_of_each(lab: Any) -> None:
    for seed, count in enumerate((0, 2, 5)):
        cost = copy.deepcopy(TEMPLATE["cost"]) | {"nan_guarded_steps": count}
        lab.write(f"seed{seed}", seed=seed, cost=cost, cost__nan_guarded_steps=count)
    (note,) = lab.page("published=false").notes
    assert note.startswith(
        "seed 1: 2 outer steps with a NaN replaced; seed 2: 5 outer steps with a NaN replaced; mean of"
    )


def test_one_query_and_as_many_queries_as_shots_are_told_apart_by_the_methods_other_rows(lab: Any) -> None:
    better, worse = ({"accuracy": np.random.default_rng(0).normal(mean, 0.01, 20)} for mean in (0.9, 0.5))
    lab.write("a", better, algorithm="nearest")
    for name in ("maml", "reptile"):  # in their papers 5 shots have 5 queries and 1 query
        lab.write(name, worse, algorithm=name, protocol__query=1, protocol__manifest="e" * 64)
    page = lab.page("layout=omniglot")
    found = {row["method"].text: row["method"].notes for row in page.table.to_dict("records")[:3]}
    first = {name.partition(" ")[0]: page.notes[notes[0] - 1] for name, notes in found.items() if notes}
    assert first["maml"].startswith("as many queries as shots") and first["reptile"].startswith("1 query per class")


@pytest.mark.parametrize(
    ("dataset", "query", "note"),
    [("mini", 599, "all 600 images of each class"), ("mini", 150, "150 queries per class"), ("mine", 599, None)],
)
def test_all_images_of_a_class_are_only_where_they_are(lab: Any, dataset: str, query: int, note: str | None) -> None:
    own = {"dataset": dataset, "protocol__dataset": dataset}
    better, worse = ({"accuracy": np.random.default_rng(0).normal(mean, 0.01, 20)} for mean in (0.9, 0.5))
    lab.write("few", better, algorithm="few", **own)
    lab.write("many", worse, algorithm="many", protocol__query=query, protocol__manifest="e" * 64, **own)
    notes = lab.page("layout=mini", "layout.datasets=null", "published=false").notes
    assert notes == [note or f"{query} queries per class"]


def test_seeds_of_a_method_that_is_not_trained_are_one_run(lab: Any) -> None:
    for seed in (0, 1):
        lab.write(f"nearest{seed}", {"accuracy": np.linspace(0.3, 0.5, 20)}, seed=seed, cost__train_tasks=0)
    page = lab.page()
    assert page.notes == [] and [row["5-way 1-shot"] for row in lab.texts(page)] == ["40.00 ± 2.91"]


def test_a_rows_footnote_stays_where_its_first_heading_is_empty(lab: Any) -> None:
    for seed in (0, 1):
        lab.write(f"seed{seed}", seed=seed)
    page = lab.page("layout=free", "rows=[recipe,algorithm]", "cols=[task]")
    assert page.notes and page.table.iloc[0]["algorithm"].notes == (1,)


@pytest.mark.parametrize("column", ["protocol.episodes", "protocol.adaptation_steps", "cost.train_tasks"])
def test_a_column_that_published_figures_do_not_state_is_named_so(lab: Any, column: str) -> None:
    lab.write("run")
    page = lab.page("layout=free", "rows=[algorithm,backbone]", f"cols=[{column},protocol.shot]", "published=true")
    assert any(f"{column} not stated" in heading for heading in page.table)


def test_errors_below_the_decimals_of_a_table_keep_their_digits(lab: Any) -> None:
    errors = np.random.default_rng(0).uniform(3e-7, 5e-7, 40)
    for name, factor in (("one", 1.0), ("half", 0.5)):
        lab.write_regression(name, name, steps=(1,))
        lab.write(name, {"mse": errors * factor}, algorithm=name, dataset="sinusoid", protocol__dataset="sinusoid",
                  protocol__rotations=None)  # fmt: skip
    rows = {row["method"].text: row["5-way 1-shot"] for row in lab.page().table.to_dict("records")}
    assert rows["half"].bold and not rows["one"].bold
    assert rows["one"].text.startswith("4") and "e-07 ± " in rows["one"].text


def test_a_setting_is_a_field_and_the_recipe_a_row(lab: Any) -> None:
    """Keys of settings have dots, and runs of two recipes that differ in many settings need no other name."""
    many = {f"settings__algorithm.learner.a{i}": i for i in range(5)}
    lab.write("one", recipe="a", config="1" * 64)
    lab.write("two", recipe="b", config="2" * 64, **many, **{"settings__algorithm.learner.inner_lr": 0.1})
    rate = lab.page("layout=free", "rows=[algorithm,settings.algorithm.learner.inner_lr,recipe]", "cols=[task]")
    assert rate.table["inner_lr"].map(lambda entry: entry.text).tolist() == ["0.1", "0.4"]
    method = lab.page("layout=free", "rows=[method,recipe,settings.algorithm.learner.inner_lr]", "cols=[task]")
    assert not any("inner_lr" in entry.text for entry in method.table["method"])
    recipes = lab.page("layout=free", "rows=[method,recipe]", "cols=[task]")
    assert recipes.table["recipe"].map(lambda entry: entry.text).tolist() == ["a", "b"]


@pytest.mark.parametrize(("field", "value"), [("dataset", "glyphs"), ("split", "val"), ("rotations", "none")])
def test_a_free_table_does_not_mix_kinds_of_tests_that_no_row_or_column_names(lab: Any, field: str, value: str) -> None:
    lab.write("one")
    lab.write("two", **{f"protocol__{field}": value}, protocol__query=1, protocol__manifest="0" * 64)
    words = ("layout=free", "cols=[protocol.way,protocol.shot]")
    with pytest.raises(FewshotError, match=f"would share a column but their tests differ in protocol.{field}"):
        lab.page(*words, "rows=[algorithm,protocol.query]")
    assert len(lab.page(*words, f"rows=[algorithm,protocol.query,protocol.{field}]").table) == 2


def test_a_free_table_does_not_mix_views_of_one_dataset(lab: Any) -> None:
    lab.write("one")
    lab.write("two", protocol__view="crop 64", protocol__query=1, protocol__manifest="0" * 64)
    rows = "rows=[algorithm,protocol.dataset,protocol.query]"
    with pytest.raises(FewshotError, match="would share a column but their tests differ in protocol.view"):
        lab.page("layout=free", rows, "cols=[protocol.way,protocol.shot]")


def test_steps_that_a_column_says_are_in_no_footnote(lab: Any) -> None:
    lab.write("run", protocol__name="common, steps=5", protocol__adaptation_steps=5)
    plain = lab.page("layout=free", "rows=[algorithm]", "cols=[task]")
    said = lab.page("layout=free", "rows=[algorithm,protocol.adaptation_steps]", "cols=[task]")
    assert (plain.notes, said.notes) == (["tested with 5 steps"], [])


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_the_footnotes_are_held_against_the_test_that_stands_below_the_table(lab: Any, order: str) -> None:
    """Two tests that win one column each: whichever is the reference is it everywhere."""
    for name, algorithm, shot in zip(order, ("fomaml", "maml"), (1, 5), strict=True):
        own = {"protocol__name": "paper", "protocol__query": shot, "protocol__manifest": f"{shot}" * 64}
        lab.write(name, algorithm=algorithm, shot=shot, protocol__shot=shot, train__shot=shot, **own)
    page = lab.page("layout=omniglot", "published=false")
    (note,) = page.notes
    assert "quer" in note and "manifest" not in note


# Formats


def test_csv_keeps_fields_of_the_training_apart_from_those_of_the_test(lab: Any) -> None:
    lab.write("run", train__shot=10)
    page = lab.page("layout=free", "rows=[algorithm,train.shot,dataset]", "cols=[task]")
    (line,) = csv.DictReader(io.StringIO(FORMATS["csv"](page)))
    assert (line["train shot"], line["shot"], line["trained dataset"], line["dataset"]) == (
        "10",
        "1",
        *["omniglot"] * 2,
    )


def test_csv_has_a_line_per_cell_with_raw_numbers(results: Any) -> None:
    lines = list(csv.DictReader(io.StringIO(FORMATS["csv"](results(below=ABLATION)))))
    record = json.loads((RESULTS / ABLATION / "omniglot-5w1s/leo-features/record.json").read_text())
    leo = {line["shot"]: line for line in lines if line["method"] == "leo"}
    assert len(lines) == 17
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
    assert FORMATS[form](lab.page("costs=true")).count(escaped) == 2  # in the table and in that of costs


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
    pages = {path: refresh_tables(path, lab.settings()) for path in RESULTS.rglob("*.md")}
    found = {path: made for path, made in pages.items() if made is not None}
    assert found.keys() == {RESULTS / "README.md"}
    for path, made in found.items():
        assert made[1] == []
        assert path.read_text(encoding="utf-8") == made[0], "run `python tools/table.py refresh=results`"


def test_refresh_writes_the_tables_between_their_marks_and_nothing_else(call: Any, lab: Any, tmp_path: Path) -> None:
    lab.write("results/maml")
    lab.write_regression("results/lines/run")
    page = tmp_path / "results" / "README.md"
    first, second = "<!-- table -->", "<!-- table layout=sinusoid runs=lines published=false costs=true -->"
    page.write_text(f"before\n{first}\nold\n<!-- /table -->\nbetween\n{second}\n<!-- /table -->\nafter\n")
    done = call("table", "refresh=results")
    assert (done.code, done.out) == (0, "results/README.md: written\n")
    assert done.err == ""
    one = FORMATS["markdown"](lab.page("layout.datasets=[omniglot]"), lab.page("layout.datasets=[sinusoid]"))
    two = FORMATS["markdown"](lab.page(*second.split()[2:-1], below="results/lines"))
    text = f"before\n{first}\n\n{one}\n\n<!-- /table -->\nbetween\n{second}\n\n{two}\n\n<!-- /table -->\nafter\n"
    assert page.read_text() == text
    assert call("table", "refresh=results").out == "results/README.md: current\n"


def test_refresh_keeps_the_ends_of_lines_of_a_file(call: Any, lab: Any, tmp_path: Path) -> None:
    lab.write("results/maml")
    page = tmp_path / "results/README.md"
    page.write_bytes(b"before\r\n<!-- table -->\r\n<!-- /table -->\r\n")
    assert call("table", "refresh=results").out == "results/README.md: written\n"
    assert page.read_bytes().count(b"\n") == page.read_bytes().count(b"\r\n") > 5
    assert call("table", "refresh=results").out == "results/README.md: current\n"
    page.write_bytes(b"of two kinds\r\nbefore\n<!-- table -->\n<!-- /table -->\nafter\r\n")
    (tmp_path / "results/folder.md").mkdir()
    assert call("table", "refresh=results").code == 0
    text = page.read_bytes()
    assert text.startswith(b"of two kinds\r\nbefore\n<") and text.endswith(b"<!-- /table -->\nafter\r\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table -->\n", "each table stands between a <!-- table -->"),
        ("<!-- /table --><!-- table -->", "each table stands between a <!-- table -->"),
        ("<!-- table --><!-- table --><!-- /table --><!-- /table -->", "each table stands between a <!-- table -->"),
        ("<!-- table layout=omnigloss --><!-- /table -->", "layout=omnigloss: no such layout"),
        ("<!-- table layout.prtcl=own --><!-- /table -->", "layout.prtcl=own: a table's mark has no such value"),
        ("<!-- table seed=1 --><!-- /table -->", "seed=1: a table's mark has no such value"),
        ("<!-- table runs=2024 --><!-- /table -->", "no record.json below .*2024"),
        ("<!-- table rows=[a --><!-- /table -->", r"rows=\[a: cannot be read"),
        ("<!-- table layout.datasets=5 --><!-- /table -->", r"layout.datasets=5: must be a list"),
        ("<!-- table layout.leave_out=maml --><!-- /table -->", r"layout.leave_out=maml: must be a list"),
        ("<!-- table costs=maybe --><!-- /table -->", "costs=maybe: must be true or false"),
        ("<!-- table runs=null --><!-- /table -->", "no record.json below .*null"),
        ("<!-- table layout.published=true --><!-- /table -->", "layout.published=true: a table's mark has no such"),
    ],
)
def test_marks_that_do_not_pair_or_hold_what_there_is_not_are_refused(
    lab: Any, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(FewshotError, match=message):
        refresh_tables(path, lab.settings())


def test_a_mark_that_a_document_quotes_is_no_place_for_a_table(lab: Any, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("Between `<!-- table runs=none -->` and `<!-- /table -->` stands a table.\n")
    assert refresh_tables(path, lab.settings()) is None
    path.write_bytes(b"of another encoding: \xff")
    assert refresh_tables(path, lab.settings()) is None
    path.write_bytes(b"<!-- table -->\xff<!-- /table -->")
    with pytest.raises(FewshotError, match="is not UTF-8 text"):
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
        ("layout.leave_out=maml", "layout.leave_out=maml: must be a list"),
        ("refresh=.", "no Markdown file below . has a place for a table"),
        ("refresh=nowhere", "refresh=nowhere: is no folder; name one that has Markdown files"),
    ],
)
def test_a_mistake_is_answered_in_one_line(call: Any, word: str, message: str) -> None:
    done = call("table", word)
    assert (done.code, done.out) == (1, "")
    assert message in done.err and len(done.err.splitlines()) == 1


README = (RESULTS.parent / "README.md").read_text(encoding="utf-8")
NAMES = {
    "SimpleShot": "simple_shot",
    "Matching Networks": "matching_net",
    "MAML from a classifier": "maml, from a classifier",
}


def test_the_table_at_the_start_of_the_readme_is_that_of_the_committed_records(results: Any) -> None:
    texts = [[entry.text for entry in row] for row in results(below="glyphs").table.itertuples(index=False)]
    shown = re.findall(r"^\| (\w+) +\| (ind\.|trans\.) +\| \**(\d+\.\d+ ± \d+\.\d+)", README, re.MULTILINE)
    assert len(shown) == 9
    for method, setting, score in shown:
        assert any(row[0] == method and row[1] == setting and score in row for row in texts), (method, setting, score)


def test_each_figure_of_the_readme_is_that_of_its_method_task_and_setting(results: Any) -> None:
    def plain(method: str) -> str:
        return re.sub(r" \(conv4\)|, (trained|recipe) .*", "", method)

    printed, found = {row["published"]["printed"] for row in read_published()}, 0
    for line in (row for row in README.split("## Results")[1].splitlines() if row.startswith("| ") and "`" in row):
        _, task, methods, here, reference, _, _ = line.split("|")
        dataset = "mini" if "mini" in task else "omniglot"
        page = results(f"layout={dataset}", below=dataset)
        headings, rows = list(page.table.columns), [[e.text for e in row] for row in page.table.itertuples(index=False)]
        (way,), shots = re.findall(r"(\d+)-way", task), re.findall(r"(\d)(?:/(\d))?-shot", task)[0]
        setting = "trans." if "transductive" in task else "ind." if "inductive" in task else ""
        for method, figures in zip(methods.split(";"), here.split(";"), strict=True):
            name = NAMES.get(method := re.sub(r" \(.*", "", method.strip()), method.lower())
            own = [row for row in rows if plain(row[0]) == name and setting in row[1]]
            for figure, shot in zip(figures.split(","), filter(None, shots), strict=True):
                column = headings.index(f"{way}-way {shot}-shot")
                assert figure.strip() in [row[column] for row in own], (method, shot, figure)
                found += 1
        texts = (
            {text.split(" ± ")[0] for row in rows for text in row} | {text for row in rows for text in row} | printed
        )
        for figure in re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", reference):
            assert figure in texts, figure
    assert found > 15


def test_a_table_that_cannot_be_made_leaves_the_others(call: Any, lab: Any, tmp_path: Path) -> None:
    lab.write("results/good/maml")
    for name in ("one", "other"):  # whose scores differ with the name's length
        lab.write(f"results/bad/{name}")
    page = tmp_path / "results/README.md"
    page.write_text("".join(f"<!-- table runs={name} -->\nold {name}\n<!-- /table -->\n" for name in ("bad", "good")))
    done = call("table", "refresh=results")
    assert done.code == 1 and "a table stays as it was: " in done.err and "are both maml" in done.err
    assert "old bad" in page.read_text() and "old good" not in page.read_text()
