"""The families of models that are known: for each, one row of module names."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Family:
    """Module names of one family: ``blocks`` from the base model, the others from each block.

    ``*`` stands for any index, so ``encoder.layer.*.attention`` names the attention block of every layer. A model with
    a decoder has three names for its blocks: encoder self-attention, decoder self-attention, cross-attention; those
    that a model lacks are left out. query, key and value may name one module that holds all three; ``together`` says
    how their rows lie in it.

    feed_forward: (from the base model) the projection at the end of each feed-forward block; "" for none.
    also: (from each block) further projections with rows by head, such as DeBERTa's of positions. A model whose
    configuration leaves one out does without it.
    together: a module that holds query, key and value has the rows of one head together; otherwise all queries come
    first, then all keys, then all values.
    per_head: an argument of the attention module's forward that counts heads, such as MPNet's bias by position, or
    several: on the second axis, (text, head, ...), or on the first of three, (text * head, ...), as ALiBi does.
    by_head: (from each block) parameters and lists of modules with entries by head, each with the axis, such as the
    sinks of GPT-OSS. A model whose configuration leaves one out does without it.
    shared_bias: where the attention module returns its output, the ``per_head`` argument for the next layer, and the
    weights: the name of the table that only the first layer has, and of the method that makes the argument from it,
    for (query length, key length, device, past_seen_tokens).
    skippable: the attention module (the one that owns query) returns a tuple of its output and the attention weights
    (with a shared bias between them), so it can be skipped when it has no head left.
    listed: it returns a list of them.
    norm: (from each block) the normalisation of the residual sum, for a skippable module that itself ends in one.
    classifier: the class of transformers that reads the first token of each text alone, so that padding behind a text
    changes nothing.
    causal: the causal language model of transformers whose layers take each token on its own, but for softmax attention
    to the tokens before it by transformers' own functions. Positions come with the embeddings, or as
    ``position_embeddings`` (cos, sin) of rotary attention. So its texts may be packed.
    pooled: the classifier of transformers whose layers are as those of ``causal``, but for attention to all tokens of
    the text within ``sliding_window``, and which pools tokens by the attention mask, or reads the first.
    tried: the row holds for some configurations alone, so models are tried as those with a row of ``register`` are.
    since: the first version of transformers, "major.minor", whose modules are as the row says. ``save_pruned`` writes
    it into folders, whose modelling file refuses an older one.
    """

    blocks: str | tuple[str, ...]
    query: str
    key: str
    value: str
    output: str
    feed_forward: str | tuple[str, ...] = ""
    also: tuple[str, ...] = ()
    per_head: str | tuple[str, ...] = ""
    skippable: bool = False
    norm: str = ""
    classifier: str = ""
    causal: str = ""
    pooled: str = ""
    together: bool = False
    shared_bias: tuple[str, ...] = ()
    by_head: tuple[tuple[str, int], ...] = ()
    listed: bool = False
    tried: bool = False
    since: str = "4.57"

    @property
    def last_token(self) -> str:
        """The classifier on the layers of ``causal``: it reads the last token of each text that is not padding."""
        return re.sub("(ForCausalLM|LMHeadModel)$", "ForSequenceClassification", self.causal)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of all projections but the output projection, each module once."""
        return tuple(dict.fromkeys((self.query, self.key, self.value, *self.also)))


def _named(names: str) -> dict[str, Any]:
    """The names of query, key, value and output projection."""
    return dict(zip(("query", "key", "value", "output"), names.split(), strict=True))


_BERT_LIKE = Family(
    "encoder.layer.*.attention",
    **_named("self.query self.key self.value output.dense"),
    feed_forward="encoder.layer.*.output.dense",
    skippable=True,
)


_VIT_LIKE = Family(
    "layers.*.attention", "q_proj", "k_proj", "v_proj", "o_proj", "layers.*.mlp.fc2", skippable=True, since="5.10"
)


_WAV2VEC2_LIKE = replace(
    _VIT_LIKE,
    blocks="encoder.layers.*.attention",
    output="out_proj",
    feed_forward="encoder.layers.*.feed_forward.output_dense",
    since="5.16",
)


_LLAMA_LIKE = Family(
    "layers.*.self_attn", "q_proj", "k_proj", "v_proj", "o_proj", "layers.*.mlp.down_proj", skippable=True
)


_OPT_LIKE = replace(
    _LLAMA_LIKE, blocks="decoder.layers.*.self_attn", output="out_proj", feed_forward="decoder.layers.*.fc2"
)


_BART_LIKE = replace(
    _OPT_LIKE,
    blocks=("encoder.layers.*.self_attn", "decoder.layers.*.self_attn", "decoder.layers.*.encoder_attn"),
    feed_forward=("encoder.layers.*.fc2", "decoder.layers.*.fc2"),
)


