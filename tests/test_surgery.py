"""Saving and loading pruned models."""

import copy
import json
import pickle

import accelerate
import datasets
import pytest
import safetensors.torch
import torch
import transformers
from models import make, random_masks
from precision import close
from test_heads import BATCH, logits, random_mask
from tiny import ragged_batches, tiny_model, without_elements

import gnorm
from gnorm.engine.model.families import FAMILIES


def test_a_pruned_model_reloads_equal_to_the_masked_one(model, tmp_path):
    mask = random_mask(model, empty_layer=0)
    with gnorm.masked(model, mask):
        expected = logits(model)
    gnorm.remove_heads(model, mask)
    folder = gnorm.save_pruned(model, tmp_path / "pruned ünd saved")
    reloaded = gnorm.load_pruned(folder)
    assert torch.equal(logits(reloaded), logits(model))
    close(logits(reloaded), expected)
    assert torch.equal(gnorm.head_mask_of(reloaded), mask)
    assert not reloaded.training
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]


def test_an_intact_model_saves_and_loads_too_and_can_be_pruned_again(tmp_path):
    model = tiny_model("bert")
    reloaded = gnorm.load_pruned(gnorm.save_pruned(model, tmp_path / "model"))
    assert torch.equal(logits(reloaded), logits(model))
    mask = random_mask(model)
    gnorm.remove_heads(reloaded, mask)
    again = gnorm.load_pruned(gnorm.save_pruned(reloaded, tmp_path / "again"), attn_implementation="eager")
    assert again.config._attn_implementation == "eager"
    assert torch.equal(gnorm.head_mask_of(again), mask)


def test_half_precision_is_kept(tmp_path):
    model = tiny_model("bert").to(torch.bfloat16)
    gnorm.remove_heads(model, random_mask(model))
    folder = gnorm.save_pruned(model, tmp_path / "half")
    assert gnorm.load_pruned(folder).dtype == torch.bfloat16
    assert gnorm.load_pruned(folder, dtype=torch.float32).dtype == torch.float32


