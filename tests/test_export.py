"""ONNX files give the logits of the model they were made from, whatever the batch, or there is no file."""

import importlib.util
import sys

import onnx
import onnxruntime
import onnxruntime.quantization
import pytest
import torch
import transformers
from models import BY_HAND, ROWS, batches_of, make, random_masks
from precision import close
from tiny import tiny_model

import gnorm
from gnorm.engine.model.state import evaluating
from gnorm.engine.trials.examples import inputs_of, longest_text, usual_lengths
from gnorm.shipping.export import Exported

# Two layers, one head of four gone and then all, so that layers are unequal and one is empty; or no head left at all.
UNEQUAL, NONE = ((1, 0, 1, 1), (0, 0, 0, 0)), ((0, 0, 0, 0), (0, 0, 0, 0))
# Exporting takes seconds. Some kinds of attention and of positions (and BERT, below) are exported every time, the
# others by `make soak`.
ALWAYS = [
    ("deberta-v2/relative", UNEQUAL),
    ("vit", UNEQUAL),
]
OTHERS = [name for name in BY_HAND if not ROWS[name].in_float32 or name.startswith(("vit", "deit"))]
REST = [(name, mask) for name in OTHERS for mask in (UNEQUAL, NONE, None) if (name, mask) not in ALWAYS]


def small(name, mask=None, layers=2):
    model = make(name, num_hidden_layers=layers, **({"n_layers": layers} if name == "distilbert" else {}))
    if mask:
        gnorm.remove_heads(model, mask[: len(gnorm.attention_blocks(model))])
    return model


def assert_same_logits(path, model, batches):
    exported = Exported(path)
    for batch in batches:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with evaluating(model), torch.inference_mode():
            close(exported(**inputs), model(**inputs).logits)


@pytest.fixture(scope="module")
def bert():
    """Two layers, unequal and empty."""
    return small("bert", UNEQUAL)


@pytest.fixture(scope="module")
def program(bert, tmp_path_factory):
    """The outputs of the exported file, fed with all that it takes."""
    made = []
    export = torch.onnx.export
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", lambda *args, **named: made.append(export(*args, **named)) or made[0])
        gnorm.export_onnx(bert, tmp_path_factory.mktemp("program") / "model.onnx")
    return made[0]


@pytest.fixture
def export(program, monkeypatch):
    """``export_onnx``, where the exporter gives at once what it gave for ``bert``, whatever model it is asked for."""
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: program)
    return gnorm.export_onnx


@pytest.mark.parametrize(("name", "mask"), [*ALWAYS, *(pytest.param(*which, marks=pytest.mark.soak) for which in REST)])
def test_the_file_gives_the_logits_of_the_model_for_other_batch_sizes_and_lengths(name, mask, tmp_path):
    model = small(name, mask)
    batches = batches_of(model)
    named = [name for name in batches[0] if name != "labels"]
    path = gnorm.export_onnx(model, tmp_path / "there" / "model.onnx", named)
    assert path == tmp_path / "there" / "model.onnx"
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    axes = ["batch", "length"] if "input_ids" in named else ["batch", 3, 16, 16]
    session = Exported(path).session
    assert [(given.name, given.shape) for given in session.get_inputs()] == [(name, axes) for name in named]
    assert [(given.name, given.shape) for given in session.get_outputs()] == [("logits", ["batch", 3])]
    assert b"site-packages" not in path.read_bytes()  # where it was made is nobody's business
    assert_same_logits(path, model, [*batches, {name: tensor[:1] for name, tensor in batches[0].items()}])


def test_the_file_of_a_model_that_tells_texts_apart_is_fed_with_their_types(bert, export, tmp_path):
    path = export(bert, tmp_path / "model.onnx")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    assert [given.name for given in Exported(path).session.get_inputs()] == names
    batch = batches_of(bert)[0]
    types = torch.ones_like(batch["input_ids"])
    assert_same_logits(path, bert, [batch | {"token_type_ids": types}, batch | {"token_type_ids": 0 * types}])
    longest = torch.full((2, longest_text(bert)), 5)
    assert_same_logits(path, bert, [dict.fromkeys(names, longest.clamp(max=1))])


def test_the_file_of_a_layer_without_heads_holds_no_tensor_of_size_0_and_is_right_in_eight_bits(bert, export, tmp_path):
    path = export(bert, tmp_path / "model.onnx")
    assert not [weight.name for weight in onnx.load(path).graph.initializer if 0 in weight.dims]
    eight = tmp_path / "eight.onnx"
    onnxruntime.quantization.quantize_dynamic(path, eight, weight_type=onnxruntime.quantization.QuantType.QInt8)
    batch = batches_of(bert)[0]
    fed = {name: batch[name] for name in ("input_ids", "attention_mask")}
    fed["token_type_ids"] = torch.zeros_like(fed["input_ids"])
    with torch.inference_mode():
        assert 0 < float((Exported(eight)(**fed) - bert(**fed).logits).abs().max()) < 0.1


