"""The families of models that are known: for each, one row of module names."""

from __future__ import annotations

from dataclasses import dataclass, replace


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
    several: on its second axis, (text, head, ...), or on its first one of three, (text * head, ...), as ALiBi does.
    by_head: (from each block) parameters and lists of modules that have entries by head, each with the axis, such as
    GPT-OSS's sinks. A model whose configuration leaves one out does without it.
    config_counts: what the attention module's forward reads in its configuration that counts heads, as Phi-3's does.
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
    tried: the row holds for some configurations alone, so each model is tried as one with a row of register is.
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
    together: bool = False
    shared_bias: tuple[str, ...] = ()
    by_head: tuple[tuple[str, int], ...] = ()
    config_counts: tuple[str, ...] = ()
    listed: bool = False
    tried: bool = False
    since: str = "4.57"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of all projections but the output projection, each module once."""
        return tuple(dict.fromkeys((self.query, self.key, self.value, *self.also)))


_BERT_LIKE = Family(
    "encoder.layer.*.attention",
    "self.query",
    "self.key",
    "self.value",
    "output.dense",
    "encoder.layer.*.output.dense",
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
    "q",
    "k",
    "v",
    "o",
    ("encoder.block.*.layer.1.DenseReluDense.wo", "decoder.block.*.layer.2.DenseReluDense.wo"),
    per_head="position_bias",
    skippable=True,
    shared_bias=("relative_attention_bias", "compute_bias"),
    since="5.15",  # up to 5.14 a bias that is given takes the place of the mask
)


_GPTJ_LIKE = Family("h.*.attn", "q_proj", "k_proj", "v_proj", "out_proj", "h.*.mlp.fc_out", skippable=True)


_GPT2_LIKE = Family("h.*.attn", "c_attn", "c_attn", "c_attn", "c_proj", "h.*.mlp.c_proj", skippable=True)
_GPT_NEOX_LIKE = Family(
    "layers.*.attention",
    "query_key_value",
    "query_key_value",
    "query_key_value",
    "dense",
    "layers.*.mlp.dense_4h_to_h",
    skippable=True,
    together=True,
)
_BLENDERBOT_LIKE = replace(_BART_LIKE, since="5.23")
_BLOOM_LIKE = replace(_GPT_NEOX_LIKE, blocks="h.*.self_attention", feed_forward="h.*.mlp.dense_4h_to_h", since="5.23")
_DINO_LIKE = replace(_VIT_LIKE, blocks="encoder.layer.*.attention", feed_forward="encoder.layer.*.mlp.fc2")
_OLMO_LIKE = replace(_LLAMA_LIKE, since="5.23")
_EXPERTS = replace(_OLMO_LIKE, feed_forward="")  # they are no modules, or not of every layer
_T5GEMMA_LIKE = replace(
    _EXPERTS, blocks=("encoder.layers.*.self_attn", "decoder.layers.*.self_attn", "decoder.layers.*.cross_attn")
)
_CLIP_LIKE = replace(
    _VIT_LIKE,
    blocks="vision_model.encoder.layers.*.self_attn",
    output="out_proj",
    feed_forward="vision_model.encoder.layers.*.mlp.fc2",
    since="5.23",
)
_VIDEOMAE_LIKE = replace(
    _BERT_LIKE, query="attention.query", key="attention.key", value="attention.value", skippable=False, since="5.23"
)
_XLM_LIKE = Family("attentions.*", "q_lin", "k_lin", "v_lin", "out_lin", "ffns.*.lin2", skippable=True, since="5.23")


FAMILIES: dict[str, Family] = {
    "bert": replace(_BERT_LIKE, classifier="BertForSequenceClassification"),
    "roberta": replace(_BERT_LIKE, classifier="RobertaForSequenceClassification"),
    "xlm-roberta": replace(_BERT_LIKE, classifier="XLMRobertaForSequenceClassification"),
    "camembert": replace(_BERT_LIKE, classifier="CamembertForSequenceClassification"),
    "electra": replace(_BERT_LIKE, classifier="ElectraForSequenceClassification"),
    "albert": Family(
        "encoder.albert_layer_groups.*.albert_layers.*.attention",
        "query",
        "key",
        "value",
        "dense",
        "encoder.albert_layer_groups.*.albert_layers.*.ffn_output",
        skippable=True,
        norm="LayerNorm",
        classifier="AlbertForSequenceClassification",
    ),
    "distilbert": Family(
        "transformer.layer.*.attention",
        "q_lin",
        "k_lin",
        "v_lin",
        "out_lin",
        "transformer.layer.*.ffn.lin2",
        skippable=True,
        since="5.0",
        classifier="DistilBertForSequenceClassification",
    ),
    "deberta-v2": Family(
        "encoder.layer.*.attention",
        "self.query_proj",
        "self.key_proj",
        "self.value_proj",
        "output.dense",
        "encoder.layer.*.output.dense",
        also=("self.pos_key_proj", "self.pos_query_proj"),
        skippable=True,
        classifier="DebertaV2ForSequenceClassification",
    ),
    "mpnet": Family(
        "encoder.layer.*.attention",
        "attn.q",
        "attn.k",
        "attn.v",
        "attn.o",
        "encoder.layer.*.output.dense",
        per_head="position_bias",
        skippable=True,
        classifier="MPNetForSequenceClassification",
    ),
    "data2vec-text": _BERT_LIKE,
    "ernie": _BERT_LIKE,
    "roformer": _BERT_LIKE,
    "rembert": _BERT_LIKE,
    "vit": _VIT_LIKE,
    "deit": _VIT_LIKE,
    "beit": replace(_VIT_LIKE, per_head="attention_mask"),  # its bias by position comes as a mask
    "dinov2": replace(
        _VIT_LIKE, blocks="encoder.layer.*.attention", feed_forward="encoder.layer.*.mlp.fc2", since="5.19"
    ),
    "audio-spectrogram-transformer": _VIT_LIKE,
    "wav2vec2": _WAV2VEC2_LIKE,
    "hubert": _WAV2VEC2_LIKE,
    "gpt2": Family(
        "h.*.attn",
        "c_attn",
        "c_attn",
        "c_attn",
        "c_proj",
        "h.*.mlp.c_proj",
        skippable=True,
        causal="GPT2LMHeadModel",
    ),
    "gpt_neox": Family(
        "layers.*.attention",
        "query_key_value",
        "query_key_value",
        "query_key_value",
        "dense",
        "layers.*.mlp.dense_4h_to_h",
        skippable=True,
        together=True,
        causal="GPTNeoXForCausalLM",
    ),
    "gptj": _GPTJ_LIKE,
    "gpt_neo": replace(_GPTJ_LIKE, blocks="h.*.attn.attention", feed_forward="h.*.mlp.c_proj"),
    "opt": replace(_OPT_LIKE, causal="OPTForCausalLM"),
    "llama": replace(_LLAMA_LIKE, causal="LlamaForCausalLM"),
    "mistral": replace(_LLAMA_LIKE, causal="MistralForCausalLM"),
    "mixtral": replace(_LLAMA_LIKE, feed_forward=""),  # its experts are no modules
    "qwen2": replace(_LLAMA_LIKE, causal="Qwen2ForCausalLM"),
    "qwen3": replace(_LLAMA_LIKE, causal="Qwen3ForCausalLM"),
    "qwen3_moe": replace(_LLAMA_LIKE, feed_forward=""),
    "gemma": replace(_LLAMA_LIKE, causal="GemmaForCausalLM"),
    "gemma2": _LLAMA_LIKE,
    "gemma3_text": _LLAMA_LIKE,
    "smollm3": replace(_LLAMA_LIKE, causal="SmolLM3ForCausalLM"),
    "granite": replace(_LLAMA_LIKE, causal="GraniteForCausalLM"),
    "cohere": replace(_LLAMA_LIKE, causal="CohereForCausalLM", by_head=(("q_norm.weight", 0), ("k_norm.weight", 0))),
    "starcoder2": replace(_LLAMA_LIKE, feed_forward="layers.*.mlp.c_proj", causal="Starcoder2ForCausalLM"),
    "phi": replace(_LLAMA_LIKE, output="dense", feed_forward="layers.*.mlp.fc2", causal="PhiForCausalLM"),
    "eurobert": _LLAMA_LIKE,
    "nomic_bert": _LLAMA_LIKE,
    "modernbert": Family("layers.*.attn", "Wqkv", "Wqkv", "Wqkv", "Wo", "layers.*.mlp.Wo", skippable=True),
    "t5": _T5_LIKE,
    "mt5": _T5_LIKE,
    "bart": _BART_LIKE,
    "mbart": _BART_LIKE,
    "marian": _BART_LIKE,
    "pegasus": _BART_LIKE,
    "m2m_100": _BART_LIKE,
    "whisper": _BART_LIKE,
    # Rows that many share: of encoders, decoders, decoders with experts or other layers, and encoders with a decoder.
    **dict.fromkeys(
        "esm layoutlm markuplm megatron-bert roberta-prelayernorm roc_bert splinter tapas visual_bert xlm-roberta-xl "
        "xmod bert-generation".split(),
        replace(_BERT_LIKE, since="5.23"),
    ),
    **dict.fromkeys(
        "apertus arcee cohere2 cwm ernie4_5 exaone4 glm glm4 gte helium hunyuan_v1_dense hyperclovax internlm3 "
        "iquestcoder jais2 jina_embeddings_v3 ministral ministral3 nanochat nemotron olmo seed_oss ultrabert "
        "vaultgemma gemma4_text".split(),
        _OLMO_LIKE,
    ),
    **dict.fromkeys(
        "aria_text bamba cohere2_moe ernie4_5_moe exaone_moe falcon_h1 glm4_moe granitemoe granitemoehybrid "
        "granitemoeshared hunyuan_v1_moe hy_v3 jamba kolibri1 mellum minimax_m3_vl_text phimoe qwen2_moe "
        "solar_open".split(),
        _EXPERTS,
    ),
    **dict.fromkeys("blenderbot blenderbot-small plbart speech_to_text".split(), _BLENDERBOT_LIKE),
    **dict.fromkeys("unispeech unispeech-sat data2vec-audio sew".split(), replace(_WAV2VEC2_LIKE, since="5.23")),
    **dict.fromkeys("xlm flaubert".split(), _XLM_LIKE),
    **dict.fromkeys("clip metaclip_2 siglip".split(), _CLIP_LIKE),
    "videomae": _VIDEOMAE_LIKE,
    "data2vec-vision": replace(
        _VIDEOMAE_LIKE,
        skippable=True,
        per_head="relative_position_bias",
        by_head=(("attention.relative_position_bias.relative_position_bias_table", 1),),
    ),
    "big_bird": replace(_BERT_LIKE, tried=True, since="5.23"),  # not with block-sparse attention
    "layoutlmv3": replace(_BERT_LIKE, per_head=("rel_pos", "rel_2d_pos"), since="5.23"),
    "deberta": Family(
        "encoder.layer.*.attention",
        *["self.in_proj"] * 3,
        "output.dense",
        "encoder.layer.*.output.dense",
        also=("self.pos_proj", "self.pos_q_proj"),
        skippable=True,
        together=True,
        by_head=(("self.q_bias", 0), ("self.v_bias", 0)),
        since="5.23",
    ),
    "luke": replace(_BERT_LIKE, also=("self.w2e_query", "self.e2w_query", "self.e2e_query"), since="5.23"),
    "mobilebert": replace(_BERT_LIKE, skippable=False, since="5.23"),
    "canine": replace(
        _BERT_LIKE,
        blocks=tuple(f"{part}.layer.*.attention" for part in ("initial_char_encoder", "encoder", "final_char_encoder")),
        feed_forward=tuple(
            f"{part}.layer.*.output.dense" for part in ("initial_char_encoder", "encoder", "final_char_encoder")
        ),
        since="5.23",
    ),
    **dict.fromkeys("flint gpt_oss granite_swa granitemoe_swa".split(), replace(_EXPERTS, by_head=(("sinks", 0),))),
    "beam": replace(_EXPERTS, also=("gate_proj",), by_head=(("gate_bias", 0),)),
    "laguna": replace(_EXPERTS, also=("g_proj",)),
    "stablelm": replace(_OLMO_LIKE, by_head=(("q_layernorm.norms", 0), ("k_layernorm.norms", 0))),
    **dict.fromkeys(
        "phi3 phi4_multimodal".split(),
        replace(_OLMO_LIKE, query="qkv_proj", key="qkv_proj", value="qkv_proj", config_counts=("num_attention_heads",)),
    ),
    "dbrx": Family("blocks.*.norm_attn_norm.attn", "Wqkv", "Wqkv", "Wqkv", "out_proj", skippable=True, since="5.23"),
    "mpt": Family(
        "blocks.*.attn", "Wqkv", "Wqkv", "Wqkv", "out_proj", per_head="position_bias", skippable=True, since="5.23"
    ),
    "bloom": replace(_BLOOM_LIKE, per_head="alibi", tried=True),  # not with slow_but_exact in several parts
    "falcon": replace(_BLOOM_LIKE, per_head=("alibi", "attention_mask")),
    "openai-gpt": replace(_GPT2_LIKE, listed=True, since="5.23"),
    "gemma3": replace(
        _OLMO_LIKE,
        blocks="language_model.layers.*.self_attn",
        feed_forward="language_model.layers.*.mlp.down_proj",
    ),
    "llama4_text": replace(_EXPERTS, blocks="model.layers.*.self_attn"),
    "afmoe": replace(_EXPERTS, also=("gate_proj",)),
    "lfm2": replace(_EXPERTS, output="out_proj"),
    "xglm": replace(_OLMO_LIKE, output="out_proj", feed_forward="layers.*.fc2"),
    "biogpt": replace(_OLMO_LIKE, output="out_proj", feed_forward="layers.*.fc2"),
    "persimmon": replace(_GPT_NEOX_LIKE, blocks="layers.*.self_attn", causal="", since="5.23"),
    "modernbert-decoder": replace(
        _OLMO_LIKE, blocks="layers.*.attn", output="Wo", feed_forward="layers.*.mlp.Wo", skippable=False
    ),
    "ctrl": Family("h.*.multi_head_attention", "Wq", "Wk", "Wv", "dense", "h.*.ffn.2", since="5.23"),
    "imagegpt": replace(_GPT2_LIKE, since="5.23"),
    "gpt_bigcode": replace(_GPT2_LIKE, together=True, since="5.23"),
    "dinov2_with_registers": replace(_DINO_LIKE, since="5.23"),
    "ijepa": replace(_VIT_LIKE, since="5.23"),
    "vit_msn": replace(_VIT_LIKE, since="5.23"),
    "t5gemma": _T5GEMMA_LIKE,
    "moonshine": replace(
        _T5GEMMA_LIKE,
        blocks=("encoder.layers.*.self_attn", "decoder.layers.*.self_attn", "decoder.layers.*.encoder_attn"),
        config_counts=("num_key_value_heads",),
    ),
    "umt5": replace(
        _T5_LIKE, per_head="", shared_bias=(), by_head=(("relative_attention_bias.weight", 1),), since="5.23"
    ),
    "mvp": replace(_BLENDERBOT_LIKE, per_head="attn_prompt"),
    "nllb-moe": replace(
        _BLENDERBOT_LIKE,
        blocks=("encoder.layers.*.self_attn", "decoder.layers.*.self_attn", "decoder.layers.*.cross_attention"),
        feed_forward="",
    ),
    "switch_transformers": replace(_T5_LIKE, feed_forward="", since="5.23"),
}
