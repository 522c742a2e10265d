#!/usr/bin/env bash
# One would guess: n_bins=10 makes ten bins, the last from 0.9 to 1 with both ends, as the paper that is cited has it.
# What happens: each confidence is looked up among 11 boundaries, every bin open at its upper end, and there are 11
#   bins: a confidence of exactly 1 has one of its own. In float32 a softmax rounds to 1 from a margin of 17 between two
#   logits on. A model whose confidences in the last bin are 0.026 too high on average is reported at twice that, since
#   the too sure and the too unsure no longer cancel there.
# Version: torchmetrics 1.9.0, torch 2.13.0
# Source: torchmetrics/functional/classification/calibration_error.py, _binning_bucketize (len(bin_boundaries) bins)
# What to do: bring confidences of 1 below it first (clamp(max=1 - 1e-7)), for the pruned model and the whole one alike.
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
import numpy as np
import torch
import torchmetrics
from torchmetrics.classification import MulticlassCalibrationError

print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__)
# 50 texts are answered with a margin of 18, of which 45 rightly; 50 with a margin of 3, all of them rightly.
margins = torch.tensor([18.0] * 50 + [3.0] * 50)
labels = torch.tensor([0] * 45 + [1] * 5 + [0] * 50)
probabilities = torch.stack([margins, torch.zeros(100), torch.full((100,), -30.0)], dim=1).softmax(1)
confidences = probabilities.max(1).values.double().numpy()
right = (probabilities.argmax(1) == labels).double().numpy()
print("confidences:", sorted(set(confidences.tolist())), "right: %g" % right.mean())
counts, _ = np.histogram(confidences, bins=10, range=(0, 1))
assert counts.tolist() == [0] * 9 + [100] and confidences.max() == 1


def by_torchmetrics(probabilities):
    return MulticlassCalibrationError(num_classes=3, n_bins=10)(probabilities, labels).item()


found = {
    "by hand, ten bins": abs(right.mean() - confidences.mean()),
    "by hand, 1 apart": abs(right[:50].mean() - 1) / 2 + abs(right[50:].mean() - confidences.min()) / 2,
    "torchmetrics": by_torchmetrics(probabilities),
    "torchmetrics, below 1": by_torchmetrics(probabilities.clamp(max=1 - 1e-7)),
}
for name, error in found.items():
    print(name, "%.4f" % error)
ten, apart, as_it_is, below = found.values()
assert abs(as_it_is - apart) < 1e-5 and abs(below - ten) < 1e-5 and as_it_is > 1.5 * ten
print("As stated: the confidences of 1 are a bin of their own.")
EOF
