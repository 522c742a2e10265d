"""Training what is left of a model after heads were removed, so that it answers well again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, mse_loss

from ..engine.forward.packing import logits_in, logits_of
from ..engine.model.problems import LABELS, Problem, problem_of
from ..engine.model.sizes import Batch, num_texts
from ..engine.model.state import evaluating, is_compiled
from ..engine.tally import labels_in_order
from ..engine.texts.batches import prepare
from ..engine.texts.checks import check_labels, checked
from ..metrics import measure, text_values_of
from ..pruning import checked_int
from ..training import fit
from ..trajectory import Trajectory, curve, of_texts
from .choosing import pruned_copy
from .loading import Own
from .promise import Promise


def recover(
    model: Any,
    batches: Sequence[Batch],
    teacher: Any = None,
    epochs: int = 1,
    lr: float = 5e-5,
    warmup: float = 0.1,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Train ``model`` further, in place, as ``fit`` does; it stays on its device, in eval mode.

    batches: mappings of tensors with labels, such as ``own.training``; each is one step, in an order drawn anew every
    epoch. teacher: the intact model, whose logits are learnt too: half of the loss is then the distance to them, the
    Kullback-Leibler divergence of class probabilities, or the squared error where the logits are numbers (Hinton et al.
    2015, arXiv 1503.02531, at temperature 1). epochs: passes over the batches. lr: the highest learning rate of AdamW,
    reached after the fraction ``warmup`` of the steps and falling to 0. seed: of the order and of dropout.

    Weights of half precision are trained in fp32 and rounded afterwards: a step of 5e-5 is less than the distance of
    two bf16 numbers.

    Raises ``ModuleNotFoundError`` where accelerate is missing, which the Trainer needs; ``ValueError`` for batches
    without labels, numbers out of range and a compiled model, and as ``prepare`` does for batches.
    """
    epochs, seed = checked_int("epochs", epochs, 1), checked_int("seed", seed, 0)
    if not 0 < lr < math.inf:
        raise ValueError(f"lr={lr} is out of range: give a learning rate above 0, such as 5e-5.")
    if is_compiled(model):
        raise ValueError("the model is compiled: give the one from before, and compile it afterwards.")
    batches = list(checked(batches, model))  # with what the decoder reads, for the teacher gets no labels
    check_labels(batches, model, "training")
    problem = problem_of(model)

    def loss(student: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        labels = inputs.pop("labels") if problem.own_loss else None
        outputs = student(**inputs)
        if labels is None:
            found: Tensor = outputs.loss
        else:
            found = problem.loss_sum(logits_in(student, outputs, inputs), labels) / len(labels)
        if teacher is None:
            return found
        with torch.no_grad():
            aim = logits_of(teacher, {name: t for name, t in inputs.items() if name not in LABELS})
        apart = distance(problem, logits_in(student, outputs, inputs), aim, problem.logit_mask(inputs))
        return (found + apart) / 2

    with in_fp32(model), nullcontext() if teacher is None else evaluating(teacher):
        fit(model, batches, _first, loss, epochs=epochs, lr=lr, warmup=warmup, seed=seed, progress=progress)


@contextmanager
def in_fp32(model: nn.Module) -> Iterator[None]:
    """Within a ``with`` block parameters and buffers of half precision are fp32; then they are rounded back."""
    halves = [(t, t.dtype) for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() and t.itemsize < 4]
    try:
        for tensor, _ in halves:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, dtype in halves:
            tensor.data = tensor.data.to(dtype)
            tensor.grad = None


def _first(items: Sequence[Batch]) -> dict[str, Tensor]:
    """The one batch that a step is made of."""
    return dict(items[0])


def distance(problem: Problem, logits: Tensor, aim: Tensor, real: Tensor | None) -> Tensor:
    """The mean distance of the ``logits`` (text, ...) to those of a teacher, ``aim``, in fp32; one number.

    real: which logits are not of padding, None for all.
    """
    z, aim = logits.float(), aim.float()
    if not problem.whole:
        return mse_loss(z, aim)
    if real is not None and problem.logits[-1] == "token":  # classes are positions
        z, aim, real = z.masked_fill(~real, -1e4), aim.masked_fill(~real, -1e4), None
    each = kl_div(log_softmax(z, -1), log_softmax(aim, -1), reduction="none", log_target=True).sum(-1)
    return each.mean() if real is None else each[real.squeeze(-1).expand_as(each)].mean()


SHARES = 12  # of all heads: trained models are tried at every one


def furthest_recovered(own: Own, run: Trajectory, promise: Promise, epochs: int = 1) -> tuple[int, Any]:
    """Train states of a run further until one does not keep ``promise``: the last that did, as the number of its pruned
    heads and the trained model.

    Every other batch to choose by is learnt, beside those to score on, labels and the logits of ``own.model``; the
    trained models are tested on the batches between, one at every ``SHARES``-th of the heads, in order, from the last
    that keeps the promise untrained on the batches that are learnt.

    Raises ``ValueError`` where the first of them does not keep it, and as ``Promise.check`` and ``recover`` do.
    """
    tested = own.choosing[1::2]
    promise.check(run.metric, num_texts(tested), shares=4)
    number_of = torch.cat([torch.full((num_texts([batch]),), i) for i, batch in enumerate(own.choosing)])
    mine = (number_of % 2 == 0).numpy()  # (text,)
    untrained = promise.last_kept(of_texts(run, mine))
    before = text_values_of(own.model, tested, run.metric).numpy()
    labels = labels_in_order(prepare(tested, own.model)).numpy()
    states = curve(run).index
    every = max(1, int(run.start.sum()) // SHARES)
    found = None
    last = int(states[-1])
    for aim in range(untrained - untrained % every, last + 1, every):
        pruned = next(n for n in states if n >= aim)
        if found is not None and pruned == found[0]:
            continue  # a block of neurons may be more than a share
        model = pruned_copy(own, run, int(pruned))
        recover(model, trained_on(own), own.model, epochs)
        if not promise.holds(run.metric, before, text_values_of(model, tested, run.metric).numpy(), labels):
            break
        found = int(pruned), model
    if found is None:
        raise ValueError(
            f"{num_texts(tested)} texts do not show that a trained model without {untrained} heads keeps the budget: "
            "give more texts, or a larger budget."
        )
    return found


def trained_on(own: Own) -> list[dict[str, Tensor]]:
    """The batches that ``furthest_recovered`` trains on."""
    return [*own.scoring, *own.choosing[::2]]


def recovered_along(
    own: Own, run: Trajectory, batches: Sequence[Batch], states: Sequence[int], **options: Any
) -> pd.DataFrame:
    """The metric of pruned models after training: a row for each of ``states``, numbers of pruned heads of the run, and
    each of the texts to choose by and to test on.

    Columns: pruned_heads; texts, "choosing" or "testing"; and the run's metric of the model as it was pruned, of one
    trained further on ``batches``, and of one that learns the intact model's logits too: pruned, trained, distilled.
    options: of ``recover``, and its errors.
    """
    rows = []
    for pruned in states:
        models = {"pruned": pruned_copy(own, run, pruned)}
        for name, teacher in (("trained", None), ("distilled", own.model)):
            models[name] = pruned_copy(own, run, pruned)
            recover(models[name], batches, teacher, **options)
        for texts in ("choosing", "testing"):
            values = {name: measure(model, getattr(own, texts), run.metric) for name, model in models.items()}
            rows.append({"pruned_heads": pruned, "texts": texts, **values})
    return pd.DataFrame(rows)


def most_within(table: pd.DataFrame, intact: float, budget: float, higher_is_better: bool = True) -> pd.DataFrame:
    """Numbers of heads that can go within a budget, as pruned and after training: a row for each column of models.

    table: of ``recovered_along``. intact: the metric of the intact model on the texts to choose by. Columns: model;
    pruned_heads, the largest number whose metric on the texts to choose by is worse than ``intact`` by no more than
    ``budget``; and the metric there on the texts to test on, which nothing was chosen by. 0 heads where none is.
    """
    sign = 1 if higher_is_better else -1
    by_texts = {name: rows.set_index("pruned_heads") for name, rows in table.groupby("texts")}
    found = []
    for name in ("pruned", "trained", "distilled"):
        values = by_texts["choosing"][name]
        pruned = max(values.index[sign * (intact - values) <= budget + 1e-12], default=0)
        tested = by_texts["testing"][name].get(pruned, float("nan"))
        found.append({"model": name, "pruned_heads": int(pruned), "on texts to test on": tested})
    return pd.DataFrame(found)
