#!/usr/bin/env bash
# One would guess: head_view takes one tensor a layer, so it draws the heads that each layer has.
# What happens: head_view stacks the layers into one tensor and raises 'stack expects each tensor to be equal size';
#   model_view goes by the first layer's number of heads and raises IndexError at the first layer with fewer. Layers
#   of zeros in place of removed heads are drawn.
# Version: bertviz 1.4.1, torch 2.13.0
# Source: bertviz/util.py, format_attention; bertviz/head_view.py and model_view.py, num_heads
# What to do: put attention weights of a pruned model back at the numbers of the intact model's heads, zeros
#   elsewhere, before they are drawn.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 bertviz==1.4.1
export PYTHONWARNINGS=ignore
venv/bin/python - <<'EOF'
import importlib.metadata

import torch
from bertviz import head_view, model_view

for name in ("bertviz", "torch"):
    print(name, importlib.metadata.version(name))
tokens = [f"w{i}" for i in range(5)]
heads = [4, 3]  # the second layer has lost its last head
attention = [torch.rand(1, count, 5, 5) for count in heads]
padded = [torch.cat([weights, torch.zeros(1, 4 - weights.shape[1], 5, 5)], dim=1) for weights in attention]
errors = []
for view in (head_view, model_view):
    try:
        view(attention, tokens, html_action="return")
    except (RuntimeError, IndexError) as error:
        errors.append(type(error).__name__)
        print(view.__name__, "raises", type(error).__name__, str(error)[:70])
    assert len(view(padded, tokens, html_action="return").data) > 1000
    print(view.__name__, "draws it with zeros in place of the removed head")
assert errors == ["RuntimeError", "IndexError"]
print("As stated: equal numbers of heads only.")
EOF
