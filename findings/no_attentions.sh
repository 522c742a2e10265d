#!/usr/bin/env bash
# One would guess: output_attentions=True gives one tensor of attention weights for each layer, as version 4 did by
#   going back to eager attention; a model that was saved with eager attention has it when it is loaded.
# What happens: the default attention ('sdpa') returns no weights: `attentions` is an empty tuple, of length 0,
#   whatever the number of layers. A warning says that sdpa does not support it; a sum or a mean over layers gets
#   nothing. attn_implementation='eager' is not written to config.json, so the loaded model is an sdpa model again.
# Version: transformers 5.23.0, torch 2.13.0
# Source: transformers/integrations/sdpa_attention.py, sdpa_attention_forward; transformers/configuration_utils.py,
#   PreTrainedConfig.to_dict
# What to do: criteria that read attention weights (entropy, confidence) need attn_implementation='eager' at each
#   from_pretrained. Check the length of `attentions`.
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
import json

import torch
import transformers
from transformers import BertConfig, BertModel

print("transformers", transformers.__version__, "torch", torch.__version__)
ids = torch.tensor([[5, 6, 7, 8]])
sizes = dict(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)


def shapes(model):
    return [tuple(weights.shape) for weights in model.eval()(input_ids=ids, output_attentions=True).attentions]


default = shapes(BertModel(BertConfig(**sizes)))
eager = BertModel(BertConfig(attn_implementation="eager", **sizes))
with_eager = shapes(eager)
eager.save_pretrained("saved")
written = [key for key in json.load(open("saved/config.json")) if key.startswith(("attn", "_attn"))]
loaded = BertModel.from_pretrained("saved")
print("default: attentions", default)
print("eager: attentions", with_eager)
print("keys of config.json about it:", written, "- loaded again:", loaded.config._attn_implementation, shapes(loaded))
assert default == [] and with_eager == [(1, 4, 4, 4)] * 2
assert written == [] and loaded.config._attn_implementation == "sdpa" and shapes(loaded) == []
print("As stated: no attention weights, and 'eager' is forgotten.")
EOF
