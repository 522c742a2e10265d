"""Attention-head pruning: the Greedy-Gnorm paper (arXiv 2602.04491), reproduced, and a tool that prunes heads.

The method lies at the top of this package. The wings: ``engine`` makes passes fast and exact, ``storage`` writes and
reads files and checkpoints, ``shipping`` makes a user's model smaller. Each is loaded when a name of it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.model.blocks import AttentionBlock as AttentionBlock
    from .engine.texts.batches import prepare as prepare
    from .heads import attention_blocks as attention_blocks
    from .heads import head_mask_of as head_mask_of
    from .heads import masked as masked
    from .heads import register as register
    from .heads import without_feed_forward as without_feed_forward
    from .methods import METHODS as METHODS
    from .methods import MORE_METHODS as MORE_METHODS
    from .methods import Method as Method
    from .metrics import METRICS as METRICS
    from .metrics import Metric as Metric
    from .metrics import accuracy as accuracy
    from .metrics import measure as measure
    from .pruning import prune as prune
    from .scoring import activation_energy as activation_energy
    from .scoring import attention_entropy as attention_entropy
    from .scoring import gnorm_scores as gnorm_scores
    from .shipping.costs import cost as cost
    from .shipping.export import export_onnx as export_onnx
    from .storage.loading import load_pruned as load_pruned
    from .storage.saving import save_pruned as save_pruned
    from .storage.text_sets import TextSet as TextSet
    from .surgery import remove_heads as remove_heads
    from .surgery import remove_units as remove_units
    from .surgery import unit_mask_of as unit_mask_of
    from .trajectory import Trajectory as Trajectory

_NAMES = {  # module -> its public names
    "engine.model.blocks": ("AttentionBlock",),
    "engine.texts.batches": ("prepare",),
    "heads": ("attention_blocks", "head_mask_of", "masked", "register", "without_feed_forward"),
    "methods": ("METHODS", "MORE_METHODS", "Method"),
    "metrics": ("METRICS", "Metric", "accuracy", "measure"),
    "pruning": ("prune",),
    "scoring": ("activation_energy", "attention_entropy", "gnorm_scores"),
    "shipping.costs": ("cost",),
    "shipping.export": ("export_onnx",),
    "storage.loading": ("load_pruned",),
    "storage.saving": ("save_pruned",),
    "storage.text_sets": ("TextSet",),
    "surgery": ("remove_heads", "remove_units", "unit_mask_of"),
    "trajectory": ("Trajectory",),
}

_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

_MODULES = ("criteria", "engine", "journal", *(module for module in _NAMES if "." not in module))

__all__ = [*_MODULE_OF]  # noqa: PLE0604 - they are strings


def __getattr__(name: str) -> Any:
    """A public name, or a module of the method: loaded now."""
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
