#!/usr/bin/env bash
# One would guess: a string for a Sequence[str] stays that string (a string is a sequence of strings), or is refused
#   as no list.
# What happens: dacite builds the items of any collection by a generator and calls the value's own class with it. For
#   a string that is str(generator), so the field holds the generator's name and address instead of the value; the
#   type check passes, strict=True too. list[str] and tuple[str, ...] refuse a string, as one would expect.
# Version: dacite 1.9.2
# Source: dacite/core.py, _build_value_for_collection (`data_type(... for item in data)`)
# What to do: declare lists of configuration files as list[str] or tuple[str, ...], never as Sequence[str] or
#   Collection[str].
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    dacite==1.9.2
venv/bin/python - <<'EOF'
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass

import dacite

print("dacite", importlib.metadata.version("dacite"))


@dataclass
class Loose:
    models: Sequence[str]


@dataclass
class Strict:
    models: list[str]


loose = dacite.from_dict(Loose, {"models": "bert"}, dacite.Config(strict=True))
print("Sequence[str] given 'bert':", repr(loose.models))
try:
    strict = dacite.from_dict(Strict, {"models": "bert"}, dacite.Config(strict=True))
except dacite.WrongTypeError as error:
    strict = str(error)
print("list[str] given 'bert':", strict)
assert loose.models.startswith("<generator object") and "list" in strict
print("As stated: the value is gone.")
EOF
