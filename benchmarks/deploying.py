r"""What a pruned folder does in the tools that people deploy with: python -m benchmarks.deploying [TOOL ...]

Prints the table of docs/deploying.md. Tiny models of random weights are saved as folders and given to each tool:
intact, with unequal heads, and with these and no heads in the last or the first layer. A number is the largest
difference between a logit of the tool and of the masked intact model in transformers; a tool that gives tokens has the
number of greedy tokens that differ. Each tool runs in a process of its own, as some change torch and some end the
process. Exit code 1: a tool is not installed.

The tools, beside what `make setup` brings:
    pip install --no-deps torchao==0.18.0 bitsandbytes==0.50.2 onnxsim==0.8.1 onnxslim==0.1.98 colorama==0.4.6 \
        onnxconverter-common==1.16.0 openvino==2026.4.1 openvino-telemetry==2025.2.0 nncf==3.4.0 peft==0.21.2 \
        sentence-transformers==6.2.0 setfit==1.2.0 evaluate==0.4.6 gguf==0.19.0 xllamacpp==2026.10.11549
    npm install --ignore-scripts @huggingface/transformers@4.3.2    # NODE_PATH says where it lies
    pip install --no-deps --target OLDER transformers==4.57.6 huggingface_hub==0.36.0 tokenizers==0.22.1
        # GNORM_OLDER says where it lies
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import tokenizers
import torch
import transformers
from torch import Tensor, nn

import gnorm
from benchmarks.cases import Case, model_of, sizes, texts_of
from gnorm.shipping.export import Exported

NEW_TOKENS = 8
TEXTS = 8
EXACT = 1e-4  # of this, the largest difference of all models is given
LONGEST = 12  # tokens of a text
KINDS = ("intact", "unequal heads", "last layer of no heads", "first layer of no heads")
INPUTS = ("input_ids", "attention_mask", "decoder_input_ids")
SIZES = sizes(96, layers=2, hidden=256, heads=8, max_position_embeddings=64)  # heads of 32, as kernels want them
FAR_APART = {"initializer_range": 0.1}  # attention far from uniform, so that heads differ


def of_type(name: str, auto: str, model_type: str, **more: Any) -> tuple[Case, str]:
    """A case and the Auto class of its model."""
    return Case(name, model_type, SIZES | more, texts=TEXTS, batch=4, longest=LONGEST), auto


CLASSIFIER, DECODER, SEQ2SEQ = "ForSequenceClassification", "ForCausalLM", "ForSeq2SeqLM"
NO_SPECIAL = {"bos_token_id": None, "eos_token_id": None}  # generation goes on to its end
MODELS = {
    case.name: (case, "AutoModel" + auto)
    for case, auto in (
        of_type("BERT", CLASSIFIER, "bert", **FAR_APART),
        of_type("ALBERT", CLASSIFIER, "albert", embedding_size=16, **FAR_APART),
        of_type("GPT-2", DECODER, "gpt2", pad_token_id=0, **FAR_APART, **NO_SPECIAL),
        of_type("Llama", DECODER, "llama", num_key_value_heads=4, pad_token_id=0, **FAR_APART, **NO_SPECIAL),
        of_type(
            "T5", SEQ2SEQ, "t5", d_kv=32, num_decoder_layers=2, d_ff=512, initializer_factor=1.0, eos_token_id=None
        ),
    )
}
ENCODERS, DECODERS = ("BERT", "ALBERT"), ("GPT-2", "Llama")
GENERATING = (*DECODERS, "T5")


@dataclass(frozen=True)
class Pruned:
    """A model as ``save_pruned`` wrote it, beside it model.onnx and what the masked intact model gives."""

    name: str
    kind: str
    folder: Path

    @property
    def onnx(self) -> Path:
        return self.folder / "onnx" / "model.onnx"

    def scratch(self, name: str) -> Path:
        """A path for what a tool writes of it."""
        return self.folder / name

    def model(self, **options: Any) -> Any:
        """The model as transformers alone loads it."""
        auto = getattr(transformers, MODELS[self.name][1])
        return auto.from_pretrained(self.folder, trust_remote_code=True, **options).eval()

    def expected(self) -> list[dict[str, Any]]:
        """For each batch: its inputs, the logits, the last hidden states, the tokens of ``generate``."""
        return torch.load(self.folder / "expected.pt")

    def off(self, run: Callable[[dict[str, Tensor]], Any], of: str = "logits") -> float:
        """The largest difference between what ``run`` gives for a batch and the masked model, padding left out."""
        return max(
            difference(torch.as_tensor(run(each["inputs"])), each[of], each["inputs"]) for each in self.expected()
        )

    def tokens_off(self, generated: Callable[[list[list[int]]], list[list[int]]]) -> int:
        """How many of the tokens differ that follow the texts; a token that is missing differs."""
        texts, expected = [], []
        for each in self.expected():
            texts += [ids[mask.bool()].tolist() for ids, mask in zip(*(each["inputs"][name] for name in INPUTS[:2]))]
            expected += each["tokens"]
        off = 0
        for found, tokens in zip(generated(texts), expected, strict=True):
            off += sum(a != b for a, b in zip(found, tokens)) + max(0, len(tokens) - len(found))
        return off


def difference(found: Tensor, expected: Tensor, inputs: dict[str, Tensor]) -> float:
    """The largest difference, infinity where the shapes differ; NaN counts."""
    if found.shape != expected.shape:
        return math.inf
    gap = (found.float() - expected).abs()
    if gap.shape[:2] == inputs["attention_mask"].shape:
        gap = gap[inputs["attention_mask"].bool()]
    return float(gap.max())


def intact_model(name: str) -> Any:
    """The intact model of a row of ``MODELS``, in its Auto class."""
    case, auto = MODELS[name]
    if auto.endswith(CLASSIFIER):
        return model_of(case)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(case.model_type, **case.config)
    model = getattr(transformers, auto).from_config(config).eval()
    model.generation_config = transformers.GenerationConfig(pad_token_id=0, decoder_start_token_id=0)
    return model


def masks(model: Any) -> dict[str, Tensor]:
    """(layer, head) masks by kind."""
    ones = gnorm.head_mask_of(model)
    unequal = ones.clone()
    for layer, row in enumerate(unequal):
        row[: 1 + layer % 2] = False
    without_last, without_first = unequal.clone(), unequal.clone()
    without_last[-1] = without_first[0] = False
    return dict(zip(KINDS, (ones, unequal, without_last, without_first)))


def tokenizer() -> Any:
    """Token i is the word "w<i>"."""
    special = ["[PAD]", "[UNK]"]  # none is part of a word
    words = {word: i for i, word in enumerate(special + [f"w{i}" for i in range(2, SIZES["vocab_size"])])}
    word_level = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    word_level.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_level,
        pad_token="[PAD]",
        **dict.fromkeys(("unk_token", "bos_token", "eos_token"), "[UNK]"),
    )


@torch.no_grad()
def write_folders(root: Path) -> list[Pruned]:
    """The folder of each model and kind, with its ONNX file and what the masked intact model gives."""
    found = []
    for name, (case, _) in MODELS.items():
        model = intact_model(name)
        batches = [{k: batch[k] for k in INPUTS[:2]} for batch in texts_of(case, case.texts)]
        if name == "T5":
            batches = [batch | {"decoder_input_ids": batch["input_ids"][:, :4]} for batch in batches]
        for kind, mask in masks(model).items():
            folder = root / f"{name} {kind}".replace(" ", "_")
            with gnorm.masked(model, mask):
                expected = [expected_of(model, batch) for batch in batches]
            removed = gnorm.load_pruned(gnorm.save_pruned(model, root / "intact", overwrite=True))
            gnorm.remove_heads(removed, mask)
            gnorm.save_pruned(removed, folder, tokenizer())
            torch.save(expected, folder / "expected.pt")
            pruned = Pruned(name, kind, folder)
            pruned.onnx.parent.mkdir()
            gnorm.export_onnx(removed, pruned.onnx, [name for name in INPUTS if name in batches[0]])
            found.append(pruned)
    return found


def expected_of(model: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
    given = {"inputs": batch, "logits": model(**batch).logits}
    if not model.config.is_encoder_decoder:
        given["states"] = model(**batch, output_hidden_states=True).hidden_states[-1]
    if model.can_generate():
        texts = [ids[mask.bool()][None] for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
        given["tokens"] = [generate(model, ids) for ids in texts]
    return given


def generate(model: Any, ids: Tensor, **cache: Any) -> list[int]:
    """The greedy tokens that follow one text (1, token); cache: options of ``generate``."""
    after = 1 if model.config.is_encoder_decoder else ids.shape[1]
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    return model.generate(ids, **options, **cache)[0, after:].tolist()


class Logits(nn.Module):
    """A model whose forward pass takes the inputs in the order of ``INPUTS`` and gives logits alone."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        for module in model.modules():  # T5's decoder has a configuration of its own
            if hasattr(module, "config"):
                module.config.use_cache = False

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(INPUTS, inputs))).logits


