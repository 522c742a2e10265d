#!/usr/bin/env bash
# One would guess: a tuple arrives as a tuple or a list, on its own and within a dictionary; or papermill refuses it.
# What happens: what is no str, bool, int, float, dict, list or None is written into the parameters cell as a quoted
#   string: '(0, 1)'. Keys of dictionaries become strings as well. Nothing is said, and an annotation such as `seeds:
#   tuple` in the notebook is not checked. The metadata of the finished notebook holds the list [0, 1], so the record
#   of the run is not what ran.
# Version: papermill 2.7.0
# Source: papermill/translators.py, Translator.translate ('as a last resort') and translate_dict;
#   papermill/parameterize.py, parameterize_notebook (metadata)
# What to do: give execute_notebook lists, and check the types of parameters in the first cell that uses them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    papermill==2.7.0 ipykernel==7.4.0
venv/bin/python - <<'EOF'
import importlib.metadata
import json

import nbformat
import papermill
from nbformat.v4 import new_code_cell, new_notebook

print("papermill", importlib.metadata.version("papermill"))
values = {"seeds": (0, 1), "as_list": [0, 1], "options": {3: (0, 1)}}
cells = [
    new_code_cell("seeds: tuple = (0, 1)", metadata={"tags": ["parameters"]}),
    new_code_cell("import json; json.dump([seeds, as_list, options], open('seen.json', 'w'))"),
]
kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), "in.ipynb")
papermill.execute_notebook("in.ipynb", "out.ipynb", values, progress_bar=False, log_output=False)
seen = dict(zip(values, json.load(open("seen.json")), strict=True))
recorded = json.load(open("out.ipynb"))["metadata"]["papermill"]["parameters"]
for name, given in values.items():
    print(name, "- given", repr(given), "- arrived", repr(seen[name]), "- recorded", repr(recorded[name]))
assert seen == {"seeds": "(0, 1)", "as_list": [0, 1], "options": {"3": "(0, 1)"}}
assert recorded["seeds"] == [0, 1]
print("As stated: the tuple arrives as text.")
EOF
