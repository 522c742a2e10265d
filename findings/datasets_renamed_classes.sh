#!/usr/bin/env bash
# One would guess: a cast from names (neg, pos) to names (pos, neg) turns 0 into 1, as a cast from strings does, or is
#   refused.
# What happens: numbers stay, names are exchanged: rows that were 'neg' are 'pos'. concatenate_datasets refuses two
#   such columns, so the cast is what one tries next. align_labels_with_mapping is the function that follows names.
# Version: datasets 5.2.0
# Source: datasets/features/features.py, ClassLabel.cast_storage; https://huggingface.co/docs/datasets/process#align
# What to do: use align_labels_with_mapping(model.config.label2id, 'label') before a model with its own order of
#   classes is measured.
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
from datasets import ClassLabel, Dataset, Features

print("datasets", datasets.__version__)
datasets.disable_progress_bars()
names = ["neg", "pos"]
rows = Dataset.from_dict({"label": [0, 1]}, features=Features({"label": ClassLabel(names=names)}))
other = Features({"label": ClassLabel(names=names[::-1])})


def classes(each):
    return [each.features["label"].int2str(number) for number in each["label"][:]]


cast = rows.cast(other)
strings = Dataset.from_dict({"label": names}).cast(other)
aligned = rows.align_labels_with_mapping({"pos": 0, "neg": 1}, "label")
print("before:", rows["label"][:], classes(rows))
print("cast:", cast["label"][:], classes(cast))
print("strings, cast:", strings["label"][:], classes(strings))
print("align_labels_with_mapping:", aligned["label"][:], classes(aligned))
assert classes(rows) == ["neg", "pos"] and classes(cast) == ["pos", "neg"]
assert classes(strings) == ["neg", "pos"] and aligned["label"][:] == [1, 0]
print("As stated: each row has the other class.")
EOF
