"""Saving pruned models, and the one loader of classifiers: every weight comes from the file."""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..heads import attention_blocks, head_mask_of
from ..surgery import remove_heads
from .folders import free_folder, whole_folder

# What transformers, torch and json raise where a checkpoint or a configuration cannot be read or written.
RAISED = (ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError, PickleError,
          RuntimeError, SafetensorError, StrictDataclassError, TypeError, ValueError)  # fmt: skip


def save_pruned(
    model: Any, folder: str | os.PathLike[str], tokenizer: Any = None, card: str = "", overwrite: bool = False
) -> Path:
    """Save a model whose heads were removed as a folder that ``load_pruned`` reads; returns the folder.

    It holds model.safetensors and config.json, whose ``head_mask`` (layer, head) says which heads are left and whose
    ``architectures`` names the model's class. tokenizer: saved beside the model; an image processor will do as well.
    card: the text of the folder's README.md, such as ``gnorm.shipping.card`` writes it. overwrite: replace a folder
    that holds files; one that is empty is taken as it is. The folder appears whole or not at all.

    Raises ``FileExistsError`` where the folder holds files, and as ``check_saving`` and ``attention_blocks`` do.
    """
    folder = free_folder(folder, overwrite)
    check_saving(model, tokenizer)
    with whole_folder(folder, overwrite) as unfinished, _mask_in_config(model):
        try:
            model.save_pretrained(unfinished)
        except SafetensorError as error:
            raise OSError(
                f"{folder} could not be written ({_reason(error)}): make room, or give another one."
            ) from None
        if tokenizer is not None:
            tokenizer.save_pretrained(unfinished)
        if card:
            (unfinished / "README.md").write_text(card, "utf-8")
    return folder


@contextmanager
def _mask_in_config(model: Any) -> Iterator[None]:
    """The head mask in ``model.config`` for the length of a block, of an intact model too."""
    attributes = vars(model.config)
    before = dict(attributes)
    attributes["head_mask"] = head_mask_of(model).int().tolist()
    try:
        yield
    finally:
        attributes.pop("head_mask")
        attributes.update({"head_mask": before["head_mask"]} if "head_mask" in before else {})


def check_saving(model: Any, tokenizer: Any = None) -> None:
    """Refuse what could not be saved, or could not be loaded once it was saved; changes nothing and takes no weights.

    Raises ``ValueError`` where the configuration cannot be written as JSON and read again, where the model's class does
    not build a model with the same modules, parameters and buffers from it, where parameters have several precisions,
    and where the class has the name of another one of transformers; ``TypeError`` for what is no tokenizer; and as
    ``attention_blocks`` does.
    """
    attention_blocks(model)
    model = getattr(model, "_orig_mod", model)  # of a compiled model
    kind, config = type(model), model.config
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise TypeError(f"a {type(tokenizer).__name__} has no save_pretrained: give a tokenizer of transformers.")
    if getattr(transformers, kind.__name__, kind) is not kind:
        raise ValueError(f"transformers has another {kind.__name__}, which would be loaded instead: rename the class.")
    dtypes = sorted({str(p.dtype) for p in model.parameters() if p.is_floating_point()})
    if len(dtypes) > 1:
        raise ValueError(f"the parameters are in {' and '.join(dtypes)}, one is recorded: use model.to({dtypes[-1]}).")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            copy.copy(config).save_pretrained(scratch)
            read = type(config).from_pretrained(scratch)
        except RAISED as error:
            raise ValueError(
                f"the configuration cannot be saved ({_not_json(config) or _reason(error)}): "
                "correct that in model.config, or delete it there."
            ) from None
        for part, name in ((getattr(model, "generation_config", None), "generation_config"), (tokenizer, "tokenizer")):
            try:
                if part is not None:
                    part.save_pretrained(scratch)
            except RAISED as error:
                raise ValueError(f"the {name} cannot be saved ({_reason(error)}): correct it first.") from None
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            built = _cut_when_built(kind)(read)
    except RAISED as error:
        raise ValueError(
            f"{kind.__name__} cannot be built from model.config alone, as loading does ({_reason(error)}): "
            "correct model.config, or give the arguments of its __init__ defaults."
        ) from None
    found, wanted = _structure(model), _structure(built)
    if differing := [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]:
        name = differing[0]
        raise ValueError(
            f"{name} is {found.get(name, 'missing')}, but {kind.__name__} builds {wanted.get(name, 'nothing')} from "
            "model.config, so the model could not be loaded: correct model.config, or build it so in the __init__ of a "
            "class of your own."
        )


