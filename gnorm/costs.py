"""What a pruned model costs beside the intact one: parameters, memory, operations and time."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .heads import head_mask_of
from .packing import evaluating
from .surgery import memory_mb, num_parameters

Inputs = dict[str, Tensor]


def _texts(config: Any, batch: int, length: int) -> Inputs:
    ids = torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _images(config: Any, batch: int, length: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(batch, config.num_channels, length, length, generator=generator)}


# What is fed to a model, by the name of its main input. The length is in tokens, or in pixels a side.
INPUTS: Mapping[str, Callable[[Any, int, int], Inputs]] = {"input_ids": _texts, "pixel_values": _images}


def cost(
    model: Any,
    batch_sizes: Sequence[int] = (1, 8, 32),
    lengths: Sequence[int] | None = None,
    rounds: int = 30,
    seconds: float = 3.0,
) -> pd.DataFrame:
    """What ``model`` costs beside an intact model of its configuration (with random weights: time does not depend on
    them), a row for every batch size and length.

    lengths: tokens of a text (32 and 128 if None, less where the model takes less), or pixels a side of an image.
    rounds, seconds: each pair of models is run in turns, ``rounds`` times or until ``seconds`` are spent, at least
    five times, after two that do not count.

    Columns, ``... after`` for ``model``, without for the intact one: batch, length; parameters; MB (2**20 bytes);
    GFLOP of one forward pass (10**9 operations in matrix products and attention, a multiplication and an addition
    being two); ms, the median of one forward pass, and ms spread, the distance of its quartiles. Then flops saved and
    time saved, as shares of the intact model's (time by the median over turns of the ratio of the two), and returned,
    the one divided by the other: how much of what was saved in operations came back as time.

    Raises ``ValueError`` where it is not known what to feed to the model, or as ``attention_blocks`` does.
    """
    name = str(getattr(model, "main_input_name", None))
    if name not in INPUTS:
        raise ValueError(f"inputs called {name!r} are not known; known: {', '.join(INPUTS)}.")
    intact = _intact(model)
    rows = []
    for length in lengths or _lengths(model.config):
        for batch in batch_sizes:
            inputs = INPUTS[name](model.config, batch, length)
            moved = {n: t.to(model.device, model.dtype if t.is_floating_point() else None) for n, t in inputs.items()}
            flops, flops_after = _flops(intact, moved), _flops(model, moved)
            times = _times((intact, model), moved, rounds, seconds)
            spread = np.subtract(*np.quantile(times, [0.75, 0.25], axis=0))
            median = np.median(times, axis=0)
            flops_saved = 1 - flops_after / flops
            time_saved = 1 - float(np.median(times[:, 1] / times[:, 0]))
            rows.append(
                {
                    "batch": batch,
                    "length": length,
                    "parameters": num_parameters(intact),
                    "parameters after": num_parameters(model),
                    "MB": memory_mb(intact),
                    "MB after": memory_mb(model),
                    "GFLOP": flops / 1e9,
                    "GFLOP after": flops_after / 1e9,
                    "ms": 1e3 * median[0],
                    "ms after": 1e3 * median[1],
                    "ms spread": 1e3 * spread[0],
                    "ms spread after": 1e3 * spread[1],
                    "flops saved": flops_saved,
                    "time saved": time_saved,
                    "returned": time_saved / flops_saved if flops_saved else np.nan,
                }
            )
    return pd.DataFrame(rows)


def _intact(model: Any) -> Any:
    """A model of the same configuration with all its heads, in the same precision, on the same device."""
    head_mask_of(model)  # refuses what is not known
    config = copy.deepcopy(model.config)
    config.head_mask = None
    with torch.random.fork_rng():
        return type(model)(config).to(model.device, model.dtype).eval()


def longest_text(config: Any) -> int:
    """The most tokens that the model takes; positions of some families start behind the padding token's number."""
    return int(config.max_position_embeddings - 1 - (config.pad_token_id or 0))


def _lengths(config: Any) -> list[int]:
    """Usual lengths that the model takes."""
    if hasattr(config, "image_size"):
        return [config.image_size]
    return sorted({min(length, longest_text(config)) for length in (32, 128)})


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _flops(model: nn.Module, inputs: Inputs) -> int:
    """Operations of one forward pass in matrix products, convolutions and attention."""
    here = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which the counter does not know
    with (
        evaluating(model),
        torch.inference_mode(),
        FlopCounterMode(display=False, custom_mapping={here: _attention_flops}) as counter,
    ):
        model(**inputs)
    return int(counter.get_total_flops())


def _times(models: Sequence[nn.Module], inputs: Inputs, rounds: int, seconds: float) -> np.ndarray:
    """(turn, model) seconds of one forward pass; the models take turns, and who goes first alternates."""
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(next(iter(inputs.values())).device.type)
    turns: list[list[float]] = []
    spent = 0.0
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.inference_mode())
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
