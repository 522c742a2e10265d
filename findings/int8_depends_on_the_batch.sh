#!/usr/bin/env bash
# One would guess: int8 costs precision, but a text has one answer, whatever it is batched with.
# What happens: the scale of each activation tensor is taken from the whole batch at run time, padding included. So
#   the same text has other logits alone, in a batch and with padding behind it; in float they are equal to 1e-6. The
#   differences are as large as the error of int8 itself.
# Version: torch 2.13.0, transformers 5.23.0, onnx 1.23.2, onnxruntime 1.32.0, onnxscript 0.7.2
# Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html (dynamic quantization);
#   torch/ao/nn/quantized/dynamic/modules/linear.py
# What to do: compare a pruned int8 model with an intact one on the same batches, in the same order and padding; do
#   not expect accuracy of int8 to be equal for other batch sizes.
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
venv/bin/python - <<'EOF'
import importlib.metadata
import warnings

import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic
from transformers import BertConfig, BertForSequenceClassification

warnings.simplefilter("ignore")
for name in ("torch", "transformers", "onnx", "onnxruntime", "onnxscript"):
    print(name, importlib.metadata.version(name))
torch.manual_seed(0)
sizes = dict(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
model = BertForSequenceClassification(BertConfig(**sizes)).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.2)


class Logits(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


ids = torch.randint(5, 90, (8, 9))
axes = {0: torch.export.Dim("text"), 1: torch.export.Dim("token", max=512)}
torch.onnx.export(
    Logits().eval(), (ids, torch.ones_like(ids)), "float.onnx", dynamo=True, verbose=False, external_data=False,
    input_names=["input_ids", "attention_mask"], dynamic_shapes=(axes, axes),
)
quantize_dynamic("float.onnx", "int8.onnx")
int8 = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def by_onnx(file):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda ids, mask: torch.from_numpy(
        session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
    )


def by_torch(model):
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits


padded = torch.cat([ids[:1], torch.zeros(1, 20, dtype=torch.long)], dim=1)
padding = (padded > 0).long()
runs = {
    "float, torch": by_torch(model), "float, onnxruntime": by_onnx("float.onnx"),
    "int8, torch": by_torch(int8), "int8, onnxruntime": by_onnx("int8.onnx"),
}
for name, run in runs.items():
    with torch.inference_mode():
        alone = run(ids[:1], torch.ones(1, 9, dtype=torch.long))
        batch = (run(ids, torch.ones_like(ids))[:1] - alone).abs().max().item()
        pad = (run(padded, padding) - alone).abs().max().item()
    print("%-19s a text alone and in a batch differ by %.1e, with padding by %.1e" % (name, batch, pad))
    assert (max(batch, pad) < 1e-5) if name.startswith("float") else (min(batch, pad) > 1e-4)
print("As stated: one text, several answers.")
EOF
