"""Models as ONNX files, written and run. Needs onnx, onnxscript and onnxruntime: the extra ``onnx``."""

from __future__ import annotations

import importlib
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.examples import Inputs, examples_of, longest_text
from ..engine.packing import logits_of
from ..engine.state import attention_implementation, evaluating
from ..heads import attention_blocks
from ..storage.files import free_file, free_folder, moved_together
from ..surgery import as_removed

EXPORTED_WITH = (2, 8, 5)  # texts, tokens and tokens of a decoder of the example that the exporter runs the model on

# The logits of a file are compared with the model's on this many texts or images, of these lengths in tokens, in the
# encoder and in a decoder; the last texts are as long as the model takes them.
CHECKED_WITH = (1, 3, 4)
CHECKED_LENGTHS = (1, 16)
CHECKED_TARGETS = (7, 1, 16)

WEIGHTS = ".data"  # the ending of the second file, for weights that do not fit into the first


def export_onnx(
    model: Any,
    path: str | os.PathLike[str],
    inputs: Sequence[str] | None = None,
    tolerance: float = 1e-4,
    overwrite: bool = False,
) -> Path:
    """Write ``model``, an intact or a pruned classifier, as an ONNX file; returns its path.

    path: the file; for an empty folder, model.onnx in it. overwrite: replace an existing file.

    inputs: the names of the file's inputs: input_ids, attention_mask and, for models with segments, token_type_ids,
    each (batch, length); or pixel_values (batch, channel, height, width), or a sound; and decoder_input_ids (batch,
    decoder_length) of a decoder that generates. If None, all that the model takes. The output is logits (batch, ...).
    Batch and both lengths of texts may differ between calls, the size of an image and the length of a sound (a second,
    or a spectrogram of the usual length) may not. tolerance: the largest
    difference allowed between a logit of the file and of the model.

    The file holds the weights too. Weights of more than 2 GB lie in a second file, with .data after the name. The files
    appear only after onnxruntime has reproduced the model's logits for several batch sizes and lengths, with padding.
    The model stays as it was.

    Raises ``ModuleNotFoundError`` where the packages of the extra are missing; ``FileExistsError`` where the file
    exists already or the folder holds files; ``ValueError`` for a precision other than float32, for inputs that the
    model does not take, and for logits that differ by more than ``tolerance``; and as ``attention_blocks`` does.
    """
    _require()
    attention_blocks(model)  # refuses models of unknown families
    model = as_removed(model)
    path = Path(path).expanduser()
    if path.is_dir():
        path = free_folder(path, overwrite) / "model.onnx"
    path = free_file(path, [WEIGHTS], overwrite)
    if model.dtype != torch.float32:
        raise ValueError(f"the model is in {model.dtype}, too coarse or too rare to be checked: export model.float().")
    example = examples_of(model, *EXPORTED_WITH)
    if unknown := set(inputs or ()) - set(example):
        raise ValueError(f"{type(model).__name__} takes no {min(unknown)!r}: choose from {', '.join(example)}.")
    example = {name: example[name] for name in inputs or example}
    old = [file for file in (path, path.with_name(path.name + WEIGHTS)) if file.exists()]
    with moved_together(path.parent, old, last=path.name) as unfinished, evaluating(model), torch.no_grad():
        logits_of(model, example)  # refuses what gives no logits
        _write(model, unfinished / path.name, example)
        _check(model, unfinished / path.name, list(example), tolerance)
    return path


def _require() -> None:
    """``ModuleNotFoundError`` where a package of the extra is missing."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{package} cannot be imported, which ONNX files need: pip install onnx onnxscript onnxruntime.",
                name=error.name,
            ) from None


class _Logits(nn.Module):
    """A model whose forward pass takes its inputs as one argument and returns logits (text, ...) alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> Tensor:
        return logits_of(self.model, inputs)


def _write(model: Any, path: Path, example: Inputs) -> None:
    axes = {0: "batch", 1: "length"} if "input_ids" in example else {0: "batch"}
    of_decoder = {"decoder_input_ids": {0: "batch", 1: "decoder_length"}} if "decoder_input_ids" in example else {}
    # eager attention: other implementations give more nodes and no more speed, or cannot be exported at all
    with attention_implementation(model, "eager"), _quiet():
        program = torch.onnx.export(
            _Logits(model).eval(),
            kwargs={"inputs": example},
            dynamo=True,
            dynamic_shapes={"inputs": dict.fromkeys(example, axes) | of_decoder},
            input_names=list(example),
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    # without it every node names the source lines that it comes from, with their paths on this machine
    importlib.import_module("onnx_ir.passes.common").ClearMetadataAndDocStringPass()(program.model)
    program.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block, the exporter does not warn that torchvision is missing, that torch uses deprecated functions
    of its own, or that axes share a name, which is intended."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "# The axis name: (batch|length|decoder_length) will not be used", UserWarning
            )
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        log.setLevel(level)


def _check(model: Any, path: Path, names: Sequence[str], tolerance: float) -> None:
    """``ValueError`` where the file's logits are not those of the model."""
    lengths = (*CHECKED_LENGTHS, longest_text(model)) if "input_ids" in names else (0, 0, 0)  # unused for images
    shapes = zip(CHECKED_WITH, lengths, CHECKED_TARGETS, strict=True)
    examples = [examples_of(model, *shape) for shape in shapes]
    fed = [{name: example[name] for name in names} for example in examples]
    expected = [logits_of(model, inputs).cpu() for inputs in fed]
    try:
        exported = Exported(path)
        logits = [exported(**inputs) for inputs in fed]
    except Exception as error:  # the errors of onnxruntime share no base class
        raise ValueError(
            f"onnxruntime cannot run {path.name} on other batch sizes and lengths than those it was exported with "
            f"({' '.join(str(error).split())}): keep the model as it is, with gnorm.save_pruned."
        ) from error
    pairs = list(zip(logits, expected, strict=True))
    off = [float((a - b).abs().max()) if a.shape == b.shape else math.inf for a, b in pairs]
    if not all(o <= tolerance for o in off):  # true for NaN too
        raise ValueError(
            f"the logits of {path.name} are up to {max(off):.1e} away from the model's, more than {tolerance:.0e}: "
            "give a larger tolerance, or keep the model as it is, with gnorm.save_pruned."
        )


class Exported(nn.Module):
    """An ONNX file as a module that takes the file's inputs by name and returns logits (batch, ...).

    onnxruntime computes them on the CPU, with as many threads as torch uses.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        _require()
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        options.add_session_config_entry(
            "session.force_spinning_stop", "1"
        )  # spinning idle threads would slow the model that runs next
        self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(self, **inputs: Tensor) -> Tensor:
        return torch.from_numpy(
            self.session.run(["logits"], {name: t.numpy(force=True) for name, t in inputs.items()})[0]
        )
