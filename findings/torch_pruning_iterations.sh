#!/usr/bin/env bash
# One would guess: head_pruning_ratio=0.5 removes half of the heads, in one step or in several (iterative_steps), as
#   pruning_ratio does with widths.
# What happens: without global_pruning each step removes the share that is due by then of the heads that are left, not
#   of those at the start, so 2 of 12 heads are left after 4 steps, while the feed-forward width is halved as asked. In
#   8 steps the last head of each layer is taken, which ends in a ZeroDivisionError; fewer steps raise nothing. With
#   global_pruning=True half of the heads stay, in any number of steps.
# Version: torch-pruning 1.6.1, torch 2.13.0, transformers 5.23.0
# Source: torch_pruning/pruner/algorithms/base_pruner.py, BasePruner._prune (n_heads_removed_per_group is the ratio of
#   this step times len(head_imp), the heads that are left)
# What to do: remove heads in one step (iterative_steps=1), or with global_pruning=True, and count what is left.
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
sizes = dict(vocab_size=100, hidden_size=96, num_hidden_layers=2, num_attention_heads=12, intermediate_size=128)


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        return self.model(input_ids=ids).logits


def left(steps, over_layers):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**sizes)).eval()
    layers = model.bert.encoder.layer
    blocks = [layer.attention.self for layer in layers]
    heads = {module: 12 for block in blocks for module in (block.query, block.key, block.value)}
    pruner = torch_pruning.pruner.BasePruner(
        Logits(model), ids, importance=torch_pruning.importance.GroupMagnitudeImportance(p=2), num_heads=heads,
        pruning_ratio=0.5, prune_num_heads=True, head_pruning_ratio=0.5, prune_head_dims=False,
        global_pruning=over_layers, iterative_steps=steps, ignored_layers=[model.classifier],
    )
    for _ in range(steps):
        pruner.step()
    widths = [layer.intermediate.dense.out_features for layer in layers]
    return [block.query.out_features // 8 for block in blocks], widths


found = {(steps, over): left(steps, over) for over in (False, True) for steps in (1, 2, 4)}
for (steps, over), left_of in found.items():
    print("global_pruning=%s, %d steps:" % (over, steps), "heads left %s of [12, 12], width %s of [128, 128]" % left_of)
assert [found[steps, False][0] for steps in (1, 2, 4)] == [[6, 6], [4, 4], [2, 2]]
assert all(found[steps, False][1] == [64, 64] for steps in (1, 2, 4))
assert all(sum(found[steps, True][0]) == 12 for steps in (1, 2, 4))
print("As stated: in steps, more heads go than were asked for.")
EOF
