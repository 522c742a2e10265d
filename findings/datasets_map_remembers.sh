#!/usr/bin/env bash
# One would guess: map computes again once the function, or the model that it calls, is another.
# What happens: map knows a function by its pickle. One that is imported from a module is pickled by its name alone, so
#   neither its code nor the globals that it reads count. map returns the rows of before once the module's model is
#   pruned, and, in another process, once the file is edited. The same function in the script itself is
#   pickled with its code and globals, and is computed again. Nothing is said.
# Version: datasets 5.2.0
# Source: https://github.com/huggingface/datasets/issues/3297; datasets/fingerprint.py, Hasher.hash, and
#   datasets/utils/_dill.py, dumps
# What to do: map(..., load_from_cache_file=False) wherever a model runs within, or hand what may change over in
#   fn_kwargs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    datasets==5.2.0
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
export HF_DATASETS_DISABLE_PROGRESS_BARS=1
printf '{"x": 1}\n{"x": 2}\n' > texts.json
write() { # what a module of one's own may look like; heads are the model
    cat > scoring.py <<END
heads = [1, 1, 1, 1]

def score(row):
    return {"score": row["x"] * sum(heads) * $1}
END
}
write 1
cat > run.py <<'EOF'
import sys

import datasets
import scoring

rows = datasets.load_dataset("json", data_files="texts.json", split="train", cache_dir="cache")
if sys.argv[1:] == ["prune"]:
    print("datasets", datasets.__version__)
    before = rows.map(scoring.score)["score"][:]
    scoring.heads[3] = 0
    after = rows.map(scoring.score)["score"][:]
    asked = rows.map(scoring.score, load_from_cache_file=False)["score"][:]
    heads = [1, 1, 1, 1]

    def score(row):
        return {"score": row["x"] * sum(heads)}

    own_before = rows.map(score)["score"][:]
    heads[3] = 0
    own_after = rows.map(score)["score"][:]
    print("imported: four heads", before, "three heads", after, "without the cache", asked)
    print("of the script: four heads", own_before, "three heads", own_after)
    assert before == after == own_before == [4, 8] and asked == own_after == [3, 6]
else:
    print("file edited, another process:", rows.map(scoring.score)["score"][:], "called:", scoring.score(rows[0]))
    assert rows.map(scoring.score)["score"][0] != scoring.score(rows[0])["score"] == 40
EOF
venv/bin/python -B run.py prune
write 10
venv/bin/python -B run.py
echo "As stated: the rows of before are given."