def test_a_folder_is_not_overwritten(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        gnorm.save_pruned(tiny_model("bert"), tmp_path / "model")


def test_a_failure_while_saving_leaves_nothing(tmp_path, monkeypatch):
    model = tiny_model("bert")
    monkeypatch.setattr(type(model), "save_pretrained", None)
    with pytest.raises(TypeError):
        gnorm.save_pruned(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_loaded_say_why(tmp_path):
    model = tiny_model("bert")
    with pytest.raises(FileNotFoundError, match=r"has no config.json: give a folder that gnorm.save_pruned wrote"):
        gnorm.load_pruned(tmp_path)
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="has no head_mask"):
        gnorm.load_pruned(tmp_path / "plain")
    gnorm.remove_heads(model, random_mask(model))
    folder = gnorm.save_pruned(model, tmp_path / "pruned")
    config = json.loads((folder / "config.json").read_text())
    config["head_mask"][1] = [1, 1, 1, 1]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="contradict the head mask"):
        gnorm.load_pruned(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors"):
        gnorm.load_pruned(folder)


@pytest.mark.parametrize(
    ("damage", "error", "complaint"),
    [
        (lambda config: config.update(head_mask=[[1, 1, 1, 1]] * 2), ValueError, "this model needs .* = .3, 4."),
        (lambda config: config.update(head_mask=[[2, 1, 1, 1]] * 3), ValueError, "other than 0 and 1"),
        (lambda config: config.update(architectures=["NoSuchModel"]), ValueError, "names no architecture of transform"),
        (lambda config: config.pop("architectures"), ValueError, "names no architecture of transformers"),
        (lambda config: config.update(model_type="no-such-type"), ValueError, "no-such-type"),
        (lambda config: config.update(num_hidden_layers=2, head_mask=[[1, 1, 1, 1]] * 2), ValueError, "do not match"),
    ],
)
def test_a_config_that_was_altered_is_refused(damage, error, complaint, tmp_path):
    folder = gnorm.save_pruned(tiny_model("bert"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    damage(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=complaint):
        gnorm.load_pruned(folder)


def test_damaged_weights_are_refused(tmp_path):
    folder = gnorm.save_pruned(tiny_model("bert"), tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="are damaged .*: save the model anew"):
        gnorm.load_pruned(folder)


def test_an_option_that_does_not_exist_is_refused(tmp_path):
    folder = gnorm.save_pruned(tiny_model("bert"), tmp_path / "model")
    with pytest.raises(TypeError, match="no_such_option"):
        gnorm.load_pruned(folder, no_such_option=1)


def test_the_weights_of_another_mask_with_as_many_heads_are_told_apart_by_layer(tmp_path):
    model = tiny_model("bert")
    mask = torch.ones(3, 4)
    mask[0, :2] = 0
    gnorm.remove_heads(model, mask)
    folder = gnorm.save_pruned(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["head_mask"] = config["head_mask"][::-1]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"contradict the head mask in its config.json: .* is \(.*\), the mask needs"):
        gnorm.load_pruned(folder)
    model.config.head_mask = config["head_mask"]
    with pytest.raises(ValueError, match="layer 0 has 16 query rows, its 4 heads of 8 need 32"):
        gnorm.attention_blocks(model)


def test_tokenizer_and_card_go_into_the_folder(tmp_path):
    tokenizer = transformers.BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5})
    folder = gnorm.save_pruned(tiny_model("bert"), tmp_path / "model", tokenizer, "# a card, ünd so weiter")
    assert (folder / "README.md").read_text("utf-8") == "# a card, ünd so weiter"
    assert transformers.AutoTokenizer.from_pretrained(folder)("a")["input_ids"] == [2, 5, 3]


# ---------------------------------------------------------------- what a pruned model still has to do


@pytest.fixture(params=["bert", "albert", "mpnet", "vit"])
def pruned(request):
    """A model with unequal layers, one of them empty (all of them for albert's one block)."""
    model = make(request.param)
    gnorm.remove_heads(model, random_masks(gnorm.head_mask_of(model).shape)[0])
    return model


def inputs_of(model):
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    return BATCH


def test_pruned_models_are_traced_whole_by_the_compiler(pruned):
    """Without a graph break; what the backend then makes of the graph is not ours to test."""
    inputs = inputs_of(pruned)
    with torch.no_grad():
        compiled = torch.compile(pruned, backend="eager", fullgraph=True)(**inputs).logits
        close(compiled, pruned(**inputs).logits)
    torch._dynamo.reset()


def test_pruned_models_are_copied_and_pickled_with_what_was_removed(pruned):
    expected = pruned(**inputs_of(pruned)).logits
    for other in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert torch.equal(other(**inputs_of(pruned)).logits, expected)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()  # nothing of the copy is shared with the model
        assert torch.equal(pruned(**inputs_of(pruned)).logits, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pruned_models_run_in_half_precision(pruned, dtype):
    expected = pruned(**inputs_of(pruned)).logits
    half = pruned.to(dtype)
    inputs = {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs_of(pruned).items()}
    found = half(**inputs).logits
    assert found.dtype == dtype
    close(found.float(), expected, dtype)


def test_gradients_of_a_pruned_model_are_those_of_the_masked_one():
    model = tiny_model("bert")
    mask = random_mask(model, empty_layer=1)
    masked = copy.deepcopy(model)
    batch = ragged_batches(1, 6)[0]
    with gnorm.masked(masked, mask):
        masked(**batch).loss.backward()
    gnorm.remove_heads(model, mask)
    model(**batch).loss.backward()
    for block, other, row in zip(gnorm.attention_blocks(model), gnorm.attention_blocks(masked), mask, strict=True):
        rows = row.repeat_interleave(8)
        if row.any():
            close(block.query.weight.grad, other.query.weight.grad[rows])
            close(block.value.bias.grad, other.value.bias.grad[rows])
            close(block.output.weight.grad, other.output.weight.grad[:, rows])
        bias = block.output.bias if row.any() else block.owner.output.dense_bias
        close(bias.grad, other.output.bias.grad)


def test_a_trainer_trains_saves_and_evaluates_a_pruned_model(tmp_path):
    model = tiny_model("bert")
    mask = random_mask(model, empty_layer=1)
    gnorm.remove_heads(model, mask)
    rows = [
        {name: tensor[i] for name, tensor in batch.items()} | {"labels": int(batch["input_ids"][i, 0]) % 3}
        for batch in ragged_batches(3, 8, longest=9)
        for i in range(len(batch["labels"]))
    ]
    width = max(len(row["input_ids"]) for row in rows)
    rows = [
        {
            n: torch.nn.functional.pad(t, (0, width - len(t)), value=int(n == "input_ids")).tolist()
            for n, t in row.items()
            if n != "labels"
        }
        | {"labels": row["labels"]}
        for row in rows
    ]
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(tmp_path / "trainer"), num_train_epochs=8, learning_rate=5e-3, report_to="none", disable_tqdm=True,
            per_device_train_batch_size=8, save_strategy="epoch", save_total_limit=1, use_cpu=True,
            logging_strategy="no",
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(rows),
    )  # fmt: skip
    untrained = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < untrained / 2
    (checkpoint,) = (tmp_path / "trainer").glob("checkpoint-*")
    reloaded = gnorm.load_pruned(checkpoint)
    assert torch.equal(gnorm.head_mask_of(reloaded), mask)
    assert torch.equal(logits(reloaded), logits(model))


EMPTY = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]])


