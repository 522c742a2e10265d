"""From a run to a folder: remove heads within a budget, save the model with its tokenizer and model card."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..engine.model.sizes import Batch, num_texts
from ..engine.model.state import copy_of
from ..engine.tally import labels_in_order
from ..engine.texts.batches import prepare
from ..heads import head_mask_of
from ..methods import find_method
from ..metrics import text_values_of
from ..storage.files import free_folder
from ..storage.saving import check_saving, save_pruned
from ..surgery import unit_mask_of
from ..trajectory import Trajectory, curve
from .choosing import BUDGETS, choose, pruned_copy
from .costs import cost
from .loading import Own
from .model_card import card
from .promise import Promise
from .recovery import furthest_recovered, recover, trained_on


def ship(
    own: Own,
    run: Trajectory,
    folder: str | os.PathLike[str],
    budget: float = 0.01,
    overwrite: bool = False,
    by: str = "metric",
    confidence: float | None = 0.9,
    epochs: int = 0,
) -> Path:
    """Remove as many heads as the budget allows; save the smaller model, its tokenizer and card; return the folder.

    run: of ``prune`` with ``own.model``, ``own.scoring`` and ``own.choosing``. budget: how much worse the run's metric,
    such as accuracy, may become (0.01 is a percentage point of it), or what ``by`` says; confidence: of that; see
    ``choose``. epochs: of training what is left, on labels and on the logits of ``own.model``; a promise is then one of
    the trained model, and more heads can go, see ``furthest_recovered``. overwrite: replace a folder that holds files;
    an empty folder needs no ``overwrite``. ``own.model`` stays as it was.

    Raises, before anything is saved: ``FileExistsError`` where the folder holds files, or what ``own`` was read from;
    ``ValueError`` where the run is not of this model or has several trials; and as ``check_saving`` and ``choose`` do.
    """
    folder = free_folder(folder, overwrite, own.read)
    return smaller_model(own, run, budget, by, confidence, epochs).save(folder, overwrite)


@dataclass(frozen=True)
class Release:
    """A smaller model, and what its card says of it: the keywords of ``card``, without the name."""

    own: Own
    model: Any
    facts: dict[str, Any]

    def summary(self) -> str:
        """The card in four lines: what was removed, the metric, parameters, time."""
        return card(template="summary.txt.j2", **self.facts).strip()

    def recovered(self, batches: Sequence[Batch], distil: bool = False, **options: Any) -> Release:
        """The same with a model that was trained further; its card tells of both. ``self`` stays as it is.

        batches: with labels, none of ``own.testing``, such as ``[*own.scoring, *own.choosing]``. distil: learn the
        intact model's logits too. options: of ``recover``, and its errors.
        """
        model, teacher = copy_of(self.model), self.own.model if distil else None
        recover(model, batches, teacher, **options)
        return self._trained(model, batches, options.get("epochs", 1), distil)

    def _trained(self, model: Any, batches: Sequence[Batch], epochs: int, distil: bool) -> Release:
        after = text_values_of(model, self.own.testing, self.facts["metric"]).numpy()
        training = {"texts": num_texts(batches), "epochs": epochs, "distilled": distil, "verdict": ""}
        if promise := self.facts["promise"]:
            before, labels = self.facts["text_values"]["before"], self.facts["labels"]
            training["verdict"] = promise.verdict(self.facts["metric"], before, after, labels)
        values = {**self.facts["text_values"], "recovered": after}
        facts = {**self.facts, "model": model, "training": training, "text_values": values}
        return replace(self, model=model, facts=facts)

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Save the model, its tokenizer and card; return the folder. Raises as ``save_pruned`` does, and
        ``FileExistsError`` where the folder holds what the model was made of."""
        free_folder(folder, overwrite, self.own.read)
        text = card(name=Path(folder).resolve().name, **self.facts)
        return save_pruned(self.model, folder, self.own.tokenizer, text, overwrite)


def smaller_model(
    own: Own,
    run: Trajectory,
    budget: float = 0.01,
    by: str = "metric",
    confidence: float | None = 0.9,
    epochs: int = 0,
) -> Release:
    """The smaller model that ``ship`` saves, measured beside ``own.model``. Arguments and errors as of ``ship``."""
    if run.info["trials"] > 1:
        raise ValueError(f"the run has {run.info['trials']} trials, whose mean is not a model: prune with trials=1.")
    mask_of = head_mask_of if run.gone is None else unit_mask_of
    if not torch.equal(run.start, mask_of(own.model)):
        raise ValueError("the run began with other heads than the model has: prune own.model itself.")
    check_saving(own.model, own.tokenizer)
    promise = Promise(budget, confidence) if by == "metric" and confidence is not None else None
    trained = None
    if promise and epochs:
        pruned, trained = furthest_recovered(own, run, promise, epochs)
    else:
        pruned = choose(own, run, budget, by, confidence)
    model = pruned_copy(own, run, pruned)
    before, after = (text_values_of(each, own.testing, run.metric).numpy() for each in (own.model, model))
    states = curve(run)
    facts = {
        "checkpoint": own.checkpoint,
        "data": own.data,
        "model": model,
        "units": _units(run, pruned),
        "method": find_method(run.info["method"]).title,
        "heads_per_step": run.info["heads_per_step"],
        "choice": BUDGETS[by].says(budget, run.metric, confidence),
        "promise": promise,
        "chosen": {"before": float(states.iloc[0]), "after": float(states[pruned])},
        "metric": run.metric,
        "text_values": {"before": before, "after": after},
        "labels": labels_in_order(prepare(own.testing, own.model)).numpy(),
        "texts": {name: num_texts(getattr(own, name)) for name in ("scoring", "choosing", "testing")},
        "costs": cost(model, beside=own.model),
        "training": None,
        "versions": run.info["versions"],
    }
    release = Release(own, model, facts)
    if trained is not None:
        return release._trained(trained, trained_on(own), epochs, distil=True)
    return release.recovered(trained_on(own), distil=True, epochs=epochs) if epochs else release


def _units(run: Trajectory, pruned: int) -> dict[str, tuple[int, int]]:
    """How many of how many units of each kind are gone in a state of the run."""
    start, mask = run.start, run.mask(pruned)
    heads = run.info.get("heads", start.shape[1])
    kinds = {"attention heads": slice(0, heads), "feed-forward neurons": slice(heads, None)}
    counts = {name: (int((start & ~mask)[:, part].sum()), int(start[:, part].sum())) for name, part in kinds.items()}
    return {name: (gone, of) for name, (gone, of) in counts.items() if of}