@pytest.mark.parametrize("name", ["bart", pytest.param("t5", marks=pytest.mark.soak)])
def test_texts_and_targets_have_lengths_of_their_own(name, tmp_path):
    model = make(name, transformers.AutoModelForSeq2SeqLM)
    shape = gnorm.head_mask_of(model).shape
    gnorm.remove_heads(model, random_masks(shape)[0])
    path = gnorm.export_onnx(model, tmp_path / "model.onnx")
    session = Exported(path).session
    axes = {given.name: given.shape for given in (*session.get_inputs(), *session.get_outputs())}
    assert axes["input_ids"] == axes["attention_mask"] == ["batch", "length"]
    assert axes["decoder_input_ids"] == ["batch", "decoder_length"]
    assert axes["logits"][:2] == ["batch", "decoder_length"]
    assert not [weight.name for weight in onnx.load(path).graph.initializer if 0 in weight.dims]
    batches = [
        {
            "input_ids": torch.full((2, length), 7),
            "attention_mask": torch.ones(2, length, dtype=torch.long),
            "decoder_input_ids": torch.full((2, target), 9),
        }
        for length, target in ((12, 12), (12, 5), (5, 12), (12, 1))
    ]
    assert_same_logits(path, model, batches)


def test_the_model_stays_as_it_was(tmp_path):
    model = small("bert", NONE, layers=1).train()
    model.bert.embeddings.requires_grad_(False)

    def state():
        attention = model.config._attn_implementation
        return [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()], attention

    before, weights = state(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.get_rng_state()
    gnorm.export_onnx(model, tmp_path / "model.onnx", ["input_ids", "attention_mask"])
    assert state() == before
    assert before[2] == "sdpa"
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    with torch.enable_grad():
        model(**batches_of(model)[0]).loss.backward()


def test_weights_that_are_too_large_for_the_file_lie_beside_it(bert, export, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    export(bert, tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in list(tmp_path.glob("model.*")):
        file.rename(moved / file.name)
    batch = batches_of(bert)[0]
    assert_same_logits(moved / "model.onnx", bert, [batch | {"token_type_ids": torch.zeros_like(batch["input_ids"])}])


@pytest.mark.parametrize("taken", ["model.onnx", "model.onnx.data"])
def test_a_path_that_exists_is_refused(bert, export, taken, tmp_path):
    (tmp_path / taken).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{taken} exists already: delete it, or give another name"):
        export(bert, tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "mine"


def test_a_file_that_exists_is_replaced_where_that_is_asked(bert, export, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("mine")
    path.with_name("model.onnx.data").write_text("mine too")
    with pytest.raises(ValueError, match="are up to"):
        export(bert, path, tolerance=0, overwrite=True)
    assert sorted(file.read_text() for file in tmp_path.iterdir()) == ["mine", "mine too"]
    assert export(bert, path, overwrite=True) == path
    batch = batches_of(bert, 1)[0]
    assert_same_logits(path, bert, [batch | {"token_type_ids": torch.zeros_like(batch["input_ids"])}])
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]  # the weights are in it, none lie beside


def test_the_weights_beside_a_file_are_replaced_with_it(tmp_path, monkeypatch):
    """Those above 2 GB, made small here."""

    def write(model, path, example):
        path.write_text("new")
        path.with_name(path.name + ".data").write_text("new weights")

    monkeypatch.setattr("gnorm.shipping.export._write", write)
    monkeypatch.setattr("gnorm.shipping.export._check", lambda *_: None)
    (tmp_path / "model.onnx").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    gnorm.export_onnx(tiny_model("bert"), tmp_path / "model.onnx", overwrite=True)
    found = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert found == {"model.onnx": "new", "model.onnx.data": "new weights", "notes.txt": "mine"}


def test_a_folder_that_is_empty_takes_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("gnorm.shipping.export._write", lambda model, path, example: path.write_text("new"))
    monkeypatch.setattr("gnorm.shipping.export._check", lambda *_: None)
    model = tiny_model("bert")
    assert gnorm.export_onnx(model, tmp_path) == tmp_path / "model.onnx"
    with pytest.raises(FileExistsError, match="exists already and holds model.onnx"):
        gnorm.export_onnx(model, tmp_path)
    (tmp_path / "model.onnx").write_text("old")
    assert gnorm.export_onnx(model, tmp_path, overwrite=True).read_text() == "new"
    (tmp_path / "a.onnx").mkdir()
    (tmp_path / "b.onnx.data").mkdir()
    with pytest.raises(FileExistsError, match=r"b.onnx.data is a folder: give the name of a file"):
        gnorm.export_onnx(model, tmp_path / "b.onnx", overwrite=True)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(bert, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    found = importlib.util.find_spec("gnorm.shipping.export")
    anew = importlib.util.module_from_spec(found)
    found.loader.exec_module(anew)  # as `import gnorm` does, which needs none of them
    path = tmp_path / "model.onnx"
    for call in (
        lambda: anew.export_onnx(bert, path),
        lambda: anew.Exported(path),
        lambda: gnorm.cost(bert, onnx=True),
    ):
        with pytest.raises(
            ModuleNotFoundError, match=rf"^{package} cannot .*: pip install onnx onnxscript onnxruntime\.$"
        ):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [0.01, float("nan")])
def test_a_file_with_other_logits_than_the_model_is_not_left_behind(export, value, tmp_path):
    model = small("bert", UNEQUAL).train()
    model.classifier.bias.data += value
    with pytest.raises(ValueError, match=r"logits of model.onnx are up to (1.0e-02|nan) away .* more than 1e-04: give"):
        export(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    if value == 0.01:
        assert export(model, tmp_path / "model.onnx", tolerance=0.02).exists()


def test_a_file_that_takes_one_batch_size_alone_is_not_left_behind(tmp_path, monkeypatch):
    export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **named: export(*args, **named | {"dynamic_shapes": None}))
    with pytest.raises(ValueError, match=r"onnxruntime cannot run model.onnx on other batch sizes .*: keep the model"):
        gnorm.export_onnx(small("vit", NONE, layers=1), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"the model is in torch.bfloat16, .*: export model.float\(\)"):
        gnorm.export_onnx(tiny_model("bert").bfloat16(), path)
    with pytest.raises(ValueError, match="takes no 'pixel_values': choose from input_ids, attention_mask"):
        gnorm.export_onnx(tiny_model("bert"), path, ["input_ids", "pixel_values"])
    with pytest.raises(TypeError, match="is not a model of transformers"):
        gnorm.export_onnx(torch.nn.Linear(2, 2), path)
    assert not list(tmp_path.iterdir())


def test_the_cost_table_has_the_time_of_exported_models_where_it_is_asked_for():
    model = small("vit", NONE, layers=1)
    table = gnorm.cost(model, batch_sizes=(1, 3), rounds=1, seconds=0, onnx=True)
    plain = gnorm.cost(model, batch_sizes=(1, 3), rounds=1, seconds=0)
    assert list(table) == [*plain, "ms onnx", "ms onnx after"]
    counted = ["batch", "length", "parameters", "parameters after", "GFLOP", "GFLOP after"]
    assert table[counted].equals(plain[counted])
    assert (table[["ms onnx", "ms onnx after"]] > 0).all(axis=None)


def test_exported_models_take_their_turns_with_the_others(monkeypatch):
    model = small("vit", ((1, 0, 0, 1),), layers=1)
    seen = []

    def times(models, *_):
        seen.append([type(model).__name__ for model in models])
        return torch.tensor([[0.004, 0.003, 0.002, 0.001]]).numpy()

    monkeypatch.setattr(
        "gnorm.shipping.costs._exported", lambda models, _: [Exported.__new__(Exported) for _ in models]
    )
    monkeypatch.setattr("gnorm.shipping.costs.seconds_of", times)
    row = gnorm.cost(model, batch_sizes=(1,), onnx=True).iloc[0]
    assert seen == [["ViTForImageClassification"] * 2 + ["Exported"] * 2]
    close(row[["ms", "ms after", "ms onnx", "ms onnx after"]].tolist(), [4, 3, 2, 1], torch.float64)


@pytest.mark.soak
@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "gemma", "modernbert", "t5", "bart", "marian", "beit", "wav2vec2", "granite"]
)
def test_decoders_images_and_sounds_are_exported_too(name, tmp_path):
    model = make(name)
    gnorm.remove_heads(model, random_masks(gnorm.head_mask_of(model).shape)[0])
    inputs = inputs_of(model, batch=3, length=usual_lengths(model)[0])
    assert_same_logits(gnorm.export_onnx(model, tmp_path / "model.onnx"), model, [inputs])


def test_a_model_without_logits_of_texts_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"BertModel gives no logits, not .* load it as a sequence classifier"):
        gnorm.export_onnx(tiny_model("bert").bert, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
