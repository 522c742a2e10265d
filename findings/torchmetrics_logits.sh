#!/usr/bin/env bash
# One would guess: BinaryAccuracy treats the numbers it gets in one way: a logit above 0 is class 1.
# What happens: values of a batch outside of 0 to 1 make the whole batch logits, and a sigmoid is applied; if all
#   happen to lie within, they count as probabilities, and 0.2 is class 0. The same text is class 1 in one batch and
#   class 0 in the next; small batches and pruned models, whose logits are small, meet it most. The documentation says
#   the rule.
# Version: torchmetrics 1.9.0, torch 2.13.0
# Source: torchmetrics/utilities/compute.py, normalize_logits_if_needed;
#   https://lightning.ai/docs/torchmetrics/stable/classification/accuracy.html
# What to do: give metrics of one logit the sigmoid's result or the class, never the logit.
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
from torchmetrics.classification import BinaryAccuracy

print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__)
logits, labels = torch.tensor([0.2, 0.3, 0.4, 1.5]), torch.ones(4, dtype=torch.long)
three = BinaryAccuracy()(logits[:3], labels[:3]).item()
four = BinaryAccuracy()(logits, labels).item()
whole = BinaryAccuracy()
for logit, label in zip(logits, labels, strict=True):
    whole.update(logit[None], label[None])
print("logits", logits.tolist(), "all of class 1, all right")
print("accuracy of the first three: %.2f, of all four: %.2f, one after the other: %.2f"
      % (three, four, whole.compute().item()))
assert (three, four, whole.compute().item()) == (0.0, 1.0, 0.25)
print("As stated: it depends on the batch.")
EOF
