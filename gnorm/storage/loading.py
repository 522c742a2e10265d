"""The one loader of classifiers, intact and pruned: every weight comes from the file."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

from ..engine.model.blocks import blocks_of
from ..engine.model.projections import cut
from ..engine.model.removal import shrink
from ..engine.trials.trial import untried
from ..heads import attention_blocks, head_mask_of
from ..surgery import remove_heads
from .errors import LIBRARY_ERRORS, in_short
from .modeling import PRUNED_WHEN_BUILT, others_in, without_modeling_file

log = logging.getLogger(__name__)

Source = str | os.PathLike[str]

# Options of from_pretrained that say where a file is. The configuration and the weights take the same ones.
LOCATION_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token", "subfolder")

# By the prefix that a wrapper puts before the names of weights: the wrapper, and what to save instead.
WRAPPERS = {
    "base_model.model.": ("PEFT", "what its merge_and_unload() returns"),
    "module.": ("DataParallel", "model.module"),
    "_orig_mod.": ("torch.compile", "the model that was compiled"),
}

# Names of tensors that older files hold beside weights. A model computes them from its configuration.
CONSTANTS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|masked_bias|(attn|attention)\.bias|(original_)?inv_freq|(cos|sin)_cached"
    r"|embed_positions\.weights|relative_position_index|version)$"
)

POOLER = "pooler."  # the part of a body that some of the classes on it leave out

FOR_TRAINING = ("mask_token", "masked_spec_embed")  # what a model puts in the place of masked inputs as it is trained

# Files that hold a tokenizer. A folder without any of them has no tokenizer.
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


def load_pruned(folder: Source, model_class: Any = None, **from_pretrained_kwargs: Any) -> Any:
    """Load a model whose heads were removed, in eval mode: a folder that ``save_pruned`` wrote, or a name on the hub.

    A folder that ``save_pretrained`` or ``Trainer`` wrote from a pruned model is read too, in one file or many, and so
    is a model that transformers 4 pruned: the ``pruned_heads`` of its config.json become the head mask.
    model_class: the class to load, where it is not one of transformers or is not the one that config.json names. One
    that puts another head on the same body begins with new weights there; the log names them.
    from_pretrained_kwargs: ``dtype``, ``attn_implementation``, ``device_map``, ``subfolder``, ``variant``, ``revision``
    and whatever else ``from_pretrained`` of the class takes; ``output_loading_info=True`` returns a pair as it does.

    Raises ``FileNotFoundError`` where a file is missing, ``ValueError`` where the folder holds no pruned model, its
    weights contradict its head mask, some in its body would not be used, or a file is damaged; ``TypeError`` for an
    option that the class does not take.
    """
    config = read_config(folder, **from_pretrained_kwargs)
    if not is_pruned(config):
        file = _folder_of(folder, from_pretrained_kwargs) / "config.json"
        raise ValueError(f"{file} has no head_mask: load it with from_pretrained, or save it anew.")
    kind = find_class(folder, config, model_class, from_pretrained_kwargs)
    model, loading_info = load_checked(folder, kind, model_class is not None, **from_pretrained_kwargs)
    return (model, loading_info) if from_pretrained_kwargs.get("output_loading_info") else model


def is_pruned(config: Any) -> bool:
    """True if heads were removed, by ``remove_heads`` or by transformers 4, or neurons."""
    return any(getattr(config, name, None) for name in ("head_mask", "pruned_heads", "feed_forward_sizes"))


def read_config(source: Source, **options: Any) -> Any:
    """The configuration of a checkpoint. source: a folder, or a name on the hub. options: those of ``from_pretrained``.

    Raises ``FileNotFoundError`` where there is none, ``ValueError`` where it is damaged or of an unknown model type,
    and for a folder that holds an adapter instead of a model.
    """
    given = options.get("config")
    if isinstance(given, transformers.PreTrainedConfig):
        return given
    source = _name(source if given is None else given)
    folder = _folder_of(source, options)
    if folder.is_file() and given is None:
        raise ValueError(f"{folder} is a file: give the folder that it lies in.")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder} holds a PEFT adapter: load it with peft, and save what its merge_and_unload() returns."
        )
    local = Path(source).exists()
    if Path(source).is_dir() and not (folder / "config.json").is_file():
        remedy = "give a folder that gnorm.save_pruned wrote, or save_pretrained"
        if subfolders := sorted(path.parent.name for path in folder.glob("*/config.json")):
            remedy = f"{subfolders[-1]} in it has one"
        raise FileNotFoundError(f"{folder} has no config.json: {remedy}.")
    try:
        return transformers.AutoConfig.from_pretrained(
            source, **{name: options[name] for name in LOCATION_OPTIONS if name in options}
        )
    except LIBRARY_ERRORS as error:
        if isinstance(error, OSError) and not local:
            raise FileNotFoundError(
                f"{folder} has no config.json, and the hub gives no model of that name: give the folder that "
                "save_pretrained or gnorm.save_pruned wrote, or a name on the hub."
            ) from None
        id2label: Any = {}
        with suppress(Exception):  # the file cannot be read at all
            id2label = transformers.PreTrainedConfig.get_config_dict(source)[0].get("id2label") or {}
        if not all(str(key).strip().isdecimal() for key in id2label):
            raise ValueError(
                f"id2label in {folder / 'config.json'} must give names to numbers, as in "
                '{"0": "negative", "1": "positive"}.'
            ) from None
        raise ValueError(
            f"{folder / 'config.json'} is damaged, or of a model type that transformers {transformers.__version__} "
            f"does not know ({in_short(error)}): save the model anew."
        ) from None


def _name(source: Source) -> str:
    """The path of a folder, or a name on the hub, as the string that transformers takes."""
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"{source!r} is not a folder: give its path, or a name on the hub.")
    return os.path.expanduser(os.fspath(source))


def _folder_of(source: Source, options: Mapping[str, Any]) -> Path:
    """The folder of the files, its subfolder included; messages name it too."""
    return Path(_name(source), options.get("subfolder") or "")


def find_class(source: Source, config: Any, given: Any, options: Mapping[str, Any]) -> Any:
    """The class to build: ``given``, or the one that ``config`` names.

    given: a class of models; an Auto class; or None. An Auto class gives its own class for the type of ``config``, or
    the class that ``config`` names if that is a subclass. A class that ``config`` names is one of transformers, or one
    that this process has defined. options: those of ``from_pretrained``.

    Raises ``ValueError`` where no such class is known, or several, and ``TypeError`` where ``given`` is not a class of
    models.
    """
    mapping = getattr(given, "_model_mapping", None)
    if given is not None and mapping is None:
        if isinstance(given, type) and issubclass(given, transformers.PreTrainedModel):
            return without_modeling_file(given)
        raise TypeError(
            f"model_class={given!r} is not a class of models: give the class that the model was saved from."
        )
    if mapping is not None and type(config) not in mapping:
        raise ValueError(f"{given.__name__} has no class for model_type {config.model_type!r}: give another class.")
    name = str((config.architectures or ["none"])[0])
    named = _class_named(source, name)
    if mapping is not None and (named is not None or not is_pruned(config)):
        return named if named is not None and issubclass(named, mapping[type(config)]) else mapping[type(config)]
    if named is None:
        but, kind = (f" but {name!r}", name) if config.architectures else ("", "MyClass")
        raise ValueError(
            f"{_folder_of(source, options) / 'config.json'} names no architecture of transformers{but}: pass the class "
            f"of the model, as in gnorm.load_pruned(folder, model_class={kind})."
        )
    return named


def _class_named(source: Source, name: str) -> Any:
    """The class of models called ``name``: of transformers, or defined in this process; None if there is none.

    Code that lies in the folder or the repository is never run.
    """
    known = getattr(transformers, name, None)
    if isinstance(known, type) and issubclass(known, transformers.PreTrainedModel):
        return known
    named = {
        f"{kind.__module__}.{kind.__qualname__}": kind
        for kind in _subclasses(transformers.PreTrainedModel)
        if kind.__name__ == name and PRUNED_WHEN_BUILT not in vars(kind)
    }
    if len(named) > 1:
        several = " and ".join(sorted(named))
        raise ValueError(f"{name}, which {source} was saved from, may be {several}: pass the right one as model_class.")
    return next(iter(named.values()), None)


def _subclasses(kind: Any) -> Iterator[Any]:
    """The subclasses of ``kind`` at any depth, earlier ones first."""
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)


def pruned_when_built(kind: Any, remove: Callable[[Any, Any], None] = remove_heads) -> Any:
    """A subclass of ``kind`` whose models are built whole and lose the heads and neurons that their config.json lacks.

    The weights of a pruned model fit such a model. remove: (model, mask), what takes the heads out. Building changes
    the configuration: the ``pruned_heads`` of transformers 4 become a ``head_mask``, and neither ``auto_map`` nor
    ``needs_transformers`` tells of the modelling file of the folder any more.
    """

    def build(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        removed = (vars(config).pop(name, None) for name in ("head_mask", "pruned_heads", "feed_forward_sizes"))
        mask, pruned, sizes = removed
        others = others_in(config)  # save_pretrained writes the configuration, and no modelling file
        for name in ("auto_map", "needs_transformers"):
            vars(config).pop(name, None)
        vars(config).update({"auto_map": others} if others else {})
        kind.__init__(self, config, *arguments, **options)
        if mask is not None or pruned or sizes:
            with torch.device("cpu"), untried():  # of masks; the weights are yet to come
                saved = (getattr(config, "architectures", None) or [kind.__name__])[0]
                if mask is not None and saved != kind.__name__ and len(mask) > len(head_mask_of(self)):
                    raise ValueError(
                        f"its head mask is that of a {saved}, which has more layers with attention: load that, and "
                        "take its get_encoder() or get_decoder()"
                    )
                if mask is not None:
                    remove(self, mask)
                if pruned:
                    remove(self, _all_but(pruned, head_mask_of(self)))
                if sizes:
                    shrink(self, sizes)

    return type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__, PRUNED_WHEN_BUILT: True})


def _remove_as_version_1(model: Any, mask: Any) -> None:
    """Remove heads as version 1.0 and transformers 4 did: a layer without heads keeps projections without rows."""
    mask = torch.as_tensor(mask).bool() & head_mask_of(model)
    empty = ~mask.any(1)  # (layer,)
    remove_heads(model, mask | empty[:, None])
    for block, without_heads in zip(attention_blocks(model), empty, strict=True):
        for module, parts in block.by_module().items() if without_heads else ():
            cut(module, torch.arange(0), parts[0].of_input)
    model.config.head_mask = mask.int().tolist()


def _cut_as_version_1(model: Any, loading_info: Mapping[str, Any]) -> bool:
    """True if the file has projections without rows for layers without heads, which version 1.0 left there."""
    empty = {id(block.owner) for block in blocks_of(model) if not block.kept}
    within = [f".{name}." for name, module in model.named_modules() if id(module) in empty]
    return any(part in f".{name}" for name in loading_info["unexpected_keys"] for part in within)


def _all_but(pruned: Any, mask: Tensor) -> Tensor:
    """``mask`` (layer, head) without the heads ``pruned``: a list of heads by layer, as transformers 4 writes them."""
    layers, heads = range(mask.shape[0]), range(mask.shape[1])
    try:
        for layer, removed in pruned.items():
            mask[layers.index(int(layer)), [heads.index(head) for head in removed]] = 0
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            f"pruned_heads={pruned} in config.json does not list heads by layer, of {len(layers)} layers with "
            f"{len(heads)} heads"
        ) from None
    return mask


class MisfitError(ValueError):
    """The weights are not those of their config.json. report: the loading info of ``from_pretrained``, a mapping."""

    def __init__(self, message: str, report: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.report = report


@torch.inference_mode(False)
def load_checked(source: Source, kind: Any, new_head: bool = False, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model of the class ``kind``, or of an Auto class, in eval mode, and the loading info of ``from_pretrained``.

    source: a folder or a name on the hub, of an intact or of a pruned model. options: those of ``from_pretrained``.
    Every weight of the model comes from the file: none is missing, of another shape or under another name. new_head: a
    class that is not the one that was saved may have new weights above the body, and a new pooler. The file may hold
    another head, a pooler, or constants that the model computes; they are left out, as transformers does. Heads and
    poolers are refused where the class that was saved is not known. All other weights that the model would not use are
    refused, such as those of relative positions or of further layers. The log names what is new and what is left out.

    Raises ``MisfitError``, a ``ValueError``, for weights that do not fit the model; ``FileNotFoundError``,
    ``ValueError`` and ``TypeError`` as ``load_pruned`` does.
    """
    config = read_config(source, **options)
    kind = find_class(source, config, kind, options)
    options_too = {"ignore_mismatched_sizes": True, **options, "output_loading_info": True}
    try:
        with quiet_library():  # errors get their own messages below
            model, loading_info = pruned_when_built(kind).from_pretrained(_name(source), **options_too)
            if as_version_1 := _cut_as_version_1(model, loading_info):
                built = pruned_when_built(kind, _remove_as_version_1)
                model, loading_info = built.from_pretrained(_name(source), **options_too)
                lost = {name for name in loading_info["missing_keys"] if not model.get_parameter(name).numel()}
                loading_info["missing_keys"] -= lost  # of no elements; accelerate's save_model leaves them out
    except LIBRARY_ERRORS as error:
        raise _unreadable(error, _folder_of(source, options), kind) from None
    model.__class__ = kind
    folder, saved = _folder_of(source, options), (config.architectures or [kind.__name__])[0]
    another = new_head and saved != kind.__name__
    new = _new(model, loading_info) if another else []
    if options.get("ignore_mismatched_sizes"):
        new = sorted({*new, *(name for name, *_ in loading_info["mismatched_keys"])})
    known = saved == kind.__name__ or _class_named(source, saved) is not None
    left_out = _left_out(model, loading_info, another) if known else []
    if message := _misfit(model, loading_info, {*new, *left_out}, folder):
        raise MisfitError(message, loading_info)
    if new:
        log.warning("%s has no weights for %s: they are new, so train them.", folder, _some(new))
    if left_out:
        log.warning("%s has weights that %s does not use: %s.", folder, kind.__name__, _some(left_out))
    if as_version_1:
        remove_heads(model, head_mask_of(model))
    if is_pruned(model.config):
        attention_blocks(model)  # tries a model that the package's tests say nothing of
    return model, loading_info