_T5_LIKE = Family(
    (
        "encoder.block.*.layer.0.SelfAttention",
        "decoder.block.*.layer.0.SelfAttention",
        "decoder.block.*.layer.1.EncDecAttention",
    ),
    **_named("q k v o"),
    feed_forward=("encoder.block.*.layer.1.DenseReluDense.wo", "decoder.block.*.layer.2.DenseReluDense.wo"),
    per_head="position_bias",
    skippable=True,
    shared_bias=("relative_attention_bias", "compute_bias"),
    since="5.15",  # up to 5.14 a bias that is given takes the place of the mask
)


_GPTJ_LIKE = Family("h.*.attn", "q_proj", "k_proj", "v_proj", "out_proj", "h.*.mlp.fc_out", skippable=True)


_EXPERTS = replace(_LLAMA_LIKE, feed_forward="")
_DINOV2_LIKE = replace(_VIT_LIKE, blocks="encoder.layer.*.attention", feed_forward="encoder.layer.*.mlp.fc2")
_GPT2_LIKE = Family("h.*.attn", "c_attn", "c_attn", "c_attn", "c_proj", "h.*.mlp.c_proj", skippable=True)
_FUSED = _named("query_key_value query_key_value query_key_value dense")
_GPT_NEOX_LIKE = Family(
    "layers.*.attention", **_FUSED, feed_forward="layers.*.mlp.dense_4h_to_h", skippable=True, together=True
)
_BLOOM_LIKE = replace(_GPT_NEOX_LIKE, blocks="h.*.self_attention", feed_forward="h.*.mlp.dense_4h_to_h")
_MPT_LIKE = Family("blocks.*.attn", "Wqkv", "Wqkv", "Wqkv", "out_proj", skippable=True)
_VIDEOMAE_LIKE = replace(_BERT_LIKE, **_named("attention.query attention.key attention.value output.dense"))
_OF_CANINE = ("initial_char_encoder", "encoder", "final_char_encoder")


def _alike(names: str, row: Family, since: str = "5.23", **changes: Any) -> dict[str, Family]:
    """The rows of families that differ by nothing: ``row`` with ``changes``."""
    return dict.fromkeys(names.split(), replace(row, since=since, **changes))