def _structure(model: nn.Module) -> dict[str, str]:
    """What a model is made of, by name: kind and sizes of modules, shapes of parameters and buffers, what is shared."""
    found = {
        name: f"{type(module).__name__}({module.extra_repr()})"
        for name, module in model.named_modules()
        if not isinstance(module, nn.Dropout | nn.Identity)  # the same once training is over
    }
    first: dict[tuple[Any, ...], str] = {}  # the first name of each tensor, by where it lies
    for name, tensor in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        shape = tuple(tensor.shape)
        shared = first.setdefault((tensor.untyped_storage()._cdata, tensor.storage_offset(), shape), name)
        found[name] = f"a tensor of shape {shape}" if shared == name else f"the same as {shared}"
    return found


def _not_json(config: Any) -> str:
    """The option of a configuration that cannot be written as JSON, in words; "" where it is none by itself."""
    for name, value in vars(config).items():
        try:
            alone = PreTrainedConfig()
            vars(alone)[name] = value
            alone.to_json_string()
        except RAISED as error:
            return f"its {name} is {type(value).__name__}: {_reason(error)}"
    return ""


def _reason(error: BaseException) -> str:
    """What an error says, on one line and not too long."""
    return " ".join(str(error).split())[:240].rstrip(".") or type(error).__name__


Source = str | os.PathLike[str]


# Options of from_pretrained that say where a file is, for the configuration and the weights alike.
PLACE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token", "subfolder")


CUT = "_cut_when_built"  # marks the classes that build models to load, which are gone again soon


# What is put before the names of weights, by what, and what to save instead.
WRAPPERS = {
    "base_model.model.": ("PEFT", "what its merge_and_unload() returns"),
    "module.": ("DataParallel", "model.module"),
    "_orig_mod.": ("torch.compile", "the model that was compiled"),
}


def load_pruned(folder: Source, model_class: Any = None, **from_pretrained_kwargs: Any) -> Any:
    """Load a model whose heads were removed, in eval mode: a folder that ``save_pruned`` wrote, or a name on the hub.

    A folder that ``save_pretrained`` or ``Trainer`` wrote from a pruned model is read too, in one file or many, and so
    is a model that transformers 4 pruned: the ``pruned_heads`` of its config.json become the head mask.
    model_class: the class to load, where it is not one of transformers or is not the one that config.json names.
    from_pretrained_kwargs: ``dtype``, ``attn_implementation``, ``device_map``, ``subfolder``, ``variant``, ``revision``
    and whatever else ``from_pretrained`` of the class takes; ``output_loading_info=True`` returns a pair as it does.

    Raises ``FileNotFoundError`` where a file is missing, ``ValueError`` where the folder holds no pruned model, its
    weights contradict its head mask, or a file is damaged; ``TypeError`` for an option that the class does not take.
    """
    config = read_config(folder, **from_pretrained_kwargs)
    if not is_pruned(config):
        raise ValueError(
            f"{_place(folder, from_pretrained_kwargs) / 'config.json'} has no head_mask: load it with from_pretrained, "
            "or save it anew."
        )
    kind = find_class(folder, config, model_class, from_pretrained_kwargs)
    model, found = load_checked(folder, kind, **from_pretrained_kwargs)
    return (model, found) if from_pretrained_kwargs.get("output_loading_info") else model


def is_pruned(config: Any) -> bool:
    """Whether heads were removed: by ``remove_heads``, or by transformers 4."""
    return getattr(config, "head_mask", None) is not None or bool(getattr(config, "pruned_heads", None))


def read_config(source: Source, **options: Any) -> Any:
    """The configuration of a checkpoint, a folder or a name on the hub; options: as ``from_pretrained`` takes them.

    Raises ``FileNotFoundError`` where there is none, ``ValueError`` where it is damaged or of an unknown model type,
    and for a folder that holds an adapter instead of a model.
    """
    given = options.get("config")
    if isinstance(given, PreTrainedConfig):
        return given
    source = _name(source if given is None else given)
    folder = _place(source, options)
    if folder.is_file() and given is None:
        raise ValueError(f"{folder} is a file: give the folder that it lies in.")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder} holds a PEFT adapter: load it with peft, and save what its merge_and_unload() returns."
        )
    local = Path(source).exists()
    if Path(source).is_dir() and not (folder / "config.json").is_file():
        below = sorted(path.parent.name for path in folder.glob("*/config.json"))
        remedy = (
            f"{below[-1]} in it has one" if below else "give a folder that gnorm.save_pruned wrote, or save_pretrained"
        )
        raise FileNotFoundError(f"{folder} has no config.json: {remedy}.")
    try:
        return AutoConfig.from_pretrained(source, **{name: options[name] for name in PLACE if name in options})
    except RAISED as error:
        if isinstance(error, OSError) and not local:
            raise FileNotFoundError(
                f"{folder} has no config.json, and the hub gives no model of that name: give the folder that "
                "save_pretrained or gnorm.save_pruned wrote, or a name on the hub."
            ) from None
        raise ValueError(
            f"{folder / 'config.json'} is damaged, or of a model type that transformers {transformers.__version__} "
            f"does not know ({_reason(error)}): save the model anew."
        ) from None


