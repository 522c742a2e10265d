"""The tiny models of the tests, a row each: a new family is its row in ``FAMILIES`` of the package and one row here.

Every test over all families, and the fuzzer, takes its models from ``ROWS``. Nothing of ``gnorm`` is used.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import tiny
import torch
import transformers
from tiny import ragged_batches
from torch import Tensor, nn
from transformers import AutoConfig

LABELS = ("labels", "start_positions", "end_positions")
# By kind: what the model is loaded as, and as what it generates texts, if it does.
KINDS = {
    "encoder": ("SequenceClassification", ""),
    "decoder": ("SequenceClassification", "CausalLM"),
    "language model": ("CausalLM", "CausalLM"),  # a decoder for which transformers has no classifier
    "encoder-decoder": ("SequenceClassification", "Seq2SeqLM"),
    "translator": ("Seq2SeqLM", "Seq2SeqLM"),  # an encoder-decoder without a classifier
    "images": ("ImageClassification", ""),
    "sounds": ("AudioClassification", ""),
    "questions": ("QuestionAnswering", ""),
    "pixels": ("ImageClassification", ""),  # a token each
    "pairs": ("VisualBertForVisualReasoning", ""),  # a class that no Auto class gives
    "videos": ("VideoClassification", ""),
    "speech": ("SpeechSeq2Seq", "SpeechSeq2Seq"),
}
Draw = Callable[[random.Random], dict[str, Any]]


def as_it_is(_: random.Random) -> dict[str, Any]:
    """The fuzzer takes the configuration of the row."""
    return {}


@dataclass(frozen=True)
class Row:
    """A tiny model of a family.

    config: what ``AutoConfig`` needs, beside 120 tokens and 3 classes. layout: the last part of the names of attention
    modules, and the names of query, key, value and output projection in each, by hand; None where the package's own
    row is believed, which the package tries. kind: a name in ``KINDS``. draw:
    what the fuzzer draws of the configuration; None where it does not draw the family. in_float32: parts of its work
    are in float32 whatever its precision: softmax, norms, positions. by_head: one module holds query, key and value of
    one head, then of the next.
    """

    config: dict[str, Any]
    layout: tuple[str, str] | None = None
    kind: str = "encoder"
    draw: Draw | None = as_it_is
    in_float32: bool = True
    by_head: bool = False


# ------------------------------------------------------------------------------------------ what the fuzzer draws

VOCABULARY, POSITIONS = 60, 32
SMALL_IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 3}


def one_of(**choices: list[Any]) -> Draw:
    """A value of each list."""
    return lambda r: {name: r.choice(values) for name, values in choices.items()}


def together(*draws: Draw | dict[str, Any]) -> Draw:
    return lambda r: {k: v for draw in draws for k, v in (draw if isinstance(draw, dict) else draw(r)).items()}


of_bert = one_of(type_vocab_size=[1, 2, 3], chunk_size_feed_forward=[0, 0, 0, 0, 1])
one_type = one_of(type_vocab_size=[1])


def narrow(*names: str) -> Draw:
    """Embeddings that are narrower than the hidden states."""
    return lambda r: dict.fromkeys(names, r.randint(2, 9))


def of_deberta(r: random.Random) -> dict[str, Any]:
    relative = {
        "pos_att_type": r.choice([["c2p"], ["p2c"], ["c2p", "p2c"], "p2c|c2p", []]),
        "share_att_key": r.random() < 0.5,
        "position_buckets": r.choice([-1, 4, 8]),
        "norm_rel_ebd": r.choice(["none", "layer_norm"]),
        "position_biased_input": r.random() < 0.5,
    }
    return {
        "type_vocab_size": r.choice([0, 2]),
        "conv_kernel_size": r.choice([0, 0, 3]),
        **({"relative_attention": True, **relative} if r.random() < 0.7 else {}),
    }


def rotary(r: random.Random) -> dict[str, Any]:
    """Grouped queries, rotary positions, sliding windows."""
    heads, queries = r.randint(1, 3), r.choice([1, 2, 2, 4])
    return {
        "num_attention_heads": heads * queries,
        "num_key_value_heads": heads,
        "head_dim": r.choice([2, 4, 6]),
        "hidden_size": heads * queries * r.choice([2, 3, 4]) * (4 if heads * queries == 1 else 1),
        "attention_bias": r.random() < 0.5,
        "sliding_window": r.choice([None, 3, 8]),
        "tie_word_embeddings": r.random() < 0.5,
    }


def windowed(r: random.Random) -> dict[str, Any]:
    windows = {"use_sliding_window": True, "sliding_window": r.choice([2, 5]), "max_window_layers": r.randint(0, 2)}
    return {**rotary(r), **(windows if r.random() < 0.5 else {"sliding_window": None})}


def even(r: random.Random) -> dict[str, Any]:
    """Heads of an even number of rows, half of which are rotated in some families."""
    heads = r.randint(1, 4)
    return {"num_attention_heads": heads, "hidden_size": heads * r.choice([4, 8])}


def grouped(r: random.Random) -> dict[str, Any]:
    heads, queries = r.randint(1, 3), r.choice([1, 2])
    sizes = {"num_attention_heads": heads * queries, "num_key_value_heads": heads}
    return {**sizes, "hidden_size": heads * queries * r.choice([4, 8])}


def of_gpt(r: random.Random) -> dict[str, Any]:
    return {"bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": r.random() < 0.5}


def of_t5(r: random.Random) -> dict[str, Any]:
    return {
        "d_model": r.choice([8, 12]),
        "d_kv": r.randint(1, 6),
        "d_ff": 12,
        "num_heads": r.randint(1, 4),
        "num_layers": r.randint(1, 3),
        "num_decoder_layers": r.randint(1, 3),
        "feed_forward_proj": r.choice(["relu", "gated-gelu"]),
        "relative_attention_num_buckets": r.choice([4, 8]),
        "relative_attention_max_distance": r.choice([8, 20]),
        "decoder_start_token_id": 1,
        "eos_token_id": 2,
    }


def of_bart(r: random.Random) -> dict[str, Any]:
    heads = r.randint(1, 4)
    return {
        "d_model": heads * r.choice([2, 4, 6]),
        "encoder_layers": r.randint(1, 3),
        "decoder_layers": r.randint(1, 3),
        "encoder_attention_heads": heads,
        "decoder_attention_heads": heads,
        "encoder_ffn_dim": 12,
        "decoder_ffn_dim": 8,
        "scale_embedding": r.random() < 0.5,
        "eos_token_id": 2,
        "bos_token_id": 0,
        "forced_eos_token_id": None,
        "decoder_start_token_id": 1,
    }


def of_whisper(r: random.Random) -> dict[str, Any]:
    bart = of_bart(r)
    return {
        **bart,
        "d_model": max(4, bart["d_model"]),  # the sinusoids of its positions are not defined for two
        "num_mel_bins": 4,
        "max_source_positions": 6,
        "max_target_positions": POSITIONS,
        "classifier_proj_size": 8,
        "vocab_size": VOCABULARY,
        "pad_token_id": 1,
        "use_weighted_layer_sum": r.random() < 0.3,
    }


def of_sounds(r: random.Random) -> dict[str, Any]:
    stable = r.random() < 0.5
    return {
        "conv_dim": (8, 8),
        "conv_kernel": (4, 4),
        "conv_stride": (4, 4),
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 1,
        "classifier_proj_size": 8,
        "num_feat_extract_layers": 2,
        "do_stable_layer_norm": stable,
        "feat_extract_norm": "layer" if stable else "group",
        "use_weighted_layer_sum": r.random() < 0.3,
    }


def of_beit(r: random.Random) -> dict[str, Any]:
    biases = r.choice([["use_relative_position_bias"], ["use_shared_relative_position_bias"], []])
    return {**SMALL_IMAGE, **dict.fromkeys(biases, True)}


BOOL = [True, False]
TOKENS_OF_MODERNBERT = {"cls_token_id": 2, "sep_token_id": 2, "bos_token_id": 2, "eos_token_id": 2}

# ------------------------------------------------------------------------------------------ the table

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = SIZES | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 4}
IMAGES = SIZES | {"image_size": 16, "patch_size": 4, "num_channels": 3}
OF_GPT2 = SIZES | {"max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 2}
OF_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2} | {
    "decoder_start_token_id": 1,
    "eos_token_id": 2,
}
OF_BART = (
    {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2}
    | {"decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40}
    | {"eos_token_id": 2, "forced_eos_token_id": None, "decoder_start_token_id": 1}
)
OF_WHISPER = (
    OF_BART
    | {"num_mel_bins": 16, "max_source_positions": 24, "vocab_size": 120, "pad_token_id": 1, "classifier_proj_size": 16}
    | {"begin_suppress_tokens": None, "suppress_tokens": None, "max_target_positions": 40}
)
OF_WAV2VEC2 = (
    SIZES
    | {"conv_dim": (8, 8), "conv_kernel": (4, 4), "conv_stride": (4, 4), "num_conv_pos_embeddings": 4}
    | {"num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16}
)
EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 24}
MARKERS = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
DISTIL = {"dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 48}
DEIT = {"architectures": ["DeiTForImageClassification"]}

BY_BERT = ("attention", "self.query self.key self.value output.dense")
BY_LLAMA = ("self_attn", "q_proj k_proj v_proj o_proj")
BY_BART = ("(self|encoder)_attn", "q_proj k_proj v_proj out_proj")
BY_T5 = ("(Self|EncDec)Attention", "q k v o")
BY_VIT = ("attention", "q_proj k_proj v_proj o_proj")
BY_WAV2VEC2 = ("attention", "q_proj k_proj v_proj out_proj")
BY_ALBERT = ("attention", "query key value dense")
BY_DEBERTA = ("attention", "self.query_proj self.key_proj self.value_proj output.dense")


def classic(layout: tuple[str, str], draw: Draw, **config: Any) -> Row:
    """An encoder in one precision, of three layers."""
    return Row({**tiny.SIZES, **config}, layout, draw=draw, in_float32=False)


encoder = Row
decoder = partial(Row, kind="decoder")
language_model = partial(Row, kind="language model", draw=None)
encoder_decoder = partial(Row, kind="encoder-decoder")
translator = partial(Row, layout=BY_BART, kind="translator", draw=None)
images = partial(Row, kind="images")
sounds = partial(Row, kind="sounds")

# A family comes twice where its configuration alters attention: "family/what is different".
ROWS: dict[str, Row] = {
    "bert": classic(BY_BERT, of_bert),
    "roberta": classic(BY_BERT, together(of_bert, one_type)),
    "xlm-roberta": classic(BY_BERT, one_type),
    "albert": classic(
        BY_ALBERT,
        together(narrow("embedding_size"), one_of(num_hidden_groups=[1, 1, 2, 3], inner_group_num=[1, 1, 2])),
        embedding_size=16,
    ),
    "albert/two groups": classic(BY_ALBERT, as_it_is, embedding_size=16, num_hidden_groups=2, num_hidden_layers=4),
    "camembert": classic(BY_BERT, one_type),
    "electra": classic(BY_BERT, together(narrow("embedding_size"), of_bert), embedding_size=16),
    "distilbert": classic(
        ("attention", "q_lin k_lin v_lin out_lin"), one_of(sinusoidal_pos_embds=[False, False, True]), **DISTIL
    ),
    "deberta-v2": classic(BY_DEBERTA, of_deberta),
    "deberta-v2/relative": classic(BY_DEBERTA, as_it_is, **RELATIVE),
    "deberta-v2/shared": classic(
        BY_DEBERTA, as_it_is, **{**RELATIVE, "pos_att_type": ["c2p"], "position_buckets": -1}, share_att_key=True
    ),
    "mpnet": classic(("attention", "attn.q attn.k attn.v attn.o"), one_of(relative_attention_num_buckets=[32, 40])),
    "data2vec-text": encoder(SIZES, BY_BERT, draw=one_type),
    "ernie": encoder(SIZES, BY_BERT, draw=together(of_bert, one_of(use_task_id=BOOL))),
    "roformer": encoder(
        SIZES | {"embedding_size": 16},
        BY_BERT,
        draw=together(of_bert, even, one_of(rotary_value=BOOL), {"embedding_size": 6}),
    ),
    "rembert": encoder(
        SIZES | {"input_embedding_size": 16, "output_embedding_size": 16},
        BY_BERT,
        draw=one_of(input_embedding_size=[6], output_embedding_size=[6], type_vocab_size=[2]),
    ),
    "eurobert": encoder(GROUPED, BY_LLAMA, draw=rotary),
    "nomic_bert": encoder(SIZES, BY_LLAMA, draw=even),
    "modernbert": encoder(
        SIZES | MARKERS | {"local_attention": 8},
        ("attn", "Wqkv Wqkv Wqkv Wo"),
        draw=together(
            even,
            one_of(local_attention=[2, 6], global_attn_every_n_layers=[1, 2, 3], attention_bias=BOOL),
            one_of(classifier_pooling=["cls", "mean"]),
            TOKENS_OF_MODERNBERT,
        ),
    ),
    "vit": images(IMAGES, BY_VIT, draw=together(SMALL_IMAGE, one_of(qkv_bias=BOOL))),
    "vit/no biases": images(IMAGES | {"qkv_bias": False}, BY_VIT),
    "deit": images(IMAGES | DEIT, BY_VIT, draw=together(SMALL_IMAGE, DEIT, one_of(qkv_bias=BOOL))),
    "beit": images(IMAGES, BY_VIT, draw=of_beit),
    "beit/relative": images(IMAGES | {"use_relative_position_bias": True}, BY_VIT),
    "dinov2": images(
        IMAGES, BY_VIT, draw=together(SMALL_IMAGE, one_of(use_swiglu_ffn=BOOL, qkv_bias=BOOL, mlp_ratio=[2]))
    ),
    "audio-spectrogram-transformer": sounds(
        SIZES | {"max_length": 24, "num_mel_bins": 16, "patch_size": 8},
        BY_VIT,
        draw=one_of(max_length=[12], num_mel_bins=[8], patch_size=[4]),
    ),
    "wav2vec2": sounds(OF_WAV2VEC2, BY_WAV2VEC2, draw=of_sounds),
    "wav2vec2/stable": sounds(OF_WAV2VEC2 | {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}, BY_WAV2VEC2),
    "hubert": sounds(OF_WAV2VEC2, BY_WAV2VEC2, draw=of_sounds),
    "whisper": sounds(OF_WHISPER, BY_BART, draw=of_whisper),
    "gpt2": decoder(
        OF_GPT2,
        ("attn", "c_attn c_attn c_attn c_proj"),
        draw=together(
            of_gpt,
            one_of(scale_attn_by_inverse_layer_idx=BOOL, scale_attn_weights=[True, True, False]),
            {"n_inner": 12},
        ),
    ),
    "gpt2/scaled by layer": decoder(
        OF_GPT2 | {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
        ("attn", "c_attn c_attn c_attn c_proj"),
    ),
    "gpt_neox": decoder(
        SIZES,
        ("attention", "query_key_value query_key_value query_key_value dense"),
        draw=together(even, one_of(use_parallel_residual=BOOL, attention_bias=BOOL, rotary_pct=[0.5, 1.0])),
        by_head=True,
    ),
    "gpt_neox/not parallel": decoder(
        SIZES | {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0},
        ("attention", "query_key_value query_key_value query_key_value dense"),
        by_head=True,
    ),
    "gptj": decoder(
        OF_GPT2 | {"rotary_dim": 4},
        ("attn", "q_proj k_proj v_proj out_proj"),
        draw=together(of_gpt, even, one_of(rotary_dim=[2, 4])),
    ),
    "gpt_neo": decoder(
        OF_GPT2 | {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4},
        (r"attn\.attention", "q_proj k_proj v_proj out_proj"),
        draw=together(of_gpt, one_of(window_size=[2, 6])),
    ),
    "opt": decoder(
        SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        BY_BART,
        draw=together({"ffn_dim": 12}, one_of(word_embed_proj_dim=[6, 8], do_layer_norm_before=BOOL, enable_bias=BOOL)),
    ),
    "llama": decoder(GROUPED, BY_LLAMA, draw=rotary),
    "llama/one key": decoder(GROUPED | {"num_key_value_heads": 1, "head_dim": 6, "attention_bias": True}, BY_LLAMA),
    "mistral": decoder(GROUPED | {"sliding_window": 6}, BY_LLAMA, draw=rotary),
    "mixtral": decoder(GROUPED | EXPERTS, BY_LLAMA, draw=None),  # rounding may choose another expert
    "qwen2": decoder(GROUPED, BY_LLAMA, draw=windowed),
    "qwen2/sliding": decoder(
        GROUPED | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, BY_LLAMA
    ),
    "qwen3": decoder(GROUPED, BY_LLAMA, draw=windowed),
    "qwen3_moe": decoder(GROUPED | EXPERTS, BY_LLAMA, draw=None),
    "gemma": decoder(SIZES | {"num_key_value_heads": 1, "head_dim": 8}, BY_LLAMA, draw=rotary),
    "gemma2": decoder(
        GROUPED | {"sliding_window": 4},
        BY_LLAMA,
        draw=together(rotary, one_of(sliding_window=[2, 6], query_pre_attn_scalar=[4, 9])),
    ),
    "gemma3_text": decoder(
        GROUPED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        BY_LLAMA,
        draw=together(rotary, one_of(sliding_window=[2, 6])),
    ),
    "smollm3": decoder(GROUPED | {"no_rope_layers": [1, 0]}, BY_LLAMA, draw=rotary),
    "granite": language_model(GROUPED | {"logits_scaling": 2.0}, BY_LLAMA),
    "cohere": language_model(GROUPED, BY_LLAMA),
    "starcoder2": decoder(
        SIZES | {"num_key_value_heads": 2, "sliding_window": 4},
        BY_LLAMA,
        draw=together(grouped, one_of(sliding_window=[None, 4], use_bias=BOOL)),
    ),
    "phi": decoder(
        SIZES | {"num_key_value_heads": 2, "qk_layernorm": True},
        ("self_attn", "q_proj k_proj v_proj dense"),
        draw=together(grouped, one_of(qk_layernorm=BOOL)),
    ),
    "t5": encoder_decoder(OF_T5, BY_T5, draw=of_t5),
    "t5/narrow and gated": encoder_decoder(
        OF_T5 | {"d_kv": 6, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 1}, BY_T5
    ),
    "mt5": encoder_decoder(OF_T5 | {"num_layers": 1}, BY_T5, draw=of_t5),
    # the configuration of BART reads 2 classes back as 3
    "bart": encoder_decoder(OF_BART, BY_BART, draw=together(of_bart, one_of(num_labels=[3, 4]))),
    "mbart": encoder_decoder(OF_BART | {"encoder_layers": 1}, BY_BART, draw=of_bart),
    "marian": translator(OF_BART | {"encoder_layers": 1}),
    "pegasus": translator(OF_BART | {"encoder_layers": 1}),
    "m2m_100": translator(OF_BART | {"encoder_layers": 1}),
}

# ------------------------------------------------------------------------------------------ rows without a layout

TEXT = {"vocab_size": 120, "pad_token_id": 1, "max_position_embeddings": 40}
PAIRED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}  # two queries a key
MIXTURE = (
    PAIRED
    | EXPERTS
    | {"n_routed_experts": 2, "moe_num_experts": 2, "n_group": 1, "shared_expert_intermediate_size": 24}
    | {"topk_group": 1, "decoder_sparse_step": 1, "first_k_dense_replace": 1, "moe_topk": 1, "moe_k": 1}
    | {"n_shared_experts": 1}
)
MAMBA = PAIRED | {"mamba_d_state": 4, "mamba_d_conv": 2, "mamba_expand": 2, "mamba_n_heads": 4, "mamba_d_head": 16}
OWN_NAMES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
OF_XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 120, "max_position_embeddings": 40, "pad_index": 1}


def further(kind: str, config: dict[str, Any]) -> Row:
    return Row({**TEXT, **config}, kind=kind, draw=None)


def each(names: str, kind: str, config: dict[str, Any]) -> dict[str, Row]:
    return dict.fromkeys(names.split(), further(kind, config))


ROWS |= {
    **each("esm layoutlm markuplm megatron-bert roberta-prelayernorm roc_bert tapas xlm-roberta-xl", "encoder", SIZES),
    "esm": further("encoder", SIZES | {"position_embedding_type": "rotary", "mask_token_id": 5}),
    "roc_bert": further(
        "encoder",
        SIZES
        | {"pronunciation_vocab_size": 120, "shape_vocab_size": 120, "pronunciation_embed_dim": 8}
        | {"shape_embed_dim": 8},
    ),
    "xmod": further("encoder", SIZES | {"languages": ("en_XX",), "default_language": "en_XX"}),
    "splinter": further("questions", SIZES),
    "visual_bert": further("pairs", SIZES | {"visual_embedding_dim": 8}),
    "layoutlmv3": further(
        "encoder",
        SIZES
        | {"has_relative_attention_bias": False, "has_spatial_attention_bias": False, "input_size": 16}
        | {"patch_size": 8, "coordinate_size": 4, "shape_size": 8, "max_2d_position_embeddings": 32},
    ),
    "big_bird": further("encoder", SIZES | {"attention_type": "original_full"}),
    **dict.fromkeys(
        ("luke", "luke/entities"), further("encoder", SIZES | {"entity_vocab_size": 20, "entity_emb_size": 8})
    ),
    "mobilebert": further(
        "encoder",
        SIZES
        | {"true_hidden_size": 16, "intra_bottleneck_size": 16, "embedding_size": 16, "num_feedforward_networks": 2},
    ),
    "canine": further(
        "encoder", SIZES | {"num_hash_buckets": 16, "downsampling_rate": 2, "local_transformer_stride": 8}
    ),
    **each("gte jina_embeddings_v3 ultrabert", "encoder", SIZES),
    **each(
        "apertus arcee cohere2 cwm ernie4_5 exaone4 glm glm4 helium hunyuan_v1_dense hyperclovax internlm3 iquestcoder "
        "jais2 ministral ministral3 nanochat nemotron olmo seed_oss vaultgemma",
        "language model",
        PAIRED,
    ),
    "gemma4_text": further(
        "language model",
        PAIRED
        | {"global_head_dim": 8, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}
        | {"vocab_size_per_layer_input": 100},
    ),
    **each(
        "aria_text cohere2_moe ernie4_5_moe exaone_moe glm4_moe granitemoe granitemoeshared hunyuan_v1_moe hy_v3 "
        "kolibri1 mellum minimax_m3_vl_text phimoe qwen2_moe solar_open llama4_text",
        "language model",
        MIXTURE,
    ),
    "afmoe": further("language model", MIXTURE | {"num_key_value_heads": 4}),
    "jamba": further(
        "language model", MIXTURE | MAMBA | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
    ),
    "bamba": further("language model", MAMBA | {"attn_layer_indices": [1]}),
    "falcon_h1": further("language model", MAMBA | {"mamba_d_ssm": 64}),
    "granitemoehybrid": further("language model", MIXTURE | MAMBA | {"layer_types": ["mamba", "attention"]}),
    "lfm2": further("language model", PAIRED | {"layer_types": ["conv", "full_attention"]}),
    "biogpt": further("language model", SIZES),
    "persimmon": further("language model", SIZES),
    "modernbert-decoder": further(
        "language model",
        SIZES | {"local_attention": 8, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 3, "sep_token_id": 4},
    ),
    "ctrl": further("language model", OWN_NAMES | {"dff": 48}),
    **each("xlm flaubert", "encoder", OF_XLM),
    "imagegpt": further("pixels", OF_GPT2 | {"vocab_size": 120}),
    "gpt_bigcode": further("language model", OWN_NAMES | {"multi_query": False}),
    **each("dinov2_with_registers ijepa vit_msn data2vec-vision", "images", IMAGES),
    "videomae": further("videos", IMAGES | {"num_frames": 4, "tubelet_size": 2}),
    **each("unispeech unispeech-sat data2vec-audio", "sounds", OF_WAV2VEC2),
    "sew": further("sounds", OF_WAV2VEC2 | {"squeeze_factor": 2}),
    **each("blenderbot blenderbot-small plbart", "translator", OF_BART),
    "bert-generation": further("language model", SIZES | {"is_decoder": True}),
    "deberta": further(
        "encoder", SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 2}
    ),
    **each("clip metaclip_2 siglip", "images", {"vision_config": IMAGES, "text_config": SIZES}),
    "gemma3": further("encoder", {"text_config": PAIRED | TEXT | {"sliding_window": 4}, "vision_config": IMAGES}),
    **each("phi3 flint gpt_oss granite_swa granitemoe_swa beam laguna", "language model", MIXTURE),
    "phi4_multimodal": further(
        "language model",
        PAIRED
        | {"vision_config": IMAGES | {"crop_size": 16, "image_token_id": 3}}
        | {"audio_config": SIZES | {"num_blocks": 1, "ext_pw_out_channel": 32, "nemo_conv_channels": 32}},
    ),
    "stablelm": further("language model", SIZES | {"num_key_value_heads": 2, "qk_layernorm": True}),
    "dbrx": further(
        "language model",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 40,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        }
        | {"ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 2, "moe_top_k": 1, "hidden_size": 32}},
    ),
    "mpt": further(
        "language model", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 40, "expansion_ratio": 2}
    ),
    "bloom": further("language model", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": further("language model", SIZES | {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "openai-gpt": further("language model", OF_GPT2),
    "xglm": further("language model", {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48}),
    "mvp": further("translator", OF_BART),
    "umt5": further("translator", OF_T5),
    "t5gemma": further("translator", {"encoder": PAIRED | TEXT, "decoder": PAIRED | TEXT}),
    "moonshine": further(
        "speech",
        SIZES
        | {"encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4}
        | {"decoder_num_attention_heads": 4, "encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    ),
    "speech_to_text": further(
        "speech",
        OF_BART
        | {"input_feat_per_channel": 8, "conv_channels": 16, "num_conv_layers": 1, "conv_kernel_sizes": (3,)}
        | {"max_source_positions": 40, "max_target_positions": 40},
    ),
    "nllb-moe": further(
        "translator",
        OF_BART
        | {
            "num_experts": 2,
            "expert_capacity": 64,
            "encoder_sparse_step": 2,
            "decoder_layers": 2,
            "decoder_sparse_step": 2,
        },
    ),
    "switch_transformers": further(
        "translator",
        OF_T5
        | {"num_experts": 2, "expert_capacity": 64, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
    "cohere/norms": further("language model", PAIRED | {"use_qk_norm": True}),
}
ROWS |= {
    f"{name}/{what}": replace(ROWS[name], config=ROWS[name].config | options)
    for name, what, options in (
        ("afmoe", "grouped", {"num_key_value_heads": 2}),
        ("data2vec-vision", "own tables", {"use_relative_position_bias": True}),
        ("data2vec-vision", "shared table", {"use_shared_relative_position_bias": True}),
        ("falcon", "one key", {"new_decoder_architecture": False, "multi_query": True}),
        (
            "falcon",
            "alibi",
            {"new_decoder_architecture": False, "multi_query": False, "alibi": True, "num_kv_heads": 4},
        ),
        ("falcon", "alibi, eager", {"alibi": True, "attn_implementation": "eager"}),
        ("gemma4_text", "two widths", {"global_head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}),
        ("gpt_bigcode", "one key", {"multi_query": True}),
        ("gpt_oss", "as many rows as heads", {"num_attention_heads": 8}),
        ("laguna", "wide gate", {"gating": "per-element"}),
        ("layoutlmv3", "biases", {"has_relative_attention_bias": True, "has_spatial_attention_bias": True}),
        ("mvp", "prompts", {"use_prompt": True, "prompt_length": 3, "prompt_mid_dim": 8}),
        ("phi3", "eager", {"attn_implementation": "eager"}),
        ("stablelm", "no norms", {"qk_layernorm": False}),
    )
}


def family_of(name: str) -> str:
    return name.partition("/")[0]


def named(*kinds: str) -> list[str]:
    """The names of the rows of these kinds."""
    return [name for name, row in ROWS.items() if row.kind in kinds]


BY_HAND = [name for name, row in ROWS.items() if row.layout]
GENERATES_WRONG = "switch_transformers"  # its own generate fails, whatever its heads
GENERATORS = [name for name in BY_HAND if KINDS[ROWS[name].kind][1]]


def of_texts(name: str) -> bool:
    return ROWS[name].kind not in ("images", "sounds", "videos", "speech")


def auto_of(name: str, generates: bool = False) -> Any:
    """The Auto class of transformers that makes the model of a row, or the one that generates texts."""
    return getattr(transformers, f"AutoModelFor{KINDS[ROWS[name].kind][generates]}", transformers.AutoModel)


def make(name: str, auto: Any = None, **overrides: Any) -> Any:
    """The model of a row with random weights: attention far from uniform, so that heads differ."""
    texts = {"vocab_size": 120, "pad_token_id": 1} if of_texts(name) else {}
    config = AutoConfig.for_model(family_of(name), **{"num_labels": 3, **texts, **ROWS[name].config, **overrides})
    for part in filter(None, (getattr(config, key) for key in config.sub_configs)):
        part.num_labels = 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = getattr(transformers, KINDS[ROWS[name].kind][0], None)  # of a class that no Auto class gives
        model = (own(config) if own else (auto or auto_of(name)).from_config(config)).float()
        for path, parameter in model.named_parameters():
            if path.endswith("bias") or (parameter.dim() == 2 and "embed" not in path):
                nn.init.normal_(parameter, std=0.2)
            elif parameter.dim() == 1:  # weights of norms
                parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
    return model.eval()


def signal_shape(config: Any) -> tuple[int, ...]:
    """The axes of an image, a video, a spectrogram or a sound, as its model takes them."""
    config = getattr(config, "vision_config", config)
    if hasattr(config, "image_size"):
        frames = (config.num_frames,) if hasattr(config, "num_frames") else ()
        return (*frames, config.num_channels, config.image_size, config.image_size)
    if hasattr(config, "input_feat_per_channel"):
        return (24, config.input_feat_per_channel)
    if hasattr(config, "max_source_positions"):
        return (config.num_mel_bins, 2 * config.max_source_positions)
    if hasattr(config, "num_mel_bins"):
        return (config.max_length, config.num_mel_bins)
    return (320,) if hasattr(config, "conv_dim") else (1600,)


def batches_of(model: Any, count: int = 2, size: int = 4, name: str = "") -> list[dict[str, Tensor]]:
    """Labelled batches for a model, or the one of a name: texts of 2 to 11 tokens, or signals; the last is smaller.

    name: of the model's row, where its family alone does not say it.
    """
    name = name or (model if isinstance(model, str) else model.config.model_type)
    model, generator = make(model) if isinstance(model, str) else model, torch.Generator().manual_seed(1)
    kind, classes = ROWS[name].kind, torch.tensor([0, 1, 2, 0] * size)
    batches, targets = ragged_batches(count, size, longest=11), ragged_batches(count, size, seed=2, longest=7)
    for batch, target in zip(batches, targets, strict=True):
        ids, real = batch["input_ids"], batch["attention_mask"]
        n = len(ids)
        if not of_texts(name):
            batch.clear()
            batch[model.main_input_name] = torch.randn(n, *signal_shape(model.config), generator=generator)
            batch["labels"] = classes[:n]
        if kind == "pixels":
            del batch["attention_mask"]
        if kind == "questions":
            batch |= {"start_positions": real.sum(1) // 3, "end_positions": real.sum(1) - 1}
            del batch["labels"]
        if name == "luke/entities":
            spans = torch.tensor([[0, -1], [0, 1]]).expand(n, -1, -1)
            batch |= {"entity_ids": torch.tensor([[1, 2]] * n), "entity_attention_mask": torch.ones(n, 2).long()}
            batch["entity_position_ids"] = spans
        if kind in ("encoder-decoder", "translator"):  # classifiers read the token that ends a text
            ids[ids == 2] = 9
            ids[torch.arange(n), real.sum(1) - 1] = 2
        if kind in ("translator", "speech"):
            ids, real = target["input_ids"], target["attention_mask"]
            first = torch.full((n, 1), getattr(model.config, "decoder_start_token_id", 1))
            batch["decoder_input_ids"] = torch.cat([first, ids[:, :-1]], 1)
            batch["decoder_attention_mask"] = real
        if kind in ("translator", "speech", "language model"):
            batch["labels"] = ids.masked_fill(real == 0, -100)
    return batches


def random_masks(shape: tuple[int, int]) -> tuple[Tensor, ...]:
    """Random head masks: of layers that are empty, whole and cut to one head, and of layers that are all cut."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.5
    mask[0] = False
    mask[1:2] = True
    if shape[0] > 2:
        mask[-1] = False
        mask[2, 0] = True
        mask[2, 1:] = False
    cut = torch.arange(shape[0])[:, None] % 2 == torch.arange(shape[1]) % 2
    return (mask, cut) if shape[1] > 1 else (mask,)
