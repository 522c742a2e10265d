#!/usr/bin/env bash
# One would guess: prune_num_heads=True with head_pruning_ratio=0.5 removes half of the heads of each layer, and
#   pruning_ratio=0.0 leaves all other widths alone.
# What happens: nothing is pruned and nothing is said. Heads are chosen inside the branch that runs only where at
#   least one channel is to go. With pruning_ratio=0.000001 half of the heads go, and one channel of the hidden width
#   with them.
# Version: torch-pruning 1.6.1, torch 2.13.0, transformers 5.23.0
# Source: torch_pruning/pruner/algorithms/base_pruner.py, BasePruner._prune (`if n_pruned > 0` around the choice of
#   heads)
# What to do: compare the numbers of heads before and after; to remove heads alone, give torch-pruning the channels of
#   whole heads yourself (dependency graph, get_pruning_group).
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
ids = torch.randint(5, 90, (4, 9), generator=torch.Generator().manual_seed(0))
sizes = dict(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids).logits


def widths(pruning_ratio):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**sizes)).eval()
    blocks = [layer.attention.self for layer in model.bert.encoder.layer]
    heads = {module: 4 for block in blocks for module in (block.query, block.key, block.value)}
    pruner = torch_pruning.pruner.BasePruner(
        Logits(model), ids, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2), num_heads=heads,
        pruning_ratio=pruning_ratio, prune_num_heads=True, head_pruning_ratio=0.5, prune_head_dims=False,
        ignored_layers=[model.classifier],
    )
    pruner.step()
    return [pruner.num_heads[block.query] for block in blocks], model.bert.embeddings.word_embeddings.embedding_dim


found = {ratio: widths(ratio) for ratio in (0.0, 0.000001)}
for ratio, (heads, hidden) in found.items():
    print("pruning_ratio", ratio, "- heads left", heads, "of [4, 4], hidden width", hidden, "of 64")
assert found == {0.0: ([4, 4], 64), 0.000001: ([2, 2], 63)}
print("As stated: no head goes unless a channel goes too.")
EOF