def _name(source: Source) -> str:
    """A folder or a name on the hub as transformers takes it."""
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"{source!r} is no folder: give its path, or a name on the hub.")
    return os.path.expanduser(os.fspath(source))


def _place(source: Source, options: Mapping[str, Any]) -> Path:
    """Where the files are, for messages too."""
    return Path(_name(source), options.get("subfolder") or "")


def find_class(source: Source, config: Any, given: Any, options: Mapping[str, Any]) -> Any:
    """The class to build: ``given``, or the one that ``config`` names, of transformers or defined in this process.

    given: a class of models; an Auto class, of which the class that ``config`` names is taken if it is a subclass; or
    None. options: those of ``from_pretrained``.

    Raises ``ValueError`` where no such class is known, or several, and ``TypeError`` where ``given`` is no class of
    models.
    """
    mapping = getattr(given, "_model_mapping", None)
    if given is not None and mapping is None:
        if isinstance(given, type) and issubclass(given, PreTrainedModel):
            return given
        raise TypeError(f"model_class={given!r} is no class of models: give the class that the model was saved from.")
    if mapping is not None and type(config) not in mapping:
        raise ValueError(f"{given.__name__} has no class for model_type {config.model_type!r}: give another class.")
    name = str((config.architectures or ["none"])[0])
    named = _class_named(source, name)
    if mapping is not None and (named is not None or not is_pruned(config)):
        return named if named is not None and issubclass(named, mapping[type(config)]) else mapping[type(config)]
    if named is None:
        but, kind = (f" but {name!r}", name) if config.architectures else ("", "MyClass")
        raise ValueError(
            f"{_place(source, options) / 'config.json'} names no architecture of transformers{but}: pass the class of "
            f"the model, as in gnorm.load_pruned(folder, model_class={kind})."
        )
    return named


def _class_named(source: Source, name: str) -> Any:
    """The class of models ``name``, of transformers or defined in this process; code of a repository is never run."""
    known = getattr(transformers, name, None)
    if isinstance(known, type) and issubclass(known, PreTrainedModel):
        return known
    found = {
        f"{kind.__module__}.{kind.__qualname__}": kind
        for kind in _subclasses(PreTrainedModel)
        if kind.__name__ == name and CUT not in vars(kind)
    }
    if len(found) > 1:
        several = " and ".join(sorted(found))
        raise ValueError(f"{name}, which {source} was saved from, may be {several}: pass the right one as model_class.")
    return next(iter(found.values()), None)


def _subclasses(kind: Any) -> Iterator[Any]:
    """The classes that were derived from ``kind``, at any depth, earlier ones first."""
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)


def _cut_when_built(kind: Any) -> Any:
    """The class ``kind``, whose models lose the heads that their configuration says are gone as soon as they are built.

    They are built whole, then cut, so that weights that were cut fit them. The configuration is changed: the
    ``pruned_heads`` of transformers 4 become our ``head_mask``.
    """

    def build(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        mask, pruned = (vars(config).pop(name, None) for name in ("head_mask", "pruned_heads"))
        kind.__init__(self, config, *arguments, **options)
        if mask is not None or pruned:
            with torch.device("cpu"):  # where masks live; the weights may have no storage yet
                if mask is not None:
                    remove_heads(self, mask)
                if pruned:
                    remove_heads(self, _all_but(pruned, head_mask_of(self)))

    return type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__, CUT: True})


def _all_but(pruned: Any, mask: Tensor) -> Tensor:
    """``mask`` (layer, head) without the heads ``pruned``: lists by layer, as transformers 4 writes them."""
    layers, heads = range(mask.shape[0]), range(mask.shape[1])
    try:
        for layer, gone in pruned.items():
            mask[layers.index(int(layer)), [heads.index(head) for head in gone]] = 0
    except (AttributeError, TypeError, ValueError):
        raise ValueError(
            f"pruned_heads={pruned} in config.json does not list heads by layer, of {len(layers)} layers with "
            f"{len(heads)} heads"
        ) from None
    return mask


