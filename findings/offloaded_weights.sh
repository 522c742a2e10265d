#!/usr/bin/env bash
# One would guess: weights that are set to zero in a model that accelerate offloads to the CPU are zero in the next
#   forward pass, or the assignment fails.
# What happens: between two forward passes the parameters lie on the device 'meta', which accepts every assignment and
#   keeps nothing; each pass takes the weights from a copy. Zeroing has no effect, the copy that is saved has
#   the old weights, and the removed heads seem to cost nothing. After backward all gradients are None, so
#   optimizer.step() changes nothing either. Nothing is raised and no warning is given.
# Version: accelerate 1.15.0, torch 2.13.0
# Source: accelerate/hooks.py, AlignDevicesHook.pre_forward and post_forward (set_module_tensor_to_device(..., 'meta'))
# What to do: look for parameters whose device is meta before heads are zeroed, scored or removed (device_map='auto'
#   offloads what the GPU has no room for); change the weights before cpu_offload or dispatch_model, or load the model
#   on one device.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 accelerate==1.15.0
venv/bin/python - <<'EOF'
import warnings

import accelerate
import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model

print("accelerate", accelerate.__version__, "torch", torch.__version__)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
inputs = torch.randn(4, 8)


def logits():
    with torch.no_grad():
        return model(inputs)


intact = logits()
weight = model[0].weight.detach().clone()
with warnings.catch_warnings():
    warnings.simplefilter("error")
    accelerate.cpu_offload(model, execution_device="cpu")
    with torch.no_grad():
        model[0].weight[:4] = 0
        model[1].weight.zero_()
    saved = get_state_dict_offloaded_model(model)["0.weight"]
    print("after zeroing - device", model[0].weight.device, "logits as before:", torch.equal(logits(), intact),
          "saved weights as before:", torch.equal(saved, weight))
    assert torch.equal(logits(), intact) and torch.equal(saved, weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(inputs).square().mean().backward()
    optimizer.step()
    gradients = [parameter.grad for parameter in model.parameters()]
    print("after a step - gradients", gradients, "logits as before:", torch.equal(logits(), intact))
    assert gradients == [None] * 4 and torch.equal(logits(), intact)
print("As stated: zeroed and trained in vain.")
EOF
