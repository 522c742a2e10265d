#!/usr/bin/env bash
# One would guess: training a tokenizer draws nothing at random, so the same texts give the same vocabulary, as BPE's
#   trainer gives it.
# What happens: pieces that begin with ## get their numbers in the order of a hash map, and ties between pairs are
#   settled by these numbers. Six trainings give vocabularies that differ in ids and in pieces. There is no seed to
#   set. BPE, which has no such prefix, gave the same six times.
# Version: tokenizers 0.23.3
# Source: tokenizers/src/models/bpe/trainer.rs, BpeTrainer::tokenize_words;
#   https://github.com/huggingface/tokenizers/issues/1794
# What to do: train a tokenizer once, keep its file with the model and name its hash; do not train it anew to repeat
#   an experiment.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    tokenizers==0.23.3
venv/bin/python - <<'EOF'
import random

import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

print("tokenizers", tokenizers.__version__)
draw = random.Random(0)
texts = ["".join(draw.choice("abcdefgh") for _ in range(draw.randint(2, 8))) for _ in range(3000)]


def vocabularies(model, trainer):
    found = []
    for _ in range(6):
        tokenizer = Tokenizer(model(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.train_from_iterator(texts, trainer(vocab_size=200, show_progress=False))
        found.append(tokenizer.get_vocab())
    return len({tuple(sorted(each.items())) for each in found}), len({tuple(sorted(each)) for each in found})


wordpiece = vocabularies(models.WordPiece, trainers.WordPieceTrainer)
bpe = vocabularies(models.BPE, trainers.BpeTrainer)
print("6 trainings of WordPiece: %d vocabularies by number, %d sets of pieces" % wordpiece)
print("6 trainings of BPE: %d vocabularies by number, %d sets of pieces" % bpe)
assert wordpiece[0] > 1 and bpe == (1, 1)
print("As stated: the vocabulary depends on chance.")
EOF
