#!/usr/bin/env bash
# One would guess: int8 changes the type of weights, not their number.
# What happens: the weights move into packed objects that are neither parameters nor buffers. sum(p.numel() for p in
#   model.parameters()) loses every linear layer, zeros cannot be counted, and save_pretrained raises an error about a
#   dtype. A table of 'parameters left' then mixes pruning with quantisation.
# Version: torch 2.13.0, transformers 5.23.0
# Source: torch/ao/nn/quantized/modules/linear.py, LinearPackedParams
# What to do: count parameters before quantising; report size of an int8 model in bytes of its file.
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
import warnings

import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

warnings.simplefilter("ignore")
print("torch", torch.__version__, "transformers", transformers.__version__)
sizes = dict(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
model = BertForSequenceClassification(BertConfig(**sizes)).eval()
int8 = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
linear = sum(
    each.numel() for module in model.modules() if isinstance(module, torch.nn.Linear) for each in module.parameters()
)
counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, int8)]
buffers = sum(buffer.numel() for buffer in int8.buffers()) - sum(buffer.numel() for buffer in model.buffers())
try:
    int8.save_pretrained("int8")
    message = ""
except AttributeError as error:
    message = str(error)
print("parameters: float %d, int8 %d; in linear layers %d; buffers more %d" % (*counts, linear, buffers))
print("save_pretrained:", message)
assert counts[0] - counts[1] == linear and buffers == 0 and "data_ptr" in message
print("As stated: the linear layers are in no count.")
EOF
