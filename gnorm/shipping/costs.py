"""The cost of a pruned model compared with the intact one: parameters, memory, operations and time."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..engine.forward.failures import naming_texts
from ..engine.model.state import evaluating, is_compiled
from ..engine.trials.examples import Inputs, Length, inputs_of, usual_lengths
from ..heads import head_mask_of
from ..storage.modeling import plain_class
from .export import Exported, export_onnx


def cost(
    model: Any,
    batch_sizes: Sequence[int] = (1, 8, 32),
    lengths: Sequence[Length] | None = None,
    rounds: int = 30,
    seconds: float = 3.0,
    onnx: bool = False,
    beside: Any = None,
) -> pd.DataFrame:
    """The cost of ``model`` and of an intact model; a row for every batch size and length.

    beside: the intact model. If None, one of the configuration of ``model`` with all heads and neurons, and random
    weights, because time does not depend on weights.
    lengths: tokens of a text (32 and 128 if None, fewer where the model takes fewer), pixels a side of
    an image, (height, width) of one that is not square, samples of a sound, or frames of a spectrogram.
    rounds, seconds: the models run in turns, ``rounds`` times or until ``seconds`` have passed, but at least five
    times; two more turns before are not counted.
    onnx: both models are exported too (``export_onnx``, some seconds) and run in the same turns by onnxruntime, on the
    CPU even if the model is elsewhere.

    Columns; those of ``model`` end in " after", those of the intact model do not:
    batch, length; parameters; MB (2**20 bytes);
    GFLOP: 10**9 operations of one forward pass in matrix products and attention; a multiplication and an addition are
    two operations;
    ms: the median time of one forward pass; ms spread: the distance between its quartiles;
    ms onnx, with ``onnx`` only: the median time of one forward pass of the exported model;
    flops saved, time saved: fractions of the intact model's (of time: the median over turns of the ratio);
    returned: time saved divided by flops saved.

    Raises ``ValueError`` where the model's main input is unknown and for a compiled model, as ``attention_blocks``
    does, and with ``onnx`` as ``export_onnx`` does.
    """
    if is_compiled(model):
        raise ValueError("the model is compiled, the intact one beside it would not be: give the one from before.")
    intact = intact_of(model) if beside is None else beside
    models = [intact, model]
    if onnx:
        models += _exported(models, list(inputs_of(model, 1, 1)))
    rows = []
    for length in lengths or usual_lengths(model):
        for batch in batch_sizes:
            inputs = inputs_of(model, batch, length)
            moved = {n: t.to(model.device, model.dtype if t.is_floating_point() else None) for n, t in inputs.items()}
            flops = flops_of(intact, moved), flops_of(model, moved)
            times = seconds_of(models, moved, rounds, seconds)
            rows.append({"batch": batch, "length": length, **_row(intact, model, flops, times)})
    return pd.DataFrame(rows)


def _row(intact: nn.Module, model: nn.Module, flops: tuple[int, int], times: np.ndarray) -> dict[str, Any]:
    """The columns of ``cost`` that follow batch and length. flops: of both models. times: (turn, model) seconds."""
    spread = np.subtract(*np.quantile(times, [0.75, 0.25], axis=0))
    median = np.median(times, axis=0)
    flops_saved = 1 - flops[1] / flops[0]
    time_saved = 1 - float(np.median(times[:, 1] / times[:, 0]))
    return {
        "parameters": num_parameters(intact),
        "parameters after": num_parameters(model),
        "MB": memory_mb(intact),
        "MB after": memory_mb(model),
        "GFLOP": flops[0] / 1e9,
        "GFLOP after": flops[1] / 1e9,
        "ms": 1e3 * median[0],
        "ms after": 1e3 * median[1],
        "ms spread": 1e3 * spread[0],
        "ms spread after": 1e3 * spread[1],
        "flops saved": flops_saved,
        "time saved": time_saved,
        "returned": time_saved / flops_saved if flops_saved else np.nan,
    } | dict(zip(("ms onnx", "ms onnx after"), 1e3 * median[2:]))  # the exported models, if there are any


def intact_of(model: Any) -> Any:
    """A model of the same configuration with all heads and neurons, in the same precision, on the same device."""
    head_mask_of(model)  # refuses models of unknown families
    config = copy.deepcopy(model.config)
    config.head_mask = config.feed_forward_sizes = None
    with torch.random.fork_rng():
        return plain_class(model)(config).to(model.device, model.dtype).eval()


def _exported(models: Sequence[nn.Module], inputs: Sequence[str]) -> list[nn.Module]:
    """The models as onnxruntime runs them; their temporary files are deleted after reading."""
    with tempfile.TemporaryDirectory() as folder:
        return [Exported(export_onnx(model, Path(folder, f"{i}.onnx"), inputs)) for i, model in enumerate(models)]


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def flops_of(model: nn.Module, inputs: Inputs) -> int:
    """Operations of one forward pass in matrix products, convolutions and attention."""
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # FlopCounterMode does not count it
    with (
        evaluating(model),
        torch.no_grad(),
        FlopCounterMode(display=False, custom_mapping={on_cpu: _attention_flops}) as counter,
    ):
        with naming_texts(model, inputs):
            model(**inputs)
    return int(counter.get_total_flops())


def seconds_of(models: Sequence[nn.Module], inputs: Inputs, rounds: int, seconds: float) -> np.ndarray:
    """(turn, model) seconds of one forward pass; each model runs once a turn, and the first one alternates."""
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(next(iter(inputs.values())).device.type)
    turns: list[list[float]] = []
    spent = 0.0
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        while len(turns) < 2 + 5 or (len(turns) < 2 + rounds and spent < seconds):
            turn = [0.0] * len(models)
            for i in range(len(models)):
                which = (i + len(turns)) % len(models)
                began = time.perf_counter()
                models[which](**inputs)
                if wait:
                    wait()
                turn[which] = time.perf_counter() - began
            turns.append(turn)
            spent += sum(turn)
    return np.array(turns[2:])


def num_parameters(model: nn.Module) -> int:
    """Parameters of the model, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def memory_mb(model: nn.Module) -> float:
    """Memory of the model's parameters in MB (2**20 bytes), the unit of the paper's table."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
