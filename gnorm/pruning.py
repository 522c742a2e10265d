"""The one loop that prunes a model head by head, by any method."""

from __future__ import annotations

import math
import numbers
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm

from .engine.forwarding import layer_input_caches
from .engine.model.blocks import config_of
from .engine.model.masking import refuse_removal
from .engine.model.removal import remove
from .engine.model.sizes import Batch
from .engine.model.state import copy_of, in_use
from .engine.model.subject import Subject
from .engine.tally import Tally, as_json, from_json, labels_in_order
from .engine.texts.batches import Prepared, given_and_prepared, same_batches
from .engine.texts.checks import check_labels
from .engine.texts.ranks import check_equal, gather, raising_together, rank_of
from .engine.trials.trial import try_out
from .journal import Journal, hash_of_config, hash_of_model, hash_of_tensors
from .methods import Method, find_method
from .metrics import METRICS, Measure, Metric, find_metric, text_values_of
from .trajectory import NEAR_TIE, Trajectory

BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"  # of tqdm, its default


@raising_together
@torch.inference_mode(False)  # copies and what is made of them can be differentiated, whatever mode is on outside
def prune(
    model: nn.Module,
    scoring: Iterable[Batch] | Prepared,
    evaluation: Iterable[Batch] | Prepared | None = None,
    method: str = "greedy_gnorm",
    metric: str | Measure | Metric | None = None,
    steps: int | None = None,
    heads_per_step: int = 1,
    trials: int = 1,
    seed: int = 0,
    journal: Any = None,
    progress: bool | str = True,
    rescore_every: int | None = None,
    layers: Sequence[int] | None = None,
    *,
    process_group: Any = None,
    until: Callable[[Trajectory], bool] | None = None,
) -> Trajectory:
    """Prune ``model`` head by head and measure it after every step; the model itself is left as it was.

    scoring: the paper's batches, mappings of tensors; each one's gradient is a term of the score.
    evaluation: batches with ``labels`` that the model is measured on; the scoring texts if None. Both may be what
    ``prepare`` made of batches for this model.
    method: a name in METHODS (or MORE_METHODS). Scores that tie go by the lowest (layer, head).
    metric: a name in METRICS, a function (predictions, labels) -> number, higher is better, or a ``Metric``. If None,
    the one of the model's problem: accuracy of a classifier, mse of a regression, perplexity of a language model.
    steps: how many steps; until no head is left if None. heads_per_step: heads removed in each (fewer in the last).
    trials, seed: for methods that draw at random.
    journal: path of a file that finished steps are written to as they come; a run that finds its own journal goes on
    from there and ends with the same table.
    progress: a bar on standard error; a string is written before it.
    rescore_every: the heads are scored afresh before every step of this number; 0 scores them once, on the intact
    model. As the method's row says, if None.
    layers: the layer that each head goes from, in turn, such as those of another run's order; the method then chooses
    within that layer. Any layer, if None. A method whose row follows another prunes by that one first, for its layers.
    process_group: of torch.distributed, or True for all processes: each computes some batches, all return the same, the
    first one writes the journal and shows the bar. A criterion that knows of no ranks is computed whole on each.
    until: called with the trajectory so far, of the intact model and after every step; where it is true, the run ends.
    The same journal goes on from there without it, or with another.

    Raises ``ValueError`` for an unknown method or metric, a metric that is not for the model's problem, numbers out of
    range, layers that have not the heads, batches that ``prepare`` refuses, labels that the model's problem does not
    allow, a model under ``gnorm.masked``, scores or logits that are not finite, or a journal that is not this run's;
    ``TypeError`` for numbers that are not whole and batches of no tensors; ``RuntimeError`` where another run is
    writing the journal; ``OSError`` where the journal cannot be written, finished steps kept.
    """
    row, subject = find_method(method), Subject(model)
    model, start = subject.model, _start_mask(subject)
    counts = _checked_counts(method, int(start.sum()), seed, trials, steps, heads_per_step)
    rescore_every = checked_int("rescore_every", row.rescore_every if rescore_every is None else rescore_every, 0)
    metric = find_metric(metric, model)
    texts = _Texts.of(model, scoring, evaluation, metric, process_group)
    try_out(model, lambda: next(iter(texts.evaluation)).padded[0].inputs, removal=True)
    if layers is None and row.follows:
        options = {"progress": progress, "process_group": process_group}
        leader = prune(
            model, texts.scoring, texts.evaluation, row.follows, metric, counts["steps"], heads_per_step, **options
        )
        layers = [layer for layer, _head in leader.order()]
    info = {"method": method, **counts, "rescore_every": rescore_every, **_environment(model)}
    if layers is not None:
        layers = _checked_layers(layers, start, counts["steps"] * counts["heads_per_step"])
        info["layers"] = layers
    return _run(row, model, start, texts, info, journal, progress, process_group, until)


