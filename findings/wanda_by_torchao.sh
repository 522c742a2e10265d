#!/usr/bin/env bash
# One would guess: torchao's WandaSparsifier removes in each row of a weight the entries of least |weight| * norm of
#   their input, as Wanda's paper has it; its docstring says 'the product of the input activation norm and the weight
#   magnitude'.
# What happens: the observer's buffer `norm` holds the square of the norm, so the input counts twice as much (in the
#   exponent) and other weights go, in 2:4 sparsity too. And the entries of a whole layer compete, not those of a row:
#   a row of small weights, an output neuron or all rows of a head, may go altogether.
# Version: torchao 0.18.0, torch 2.13.0
# Source: torchao/sparsity/utils.py, PerChannelNormObserver.forward (`** 2`, never undone); torchao/sparsity/wanda.py,
#   WandaSparsifier.update_mask (block_size = pruning_metric.numel())
# What to do: do not report it as Wanda's result beside head pruning; take the root of activation_post_process.norm
#   between the calibration and step(), and set masks row by row.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 torchao==0.18.0
export PYTHONWARNINGS=ignore
venv/bin/python - <<'EOF'
import importlib.metadata

import torch
from torchao.sparsity import WandaSparsifier

for name in ("torchao", "torch"):
    print(name, importlib.metadata.version(name))


def left_by_torchao(weight, inputs, **options):
    model = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model[0].weight.data.copy_(weight)
    sparsifier = WandaSparsifier(sparsity_level=0.5, **options)
    sparsifier.prepare(model, config=[{"tensor_fqn": "0.weight"}])
    with torch.no_grad():
        model(inputs)
    sparsifier.step()
    sparsifier.squash_mask()
    return model[0].weight.detach() != 0


def upper_half(scores, size):
    groups = scores.reshape(-1, size)
    left = torch.ones_like(groups, dtype=torch.bool)
    return left.scatter(1, groups.argsort(1)[:, : size // 2], False).view_as(scores)


# two inputs of norms 3 and 1, one row: |weight| * norm is 3 and 4
weight, inputs = torch.tensor([[1.0, 4.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
left = left_by_torchao(weight, inputs)
print("weights", weight.tolist(), "times norms", (weight * inputs.norm(dim=0)).tolist(), "left", left.tolist())
assert left.tolist() == [[True, False]]

# a layer whose second half of rows has smaller weights, and inputs of unequal size
torch.manual_seed(0)
weight = torch.randn(32, 64)
weight[16:] *= 0.01
inputs = torch.randn(100, 64) * torch.rand(64).mul(3).exp()
norms = inputs.norm(dim=0)
left = left_by_torchao(weight, inputs)
paper = upper_half(weight.abs() * norms, 64)
print("left of the two halves of rows: torchao", [half.sum().item() for half in left.chunk(2)],
      "paper", [half.sum().item() for half in paper.chunk(2)])
assert torch.equal(left, upper_half(weight.abs() * norms**2, weight.numel())) and not torch.equal(left, paper)
left, paper = left_by_torchao(weight, inputs, semi_structured_block_size=4), upper_half(weight.abs() * norms, 4)
print("2:4: left by torchao and not by the paper:", (left & ~paper).sum().item(), "of", paper.sum().item())
assert torch.equal(left, upper_half(weight.abs() * norms**2, 4)) and (left & ~paper).sum() > 0
print("As stated: the norm is squared, and a whole layer competes.")
EOF
