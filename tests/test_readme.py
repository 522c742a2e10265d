"""What the README and the generated pages say is what the results say, and the README's example runs."""

import re
import sys
import textwrap

import pytest
from pipeline import ROOT

import gnorm
from benchmarks.deploying import KINDS, TOOLS
from experiments.analysis import claims
from gnorm import shipping
from gnorm.engine.model.families import FAMILIES

sys.path.insert(0, str(ROOT / "tools"))

import claims_page
import pages
import performance

TEXT = (ROOT / "README.md").read_text("utf-8")
WRITTEN = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")))


@pytest.mark.parametrize("path", pages.PAGES)
def test_the_generated_part_is_not_stale(path):
    text = (ROOT / path).read_text("utf-8")
    assert pages.page(path, text) == text, "run `make readme` and commit"


def test_no_time_is_given_without_the_processor_that_took_it(monkeypatch):
    read = pages.read_json
    assert "minutes" not in pages.how_made() or pages.read_json(pages.RESULTS / "manifest.json")["processor"]
    monkeypatch.setattr(pages, "read_json", lambda path: read(path) | {"processor": "Abacus"})
    assert "; on Abacus the 20 trajectories took " in pages.how_made()


def test_the_page_on_performance_is_not_stale():
    assert performance.page() == (ROOT / "docs" / "performance.md").read_text("utf-8"), "run `make readme` and commit"


def test_what_is_recommended_is_what_the_study_found():
    assert claims.recommended(claims_page.read("methods")) == shipping.RECOMMENDED


def test_the_example_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    own, example = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert textwrap.indent(own, "    ") in shipping.__doc__  # whose tests run it
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    exec(example, {"__name__": "__main__"})  # noqa: S102 our own README
    printed = capsys.readouterr().out
    assert "pruned_heads" in printed
    assert float(printed.split()[-1]) > 0.5
    assert (tmp_path / "bert.jsonl").exists()


@pytest.mark.parametrize("path", WRITTEN)
def test_links_and_figures_lead_somewhere(path):
    text = (ROOT / path).read_text("utf-8")
    for target, _, heading in re.findall(r"\]\(([^)#\s]*)(#([^)\s]*))?\)", text):
        assert target.startswith("https://") or ((ROOT / path).parent / target).exists(), target
        if heading and not target.startswith("https://"):
            linked = ((ROOT / path).parent / target if target else ROOT / path).read_text("utf-8")
            headings = re.findall(r"^#+ (.*)$", linked, re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings], heading


@pytest.mark.parametrize("path", WRITTEN)
def test_names_of_the_package_are_there(path):
    for name in re.findall(r"gnorm\.(\w+)", (ROOT / path).read_text("utf-8")):
        modules = (ROOT / "gnorm" / name, ROOT / "gnorm" / f"{name}.py")
        assert hasattr(gnorm, name) or any(path.exists() for path in modules), name


def test_every_known_family_is_named():
    assert FAMILIES.keys() <= set(re.findall(r"`([\w-]+)`", (ROOT / "docs" / "families.md").read_text("utf-8")))


def test_what_the_page_on_deploying_says_is_what_its_script_prints():
    text = (ROOT / "docs" / "deploying.md").read_text("utf-8")
    header, *rows = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    assert header.split(" | ") == ["tool", "version", *KINDS]
    assert [row.split(" | ")[0] for row in rows] == list(TOOLS)
