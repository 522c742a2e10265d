"""Which models may lose their padding: known by the classes of their modules, never by trial.

``ignores_padding``: padding behind a text changes nothing. ``packable``: beyond that, packed texts give the same as
padded ones. A model that is neither goes through padded, as its batches are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from .families import FAMILIES

# Modules that compute each token on its own, in any order.
TOKENWISE = (nn.Linear, nn.LayerNorm, nn.Dropout, nn.Embedding, nn.ModuleList, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU)


# Modules of known models that ignore padding, but would mix neighbouring texts if these were packed.
MODULES_OF_PADDED = (nn.Conv1d,)  # DeBERTa's: sets padding to zero, and reads the tokens beside each token


# Attention modules that compute softmax(q k / sqrt(head_dim) + bias) v themselves and apply the output projection. The
# bias, an argument that the family's row calls ``per_head``, is made by position alone, by the module that owns the
# layers: of a text that is cut, it is the same bias, cut.
OWN_ATTENTION = ("MPNetSelfAttention",)


SOFTMAX_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


WRITTEN_BY = ("transformers", "torch", "gnorm")  # packages whose hooks and forwards are known


def ignores_padding(model: Any) -> bool:
    """Whether padding behind texts is known to change no result, where no text begins with a masked token.

    It is known where the model is the classifier that its row in ``FAMILIES`` names; every module is one that
    transformers wrote for that model, or in ``TOKENWISE`` or ``MODULES_OF_PADDED``; no forward or hook comes from
    outside ``WRITTEN_BY``; and attention is transformers' own softmax attention, not causal.
    """
    model = getattr(model, "_orig_mod", model)  # of a compiled model
    kind, family = type(model), FAMILIES.get(getattr(model.config, "model_type", ""))
    if family is None or kind.__name__ != family.classifier or not kind.__module__.startswith("transformers.models."):
        return False
    kinds = {type(module) for module in model.modules()}
    own = (kind.__module__, "transformers.activations")
    return (
        all(k in TOKENWISE or k in MODULES_OF_PADDED or k.__module__ in own for k in kinds)
        and all(_known(k.forward) for k in kinds)
        and all(_known(function) for module in model.modules() for function in _added_to(module))
        and plain_attention(model)
        and not any(getattr(model.config, name, False) for name in ("is_causal", "is_decoder"))
    )


def packable(model: Any) -> bool:
    """Whether packed texts are known to give the same as padded ones.

    They do where padding is ignored, every module but attention computes each token on its own, and attention can be
    replaced: by transformers, or as a module of ``OWN_ATTENTION``.
    """
    if not getattr(model, "_supports_attention_backend", False) and not any(map(owns_attention, model.modules())):
        return False
    return ignores_padding(model) and not any(isinstance(module, MODULES_OF_PADDED) for module in model.modules())


def owns_attention(module: nn.Module) -> bool:
    """Whether the module computes attention itself, in the way that ``OWN_ATTENTION`` says."""
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
    """Whether a function or callable object comes from a package of ``WRITTEN_BY``."""
    function = getattr(function, "func", function)  # of a partial
    return str(getattr(function, "__module__", "")).partition(".")[0] in WRITTEN_BY


def plain_attention(model: Any) -> bool:
    """Whether all modules compute softmax attention by functions of transformers' own."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    owners = (getattr(module, "config", None) for module in model.modules())
    names = {name for config in owners if (name := getattr(config, "_attn_implementation", None)) is not None}
    functions = [ALL_ATTENTION_FUNCTIONS[name] for name in names if name in ALL_ATTENTION_FUNCTIONS]
    return names <= set(SOFTMAX_ATTENTION) and all(_known(function) for function in functions)
