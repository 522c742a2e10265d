#!/usr/bin/env bash
# One would guess: torch.compile notices a new hook and compiles again, as it does for a changed attribute; or at
#   least a second torch.compile of the model does.
# What happens: where no module had hooks at the first call, hooks are not guarded by default. A pre-hook that zeroes
#   a layer's input, added afterwards, has no effect, and neither has it in a model made by a second torch.compile,
#   which finds the first one's code. Nothing is said. After torch.compiler.reset(), or with
#   torch._dynamo.config.skip_nnmodule_hook_guards = False from the start, the hook acts.
# Version: torch 2.13.0
# Source: torch/_dynamo/config.py, skip_nnmodule_hook_guards
# What to do: mask heads with hooks on a model that is not compiled, or call torch.compiler.reset() after each change
#   of hooks.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'EOF'
import torch
from torch import nn

print("torch", torch.__version__)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
x = torch.ones(1, 4)


def zeros(module, inputs):
    return (torch.zeros_like(inputs[0]),)


def changes():
    """How far a hook that is added after the first call moves the output of each way to run the model."""
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    before = compiled(x)
    handle = model[1].register_forward_pre_hook(zeros)
    ways = {"compiled": compiled, "compiled again": torch.compile(model, backend="eager"), "not compiled": model}
    moved = {name: (way(x) - before).abs().max().item() for name, way in ways.items()}
    torch.compiler.reset()
    moved["compiled after reset()"] = (torch.compile(model, backend="eager")(x) - before).abs().max().item()
    handle.remove()
    return moved


default = changes()
torch._dynamo.config.skip_nnmodule_hook_guards = False
guarded = changes()
for name, moved in default.items():
    print("%-23s default %.4f, hooks guarded %.4f" % (name, moved, guarded[name]))
assert default["compiled"] == default["compiled again"] == 0
assert min(default["not compiled"], default["compiled after reset()"], *guarded.values()) > 0
print("As stated: the hook has no effect on the compiled model.")
EOF
