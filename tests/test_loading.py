"""Whatever is saved is read again, from whatever files hold it; what could not be read is not saved."""

import json
import pathlib
import shutil
import threading

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from models import make
from safetensors.torch import load_file, save_file
from test_heads import logits
from tiny import ragged_batches, tiny_model

import gnorm
from gnorm import shipping
from gnorm.storage.loading import is_pruned, load_checked, read_config

MASK = [[1, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 1]]
ONES = [[1, 1, 1, 1]] * 3


def cut(model, mask=MASK):
    gnorm.remove_heads(model, mask[: len(gnorm.attention_blocks(model))])
    return model


@pytest.fixture
def model():
    return cut(tiny_model("bert"))


@pytest.fixture
def folder(model, tmp_path):
    return gnorm.save_pruned(model, tmp_path / "saved")


def edit(folder, **changes):
    """Change keys of the folder's config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )


def rename(folder, change):
    """Give the weights of the folder other names."""
    weights = {change(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def pickled(folder, **more):
    """Keep the weights of the folder as transformers 4 did by default."""
    torch.save(load_file(folder / "model.safetensors") | more, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


# --- what is read


def shards(model, folder):
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def pickled_shards(model, folder):
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(weights)}
    for place in set(places.values()):
        torch.save({name: weights[name] for name in places if places[name] == place}, folder / place)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def one_pickle(model, folder):
    model.save_pretrained(folder)
    pickled(folder)


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (shards, {}),
        (one_pickle, {}),
        (pickled_shards, {}),
        (lambda model, folder: model.save_pretrained(folder, variant="fp16"), {"variant": "fp16"}),
        (lambda model, folder: model.save_pretrained(folder / "a" / "b"), {"subfolder": "a/b"}),
    ],
)
def test_weights_are_read_from_whatever_files_hold_them(model, tmp_path, write, options):
    write(model, tmp_path / "model")
    reloaded = gnorm.load_pruned(tmp_path / "model", **options)
    assert torch.equal(logits(reloaded), logits(model))
    assert gnorm.head_mask_of(reloaded).int().tolist() == MASK


@pytest.mark.parametrize("place", ["saved", "saved/", "./saved", "~/saved", pathlib.Path("~/saved"), "whole"])
def test_a_folder_is_found_by_any_of_its_names(model, folder, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    reloaded = gnorm.load_pruned(str(folder) if place == "whole" else place)
    assert torch.equal(logits(reloaded), logits(model))


def test_a_model_of_a_hub_is_found_by_its_name(model, tmp_path):
    repository = tmp_path / "models--me--smaller"
    model.save_pretrained(repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    for options in ({}, {"revision": "main"}, {"revision": "a" * 40, "local_files_only": True}):
        reloaded = gnorm.load_pruned("me/smaller", cache_dir=tmp_path, **options)
        assert torch.equal(logits(reloaded), logits(model))
    with pytest.raises(
        FileNotFoundError, match=r"me/absent has no config.json, and the hub gives no model of that name: give the"
    ):
        gnorm.load_pruned("me/absent", cache_dir=tmp_path)


def test_options_are_those_of_from_pretrained(model, folder, caplog):
    load = gnorm.load_pruned
    assert load(folder, num_labels=3, hidden_dropout_prob=0.3).config.hidden_dropout_prob == 0.3
    assert load(folder, torch_dtype="float16").dtype == torch.float16
    assert load(folder, device_map="cpu").device.type == "cpu"
    assert load(folder, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2}).config.id2label[1] == "b"
    assert torch.equal(logits(load(folder, config=transformers.AutoConfig.from_pretrained(folder))), logits(model))
    assert torch.equal(logits(load(folder, config=str(folder))), logits(model))
    reloaded, found = load(folder, output_loading_info=True)
    assert torch.equal(logits(reloaded), logits(model))
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with pytest.raises(ValueError, match=r"contradict its configuration: classifier.bias is \(3,\), .* needs \(5,\)"):
        load(folder, num_labels=5)
    assert load(folder, num_labels=5, ignore_mismatched_sizes=True).classifier.out_features == 5
    assert "has no weights for classifier.bias, classifier.weight: they are new" in caplog.text
    with pytest.raises(ValueError, match=r"saved cannot be loaded as BertForSequenceClassification: .*\"nope\""):
        load(folder, attn_implementation="nope")


def test_what_is_cut_and_read_without_autograd_can_be_trained(tmp_path):
    with torch.inference_mode():
        intact = tiny_model("bert")
        intact.save_pretrained(tmp_path / "intact")
        folder = gnorm.save_pruned(cut(intact), tmp_path / "model")
        models = [gnorm.load_pruned(folder)]
    models.append(transformers.BertForSequenceClassification.from_pretrained(tmp_path / "intact"))
    with torch.inference_mode():
        cut(models[1])
    for model in models:
        model(**ragged_batches(1)[0]).loss.backward()
        assert all(block.query.weight.grad is not None for block in gnorm.attention_blocks(model))


def test_the_code_of_a_folder_is_never_run(folder):
    (folder / "mine.py").write_text("raise SystemExit('it ran')")
    edit(folder, architectures=["Mine"], auto_map={"AutoModelForSequenceClassification": "mine.Mine"})
    for options in ({}, {"trust_remote_code": True}):
        with pytest.raises(ValueError, match="names no architecture of transformers but 'Mine': pass the class"):
            gnorm.load_pruned(folder, **options)


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("bert", MASK),
        ("roberta", [[0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]),
        ("distilbert", MASK),
        ("albert", [[1, 0, 0, 1]]),
        ("albert/two groups", [[1, 0, 1, 1], [0, 1, 1, 1]]),
    ],
)
def test_what_transformers_4_pruned_is_read_and_saved_as_ours(name, mask, tmp_path):
    model = cut(make(name), mask)
    mask = gnorm.head_mask_of(model).int().tolist()
    model.save_pretrained(tmp_path / "old")
    pruned = {str(i): [head for head, kept in enumerate(row) if not kept] for i, row in enumerate(mask) if 0 in row}
    edit(tmp_path / "old", head_mask=None, pruned_heads=pruned, transformers_version="4.44.0")
    reloaded = gnorm.load_pruned(tmp_path / "old")
    again = gnorm.load_pruned(gnorm.save_pruned(reloaded, tmp_path / "new"))
    for other in (reloaded, again):
        assert torch.equal(logits(other), logits(model))
        assert other.config.head_mask == mask
        assert not hasattr(other.config, "pruned_heads")
    assert "pruned_heads" not in json.loads((tmp_path / "new" / "config.json").read_text())


@pytest.mark.parametrize("pruned", [{"3": [0]}, {"0": [4]}, {"0": [-1]}, {"x": [0]}, {"0": 1}, [1]])
def test_heads_that_the_model_does_not_have_cannot_have_been_pruned(folder, pruned):
    edit(folder, head_mask=None, pruned_heads=pruned)
    with pytest.raises(ValueError, match="does not list heads by layer, of 3 layers with 4 heads"):
        gnorm.load_pruned(folder)


@pytest.mark.parametrize("mask", ["none", [1, 1, 1], [[1], [1, 1]], [[[1, 1, 1, 1]] * 3], 1])
def test_a_head_mask_that_is_none_is_refused(folder, mask):
    edit(folder, head_mask=mask)
    with pytest.raises(ValueError, match=r"the head mask (is no .layer, head. table|has shape .*, this model needs)"):
        gnorm.load_pruned(folder)


# --- classes of one's own


class WithTwoLayersOnTop(transformers.BertPreTrainedModel):
    """Another classifier on a BERT."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = transformers.BertModel(config)
        self.top = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.Tanh(), torch.nn.Linear(8, config.num_labels))
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None):
        context = self.bert(input_ids, attention_mask).pooler_output
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=self.top(context))


