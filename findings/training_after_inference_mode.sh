#!/usr/bin/env bash
# One would guess: a model that was measured within torch.inference_mode() can be trained afterwards.
# What happens: BEiT with relative positions computes an index of positions once for each number of patches and keeps it
#   for all models of the process (an lru_cache of a static method). Made within inference mode, it is an inference
#   tensor, and the first training step after that, of any such model, ends in RuntimeError: Inference tensors cannot be
#   saved for backward. Within torch.no_grad() nothing happens.
# Version: transformers 5.23.0, torch 2.13.0
# Source: transformers/models/beit/modeling_beit.py, BeitRelativePositionBias.generate_relative_position_index;
#   transformers/pytorch_utils.py, compile_compatible_method_lru_cache
# What to do: measure a model that is to be trained, or scored by gradients, within torch.no_grad().
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
venv/bin/python - <<'EOF'
import torch
import transformers
from transformers import BeitConfig, BeitForImageClassification

print("transformers", transformers.__version__, "torch", torch.__version__)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
for mode, pixels in ((torch.no_grad, 16), (torch.inference_mode, 24)):  # each number of patches has an index of its own
    config = BeitConfig(image_size=pixels, patch_size=4, use_relative_position_bias=True, num_labels=3, **sizes)
    inputs = {"pixel_values": torch.zeros(2, 3, pixels, pixels), "labels": torch.tensor([0, 1])}
    measured, another = (BeitForImageClassification(config) for _ in range(2))
    with mode():
        measured.eval()(**inputs)
    try:
        another.train()(**inputs).loss.backward()
        said = "it trains"
    except RuntimeError as error:
        said = str(error)[:60]
    print(f"another model, after a pass within torch.{mode.__name__}():", said)
    assert ("Inference tensors" in said) == (mode is torch.inference_mode), said
print("As stated: a pass within inference mode stops the training after it, of other models too.")
EOF
