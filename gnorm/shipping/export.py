"""A model as an ONNX file, and what such a file says: needs onnx, onnxscript and onnxruntime, the extra `onnx`."""

from __future__ import annotations

import importlib
import logging
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.checks import longest_text
from ..engine.packing import logits_of
from ..engine.state import attention_implementation, evaluating
from ..heads import attention_blocks
from ..storage.folders import free_file, free_folder, replace_files

Inputs = dict[str, Tensor]


EXPORTED_WITH = (2, 8)  # texts and tokens of the example that the exporter follows the model with


CHECKED_WITH = (1, 3, 4)  # texts or images; these lengths of texts, and as long as the model takes them


CHECKED_LENGTHS = (1, 16)


WEIGHTS = ".data"  # the ending of the file beside, where weights do not fit into the file itself


def _texts(config: Any, batch: int, length: int) -> Inputs:
    ids = torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _images(config: Any, batch: int, length: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(batch, config.num_channels, length, length, generator=generator)}


# What is fed to a model, by the name of its main input. The length is in tokens, or in pixels a side.
INPUTS: Mapping[str, Callable[[Any, int, int], Inputs]] = {"input_ids": _texts, "pixel_values": _images}


def main_input(model: Any) -> str:
    """The name of the model's main input; ``ValueError`` where it is not known what to feed to it."""
    name = str(getattr(model, "main_input_name", None))
    if name not in INPUTS:
        raise ValueError(f"inputs called {name!r} are not known; known: {', '.join(INPUTS)}.")
    return name


def room_of(model: Any) -> int:
    """The most tokens of a text that are fed to the model: what its tables have positions for, or what its configuration
    names where it has no table."""
    return longest_text(model) or int(model.config.max_position_embeddings)


def export_onnx(
    model: Any,
    path: str | os.PathLike[str],
    inputs: Sequence[str] | None = None,
    tolerance: float = 1e-4,
    overwrite: bool = False,
) -> Path:
    """Write ``model``, an intact or a pruned classifier, as an ONNX file; returns its path.

    path: the file; of a folder that is empty, model.onnx in it. overwrite: replace a file that is there.

    inputs: what the file is fed with, among input_ids, attention_mask and, where the model tells two texts apart,
    token_type_ids, each (batch, length); or pixel_values (batch, channel, height, width). All that the model takes,
    if None. It gives logits (batch, class). Batch and length may differ from call to call, the size of an image may
    not. tolerance: how far logits may be from the model's, in any class.

    The file holds the weights too; those above 2 GB lie beside it, in a file with .data behind its name. It appears
    only after onnxruntime has read it and given the model's logits, for several batch sizes and lengths, with padding.
    The model stays as it was.

    Raises ``ModuleNotFoundError`` where the packages of the extra are missing, ``FileExistsError`` where the file
    exists already or the folder holds files, ``ValueError`` for a model in another precision than float32, for inputs
    that it does not take, for logits that are too far off, and as ``attention_blocks`` does.
    """
    _require()
    attention_blocks(model)  # refuses what is not known
    path = Path(path).expanduser()
    if path.is_dir():
        path = free_folder(path, overwrite) / "model.onnx"
    path = free_file(path, [WEIGHTS], overwrite)
    if model.dtype != torch.float32:
        raise ValueError(f"the model is in {model.dtype}, too coarse or too rare to be checked: export model.float().")
    example = _examples(model, *EXPORTED_WITH)
    if unknown := set(inputs or ()) - set(example):
        raise ValueError(f"{type(model).__name__} takes no {min(unknown)!r}: choose from {', '.join(example)}.")
    example = {name: example[name] for name in inputs or example}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        with evaluating(model), torch.no_grad():
            _write(model, unfinished / path.name, example)
            _check(model, unfinished / path.name, list(example), tolerance)
        weights = path.with_name(path.name + WEIGHTS)
        if (unfinished / weights.name).exists():
            replace_files(unfinished, path.parent, [file for file in (path, weights) if file.exists()], last=path.name)
        else:
            (unfinished / path.name).replace(path)
            weights.unlink(missing_ok=True)  # of the file that was replaced
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return path


