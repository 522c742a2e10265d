#!/usr/bin/env bash
# One would guess: a model that generate takes is taken by generate(cache_implementation="paged") and generate_batch
#   too, or they raise an error.
# What happens: the paged cache is made for the number of key-value heads of config.json in every layer. Where a layer
#   has fewer, the forward pass fails. The error is logged, nothing is raised: generate_batch returns requests without
#   tokens whose field error holds the text, generate(cache_implementation="paged") returns the prompt alone.
# Version: transformers 5.23.0, torch 2.13.0
# Source: transformers/generation/utils.py (generate, "switch to CB": prompt_ids + generated_tokens);
#   transformers/generation/continuous_batching/utils.py (find_num_key_value_heads)
# What to do: take generate with a growing or a static cache where layers have unequal heads, or look at the field error
#   of every request.
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
import importlib.metadata

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

for name in ("torch", "transformers"):
    print(name, importlib.metadata.version(name))
torch.manual_seed(0)
sizes = dict(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
model.set_attn_implementation("sdpa")
prompt = torch.tensor([[5, 6, 7]])
options = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)  # else it takes most of the memory


def report():
    """By generate, by the paged cache, by generate_batch; and the error of the last."""
    plain = model.generate(prompt, options)[0].tolist()
    options_of_paged = {"cache_implementation": "paged", "continuous_batching_config": small}
    paged = model.generate(prompt, options, **options_of_paged).flatten().tolist()
    (request,) = model.generate_batch(prompt.tolist(), options, small).values()
    print("generate:", plain, "| paged:", paged, "| generate_batch:", request.generated_tokens, "|", request.error)
    return plain, paged, request.generated_tokens, request.error


plain, paged, tokens, error = report()
assert plain == paged == [5, 6, 7, *tokens] and len(tokens) == 4 and error is None
attention = model.model.layers[0].self_attn
for name in ("q_proj", "k_proj", "v_proj"):  # one of four heads goes
    projection = getattr(attention, name)
    projection.weight = torch.nn.Parameter(projection.weight[16:].detach().clone())
attention.o_proj.weight = torch.nn.Parameter(attention.o_proj.weight[:, 16:].detach().clone())
plain, paged, tokens, error = report()
assert len(plain) == 7
assert paged == [5, 6, 7]
assert tokens == [] and "slice shape" in error
EOF
