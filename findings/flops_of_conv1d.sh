#!/usr/bin/env bash
# One would guess: a counter that knows no module of a model's kind says so, or counts its matrix product.
# What happens: both have formulas by module class. GPT-2's projections are of the class Conv1D of transformers, not
#   nn.Linear, and count as zero without a word, so that pruning all heads of GPT-2 saves nothing by these counts.
#   BERT of the same sizes is counted in full but for its attention products.
# Version: thop 0.1.1.post2209072238, torch-pruning 1.6.1, torch 2.13.0, transformers 5.23.0
# Source: thop/profile.py, register_hooks; torch_pruning/utils/op_counter.py, MODULES_MAPPING;
#   transformers/pytorch_utils.py, Conv1D
# What to do: compare the count with tokens * parameters of the blocks once before reporting it; give thop a rule by
#   custom_ops={Conv1D: ...}.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 thop==0.1.1.post2209072238 torch-pruning==1.6.1
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
venv/bin/python - <<'EOF'
import importlib.metadata

import torch
import torch_pruning
from thop import profile
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

for name in ("thop", "torch-pruning", "transformers", "torch"):
    print(name, importlib.metadata.version(name))
tokens, width, inner, layers = 32, 64, 128, 2
ids = torch.randint(5, 90, (1, tokens))
bert = BertConfig(
    vocab_size=100, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=inner
)
gpt2 = GPT2Config(
    vocab_size=100, n_embd=width, n_layer=layers, n_head=4, n_inner=inner, bos_token_id=0, eos_token_id=0
)
projections = layers * tokens * (4 * width**2 + 2 * width * inner)
print("multiply-adds of the projections, by hand:", projections)
shares = {}
for model in (BertModel(bert, add_pooling_layer=False), GPT2Model(gpt2)):
    by_thop = profile(model.eval(), (ids,), verbose=False)[0]
    by_torch_pruning = torch_pruning.utils.count_ops_and_params(model, ids)[0]
    shares[type(model).__name__] = by_thop / projections, by_torch_pruning / projections
    print(type(model).__name__, "thop", int(by_thop), "torch-pruning", int(by_torch_pruning))
assert all(0.95 < share < 1.05 for share in shares["BertModel"])
assert all(share < 0.03 for share in shares["GPT2Model"])
print("As stated: the projections of GPT-2 count as nothing.")
EOF