class Hotter(transformers.BertForSequenceClassification):
    """The parameters of BERT, and other logits."""

    def forward(self, *inputs, **named):
        output = super().forward(*inputs, **named)
        output.logits = 2 * output.logits
        return output


@pytest.mark.parametrize("kind", [WithTwoLayersOnTop, Hotter])
def test_a_class_of_ones_own_is_found_where_it_is_defined_or_given(kind, tmp_path):
    model = cut(kind(tiny_model("bert").config).eval())
    folder = gnorm.save_pruned(model, tmp_path / "model")
    for given in (None, kind):
        reloaded = gnorm.load_pruned(folder, model_class=given)
        assert type(reloaded) is kind
        assert torch.equal(logits(reloaded), logits(model))
    edit(folder, architectures=["DefinedElsewhere"])
    with pytest.raises(ValueError, match=r"but 'DefinedElsewhere': pass the class .* model_class=DefinedElsewhere\)"):
        gnorm.load_pruned(folder)
    assert torch.equal(logits(gnorm.load_pruned(folder, model_class=kind)), logits(model))


def test_two_classes_of_one_name_are_told_apart_by_the_user(tmp_path):
    class Twin(transformers.BertForSequenceClassification):
        pass

    first = Twin

    class Twin(transformers.BertForSequenceClassification):
        __qualname__ = "another.Twin"

    folder = gnorm.save_pruned(cut(Twin(tiny_model("bert").config)), tmp_path / "model")
    with pytest.raises(ValueError, match=r"Twin, .* may be .*another.Twin and .*: pass the right one as model_class"):
        gnorm.load_pruned(folder)
    assert type(gnorm.load_pruned(folder, model_class=first)) is first


