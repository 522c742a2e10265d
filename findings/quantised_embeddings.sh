#!/usr/bin/env bash
# One would guess: dynamic quantisation is about matrix products; looking a row up in a table stays exact, as with
#   torch's quantize_dynamic.
# What happens: Gather is among the operators of the default, so word, position and type embeddings become int8, one
#   scale for each table: a row of small numbers beside one outlier becomes zeros. The file is smaller for it.
# Version: onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6
# Source: onnxruntime/quantization/registry.py, CommonOpsRegistry ('Gather': GatherQuant);
#   onnxruntime/quantization/quantize.py, quantize_dynamic (op_types_to_quantize)
# What to do: op_types_to_quantize=['MatMul', 'Gemm'] where the effect of pruned heads is to be told from that of
#   int8.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
export PYTHONWARNINGS=ignore
venv/bin/python - <<'EOF'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__, "numpy", np.__version__)
table = np.array([[0.01, -0.01, 0.02, 0.005], [10.0, 3.0, -2.0, 1.0]], dtype=np.float32)
graph = helper.make_graph(
    [helper.make_node("Gather", ["table", "ids"], ["rows"])], "embedding",
    [helper.make_tensor_value_info("ids", TensorProto.INT64, ["text"])],
    [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["text", 4])],
    [numpy_helper.from_array(table, "table")],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), "float.onnx")
quantize_dynamic("float.onnx", "int8.onnx")
quantize_dynamic("float.onnx", "products.onnx", op_types_to_quantize=["MatMul", "Gemm"])


def rows(file):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": np.array([0, 1])})[0]


for file in ("float.onnx", "int8.onnx", "products.onnx"):
    print(file, np.round(rows(file), 4).tolist())
types = {each.name: each.data_type for each in onnx.load("int8.onnx").graph.initializer}
assert types["table_quantized"] in (TensorProto.INT8, TensorProto.UINT8)
assert np.array_equal(rows("products.onnx"), table) and np.all(rows("int8.onnx")[0] == 0)
print("As stated: the row of small numbers is zero.")
EOF
