#!/usr/bin/env bash
# One would guess: a transposed array is saved as its values are, as version 0.7 did, or is refused, as
#   safetensors.torch refuses tensors that are not contiguous.
# What happens: the array's memory is written as it lies, under the shape of the view: loaded again, the shape is
#   right and the values are elsewhere. `weight.T`, np.asfortranarray, a slice with a step and what scikit-learn
#   returns in column order are such arrays. The documentation says that arrays need to be contiguous; nothing checks
#   it.
# Version: safetensors 0.8.0, numpy 2.4.6
# Source: safetensors/numpy.py, _flatten (data_ptr=tensor.ctypes.data);
#   https://github.com/safetensors/safetensors/issues/825
# What to do: np.ascontiguousarray before save_file for weights that were transposed (GPT-2's Conv1D to Linear) or cut
#   by heads with a slice, and compare one matrix after loading.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'EOF'
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

print("safetensors", safetensors.__version__, "numpy", np.__version__)
weight = np.arange(12, dtype=np.float32).reshape(3, 4)
arrays = {"transposed": weight.T, "every second column": weight[:, ::2], "rows 0 and 1": weight[:2]}
save_file(arrays, "weights.safetensors")
loaded = load_file("weights.safetensors")
same = {}
for name, array in arrays.items():
    same[name] = bool(np.array_equal(array, loaded[name]))
    print(name, "- saved", array.tolist(), "- loaded", loaded[name].tolist())
    assert loaded[name].shape == array.shape
copies = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
save_file(copies, "copies.safetensors")
assert all(np.array_equal(load_file("copies.safetensors")[name], array) for name, array in arrays.items())
assert same == {"transposed": False, "every second column": False, "rows 0 and 1": True}
print("As stated: right shapes, wrong places.")
EOF
