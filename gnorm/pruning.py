"""The one loop that prunes a model head by head, by any method."""

from __future__ import annotations

import copy
import math
import numbers
import platform
import time
import types
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm

from .engine.batches import Prepared, kept_of, prepare
from .engine.checks import Batch, check_labels
from .engine.packing import Kept
from .engine.state import in_use, uncompiled
from .heads import attention_blocks, head_mask_of, refuse_removal
from .journal import Journal, hash_of_config, hash_of_model, hash_of_tensors
from .methods import find_method
from .scoring import Tally, correct_texts
from .surgery import remove_heads
from .trajectory import NEAR_TIE, Trajectory


@torch.inference_mode(False)  # copies and what is made of them can be differentiated, whatever mode is on outside
def prune(
    model: nn.Module,
    scoring: Iterable[Batch] | Prepared,
    evaluation: Iterable[Batch] | Prepared | None = None,
    method: str = "greedy_gnorm",
    steps: int | None = None,
    heads_per_step: int = 1,
    trials: int = 1,
    seed: int = 0,
    journal: Any = None,
    progress: bool | str = True,
) -> Trajectory:
    """Prune ``model`` head by head and measure the accuracy after every step; the model itself is left as it was.

    scoring: the paper's batches, mappings of tensors; each one's gradient is a term of the score.
    evaluation: batches with ``labels`` that the accuracy is measured on; the scoring texts if None. Both may be what
    ``prepare`` made of batches for this model.
    method: a name in METHODS (or MORE_METHODS). Scores that tie go by the lowest (layer, head).
    steps: how many steps; until no head is left if None. heads_per_step: heads removed in each (fewer in the last).
    trials, seed: for methods that draw at random.
    journal: path of a file that finished steps are written to as they come; a run that finds its own journal goes on
    from there and ends with the same table.
    progress: a bar on standard error; a string is written before it.

    Raises ``ValueError`` for an unknown method, numbers out of range, batches that ``prepare`` refuses, labels that
    the model has no class for, a model under ``gnorm.masked``, scores or logits that are not finite, or a journal that is not this run's; ``TypeError``
    for numbers that are not whole and batches of no tensors; ``RuntimeError`` where another run is writing the journal; ``OSError`` where the
    journal cannot be written, finished steps kept.
    """
    row = find_method(method)
    model = getattr(model, "_orig_mod", model)  # of a compiled model
    with in_use(model):
        start = head_mask_of(model)
        refuse_removal(attention_blocks(model))
    heads = int(start.sum())
    heads_per_step, trials = whole("heads_per_step", heads_per_step, 1), whole("trials", trials, 1)
    seed = whole("seed", seed, 0)
    if trials > 1 and not row.seeded:
        raise ValueError(f"{method} draws nothing at random: trials={trials} would repeat one run; use trials=1.")
    most = math.ceil(heads / heads_per_step)
    steps = most if steps is None else whole("steps", steps, 0)
    if steps > most:
        raise ValueError(f"steps={steps} is out of range: {heads} heads, {heads_per_step} a step, make {most} steps.")

    scoring, score_on = _prepared(scoring, model)
    evaluation, evaluate_on = (scoring, score_on) if evaluation is None else _prepared(evaluation, model, together=True)
    check_labels(evaluation, model, "accuracy", "evaluation batch", not_counted=False)
    shared = _same(scoring, evaluation)
    if shared:
        evaluate_on = score_on
    info = {
        "method": method,
        "seed": seed,
        "trials": trials,
        "steps": steps,
        "heads_per_step": heads_per_step,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "device": next(model.parameters()).device.type,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    header = {**info, **_hashes(model, scoring, evaluation)} if journal is not None else {}

    rows: list[dict[str, Any]] = []
    correct: list[np.ndarray] = []
    measured: dict[bytes, Tensor] = {}  # by head mask: trials meet at the intact and at the bare model
    gaps: list[float] = []
    spent = 0.0
    label = f"{progress}: {row.title}" if isinstance(progress, str) else row.title
    with (
        Journal(journal, header) as log,
        tqdm(total=trials * steps, desc=label, unit="step", disable=not progress) as bar,
    ):
        recorded = iter(log.steps)
        for trial in range(trials):
            worker, mask, scores = _copy_of(model), start.clone(), None
            kept = kept_of(worker, evaluate_on)
            for step in range(steps + 1):
                done, began = next(recorded, None), time.perf_counter()
                if done is None:
                    gone: list[tuple[int, int, float]] = []
                    gap = math.inf
                    if step:
                        if scores is None:
                            scores = row.criterion(
                                worker if row.rescore else model, score_on, generator=_generator(seed, trial)
                            )
                        gone, gap = _choose(scores, mask, heads_per_step, row.highest_first)
                    _take(worker, mask, gone, kept)
                    scores = None if row.rescore else scores
                    tally = Tally(evaluate_on, worker)
                    if shared and row.rescore and step < steps:
                        scores = row.criterion(worker, score_on, generator=_generator(seed, trial), on_logits=tally)
                    state = mask.numpy().tobytes()
                    if state not in measured:
                        measured[state] = tally.result() if tally.complete else correct_texts(worker, evaluate_on, kept)
                    hits = measured[state].numpy()
                    bits = np.packbits(hits).tobytes().hex()
                    seconds = round(time.perf_counter() - began, 3)
                    done = {"trial": trial, "gone": gone, "gap": gap, "correct": bits, "seconds": seconds}
                    log.append(done)
                else:
                    gone = [(layer, head, score) for layer, head, score in done["gone"]]
                    _take(worker, mask, gone, kept)
                    hits = _unpacked(done["correct"], evaluate_on.num_texts)
                    measured[mask.numpy().tobytes()] = torch.from_numpy(hits)
                spent += done["seconds"]
                gaps.append(done["gap"])
                share = {"trial": trial, "pruned_heads": int(start.sum() - mask.sum()), "accuracy": float(hits.mean())}
                went = [{**share, "layer": layer, "head": head, "score": score} for layer, head, score in gone]
                rows += went or [share]
                correct += [hits] * max(1, len(gone))
                bar.set_postfix(accuracy=f"{hits.mean():.4f}", refresh=False)
                bar.update(step > 0)
    table = pd.DataFrame(rows, columns=["trial", "pruned_heads", "layer", "head", "score", "accuracy"])
    info |= {
        "scoring_texts": score_on.num_texts,
        "evaluation_texts": evaluate_on.num_texts,
        "ties": gaps.count(0.0),
        "near_ties": sum(gap < NEAR_TIE for gap in gaps),
        "smallest_gap": min(gaps),
        "seconds": round(spent, 3),
    }
    return Trajectory(table.astype({"layer": "Int64", "head": "Int64"}), np.stack(correct), start, info)


def _copy_of(model: nn.Module) -> nn.Module:
    """A copy of the model, to be cut. ``ValueError`` where it would not be one: it cannot be copied, or a function put in
    the place of a module's forward would call the original."""
    with in_use(model), uncompiled(model):
        for name, module in model.named_modules():
            if isinstance(vars(module).get("forward"), types.FunctionType):
                raise ValueError(  # noqa: TRY004 - of this model, not of a type
                    f"the forward of {name or type(module).__name__} was replaced by a function, which a copy of the model "
                    "would share: write a subclass of the module instead, with a forward of its own."
                )
        try:
            return copy.deepcopy(model)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"{type(model).__name__} cannot be copied ({' '.join(str(error).split())[:200]}): take off what hooks and "
                "parametrizations have put on it."
            ) from None


