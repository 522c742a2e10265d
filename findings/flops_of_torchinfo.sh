#!/usr/bin/env bash
# One would guess: twice the tokens take twice the multiply-adds.
# What happens: a linear layer counts as batch * weights, whatever the number of tokens, and embeddings, which
#   multiply nothing, count too. For one text 'Total mult-adds' equals 'Total params', with 8 tokens and with 512.
# Version: torchinfo 1.8.0, torch 2.13.0, transformers 5.23.0
# Source: torchinfo/layer_info.py, LayerInfo.calculate_macs
# What to do: do not take the saving of removed heads from torchinfo: multiply the linear part by tokens, or use a
#   counter that sees operators.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 torchinfo==1.8.0
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
venv/bin/python - <<'EOF'
import torch
import torchinfo
import transformers
from transformers import BertConfig, BertModel

print("torchinfo", torchinfo.__version__, "torch", torch.__version__, "transformers", transformers.__version__)
sizes = dict(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
model = BertModel(BertConfig(**sizes), add_pooling_layer=False).eval()
counts = {}
for tokens in (8, 512):
    ids = torch.ones(1, tokens, dtype=torch.long)
    summary = torchinfo.summary(model, input_data={"input_ids": ids}, verbose=0)
    counts[tokens] = summary.total_mult_adds
    print(tokens, "tokens: multiply-adds", summary.total_mult_adds, "parameters", summary.total_params)
    assert summary.total_mult_adds == summary.total_params
assert counts[8] == counts[512]
print("As stated: 64 times the tokens, the same count.")
EOF