def test_a_class_that_is_registered_is_found_and_an_auto_class_is_understood(tmp_path, monkeypatch):
    auto = transformers.AutoModelForSequenceClassification
    monkeypatch.setattr(auto._model_mapping, "_extra_content", {})
    auto.register(transformers.BertConfig, Hotter, exist_ok=True)
    folder = gnorm.save_pruned(cut(Hotter(tiny_model("bert").config)), tmp_path / "model")
    assert type(gnorm.load_pruned(folder, model_class=auto)) is Hotter
    with pytest.raises(ValueError, match="AutoModelForImageClassification has no class for model_type 'bert'"):
        gnorm.load_pruned(folder, model_class=transformers.AutoModelForImageClassification)
    with pytest.raises(TypeError, match="model_class='BertModel' is not a class of models"):
        gnorm.load_pruned(folder, model_class="BertModel")


# --- what is not saved


def another_classifier(model):
    model.classifier = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def another_activation(model):
    model.bert.encoder.layer[1].intermediate.intermediate_act_fn = torch.nn.ReLU()


def shared_weights(model):
    first, second = (model.bert.encoder.layer[i].output.dense for i in (0, 1))
    second.weight = first.weight


def shared_memory(model):
    first, second = (model.bert.encoder.layer[i].output.dense for i in (0, 1))
    second.weight.data = first.weight.data


def option(name, value):
    def change(model):
        setattr(model.config, name, value)

    change.__name__ = f"{name}={value}"
    return change


