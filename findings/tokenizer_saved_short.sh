#!/usr/bin/env bash
# One would guess: truncation and padding are arguments of one call; a tokenizer that is saved after it is the one
#   that was loaded.
# What happens: the call sets truncation and padding on the tokenizer beneath, and save_pretrained writes both.
#   transformers itself switches them off at its next call, so nobody notices there; the library tokenizers, and all
#   that reads tokenizer.json by it (servers in Rust, fastembed), cuts each text to the 8 tokens and pads shorter ones
#   to 8.
# Version: transformers 5.23.0, tokenizers 0.23.3
# Source: transformers/tokenization_utils_tokenizers.py, set_truncation_and_padding and _save_pretrained;
#   https://huggingface.co/docs/tokenizers/api/tokenizer (truncation, padding)
# What to do: call tokenizer.backend_tokenizer.no_truncation() and no_padding() before a pruned model's tokenizer is
#   saved, or look at both keys of tokenizer.json.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    transformers==5.23.0 tokenizers==0.23.3
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
venv/bin/python - <<'EOF'
import json

import tokenizers
import transformers
from transformers import BertTokenizer

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(50))]
tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
text = " ".join(f"w{i}" for i in range(40))
tokenizer.save_pretrained("before")
tokenizer([text, "w1"], truncation=True, max_length=8, padding="max_length")
tokenizer.save_pretrained("after")
lengths = {}
for folder in ("before", "after"):
    plain = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
    again = BertTokenizer.from_pretrained(folder)
    lengths[folder] = [len(plain.encode(text).ids), len(plain.encode("w1").ids), len(again(text)["input_ids"])]
    print(folder, "truncation in tokenizer.json:", json.load(open(f"{folder}/tokenizer.json"))["truncation"])
    print(folder, "long text, short text by tokenizers; long text by transformers:", lengths[folder])
assert lengths == {"before": [42, 3, 42], "after": [8, 8, 42]}
print("As stated: the file cuts every text to 8 tokens.")
EOF
