"""Fused, grouped and several kinds of attention, family by family: held against plain autograd and masks by hand."""

import copy

import pytest
import test_encoders
import torch
from conftest import ragged_batches
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

import gnorm
from gnorm.criteria.of_loss import head_importance
from gnorm.criteria.of_outputs import flap, output_norm, weight_magnitude
from gnorm.engine.known_models import ignores_padding
from gnorm.heads import FAMILIES

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = SIZES | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 4}
IMAGES = SIZES | {"image_size": 16, "patch_size": 4}
CONFIGS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "bos_token_id": 0, "eos_token_id": 2},
    "gpt_neox": SIZES,
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 6},
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "gemma": SIZES | {"num_key_value_heads": 1, "head_dim": 8},
    "modernbert": SIZES
    | {"local_attention": 8, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    | {"decoder_start_token_id": 1, "eos_token_id": 2},
    "bart": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2}
    | {"decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40}
    | {"eos_token_id": 2, "forced_eos_token_id": None},
    "data2vec-text": SIZES,
    "ernie": SIZES,
    "roformer": SIZES | {"embedding_size": 16},
    "beit": IMAGES,
    "beit/relative": IMAGES | {"use_relative_position_bias": True},
    "dinov2": IMAGES,
    "audio-spectrogram-transformer": SIZES | {"max_length": 24, "num_mel_bins": 16, "patch_size": 8},
    "wav2vec2": SIZES
    | {"conv_dim": (8, 8), "conv_kernel": (4, 4), "conv_stride": (4, 4), "num_conv_pos_embeddings": 4}
    | {"num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16},
}
SEVERAL = ("t5", "bart")  # encoder self-attention, decoder self-attention, cross-attention
SOUNDS, PICTURES = ("audio-spectrogram-transformer", "wav2vec2"), ("beit", "dinov2")


def make(name, auto=None, **overrides):
    family = name.partition("/")[0]
    text = {} if family in SOUNDS + PICTURES else {"vocab_size": 120, "pad_token_id": 1}
    if auto is None:
        auto = AutoModelForAudioClassification if family in SOUNDS else AutoModelForSequenceClassification
        auto = AutoModelForImageClassification if family in PICTURES else auto
    config = AutoConfig.for_model(family, num_labels=3, **text, **{**CONFIGS[name], **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config)
        for parameter_name, parameter in model.named_parameters():
            far_from_uniform = parameter.dim() == 2 and "embed" not in parameter_name  # attention, so that heads differ
            if far_from_uniform or parameter_name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def batches_of(name):
    generator = torch.Generator().manual_seed(1)
    shape = {"beit": (3, 16, 16), "dinov2": (3, 16, 16), SOUNDS[0]: (24, 16), SOUNDS[1]: (320,)}
    if (size := shape.get(name.partition("/")[0])) is not None:
        inputs = "input_values" if name in SOUNDS else "pixel_values"
        return [
            {inputs: torch.randn(4, *size, generator=generator), "labels": torch.tensor([0, 1, 2, 0])} for _ in range(2)
        ]
    batches = ragged_batches(2, longest=11)
    if name in SEVERAL:  # their classifiers read the token that ends a text
        for batch in batches:
            ends = batch["attention_mask"].sum(1) - 1
            batch["input_ids"][batch["input_ids"] == 2] = 9
            batch["input_ids"][torch.arange(len(ends)), ends] = 2
    return batches


def logits(model, batch):
    return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits


def modules_by_hand(name, model):
    """The modules that own the projections, in the order of the mask's rows."""
    base, family = model.base_model, name.partition("/")[0]
    if family == "t5":
        encoder, decoder = base.encoder.block, base.decoder.block
        of_self = [block.layer[0].SelfAttention for block in (*encoder, *decoder)]
        return of_self + [block.layer[1].EncDecAttention for block in decoder]
    if family == "bart":
        encoder, decoder = base.encoder.layers, base.decoder.layers
        return [layer.self_attn for layer in (*encoder, *decoder)] + [layer.encoder_attn for layer in decoder]
    layers = {"gpt2": "h", "beit": "layers", SOUNDS[0]: "layers"}
    if family in ("data2vec-text", "ernie", "roformer", "dinov2"):
        return [getattr(layer.attention, "self", layer.attention) for layer in base.encoder.layer]
    if family == "wav2vec2":
        return [layer.attention for layer in base.encoder.layers]
    attention = {"gpt2": "attn", "modernbert": "attn", "gpt_neox": "attention", "beit": "attention"}
    name = attention.get(family, "attention" if family in SOUNDS else "self_attn")
    return [getattr(layer, name) for layer in getattr(base, layers.get(family, "layers"))]


NAMES = {"t5": "q k v", "data2vec-text": "query key value", "ernie": "query key value", "roformer": "query key value"}


def gradients_by_hand(name, module, heads):
    """The gradients of query, key and value weights, each (head, number of weights)."""
    if name == "gpt2":  # (in, out): all queries, all keys, all values
        return [part.T.reshape(heads, -1) for part in module.c_attn.weight.grad.split(32, dim=1)]
    if name == "modernbert":
        return list(module.Wqkv.weight.grad.view(3, heads, -1))
    if name == "gpt_neox":  # query, key and value of one head, then of the next
        return list(module.query_key_value.weight.grad.view(heads, 3, -1).transpose(0, 1))
    names = NAMES.get(name, "q_proj k_proj v_proj").split()
    return [getattr(module, n).weight.grad.reshape(heads, -1) for n in names]


def scores_by_hand(name, model, batches, heads):
    modules = modules_by_hand(name, model)
    sums = torch.zeros(len(modules), 3, heads, dtype=torch.float64)
    for batch in batches:
        model.zero_grad()
        logits(model, batch).norm().backward()
        for of_module, module in zip(sums, modules, strict=True):
            of_module += torch.stack([g.double().norm(dim=1) for g in gradients_by_hand(name, module, heads)])
    return sums.prod(1).log()


def output_by_hand(name, model, row):
    """The weight of an output projection as (context, hidden): one that can be written to."""
    module = modules_by_hand(name, model)[row]
    names = {"gpt2": "c_proj", "gpt_neox": "dense", "modernbert": "Wo", "t5": "o", "bart": "out_proj"}
    name = names.get(name.partition("/")[0], "out_proj" if name == "wav2vec2" else "o_proj")
    if not hasattr(module, name):  # BERT's
        return model.base_model.encoder.layer[row].attention.output.dense.weight.data.T
    weight = getattr(module, name).weight.data
    return weight if name == "c_proj" else weight.T


def random_mask(shape):
    """A random mask with an empty layer of every kind, and one that is whole."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.5
    mask[0] = False
    mask[1] = True
    if shape[0] > 2:
        mask[-1] = False
        mask[2, 0] = True
        mask[2, 1] = False
    return mask


@pytest.fixture(params=list(CONFIGS))
def name(request):
    return request.param


def test_every_family_has_a_model_here_or_in_test_encoders():
    assert {name.partition("/")[0] for name in [*test_encoders.MODELS, *CONFIGS]} == set(FAMILIES)


def test_order_and_scores_equal_those_of_a_literal_loop_to_the_last_head(name):
    """The scores of every step are products of norms by plain autograd; a head goes by zeroing what reads it."""
    model, batches = make(name), batches_of(name)
    run = gnorm.prune(model, batches, progress=False)
    rows, heads = gnorm.head_mask_of(model).shape
    left = [(row, head) for row in range(rows) for head in range(heads)]
    order, scores = [], []
    while left:
        table = scores_by_hand(name, model, batches, heads)
        chosen = min(left, key=lambda at: float(table[at]))
        left.remove(chosen)
        order.append(chosen)
        scores.append(float(table[chosen]))
        context = output_by_hand(name, model, chosen[0])
        context.unflatten(0, (heads, -1))[chosen[1]] = 0
    assert run.order() == order
    assert run.table.score[1:].tolist() == pytest.approx(scores, abs=1e-3)
    with torch.no_grad():
        hits = torch.cat([logits(model, batch).argmax(1) == batch["labels"] for batch in batches])
    assert run.table.accuracy.iloc[-1] == hits.double().mean()


def test_masked_equals_removed_equals_reloaded(name, tmp_path):
    model, batches = make(name), batches_of(name)
    mask = random_mask(gnorm.head_mask_of(model).shape)
    zeroed = copy.deepcopy(model)
    for row, of_row in enumerate(mask):
        output_by_hand(name, zeroed, row).unflatten(0, (mask.shape[1], -1))[~of_row] = 0
    with torch.no_grad():
        expected, intact = logits(zeroed, batches[0]), logits(model, batches[0])
        assert not torch.allclose(expected, intact, atol=1e-3)
        with gnorm.masked(model, mask):
            torch.testing.assert_close(logits(model, batches[0]), expected, atol=2e-5, rtol=0)
            scores = gnorm.gnorm_scores(model, batches)
        gnorm.remove_heads(model, mask)
        torch.testing.assert_close(logits(model, batches[0]), expected, atol=2e-5, rtol=0)
        assert torch.equal(gnorm.head_mask_of(model), mask)
        torch.testing.assert_close(gnorm.gnorm_scores(model, batches)[mask], scores[mask], atol=1e-3, rtol=0)
        reloaded = gnorm.load_pruned(gnorm.save_pruned(model, tmp_path / "pruned"))
        torch.testing.assert_close(logits(reloaded, batches[0]), expected, atol=2e-5, rtol=0)
        assert torch.equal(gnorm.head_mask_of(reloaded), mask)
    for criterion in (gnorm.attention_entropy, gnorm.activation_energy, head_importance, output_norm, weight_magnitude):
        found = criterion(reloaded, batches)
        assert bool(found[mask].isfinite().all())
        assert bool(found[~mask].isneginf().all())
    with gnorm.without_feed_forward(reloaded), torch.no_grad():
        assert not torch.equal(logits(reloaded, batches[0]), expected)


def test_grouped_queries_count_by_key_value_head():
    """Sizes, weights and contexts of two key-value heads of a Llama that four query heads each read."""
    model, batches = make("llama"), batches_of("llama")
    block = gnorm.attention_blocks(model)[1]
    assert (block.num_heads, block.queries_per_head, block.head_dim, block.context_dim) == (2, 4, 4, 16)
    attention, contexts, weights = model.model.layers[1].self_attn, [], []
    of_head = [attention.q_proj.weight[16:], attention.k_proj.weight[4:], attention.v_proj.weight[4:]]
    numbers = torch.cat([w.detach().flatten() for w in (*of_head, attention.o_proj.weight[:, 16:])]).double()
    assert float(weight_magnitude(model, batches)[1, 1]) == pytest.approx(float(numbers.norm().log()), abs=1e-6)
    model.set_attn_implementation("eager")
    attention.o_proj.register_forward_pre_hook(lambda _, inputs: contexts.append(inputs[0][..., 16:]))
    attention.register_forward_hook(lambda _, __, output: weights.append(output[1][:, 4:]))
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            with torch.no_grad():
                model(ids[None, : mask.sum()])
    energy = torch.stack([context.square().sum(-1).mean() for context in contexts]).mean()
    entropy = torch.stack([torch.special.entr(w).sum(-1).mean() for w in weights]).mean()
    assert float(gnorm.activation_energy(model, batches)[1, 1]) == pytest.approx(float(energy), rel=1e-5)
    assert float(gnorm.attention_entropy(model, batches)[1, 1]) == pytest.approx(float(entropy), rel=1e-5)
    gnorm.remove_heads(model, [[1, 1], [0, 1]])
    assert torch.equal(attention.q_proj.weight, of_head[0])
    assert attention.o_proj.in_features == 16
    assert bool(flap(model, batches)[1, 1].isfinite())


def test_contexts_of_a_decoder_are_averaged_over_its_own_tokens():
    """The means of cross-attention leave out the padding of the decoder's texts, not that of the encoder's."""
    model, seen = make("bart"), []
    ids = torch.full((2, 6), 9)
    ids[:, -1] = 2  # where the classifier reads
    own = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch |= {"decoder_input_ids": ids.flip(1), "decoder_attention_mask": own}
    cross = gnorm.attention_blocks(model)[-1].output
    handle = cross.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].unflatten(-1, (2, -1))))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    energy = seen[0].square().sum(-1).double()  # (text, token, head)
    expected = (energy[0, :4].mean(0) + energy[1].mean(0)) / 2
    torch.testing.assert_close(gnorm.activation_energy(model, [batch])[-1], expected)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "mistral", "t5", "bart"])
def test_generated_tokens_are_those_of_the_masked_model(name, use_cache):
    model = make(name, AutoModelForSeq2SeqLM if name in SEVERAL else AutoModelForCausalLM)
    mask = random_mask(gnorm.head_mask_of(model).shape)
    ids = torch.randint(3, 120, (2, 5), generator=torch.Generator().manual_seed(0))
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
    with gnorm.masked(model, mask):
        expected = model.generate(ids, **options, use_cache=False)
    intact = model.generate(ids, **options, use_cache=False)
    gnorm.remove_heads(model, mask)
    assert torch.equal(model.generate(ids, **options, use_cache=use_cache), expected)
    assert not torch.equal(intact, expected)
    if use_cache and name != "bart":
        beams = options | {"num_beams": 2, "use_cache": True}
        assert torch.equal(model.generate(ids, **beams), model.generate(ids, **beams | {"use_cache": False}))


def test_position_bias_of_t5_follows_the_heads_of_each_layer():
    """The first layer makes the bias of all heads and hands it on whole, also where it has no head itself."""
    model, batch = make("t5"), batches_of("t5")[0]
    first, second = (block.layer[0].SelfAttention for block in model.transformer.encoder.block)
    whole = first.compute_bias(5, 5)
    hidden = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    for mask in ([1, 0], [0, 0]):
        every = torch.ones(6, 2).bool()
        every[0] = torch.tensor(mask).bool()
        every[1] = torch.tensor([0, 1]).bool()
        gnorm.remove_heads(model, every)
        _, handed_on, _ = first(hidden)
        assert torch.equal(handed_on, whole)
        _, handed_on, _ = second(hidden, position_bias=whole)
        assert torch.equal(handed_on, whole)
    assert first.relative_attention_bias.weight.shape[1] == 2
    assert first.n_heads == first.inner_dim == 0
    assert logits(copy.deepcopy(model), batch).shape == (5, 3)


def test_an_encoder_turned_decoder_is_causal_and_keeps_its_padding():
    model = test_encoders.make("bert", is_decoder=True)
    assert len(gnorm.attention_blocks(model)) == 3
    assert ignores_padding(test_encoders.make("bert"))
    assert not ignores_padding(model)


def test_what_a_row_cannot_say_is_refused_by_name():
    with pytest.raises(ValueError, match="the encoder has 2 heads a layer and the decoder 4, a head mask"):
        gnorm.attention_blocks(make("bart", decoder_attention_heads=4))
    with pytest.raises(ValueError, match="add_cross_attention is set, but the row of model_type 'gpt2' names no cross"):
        gnorm.attention_blocks(make("gpt2", AutoModelForCausalLM, add_cross_attention=True))
    model = make("gpt2")
    model.transformer.h[1].attn.c_attn.weight = model.transformer.h[0].attn.c_attn.weight
    with pytest.raises(ValueError, match="query and key and value projection of layer 1 shares its weight with the"):
        gnorm.attention_blocks(model)
    model = make("gpt_neox")
    model.gpt_neox.layers[1].attention.query_key_value = torch.nn.Linear(32, 90)
    with pytest.raises(ValueError, match="layer 1 has 90 query and key and value rows, its 4 heads of 8 need 96"):
        gnorm.remove_heads(model, torch.ones(2, 4))
    with pytest.raises(ValueError, match="4 query heads share a key"):
        gnorm.engine.gradients.weight_gradients(make("llama"), batches_of("llama"))
    sounds = [batch | {"attention_mask": torch.ones(4, 320).long()} for batch in batches_of("wav2vec2")]
    with pytest.raises(ValueError, match="the attention mask has 320 entries a text, its layers see 20 tokens"):
        gnorm.activation_energy(make("wav2vec2"), sounds)


def test_a_text_longer_than_the_table_of_positions_is_refused():
    for name in ("gpt2", "bart"):
        ids = torch.full((1, 41), 9)
        with pytest.raises(ValueError, match="the longest text of batch 0 has 41 tokens, the model takes 40"):
            gnorm.gnorm_scores(make(name), [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
