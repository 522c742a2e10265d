"""Attention-head pruning: the Greedy-Gnorm paper (arXiv 2602.04491), reproduced, and the tool that comes of it."""

from .heads import AttentionBlock, attention_blocks, head_mask_of, masked, register, without_feed_forward
from .pruning import METHODS, Method, Trajectory, prune
from .scoring import accuracy, activation_energy, attention_entropy, gnorm_scores
from .surgery import remove_heads

__all__ = [
    "METHODS",
    "AttentionBlock",
    "Method",
    "Trajectory",
    "accuracy",
    "activation_energy",
    "attention_blocks",
    "attention_entropy",
    "gnorm_scores",
    "head_mask_of",
    "masked",
    "prune",
    "register",
    "remove_heads",
    "without_feed_forward",
]
