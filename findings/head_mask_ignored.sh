#!/usr/bin/env bash
# One would guess: head_mask, which version 4 had for pruning heads, is obeyed, or is refused as an unknown argument.
# What happens: forward takes **kwargs, so head_mask is accepted and does nothing: a mask of zeros for all heads
#   leaves the logits as they were, bit for bit. So does an argument that never existed. No warning. Code of pruning
#   papers that sets head_mask measures the intact model at each step.
# Version: transformers 5.23.0, torch 2.13.0
# Source: transformers/models/bert/modeling_bert.py, BertForSequenceClassification.forward(..., **kwargs:
#   Unpack[TransformersKwargs])
# What to do: mask heads by a hook on the output projection's input, never by head_mask, and check once that masking
#   all heads changes the logits.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
venv/bin/python - <<'EOF'
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
ids = torch.tensor([[5, 6, 7, 8]])
bert = BertConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
gpt2 = GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
for model in (BertForSequenceClassification(bert).eval(), GPT2LMHeadModel(gpt2).eval()):
    with torch.inference_mode():
        plain = model(input_ids=ids).logits
        masked = model(input_ids=ids, head_mask=torch.zeros(2, 4)).logits
        misspelt = model(input_ids=ids, haed_msak=torch.zeros(2, 4)).logits
    print(type(model).__name__, "all heads masked: largest change", (masked - plain).abs().max().item())
    assert torch.equal(masked, plain) and torch.equal(misspelt, plain)
print("As stated: accepted and without effect.")
EOF
