"""Where heads lie in the projections of a model, by hand: what ``gnorm.heads`` is held against. Nothing of it is used.

The names are those of modules in transformers; the rows are read off its source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import literal
import torch
from torch import Tensor

BY_BART = ("(self|encoder)_attn", "q_proj k_proj v_proj out_proj")
BY_T5 = ("(Self|EncDec)Attention", "q k v o")
BY_BERT = ("attention", "self.query self.key self.value output.dense")
BY_LLAMA = ("self_attn", "q_proj k_proj v_proj o_proj")
LLAMAS = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "smollm3")
# By family: the last part of the names of attention modules, and query, key, value and output in each.
NAMES = {
    "gpt2": ("attn", "c_attn c_attn c_attn c_proj"),
    "gpt_neox": ("attention", "query_key_value query_key_value query_key_value dense"),
    "gptj": ("attn", "q_proj k_proj v_proj out_proj"),
    "gpt_neo": (r"attn\.attention", "q_proj k_proj v_proj out_proj"),
    "modernbert": ("attn", "Wqkv Wqkv Wqkv Wo"),
    "phi": ("self_attn", "q_proj k_proj v_proj dense"),
    **dict.fromkeys(("t5", "mt5"), BY_T5),
    **dict.fromkeys(("bart", "mbart", "marian", "pegasus", "m2m_100", "opt", "whisper"), BY_BART),
    **dict.fromkeys((*LLAMAS, "granite", "cohere", "starcoder2", "eurobert", "nomic_bert"), BY_LLAMA),
    **dict.fromkeys(("data2vec-text", "ernie", "roformer", "rembert"), BY_BERT),
    **dict.fromkeys(("wav2vec2", "hubert"), ("attention", "q_proj k_proj v_proj out_proj")),
    **dict.fromkeys(("beit", "dinov2", "audio-spectrogram-transformer"), ("attention", "q_proj k_proj v_proj o_proj")),
}


@dataclass(frozen=True)
class Part:
    """A projection: its module, and the rows (head, n) of each head; columns of the output projection."""

    module: Any
    rows: Tensor
    of_input: bool = False

    def _turned(self, matrix: Tensor) -> Tensor:
        """The side of heads first; the weight of Conv1D is (in, out)."""
        return matrix.T if self.of_input != (type(self.module).__name__ == "Conv1D") else matrix

    def by_head(self, matrix: Tensor) -> Tensor:
        """(head, numbers) what is each head's of a weight, or of its gradient."""
        return self._turned(matrix)[self.rows].flatten(1)

    def zero(self, lost: Tensor) -> None:
        """Set the weights of the heads ``lost`` (head,) to zero."""
        self._turned(self.module.weight.data)[self.rows[lost].flatten()] = 0


def heads_of(model: Any) -> int:
    """How many heads of a layer can go alone: key-value heads."""
    return getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads


def blocks(model: Any) -> list[list[Part]]:
    """[query, key, value, output] of every attention block: of the encoder, of the decoder, then cross-attention."""
    family, heads = model.config.model_type, heads_of(model)
    if family not in NAMES:
        found = literal.projections(model)
    else:
        pattern, names = NAMES[family]
        owners = [(n, m) for n, m in model.named_modules() if re.search(rf"(^|\.){pattern}$", n)]
        owners.sort(key=lambda owner: ("decoder." in owner[0], bool(re.search("EncDec|encoder_attn", owner[0]))))
        found = [[owner.get_submodule(name) for name in names.split()] for _, owner in owners]
    return [_parts(*modules, heads, model.config.num_attention_heads // heads, family) for modules in found]


def _parts(query: Any, key: Any, value: Any, output: Any, heads: int, queries: int, family: str) -> list[Part]:
    width = output.weight.shape[0 if type(output).__name__ == "Conv1D" else 1] // heads // queries
    of_query, of_key = (torch.arange(heads * n * width).view(heads, -1) for n in (queries, 1))
    rows = [of_query, of_key, of_key]
    if query is key and family == "gpt_neox":  # query, key and value of one head, then of the next
        rows = list(torch.arange(heads * 3 * width).view(heads, 3, width).unbind(1))
    elif query is key:
        rows = [of_query, of_key + of_query.numel(), of_key + of_query.numel() + of_key.numel()]
    parts = [Part(module, of) for module, of in zip((query, key, value), rows, strict=True)]
    return [*parts, Part(output, of_query, of_input=True)]
