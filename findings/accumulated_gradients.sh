#!/usr/bin/env bash
# One would guess: eight texts at once, and four times two texts with gradient_accumulation_steps=4, give the same
#   step.
# What happens: the second step is four times as long, and so is the loss that is logged. Trainer leaves out the
#   division by the number of accumulated batches for each model whose forward takes **kwargs and a batch with labels,
#   since such a model should divide by num_items_in_batch itself. BertForSequenceClassification takes **kwargs and
#   averages over its own batch. Nothing is said.
# Version: transformers 5.23.0, accelerate 1.15.0, torch 2.13.0
# Source: transformers/trainer.py, Trainer.training_step and __init__ (model_accepts_loss_kwargs);
#   transformers/models/bert/modeling_bert.py, BertForSequenceClassification.forward;
#   https://github.com/huggingface/transformers/issues/47688
# What to do: before a pruned encoder is fine-tuned with accumulated gradients, set `model.accepts_loss_kwargs =
#   False`: this script shows that steps are then equal. Do not compare the losses of runs that accumulate
#   differently.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
venv/bin/python - <<'EOF'
import importlib.metadata

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

for name in ("transformers", "accelerate", "torch"):
    print(name, importlib.metadata.version(name))
ids = torch.randint(5, 90, (8, 6), generator=torch.Generator().manual_seed(0))
texts = [{"input_ids": row, "labels": torch.tensor(i % 2)} for i, row in enumerate(ids)]
sizes = dict(vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def step(batch_size, accumulated, told=False):
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2, **sizes)
    )
    if told:
        model.accepts_loss_kwargs = False
    before = model.classifier.weight.detach().clone()
    arguments = TrainingArguments(
        "out", per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulated, max_steps=1,
        optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=0, logging_steps=1,
        report_to=[], disable_tqdm=True, save_strategy="no", use_cpu=True,
    )
    loss = Trainer(model, arguments, train_dataset=texts).train().training_loss
    return (model.classifier.weight.detach() - before).norm().item(), loss


at_once, accumulated, told = step(8, 1), step(2, 4), step(2, 4, told=True)
print("8 texts at once:          step %.6f, loss %.6f" % at_once)
print("4 times 2 texts:          step %.6f, loss %.6f" % accumulated)
print("accepts_loss_kwargs=False: step %.6f, loss %.6f" % told)
for a, b, c in zip(at_once, accumulated, told, strict=True):
    assert abs(b / a - 4) < 1e-3 and abs(c / a - 1) < 1e-3
print("As stated: four times the step and the loss.")
EOF
