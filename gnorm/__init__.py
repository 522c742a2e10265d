"""Attention-head pruning: the Greedy-Gnorm paper (arXiv 2602.04491), reproduced, and a tool that prunes heads.

The method lies at the top of this package. The wings: ``engine`` makes passes fast and exact, ``storage`` writes and
reads files and checkpoints, ``experiments`` reproduces the paper, ``shipping`` makes a user's model smaller.
"""

from .engine.batches import prepare
from .heads import AttentionBlock, attention_blocks, head_mask_of, masked, register, without_feed_forward
from .methods import METHODS, MORE_METHODS, Method
from .metrics import METRICS, Metric, accuracy, measure
from .pruning import prune
from .scoring import activation_energy, attention_entropy, gnorm_scores
from .shipping.costs import cost
from .shipping.export import export_onnx
from .storage.loading import load_pruned
from .storage.saving import save_pruned
from .storage.text_sets import TextSet
from .surgery import remove_heads
from .trajectory import Trajectory

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
