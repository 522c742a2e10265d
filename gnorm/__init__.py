"""Attention-head pruning: the Greedy-Gnorm paper (arXiv 2602.04491), reproduced, and the tool that comes of it."""

from .batches import prepare
from .costs import cost
from .export import export_onnx
from .heads import AttentionBlock, attention_blocks, head_mask_of, masked, register, without_feed_forward
from .pruning import METHODS, MORE_METHODS, Method, Trajectory, prune
from .scoring import accuracy, activation_energy, attention_entropy, gnorm_scores
from .surgery import load_pruned, remove_heads, save_pruned

__all__ = [
    "METHODS",
    "MORE_METHODS",
    "AttentionBlock",
    "Method",
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
    "prepare",
    "prune",
    "register",
    "remove_heads",
    "save_pruned",
    "without_feed_forward",
]
