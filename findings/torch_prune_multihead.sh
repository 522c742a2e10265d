#!/usr/bin/env bash
# One would guess: a pruned out_proj trains on with its zeros kept, as a pruned nn.Linear does.
# What happens: the mask is applied by a hook that runs when out_proj is called. nn.MultiheadAttention never calls
#   out_proj; it reads out_proj.weight. So the weight stays the one of the moment of pruning, whatever the optimiser
#   makes of weight_orig; the second backward pass raises 'backward through the graph a second time'. Without
#   gradients nothing is raised: a change of weight_orig changes no output.
# Version: torch 2.13.0
# Source: torch/nn/modules/activation.py, MultiheadAttention.forward (out_proj.weight); torch/nn/utils/prune.py,
#   BasePruningMethod.apply (register_forward_pre_hook)
# What to do: prune heads of such a layer with torch.nn.utils.parametrize, whose weight is computed at each access, or
#   write zeros into the weight after each step.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'EOF'
import torch
from torch import nn
from torch.nn.utils import prune

print("torch", torch.__version__)
torch.manual_seed(0)
texts = torch.randn(2, 5, 16)


def trained(layer, forward, pruned):
    prune.random_unstructured(pruned, "weight", amount=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    message = ""
    for _ in range(2):
        optimizer.zero_grad()
        try:
            forward(layer).pow(2).sum().backward()
        except RuntimeError as error:
            message = str(error)[:55]
            break
        optimizer.step()
    masked = (pruned.weight_orig * pruned.weight_mask).detach()
    with torch.no_grad():
        before = forward(layer)
        pruned.weight_orig.mul_(2)
        seen = not torch.equal(before, forward(layer))
    return message, seen, torch.allclose(masked, pruned.weight)


def attention(layer):
    return layer(texts, texts, texts)[0]


layer = nn.MultiheadAttention(16, 4, batch_first=True)
inside = trained(layer, attention, layer.out_proj)
linear = nn.Linear(16, 16)
alone = trained(linear, lambda linear: linear(texts), linear)
print("nn.Linear:            error %r, a change of weight_orig is seen: %s" % alone[:2])
print("MultiheadAttention:   error %r, a change of weight_orig is seen: %s" % inside[:2])
assert alone[:2] == ("", True)
assert inside == ("Trying to backward through the graph a second time (or "[:55], False, False)
print("As stated: the weight in use is that of the moment of pruning.")
EOF