def logits_of(model: Any) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda batch: model(**batch).logits


# ------------------------------------------------------------------------------------------ transformers


def transformers_alone(pruned: Pruned) -> float:
    return pruned.off(logits_of(pruned.model()))


def transformers_older(pruned: Pruned) -> float:
    """transformers of another version, in a process of its own; this one has all that the tools need."""
    auto = MODELS[pruned.name][1]
    code = (
        f"import torch, transformers\nmodel = transformers.{auto}.from_pretrained({str(pruned.folder)!r}, "
        "trust_remote_code=True).eval()\nexpected = torch.load('expected.pt')\nwith torch.no_grad():\n"
        "    torch.save([model(**each['inputs']).logits for each in expected], 'older.pt')"
    )
    process(sys.executable, "-c", code, cwd=pruned.folder, PYTHONPATH=os.environ["GNORM_OLDER"])
    logits = iter(torch.load(pruned.folder / "older.pt"))
    return pruned.off(lambda batch: next(logits))


STATIC, IN_PIECES = {"cache_implementation": "static"}, {"prefill_chunk_size": 4}
CACHES: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "prompt in pieces": IN_PIECES,
    "guessed tokens": {"prompt_lookup_num_tokens": 2},
    "static cache": STATIC,
    "static cache, prompt in pieces": STATIC | IN_PIECES,
    "cache of 8 bits": {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}},
}


