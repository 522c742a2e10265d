"""The cases of the benchmarks: models of random weights, texts of random tokens, seconds, operations by formula.

Needs torch and transformers alone, as ``benchmarks.gpu`` does.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import transformers
from torch import Tensor

Texts = list[dict[str, Tensor]]  # in batches


@dataclass(frozen=True)
class Case:
    """A model by its configuration, and its texts, of ``shortest`` to ``longest`` tokens, drawn uniformly.

    evaluated: further texts that are measured on; 0 where the scoring texts are.
    """

    name: str
    model_type: str
    config: dict[str, Any]
    texts: int
    batch: int
    evaluated: int = 0
    shortest: int = 5
    longest: int = 44

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def hidden(self) -> int:
        return int(self.config["hidden_size"])

    @property
    def heads(self) -> int:
        return int(self.config["num_attention_heads"])

    def about(self) -> dict[str, Any]:
        """The sizes, as the rows of a table name them."""
        names = ("layers", "hidden", "heads", "batch", "texts")
        return {name: getattr(self, name) for name in names}


def sizes(vocab: int, layers: int = 12, hidden: int = 768, heads: int = 12, labels: int = 3, **more: Any) -> Any:
    """A configuration, by the names that transformers has."""
    named = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return {"vocab_size": vocab, **named, "intermediate_size": 4 * hidden, "num_labels": labels, **more}


def bert(layers: int, hidden: int, heads: int, batch: int, texts: int, **lengths: int) -> Case:
    """A BERT of these sizes."""
    return Case("BERT", "bert", sizes(5000, layers, hidden, heads), texts, batch, **lengths)


def narrow(case: Case) -> Case:
    """The same case at sizes that a CPU does in a second."""
    small = {"vocab_size": 50, "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4}
    config = {**case.config, **small, "intermediate_size": 24}
    return replace(case, config=config, texts=10, batch=4, evaluated=min(case.evaluated, 6), longest=case.shortest + 6)


_DRAWN: dict[str, Any] = {}  # models by case: drawing the weights of a large one takes seconds


def model_of(case: Case) -> Any:
    """The model of a case, the same at every call; its weights are drawn once."""
    if (of := repr((case.model_type, case.config))) not in _DRAWN:
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(case.model_type, **case.config)
        _DRAWN[of] = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    return copy.deepcopy(_DRAWN[of])


def texts_of(case: Case, texts: int, seed: int = 0) -> Texts:
    """Batches of random tokens, labels among them."""
    draw = torch.Generator().manual_seed(seed)
    found, pad = [], int(case.config.get("pad_token_id", 0))
    lengths = torch.randint(case.shortest, case.longest + 1, (texts,), generator=draw)
    for of_batch in lengths.split(case.batch) if texts else ():
        mask = (torch.arange(int(of_batch.max()))[None] < of_batch[:, None]).long()
        ids = torch.randint(5, case.config["vocab_size"], mask.shape, generator=draw)
        labels = torch.randint(0, case.config["num_labels"], (len(of_batch),), generator=draw)
        found.append({"input_ids": ids.where(mask.bool(), pad), "attention_mask": mask, "labels": labels})
    return found


def lengths_of(batches: Iterable[dict[str, Tensor]]) -> Tensor:
    """(text,) the real tokens of each text."""
    return torch.cat([batch["attention_mask"].sum(1) for batch in batches])


def operations(case: Case, scored: Tensor, evaluated: Tensor | None = None) -> float:
    """Floating-point operations by formula: 4.5 x parameters of the blocks x tokens scored, 2 x tokens evaluated,
    attention products added (of scoring two, once and twice back).

    scored, evaluated: the lengths (text,) of the texts that are scored on, and of further ones that are measured on.
    """
    matrices = 4 * case.hidden**2 + 2 * case.hidden * case.config["intermediate_size"]
    total = 0.0
    for lengths, linear, attention in ((scored, 4.5, 12), (evaluated, 2.0, 4)):
        if lengths is not None:
            products = attention * case.hidden * lengths.double().square().sum()
            total += case.layers * float(linear * matrices * lengths.double().sum() + products)
    return total


def seconds(action: Callable[[], Any], device: str) -> float:
    """The seconds that the action takes, on a GPU until all of it is done."""
    synchronise(device)
    began = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def environment(processor: str, device: str, commit: str | None) -> dict[str, Any]:
    """The versions and the machine that results were measured with."""
    return {
        "processor": torch.cuda.get_device_name() if device == "cuda" else processor,
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit,
    }
