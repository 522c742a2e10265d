#!/usr/bin/env bash
# One would guess: save_pretrained writes the pruned weights (or the original ones), or refuses.
# What happens: save_pretrained writes weight_orig and weight_mask. from_pretrained knows neither, makes each pruned
#   matrix anew at random, and returns the model; a table of MISSING and UNEXPECTED keys is logged, no error is
#   raised. Two loads give two different models.
# Version: torch 2.13.0, transformers 5.23.0
# Source: torch/nn/utils/prune.py, BasePruningMethod.apply and remove;
#   https://docs.pytorch.org/tutorials/intermediate/pruning_tutorial.html; transformers/modeling_utils.py,
#   from_pretrained
# What to do: call prune.remove(module, name) for each pruned parameter before save_pretrained, and compare logits
#   after loading.
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
from torch.nn.utils import prune
from transformers import BertConfig, BertForSequenceClassification

print("torch", torch.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
sizes = dict(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
model = BertForSequenceClassification(BertConfig(**sizes)).eval()
values = [layer.attention.self.value for layer in model.bert.encoder.layer]
for value in values:
    prune.ln_structured(value, "weight", amount=0.25, n=2, dim=0)
model.save_pretrained("masked")
masked = [BertForSequenceClassification.from_pretrained("masked").bert.encoder.layer[0].attention.self.value.weight
          for _ in range(2)]
for value in values:
    prune.remove(value, "weight")
model.save_pretrained("removed")
removed = BertForSequenceClassification.from_pretrained("removed").bert.encoder.layer[0].attention.self.value.weight
rows = [int((weight == 0).all(dim=1).sum()) for weight in (values[0].weight, *masked, removed)]
print("rows of zeros: in the model %d, loaded %d, loaded again %d, loaded after prune.remove %d" % tuple(rows))
print("the two loads are equal:", torch.equal(*masked))
assert rows == [16, 0, 0, 16] and not torch.equal(*masked) and torch.equal(removed, values[0].weight)
print("As stated: what was pruned is random.")
EOF
