"""Norms as logarithms: they do not underflow, and rounding makes no ties.

A head's score is a product of three norms, each a sum over batches. In fp32 a product of three norms of 1e-15 is zero
already; its natural logarithm, -103.6, is an ordinary number. Products become sums, and sums become
``torch.logaddexp``. Norms are taken in fp32 where they are cheaper than in float64 and as exact.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cheap_in_fp32(rows: Tensor) -> bool:
    """True if norms in fp32 are worth a try: ten times faster than float64 on a CPU."""
    return rows.dtype == torch.float32 and rows.device.type == "cpu"


def safe_in_fp32(norms: Tensor) -> Tensor:
    """True if each of the norms in fp32 is as exact as in float64, as the squares stayed in range."""
    return (norms > 1e-12) & (norms < 1e18)


def log_norm(x: Tensor) -> Tensor:
    """Natural logarithm of the L2 norm of each row of ``x`` (row, ...), float64 (row,); -inf where a row is zero.

    The squares of single- and half-precision numbers, subnormal ones too, are normal numbers in float64. Rows of
    float64 are divided by their largest magnitude m first: log ||x|| = log m + log ||x / m||. NaN and infinity in
    ``x`` give NaN and infinity.
    """
    rows = x.flatten(1)
    if rows.dtype == torch.float64:
        largest = rows.abs().amax(1, keepdim=True) if rows.numel() else rows.new_ones(len(rows), 1)
        scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
        return torch.linalg.vector_norm(rows / scale, dim=1).log() + scale[:, 0].log()
    if cheap_in_fp32(rows) and bool(safe_in_fp32(norms := torch.linalg.vector_norm(rows, dim=1)).all()):
        return norms.double().log()
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).log()