def _require() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{package} cannot be imported, which ONNX files need: pip install onnx onnxscript onnxruntime.",
                name=error.name,
            ) from None


def _examples(model: Any, batch: int, length: int) -> Inputs:
    """All that the model takes: images, or texts that get longer up to ``length``, with padding behind the others."""
    config = model.config
    if main_input(model) == "input_ids":
        length = min(length, room_of(model))
        examples = _texts(config, batch, length)
        position = torch.arange(length)
        lengths = (torch.arange(1, batch + 1) * length // batch).clamp(min=1)[:, None]  # (text, 1)
        there = position < lengths
        examples["input_ids"] = examples["input_ids"].where(there, config.pad_token_id or 0)
        examples["attention_mask"] = there.long()
        if (getattr(config, "type_vocab_size", None) or 0) > 1:
            examples["token_type_ids"] = (there & (position >= lengths // 2)).long()
    else:
        examples = _images(config, batch, config.image_size)
    return {name: tensor.to(model.device) for name, tensor in examples.items()}


class _Logits(nn.Module):
    """A model whose forward takes what it is fed with as one argument and gives nothing but logits (text, class)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> Tensor:
        return logits_of(self.model, inputs)


def _write(model: Any, path: Path, example: Inputs) -> None:
    axes = {0: "batch", 1: "length"} if "input_ids" in example else {0: "batch"}
    # eager attention: others are taken apart into more nodes, and not faster for it, or cannot be followed at all
    with attention_implementation(model, "eager"), _quiet():
        program = torch.onnx.export(
            _Logits(model).eval(),
            kwargs={"inputs": example},
            dynamo=True,
            dynamic_shapes={"inputs": dict.fromkeys(example, axes)},
            input_names=list(example),
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    # each node comes with the lines of source that it is from, and where these lie on this machine
    importlib.import_module("onnx_ir.passes.common").ClearMetadataAndDocStringPass()(program.model)
    program.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of torchvision, which it misses, of torch's own deprecations, and of axes that
    share a name, as they should."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "# The axis name: (batch|length) will not be used", UserWarning)
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        log.setLevel(level)


def _check(model: Any, path: Path, names: Sequence[str], tolerance: float) -> None:
    """``ValueError`` where the file's logits are not those of the model."""
    lengths = (*CHECKED_LENGTHS, room_of(model)) if "input_ids" in names else (0, 0, 0)  # images have one
    examples = [_examples(model, *shape) for shape in zip(CHECKED_WITH, lengths, strict=True)]
    fed = [{name: example[name] for name in names} for example in examples]
    expected = torch.cat([logits_of(model, inputs).cpu() for inputs in fed])
    try:
        exported = Exported(path)
        found = torch.cat([exported(**inputs) for inputs in fed])
    except Exception as error:  # those of onnxruntime have no base of their own
        raise ValueError(
            f"onnxruntime cannot run {path.name} on other batch sizes and lengths than those it was exported with "
            f"({' '.join(str(error).split())}): keep the model as it is, with gnorm.save_pruned."
        ) from error
    off = float((found - expected).abs().max()) if found.shape == expected.shape else math.inf
    if not off <= tolerance:  # nor is NaN
        raise ValueError(
            f"the logits of {path.name} are up to {off:.1e} away from the model's, more than {tolerance:.0e}: give a "
            "larger tolerance, or keep the model as it is, with gnorm.save_pruned."
        )


class Exported(nn.Module):
    """An ONNX file as a module: its inputs by name -> logits (batch, class), computed by onnxruntime on the CPU, on as
    many threads as torch uses."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        _require()
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads slow what runs in turns
        self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(self, **inputs: Tensor) -> Tensor:
        return torch.from_numpy(
            self.session.run(["logits"], {name: t.numpy(force=True) for name, t in inputs.items()})[0]
        )
