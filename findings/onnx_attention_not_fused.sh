#!/usr/bin/env bash
# One would guess: onnxruntime's optimiser for model_type='bert' puts one Attention operator into each layer of a BERT
#   that torch.onnx.export wrote.
# What happens: from what torch's exporter writes as it comes (dynamo=True) with an attention mask, no layer's attention
#   is fused, by 'eager' and by 'sdpa', while its other fusions are done. The reason is told at the level DEBUG alone.
#   From the same model by the old exporter (dynamo=False) every layer is fused.
# Version: onnxruntime 1.32.0, torch 2.13.0, transformers 5.23.0, onnx 1.23.2, onnxscript 0.7.2
# Source: onnxruntime/transformers/fusion_attention.py, FusionAttention.fuse (lists of the paths of operators that it
#   knows: "failed to match mask path" by eager, whose mask is Where over And, "failed to match qk path" by sdpa)
# What to do: read get_fused_operator_statistics() before two times are compared, most of all those of a pruned and a
#   whole model that were exported in different ways.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 onnx==1.23.2 onnxruntime==1.32.0 onnxscript==0.7.2
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
venv/bin/python - 2> errors.txt <<'EOF' || { cat errors.txt; exit 1; }
import collections
import importlib.metadata

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.transformers.optimizer import optimize_model
from transformers import BertConfig, BertModel

for name in ("onnxruntime", "torch", "transformers", "onnx", "onnxscript"):
    print(name, importlib.metadata.version(name))
torch.manual_seed(0)
sizes = dict(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
ids = torch.randint(5, 90, (2, 9))
mask = torch.ones_like(ids)
mask[1, 6:] = 0
names = ["input_ids", "attention_mask"]


class Hidden(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


found = {}
for attention, dynamo in (("eager", True), ("sdpa", True), ("eager", False)):
    model = Hidden(BertModel(BertConfig(attn_implementation=attention, **sizes), add_pooling_layer=False)).eval()
    if dynamo:
        shapes = {name: {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")} for name in names}
        how = dict(dynamic_shapes=shapes)
    else:
        how = dict(dynamo=False, opset_version=17, dynamic_axes={name: {0: "texts", 1: "tokens"} for name in names})
    how.update(input_names=names, output_names=["hidden"], verbose=False)
    torch.onnx.export(model, (ids, mask), "model.onnx", **how)
    optimised = optimize_model("model.onnx", model_type="bert", num_heads=4, hidden_size=64)
    fused = {name: count for name, count in optimised.get_fused_operator_statistics().items() if count}
    softmax = collections.Counter(node.op_type for node in optimised.model.graph.node)["Softmax"]
    optimised.save_model_to_file("optimised.onnx")
    feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    if not dynamo:
        feeds = {node.name: feeds[node.name].astype(np.int32 if node.type == "tensor(int32)" else np.int64)
                 for node in onnxruntime.InferenceSession("optimised.onnx").get_inputs()}
    hidden = onnxruntime.InferenceSession("optimised.onnx").run(None, feeds)[0]
    with torch.inference_mode():
        off = np.abs(hidden - model(ids, mask).numpy())[mask.numpy() == 1].max()
    print(attention, "dynamo" if dynamo else "old exporter", "- fused:", fused, "- softmax left: %d" % softmax)
    assert off < 1e-4
    found[attention, dynamo] = fused.get("Attention", 0), softmax
assert found == {("eager", True): (0, 2), ("sdpa", True): (0, 2), ("eager", False): (2, 0)}
print("As stated: no attention is fused but in the old exporter's file.")
EOF