def transformers_generate(pruned: Pruned, **cache: Any) -> int:
    model = pruned.model()
    return pruned.tokens_off(lambda texts: [generate(model, torch.tensor([ids]), **cache) for ids in texts])


def continuous_batching(pruned: Pruned) -> int:
    model = pruned.model(attn_implementation="sdpa")
    options = transformers.GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
    small = transformers.ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)  # else all the memory there is

    def generated(texts: list[list[int]]) -> list[list[int]]:
        requests = model.generate_batch(texts, options, small)
        if errors := [request.error for request in requests.values() if request.error]:
            raise RuntimeError(errors[0])
        return [request.generated_tokens for request in requests.values()]

    return pruned.tokens_off(generated)


def feature_extraction(pruned: Pruned) -> float:
    extract = transformers.pipeline("feature-extraction", model=str(pruned.folder), trust_remote_code=True)
    return pruned.off(lambda batch: padded([torch.tensor(extract(text)[0]) for text in words(batch)]), "states")


def words(batch: dict[str, Tensor]) -> list[str]:
    """The texts of a batch as words."""
    pairs = zip(batch["input_ids"], batch["attention_mask"])
    return [" ".join(f"w{i}" for i in ids[mask.bool()].tolist()) for ids, mask in pairs]


def padded(rows: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


# ------------------------------------------------------------------------------------------ sentence-transformers


def sentence_transformer(pruned: Pruned) -> float:
    from sentence_transformers import SentenceTransformer

    return embeddings_off(pruned, SentenceTransformer(str(pruned.folder), trust_remote_code=True).encode)


def setfit_body(pruned: Pruned) -> float:
    from setfit import SetFitModel

    return embeddings_off(pruned, SetFitModel.from_pretrained(pruned.folder, trust_remote_code=True).encode)


def embeddings_off(pruned: Pruned, encode: Callable[[list[str]], Any]) -> float:
    """The largest difference between an embedding and the mean of the masked model's last hidden states."""
    worst = 0.0
    for each in pruned.expected():
        mask = each["inputs"]["attention_mask"][..., None]
        means = (each["states"] * mask).sum(1) / mask.sum(1)
        worst = max(worst, difference(torch.as_tensor(encode(words(each["inputs"]))), means, each["inputs"]))
    return worst


def cross_encoder(pruned: Pruned) -> float:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(pruned.folder), trust_remote_code=True)

    def run(batch: dict[str, Tensor]) -> Any:
        pairs = [tuple(text.split(maxsplit=1)) for text in words(batch)]  # the first word, the others
        return model.predict(pairs, activation_fn=nn.Identity(), convert_to_tensor=True)

    return pruned.off(run)


