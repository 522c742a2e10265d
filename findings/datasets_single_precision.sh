#!/usr/bin/env bash
# One would guess: numpy's arrays have the type of the column, as those of integers do: Value('float64') gives
#   float64.
# What happens: float columns come as float32 whatever their type, unless dtype is given, for numpy as for torch. Soft
#   labels, scores and targets of a regression lose half of their digits, and what is above 3.4e38 becomes inf,
#   without a warning. Without a format the values are exact.
# Version: datasets 5.2.0, numpy 2.4.6, torch 2.13.0
# Source: datasets/formatting/np_formatter.py, NumpyFormatter._tensorize (default_dtype)
# What to do: with_format('numpy', dtype=np.float64), or read exact columns without a format.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    datasets==5.2.0 numpy==2.4.6 torch==2.13.0
export HF_HUB_OFFLINE=1
venv/bin/python - <<'EOF'
import datasets
import numpy as np
import torch
from datasets import Dataset

print("datasets", datasets.__version__, "numpy", np.__version__, "torch", torch.__version__)
rows = Dataset.from_dict({"target": [1 / 3, 16777217.0, 1e300], "count": [2**40, 1, 2]})
with np.errstate(all="ignore"):
    as_numpy = rows.with_format("numpy")[:]
    as_torch = rows.with_format("torch")[:]
print("column:", rows.features["target"], "plain", rows["target"][:])
print("numpy:", as_numpy["target"].dtype, as_numpy["target"].tolist(), "integers", as_numpy["count"].dtype)
print("torch:", as_torch["target"].dtype, as_torch["target"].tolist())
exact = rows.with_format("numpy", dtype=np.float64)["target"][:]
print("dtype=np.float64:", exact.dtype, exact.tolist())
assert rows["target"][:] == [1 / 3, 16777217.0, 1e300] == exact.tolist()
assert as_numpy["target"].dtype == np.float32 and as_numpy["count"].dtype == np.int64
assert as_numpy["target"][1] == 16777216 and np.isinf(as_numpy["target"][2])
print("As stated: float64 comes as float32.")
EOF
