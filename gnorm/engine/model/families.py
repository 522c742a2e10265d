"""The families of models that are known: for each, one row of module names."""

from __future__ import annotations

import re
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
    per_head: an argument of the attention module's forward whose second axis counts heads, such as MPNet's bias by
    position.
    shared_bias: where the attention module returns its output, the ``per_head`` argument for the next layer, and the
    weights: the name of the table that only the first layer has, and of the method that makes the argument from it,
    for (query length, key length, device, past_seen_tokens).
    skippable: the attention module (the one that owns query) returns a tuple of its output and the attention weights
    (with a shared bias between them), so it can be skipped when it has no head left.
    norm: (from each block) the normalisation of the residual sum, for a skippable module that itself ends in one.
    classifier: the class of transformers that reads the first token of each text alone, so that padding behind a text
    changes nothing.
    causal: the causal language model of transformers whose layers take each token on its own, but for softmax attention
    to the tokens before it by transformers' own functions. Positions come with the embeddings, or as
    ``position_embeddings`` (cos, sin) of rotary attention. So its texts may be packed.
    pooled: the classifier of transformers whose layers are as those of ``causal``, but for attention to all tokens of
    the text within ``sliding_window``, and which pools tokens by the attention mask, or reads the first.
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
    per_head: str = ""
    skippable: bool = False
    norm: str = ""
    classifier: str = ""
    causal: str = ""
    pooled: str = ""
    together: bool = False
    shared_bias: tuple[str, ...] = ()
    since: str = "4.57"

    @property
    def last_token(self) -> str:
        """The classifier on the layers of ``causal``: it reads the last token of each text that is no padding."""
        return re.sub("(ForCausalLM|LMHeadModel)$", "ForSequenceClassification", self.causal)

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
    "cohere": replace(_LLAMA_LIKE, causal="CohereForCausalLM"),
    "starcoder2": replace(_LLAMA_LIKE, feed_forward="layers.*.mlp.c_proj", causal="Starcoder2ForCausalLM"),
    "phi": replace(_LLAMA_LIKE, output="dense", feed_forward="layers.*.mlp.fc2", causal="PhiForCausalLM"),
    "eurobert": _LLAMA_LIKE,
    "nomic_bert": _LLAMA_LIKE,
    "modernbert": Family(
        "layers.*.attn",
        "Wqkv",
        "Wqkv",
        "Wqkv",
        "Wo",
        "layers.*.mlp.Wo",
        skippable=True,
        pooled="ModernBertForSequenceClassification",
    ),
    "t5": _T5_LIKE,
    "mt5": _T5_LIKE,
    "bart": _BART_LIKE,
    "mbart": _BART_LIKE,
    "marian": _BART_LIKE,
    "pegasus": _BART_LIKE,
    "m2m_100": _BART_LIKE,
    "whisper": _BART_LIKE,
}
