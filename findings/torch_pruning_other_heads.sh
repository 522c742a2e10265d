#!/usr/bin/env bash
# One would guess: once the dimensions of each head are halved, forward fails until the attention's own numbers are
#   set, as it did under transformers 4.
# What happens: BertSelfAttention reshapes by (-1, attention_head_size). torch-pruning narrows query, key and value
#   from 4 heads of 16 to 4 heads of 8 and leaves attention_head_size at 16, so the 32 columns are read as 2 heads of
#   16: pairs of heads are joined, and the scale is that of 16. No error; the logits are others than those of the 4
#   narrow heads.
# Version: torch-pruning 1.6.1, torch 2.13.0, transformers 5.23.0
# Source: transformers/models/bert/modeling_bert.py, BertSelfAttention.forward;
#   torch_pruning/pruner/algorithms/base_pruner.py, BasePruner (num_heads)
# What to do: set attention_head_size, all_head_size and scaling (and num_attention_heads where heads went) on each
#   block right after pruner.step(), before any forward pass.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 torch-pruning==1.6.1
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
venv/bin/python - <<'EOF'
import importlib.metadata

import torch
import torch_pruning
from transformers import BertConfig, BertForSequenceClassification

for name in ("torch-pruning", "torch", "transformers"):
    print(name, importlib.metadata.version(name))
torch.manual_seed(0)
ids = torch.randint(5, 90, (4, 9))
sizes = dict(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids).logits


model = BertForSequenceClassification(BertConfig(attn_implementation="eager", **sizes)).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.5)
blocks = [layer.attention.self for layer in model.bert.encoder.layer]
heads = {module: 4 for block in blocks for module in (block.query, block.key, block.value)}
pruner = torch_pruning.pruner.BasePruner(
    Logits(model), ids, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2), num_heads=heads,
    pruning_ratio=0.5, ignored_layers=[model.classifier],
)
pruner.step()


def run():
    with torch.inference_mode():
        output = model(input_ids=ids, output_attentions=True)
    return output.logits, [weights.shape[1] for weights in output.attentions]


as_it_is, heads_seen = run()
for block in blocks:
    block.attention_head_size, block.all_head_size, block.scaling = 8, 32, 8**-0.5
right, heads_right = run()
width = blocks[0].query.out_features
difference = (as_it_is - right).abs().max().item()
print("query width %d, torch-pruning says %d heads a layer" % (width, pruner.num_heads[blocks[0].query]))
print("heads that the forward pass makes:", heads_seen, "- after the numbers are set:", heads_right)
print("largest difference of the logits: %.5f" % difference)
assert (width, heads_seen, heads_right) == (32, [2, 2], [4, 4]) and difference > 1e-4
print("As stated: it runs, with two heads of sixteen instead of four of eight.")
EOF
