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
    assert text.startswith("#!/usr/bin/env bash\n# One would guess: ")
    assert "\nset -euo pipefail\n" in text
    header = text.partition("\nset -euo")[0].replace("\n#   ", " ")
    fields = dict(line[2:].split(": ", 1) for line in header.splitlines()[1:])
    assert tuple(fields) == FIELDS
    assert all(fields.values())
    installs = re.findall(r"pip install --quiet --disable-pip-version-check \\\n    (?:--no-deps )?(.+)", text)
    packages = [package for install in installs for package in install.split()]
    assert all("==" in package for package in packages)
    assert set(fields["Version"].split(", ")) <= {package.replace("==", " ") for package in packages}
    assert "gnorm" not in text.lower()


def test_the_readme_has_a_row_for_each_script():
    rows = ROW.findall((FOLDER / "README.md").read_text("utf-8"))
    assert [name for name, *_ in rows] == [target for _, target, *_ in rows]
    assert sorted(name for name, *_ in rows) == [script.name for script in SCRIPTS]
    for name, _, versions, _ in rows:
        assert f"# Version: {versions}\n" in (FOLDER / name).read_text("utf-8")
