"""Tiny models of families: model_type -> (Auto class, options of its configuration, what it reads but token ids)."""

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {"vocab_size": 120, "pad_token_id": 1, "max_position_embeddings": 40}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = (
    GROUPED
    | {"num_local_experts": 2, "num_experts": 2, "n_routed_experts": 2, "moe_num_experts": 2, "n_group": 1}
    | {"num_experts_per_tok": 1, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "topk_group": 1}
    | {"decoder_sparse_step": 1, "first_k_dense_replace": 1, "moe_topk": 1, "moe_k": 1, "n_shared_experts": 1}
)
MAMBA = GROUPED | {"mamba_d_state": 4, "mamba_d_conv": 2, "mamba_expand": 2, "mamba_n_heads": 4, "mamba_d_head": 16}
OF_BART = (
    {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
    | {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "eos_token_id": 2}
    | {"forced_eos_token_id": None, "decoder_start_token_id": 1, "bos_token_id": 0}
)
OF_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "bos_token_id": 0, "eos_token_id": 2}
OF_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 1,
}
OF_XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "n_words": 120, "max_position_embeddings": 40, "pad_index": 1}
IMAGE = SIZES | {"image_size": 16, "patch_size": 4}
SOUND = (
    SIZES
    | {"conv_dim": (8, 8), "conv_kernel": (4, 4), "conv_stride": (4, 4), "num_conv_pos_embeddings": 4}
    | {"num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16, "vocab_size": 32}
)
CLASSIFIER, CAUSAL, SEQ2SEQ = "SequenceClassification", "CausalLM", "Seq2SeqLM"
PICTURES, SOUNDS = "ImageClassification", "AudioClassification"


def _each(names, auto, options, *inputs):
    return dict.fromkeys(names.split(), (auto, options, *inputs))


MODELS = {
    **_each(
        "esm layoutlm markuplm megatron-bert roberta-prelayernorm roc_bert tapas xlm-roberta-xl", CLASSIFIER, SIZES
    ),
    "esm": (CLASSIFIER, SIZES | {"position_embedding_type": "rotary", "mask_token_id": 5}),
    "roc_bert": (
        CLASSIFIER,
        SIZES
        | {"pronunciation_vocab_size": 120, "shape_vocab_size": 120, "pronunciation_embed_dim": 8}
        | {"shape_embed_dim": 8},
    ),
    "xmod": (CLASSIFIER, SIZES | {"languages": ("en_XX",), "default_language": "en_XX"}),
    "splinter": ("QuestionAnswering", SIZES),
    "visual_bert": ("VisualBertForVisualReasoning", SIZES | {"visual_embedding_dim": 8}),
    "layoutlmv3": (
        CLASSIFIER,
        SIZES
        | {"has_relative_attention_bias": False, "has_spatial_attention_bias": False, "input_size": 16}
        | {"patch_size": 8, "coordinate_size": 4, "shape_size": 8, "max_2d_position_embeddings": 32},
    ),
    "big_bird": (CLASSIFIER, SIZES | {"attention_type": "original_full"}),
    "luke": (CLASSIFIER, SIZES | {"entity_vocab_size": 20, "entity_emb_size": 8}),
    "mobilebert": (
        CLASSIFIER,
        SIZES
        | {"true_hidden_size": 16, "intra_bottleneck_size": 16, "embedding_size": 16, "num_feedforward_networks": 2},
    ),
    "canine": (CLASSIFIER, SIZES | {"num_hash_buckets": 16, "downsampling_rate": 2, "local_transformer_stride": 8}),
    **_each("gte jina_embeddings_v3 ultrabert", CLASSIFIER, SIZES),
    **_each(
        "apertus arcee cohere2 cwm ernie4_5 exaone4 glm glm4 helium hunyuan_v1_dense hyperclovax internlm3 iquestcoder "
        "jais2 ministral ministral3 nanochat nemotron olmo seed_oss vaultgemma",
        CAUSAL,
        GROUPED,
    ),
    "gemma4_text": (
        CAUSAL,
        GROUPED
        | {"global_head_dim": 8, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0}
        | {"vocab_size_per_layer_input": 100},
    ),
    **_each(
        "aria_text cohere2_moe ernie4_5_moe exaone_moe glm4_moe granitemoe granitemoeshared hunyuan_v1_moe hy_v3 "
        "kolibri1 mellum minimax_m3_vl_text phimoe qwen2_moe solar_open llama4_text",
        CAUSAL,
        EXPERTS,
    ),
    "afmoe": (CAUSAL, EXPERTS | {"num_key_value_heads": 4}),
    "jamba": (CAUSAL, EXPERTS | MAMBA | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}),
    "bamba": (CAUSAL, MAMBA | {"attn_layer_indices": [1]}),
    "falcon_h1": (CAUSAL, MAMBA | {"mamba_d_ssm": 64}),
    "granitemoehybrid": (CAUSAL, EXPERTS | MAMBA | {"layer_types": ["mamba", "attention"]}),
    "lfm2": (CAUSAL, GROUPED | {"layer_types": ["conv", "full_attention"]}),
    "biogpt": (CAUSAL, SIZES),
    "persimmon": (CAUSAL, SIZES),
    "modernbert-decoder": (
        CAUSAL,
        SIZES | {"local_attention": 8, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 3, "sep_token_id": 4},
    ),
    "ctrl": (CAUSAL, {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "n_positions": 40}),
    **_each("xlm flaubert", CLASSIFIER, OF_XLM),
    "imagegpt": (PICTURES, OF_GPT2 | {"vocab_size": 120}, "input_ids"),
    "gpt_bigcode": (CAUSAL, OF_GPT2 | {"multi_query": False}),
    **_each("dinov2_with_registers ijepa vit_msn data2vec-vision", PICTURES, IMAGE, "pixel_values"),
    "videomae": ("VideoClassification", IMAGE | {"num_frames": 4, "tubelet_size": 2}, "video"),
    **_each("unispeech unispeech-sat data2vec-audio", SOUNDS, SOUND, "input_values"),
    "sew": (SOUNDS, SOUND | {"squeeze_factor": 2}, "input_values"),
    **_each("blenderbot blenderbot-small plbart", SEQ2SEQ, OF_BART),
    "bert-generation": (CAUSAL, SIZES | {"is_decoder": True}),
    "deberta": (CLASSIFIER, SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 2}),
    **_each("clip metaclip_2 siglip", PICTURES, {"vision_config": IMAGE, "text_config": SIZES}, "pixel_values"),
    "gemma3": (CLASSIFIER, {"text_config": GROUPED | TEXT | {"sliding_window": 4}, "vision_config": IMAGE}),
    **_each("phi3 flint gpt_oss granite_swa granitemoe_swa beam laguna", CAUSAL, EXPERTS),
    "phi4_multimodal": (
        CAUSAL,
        GROUPED
        | {"vision_config": IMAGE | {"crop_size": 16, "image_token_id": 3}}
        | {"audio_config": SIZES | {"num_blocks": 1, "ext_pw_out_channel": 32, "nemo_conv_channels": 32}},
    ),
    "stablelm": (CAUSAL, SIZES | {"num_key_value_heads": 2, "qk_layernorm": True}),
    "dbrx": (
        CAUSAL,
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 40,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        }
        | {"ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 2, "moe_top_k": 1, "hidden_size": 32}},
    ),
    "mpt": (CAUSAL, {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 40, "expansion_ratio": 2}),
    "bloom": (CAUSAL, {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": (CAUSAL, SIZES | {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "openai-gpt": (CAUSAL, OF_GPT2),
    "xglm": (CAUSAL, {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48}),
    "mvp": (SEQ2SEQ, OF_BART),
    "umt5": (SEQ2SEQ, OF_T5),
    "t5gemma": (SEQ2SEQ, {"encoder": GROUPED | TEXT, "decoder": GROUPED | TEXT}),
    "moonshine": (
        "SpeechSeq2Seq",
        SIZES
        | {"encoder_num_hidden_layers": 2, "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4}
        | {"decoder_num_attention_heads": 4, "encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
        "input_values",
    ),
    "speech_to_text": (
        "SpeechSeq2Seq",
        OF_BART
        | {"input_feat_per_channel": 8, "conv_channels": 16, "num_conv_layers": 1, "conv_kernel_sizes": (3,)}
        | {"max_source_positions": 40, "max_target_positions": 40},
        "speech",
    ),
    "nllb-moe": (
        SEQ2SEQ,
        OF_BART | {"num_experts": 2, "expert_capacity": 64, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
    ),
    "switch_transformers": (
        SEQ2SEQ,
        OF_T5
        | {"num_experts": 2, "expert_capacity": 64, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
}
# Variants that take another way: MODEL_TYPE/what differs.
MODELS |= {
    f"{name}/{what}": (MODELS[name][0], MODELS[name][1] | options, *MODELS[name][2:])
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
MODELS["luke/entities"] = (*MODELS["luke"], "entities")  # attention gives those of entities apart
MODELS["cohere/norms"] = (CAUSAL, GROUPED | {"use_qk_norm": True})
