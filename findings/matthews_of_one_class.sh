#!/usr/bin/env bash
# One would guess: the coefficient, a quotient 0 / 0 there, is 0 by both, or NaN by both.
# What happens: scikit-learn returns 0.0. torchmetrics (two classes) returns 1 where all are right and -1 where all
#   are wrong; where only the predictions are constant both return 0. A part of a data set with one class, a small
#   bootstrap sample or a model whose heads are all pruned meets it.
# Version: torchmetrics 1.9.0, scikit-learn 1.9.1, torch 2.13.0
# Source: torchmetrics/functional/classification/matthews_corrcoef.py, _matthews_corrcoef_reduce;
#   sklearn/metrics/_classification.py, matthews_corrcoef
# What to do: name the library beside a Matthews' correlation, and do not average it over parts that may hold one
#   class.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 torchmetrics==1.9.0 scikit-learn==1.9.1
venv/bin/python - <<'EOF'
import sklearn
import torch
import torchmetrics
from sklearn.metrics import matthews_corrcoef
from torchmetrics.classification import BinaryMatthewsCorrCoef

print("torchmetrics", torchmetrics.__version__, "scikit-learn", sklearn.__version__, "torch", torch.__version__)
zeros = [0] * 6
cases = {"all right": (zeros, zeros), "all wrong": (zeros, [1] * 6), "constant predictions": (zeros, [0, 1] * 3)}
found = {}
for name, (predictions, labels) in cases.items():
    theirs = BinaryMatthewsCorrCoef()(torch.tensor(predictions), torch.tensor(labels)).item()
    found[name] = theirs, float(matthews_corrcoef(labels, predictions))
    print(name, "- torchmetrics %g, scikit-learn %g" % found[name])
assert found == {"all right": (1, 0), "all wrong": (-1, 0), "constant predictions": (0, 0)}
print("As stated: 1, -1 and 0 for the same table.")
EOF