# ------------------------------------------------------------------------------------------ ONNX


def by_onnx(path: Path) -> Callable[[dict[str, Tensor]], Tensor]:
    model = Exported(path)
    return lambda batch: model(**batch)


def exported(pruned: Pruned) -> float:
    return pruned.off(by_onnx(pruned.onnx))


def rewritten(write: Callable[[Path, Path], Any], pruned: Pruned) -> float:
    """``write`` (from, to) makes another file of the exported one."""
    to = pruned.scratch("other.onnx")
    write(pruned.onnx, to)
    return pruned.off(by_onnx(to))


def torchscript(pruned: Pruned) -> Path:
    """The model as torch's older exporter writes it."""
    model, inputs, path = (
        pruned.model(attn_implementation="eager"),
        pruned.expected()[0]["inputs"],
        pruned.scratch("ts.onnx"),
    )
    axes = {name: {0: "batch", 1: f"length of {name}" if "decoder" in name else "length"} for name in inputs}
    options: Any = {"input_names": list(inputs), "output_names": ["logits"], "dynamic_axes": axes, "dynamo": False}
    torch.onnx.export(Logits(model).eval(), tuple(inputs.values()), str(path), opset_version=17, **options)
    return path


def older_export(pruned: Pruned) -> float:
    return pruned.off(by_onnx(torchscript(pruned)))


def ort_optimizer(heads: int, hidden: int, of_torchscript: bool, pruned: Pruned) -> float:
    from onnxruntime.transformers.optimizer import optimize_model

    path, to = torchscript(pruned) if of_torchscript else pruned.onnx, pruned.scratch("optimised.onnx")
    optimize_model(str(path), "bert", num_heads=heads, hidden_size=hidden, opt_level=0).save_model_to_file(str(to))
    return pruned.off(by_onnx(to))


def optimize_for_ort(source: Path, to: Path) -> None:
    import onnx_ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model, _ = optimize_for_ort(onnx_ir.load(source))
    onnx_ir.save(model, to)


def int8(source: Path, to: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, to)


def four_bits(source: Path, to: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=32)
    quantizer.process()
    quantizer.model.save_model_to_file(str(to))


def onnxsim(source: Path, to: Path) -> None:
    import onnxsim

    model, same = onnxsim.simplify(onnx.load(source))
    assert same
    onnx.save(model, to)


def onnxslim(source: Path, to: Path) -> None:
    import onnxslim

    onnxslim.slim(str(source), str(to))


def float16(source: Path, to: Path) -> None:
    from onnxconverter_common.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), to)