def _run(
    row: Method,
    model: nn.Module,
    start: Tensor,
    texts: _Texts,
    info: dict[str, Any],
    journal: Any,
    progress: bool | str,
    process_group: Any,
    until: Callable[[Trajectory], bool] | None,
    choice: Choice | None = None,
) -> Trajectory:
    """The loop of ``prune``, whose arguments have been checked. info: of the trajectory, so far. choice: where neurons
    go too, and ``start`` is (layer, head + neuron)."""
    metric, counts = texts.metric, info.copy()
    if metric is not METRICS["accuracy"]:  # whose journals are as they were when there was no other metric
        info["metric"] = metric.name
    header = {**info, **texts.hashes(model)} if journal is not None or process_group else {}
    check_equal(process_group, header)
    if rank_of(process_group):
        journal, progress = None, False
    if until is not None and counts["trials"] > 1:
        raise ValueError(f"until ends a run of one trial, trials={counts['trials']} are asked for: use trials=1.")
    label, finished = f"{progress}: " * isinstance(progress, str) + f"{row.title}, {metric.name}", list[_Step]()
    measured: dict[bytes, _Measured] = {}  # by head mask: trials meet at the intact and at the bare model
    with (
        Journal(journal, header) as log,
        tqdm(
            total=counts["trials"] * counts["steps"],
            desc=label,
            unit="step",
            disable=not progress,
            bar_format=BAR if until is None else BAR.replace("<", "<at most "),
        ) as bar,
    ):
        lines = iter(gather(process_group, log.steps)[0])
        for trial in range(counts["trials"]):
            options = counts["seed"], trial, counts["rescore_every"], counts.get("layers"), choice
            worker = _Worker(row, model, start, texts, measured, *options)
            for number in range(counts["steps"] + 1):
                if line := next(lines, None):
                    step = _Step.read(line, texts)
                    worker.repeat(step)
                else:
                    step = worker.advance(min(number, 1) * counts["heads_per_step"], last=number == counts["steps"])
                    log.append(step.line())
                finished.append(step)
                bar.set_postfix({metric.name: f"{step.measured.value:.4f}"}, refresh=False)
                bar.update(number > 0)
                if until is not None and until(_trajectory(finished, start, texts, dict(info))):
                    break
    return _trajectory(finished, start, texts, info)


def _start_mask(subject: Subject, neurons: bool = False) -> Tensor:
    """(layer, head) bool mask of a model whose heads can be removed; (layer, head + neuron), of both."""
    config_of(subject.model)  # refuses what is not a model
    with in_use(subject.model):
        refuse_removal(subject.units if neurons else subject.blocks)
        return subject.unit_mask if neurons else subject.mask


def _checked_counts(method: str, heads: int, seed: Any, trials: Any, steps: Any, heads_per_step: Any) -> dict[str, int]:
    """The numbers of a run of ``method`` on ``heads`` heads, whole and in range; as a journal's header names them."""
    heads_per_step, trials = checked_int("heads_per_step", heads_per_step, 1), checked_int("trials", trials, 1)
    seed = checked_int("seed", seed, 0)
    if trials > 1 and not find_method(method).seeded:
        raise ValueError(f"{method} draws nothing at random: trials={trials} would repeat one run; use trials=1.")
    most = math.ceil(heads / heads_per_step)
    steps = most if steps is None else checked_int("steps", steps, 0)
    if steps > most:
        raise ValueError(f"steps={steps} is out of range: {heads} heads, {heads_per_step} a step, make {most} steps.")
    return {"seed": seed, "trials": trials, "steps": steps, "heads_per_step": heads_per_step}


