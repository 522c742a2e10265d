"""Models that may lose their padding, and models whose heads are known: by classes of modules, never by trial.

``is_tested``: the project's tests hold the heads of such models to be where the family's row says.

``ignores_padding``: padding behind a text changes no result of a classifier. ``causal``: it changes no logit of a token
in a causal language model, or of a classifier on one. ``packable``: beyond that, packed texts give the same as padded
ones. A model that is none of these goes through padded, as its batches are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from .families import FAMILIES

# Modules that compute each token on its own, in any order.
TOKENWISE = (
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Dropout,
    nn.Identity,
    nn.Embedding,
    nn.ModuleList,
    nn.Tanh,
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
)


# Rotary positions whose frequencies do not depend on how long the longest text of a pass is.
ROTARY = ("default", "linear", "llama3", "yarn")


# Modules of known models that ignore padding, but would mix neighbouring texts if these were packed.
MODULES_OF_PADDED = (nn.Conv1d,)  # DeBERTa's: sets padding to zero, and reads the tokens beside each token


# Attention modules that compute attention themselves; forward/packing.py has a forward of each for packed texts.
# MPNet's takes a bias, the argument that the family's row calls ``per_head``, made by position alone by the module that
# owns the layers: of a text that is cut, it is the same bias, cut. DeBERTa's multiplies queries and keys with projected
# embeddings of their distance.
OWN_ATTENTION = ("MPNetSelfAttention", "DisentangledSelfAttention")


SOFTMAX_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


# Modules of transformers that its models share.
SHARED_MODULES = ("transformers.activations", "transformers.pytorch_utils")


WRITTEN_BY = ("transformers", "torch", "gnorm")  # packages whose hooks and forwards are known


_AS_SHIPPED = dict(FAMILIES)


def is_tested(model: Any) -> bool:
    """True if the tests of the package hold that the heads of such a model lie where its row says.

    They do where the row comes with the package and is not to be ``tried``; the model's class is one of transformers
    for its ``model_type``; every module is torch's or one that transformers wrote for that model; and no forward, and
    no attention function, comes from outside ``WRITTEN_BY``.
    """
    model = getattr(model, "_orig_mod", model)  # of a compiled model
    kind, model_type = type(model), getattr(model.config, "model_type", "")
    if (
        (row := FAMILIES.get(model_type)) is not _AS_SHIPPED.get(model_type)
        or row is None
        or row.tried
        or not kind.__module__.startswith("transformers.models.")
        or getattr(kind.config_class, "model_type", "") != model_type
    ):
        return False
    own, kinds, forwards, configs, left = (kind.__module__, *SHARED_MODULES), set(), [], {}, [model]
    while left:  # many times as fast as model.modules()
        module = left.pop()
        kinds.add(type(module))
        of_module = module.__dict__
        if (forward := of_module.get("forward")) is not None:
            forwards.append(forward)
        if (config := of_module.get("config")) is not None:
            configs[id(config)] = config
        left += [below for below in of_module["_modules"].values() if below is not None]
    return (
        all(k.__module__.startswith("torch.") or k.__module__ in own for k in kinds)
        and all(map(_known, (*forwards, *(k.forward for k in kinds))))
        and _plain(configs.values())
    )


def ignores_padding(model: Any, modules: Sequence[nn.Module] | None = None) -> bool:
    """True if padding behind texts is known to change no result, where no text begins with a masked token.

    It is known where the model is the classifier that its row in ``FAMILIES`` names; every module is one that
    transformers wrote for that model, or in ``TOKENWISE`` or ``MODULES_OF_PADDED``; no forward or hook comes from
    outside ``WRITTEN_BY``; and attention is transformers' own softmax attention, not causal.
    """
    if any(getattr(model.config, name, False) for name in ("is_causal", "is_decoder")):
        return False
    modules = list(model.modules()) if modules is None else modules
    return any(_as_written(model, row, modules) for row in ("classifier", "pooled")) and _fixed_rotations(modules)


def causal(model: Any, modules: Sequence[nn.Module] | None = None) -> bool:
    """True if padding behind texts is known to change no logit of a token, where no text begins with a masked token.

    It is known where the model is the causal language model that its row names, or the classifier that reads the last
    token (whose padding is known by the padding token alone), its modules are as in
    ``ignores_padding``, all attention is causal, and rotary positions are in ``ROTARY``. Texts must not be longer than
    ``attention_window``.
    """
    modules = list(model.modules()) if modules is None else modules
    if not any(_as_written(model, row, modules) for row in ("causal", "last_token")):
        return False
    return _fixed_rotations(modules) and not any(
        getattr(owner, "is_causal", True) is False for owner in (model.config, *modules)
    )


def _fixed_rotations(modules: Iterable[nn.Module]) -> bool:
    """True if the frequencies of rotary positions, where there are any, are in ``ROTARY``."""
    kinds = (getattr(module, "rope_type", "default") for module in modules)
    return all(k in ROTARY for kind in kinds for k in (kind.values() if isinstance(kind, dict) else (kind,)))


def reads_first_token(model: Any) -> bool:
    """True if the model, one that ignores padding, is the classifier of its row that reads first tokens alone."""
    family = FAMILIES.get(getattr(model.config, "model_type", ""))
    return family is not None and type(model).__name__ == family.classifier


def attention_window(model: Any) -> float:
    """The largest number of tokens of which each sees all tokens before it; infinite where any number."""
    window = getattr(model.config, "sliding_window", None)
    return math.inf if window is None else window


def _as_written(model: Any, row: str, modules: Sequence[nn.Module] | None = None) -> bool:
    """True if the model is the one that its family calls ``row``, and nothing in it has been exchanged for what may mix
    tokens. modules: all of the model, where they are known."""
    model = getattr(model, "_orig_mod", model)  # of a compiled model
    kind, family = type(model), FAMILIES.get(getattr(model.config, "model_type", ""))
    if (
        family is None
        or kind.__name__ != getattr(family, row)
        or not kind.__module__.startswith("transformers.models.")
    ):
        return False
    modules = list(model.modules()) if modules is None else modules
    kinds = {type(module) for module in modules}
    own = (kind.__module__, *SHARED_MODULES)
    return (
        all(k in TOKENWISE or k in MODULES_OF_PADDED or k.__module__ in own for k in kinds)
        and all(_known(k.forward) for k in kinds)
        and all(_known(function) for module in modules for function in _added_to(module))
        and plain_attention(modules)
    )


def packable(model: Any, modules: Sequence[nn.Module] | None = None) -> bool:
    """True if packed texts are known to give the same as padded ones.

    They do where padding is ignored, every module but attention computes each token on its own, and attention can be
    replaced: by transformers, or as a module of ``OWN_ATTENTION``.
    """
    modules = list(model.modules()) if modules is None else modules
    if not getattr(model, "_supports_attention_backend", False) and not any(map(owns_attention, modules)):
        return False
    known = ignores_padding(model, modules) or causal(model, modules)
    return known and not any(isinstance(module, MODULES_OF_PADDED) for module in modules)


def owns_attention(module: nn.Module) -> bool:
    """True if the module computes attention itself, in the way that ``OWN_ATTENTION`` says."""
    return type(module).__name__ in OWN_ATTENTION and type(module).__module__.startswith("transformers.models.")


def _added_to(module: nn.Module) -> Iterator[Any]:
    """The hooks of a module, and its forward if the module has one of its own beside its class's."""
    yield from module._forward_pre_hooks.values()
    yield from module._forward_hooks.values()
    yield from module._backward_hooks.values()
    yield from module._backward_pre_hooks.values()
    if (own := vars(module).get("forward")) is not None:
        yield own


def _known(function: Any) -> bool:
    """True if a function or callable object comes from a package of ``WRITTEN_BY``."""
    function = getattr(function, "func", function)  # of a partial
    return str(getattr(function, "__module__", "")).partition(".")[0] in WRITTEN_BY


def plain_attention(modules: Iterable[nn.Module]) -> bool:
    """True if all ``modules`` compute softmax attention by functions of transformers' own."""
    return _plain(vars(module).get("config") for module in modules)


def _plain(configs: Iterable[Any]) -> bool:
    """``plain_attention`` of modules with these configurations."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    names = {name for config in configs if (name := getattr(config, "_attn_implementation", None)) is not None}
    functions = [ALL_ATTENTION_FUNCTIONS[name] for name in names if name in ALL_ATTENTION_FUNCTIONS]
    return names <= set(SOFTMAX_ATTENTION) and all(_known(function) for function in functions)