def whole(name: str, value: Any, least: int) -> int:
    """``value`` as an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={value!r} must be a whole number, it is of type {type(value).__name__}.")
    if value < least:
        raise ValueError(f"{name}={value} is out of range: it must be at least {least}.")
    return int(value)


def _generator(seed: int, trial: int) -> torch.Generator:
    """A stream of its own for every pair of seed and trial."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, trial]).generate_state(1)[0]))


def _choose(
    scores: Tensor, mask: Tensor, count: int, highest_first: bool
) -> tuple[list[tuple[int, int, float]], float]:
    """The heads that go next, with their scores, and how far the first that stays is from the last that goes.

    Of equal scores the lowest (layer, head) goes first, whichever end is pruned.
    """
    if scores.shape != mask.shape:
        raise ValueError(
            f"the criterion gave scores of shape {tuple(scores.shape)}, this model needs (layer, head) = "
            f"{tuple(mask.shape)}."
        )
    left = mask.flatten().nonzero()[:, 0]
    values = scores.flatten()[left]
    if bool(values.isnan().any()):
        raise ValueError("a score is NaN, so heads cannot be ordered: look for NaN or infinity in the weights.")
    order = (-values if highest_first else values).argsort(stable=True)
    chosen = order[:count]
    gap = math.inf
    if len(order) > count:
        last, following = values[order[count - 1]].item(), values[order[count]].item()
        gap = 0.0 if last == following else abs(last - following)
    width = mask.shape[1]
    return [(int(left[i]) // width, int(left[i]) % width, float(values[i])) for i in chosen], gap


def _take(worker: nn.Module, mask: Tensor, gone: Sequence[tuple[int, int, float]], kept: Sequence[Kept]) -> None:
    for layer, head, _ in gone:
        mask[layer, head] = False
    if gone:
        remove_heads(worker, mask)
        for of_micro in kept:
            of_micro.forget(above=min(layer for layer, _, _ in gone))


def _unpacked(bits: str, texts: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=texts).astype(bool)


def _prepared(
    batches: Iterable[Batch] | Prepared, model: nn.Module, together: bool = False
) -> tuple[Sequence[Batch], Prepared]:
    """The batches as they were given, and prepared for ``model``."""
    given = batches if isinstance(batches, Prepared) else list(batches)
    prepared = prepare(given, model, together=together)
    return prepared.batches if isinstance(given, Prepared) else given, prepared


def _same(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    """Whether two sequences of batches hold the same tensors."""
    return a is b or (
        len(a) == len(b)
        and all(x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x) for x, y in zip(a, b, strict=True))
    )


def _hashes(model: nn.Module, scoring: Sequence[Batch], evaluation: Sequence[Batch]) -> dict[str, str]:
    return {
        "model": hash_of_model(model),
        "config": hash_of_config(model.config),
        "scoring": hash_of_tensors(item for batch in scoring for item in batch.items()),
        "evaluation": hash_of_tensors(item for batch in evaluation for item in batch.items()),
    }