UNSAVEABLE = [
    (another_classifier, "classifier is Sequential.*, but BertForSequenceClassification builds Linear"),
    (another_activation, r"layer.1.intermediate.intermediate_act_fn is ReLU\(\), but .* builds GELUActivation"),
    (shared_weights, "layer.1.output.dense.weight is the same as .*layer.0.output.dense.weight, but"),
    (shared_memory, "layer.1.output.dense.weight is the same as .*layer.0.output.dense.weight, but"),
    (lambda model: model.register_buffer("more", torch.ones(2)), r"more is a tensor of shape \(2,\), but .* nothing"),
    (lambda model: model.classifier.half(), "in torch.float16 and torch.float32, .*: use model.to.torch.float32."),
    (option("num_labels", 5), r"out_features=3, bias=True\), but .* builds Linear.*out_features=5"),
    (option("vocab_size", 90), r"word_embeddings is Embedding\(120, .* builds Embedding\(90.*correct model.config"),
    (option("num_hidden_layers", 2), r"cannot be built from model.config alone, .* needs \(layer, head\) = \(2, 4\)"),
    (option("hidden_act", "relu"), r"intermediate_act_fn is GELUActivation\(\), but .* builds ReLU\(\)"),
    (option("layer_norm_eps", 0.5), r"LayerNorm is .*eps=1e-12.*, but .* builds .*eps=0.5"),
    (option("note", torch.ones(2)), "cannot be saved .its note is Tensor: .*: correct that in model.config, or delete"),
    (option("note", {1, 2}), "cannot be saved .its note is set"),
    (option("note", np.float32(1)), "cannot be saved .its note is float32"),
    (option("note", threading.Lock()), "cannot be saved .its note is lock"),
    (option("id2label", {np.int64(0): "a", 1: "b", 2: "c"}), "cannot be saved .its id2label is dict: keys must be"),
    (option("max_length", 20), "cannot be saved .*max_length"),
]


@pytest.mark.parametrize(("change", "complaint"), UNSAVEABLE, ids=range(len(UNSAVEABLE)))
def test_what_could_not_be_read_is_not_saved(model, change, complaint, tmp_path):
    change(model)
    with pytest.raises(ValueError, match=complaint):
        gnorm.save_pruned(model, tmp_path / "model")
    assert not any(tmp_path.iterdir())


def test_a_class_that_needs_more_than_its_configuration_is_not_saved(tmp_path):
    class Needy(transformers.BertForSequenceClassification):
        def __init__(self, config, temperature):
            super().__init__(config)

    with pytest.raises(ValueError, match=r"Needy cannot be built from model.config alone, .*temperature.* defaults"):
        gnorm.save_pruned(cut(Needy(tiny_model("bert").config, 2)), tmp_path / "model")


def test_a_class_that_has_the_name_of_another_is_not_saved(tmp_path):
    kind = type("BertForSequenceClassification", (Hotter,), {})
    with pytest.raises(
        ValueError, match="transformers has another BertForSequenceClassification, .*: rename the class"
    ):
        gnorm.save_pruned(cut(kind(tiny_model("bert").config)), tmp_path / "model")


def test_a_tokenizer_that_cannot_be_saved_is_named(model, tmp_path):
    with pytest.raises(TypeError, match="a str has no save_pretrained: give a tokenizer of transformers"):
        gnorm.save_pruned(model, tmp_path / "model", "bert-base-uncased")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.resize_token_embeddings(130),
        lambda model: setattr(model, "dropout", torch.nn.Identity()),
        lambda model: setattr(model.config, "hidden_dropout_prob", 0.5),
        lambda model: model.double(),
        lambda model: model.requires_grad_(False),
        lambda model: model.compile(backend="eager"),
    ],
)
def test_changes_that_are_read_again_are_saved(model, change, tmp_path):
    change(model)
    reloaded = gnorm.load_pruned(gnorm.save_pruned(model, tmp_path / "model"))
    assert torch.equal(logits(reloaded), logits(model))
    torch._dynamo.reset()


def test_a_tied_model_is_saved_and_an_untied_one_is_not(tmp_path):
    model = cut(transformers.BertForMaskedLM(tiny_model("bert").config).eval())
    reloaded = gnorm.load_pruned(gnorm.save_pruned(model, tmp_path / "model"))
    assert torch.equal(logits(reloaded), logits(model))
    decoder = model.cls.predictions.decoder
    decoder.weight = torch.nn.Parameter(decoder.weight.detach().clone())
    with pytest.raises(ValueError, match="decoder.weight is a tensor .*, but BertForMaskedLM builds the same as"):
        gnorm.save_pruned(model, tmp_path / "again")


