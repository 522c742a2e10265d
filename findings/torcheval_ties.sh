#!/usr/bin/env bash
# One would guess: a model that gives every class the same logit is right by chance, k of n times, and one that gives
#   NaN is never right.
# What happens: the rank of the right class is the number of logits strictly above its own, so every tie counts for it,
#   and nothing is above NaN. Accuracy with k=2, hit rate and reciprocal rank are 1.0 for both models; k=1 takes another
#   way, argmax. In bfloat16, where many of 1000 logits are equal, the top five gain as well.
# Version: torcheval 0.0.7, torch 2.13.0
# Source: torcheval/metrics/functional/classification/accuracy.py, _multiclass_accuracy_update (torch.gt), and
#   torcheval/metrics/functional/ranking/hit_rate.py and reciprocal_rank.py
# What to do: look for logits that are equal or not finite first; a model whose heads are all gone may give both. Count
#   with logits.topk(k), in float32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 torcheval==0.0.7
venv/bin/python - <<'EOF'
import importlib.metadata

import torch
from torcheval.metrics.functional import hit_rate, multiclass_accuracy, reciprocal_rank

for name in ("torcheval", "torch"):
    print(name, importlib.metadata.version(name))
labels = torch.arange(10)
for name, logit in (("equal logits", 0.0), ("NaN", float("nan"))):
    logits = torch.full((10, 10), logit)
    found = {
        "accuracy k=1": multiclass_accuracy(logits, labels).item(),
        "accuracy k=2": multiclass_accuracy(logits, labels, k=2).item(),
        "hit rate k=2": hit_rate(logits, labels, k=2).mean().item(),
        "reciprocal rank": reciprocal_rank(logits, labels).mean().item(),
        "accuracy by topk(2)": (logits.topk(2).indices == labels[:, None]).any(1).float().mean().item(),
    }
    print(name, found)
    by_chance = found.pop("accuracy by topk(2)")
    assert abs(found.pop("accuracy k=1") - 0.1) < 1e-6 and abs(by_chance - 0.2) < 1e-6
    assert set(found.values()) == {1.0}
# 2000 texts, 1000 classes; the right class is the one of a logit that stands out a little
torch.manual_seed(0)
labels = torch.randint(1000, (2000,))
logits = torch.randn(2000, 1000)
logits[torch.arange(2000), labels] += 2
rounded = logits.to(torch.bfloat16)
shares = {
    "float32": multiclass_accuracy(logits, labels, k=5).item(),
    "bfloat16": multiclass_accuracy(rounded, labels, k=5).item(),
    "bfloat16, by topk(5)": (rounded.float().topk(5).indices == labels[:, None]).any(1).float().mean().item(),
}
print("top five of 1000:", {name: round(share, 4) for name, share in shares.items()})
assert shares["bfloat16"] > shares["float32"] and shares["bfloat16"] > shares["bfloat16, by topk(5)"]
print("As stated: ties and NaN count as right.")
EOF
