"""What the report says, in which order, and what it marks."""

import json
import os
import re
import shutil
from unittest import mock

import nbformat
import pandas as pd
import pytest
import small_results
from pipeline import ROOT

from experiments.analysis import claims
from experiments.files import paths
from experiments.report import captions, explore, rendering, sentences
from experiments.report.captions import ROWS
from experiments.runs import results, stamps
from gnorm.storage.files import write


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results that are made once, and their manifest."""
    folder = tmp_path_factory.mktemp("made")
    with mock.patch.dict(os.environ, GNORM_OUTPUT=str(folder)):
        return folder, small_results.write_results()


@pytest.fixture
def manifest(made, tmp_path, monkeypatch):
    folder, manifest = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    monkeypatch.setattr(explore, "library", lambda: "/* Vega */")
    return manifest


def page_of(manifest, **options):
    return rendering.write_report("smoke", "Small models", manifest, {}, **options).read_text("utf-8")


def plain(page):
    """The words of a page without its tags."""
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL))


def read_tables():
    return {path.stem: pd.read_csv(path) for path in paths.tables_folder("smoke").glob("*.csv")}


# ---------------------------------------------------------------- the answers


def test_the_answers_are_those_of_the_tables(manifest):
    tables = read_tables()
    tables["pruning_summary"] = pd.DataFrame(
        [["bert", 0.02, 6, 2, 0.9, 1234567, 0.9, 1034567]],
        columns=["model", "budget", "heads", "heads pruned", "accuracy", "parameters", "accuracy after"]
        + ["parameters after"],
    )
    row = tables["winners"].iloc[0]
    of_bert = (
        "Of the paper's five methods Greedy-Gnorm has the largest area (0.800), before Random (0.600); 0.200 more on "
        f"the same texts ({row.low:+.3f} to {row.high:+.3f}). Intact accuracy 0.900 on 20 texts; areas: Greedy-Gnorm "
        "0.800, Random 0.600. Within 0.02 of that accuracy 2 of 6 heads can go: accuracy 0.900 → 0.900, parameters "
        "1,234,567 → 1,034,567."
    )
    of_albert = (
        "Of the paper's five methods Greedy-Gnorm has the largest area (0.625), before Random (0.625); 0.000 more on "
        "the same texts (+0.000 to +0.000). The interval holds 0: these texts do not settle which is better. Intact "
        "accuracy 0.800 on 20 texts; areas: Greedy-Gnorm 0.625, Random 0.625."
    )
    assert row.low > 0
    assert sentences.of_methods(tables) == [("bert.", of_bert), ("albert.", of_albert)]
    assert sentences.overall(tables) == "Of 2 methods Greedy-Gnorm has the largest area on bert and albert."
    page = plain(page_of(manifest))
    assert page.index(sentences.overall(tables)) < page.index("Contents")
    assert "areas: Greedy-Gnorm 0.625, Random 0.625." in page


def test_published_areas_stand_beside_ours():
    rows = [["bert", "greedy_gnorm", 0.9, 20, 0.75, 0.7, 0.05], ["bert", "random", 0.9, 20, 0.5, None, None]]
    table = pd.DataFrame(rows, columns=["model", "method", "0%", "texts", "area", "published", "difference"])
    ((_, said),) = sentences.of_methods({"pruning_results": table})
    assert said.endswith("The paper reports: Greedy-Gnorm 0.700 (+0.050 here).")


def test_the_first_sentence_names_the_best_method_of_each_model():
    best = {"bert": "random", "albert": "greedy_gnorm", "roberta": "random"}
    rows = [(model, name, float(name == first)) for model, first in best.items() for name in ("greedy_gnorm", "random")]
    table = pd.DataFrame(rows, columns=["model", "method", "area"])
    said = "Of 2 methods Random has the largest area on bert and roberta; Greedy-Gnorm on albert."
    assert sentences.overall({"pruning_results": table}) == said


def test_verdicts_are_sentences():
    spans = {"attention_entropy": [(0.1, 0.3)] * 3 + [(-0.1, 0.1)], "random": [(0.1, 0.2)] * 2 + [(-0.2, -0.1)] * 2}
    spans |= {"head_importance": [(-0.1, 0.1)] * 4}
    rows = [
        (model, "greedy_gnorm", other, "area", (low + high) / 2, low, high, 0.001 if low * high > 0 else 0.5)
        for other, intervals in spans.items()
        for model, (low, high) in zip("abcd", intervals, strict=True)
    ]
    columns = ["model", "method", "baseline", "endpoint", "difference", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns).assign(low90=-1.0, high90=1.0, same_as="")
    said = dict(sentences.of_claims({"differences": table}))
    verdict = "open up to half of the heads and within two points, contradicted over the whole area"
    assert said[f"C1. {claims.CLAIMS[0].says}: {verdict}."] == (
        "Over the whole area Greedy-Gnorm keeps more accuracy than Attention entropy on a (+0.200), b (+0.200) and c "
        "(+0.200); on d (+0.000) it is not settled. It keeps more accuracy than Random on a (+0.150) and b (+0.150);"
        " less on c (-0.150) and d (-0.150)."
    )
    assert said[f"Q3. {claims.QUESTIONS[2].says}: open."] == (
        "Greedy-Gnorm less Head importance (Michel), on a (+0.000), b (+0.000), c (+0.000) and d (+0.000), is not "
        "settled."
    )
    assert said[f"C2. {claims.CLAIMS[1].says}: open."] == ""  # nobody compared them
    assert len(said) == len(claims.CLAIMS + claims.QUESTIONS)


def test_without_tables_the_page_says_so(tmp_path, monkeypatch, manifest):
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path / "empty"))
    assert "No table that answers is there yet." in page_of(manifest)
    assert not paths.explore_page("smoke").exists()


# ---------------------------------------------------------------- tables and figures


def test_items_come_in_the_order_of_the_paper_and_unknown_ones_last(manifest):
    for name in ("a_table", "costs", "four_models", "claims"):
        results.save_table(pd.DataFrame({"x": [1]}), "smoke", name)
    page = page_of(manifest)
    order = ["pruning_results", "winners", "four_models", "costs", "claims", "a_table"]
    assert re.findall(r'<h3 id="(\w+)">', page) == order
    assert [each for each in re.findall(r'<li><a href="#(\w+)">', page) if each in order] == order
    assert '<h3 id="a_table">a_table</h3>' in page
    assert plain(page).index("Manifest") < plain(page).rindex("Notebooks as they were executed")
    assert page.index('id="notebooks"') > page.index('id="a_table"')


def test_a_table_has_a_caption_units_and_readable_names(manifest):
    results.save_table(
        pd.DataFrame({"model": ["bert"], "MB": [86.64697], "ms": [0.0001], "n": [22713986]}), "smoke", "costs"
    )
    page = page_of(manifest)
    words = plain(page)
    assert "model memory (MB) time (ms) n bert 86.647 0.0001 22,713,986" in words
    assert f"{ROWS['winners'].caption} Profile smoke; n = bert 20, albert 20 evaluation texts; device cpu." in words
    assert f"{ROWS['costs'].caption} Profile smoke; device cpu." in words
    assert "bert Greedy-Gnorm 20 0.900" in words
    assert "greedy_gnorm" not in words


def test_what_notebooks_write_has_a_row():
    written = set()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
        written |= set(
            re.findall(r'save_(?:table|figure)\((?:(?!save_).)*?\bprofile,\s*"(\w+)",?\s*\)', code, re.DOTALL)
        )
    assert len(written) > 40
    assert written <= ROWS.keys()
    there = {
        path.stem
        for pattern in ("figures/*/*.png", "experiments_results/*/tables/*.csv")
        for path in ROOT.glob(pattern)
    }
    assert there <= ROWS.keys()
    assert {texts for texts in (row.texts for row in ROWS.values()) if texts} == rendering.TEXTS.keys()


def test_known_columns_are_those_of_tables():
    columns = {name for path in ROOT.glob("experiments_results/*/tables/*.csv") for name in pd.read_csv(path, nrows=0)}
    assert captions.COLUMNS.keys() - columns <= {"published"}  # the profile paper has it


# ---------------------------------------------------------------- what is not current


def test_what_is_current_is_not_marked(manifest):
    assert 'class="mark"' not in page_of(manifest)
    assert 'class="mark"' not in paths.explore_page("smoke").read_text("utf-8")


def test_what_older_code_wrote_is_out_of_date(manifest):
    page = page_of(manifest, stale=["show_pruning_result"])
    words = plain(page)
    assert "Out of date: show_pruning_result. The code, the profile or the versions changed since they ran." in words
    assert "python run_all.py --profile smoke --only show_pruning_result" in words
    assert "All 4 trajectories are out of date." in words
    assert "Table and figure out of date." in words
    assert "show_pruning_result (no executed copy is here), 2.0 s out of date" in words
    assert "All 4 trajectories are out of date." in paths.explore_page("smoke").read_text("utf-8")


def test_what_no_recorded_run_wrote_is_of_another_run(manifest):
    table = paths.tables_folder("smoke") / "winners.csv"
    write(table, table.read_text("utf-8").replace("bert", "roberta"))
    path = paths.results_folder("smoke") / "albert" / "random.csv"
    write(path, path.read_text("utf-8") + "\n")
    words = plain(page_of(manifest))
    assert f"Of another run: {ROWS['winners'].title}. That is, no notebook of the runs" in words
    assert words.count("Table of another run.") == 1
    assert "Trajectories of another run: albert, Random." in words
    assert "out of date" not in words


def test_a_file_is_current_where_any_current_run_wrote_it(manifest):
    stamp = manifest["notebooks"]["show_pruning_result"]
    both = {"older": stamp, "newer": stamp}
    path = paths.tables_folder("smoke") / "winners.csv"
    assert stamps.freshness(path, both, ["older"]) == ""
    assert stamps.freshness(path, both, ["older", "newer"]) == stamps.OUTDATED
    assert stamps.freshness(path, {"other": {"written": {}}}, []) == stamps.UNRECORDED


def test_a_damaged_trajectory_is_left_out_and_named(manifest):
    write(paths.results_folder("smoke") / "albert" / "random.npz", b"")
    words = plain(page_of(manifest))
    assert "Left out: experiments_results/smoke/albert/random.csv or the files beside it are damaged" in words
    assert '"random"' not in paths.explore_page("smoke").read_text("utf-8")


# ---------------------------------------------------------------- the page to drag on


def specifications():
    page = paths.explore_page("smoke").read_text("utf-8")
    return json.loads(re.search(r"const specifications = (.*);\n", page)[1])


def test_masks_and_accuracies_of_every_step(manifest):
    page_of(manifest)
    found = specifications()
    assert list(found) == ["bert", "albert"]
    assert found["bert"]["params"][0]["bind"]["max"] == 6
    greedy, random = found["bert"]["vconcat"][1]["concat"]
    assert greedy["data"]["values"] == [
        {"layer": [0, 0, 0, 1, 1, 1], "head": [0, 1, 2] * 2, "gone": [1, 2, 3, 4, 5, 6]}
    ]
    assert random["data"]["values"][0]["gone"] == [6, 5, 4, 3, 2, 1]
    steps = json.dumps(["0.900", "0.900 (at 0)", "0.900", "0.900 (at 2)", "0.800", "0.800 (at 4)", "0.500"])
    assert greedy["title"]["text"]["expr"] == f"[\"Greedy-Gnorm\", 'accuracy ' + {steps}[pruned]]"
    states = found["albert"]["vconcat"][0]["layer"][0]["data"]["values"]
    assert states[0] == {"method": "Greedy-Gnorm", "pruned": [0, 2, 4], "value": [0.8, 0.6, 0.5]}


def test_titles_are_escaped_in_the_page_to_drag_on(manifest):
    page_of(manifest)
    page = paths.explore_page("smoke").read_text("utf-8")
    assert "&lt;b&gt;small&lt;/b&gt; &lt;/script&gt;</option>" in page
    assert page.count("</script>") == 2


def test_seeds_are_models_to_choose(manifest):
    info = small_results.trajectory("bert", "random")
    assert explore.model_titles({"bert/seed3": {"random": info}}) == {
        "bert/seed3": "The bert, <b>small</b> </script>, training seed 3"
    }


def test_the_library_is_bundled_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_CACHE", str(tmp_path))
    calls = []
    monkeypatch.setattr(explore.vl_convert, "javascript_bundle", lambda: calls.append(1) or "js")
    assert [explore.library(), explore.library()] == ["js", "js"]
    assert calls == [1]