# ------------------------------------------------------------------------------------------ OpenVINO


def by_openvino(model: Any, names: list[str]) -> Callable[[dict[str, Tensor]], Tensor]:
    import openvino

    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda batch: torch.from_numpy(compiled([batch[name].numpy() for name in names])[0].copy())


def openvino_of_onnx(pruned: Pruned) -> float:
    import openvino

    names = [each.name for each in onnx.load(pruned.onnx).graph.input]
    return pruned.off(by_openvino(openvino.convert_model(pruned.onnx), names))


def openvino_of_torch(pruned: Pruned, change: Callable[[Any], Any] = lambda model: model) -> float:
    import openvino

    inputs = pruned.expected()[0]["inputs"]
    model = Logits(pruned.model(attn_implementation="eager")).eval()
    converted = openvino.convert_model(model, example_input=tuple(inputs.values()))
    return pruned.off(by_openvino(change(converted), list(inputs)))


def nncf_weights(pruned: Pruned) -> float:
    import nncf

    return openvino_of_torch(pruned, partial(nncf.compress_weights, mode=nncf.CompressWeightsMode.INT8_SYM))


# ------------------------------------------------------------------------------------------ torch


def qint8(engine: str, pruned: Pruned) -> float:
    torch.backends.quantized.engine = engine
    return pruned.off(logits_of(torch.ao.quantization.quantize_dynamic(pruned.model(), {nn.Linear}, torch.qint8)))


def torchao_int8(pruned: Pruned) -> float:
    from torchao.quantization import Int8WeightOnlyConfig

    return pruned.off(logits_of(pruned.model(quantization_config=transformers.TorchAoConfig(Int8WeightOnlyConfig()))))


def torchao_dynamic(pruned: Pruned) -> float:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = pruned.model()
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return pruned.off(logits_of(model))


def nf4(pruned: Pruned) -> float:
    options = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["classifier"]
    )
    return pruned.off(logits_of(pruned.model(quantization_config=options, dtype=torch.float32)))


# ------------------------------------------------------------------------------------------ accelerate, peft


def accelerate_saved(pruned: Pruned) -> float:
    from accelerate import Accelerator

    folder = pruned.scratch("accelerate")
    Accelerator(cpu=True).save_model(pruned.model(), folder)
    for file in ("config.json", "modeling_pruned.py"):
        shutil.copy(pruned.folder / file, folder)
    again = Pruned(pruned.name, pruned.kind, folder)
    return max(pruned.off(logits_of(model)) for model in (gnorm.load_pruned(folder), again.model()))


def accelerate_offloaded(pruned: Pruned) -> float:
    from accelerate import cpu_offload, disk_offload

    by_cpu, by_disk = pruned.model(), pruned.model()
    cpu_offload(by_cpu, torch.device("cpu"))
    disk_offload(by_disk, pruned.scratch("offloaded"), torch.device("cpu"))
    return max(pruned.off(logits_of(model)) for model in (by_cpu, by_disk))


def peft_adapter(pruned: Pruned, **options: Any) -> float:
    """An adapter of random weights: read again and merged, against the adapter before; its gradients are finite."""
    import peft

    config = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False, **options)
    torch.manual_seed(0)
    adapted, folder = peft.get_peft_model(pruned.model(), config).eval(), pruned.scratch("adapter")
    inputs = [each["inputs"] for each in pruned.expected()]
    with torch.enable_grad():
        adapted(**inputs[0]).logits.square().sum().backward()
    if not all(bool(p.grad.isfinite().all()) for p in adapted.parameters() if p.grad is not None):
        return math.nan
    adapted.save_pretrained(folder)
    merged = peft.PeftModel.from_pretrained(pruned.model(), folder).merge_and_unload()
    return max(difference(merged(**batch).logits, adapted(**batch).logits, batch) for batch in inputs)


# ------------------------------------------------------------------------------------------ other programs


