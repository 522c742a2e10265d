"""Removing heads for good; saving and loading models with heads removed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers import AutoConfig

from .heads import attention_blocks, checked_mask, head_mask_of


def remove_heads(model: nn.Module, mask: Tensor | Sequence[Sequence[int]]) -> None:
    """Remove heads from ``model``, in place, with their weights and biases.

    mask: (layer, head), 1 keeps and 0 removes; indices are those of the intact model, and a head that is gone stays
    gone whatever the mask says. Unequal and empty layers are fine: the modules of transformers infer the number of
    heads from the shapes, so a block with no head left hands an empty context to an output projection without
    columns, whose bias remains. What is left is written to ``model.config.head_mask``, where ``head_mask_of`` and
    ``save_pretrained`` find it. Raises ``ValueError`` for a mask of the wrong shape or with values other than 0 and 1.
    """
    blocks = attention_blocks(model)
    left = checked_mask(mask, blocks) & head_mask_of(model)
    for block, row in zip(blocks, left, strict=True):
        keep = row[list(block.kept)].repeat_interleave(block.head_dim).nonzero()[:, 0]  # (kept * head_dim,)
        if len(keep) < block.query.out_features:
            for linear in (block.query, block.key, block.value):
                _slice(linear, keep, dim=0)
            _slice(block.output, keep, dim=1)
    if not left.all():
        config: Any = model.config
        config.head_mask = left.int().tolist()


def _slice(linear: nn.Linear, keep: Tensor, dim: int) -> None:
    """Keep the rows (dim 0) or columns (dim 1) ``keep`` of a linear layer."""
    keep = keep.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight.detach().index_select(dim, keep), linear.weight.requires_grad)
    if dim == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach().index_select(0, keep), linear.bias.requires_grad)
    linear.out_features, linear.in_features = linear.weight.shape


def save_pruned(model: Any, folder: str | os.PathLike[str]) -> Path:
    """Save a model whose heads were removed as a folder that ``load_pruned`` reads; returns the folder.

    It holds model.safetensors and config.json, whose ``head_mask`` (layer, head) says which heads are left. The folder
    is written under a temporary name and renamed. Raises ``FileExistsError`` where it exists already.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: delete it, or name another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    config: Any = model.config
    before = getattr(config, "head_mask", None)
    try:
        config.head_mask = head_mask_of(model).int().tolist()
        model.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    finally:
        config.head_mask = before
    return folder


def load_pruned(folder: str | os.PathLike[str], **from_pretrained_kwargs: Any) -> Any:
    """Load a model that ``save_pruned`` saved, in eval mode.

    from_pretrained_kwargs: ``dtype``, ``attn_implementation`` and whatever else ``AutoConfig.from_pretrained`` takes.
    Raises ``FileNotFoundError`` where a file is missing, ``ValueError`` where the folder was not saved by
    ``save_pruned`` or its weights contradict its head mask.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: give a folder that gnorm.save_pruned wrote.")
    dtype = from_pretrained_kwargs.pop("dtype", None)
    attention = from_pretrained_kwargs.pop("attn_implementation", None)
    config = AutoConfig.from_pretrained(folder, **from_pretrained_kwargs)
    mask = getattr(config, "head_mask", None)
    if mask is None:
        raise ValueError(f"{folder / 'config.json'} has no head_mask: load it with from_pretrained, or save it anew.")
    config.head_mask = None  # the model is built whole, then cut to the mask
    options = {} if attention is None else {"attn_implementation": attention}
    model = getattr(transformers, config.architectures[0])._from_config(config, **options)
    remove_heads(model, mask)
    try:
        missing, unexpected = load_model(model, folder / "model.safetensors", strict=False)
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} contradict the head mask in its config.json ({error}).") from None
    if missing or unexpected:
        named = ", ".join(sorted([*missing, *unexpected])[:3])
        raise ValueError(f"the weights in {folder} are not those of its config.json: {named} missing or not expected.")
    return model.to(dtype or config.dtype or torch.float32).eval()


def num_parameters(model: nn.Module) -> int:
    """Parameters of the model, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def memory_mb(model: nn.Module) -> float:
    """Memory of the model's parameters in MB of 2**20 bytes, the unit of the paper's table."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
