#!/usr/bin/env bash
# One would guess: the folder that prune(save_model=True) writes is read by AutoTokenizer and gives the logits of
#   before on texts of the words that were kept.
# What happens: the folder holds vocab.txt, weights and config.json. AutoTokenizer makes a BERT tokenizer of it with
#   the default options, among them lower case: 'Apple', which is in the vocabulary, becomes 'apple', which is not, so
#   [UNK]. The longest length is lost as well. No error: the model answers from [UNK]. The option do_lower_case=False
#   by hand gives the old logits back.
# Version: textpruner 1.1.post2, transformers 5.23.0, torch 2.13.0
# Source: textpruner/tokenizer_utils/subword_tokenizer.py, SubwordTokenizer.save_vocab;
#   textpruner/pruners/vocabulary_pruner.py, VocabularyPruner.save_model
# What to do: load the tokenizer with the old options and save it into the folder with save_pretrained; compare logits
#   with the model of before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 sentencepiece==0.2.3 protobuf==7.36.2
# textpruner declares a numpy that Python 3.11 does not have
venv/bin/pip install --quiet --disable-pip-version-check \
    --no-deps textpruner==1.1.post2
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
venv/bin/python - <<'EOF'
import importlib.metadata
import os

import torch
from textpruner import VocabularyPruner
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

for name in ("textpruner", "transformers", "torch"):
    print(name, importlib.metadata.version(name))
torch.manual_seed(0)
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Apple", "Berlin", "pear", *(f"w{i}" for i in range(50))]
tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=False)
sizes = dict(hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
model = BertForSequenceClassification(BertConfig(vocab_size=len(words), **sizes)).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
text = "Apple Berlin pear"
with torch.inference_mode():
    before = model(**tokenizer(text, return_tensors="pt")).logits
folder = VocabularyPruner(model, tokenizer).prune(dataiter=[text], save_model=True)
pruned = AutoModelForSequenceClassification.from_pretrained(folder).eval()
found = {}
for name, again in (
    ("AutoTokenizer", AutoTokenizer.from_pretrained(folder)),
    ("do_lower_case=False", BertTokenizer.from_pretrained(folder, do_lower_case=False)),
):
    with torch.inference_mode():
        change = (pruned(**again(text, return_tensors="pt")).logits - before).abs().max().item()
    found[name] = again.tokenize(text), change
    print("%-20s %s, logits differ by %.4f" % (name, *found[name]))
print("files:", sorted(os.listdir(folder)))
assert found["AutoTokenizer"][0] == ["[UNK]", "[UNK]", "pear"] and found["AutoTokenizer"][1] > 1e-4
assert found["do_lower_case=False"][0] == text.split() and found["do_lower_case=False"][1] < 1e-5
print("As stated: words with a capital are unknown.")
EOF