@pytest.mark.parametrize("made_by", ["half", "from_pretrained"])
def test_parts_that_loading_keeps_in_single_precision_are_saved_with_the_others_in_half(made_by, tmp_path):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=60, **sizes)).eval().half()
    wo = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    if made_by == "from_pretrained":
        model.save_pretrained(tmp_path / "intact")
        model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "intact")
        assert model.get_parameter(wo).dtype == torch.float32
    mask = gnorm.head_mask_of(model)
    mask[0, 1] = False
    gnorm.remove_heads(model, mask)
    reloaded = gnorm.load_pruned(gnorm.save_pruned(model, tmp_path / "model"))
    dtypes = {name: parameter.dtype for name, parameter in reloaded.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype != torch.float16} == {n for n in dtypes if ".wo." in n}
    assert all(torch.equal(reloaded.get_parameter(n), p.to(dtypes[n])) for n, p in model.named_parameters())
    model.lm_head.float()
    with pytest.raises(ValueError, match="in torch.float16 and torch.float32, one is recorded: use model.to.torch.flo"):
        gnorm.save_pruned(model, tmp_path / "mixed")


def test_saving_leaves_the_model_and_the_random_numbers_as_they_were(tmp_path):
    model, state = tiny_model("bert"), torch.get_rng_state()
    gnorm.save_pruned(model, tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)
    assert not hasattr(model.config, "head_mask")


def test_a_folder_is_replaced_where_that_is_asked(model, folder):
    other = cut(tiny_model("bert", seed=1), ONES)
    with pytest.raises(FileExistsError, match="saved exists already and holds config.json"):
        gnorm.save_pruned(other, folder)
    assert torch.equal(logits(gnorm.load_pruned(folder)), logits(model))
    gnorm.save_pruned(other, folder, overwrite=True)
    assert torch.equal(logits(gnorm.load_pruned(folder)), logits(other))


# --- what is refused when it is read, a pruned model by load_pruned and an intact one by shipping.load


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.csv"
    pd.DataFrame({"text": [f"w{i} w{i + 1}" for i in range(60)], "label": [i % 3 for i in range(60)]}).to_csv(path)
    return path


BOTH = pytest.mark.parametrize("checkpoint", ["pruned", "intact"], indirect=True)


@pytest.fixture
def checkpoint(request, tmp_path, texts):
    """A folder with a checkpoint, pruned unless the test says otherwise, and what loads it."""
    model = tiny_model("bert", pad_token_id=0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(115))]
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    if getattr(request, "param", "pruned") == "pruned":
        gnorm.save_pruned(cut(model), tmp_path / "it", tokenizer)
        return tmp_path / "it", lambda: gnorm.load_pruned(tmp_path / "it")
    model.save_pretrained(tmp_path / "it")
    tokenizer.save_pretrained(tmp_path / "it")
    return tmp_path / "it", lambda: shipping.load(tmp_path / "it", texts)


@pytest.mark.parametrize(
    ("prefix", "wrapper", "inside"),
    [
        ("module.", "DataParallel", "model.module"),
        ("_orig_mod.", "torch.compile", "the model that was compiled"),
        ("module._orig_mod.", "DataParallel", "model.module"),
        ("base_model.model.", "PEFT", r"what its merge_and_unload\(\) returns"),
        ("model.", "a wrapper", "the model in it"),
        ("net.model.", "a wrapper", "the model in it"),
    ],
)
def test_weights_of_a_wrapped_model_are_told_by_their_names(checkpoint, prefix, wrapper, inside):
    folder, load = checkpoint
    rename(folder, lambda name: prefix + name)
    with pytest.raises(
        ValueError, match=rf"have '{prefix}' too much, which {wrapper} puts there: save {inside} instead"
    ):
        load()


