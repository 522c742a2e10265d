"""Removing heads for good; saving and loading models with heads removed."""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig

from .heads import AttentionBlock, attention_blocks, checked_mask, head_mask_of, refuse_removal
from .state import in_use, with_own_config

# What modules of transformers call the number of their heads, and the rows that these make up.
HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
HEAD_ROWS = ("all_head_size",)


@torch.inference_mode(False)  # the new parameters can be trained, whatever mode is on outside
def remove_heads(model: nn.Module, mask: Tensor | Sequence[Sequence[int]]) -> None:
    """Remove heads from ``model``, in place, with their weights and biases.

    mask: (layer, head), 1 keeps and 0 removes; indices are those of the intact model, and a head that is gone stays
    gone whatever the mask says. Unequal and empty layers are fine. The attributes of the attention modules that count
    heads follow; a layer with no head left computes no query, key, value or attention (where its family's row says that
    this can be skipped), and hands an empty context to an output projection without columns, whose bias remains. What is left is written to ``model.config.head_mask``,
    where ``head_mask_of`` and ``save_pretrained`` find it; a configuration that other models share is copied before. A
    compiled model has to be compiled anew.

    Raises ``ValueError`` for a mask of the wrong shape or with values other than 0 and 1, for a model under
    ``gnorm.masked``, and as ``attention_blocks`` does.
    """
    with in_use(model):
        blocks = attention_blocks(model)
        refuse_removal(blocks)
        left = checked_mask(mask, blocks) & head_mask_of(model)
        for block, row in zip(blocks, left, strict=True):
            keep = row[list(block.kept)].repeat_interleave(block.head_dim).nonzero()[:, 0]  # (kept * head_dim,)
            if len(keep) < block.query.out_features:
                for linear in (block.query, block.key, block.value, *block.also):
                    _slice(linear, keep, dim=0)
                _slice(block.output, keep, dim=1)
                _adapt(block, row)
        if not left.all():
            with_own_config(model).head_mask = left.int().tolist()


def _adapt(block: AttentionBlock, row: Tensor) -> None:
    """Make the module of a block agree with the heads, ``row`` (head,), that its projections were cut to."""
    module: Any = block.module
    heads = row.nonzero()[:, 0].tolist()
    for names, value in ((HEAD_COUNTS, len(heads)), (HEAD_ROWS, len(heads) * block.head_dim)):
        for name in names:
            if hasattr(module, name):
                setattr(module, name, value)
    if block.per_head:
        place = list(inspect.signature(type(module).forward).parameters).index(block.per_head) - 1  # self is not passed
        if not hasattr(module, "kept_heads"):
            module.register_forward_pre_hook(partial(_select_heads, block.per_head, place), with_kwargs=True)
        module.kept_heads = heads
    if block.skippable and not heads:
        inside = any(block.output is other for other in module.modules())
        module.forward = partial(_without_heads, block.output if inside else None, block.norm)