FAMILIES: dict[str, Family] = {
    "bert": replace(_BERT_LIKE, classifier="BertForSequenceClassification"),
    "roberta": replace(_BERT_LIKE, classifier="RobertaForSequenceClassification"),
    "xlm-roberta": replace(_BERT_LIKE, classifier="XLMRobertaForSequenceClassification"),
    "camembert": replace(_BERT_LIKE, classifier="CamembertForSequenceClassification"),
    "electra": replace(_BERT_LIKE, classifier="ElectraForSequenceClassification"),
    "albert": Family(
        "encoder.albert_layer_groups.*.albert_layers.*.attention",
        **_named("query key value dense"),
        feed_forward="encoder.albert_layer_groups.*.albert_layers.*.ffn_output",
        skippable=True,
        norm="LayerNorm",
        classifier="AlbertForSequenceClassification",
    ),
    "distilbert": Family(
        "transformer.layer.*.attention",
        **_named("q_lin k_lin v_lin out_lin"),
        feed_forward="transformer.layer.*.ffn.lin2",
        skippable=True,
        since="5.0",
        classifier="DistilBertForSequenceClassification",
    ),
    "deberta-v2": replace(
        _BERT_LIKE,
        **_named("self.query_proj self.key_proj self.value_proj output.dense"),
        also=("self.pos_key_proj", "self.pos_query_proj"),
        classifier="DebertaV2ForSequenceClassification",
    ),
    "mpnet": replace(
        _BERT_LIKE,
        **_named("attn.q attn.k attn.v attn.o"),
        per_head="position_bias",
        classifier="MPNetForSequenceClassification",
    ),
    **_alike("data2vec-text ernie rembert roformer", _BERT_LIKE, since="4.57"),
    "vit": _VIT_LIKE,
    "deit": _VIT_LIKE,
    "beit": replace(_VIT_LIKE, per_head="attention_mask"),  # its bias by position comes as a mask
    "dinov2": replace(_DINOV2_LIKE, since="5.19"),
    "audio-spectrogram-transformer": _VIT_LIKE,
    "wav2vec2": _WAV2VEC2_LIKE,
    "hubert": _WAV2VEC2_LIKE,
    "gpt2": replace(_GPT2_LIKE, causal="GPT2LMHeadModel"),
    "gpt_neox": replace(_GPT_NEOX_LIKE, causal="GPTNeoXForCausalLM"),
    "gptj": _GPTJ_LIKE,
    "gpt_neo": replace(_GPTJ_LIKE, blocks="h.*.attn.attention", feed_forward="h.*.mlp.c_proj"),
    "opt": replace(_OPT_LIKE, causal="OPTForCausalLM"),
    "llama": replace(_LLAMA_LIKE, causal="LlamaForCausalLM"),
    "mistral": replace(_LLAMA_LIKE, causal="MistralForCausalLM"),
    "mixtral": _EXPERTS,
    "qwen2": replace(_LLAMA_LIKE, causal="Qwen2ForCausalLM"),
    "qwen3": replace(_LLAMA_LIKE, causal="Qwen3ForCausalLM"),
    "qwen3_moe": _EXPERTS,
    "gemma": replace(_LLAMA_LIKE, causal="GemmaForCausalLM"),
    "gemma2": _LLAMA_LIKE,
    "gemma3_text": _LLAMA_LIKE,
    "smollm3": replace(_LLAMA_LIKE, causal="SmolLM3ForCausalLM"),
    "granite": replace(_LLAMA_LIKE, causal="GraniteForCausalLM"),
    "cohere": replace(_LLAMA_LIKE, causal="CohereForCausalLM", by_head=(("q_norm.weight", 0), ("k_norm.weight", 0))),
    "starcoder2": replace(_LLAMA_LIKE, feed_forward="layers.*.mlp.c_proj", causal="Starcoder2ForCausalLM"),
    "phi": replace(_LLAMA_LIKE, output="dense", feed_forward="layers.*.mlp.fc2", causal="PhiForCausalLM"),
    **_alike("eurobert nomic_bert", _LLAMA_LIKE, since="4.57"),
    "modernbert": Family(
        "layers.*.attn",
        **_named("Wqkv Wqkv Wqkv Wo"),
        feed_forward="layers.*.mlp.Wo",
        skippable=True,
        pooled="ModernBertForSequenceClassification",
    ),
    **_alike("t5 mt5", _T5_LIKE, since="5.15"),
    **_alike("bart mbart marian pegasus m2m_100 whisper", _BART_LIKE, since="4.57"),
    # Encoders of texts.
    **_alike("bert-generation esm layoutlm markuplm megatron-bert roberta-prelayernorm roc_bert splinter", _BERT_LIKE),
    **_alike("tapas visual_bert xlm-roberta-xl xmod", _BERT_LIKE),
    **_alike("big_bird", _BERT_LIKE, tried=True),  # not with block-sparse attention
    **_alike("layoutlmv3", _BERT_LIKE, per_head=("rel_pos", "rel_2d_pos")),
    **_alike("luke", _BERT_LIKE, also=("self.w2e_query", "self.e2w_query", "self.e2e_query"), skippable=False),
    **_alike("mobilebert", _BERT_LIKE, skippable=False),
    **_alike(
        "canine",
        _BERT_LIKE,
        blocks=tuple(f"{part}.layer.*.attention" for part in _OF_CANINE),
        feed_forward=tuple(f"{part}.layer.*.output.dense" for part in _OF_CANINE),
    ),
    **_alike(
        "deberta",
        replace(_BERT_LIKE, **_named("self.in_proj self.in_proj self.in_proj output.dense"), together=True),
        also=("self.pos_proj", "self.pos_q_proj"),
        by_head=(("self.q_bias", 0), ("self.v_bias", 0)),
    ),
    **_alike("gte ultrabert", _LLAMA_LIKE),
    **_alike("jina_embeddings_v3 nanochat", _LLAMA_LIKE, feed_forward="layers.*.mlp.fc2"),
    **_alike(
        "flaubert xlm", Family("attentions.*", "q_lin", "k_lin", "v_lin", "out_lin", "ffns.*.lin2", skippable=True)
    ),
    # Decoders.
    **_alike("apertus arcee cohere2 cwm ernie4_5 exaone4 gemma4_text glm glm4 helium hunyuan_v1_dense", _LLAMA_LIKE),
    **_alike("hyperclovax internlm3 iquestcoder jais2 ministral ministral3 nemotron olmo", _LLAMA_LIKE),
    **_alike("seed_oss vaultgemma", _LLAMA_LIKE),
    **_alike("stablelm", _LLAMA_LIKE, by_head=(("q_layernorm.norms", 0), ("k_layernorm.norms", 0))),
    **_alike("phi3 phi4_multimodal", _LLAMA_LIKE, query="qkv_proj", key="qkv_proj", value="qkv_proj"),
    **_alike("biogpt xglm", _LLAMA_LIKE, output="out_proj", feed_forward="layers.*.fc2"),
    **_alike("modernbert-decoder", _LLAMA_LIKE, blocks="layers.*.attn", output="Wo", feed_forward="layers.*.mlp.Wo"),
    **_alike(
        "gemma3",
        _LLAMA_LIKE,
        blocks="language_model.layers.*.self_attn",
        feed_forward="language_model.layers.*.mlp.down_proj",
    ),
    **_alike("imagegpt", _GPT2_LIKE),
    **_alike("openai-gpt", _GPT2_LIKE, listed=True),
    **_alike("gpt_bigcode", _GPT2_LIKE, together=True),
    **_alike("persimmon", _GPT_NEOX_LIKE, blocks="layers.*.self_attn"),
    **_alike("bloom", _BLOOM_LIKE, per_head="alibi", tried=True),  # not with slow_but_exact in several parts
    **_alike("falcon", _BLOOM_LIKE, per_head=("alibi", "attention_mask")),
    **_alike("mpt", _MPT_LIKE, feed_forward="blocks.*.ffn.down_proj", per_head="position_bias"),
    **_alike("dbrx", _MPT_LIKE, blocks="blocks.*.norm_attn_norm.attn"),
    **_alike("ctrl", Family("h.*.multi_head_attention", "Wq", "Wk", "Wv", "dense", "h.*.ffn.2")),
    # Decoders with experts or layers of other kinds: no module ends a feed-forward block, or not in each layer.
    **_alike("aria_text cohere2_moe ernie4_5_moe exaone_moe glm4_moe granitemoe", _EXPERTS),
    **_alike("bamba falcon_h1", _EXPERTS, feed_forward="layers.*.feed_forward.down_proj"),
    **_alike("granitemoehybrid granitemoeshared hunyuan_v1_moe hy_v3 jamba kolibri1 mellum", _EXPERTS),
    **_alike("minimax_m3_vl_text phimoe qwen2_moe solar_open", _EXPERTS),
    **_alike("gpt_oss granitemoe_swa", _EXPERTS, by_head=(("sinks", 0),)),
    **_alike("flint granite_swa", _LLAMA_LIKE, by_head=(("sinks", 0),)),
    **_alike("beam", _LLAMA_LIKE, also=("gate_proj",), by_head=(("gate_bias", 0),)),
    **_alike("afmoe", _EXPERTS, also=("gate_proj",)),
    **_alike("laguna", _EXPERTS, also=("g_proj",)),
    **_alike("lfm2", _EXPERTS, output="out_proj", feed_forward="layers.*.feed_forward.w2"),
    **_alike("llama4_text", _EXPERTS, blocks="model.layers.*.self_attn"),
    # Images and sounds.
    **_alike("ijepa vit_msn", _VIT_LIKE),
    **_alike("dinov2_with_registers", _DINOV2_LIKE),
    **_alike(
        "clip metaclip_2 siglip",
        replace(_VIT_LIKE, output="out_proj"),
        blocks="vision_model.encoder.layers.*.self_attn",
        feed_forward="vision_model.encoder.layers.*.mlp.fc2",
    ),
    **_alike("videomae", _VIDEOMAE_LIKE, skippable=False),
    **_alike(
        "data2vec-vision",
        _VIDEOMAE_LIKE,
        per_head="relative_position_bias",
        by_head=(("attention.relative_position_bias.relative_position_bias_table", 1),),
    ),
    **_alike("data2vec-audio sew unispeech unispeech-sat", _WAV2VEC2_LIKE),
    # Encoders with a decoder.
    **_alike("blenderbot blenderbot-small plbart speech_to_text", _BART_LIKE),
    **_alike("mvp", _BART_LIKE, per_head="attn_prompt"),
    **_alike(
        "nllb-moe", _BART_LIKE, blocks=(*_BART_LIKE.blocks[:2], "decoder.layers.*.cross_attention"), feed_forward=""
    ),
    **_alike(
        "moonshine",
        _EXPERTS,
        blocks=_BART_LIKE.blocks,
        feed_forward=("encoder.layers.*.mlp.fc2", "decoder.layers.*.mlp.fc2"),
    ),
    **_alike(
        "t5gemma",
        _EXPERTS,
        blocks=(*_BART_LIKE.blocks[:2], "decoder.layers.*.cross_attn"),
        feed_forward=("encoder.layers.*.mlp.down_proj", "decoder.layers.*.mlp.down_proj"),
    ),
    **_alike("switch_transformers", _T5_LIKE, feed_forward=""),
    **_alike("umt5", _T5_LIKE, per_head="", shared_bias=(), by_head=(("relative_attention_bias.weight", 1),)),
}
