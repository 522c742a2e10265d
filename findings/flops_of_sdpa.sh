#!/usr/bin/env bash
# One would guess: the count depends on the sizes alone, not on which attention code computes the same numbers.
# What happens: on a CPU, sdpa runs an operator that the counter has no formula for, and what it does not know counts
#   as nothing: 2 * 2 * tokens^2 * width operations of each layer are missing, without a warning. They are the very
#   ones that removed heads save beside their projections.
# Version: torch 2.13.0, transformers 5.23.0
# Source: torch/utils/flop_counter.py, flop_registry (aten._scaled_dot_product_flash_attention_for_cpu is not in it)
# What to do: count operations with attn_implementation='eager', on the device 'meta' if need be, or by a formula.
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
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

print("torch", torch.__version__, "transformers", transformers.__version__)
tokens, width, inner, layers = 32, 64, 128, 2
ids = torch.randint(5, 90, (1, tokens))
counts = {}
for attention in ("eager", "sdpa"):
    config = BertConfig(
        vocab_size=100, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=inner,
        attn_implementation=attention,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=ids)
    counts[attention] = counter.get_total_flops()
products = layers * 2 * 2 * tokens**2 * width
projections = layers * 2 * tokens * (4 * width**2 + 2 * width * inner)
print("by hand: projections", projections, "attention products", products)
print("counted:", counts)
assert counts == {"eager": projections + products, "sdpa": projections}
print("As stated: sdpa's products are not counted.")
EOF