def _select_heads(name: str, place: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Cut the argument ``name`` of an attention module, (text, head, ...), to the heads that are left."""
    if kwargs.get(name) is not None:
        kwargs = {**kwargs, name: kwargs[name][:, module.kept_heads]}
    elif len(args) > place and args[place] is not None:
        args = (*args[:place], args[place][:, module.kept_heads], *args[place + 1 :])
    return args, kwargs


def _without_heads(
    output: nn.Module | None, norm: nn.Module | None, hidden_states: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, Tensor]:
    """The forward of an attention module with no head left: what it would compute from an empty context.

    output, norm: what the module applies itself, after attention; without dropout, as there is nothing to drop.
    """
    texts, tokens, _width = hidden_states.shape
    context = hidden_states.new_empty(texts, tokens, 0)
    if output is not None:
        context = output(context)
    if norm is not None:
        context = norm(hidden_states + context)
    return context, hidden_states.new_empty(texts, 0, tokens, tokens)


def _slice(linear: nn.Linear, keep: Tensor, dim: int) -> None:
    """Keep the rows (dim 0) or columns (dim 1) ``keep`` of a linear layer."""
    keep = keep.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight.detach().index_select(dim, keep), linear.weight.requires_grad)
    if dim == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach().index_select(0, keep), linear.bias.requires_grad)
    linear.out_features, linear.in_features = linear.weight.shape


def save_pruned(model: Any, folder: str | os.PathLike[str], tokenizer: Any = None, card: str = "") -> Path:
    """Save a model whose heads were removed as a folder that ``load_pruned`` reads; returns the folder.

    It holds model.safetensors and config.json, whose ``head_mask`` (layer, head) says which heads are left.
    tokenizer: saved beside the model; an image processor will do as well. card: the text of the folder's README.md,
    such as ``gnorm.shipping.card`` writes it. The folder is written under a temporary name and renamed.

    Raises ``FileExistsError`` where it exists already, and as ``attention_blocks`` does.
    """
    folder, mask = refuse_existing(folder), head_mask_of(model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    config: Any = model.config
    before = getattr(config, "head_mask", None)
    try:
        config.head_mask = mask.int().tolist()
        for part in (model, tokenizer):
            if part is not None:
                part.save_pretrained(unfinished)
        if card:
            (unfinished / "README.md").write_text(card, "utf-8")
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    finally:
        config.head_mask = before
    return folder


def refuse_existing(path: str | os.PathLike[str]) -> Path:
    """Where a folder or a file is to be written; ``FileExistsError`` where it exists already."""
    if (path := Path(path)).exists():
        raise FileExistsError(f"{path} exists already: delete it, or give another name.")
    return path


def load_pruned(folder: str | os.PathLike[str], **from_pretrained_kwargs: Any) -> Any:
    """Load a model that ``save_pruned`` saved, in eval mode.

    from_pretrained_kwargs: ``dtype``, ``attn_implementation``, ``device_map`` and whatever else ``from_pretrained`` of
    the model's class takes. A folder that ``save_pretrained`` or ``Trainer`` wrote from a pruned model is read too.

    Raises ``FileNotFoundError`` where a file is missing, ``ValueError`` where the folder holds no pruned model, its
    weights contradict its head mask, or a file is damaged.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: give a folder that gnorm.save_pruned wrote.")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder / 'config.json'} is damaged ({error}): save the model anew.") from None
    mask = getattr(config, "head_mask", None)
    if mask is None:
        raise ValueError(f"{folder / 'config.json'} has no head_mask: load it with from_pretrained, or save it anew.")
    kind: Any = getattr(transformers, str((config.architectures or ["none"])[0]), None)
    known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not known:
        raise ValueError(f"{folder / 'config.json'} names no architecture of transformers: save the model anew.")
    config.head_mask = None  # the model is built whole, then cut to the mask, then its weights are read

    def build(self: Any, *arguments: Any, **options: Any) -> None:
        kind.__init__(self, *arguments, **options)
        with torch.device("cpu"):  # where masks live; the weights may have no storage yet
            remove_heads(self, mask)

    pruned: Any = type(kind.__name__, (kind,), {"__init__": build})
    level = transformers.logging.get_verbosity()
    try:
        transformers.logging.set_verbosity_error()  # what is wrong is said below
        model, found = pruned.from_pretrained(
            folder, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **from_pretrained_kwargs
        )
    except SafetensorError as error:
        raise ValueError(f"{folder / 'model.safetensors'} is damaged ({error}): save the model anew.") from None
    finally:
        transformers.logging.set_verbosity(level)
    model.__class__ = kind
    if found["mismatched_keys"]:
        name, stored, wanted = min(found["mismatched_keys"])
        raise ValueError(
            f"the weights in {folder} contradict the head mask in its config.json: {name} is {tuple(stored)}, the mask "
            f"needs {tuple(wanted)}."
        )
    if names := sorted([*found["missing_keys"], *found["unexpected_keys"]])[:3]:
        raise ValueError(f"the weights in {folder} are not those of its config.json: {', '.join(names)} do not match.")
    return model


def num_parameters(model: nn.Module) -> int:
    """Parameters of the model, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def memory_mb(model: nn.Module) -> float:
    """Memory of the model's parameters in MB of 2**20 bytes, the unit of the paper's table."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
