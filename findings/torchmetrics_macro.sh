#!/usr/bin/env bash
# One would guess: both are accuracy: right answers divided by answers.
# What happens: Accuracy(task='multiclass') averages over answers ('micro'); the class that it makes,
#   MulticlassAccuracy, and the function multiclass_accuracy average over classes ('macro'). A model that says 0 to
#   nine texts of class 0 and one of class 1 has 0.9 by one and 0.5 by the others.
# Version: torchmetrics 1.9.0, torch 2.13.0
# Source: torchmetrics/classification/accuracy.py, MulticlassAccuracy.__init__ (average='macro') and Accuracy.__new__
#   (average='micro')
# What to do: give average='micro' by name when accuracies of pruned models are compared with those of papers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 torchmetrics==1.9.0
venv/bin/python - <<'EOF'
import torch
import torchmetrics
from torchmetrics.functional.classification import multiclass_accuracy

print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__)
predictions, labels = torch.zeros(10, dtype=torch.long), torch.tensor([0] * 9 + [1])
by_task = torchmetrics.Accuracy(task="multiclass", num_classes=2)(predictions, labels).item()
by_class = torchmetrics.classification.MulticlassAccuracy(num_classes=2)(predictions, labels).item()
by_function = multiclass_accuracy(predictions, labels, num_classes=2).item()
print("9 of 10 right: Accuracy(task='multiclass') %.2f, MulticlassAccuracy %.2f, multiclass_accuracy %.2f"
      % (by_task, by_class, by_function))
assert abs(by_task - 0.9) < 1e-6 and by_class == by_function == 0.5
print("As stated: two meanings of accuracy.")
EOF
