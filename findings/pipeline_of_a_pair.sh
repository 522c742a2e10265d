#!/usr/bin/env bash
# One would guess: (premise, hypothesis) is classified as a pair, as the tokenizer takes tuples in a batch; or it is
#   refused, as a list of a list is.
# What happens: the tuple goes to the tokenizer as a batch of two texts, the model gives two rows of logits, and the
#   first is returned: the answer for the premise alone, as one dictionary, without a word. A list [premise,
#   hypothesis] is two texts and gives two answers; only a dictionary with text and text_pair is a pair.
# Version: transformers 5.23.0, torch 2.13.0
# Source: transformers/pipelines/text_classification.py, TextClassificationPipeline.preprocess and postprocess
#   (logits[0])
# What to do: give pairs (entailment, paraphrase) as {'text': ..., 'text_pair': ...} when a pruned model is tried by
#   hand.
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
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, pipeline

print("transformers", transformers.__version__, "torch", torch.__version__)
torch.manual_seed(0)
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(50))]
tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
sizes = dict(vocab_size=100, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
model = BertForSequenceClassification(BertConfig(num_labels=3, **sizes)).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
tuple_, first = classify(("w1 w2", "w3 w4")), classify("w1 w2")[0]
pair, two = classify({"text": "w1 w2", "text_pair": "w3 w4"}), classify(["w1 w2", "w3 w4"])
print("tuple:", tuple_)
print("first text alone:", first)
print("dictionary, a pair:", pair)
print("list:", two)
assert abs(tuple_["score"] - first["score"]) < 1e-6 and abs(tuple_["score"] - pair["score"]) > 1e-4 and len(two) == 2
print("As stated: the second text is not read.")
EOF