class MisfitError(ValueError):
    """Weights are not those of their config.json. report: what ``from_pretrained`` says of them, as a mapping."""

    def __init__(self, message: str, report: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.report = report


@torch.inference_mode(False)
def load_checked(source: Source, kind: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model of the class ``kind``, or of an Auto class, in eval mode, and what ``from_pretrained`` says of it.

    source: a folder or a name on the hub, of an intact or of a pruned model. options: those of ``from_pretrained``.
    Every weight of the model comes from the file: none is missing, of another shape or under another name. A weight
    that the model has no place for is refused as well, where the model is pruned or of another class than was saved;
    else it is left out, as transformers does (a pooler that the classifier does not use).

    Raises ``FileNotFoundError``, ``ValueError`` and ``TypeError`` as ``load_pruned`` does.
    """
    config = read_config(source, **options)
    kind = find_class(source, config, kind, options)
    try:
        with quiet_library():  # what is wrong is said below
            model, found = _cut_when_built(kind).from_pretrained(
                _name(source), **{"ignore_mismatched_sizes": True, **options, "output_loading_info": True}
            )
    except RAISED as error:
        raise _unreadable(error, _place(source, options), kind) from None
    model.__class__ = kind
    exact = is_pruned(config) or (config.architectures or [kind.__name__])[0] != kind.__name__
    try:
        _refuse_misfits(model, found, _place(source, options), exact, options)
    except ValueError as error:
        raise MisfitError(str(error), found) from None
    return model, found


def _unreadable(error: Exception, folder: Path, kind: Any) -> Exception:
    """What ``from_pretrained`` raised, as an error for people; torch's own advice on pickles is never repeated."""
    pickled = isinstance(error, PickleError | EOFError) or "PytorchStreamReader" in str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return error
    if isinstance(error, SafetensorError | json.JSONDecodeError | UnicodeDecodeError | KeyError) or pickled:
        why = "it holds more than tensors, or is not whole" if pickled else _reason(error)
        return ValueError(f"the weights in {folder} are damaged ({why}): save the model anew, as safetensors.")
    if isinstance(error, OSError):
        return FileNotFoundError(
            f"{folder} has no model.safetensors that can be read, nor other weights ({_reason(error)}): save the model "
            "anew, or name its variant, subfolder or revision."
        )
    message = f"{folder} cannot be loaded as {kind.__name__}: {_reason(error)}."
    return TypeError(message) if isinstance(error, TypeError) else ValueError(message)


def _refuse_misfits(
    model: Any, found: Mapping[str, Any], folder: Path, exact: bool, options: Mapping[str, Any]
) -> None:
    """``ValueError`` where weights are missing, of another shape, under other names or, if ``exact``, too many."""
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    base = f"{model.base_model_prefix}."
    if prefix := _prefix(unexpected, {*missing, *(name.removeprefix(base) for name in missing)}):
        wrapper, inside = next(
            (WRAPPERS[name] for name in WRAPPERS if prefix.startswith(name)), ("a wrapper", "the model in it")
        )
        raise ValueError(
            f"the names of the weights in {folder} have {prefix!r} too much, which {wrapper} puts there: save {inside} "
            f"instead, or take {prefix!r} out of the names in the file."
        )
    if found["mismatched_keys"] and not options.get("ignore_mismatched_sizes"):
        attention = {id(module) for block in attention_blocks(model) for module in block.module.modules()}
        told = {id(model.get_submodule(name.rpartition(".")[0])) in attention for name, *_ in found["mismatched_keys"]}
        name, stored, wanted = min(found["mismatched_keys"])
        what = "the head mask in its config.json" if True in told and is_pruned(model.config) else "its configuration"
        needs = "the mask needs" if True in told and is_pruned(model.config) else "the configuration needs"
        raise ValueError(
            f"the weights in {folder} contradict {what}: {name} is {tuple(stored)}, {needs} {tuple(wanted)}."
        )
    if head := [name for name in missing if not name.startswith(base)]:
        raise ValueError(
            f"{folder} has no weights for {head[0]}: fine-tune it as a classifier first, or name the class that was "
            "saved."
        )
    if names := (missing + unexpected * exact)[:3]:
        raise ValueError(f"the weights in {folder} are not those of its config.json: {', '.join(names)} do not match.")


def _prefix(unexpected: Sequence[str], missing: Collection[str]) -> str:
    """What the names of most weights have too much, before or within them; "" where that is not what is wrong."""
    found: Counter[str] = Counter()
    for name in unexpected:
        parts = name.split(".")
        ends = (i for i in range(1, len(parts)) if ".".join(parts[i:]) in missing)
        within = re.search(r"_[a-z_]+\.", name)  # _orig_mod, _fsdp_wrapped_module
        if end := next(ends, 0):
            found[".".join(parts[:end]) + "."] += 1
        elif within and name.replace(within[0], "") in missing:
            found[within[0]] += 1
    return next((prefix for prefix, count in found.most_common(1) if 2 * count >= len(unexpected)), "")


TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


@contextmanager
def quiet_library() -> Iterator[None]:
    """Without the remark that a new classifier has new weights, and without bars for reading and writing files."""
    level = transformers.logging.get_verbosity()
    loggers = [transformers.logging]
    if "datasets" in sys.modules:  # which shipping does without
        loggers.append(sys.modules["datasets"].utils.logging)
    bars = [library for library in loggers if library.is_progress_bar_enabled()]
    transformers.logging.set_verbosity_error()
    for library in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        for library in bars:
            library.enable_progress_bar()
