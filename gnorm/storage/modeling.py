"""The modelling file beside saved weights: transformers alone loads the folder with it.

A folder of a pruned model holds ``modeling_pruned.py``, and ``auto_map`` in its config.json names the classes in that
file, as for any custom model on a hub: the model's own, and its body's, which ``AutoModel`` gives. The file is made
from the row of the model's family in ``FAMILIES`` and from the source of the functions that ``remove_heads`` itself
uses. ``load_pruned`` never runs it.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterable
from typing import Any

import jinja2
import torch
import transformers
from transformers.models.auto import modeling_auto

from ..engine.model import fewer_heads, projections
from ..engine.model.blocks import blocks_of, names_of
from ..engine.model.families import FAMILIES
from ..engine.model.feed_forward import feed_forwards_of, rows_for

MODULE = "modeling_pruned"  # the name of the file is this and .py

PRUNED_WHEN_BUILT = (
    "_pruned_when_built"  # an attribute of classes that build the model of their parent with fewer heads
)


def plain_class(model: Any) -> Any:
    """The class of a model without what a compiler, ``pruned_when_built`` or a modelling file has put over it."""
    return without_modeling_file(type(getattr(model, "_orig_mod", model)))


def without_modeling_file(kind: Any) -> Any:
    """A class of models without what ``pruned_when_built`` or a modelling file has put over it."""
    return next(above for above in kind.__mro__ if PRUNED_WHEN_BUILT not in vars(above))


def auto_map(kind: Any, config: Any) -> dict[str, str]:
    """The entry ``auto_map`` of config.json: a class in the modelling file for every Auto class that gives ``kind``.

    ``AutoModel`` stands for a class that no Auto class gives. Empty for a class that is not one of transformers: its
    source is not ours to copy.
    """
    known: Any = getattr(transformers, kind.__name__, None)
    if known is not kind:
        return {}
    autos = []
    for name in sorted(name for name in vars(modeling_auto) if name.startswith("AutoModel")):
        mapping = getattr(getattr(modeling_auto, name), "_model_mapping", {})
        given = mapping.get(type(config), None)
        if kind in (given if isinstance(given, list | tuple) else [given]):
            autos.append(name)
    return dict.fromkeys(autos or ["AutoModel"], f"{MODULE}.{kind.__name__}")


def auto_map_of_body(kind: Any, config: Any, rows: int) -> dict[str, str]:
    """The entry of ``AutoModel`` where that gives another class than ``kind``: its body, without a head.

    rows: of the head mask. Empty where the body has other attention blocks, as an encoder whose ``AutoModel`` has a
    decoder too, and for a class that is not one of transformers.
    """
    body: Any = modeling_auto.AutoModel._model_mapping.get(type(config), None)
    if not isinstance(body, type) or body is kind or not auto_map(kind, config):
        return {}
    intact = copy.deepcopy(config)
    intact.head_mask = None
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            blocks = blocks_of(body(intact))  # only its names: no weights are there to try it with
        except ValueError:  # its blocks have other names, as those of Llama 4 have
            return {}
    return {"AutoModel": f"{MODULE}.{body.__name__}"} if len(blocks) == rows else {}


def others_in(config: Any) -> dict[str, Any]:
    """The entries of ``config.auto_map`` that name another file than the modelling file of a pruned model."""
    named = getattr(config, "auto_map", None) or {}
    return {auto: place for auto, place in named.items() if f"{MODULE}." not in str(place)}


def modeling_file(kinds: Iterable[str], model: Any) -> str:
    """The text of the modelling file for pruned models like ``model``, of classes of transformers named ``kinds``."""
    family = FAMILIES[model.config.model_type]
    fewer_neurons = bool(getattr(model.config, "feed_forward_sizes", None))
    own_counts = any(fewer_heads.counts_read(block.module) for block in blocks_of(model))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gnorm.storage", ""),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    functions = ["is_transposed", "cut", "count_heads"]
    functions += ["CountsLeft", "counts_read", "count_in_config"] if own_counts else []
    functions += ["drop_projections", "size_of_module", "without_rows", "bias_alone"]
    functions += ["shrink_feed_forward"] if fewer_neurons else []
    functions += ["found_by_head", "cut_by_head"] if family.by_head else []
    if family.shared_bias:
        functions += ["cut_argument_of_layers", "cut_shared_bias", "hand_on_shared_bias"]
    elif family.per_head:
        functions += ["cut_argument", "select_heads"]
    if family.skippable:
        functions += ["skip_attention", "without_heads"]
    if family.skippable or family.shared_bias:
        functions += ["_cache_in"]
    constants = [
        *(["QUERY_COUNTS", "KEY_COUNTS"] if own_counts else []),
        "HEAD_COUNTS",
        "WIDTHS",
        *(["ENCODER_STATES", "RESIDUAL", "LAYER_NUMBERS"] if family.skippable else []),
    ]
    return environment.get_template(f"{MODULE}.py.j2").render(
        kinds=list(kinds),
        mark=PRUNED_WHEN_BUILT,
        family=family,
        own_counts=own_counts,
        per_head=names_of(family.per_head),
        blocks=_as_regular(names_of(family.blocks)),
        feed_forward=feed_forwards_of(model)[0] if fewer_neurons else None,
        feed_forwards=_as_regular(rows_for(family.feed_forward)[0][2]) if fewer_neurons else [],
        owner=family.query.rpartition(".")[0],
        constants={name: getattr(fewer_heads, name) for name in constants},
        functions=functions,
        source=_source,
        version=transformers.__version__,
        needed=tuple(map(int, family.since.split("."))),
    )


def _as_regular(names: Iterable[str]) -> list[str]:
    """Names of modules, ``*`` for any index, as regular expressions."""
    return [re.escape(name).replace(r"\*", r"\w+") for name in names]


def _source(name: str) -> str:
    """The source of a function of ``engine.fewer_heads`` or ``engine.projections``."""
    return inspect.getsource(getattr(fewer_heads, name, None) or getattr(projections, name)).rstrip()
