#!/usr/bin/env bash
# One would guess: unload gives the base model back as it was, and merge_and_unload gives a plain model that trains.
# What happens: get_peft_model sets requires_grad=False on the base model in place (the object that it was given), and
#   neither function sets it back: 0 of all parameters are trainable. loss.backward() raises 'does not require grad';
#   with an own head on top that is trainable, all gradients of the encoder are None in silence.
# Version: peft 0.21.2, torch 2.13.0, transformers 5.23.0
# Source: peft/tuners/tuners_utils.py, BaseTuner._mark_only_adapters_as_trainable and _unload_and_optionally_merge
# What to do: model.requires_grad_(True) after merge_and_unload, before gradients of heads are taken.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 peft==0.21.2
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
venv/bin/python - <<'EOF'
import peft
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

print("peft", peft.__version__, "torch", torch.__version__, "transformers", transformers.__version__)
sizes = dict(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
ids, labels = torch.tensor([[5, 6, 7]]), torch.tensor([1])
for way in ("unload", "merge_and_unload"):
    model = BertForSequenceClassification(BertConfig(**sizes)).eval()
    with_adapter = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["query"]))
    back = getattr(with_adapter, way)()
    trainable = sum(parameter.requires_grad for parameter in back.parameters())
    try:
        back(input_ids=ids, labels=labels).loss.backward()
        message = ""
    except RuntimeError as error:
        message = str(error)
    print(way, "- trainable: %d of %d; same object: %s; backward: %s"
          % (trainable, len(list(back.parameters())), back is model, message))
    assert trainable == 0 and back is model and "does not require grad" in message
print("As stated: nothing is trainable.")
EOF
