#!/usr/bin/env bash
# One would guess: enable_compatibility_mode rewrites the weights and leaves the model what it is, so a head whose
#   output z is zeroed by a hook costs the same as before, and the same as the head's removal from the model itself.
# What happens: the intact logits agree, those without the head do not. The value biases of all heads are moved into
#   the output bias of the layer (fold_value_biases is True), where they stay when z is zeroed: the head is replaced by
#   its bias rather than removed. Without compatibility mode, or with fold_value_biases=False, zeroing is removal.
# Version: transformer-lens 4.3.0, transformers 5.23.0, torch 2.13.0
# Source: transformer_lens/weight_processing.py, ProcessWeights.fold_value_biases
# What to do: pass fold_value_biases=False before heads are zeroed or scored by their removal; with it on, a score is
#   not that of a pruned head wherever value projections have biases (GPT-2, BERT, OPT).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 transformer-lens==4.3.0
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1 WANDB_MODE=disabled PYTHONWARNINGS=ignore
venv/bin/python - <<'EOF'
import copy
import importlib.metadata

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

for name in ("transformer-lens", "transformers", "torch"):
    print(name, importlib.metadata.version(name))
torch.manual_seed(0)
sizes = dict(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(GPT2Config(**sizes)).eval()
for name, parameter in model.named_parameters():
    if name.endswith("bias"):
        parameter.data.normal_(0, 0.5)  # as after training
    elif ".ln_" not in name:
        parameter.data.normal_(0, 0.3)
model.save_pretrained("model")
ids = torch.arange(6)[None]
removed = copy.deepcopy(model)
removed.transformer.h[0].attn.c_proj.weight.data[4:8] = 0  # the inputs from head 1 in the first layer
with torch.no_grad():
    wanted = [each(ids).logits.log_softmax(-1) for each in (model, removed)]


def without_head(z, hook):
    z = z.clone()
    z[:, :, 1] = 0
    return z


print("the head's removal changes log-probabilities by up to", (wanted[0] - wanted[1]).abs().max().item())
found = {}
for name, options in (
    ("no compatibility mode", None), ("compatibility mode", {}),
    ("fold_value_biases=False", {"fold_value_biases": False}),
):
    bridge = TransformerBridge.boot_transformers("model", hf_model=copy.deepcopy(model), device="cpu")
    if options is not None:
        bridge.enable_compatibility_mode(disable_warnings=True, **options)
    with torch.no_grad():
        outputs = [bridge.run_with_hooks(ids, fwd_hooks=hooks).log_softmax(-1)
                   for hooks in ([], [("blocks.0.attn.hook_z", without_head)])]
    found[name] = [(output - right).abs().max().item() for output, right in zip(outputs, wanted)]
    print(name, "- differs from transformers by: intact %.6f, without the head %.6f" % tuple(found[name]))
assert all(intact < 1e-4 for intact, _ in found.values())
assert {name for name, (_, without) in found.items() if without > 1e-4} == {"compatibility mode"}
assert found["compatibility mode"][1] > 0.1
print("As stated: the same model until a head is zeroed.")
EOF
