"""Training by the Trainer of transformers: from scratch, of a checkpoint, or of what pruning has left."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm

from .engine.forward.products import faster_products
from .engine.model.state import own_modes

Loss = Callable[[nn.Module, dict[str, Tensor]], Tensor]  # of a model and the inputs of a batch, labels among them


def fit(
    model: Any,
    items: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    loss: Loss,
    *,
    epochs: int,
    lr: float,
    batch: int = 1,
    warmup: float = 0.1,
    weight_decay: float = 0.0,
    dropout: bool = True,
    seed: int = 0,
    label: str = "training",
    progress: bool = True,
) -> None:
    """Train ``model`` in place, on its device: AdamW, gradients clipped to norm 1. It is in eval mode afterwards.

    items: texts with their ``input_ids``, or whole batches. collate: makes the inputs of a step of a list of ``batch``
    items; several in a step are of like lengths, in an order drawn anew every epoch. epochs: passes over the items; 0
    leaves the model as it is. lr: the highest learning rate, reached after the fraction ``warmup`` of the steps and
    falling to 0. dropout: whether units are dropped. seed: of the order and of dropout; the state of every generator is
    restored. label: what the bar on standard error says, with ``progress``.

    Raises ``ModuleNotFoundError`` where accelerate is missing, which the Trainer needs.
    """
    if find_spec("accelerate") is None:
        raise ModuleNotFoundError("training needs the package accelerate: pip install accelerate.")

    class Trainer(transformers.Trainer):  # made here, because the Trainer takes a second to import
        def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Any:
            model.train(dropout)
            with faster_products(next(model.parameters())):
                return loss(model, inputs)

        def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
            return _Grouped(items, batch, seed)

    class Bar(transformers.TrainerCallback):
        def on_train_begin(self, _arguments: Any, state: Any, _control: Any, **_: Any) -> None:
            self.bar = tqdm(total=state.max_steps, desc=label, disable=not progress)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.bar.update()

    with tempfile.TemporaryDirectory() as folder, _generators_restored(), own_modes():
        options = transformers.TrainingArguments(
            folder,
            num_train_epochs=epochs,
            learning_rate=lr,
            warmup_steps=warmup,
            weight_decay=weight_decay,
            seed=seed,
            per_device_train_batch_size=batch,
            use_cpu=model.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,  # its bar is HTML in a notebook, which no terminal shows
            remove_unused_columns=False,
        )
        bar = Bar()
        trainer = Trainer(model, options, data_collator=collate, train_dataset=items, callbacks=[bar])
        trainer.remove_callback(transformers.PrinterCallback)
        if epochs:
            try:
                trainer.train()
            finally:
                bar.bar.close()
    model.eval()


class _Grouped(torch.utils.data.Sampler[int]):
    """Numbers of items, a batch after the other, each of items of like lengths; drawn anew by every iteration.

    The sampler that transformers has for this gives batches by falling length, which made small models worse.
    """

    def __init__(self, items: Sequence[Mapping[str, Any]], batch: int, seed: int) -> None:
        self.lengths = torch.tensor([len(item["input_ids"]) if batch > 1 else 0 for item in items])
        self.batch, self.generator = batch, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        drawn = torch.randperm(len(self), generator=self.generator).split(50 * self.batch)
        by_length = torch.cat([some[self.lengths[some].argsort(stable=True)] for some in drawn])
        *whole, rest = by_length.split(self.batch)
        order = torch.randperm(len(whole), generator=self.generator).tolist()
        return iter(torch.cat([*(whole[i] for i in order), rest]).tolist())


@contextmanager
def _generators_restored() -> Iterator[None]:
    """The Trainer sets the seeds of Python, NumPy and torch."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that it seeds
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
