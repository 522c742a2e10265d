#!/usr/bin/env bash
# One would guess: what stands in quotes in a JSON file is a string, as "12" stays one.
# What happens: a column whose strings all look like dates becomes timestamp[s], and its rows datetime objects; one
#   other text in the column and all stay strings. So a file with short answers or a small sample can change type, and
#   tokenizers then raise on it. Strings of digits stay strings.
# Version: datasets 5.2.0, pyarrow 26.0.1
# Source: datasets/packaged_modules/json/json.py (pyarrow.json.read_json);
#   https://arrow.apache.org/docs/python/json.html (automatic type inference)
# What to do: give load_dataset the features: features=Features({'text': Value('string'), ...}).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    datasets==5.2.0 pyarrow==26.0.1
export HF_HUB_OFFLINE=1
venv/bin/python - <<'EOF'
import json

import datasets
import pyarrow
from datasets import Features, Value, load_dataset

print("datasets", datasets.__version__, "pyarrow", pyarrow.__version__)
datasets.disable_progress_bars()


def read(name, texts, **options):
    with open(name, "w") as file:
        file.writelines(json.dumps({"text": text, "label": 0}) + "\n" for text in texts)
    return load_dataset("json", data_files=name, split="train", cache_dir="cache", **options)


dates = read("dates.jsonl", ["2020-01-01", "2021-02-03"])
mixed = read("mixed.jsonl", ["2020-01-01", "soon"])
digits = read("digits.jsonl", ["2020", "12"])
told = read("told.jsonl", ["2020-01-01"], features=Features({"text": Value("string"), "label": Value("int64")}))
for name, rows in (("dates", dates), ("mixed", mixed), ("digits", digits), ("dates, with features", told)):
    print(name, rows.features["text"], rows["text"][:])
types = [rows.features["text"].dtype for rows in (dates, mixed, digits, told)]
assert types == ["timestamp[s]", "string", "string", "string"]
print("As stated: texts became timestamps.")
EOF
