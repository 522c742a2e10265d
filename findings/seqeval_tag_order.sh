#!/usr/bin/env bash
# One would guess: tags of an unknown form are refused, or at least a wrong type (PER for LOC) is an error.
# What happens: the letter after the dash is read as the type and the first letter of the type as the position, so
#   there are entities of the types B and I, and PER-B for LOC-B is right. A warning names tags that seem not to be
#   tags; the number returned is 1.0. With suffix=True it is 0.5.
# Version: seqeval 1.2.2, scikit-learn 1.9.1
# Source: seqeval/metrics/sequence_labeling.py, get_entities and precision_recall_fscore_support (suffix)
# What to do: look at the names in classification_report once: they must be the entity types of the data.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    seqeval==1.2.2 scikit-learn==1.9.1
export PYTHONWARNINGS=ignore
venv/bin/python - <<'EOF'
import importlib.metadata
import warnings

from seqeval.metrics import classification_report, f1_score

for name in ("seqeval", "scikit-learn"):
    print(name, importlib.metadata.version(name))
labels, predictions = [["PER-B", "PER-I", "O", "LOC-B"]], [["PER-B", "PER-I", "O", "PER-B"]]
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    default = float(f1_score(labels, predictions))
types = [name for name in classification_report(labels, predictions, output_dict=True) if " " not in name]
suffix = float(f1_score(labels, predictions, suffix=True))
print("F1 %.2f, entity types %s, warnings: %s" % (default, types, sorted({str(each.message) for each in told})))
print("suffix=True: F1 %.2f" % suffix)
assert default == 1.0 and types == ["B", "I"] and suffix == 0.5
print("As stated: the wrong type counts as right.")
EOF
