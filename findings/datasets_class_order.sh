#!/usr/bin/env bash
# One would guess: labels 0 to 10 keep their numbers when the column is made a ClassLabel; -1, by which unlabelled
#   rows are marked, stays apart.
# What happens: labels are turned into text and sorted as text. Of 0 to 10 only 0 and 1 keep their number: 10 becomes
#   2, 2 becomes 3, and so on. With -1 in the column, -1 is class 0, 0 is class 1 and 1 is class 2. A model that was
#   trained with the integers is then measured against other classes.
# Version: datasets 5.2.0
# Source: datasets/arrow_dataset.py, Dataset.class_encode_column (stringify_column, sorted)
# What to do: cast the column to ClassLabel(num_classes=n), which keeps the numbers, and drop rows of -1 first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    datasets==5.2.0
export HF_HUB_OFFLINE=1
venv/bin/python - <<'EOF'
import datasets
from datasets import ClassLabel, Dataset

print("datasets", datasets.__version__)
datasets.disable_progress_bars()
eleven = Dataset.from_dict({"label": list(range(11))})
encoded = eleven.class_encode_column("label")
unlabelled = Dataset.from_dict({"label": [0, 1, -1]}).class_encode_column("label")
cast = eleven.cast_column("label", ClassLabel(num_classes=11))
print("0 to 10 become", encoded["label"][:], "names", encoded.features["label"].names)
print("0, 1, -1 become", unlabelled["label"][:], "names", unlabelled.features["label"].names)
print("0 to 10 cast to ClassLabel(num_classes=11):", cast["label"][:])
assert encoded["label"][:] == [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 2]
assert unlabelled["label"][:] == [1, 2, 0] and cast["label"][:] == list(range(11))
print("As stated: sorted as text.")
EOF
