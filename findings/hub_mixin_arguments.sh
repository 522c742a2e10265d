#!/usr/bin/env bash
# One would guess: a model of one's own that inherits from PyTorchModelHubMixin is loaded with the arguments that it was
#   made with, or save_pretrained refuses an argument that it cannot write.
# What happens: an argument that JSON cannot hold, such as a mask of heads in a tensor or a factor in np.float32, is
#   dropped, and config.json has the argument's default in its place. from_pretrained gives a model with all heads on;
#   nothing is said.
# Version: huggingface-hub 2.4.0, torch 2.13.0
# Source: huggingface_hub/hub_mixin.py, ModelHubMixin.__new__ (default values, then 'passed values' that are jsonable)
# What to do: register a mask of heads as a buffer, so that it is among the weights, or pass lists and floats; compare
#   logits after from_pretrained.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 huggingface-hub==2.4.0 safetensors==0.8.0 numpy==2.4.6
export HF_HUB_OFFLINE=1
venv/bin/python - <<'EOF'
import importlib.metadata
import json
import warnings

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin

for name in ("huggingface-hub", "torch"):
    print(name, importlib.metadata.version(name))


class Heads(torch.nn.Module, PyTorchModelHubMixin):
    def __init__(self, heads=4, gates=None, scale=1.0):
        super().__init__()
        self.linear, self.gates, self.scale = torch.nn.Linear(8, heads), gates, scale

    def forward(self, inputs):
        outputs = self.linear(inputs) * self.scale
        return outputs if self.gates is None else outputs * torch.as_tensor(self.gates)


torch.manual_seed(0)
inputs, gates = torch.ones(1, 8), [1.0, 0.0, 1.0, 0.0]
equal = {}
for name, arguments in (
    ("tensor", {"gates": torch.tensor(gates)}), ("np.float32", {"scale": np.float32(0.5)}),
    ("list and float", {"gates": gates, "scale": 0.5}),
):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Heads(**arguments)
        model.save_pretrained(name)
        loaded = Heads.from_pretrained(name)
    with open(f"{name}/config.json") as file:
        print(name, "- given", arguments, "config.json", json.load(file))
    equal[name] = torch.equal(model(inputs), loaded(inputs))
    print("  outputs", model(inputs).tolist(), "loaded", loaded(inputs).tolist())
assert equal == {"tensor": False, "np.float32": False, "list and float": True}
print("As stated: what JSON cannot hold is loaded as the default.")
EOF