@BOTH
def test_weights_of_a_model_with_wrapped_parts_are_told_by_their_names(checkpoint):
    folder, load = checkpoint
    rename(folder, lambda name: name.replace("encoder.layer", "encoder._orig_mod.layer"))
    with pytest.raises(ValueError, match="have '_orig_mod.' too much, which torch.compile puts there"):
        load()


def drop_a_shard(folder):
    model, _ = load_checked(folder, transformers.AutoModelForSequenceClassification)
    (folder / "model.safetensors").unlink()
    shards(model, folder)
    sorted(folder.glob("model-*"))[1].unlink()


def bad_index(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")


def other_head(folder):
    rename(folder, lambda name: name.replace("classifier", "head"))


def unsafe(folder):
    pickled(folder, note=pathlib.PurePosixPath("x"))


def cut_pickle(folder):
    pickled(folder)
    (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:1000])


DAMAGED = [
    (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "has no model.safetensors that can be read"),
    (drop_a_shard, FileNotFoundError, r"nor other weights \(.*model-00002-of-0000\d.safetensors"),
    (bad_index, ValueError, r"the weights in .*it are damaged \('weight_map'\)"),
    (unsafe, ValueError, r"damaged \(it holds more than tensors, or is not whole\): save the model anew"),
    (cut_pickle, ValueError, r"damaged \(it holds more than tensors, or is not whole\): save the model anew"),
    (lambda f: (f / "model.safetensors").write_bytes(b""), ValueError, "are damaged .*: save the model anew"),
    (lambda f: (f / "config.json").write_text("{"), ValueError, "config.json is damaged"),
    (
        lambda f: edit(f, num_hidden_layers="three"),
        ValueError,
        "config.json is damaged, or of a model type .*three",
    ),
    (lambda f: edit(f, model_type="huge"), ValueError, "of a model type that transformers .* does not know"),
    (lambda f: edit(f, hidden_size=33), ValueError, "cannot be loaded as BertForSequenceClassification: .*33"),
    (lambda f: (f / "adapter_config.json").write_text("{}"), ValueError, r"PEFT adapter: .* merge_and_unload"),
    (other_head, ValueError, "has no weights for classifier.bias: fine-tune it as a classifier first"),
    (
        lambda f: edit(f, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1}),
        ValueError,
        r"contradict its configuration: .* \(2,\)",
    ),
]


@pytest.mark.parametrize(
    ("checkpoint", "damage", "error", "complaint"),
    [
        *(("pruned", *row) for row in DAMAGED),
        *(("intact", *row) for row in DAMAGED[::4]),
        ("intact", lambda f: edit(f, num_hidden_layers=9), ValueError, r"of its config.json: bert\.enc.* do not match"),
    ],
    indirect=["checkpoint"],
)
def test_what_cannot_be_read_is_named_with_what_helps(checkpoint, damage, error, complaint):
    folder, load = checkpoint
    damage(folder)
    with pytest.raises(error, match=complaint) as raised:
        load()
    assert "weights_only" not in str(raised.value)
    error = raised.value
    assert error.__suppress_context__ or error.__context__ is None  # what the library said is not shown as well


def test_the_folder_with_checkpoints_of_a_trainer_names_one_of_them(folder, tmp_path):
    shutil.move(folder, tmp_path / "trainer" / "checkpoint-500")
    with pytest.raises(FileNotFoundError, match="trainer has no config.json: checkpoint-500 in it has one"):
        gnorm.load_pruned(tmp_path / "trainer")
    with pytest.raises(ValueError, match="config.json is a file: give the folder that it lies in"):
        gnorm.load_pruned(tmp_path / "trainer" / "checkpoint-500" / "config.json")
    with pytest.raises(TypeError, match="None is not a folder: give its path, or a name on the hub"):
        gnorm.load_pruned(None)