def _unreadable(error: Exception, folder: Path, kind: Any) -> Exception:
    """An error of ``from_pretrained`` with a message for users. The advice of torch on unpickling is never repeated."""
    pickled = isinstance(error, PickleError | EOFError) or "PytorchStreamReader" in str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return error
    if isinstance(error, SafetensorError | json.JSONDecodeError | UnicodeDecodeError | KeyError) or pickled:
        why = "it holds more than tensors, or is not whole" if pickled else in_short(error)
        return ValueError(f"the weights in {folder} are damaged ({why}): save the model anew, as safetensors.")
    if isinstance(error, OSError):
        return FileNotFoundError(
            f"{folder} has no model.safetensors that can be read, nor other weights ({in_short(error)}): save the "
            "model anew, or name its variant, subfolder or revision."
        )
    message = f"{folder} cannot be loaded as {kind.__name__}: {in_short(error)}."
    return TypeError(message) if isinstance(error, TypeError) else ValueError(message)


def _body(model: Any) -> tuple[str, dict[str, Any]]:
    """The prefix of the names of weights in the body of ``model``, and the parts of the body by name."""
    body, parts = model.base_model, dict(model.base_model.named_children())
    if body is model and not isinstance(model, transformers.AutoModel._model_mapping.get(type(model.config), ())):
        parts = {name: part for name, part in parts.items() if not isinstance(part, torch.nn.Linear)}  # T5's heads
    return f"{model.base_model_prefix}.", parts


