#!/usr/bin/env bash
# One would guess: gguf's GGUFReader gives the numbers of a tensor, or refuses a type that numpy does not have: a script
#   that takes norms of heads from an F16 file works on a BF16 or Q8_0 file of the same model.
# What happens: F32 and F16 tensors come as floats, BF16 and quantised ones as bytes of the file (uint8), and norms are
#   taken of them without a word: heads that differ by a factor of 10,000 come out alike. A row of Q8_0 is 1.06 bytes
#   a weight, so it even slices. tensor.shape is the reverse of tensor.data.shape.
# Version: gguf 0.19.0, numpy 2.4.6
# Source: gguf/gguf_reader.py, GGUFReader._build_tensors (item_type = np.uint8 for whatever has no numpy type)
# What to do: gguf.quants.dequantize(tensor.data, tensor.tensor_type) before anything is computed; look at dtype.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    gguf==0.19.0 numpy==2.4.6
venv/bin/python - <<'EOF'
import importlib.metadata

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

for name in ("gguf", "numpy"):
    print(name, importlib.metadata.version(name))

# a query projection of four heads of 32 rows; the heads differ by a factor of 10,000
weight = np.random.default_rng(0).normal(size=(128, 64)).astype(np.float32)
weight *= np.repeat([1.0, 1e-4, 1.0, 1e-4], 32)[:, None].astype(np.float32)
kinds = {name: GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0")}
writer = GGUFWriter("model.gguf", "llama")
for name, kind in kinds.items():
    writer.add_tensor(name, quants.quantize(weight, kind), raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()


def norms(rows):
    return np.linalg.norm(rows.astype(np.float64).reshape(4, -1), axis=1)


expected = norms(weight)
for tensor in GGUFReader("model.gguf").tensors:
    found = norms(tensor.data)
    right = norms(quants.dequantize(tensor.data, tensor.tensor_type))
    print(tensor.name, tensor.data.dtype, tensor.shape.tolist(), tensor.data.shape, "norms of heads", found.round(3))
    assert np.allclose(right, expected, rtol=0.02)
    assert tensor.shape.tolist() == [64, 128] and len(tensor.data) == 128
    if tensor.name in ("F32", "F16"):
        assert np.allclose(found, expected, rtol=0.02)
    else:
        assert tensor.data.dtype == np.uint8 and found.max() < 1.2 * found.min()
print("As stated: BF16 and Q8_0 are bytes, and the norms of heads are those of bytes.")
EOF
