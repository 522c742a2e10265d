"""Attention-head pruning: the Greedy-Gnorm paper (arXiv 2602.04491), reproduced, and a tool that prunes heads.

The method lies at the top of this package. The wings: ``engine`` makes passes fast and exact, ``storage`` writes and
reads files and checkpoints, ``shipping`` makes a user's model smaller. What a wing above the method offers is loaded
when its name is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .engine.model.blocks import AttentionBlock
from .engine.texts.batches import prepare
from .heads import attention_blocks, head_mask_of, masked, register, without_feed_forward
from .methods import METHODS, MORE_METHODS, Method
from .metrics import METRICS, Metric, accuracy, measure
from .pruning import prune
from .scoring import activation_energy, attention_entropy, gnorm_scores
from .surgery import remove_heads
from .trajectory import Trajectory

if TYPE_CHECKING:
    from .shipping.costs import cost
    from .shipping.export import export_onnx
    from .storage.loading import load_pruned
    from .storage.saving import save_pruned
    from .storage.text_sets import TextSet

_WHEN_USED = {  # name -> its module
    "TextSet": "storage.text_sets",
    "cost": "shipping.costs",
    "export_onnx": "shipping.export",
    "load_pruned": "storage.loading",
    "save_pruned": "storage.saving",
}

__all__ = [
    "METHODS",
    "METRICS",
    "MORE_METHODS",
    "AttentionBlock",
    "Method",
    "Metric",
    "TextSet",
    "Trajectory",
    "accuracy",
    "activation_energy",
    "attention_blocks",
    "attention_entropy",
    "cost",
    "export_onnx",
    "gnorm_scores",
    "head_mask_of",
    "load_pruned",
    "masked",
    "measure",
    "prepare",
    "prune",
    "register",
    "remove_heads",
    "save_pruned",
    "without_feed_forward",
]


def __getattr__(name: str) -> Any:
    """A name of ``_WHEN_USED``, its module loaded now."""
    if name not in _WHEN_USED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(f".{_WHEN_USED[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