def _new(model: Any, loading_info: Mapping[str, Any]) -> list[str]:
    """The names of weights above the body of ``model``, or of a pooler, that are missing or of another shape."""
    base, parts = _body(model)
    lacking = {*loading_info["missing_keys"], *(name for name, *_ in loading_info["mismatched_keys"])}
    within = [n for n in lacking if (n.partition(".")[0] in parts if model.base_model is model else n.startswith(base))]
    kept = [n for n in within if not n.removeprefix(base).startswith(POOLER) and not n.endswith(FOR_TRAINING)]
    return sorted(lacking - {*kept})


def _left_out(model: Any, loading_info: Mapping[str, Any], another: bool) -> list[str]:
    """The names of unexpected weights of another head, of a pooler that ``model`` does not have, or for training alone.

    another: the class of the model is not the one that was saved. Otherwise a weight beside others of the same module
    is not of another head.
    """
    (base, parts), modules = _body(model), dict(model.named_modules())
    found = []
    for name in loading_info["unexpected_keys"]:
        inside = name.removeprefix(base)
        if name.startswith(base) or inside.partition(".")[0] in parts:
            other = inside.endswith(FOR_TRAINING) or (inside.startswith(POOLER) and parts.get("pooler") is None)
        else:
            above = [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]
            nearest = next((modules[path] for path in above if path in modules), None)
            other = another or nearest is None or next(nearest.parameters(recurse=False), None) is None
        found += [name] * other
    return sorted(found)