JS = """
const {%(auto)s, Tensor, env} = require("@huggingface/transformers");
env.allowRemoteModels = false;
const tensor = rows => new Tensor("int64", BigInt64Array.from(rows.flat().map(BigInt)), [rows.length, rows[0].length]);
(async () => {
  const model = await %(auto)s.from_pretrained(%(folder)s, {dtype: "fp32"});
  const found = [];
  for (const batch of %(batches)s) {
    const inputs = Object.fromEntries(Object.entries(batch).map(([name, rows]) => [name, tensor(rows)]));
    found.push(%(found)s);
  }
  console.log(JSON.stringify(found));
})();
"""
JS_LOGITS = "(await model(inputs)).logits.tolist()"
JS_TOKENS = "(await model.generate({...inputs, max_new_tokens: %d, do_sample: false})).tolist().map(r => r.map(Number))"


def in_node(pruned: Pruned, found: str, batches: list[dict[str, Any]]) -> list[Any]:
    values = {"auto": MODELS[pruned.name][1], "folder": json.dumps(str(pruned.folder)), "batches": json.dumps(batches)}
    return json.loads(process("node", "-e", JS % (values | {"found": found})).splitlines()[-1])


def js_logits(pruned: Pruned) -> float:
    batches = [{name: t.tolist() for name, t in each["inputs"].items()} for each in pruned.expected()]
    logits = iter(in_node(pruned, JS_LOGITS, batches))
    return pruned.off(lambda batch: torch.tensor(next(logits)))


def js_generate(pruned: Pruned) -> int:
    def generated(texts: list[list[int]]) -> list[list[int]]:
        alone = [{"input_ids": [ids], "attention_mask": [[1] * len(ids)]} for ids in texts]
        return [tokens[0][len(ids) :] for ids, tokens in zip(texts, in_node(pruned, JS_TOKENS % NEW_TOKENS, alone))]

    return pruned.tokens_off(generated)