def _checked_layers(layers: Sequence[int], start: Tensor, heads: int) -> list[int]:
    """The layers that ``heads`` heads go from, one by one; fewer where no more are left."""
    heads = min(heads, int(start.sum()))
    layers = [checked_int("a layer", layer, 0) for layer in layers][:heads]
    if len(layers) < heads:
        raise ValueError(f"layers names {len(layers)} heads' layers, this run prunes {heads}.")
    for layer in dict.fromkeys(layers):
        there = int(start[layer].sum()) if layer < len(start) else 0
        if layers.count(layer) > there:
            raise ValueError(f"layers takes {layers.count(layer)} heads from layer {layer}, which has {there}.")
    return layers


def _environment(model: nn.Module) -> dict[str, Any]:
    """The environment of a result: what it depends on beside the model and the texts."""
    parameter = next(model.parameters())
    return {
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "device": parameter.device.type,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


@dataclass(frozen=True)
class _Texts:
    """Scoring and evaluation texts: the batches as they were given, and prepared for the model."""

    given: tuple[Iterable[Batch], Iterable[Batch]]
    scoring: Prepared
    evaluation: Prepared  # the same object as ``scoring`` where the texts are the same
    metric: Metric
    labels: np.ndarray  # (text, ...) of the evaluation texts, as the metric takes them

    @classmethod
    def of(
        cls,
        model: nn.Module,
        scoring: Iterable[Batch] | Prepared,
        evaluation: Iterable[Batch] | Prepared | None,
        metric: Metric,
        group: Any,
    ) -> _Texts:
        """The texts, checked. Raises as ``prepare`` and ``check_labels`` do."""
        given, score_on = given_and_prepared(scoring, model, group)
        held_out, evaluate_on = given, score_on
        if evaluation is not None and not (evaluation is scoring and isinstance(scoring, Sequence)):
            held_out, evaluate_on = given_and_prepared(evaluation, model, group, together=True)
        check_labels(held_out, model, metric.name, "evaluation batch", not_counted=False)
        measure_on = score_on if same_batches(given, held_out) else evaluate_on
        labels = labels_in_order(measure_on).numpy()
        return cls((given, held_out), score_on, measure_on, metric, labels)

    @property
    def shared(self) -> bool:
        """True if the metric can be read off the passes that score."""
        return self.evaluation is self.scoring

    def hashes(self, model: nn.Module) -> dict[str, str]:
        """Of the model and of the texts, for a journal's header."""
        scoring, evaluation = (hash_of_tensors(item for b in batches for item in b.items()) for batches in self.given)
        config = hash_of_config(model.config)
        return {"model": hash_of_model(model), "config": config, "scoring": scoring, "evaluation": evaluation}


@dataclass(frozen=True)
class _Measured:
    """The per-text values of the metric, (text, ...), and its value."""

    values: np.ndarray
    value: float

    @classmethod
    def of(cls, values: np.ndarray, texts: _Texts) -> _Measured:
        return cls(values, texts.metric.value(values, texts.labels))


@dataclass(frozen=True)
class _Step:
    """A finished step: the heads that went, with their scores, and what is measured since."""

    trial: int
    gone: list[tuple[int, int, float]]  # layer, head, score; empty for the intact model
    gap: float  # between the last head that went and the first that stayed
    measured: _Measured
    seconds: float
    scoring_seconds: float  # of these, in the criterion

    def line(self) -> dict[str, Any]:
        """The step as a journal keeps it."""
        return {
            "trial": self.trial,
            "gone": self.gone,
            "gap": self.gap,
            **as_json(self.measured.values),
            "seconds": self.seconds,
            "scoring_seconds": self.scoring_seconds,
        }

    @classmethod
    def read(cls, line: dict[str, Any], texts: _Texts) -> _Step:
        """The step that ``line`` was made of."""
        measured = _Measured.of(from_json(line, len(texts.labels)), texts)
        gone = [(layer, head, score) for layer, head, score in line["gone"]]
        return cls(line["trial"], gone, line["gap"], measured, line["seconds"], line["scoring_seconds"])


Gone = list[tuple[int, int, float]]  # layer, head and score of what goes in a step

# What goes next by scores and mask, both (layer, head + neuron), and the smallest gap that decided it.
Choice = Callable[[Tensor, Tensor], tuple[Gone, float]]


class _Worker:
    """A copy of the model that loses its heads step by step, in one trial; with a ``choice``, neurons too."""

    def __init__(
        self,
        row: Method,
        model: nn.Module,
        start: Tensor,
        texts: _Texts,
        measured: dict[bytes, _Measured],
        seed: int,
        trial: int,
        rescore_every: int,
        layers: Sequence[int] | None,
        choice: Choice | None,
    ) -> None:
        self.choice = choice
        self.row, self.intact, self.texts, self.measured = row, model, texts, measured
        self.seed, self.trial, self.rescore_every, self.layers = seed, trial, rescore_every, layers
        self.subject, self.mask, self.start = Subject(copy_of(model)), start.clone(), start
        self.layer_inputs = layer_input_caches(texts.evaluation.of(self.subject).mine)
        self.steps = 0  # done so far
        self.scores: Tensor | None = None  # that the next step chooses by; None where they are to be taken
        self.scored = start.clone()  # the mask of the model that they are taken of
        self.scoring_seconds = 0.0  # of the step under way

    def repeat(self, step: _Step) -> None:
        """Lose the heads that went in a step of an earlier run."""
        self._remove(step.gone)
        self.measured[self.mask.numpy().tobytes()] = step.measured

    def advance(self, count: int, last: bool) -> _Step:
        """Lose ``count`` heads and measure what is left. last: no step follows, so nothing is scored for one."""
        began, self.scoring_seconds = time.perf_counter(), 0.0
        gone, gap = list[tuple[int, int, float]](), math.inf
        if count:
            self.scores = self._score(self.texts.scoring) if self.scores is None else self.scores
            gone, gap = self._chosen(self.scores, count)
        self._remove(gone)
        measured = self._measured(score_too=self.texts.shared and self._due() and not last)
        seconds = time.perf_counter() - began
        return _Step(self.trial, gone, gap, measured, round(seconds, 3), round(self.scoring_seconds, 3))

    def _score(self, batches: Prepared) -> Tensor:
        """(layer, head) scores of the model as it was when they were last due."""
        model = self.subject.model  # the worker's own: other threads may be at work on the intact one
        batches = batches.of(self.subject, held=True)
        if not bool((self.scored == self.mask).all()):  # a run goes on between two scorings
            model = self.intact
            if not bool((self.scored == self.start).all()):
                model = remove(Subject(copy_of(self.intact)), self.scored).model
        began = time.perf_counter()
        scores = self.row.scores(model, batches, _generator(self.seed, self.trial))
        scores = gather(batches.group, scores)[0]  # those of the first rank, whatever the others computed
        if self.choice is not None:  # neurons are numbered as they were before any went
            left = scores[self.subject.unit_mask]
            scores = torch.full(self.mask.shape, -torch.inf, dtype=scores.dtype).masked_scatter(self.mask, left)
        self.scoring_seconds += time.perf_counter() - began
        return scores

    def _due(self) -> bool:
        """True if the next step scores afresh."""
        return self.rescore_every > 0 and self.steps % self.rescore_every == 0

    def _chosen(self, scores: Tensor, count: int) -> tuple[list[tuple[int, int, float]], float]:
        """The heads that go next, and the smallest gap that decided it: among all that are left, or in each layer."""
        if self.choice is not None:
            return self.choice(scores, self.mask)
        if self.layers is None:
            return _choose(scores, self.mask, count, self.row.highest_first)
        done = int(self.start.sum() - self.mask.sum())
        layers, gap = self.layers[done : done + count], math.inf
        chosen: dict[int, list[tuple[int, int, float]]] = {}
        for layer in dict.fromkeys(layers):
            of_layer = torch.zeros_like(self.mask)
            of_layer[layer] = self.mask[layer]
            chosen[layer], own = _choose(scores, of_layer, layers.count(layer), self.row.highest_first)
            gap = min(gap, own)
        return [chosen[layer].pop(0) for layer in layers], gap

    def _remove(self, gone: Sequence[tuple[int, int, float]]) -> None:
        before = self.mask.clone()
        for layer, head, _ in gone:
            self.mask[layer, head] = False
        if gone:
            self.steps += 1
            if self._due():
                self.scores, self.scored = None, self.mask.clone()
            now = self.subject.mask if self.choice is None else self.subject.unit_mask
            stay = now.masked_scatter(now, self.mask[before])  # of those that the model has now
            self.subject = remove(self.subject, stay, neurons=self.choice is not None)
            for of_micro_batch in self.layer_inputs:
                of_micro_batch.forget(above=min(layer for layer, _, _ in gone))

    def _measured(self, score_too: bool) -> _Measured:
        """As measured before where this mask was; read off the passes that score, if ``score_too``."""
        texts, metric = self.texts, self.texts.metric
        tally = Tally(texts.evaluation, metric.text_values, metric.name)
        if score_too:
            self.scores = self._score(texts.scoring.with_observer(tally))
        state = self.mask.numpy().tobytes()
        if state not in self.measured:
            whole = tally.complete
            evaluation = texts.evaluation.of(self.subject, held=True)
            values = (
                tally.result() if whole else text_values_of(self.subject.model, evaluation, metric, self.layer_inputs)
            )
            self.measured[state] = _Measured.of(values.numpy(), texts)
        return self.measured[state]


def _trajectory(finished: Sequence[_Step], start: Tensor, texts: _Texts, info: dict[str, Any]) -> Trajectory:
    """The table and the records of finished steps, trial by trial; of a run of heads and neurons, a row for each."""
    rows: list[dict[str, Any]] = []
    values: list[np.ndarray] = []
    pruned, name = 0, texts.metric.name
    for step in finished:
        pruned = pruned + len(step.gone) if step.gone else 0  # a trial begins with the intact model
        state = {"trial": step.trial, "pruned_heads": pruned, name: step.measured.value}
        listed = step.gone[:1] if "units" in info else step.gone
        rows += [{**state, "layer": layer, "head": head, "score": s} for layer, head, s in listed] or [state]
        values += [step.measured.values] * max(1, len(listed))
    table = pd.DataFrame(rows, columns=["trial", "pruned_heads", "layer", "head", "score", name])
    gaps = [step.gap for step in finished]
    info |= {
        "metric": name,
        "steps": len(finished) // info["trials"] - 1,  # fewer than were asked for where "until" ended the run
        "scoring_texts": texts.scoring.num_texts,
        "evaluation_texts": texts.evaluation.num_texts,
        "ties": gaps.count(0.0),
        "near_ties": sum(gap < NEAR_TIE for gap in gaps),
        "smallest_gap": min(gaps),
        "seconds": round(sum(step.seconds for step in finished), 3),
        "scoring_seconds": round(sum(step.scoring_seconds for step in finished), 3),
    }
    table = table.astype({"layer": "Int64", "head": "Int64"})
    gone = [[(layer, head) for layer, head, _ in step.gone] for step in finished] if "units" in info else None
    return Trajectory(table, np.stack(values), start, info, texts.metric, texts.labels, gone)


def checked_int(name: str, value: Any, least: int) -> int:
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
        gap = distance(*values[order[count - 1 : count + 1]].tolist())
    width = mask.shape[1]
    return [(int(left[i]) // width, int(left[i]) % width, float(values[i])) for i in chosen], gap


def distance(last: float, following: float) -> float:
    """How far two scores are apart; equal infinite ones too."""
    return 0.0 if last == following else abs(last - following)
