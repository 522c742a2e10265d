"""findings/: the form of each script. `make findings` runs them, outside the tests."""

import os
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
FIELDS = ("One would guess", "What happens", "Version", "Source", "What to do")
ROW = re.compile(r"^\| \[(\S+)\]\((\S+)\) \| (.+) \| (.+) \|$", re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_form(script):
    text = script.read_text("utf-8")
    assert os.access(script, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n# One would guess: ") and "\nset -euo pipefail\n" in text
    header = text.partition("\nset -euo")[0].replace("\n#   ", " ")
    fields = dict(line[2:].split(": ", 1) for line in header.splitlines()[1:])
    assert tuple(fields) == FIELDS and all(fields.values())
    (install,) = re.findall(r"pip install --quiet --disable-pip-version-check \\\n    (.+)", text)
    pins = [package.replace("==", " ") for package in install.split() if "==" in package]
    assert len(pins) == len(install.split()) and set(fields["Version"].split(", ")) <= set(pins)
    assert "gnorm" not in text.lower()


def test_the_readme_has_a_row_for_each_script():
    rows = ROW.findall((FOLDER / "README.md").read_text("utf-8"))
    assert [name for name, *_ in rows] == [target for _, target, *_ in rows]
    assert sorted(name for name, *_ in rows) == [script.name for script in SCRIPTS]
    for name, _, versions, _ in rows:
        assert f"# Version: {versions}\n" in (FOLDER / name).read_text("utf-8")