def gguf_file(pruned: Pruned, architecture: str) -> Path:
    """A Llama as a GGUF file, with the numbers of heads by layer."""
    import gguf

    model, path = pruned.model(), pruned.scratch(f"{architecture}.gguf")
    config, layers = model.config, model.model.layers
    writer = gguf.GGUFWriter(path, architecture)
    size = config.head_dim
    weights = model.state_dict()
    names = [[f"model.layers.{i}.self_attn.{each}_proj.weight" for each in "qk"] for i in range(len(layers))]
    counts = [[len(weights[name]) // size if name in weights else 0 for name in pair] for pair in names]
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_feed_forward_length([config.intermediate_size] * len(layers))
    writer.add_head_count([heads for heads, _ in counts])
    writer.add_head_count_kv([heads for _, heads in counts])
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"w{i}" for i in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_unk_token_id(2)
    writer.add_add_bos_token(False)
    of_gguf = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DECI, len(layers))
    without = [f"model.layers.{i}.input_layernorm.weight" for i, (heads, _) in enumerate(counts) if not heads]
    for name, tensor in weights.items():
        if name in without:  # deci has no norm where it has no attention
            continue
        if "q_proj" in name or "k_proj" in name:  # the order in which llama.cpp turns pairs
            tensor = tensor.view(-1, 2, size // 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(of_gguf.get_name(name, (".weight",)), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_cpp(architecture: str, pruned: Pruned) -> int:
    import xllamacpp

    options = xllamacpp.CommonParams()
    options.model.path = str(gguf_file(pruned, architecture))
    options.n_ctx, options.warmup, options.n_parallel = 64, False, 1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # in f16 near ties fall otherwise
    server = xllamacpp.Server(options)

    def generated(ids: list[int]) -> list[int]:
        found = server.handle_completions(
            {"prompt": ids, "n_predict": NEW_TOKENS, "temperature": 0, "ignore_eos": True}
        )
        return [int(number) for number in re.findall(r"w(\d+)", found["choices"][0]["text"])]

    return pruned.tokens_off(lambda texts: [generated(ids) for ids in texts])


# ------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Tool:
    """A row. packages: whose versions are named; the first one is the tool, "npm:" before one of node's."""

    packages: str
    run: Callable[[Pruned], float]
    models: tuple[str, ...] = tuple(MODELS)


TOOLS = {
    "transformers alone": Tool("transformers", transformers_alone),
    "transformers alone, an older one": Tool("GNORM_OLDER", transformers_older, ("BERT", "T5")),
    "transformers, `generate`": Tool("transformers", transformers_generate, GENERATING),
    **{
        f"transformers, `generate`, {name}": Tool("transformers", partial(transformers_generate, **options), GENERATING)
        for name, options in CACHES.items()
    },
    "transformers, `generate_batch`": Tool("transformers", continuous_batching, DECODERS),
    "transformers, feature extraction": Tool("transformers", feature_extraction, ENCODERS),
    "sentence-transformers, `SentenceTransformer`": Tool("sentence-transformers", sentence_transformer, ENCODERS),
    "sentence-transformers, `CrossEncoder`": Tool("sentence-transformers", cross_encoder, ENCODERS),
    "SetFit": Tool("setfit", setfit_body, ENCODERS),
    "torch int8, engine x86": Tool("torch", partial(qint8, "x86")),
    "torch int8, engine onednn": Tool("torch", partial(qint8, "onednn")),
    "torchao int8, weights": Tool("torchao", torchao_int8),
    "torchao int8, weights and activations": Tool("torchao", torchao_dynamic),
    "bitsandbytes 4 bits": Tool("bitsandbytes", nf4),
    "accelerate, `save_model`": Tool("accelerate", accelerate_saved),
    "accelerate, offloading": Tool("accelerate", accelerate_offloaded),
    "peft, LoRA": Tool("peft", peft_adapter),
    "peft, DoRA": Tool("peft", partial(peft_adapter, use_dora=True)),
    "onnxruntime, `gnorm.export_onnx`": Tool("onnxruntime", exported),
    "onnxruntime, torch's older exporter": Tool("onnxruntime", older_export),
    "onnxruntime's optimizer": Tool("onnxruntime", partial(ort_optimizer, 0, 0, False), ("BERT",)),
    "onnxruntime's optimizer, older exporter, heads given": Tool(
        "onnxruntime", partial(ort_optimizer, SIZES["num_attention_heads"], SIZES["hidden_size"], True), ("BERT",)
    ),
    "onnxruntime's optimizer, older exporter": Tool("onnxruntime", partial(ort_optimizer, 0, 0, True), ("BERT",)),
    "onnxscript, `optimize_for_ort`": Tool("onnxscript", partial(rewritten, optimize_for_ort)),
    "onnxruntime int8": Tool("onnxruntime", partial(rewritten, int8)),
    "onnxruntime 4 bits": Tool("onnxruntime", partial(rewritten, four_bits)),
    "onnxsim": Tool("onnxsim", partial(rewritten, onnxsim)),
    "onnxslim": Tool("onnxslim", partial(rewritten, onnxslim)),
    "onnxconverter-common, float16": Tool("onnxconverter-common", partial(rewritten, float16)),
    "OpenVINO, from ONNX": Tool("openvino", openvino_of_onnx),
    "OpenVINO, from torch": Tool("openvino", openvino_of_torch),
    "NNCF int8": Tool("nncf", nncf_weights),
    "llama.cpp, GGUF `llama`": Tool("xllamacpp", partial(llama_cpp, "llama"), ("Llama",)),
    "llama.cpp, GGUF `deci`": Tool("xllamacpp", partial(llama_cpp, "deci"), ("Llama",)),
    "transformers.js": Tool("npm:@huggingface/transformers", js_logits, (*ENCODERS, *DECODERS)),
    "transformers.js, `generate`": Tool("npm:@huggingface/transformers", js_generate, DECODERS),
}


def version_of(tool: Tool) -> str:
    """The version of a tool, "" where it is not installed."""
    try:
        if tool.packages == "GNORM_OLDER":
            (found,) = importlib.metadata.distributions(name="transformers", path=[os.environ["GNORM_OLDER"]])
            return found.version
        if tool.packages.startswith("npm:"):
            package = tool.packages.removeprefix("npm:")
            main = process("node", "-p", f"require.resolve({package!r})").strip()
            folder = next(above for above in Path(main).parents if (above / "package.json").exists())
            return json.loads((folder / "package.json").read_text())["version"]
        return importlib.metadata.version(tool.packages)
    except (importlib.metadata.PackageNotFoundError, KeyError, ValueError, OSError, RuntimeError):
        return ""


def process(*command: str, cwd: Path | None = None, **variables: str) -> str:
    """What a program prints; ``RuntimeError`` with the last line that names an error where it fails."""
    done = subprocess.run(command, cwd=cwd, env=os.environ | variables, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if "Error" in line or "error" in line]
        raise RuntimeError(lines[-1] if lines else f"exit code {done.returncode}")
    return done.stdout


def measured(name: str, root: Path) -> Iterator[dict[str, str]]:
    """What a tool gives for each of its models and kinds."""
    for model in TOOLS[name].models:
        for kind in KINDS:
            pruned = Pruned(model, kind, root / f"{model} {kind}".replace(" ", "_"))
            try:
                found: Any = TOOLS[name].run(pruned)
            except Exception as error:  # noqa: BLE001 the errors of libraries share no base class
                found = f"{type(error).__name__}: {' '.join(str(error).replace(str(root), '').split())}"
            yield {"model": model, "kind": kind, "found": found}


def row_of(name: str, root: Path) -> list[str]:
    """The row of a tool in the table."""
    if not (version := version_of(TOOLS[name])):
        return [name, "not installed", *[""] * len(KINDS)]
    variables = {"HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.deploying", "--one", name, str(root)]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"model"')]
    expected = len(TOOLS[name].models) * len(KINDS)
    if len(found) < expected:
        kind, model = KINDS[len(found) % len(KINDS)], TOOLS[name].models[len(found) // len(KINDS)]
        found.append({"model": model, "kind": kind, "found": f"the process ends ({done.returncode})"})
    return [name, version, *(cell([each for each in found if each["kind"] == kind]) for kind in KINDS)]


def cell(found: list[dict[str, Any]]) -> str:
    """What a tool gives for the models of one kind: models with the same text together, of exact ones the largest."""
    exact = [each["found"] for each in found if isinstance(each["found"], float) and each["found"] <= EXACT]
    groups: dict[str, list[str]] = {}
    for each in found:
        groups.setdefault(in_words(max(exact) if each["found"] in exact else each["found"]), []).append(each["model"])
    return "; ".join(text if len(groups) == 1 else f"{', '.join(models)}: {text}" for text, models in groups.items())


def in_words(found: Any) -> str:
    if isinstance(found, str):
        return found.replace("|", "/")[:120]
    return f"{found} of {TEXTS * NEW_TOKENS} tokens" if isinstance(found, int) else f"{found:.0e}"


def main(names: list[str]) -> int:
    if unknown := set(names) - TOOLS.keys():
        sys.exit(f"no tool {min(unknown)!r}: choose from {', '.join(TOOLS)}")
    with tempfile.TemporaryDirectory() as folder:
        write_folders(Path(folder))
        print("| tool | version |", " | ".join(KINDS), "|")
        print("|:--|:--|" + ":--|" * len(KINDS), flush=True)
        rows = []
        for name in names or TOOLS:
            rows.append(row_of(name, Path(folder)))
            print("|", " | ".join(rows[-1]), "|", flush=True)
    return int(any(row[1] == "not installed" for row in rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        with torch.no_grad():
            for line in measured(sys.argv[2], Path(sys.argv[3])):
                print("\n" + json.dumps(line), flush=True)
    else:
        sys.exit(main(sys.argv[1:]))
