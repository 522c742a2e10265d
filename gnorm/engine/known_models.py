"""Which models are known to ignore padding, by the classes of their modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..heads import FAMILIES

# Modules that treat every token by itself, whatever order they come in.
TOKENWISE = (nn.Linear, nn.LayerNorm, nn.Dropout, nn.Embedding, nn.ModuleList, nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU)


# Modules of transformers' own that are the same for each text, padded or not, but not for a row of texts.
MODULES_OF_PADDED = (nn.Conv1d,)  # DeBERTa's, which sees neighbours with padding set to zero


SOFTMAX_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


WRITTEN_BY = ("transformers", "torch", "gnorm")  # packages whose hooks and forwards are known


def ignores_padding(model: Any) -> bool:
    """Whether padding behind texts, where none begins with a masked token, is known to change nothing: from the classes
    of all modules, never by trial.

    The model is the classifier that its family's row names, and its modules are those that transformers wrote for it or
    in ``TOKENWISE``. None has a forward or a hook of somebody's own. Attention is the softmax attention of transformers.
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
        and not getattr(model.config, "is_causal", False)
    )


def packable(model: Any) -> bool:
    """Whether rows of tokens are known to give what padded texts give: padding is ignored, and all modules but
    attention, which transformers lets be replaced, treat tokens one by one."""
    if not getattr(model, "_supports_attention_backend", False):
        return False
    return ignores_padding(model) and not any(isinstance(module, MODULES_OF_PADDED) for module in model.modules())


def _added_to(module: nn.Module) -> Iterator[Any]:
    """The hooks of a module, and its forward where that is not its class's."""
    yield from module._forward_pre_hooks.values()
    yield from module._forward_hooks.values()
    yield from module._backward_hooks.values()
    yield from module._backward_pre_hooks.values()
    if (own := vars(module).get("forward")) is not None:
        yield own


def _known(function: Any) -> bool:
    """Whether a function, or the object that is called like one, is from a package of ``WRITTEN_BY``."""
    function = getattr(function, "func", function)  # of a partial
    return str(getattr(function, "__module__", "")).partition(".")[0] in WRITTEN_BY


def plain_attention(model: Any) -> bool:
    """Whether all modules compute attention by functions of transformers that give softmax attention."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    owners = (getattr(module, "config", None) for module in model.modules())
    names = {name for config in owners if (name := getattr(config, "_attn_implementation", None)) is not None}
    functions = [ALL_ATTENTION_FUNCTIONS[name] for name in names if name in ALL_ATTENTION_FUNCTIONS]
    return names <= set(SOFTMAX_ATTENTION) and all(_known(function) for function in functions)
