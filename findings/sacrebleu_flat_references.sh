#!/usr/bin/env bash
# One would guess: a list of strings is one reference for each translation, or is refused: the documentation asks for
#   a list of lists.
# What happens: a string is a sequence of strings too, so each string is taken as one whole set of references, and its
#   letters as the references of the translations. The score of perfect translations is near 0 instead of 100, without
#   an error.
# Version: sacrebleu 2.6.0
# Source: sacrebleu/metrics/base.py, Metric._check_corpus_score_args and corpus_score
# What to do: write corpus_bleu(translations, [references]); score the references against themselves once: 100 is
#   right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    sacrebleu==2.6.0
venv/bin/python - <<'EOF'
import sacrebleu

print("sacrebleu", sacrebleu.__version__)
texts = ["the book is on the table", "we will leave the house soon"]
flat = sacrebleu.corpus_bleu(texts, texts).score
nested = sacrebleu.corpus_bleu(texts, [texts]).score
print("perfect translations: corpus_bleu(texts, texts) %.1f, corpus_bleu(texts, [texts]) %.1f" % (flat, nested))
assert flat < 20 and nested > 99.9
print("As stated: letters were the references.")
EOF
