#!/usr/bin/env bash
# One would guess: config.problem_type='regression' means that the one output is the prediction, for every library
#   that reads the folder.
# What happens: pipeline('text-classification') returns the output as it is for problem_type='regression', and its
#   sigmoid where problem_type is missing. CrossEncoder.predict applies a sigmoid to every model of one label, so
#   ratings from 0 to 5 come between 0 and 1; ranks stay, errors do not.
# Version: sentence-transformers 6.2.0, transformers 5.23.0, torch 2.13.0
# Source: sentence_transformers/cross_encoder/model.py, CrossEncoder.get_default_activation_fn;
#   transformers/pipelines/text_classification.py, TextClassificationPipeline.postprocess
# What to do: CrossEncoder(folder, activation_fn=torch.nn.Identity()) for a regression, and the same for the pruned
#   and the intact model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
venv/bin/python - <<'EOF'
import importlib.metadata

import torch
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, pipeline

for name in ("sentence-transformers", "transformers", "torch"):
    print(name, importlib.metadata.version(name))
torch.manual_seed(0)
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(50))]
tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
sizes = dict(vocab_size=100, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
model = BertForSequenceClassification(BertConfig(num_labels=1, problem_type="regression", **sizes)).eval()
model.classifier.bias.data.fill_(3.0)
model.save_pretrained("rating")
tokenizer.save_pretrained("rating")
with torch.inference_mode():
    logit = model(**tokenizer("w1", "w2", return_tensors="pt")).logits.item()
by_pipeline = pipeline("text-classification", "rating", device="cpu")({"text": "w1", "text_pair": "w2"})["score"]
by_default = float(CrossEncoder("rating", device="cpu").predict([("w1", "w2")])[0])
identity = CrossEncoder("rating", device="cpu", activation_fn=torch.nn.Identity())
by_identity = float(identity.predict([("w1", "w2")])[0])
print("logit %.4f, pipeline %.4f" % (logit, by_pipeline))
print("CrossEncoder %.4f, with Identity %.4f" % (by_default, by_identity))
assert abs(by_pipeline - logit) < 1e-4 and abs(by_identity - logit) < 1e-4
assert abs(by_default - torch.sigmoid(torch.tensor(logit)).item()) < 1e-4
print("As stated: a sigmoid of a regression.")
EOF
