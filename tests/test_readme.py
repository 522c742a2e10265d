"""What the README says is what the results say, and its example runs."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

from gnorm import shipping

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import readme

TEXT = (ROOT / "README.md").read_text("utf-8")


def test_the_generated_part_is_not_stale():
    assert readme.readme(TEXT) == TEXT, "run `make readme` and commit"


def test_the_example_runs_as_it_stands(tmp_path):
    own, example = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert textwrap.indent(own, "    ") in shipping.__doc__  # whose tests run it
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "pruned_heads" in done.stdout
    assert float(done.stdout.split()[-1]) > 0.5
    assert (tmp_path / "bert.jsonl").exists()


def test_links_and_figures_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("https://") or (ROOT / target).exists(), target
