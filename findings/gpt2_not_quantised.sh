#!/usr/bin/env bash
# One would guess: int8 weights make a model about a quarter of its size, or the tool says what it left out.
# What happens: GPT-2's projections are transformers' Conv1D, not nn.Linear, and both tools pass them over without a
#   word. lm_head is nn.Linear: it is quantised, so it no longer is the embedding's tensor, and the model holds both.
#   It ends larger than before.
# Version: torchao 0.18.0, optimum-quanto 0.2.7, torch 2.13.0, transformers 5.23.0
# Source: torchao/quantization/quant_api.py, _is_linear; optimum/quanto/nn/qlinear.py
#   (register_qmodule(torch.nn.Linear)); transformers/pytorch_utils.py, Conv1D
# What to do: count the bytes before and after; turn Conv1D into nn.Linear before GPT-2 is quantised, and leave
#   lm_head out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${FINDINGS_VENV:+$FINDINGS_VENV/bin/}python3" -m venv venv
if [ -n "${FINDINGS_VENV:-}" ]; then # pip takes packages from there whose versions are the same
    ls -d "$FINDINGS_VENV"/lib/python3*/site-packages > "$(ls -d venv/lib/python3*/site-packages)/reused.pth"
fi
venv/bin/pip install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 torchao==0.18.0 optimum-quanto==0.2.7
export TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
venv/bin/python - <<'EOF'
import importlib.metadata
import warnings

import optimum.quanto as quanto
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import GPT2Config, GPT2LMHeadModel

warnings.simplefilter("ignore")
for name in ("torchao", "optimum-quanto", "torch", "transformers"):
    print(name, importlib.metadata.version(name))
config = GPT2Config(vocab_size=2000, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)


def by_torchao(model):
    quantize_(model, Int8WeightOnlyConfig())


def by_quanto(model):
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)


def plain(model):
    pass


def held(model):
    """Bytes of what the model holds (a tensor that two modules share once), and which projections are float."""
    tensors, floats = {}, 0
    for name, parameter in model.named_parameters():
        inner = [getattr(parameter, each) for each in ("qdata", "scale", "_data", "_scale") if hasattr(parameter, each)]
        floats += not inner and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        for tensor in inner or [parameter.detach()]:
            tensors[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(tensors.values()), floats, model.lm_head.weight is model.transformer.wte.weight


found = {}
for quantise in (plain, by_torchao, by_quanto):
    model = GPT2LMHeadModel(config).eval()
    quantise(model)
    found[quantise.__name__] = held(model)
    print("%-10s %7d bytes, %d of 8 projections float, head is the embedding: %s" % (quantise.__name__, *held(model)))
before = found["plain"]
for name in ("by_torchao", "by_quanto"):
    assert found[name][0] > before[0] and found[name][1:] == (8, False)
assert before[1:] == (8, True)
print("As stated: larger, with every projection in float.")
EOF
