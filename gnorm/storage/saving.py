"""Saving pruned models: a folder appears whole or not at all, and only if it can be loaded again."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn

from ..engine.model.families import FAMILIES
from ..engine.model.removal import as_removed
from ..engine.trials.trial import try_out
from ..heads import attention_blocks, head_mask_of
from .errors import LIBRARY_ERRORS, in_short
from .files import free_folder, whole
from .loading import pruned_when_built
from .modeling import MODULE, auto_map, auto_map_of_body, modeling_file, others_in, plain_class


def save_pruned(
    model: Any, folder: str | os.PathLike[str], tokenizer: Any = None, card: str = "", overwrite: bool = False
) -> Path:
    """Save a model whose heads were removed as a folder that ``load_pruned`` reads; returns the folder.

    The folder holds model.safetensors and config.json. The ``head_mask`` (layer, head) in config.json says which heads
    are kept; its ``architectures`` names the model's class. Where that is a class of transformers, modeling_pruned.py
    lets transformers load the folder without gnorm: ``from_pretrained`` of the Auto class, and ``pipeline``, with leave
    to run code of the folder. ``AutoModel``, feature extraction and sentence-transformers read the model's body in it.
    ``huggingface_hub.upload_folder`` brings it to a hub.
    tokenizer: saved beside the model; an image processor works as well. card: the text of the folder's README.md, such
    as ``gnorm.shipping.card`` writes it. overwrite: replace a folder that holds files; an empty folder needs no
    ``overwrite``. The folder appears whole or not at all.

    Raises ``FileExistsError`` where the folder holds files, and as ``check_saving`` and ``attention_blocks`` do.
    """
    folder = free_folder(folder, overwrite)
    check_saving(model, tokenizer)
    model = as_removed(model)
    with whole(folder, overwrite) as unfinished, _as_saved(model) as modeling:
        try:
            model.save_pretrained(unfinished)
        except SafetensorError as error:
            raise OSError(
                f"{folder} could not be written ({in_short(error)}): make room, or give another one."
            ) from None
        if modeling:
            (unfinished / f"{MODULE}.py").write_text(modeling, "utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        if card:
            (unfinished / "README.md").write_text(card, "utf-8")
    return folder


@contextmanager
def _as_saved(model: Any) -> Iterator[str]:
    """Within the block the model is as it is saved; yields the text of its modelling file, "" for none.

    ``model.config`` has the head mask, even if no head was removed, and names the modelling file and the version of
    transformers that the file needs. A model that such a
    file built has the class of transformers, so that ``save_pretrained`` does not copy the file.
    """
    built, kind, config = getattr(model, "_orig_mod", model), plain_class(model), model.config
    attributes, before, built_by = vars(config), dict(vars(config)), type(built)
    mask = head_mask_of(model).int().tolist()
    ours = auto_map_of_body(kind, config, len(mask)) | auto_map(kind, config)
    needed = f">={FAMILIES[config.model_type].since}" if ours else ""
    saved = {"head_mask": mask, "auto_map": others_in(config) | ours, "needs_transformers": needed}
    attributes.update({name: value for name, value in saved.items() if value})
    built.__class__ = kind
    try:
        kinds = dict.fromkeys(place.rpartition(".")[2] for place in ours.values())
        yield modeling_file(kinds, built) if ours else ""
    finally:
        built.__class__ = built_by
        for name in saved:
            attributes.pop(name, None)
            attributes.update({name: before[name]} if name in before else {})


def check_saving(model: Any, tokenizer: Any = None) -> None:
    """Refuse a model that could not be saved, or not be loaded again. Changes nothing, and copies no weights but those
    of a model that a folder of version 1.0 built.

    Raises ``ValueError`` where the configuration cannot be written as JSON and read again, where the model's class does
    not build a model with the same modules, parameters and buffers from it, where parameters have several precisions
    that loading would not give them, and where transformers has another class of the same name; ``TypeError`` for a
    tokenizer that is none; and as ``attention_blocks`` does.
    """
    attention_blocks(model)
    try_out(model, removal=True)
    model = as_removed(getattr(model, "_orig_mod", model))  # of a compiled model
    kind = plain_class(model)
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise TypeError(f"a {type(tokenizer).__name__} has no save_pretrained: give a tokenizer of transformers.")
    if getattr(transformers, kind.__name__, kind) is not kind:
        raise ValueError(f"transformers has another {kind.__name__}, which would be loaded instead: rename the class.")
    apart = model._get_dtype_plan(model.dtype)  # the precision that loading gives to some parts, such as T5's wo
    named = ((name, p.dtype) for name, p in model.named_parameters() if p.is_floating_point())
    dtypes = sorted(
        {str(dtype) for name, dtype in named if dtype not in [apart[part] for part in apart if part in name]}
    )
    if len(dtypes) > 1:
        raise ValueError(f"the parameters are in {' and '.join(dtypes)}, one is recorded: use model.to({dtypes[-1]}).")
    _check_building(model, _config_as_saved(model, tokenizer))


def _config_as_saved(model: Any, tokenizer: Any) -> Any:
    """The configuration as it reads after saving; ``ValueError`` where it or the tokenizer cannot be saved."""
    config = model.config
    with tempfile.TemporaryDirectory() as scratch:
        try:
            copy.copy(config).save_pretrained(scratch)
            as_saved = type(config).from_pretrained(scratch)
        except LIBRARY_ERRORS as error:
            raise ValueError(
                f"the configuration cannot be saved ({_option_not_json(config) or in_short(error)}): "
                "correct that in model.config, or delete it there."
            ) from None
        generation = getattr(model, "generation_config", None)
        for name, saveable in (("generation_config", generation), ("tokenizer", tokenizer)):
            try:
                if saveable is not None:
                    saveable.save_pretrained(scratch)
            except LIBRARY_ERRORS as error:
                raise ValueError(f"the {name} cannot be saved ({in_short(error)}): correct it first.") from None
    return as_saved


def _option_not_json(config: Any) -> str:
    """The option of a configuration that JSON cannot hold, in words; "" where each option by itself can be written."""
    for name, value in vars(config).items():
        try:
            alone = transformers.PreTrainedConfig()
            vars(alone)[name] = value
            alone.to_json_string()
        except LIBRARY_ERRORS as error:
            return f"its {name} is {type(value).__name__}: {in_short(error)}"
    return ""


def _check_building(model: Any, config: Any) -> None:
    """``ValueError`` where the model's class does not build the same modules and tensors from ``config``."""
    kind = plain_class(model)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            built = pruned_when_built(kind)(config)
    except LIBRARY_ERRORS as error:
        raise ValueError(
            f"{kind.__name__} cannot be built from model.config alone, as loading does ({in_short(error)}): "
            "correct model.config, or give the arguments of its __init__ defaults."
        ) from None
    present, expected = _structure(model), _structure(built)
    if differing := [name for name in {**expected, **present} if present.get(name) != expected.get(name)]:
        name = differing[0]
        raise ValueError(
            f"{name} is {present.get(name, 'missing')}, but {kind.__name__} builds {expected.get(name, 'nothing')} "
            "from model.config, so the model could not be loaded: correct model.config, or build it so in the __init__ "
            "of a class of your own."
        )


def _structure(model: nn.Module) -> dict[str, str]:
    """The modules, parameters and buffers of a model by name: kind and sizes, shapes, which tensors are shared."""
    structure = {
        name: f"{type(module).__name__}({module.extra_repr()})"
        for name, module in model.named_modules()
        if not isinstance(module, nn.Dropout | nn.Identity)  # the same module once training is over
    }
    first: dict[tuple[Any, ...], str] = {}  # the first name of each tensor, by its storage
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        shape = tuple(tensor.shape)
        shared = first.setdefault((tensor.untyped_storage()._cdata, tensor.storage_offset(), shape), name)
        structure[name] = f"a tensor of shape {shape}" if shared == name else f"the same as {shared}"
    return structure