@BOTH
def test_a_checkpoint_that_transformers_4_pruned_can_be_shipped(checkpoint, texts):
    folder, _ = checkpoint
    pruned = is_pruned(read_config(folder))
    edit(folder, head_mask=None, pruned_heads={"0": [1], "2": [0, 2]} if pruned else {})
    own = shipping.load(folder, texts)
    assert gnorm.head_mask_of(own.model).int().tolist() == (MASK if pruned else ONES)


@BOTH
def test_a_pruned_model_of_ones_own_class_is_never_shipped_as_another(checkpoint, texts):
    folder, _ = checkpoint
    edit(folder, architectures=["Hotter"])
    assert type(shipping.load(folder, texts).model) is Hotter
    edit(folder, architectures=["DefinedElsewhere"])
    assert type(shipping.load(folder, texts, model_class=Hotter).model) is Hotter
    if is_pruned(read_config(folder)):
        with pytest.raises(ValueError, match="names no architecture of transformers but 'DefinedElsewhere'"):
            shipping.load(folder, texts)


# Names of weights that BertForSequenceClassification lets go, and whether its logits would have depended on them.
LET_GO = {
    "cls.predictions.bias": False,
    "aux.weight": False,
    "classifier.scale": True,
    "bert.encoder.layer.0.attention.self.distance_embedding.weight": True,
    "bert.encoder.layer.3.output.dense.weight": True,
    "bert.embeddings.word_norm.weight": True,
    "bert.pooler.norm.weight": True,
    "bert.adapter.weight": True,
    "encoder.layer.0.output.adapters.down.weight": True,
}
SILENT = ("bert.embeddings.position_ids", "bert.encoder.layer.0.attn.masked_bias", "bert.embeddings.mask_token")


def add(folder, *names):
    """Put weights of these names into the file of the folder."""
    weights = load_file(folder / "model.safetensors") | {name: torch.ones(2) for name in names}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(("name", "counts"), LET_GO.items())
def test_weights_of_another_head_are_left_out_and_those_of_the_body_refused(checkpoint, name, counts, caplog):
    folder, load = checkpoint
    add(folder, name)
    if counts:
        with pytest.raises(ValueError, match=rf"{name} do not match, as BertForSeq.* has no place for them: correct"):
            load()
    else:
        load()
        assert f"it has weights that BertForSequenceClassification does not use: {name}." in caplog.text


@BOTH
def test_constants_beside_the_weights_are_passed_over(checkpoint):
    folder, load = checkpoint
    add(folder, *SILENT)
    load()


def test_no_weight_of_a_class_that_is_not_known_is_left_out(checkpoint, texts):
    folder, _ = checkpoint
    add(folder, "aux.weight")
    edit(folder, architectures=["DefinedElsewhere"])
    with pytest.raises(ValueError, match="the weights in .* are not those of its config.json: aux.weight do not match"):
        load_checked(folder, transformers.BertForSequenceClassification)