@pytest.mark.parametrize("left", ["all", "one", "none"], ids=lambda left: f"{left} of the empty tensors")
@pytest.mark.parametrize("name", ["bert", "mpnet", "albert"])
def test_folders_of_version_1_with_weights_without_elements_are_read(name, left, tmp_path):
    """There a layer without heads had projections of size 0; accelerate's save_model dropped all of them but one."""
    model = make(name)
    mask = EMPTY if name != "albert" else torch.zeros(1, 4, dtype=torch.long)
    before = {path: module for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    with gnorm.masked(model, mask):
        expected = logits(model)
    gnorm.remove_heads(model, mask)
    folder = gnorm.save_pruned(model, tmp_path / "model")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    gone = {}
    for path in before.keys() - {path for path, _ in model.named_modules()}:
        output = weights.pop(f"{path}_bias", None)
        gone[f"{path}.weight"] = torch.zeros(0, 32) if output is None else torch.zeros(32, 0)
        gone[f"{path}.bias"] = torch.zeros(0) if output is None else output
    assert len(gone) == 8
    empty = sorted(path for path, tensor in gone.items() if not tensor.numel())
    for path in {"all": [], "one": empty[1:], "none": empty}[left]:
        del gone[path]
    safetensors.torch.save_file(weights | gone, folder / "model.safetensors", {"format": "pt"})
    read = gnorm.load_pruned(folder)
    close(logits(read), expected)
    assert torch.equal(gnorm.head_mask_of(read), mask.bool())
    assert not without_elements(read)
    assert read.state_dict().keys() == model.state_dict().keys()
    whole = min(before.keys() & {path.rpartition(".")[0] for path in gone})
    gone[f"{whole}.weight"] = torch.zeros(32, 32)
    safetensors.torch.save_file(weights | gone, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"contradict the head mask in its config.json: .* the mask needs"):
        gnorm.load_pruned(folder)


def test_a_row_that_skips_nothing_leaves_no_weight_without_elements(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "bert", FAMILIES["bert"])
    gnorm.register("bert", "encoder.layer.*.attention", "self.query", "self.key", "self.value", "output.dense")
    model = tiny_model("bert")
    with gnorm.masked(model, EMPTY):
        expected = logits(model)
    gnorm.remove_heads(model, EMPTY)
    assert not without_elements(model)
    close(logits(model), expected)
    read = gnorm.load_pruned(gnorm.save_pruned(model, tmp_path / "model"))
    assert torch.equal(logits(read), logits(model))


@pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor", "ignore:.*quantized tensor"
)
def test_a_layer_without_heads_is_right_in_eight_bits_in_optimizers_and_in_other_savers(tmp_path):
    """Weights without elements gave wrong numbers in torch's qint8, ZeroDivisionError in Adafactor and a folder that
    could not be read by accelerate."""
    model = tiny_model("bert")
    gnorm.remove_heads(model, EMPTY)
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert torch.equal(gnorm.head_mask_of(model), EMPTY.bool())
    assert 0 < float((logits(quantised) - logits(model)).abs().max()) < 0.1
    folder = gnorm.save_pruned(model, tmp_path / "model")
    accelerate.Accelerator(cpu=True).save_model(model, folder)
    assert torch.equal(logits(gnorm.load_pruned(folder)), logits(model))
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.1)
    model(**ragged_batches(1, 6)[0]).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=float("inf"))
    optimizer.step()
    bias = "bert.encoder.layer.1.attention.output.dense_bias"
    assert not torch.equal(model.state_dict()[bias], before[bias])
    model.load_state_dict(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_batches_prepared_for_a_model_fit_it_once_a_layer_is_empty():
    model = tiny_model("bert")
    prepared = gnorm.prepare(ragged_batches(), model)
    gnorm.remove_heads(model, EMPTY)
    assert [*gnorm.prepare(prepared, model)] == [*prepared]


def test_a_block_without_heads_says_that_it_has_no_projections():
    model = tiny_model("bert")
    gnorm.remove_heads(model, EMPTY)
    block = gnorm.attention_blocks(model)[1]
    assert (block.kept, block.projections) == ((), ())
    with pytest.raises(ValueError, match="BertSelfAttention has no query projection any more: all its heads"):
        _ = block.query
    with gnorm.masked(model, torch.ones(3, 4)):
        kept = logits(model)
    gnorm.remove_heads(model, torch.ones(3, 4))
    assert torch.equal(logits(model), kept)


@pytest.mark.parametrize("content", ["", "[" * 100_000, "null"])
def test_a_damaged_configuration_is_named(tmp_path, content):
    folder = gnorm.save_pruned(tiny_model("bert"), tmp_path / "model")
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        gnorm.load_pruned(folder)


@pytest.mark.parametrize("name", ["pipeline", "BertConfig", 3])
def test_an_architecture_that_is_no_model_is_refused(tmp_path, name):
    folder = gnorm.save_pruned(tiny_model("bert"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": [name]}))
    with pytest.raises(ValueError, match=r"names no architecture of transformers"):
        gnorm.load_pruned(folder)


def test_what_is_no_model_leaves_no_folder(tmp_path):
    with pytest.raises(TypeError, match="Linear is not a model of transformers"):
        gnorm.save_pruned(torch.nn.Linear(2, 2), tmp_path / "model")
    assert not any(tmp_path.iterdir())


def whisper(heads):
    """A Whisper of 2 + 2 layers with 4 heads, which takes timestamps of words from these (layer, head)."""
    torch.manual_seed(3)
    sizes = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 90, "num_mel_bins": 8}
    sizes |= {
        f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("attention_heads", 4))
    }
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 3}
    config = transformers.WhisperConfig(
        max_source_positions=30, max_target_positions=24, init_std=0.5, median_filter_width=3, eos_token_id=2, **sizes,
        suppress_tokens=None, begin_suppress_tokens=None, **tokens,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    model.generation_config = transformers.GenerationConfig(
        alignment_heads=heads, no_timestamps_token_id=60, is_multilingual=False, suppress_tokens=[*range(60, 90)],
        max_length=24, eos_token_id=89, **tokens,
    )  # fmt: skip
    return model


def timestamps(model):
    """(text, token) the seconds of each token."""
    sounds = torch.randn(2, 8, 60, generator=torch.Generator().manual_seed(0))
    options = {"return_token_timestamps": True, "max_new_tokens": 6}
    return model.generate(sounds, attention_mask=torch.ones(2, 60, dtype=torch.long), **options)["token_timestamps"]


CROSSING = 4  # the first row of cross-attention


@pytest.mark.parametrize(
    ("removals", "left"),
    [
        ([[(0, 0)]], [[0, 0], [1, 2]]),
        ([[(0, 0), (0, 3), (1, 3)]], [[0, 0], [1, 2]]),
        ([[(1, 2)]], [[0, 1]]),
        ([[(0, 0)], [(0, 0), (1, 1)], [(1, 0)]], [[0, 0], [1, 0]]),  # one removal after the other
        ([[(0, slice(None))]], [[1, 2]]),
    ],
)
def test_heads_that_timestamps_are_taken_from_are_numbered_anew(removals, left, tmp_path):
    intact, smaller = whisper([[0, 1], [1, 2]]), whisper([[0, 1], [1, 2]])
    other, total = copy.copy(smaller), torch.ones(6, 4)  # another model with the same generation configuration
    for removed in removals:
        mask = torch.ones(6, 4)
        for layer, head in removed:
            mask[CROSSING + layer, head] = 0
        gnorm.remove_heads(smaller, mask)
        total *= mask
    assert smaller.generation_config.alignment_heads == left
    assert other.generation_config.alignment_heads == [[0, 1], [1, 2]]
    intact.generation_config.alignment_heads = [[i, h] for i, h in [[0, 1], [1, 2]] if total[CROSSING + i, h]]
    with gnorm.masked(intact, total):
        expected = timestamps(intact)
    reloaded = gnorm.load_pruned(gnorm.save_pruned(smaller, tmp_path / "model"))
    for model in (smaller, reloaded):
        close(timestamps(model), expected)


def test_timestamps_without_any_of_their_heads_are_refused(caplog):
    model, mask = whisper([[0, 1]]), torch.ones(6, 4)
    mask[CROSSING, 1] = 0
    gnorm.remove_heads(model, mask)
    assert "no head of generation_config.alignment_heads is left: it is deleted" in caplog.text
    with pytest.raises(ValueError, match="no `alignment_heads`, token-level timestamps not available"):
        timestamps(model)


@pytest.mark.parametrize("heads", [[[0, 4]], [[2, 0]], [[0]], [0, 1], 3])
def test_numbers_of_heads_that_a_model_does_not_have_are_refused(heads):
    model = whisper(heads)
    with pytest.raises(ValueError, match=r"generation_config.alignment_heads=.* of 2 layers of cross-attention: corr"):
        gnorm.remove_heads(model, torch.arange(24).view(6, 4) != 17)
    assert gnorm.head_mask_of(model).all()
    model.generation_config.alignment_heads = None
    gnorm.remove_heads(model, torch.arange(24).view(6, 4) != 17)