def _some(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _misfit(model: Any, loading_info: Mapping[str, Any], allowed: set[str], folder: Path) -> str:
    """A message on weights that are missing, of another shape, under other names or not used; or "".

    allowed: the names of weights that may be missing, of another shape or not used.
    """
    missing, unexpected = sorted(loading_info["missing_keys"]), sorted(loading_info["unexpected_keys"])
    base = f"{model.base_model_prefix}."
    if prefix := _prefix(unexpected, {*missing, *(name.removeprefix(base) for name in missing)}):
        wrapper, inside = next(
            (WRAPPERS[name] for name in WRAPPERS if prefix.startswith(name)), ("a wrapper", "the model in it")
        )
        return (
            f"the names of the weights in {folder} have {prefix!r} too much, which {wrapper} puts there: save {inside} "
            f"instead, or take {prefix!r} out of the names in the file."
        )
    if mismatched := [each for each in loading_info["mismatched_keys"] if each[0] not in allowed]:
        attention = {id(module) for block in attention_blocks(model) for module in block.owner.modules()}
        in_attention = any(id(model.get_submodule(name.rpartition(".")[0])) in attention for name, *_ in mismatched)
        name, stored, expected = min(mismatched)
        what, short = "its configuration", "the configuration"
        if in_attention and is_pruned(model.config):
            what, short = "the head mask in its config.json", "the mask"
        return f"the weights in {folder} contradict {what}: {name} is {tuple(stored)}, {short} needs {tuple(expected)}."
    missing, unused = ([name for name in names if name not in allowed] for names in (missing, unexpected))
    if head := [name for name in missing if model.base_model is not model and not name.startswith(base)]:
        return (
            f"{folder} has no weights for {head[0]}: fine-tune it as a classifier first, or name the class that was "
            "saved."
        )
    buffers = {name for name, _ in model.named_buffers()}
    unused = [n for n in unused if not CONSTANTS.search(n) and not {n, n.removeprefix(base), base + n} & buffers]
    if names := (missing + unused)[:3]:
        remedy = f", as {type(model).__name__} of transformers {transformers.__version__} has no place for them: "
        remedy += "correct config.json, or take them out of the file if the model is right without them"
        return (
            f"the weights in {folder} are not those of its config.json: {', '.join(names)} do not match"
            f"{'' if missing else remedy}."
        )
    return ""


def _prefix(unexpected: Sequence[str], missing: Collection[str]) -> str:
    """The text that a wrapper added to the names of most weights, before or within them; "" where there is none."""
    added: Counter[str] = Counter()
    for name in unexpected:
        modules = name.split(".")
        ends = (i for i in range(1, len(modules)) if ".".join(modules[i:]) in missing)
        within = re.search(r"_[a-z_]+\.", name)  # _orig_mod, _fsdp_wrapped_module
        if end := next(ends, 0):
            added[".".join(modules[:end]) + "."] += 1
        elif within and name.replace(within[0], "") in missing:
            added[within[0]] += 1
    return next((prefix for prefix, count in added.most_common(1) if 2 * count >= len(unexpected)), "")


@contextmanager
def quiet_library() -> Iterator[None]:
    """Within the block, transformers reports only errors, and neither it nor datasets shows progress bars."""
    level = transformers.logging.get_verbosity()
    libraries = [transformers.logging]
    if "datasets" in sys.modules:  # shipping does not import it
        libraries.append(sys.modules["datasets"].utils.logging)
    bars = [library for library in libraries if library.is_progress_bar_enabled()]
    transformers.logging.set_verbosity_error()
    for library in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        for library in bars:
            library.enable_progress_bar()