@pytest.mark.parametrize("size", [{}, pytest.param({"num_labels": 5}, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("saved", "kind", "new", "left_out"),
    [
        ("BertForMaskedLM", "BertForSequenceClassification", "bert.pooler classifier", "cls.predictions"),
        ("BertModel", "BertForTokenClassification", "classifier", "pooler"),
        ("BertForSequenceClassification", "BertForQuestionAnswering", "qa_outputs", "classifier bert.pooler"),
        ("BertForSequenceClassification", "BertForMultipleChoice", "classifier", ""),  # of another shape
        ("BertForPreTraining", "BertForMaskedLM", "", "cls.seq_relationship bert.pooler"),
        ("ElectraForSequenceClassification", "ElectraForTokenClassification", "classifier", "classifier"),
        ("T5Model", "T5ForQuestionAnswering", "qa_outputs", ""),
        ("T5ForConditionalGeneration", "T5Model", "", ""),
        ("ViTModel", "ViTForMaskedImageModeling", "decoder vit.embeddings.mask_token", "pooler"),
    ],
)
def test_a_pruned_body_under_another_head(saved, kind, new, left_out, size, tmp_path, caplog):
    saved, kind = getattr(transformers, saved), getattr(transformers, kind)
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 16}
    sizes |= {"vocab_size": 60, "d_kv": 8, "num_decoder_layers": 1, "image_size": 32}
    model = saved(saved.config_class(**sizes)).eval()
    mask = torch.ones_like(gnorm.head_mask_of(model).long())
    mask[0, 1], mask[2] = 0, 0
    gnorm.remove_heads(model, mask)
    folder = gnorm.save_pruned(model, tmp_path / "model")
    found, info = gnorm.load_pruned(folder, model_class=kind, output_loading_info=True, **size)
    assert type(found) is kind
    assert torch.equal(gnorm.head_mask_of(found).long(), mask)
    body = found.base_model.state_dict()
    for name, weight in model.base_model.state_dict().items():
        if name in body and name.partition(".")[0] in dict(model.base_model.named_children()):
            assert torch.equal(body[name], weight), name
    lacking = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    for names, words in ((lacking, new), (info["unexpected_keys"], left_out)):
        assert all(name.startswith(tuple(words.split())) for name in names)
        assert all(any(name.startswith(word) for name in names) for word in words.split())
    assert ("they are new, so train them" in caplog.text) == bool(new)
    assert ("does not use: " in caplog.text) == bool(left_out)
    assert all(weight.isfinite().all() for weight in found.parameters())
    again = gnorm.load_pruned(gnorm.save_pruned(found, tmp_path / "again"))
    assert type(again) is kind


@pytest.mark.parametrize(("kind", "part"), [("T5EncoderModel", "get_encoder"), ("BartForCausalLM", "get_decoder")])
def test_a_part_of_a_model_is_taken_from_the_whole(kind, part, tmp_path):
    kind = getattr(transformers, kind)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 60}
    sizes |= {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 16))}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_start_token_id": 0}
    model = transformers.AutoModelForSeq2SeqLM.from_config(kind.config_class(**sizes)).eval()
    mask = gnorm.head_mask_of(model)
    mask[:, 1] = False
    gnorm.remove_heads(model, mask)
    folder = gnorm.save_pruned(model, tmp_path / "model")
    saved, remedy = type(model).__name__, r"take its get_encoder\(\) or get_decoder\(\)"
    with pytest.raises(ValueError, match=f"its head mask is that of a {saved}, .*: load that, and {remedy}"):
        gnorm.load_pruned(folder, model_class=kind)
    ids = torch.arange(3, 9)[None]
    expected, found = (getattr(each, part)()(ids)[0] for each in (model, gnorm.load_pruned(folder)))
    assert torch.equal(found, expected)


def test_another_head_does_not_excuse_a_damaged_body(folder):
    rename(folder, lambda name: name.replace("layer.1.output", "layer.1.result"))
    with pytest.raises(ValueError, match=r"bert.encoder.layer.1.output.LayerNorm.bias, .* do not match\."):
        gnorm.load_pruned(folder, model_class=transformers.BertForTokenClassification)
    rename(folder, lambda name: name.replace("layer.1.result", "layer.1.output").replace("classifier", "head"))
    with pytest.raises(ValueError, match=r"has no weights for classifier.bias"):
        gnorm.load_pruned(folder, model_class=transformers.BertForSequenceClassification)


def test_an_optimizer_made_after_removal_trains_what_is_left(model):
    weight = model.bert.encoder.layer[0].attention.self.query.weight
    before, optimizer = weight.detach().clone(), torch.optim.AdamW(model.parameters(), lr=0.1)
    model(**ragged_batches(1)[0]).loss.backward()
    optimizer.step()
    assert not torch.equal(weight, before)
    assert "optimizer made before holds the old ones" in gnorm.remove_heads.__doc__
