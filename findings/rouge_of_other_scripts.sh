#!/usr/bin/env bash
# One would guess: a text compared with itself has ROUGE 1.0 in any language.
# What happens: only a to z and 0 to 9 are kept; all other characters are spaces. A Chinese or Russian text has no
#   words and scores 0 against itself. 'schön' becomes the two words 'sch' and 'n'. No warning.
# Version: rouge-score 0.1.2
# Source: rouge_score/tokenize.py, NON_ALPHANUM_PATTERN; rouge_score/rouge_scorer.py, RougeScorer(tokenizer=...)
# What to do: give RougeScorer a tokenizer of the language before a pruned summariser that is not English is measured.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    rouge-score==0.1.2
venv/bin/python - <<'EOF'
import importlib.metadata

from rouge_score.rouge_scorer import RougeScorer

print("rouge-score", importlib.metadata.version("rouge-score"))


class Words:
    def tokenize(self, text):
        return text.lower().split()


found = {}
for text in ("a good book", "хорошая книга", "好书"):
    default = RougeScorer(["rouge1"]).score(text, text)["rouge1"].fmeasure
    words = RougeScorer(["rouge1"], tokenizer=Words()).score(text, text)["rouge1"].fmeasure
    found[text] = default, words
    print("%s with itself: %.1f, with a tokenizer that splits at spaces %.1f" % (text, default, words))
assert list(found.values()) == [(1.0, 1.0), (0.0, 1.0), (0.0, 1.0)]
print("As stated: nothing but Latin letters counts.")
EOF
