"""Random models, texts and head masks: the package against plain autograd on whole padded batches.

``python tests/fuzz.py SEED [COUNT]`` repeats a draw, or runs COUNT draws from SEED on. What is expected is computed by
transformers and autograd alone, in float64, with eager attention: one forward pass of each batch as it was given, heads
taken out by zeroing their columns of the output projection.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import itertools
import math
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest import mock

import literal
import models
import torch
from models import POSITIONS, ROWS, VOCABULARY
from torch import Tensor
from transformers import AutoConfig

import gnorm
from gnorm.engine.texts.batches import prepare
from gnorm.methods import METHODS, MORE_METHODS

LONGEST = 20
CRITERIA = METHODS | MORE_METHODS
BY_TEXT_AT_MOST = 8  # texts, for a criterion that takes a backward pass for each
# Relative error of one operation in the precision of the model, and what scores may be off where nothing cancels.
EPSILON = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.bfloat16)}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.5}
AMPLIFIED = 30  # sums in another order than plain autograd's may be off by that many times as much

# Limits that are small for small models, so that every path is taken: module, name and values to draw from.
LIMITS: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("gnorm.engine.texts.micro_batches", "MAX_TOKENS", ({"cpu": 5}, {"cpu": 12}, {"cpu": 40})),
    ("gnorm.engine.texts.micro_batches", "PACKED_MAX_TOKENS", ({"cpu": 5}, {"cpu": 12}, {"cpu": 40})),
    ("gnorm.engine.texts.micro_batches", "OVERHEAD_TOKENS", ({"cpu": 0}, {"cpu": 5})),
    ("gnorm.engine.texts.micro_batches", "PACKED_OVERHEAD_TOKENS", ({"cpu": 0}, {"cpu": 5})),
    ("gnorm.engine.forwarding", "CACHE_BYTES", (1, 2000)),
    ("gnorm.engine.forward.attention", "EXPLICIT_ATTENTION_TOKENS", (0, 4)),
    ("gnorm.engine.forward.products", "SMALLEST", (1, 500)),
)


DRAWN = [name for name, row in ROWS.items() if row.draw and "/" not in name]
# What some families call the sizes, where transformers does not map the names.
RENAMED = {
    "distilbert": {
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    }
}


@dataclass
class Draw:
    """A model, its batches, and which of its heads are gone."""

    seed: int
    model: Any  # intact
    batches: list[dict[str, Tensor]]
    removed: Tensor  # (layer, head) bool, true for heads that are removed before anything is asked
    hidden: Tensor  # (layer, head) bool, true for heads that are masked for the length of every question
    limits: dict[str, tuple[str, Any]]  # by name: module and value
    around: Callable[[], Any]  # the autograd mode around every question
    prepared: bool
    max_tokens: int | None
    about: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def labelled(self) -> bool:
        return self.model.config.num_labels > 1  # a single number is not a class

    def __str__(self) -> str:
        shapes = [" ".join(f"{name}{tuple(t.shape)}" for name, t in batch.items()) for batch in self.batches]
        return "\n  ".join([*self.about, *shapes])


def draw(seed: int) -> Draw:
    """Draw number ``seed``."""
    r, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    model, options = _model(r, generator)
    texts = model.main_input_name == "input_ids"
    batches, layout = _texts(r, generator, model) if texts else _signals(r, generator, model)
    labels = max(1, model.config.num_labels)
    for batch in batches:
        count = len(next(iter(batch.values())))
        batch["labels"] = torch.randint(0, labels, (count,), generator=generator)
    shape = len(literal.blocks(model)), literal.heads_of(model)
    removed, hidden = (
        torch.rand(shape, generator=generator) < r.choice([0.2, 0.5, 0.8])
        if r.random() < share
        else torch.zeros(shape) > 0
        for share in (0.4, 0.4)
    )
    if r.random() < 0.2:
        r.choice([removed, hidden])[r.randrange(shape[0])] = True  # an empty layer
    limits = {name: (module, r.choice(values)) for module, name, values in LIMITS if r.random() < 0.3}
    around = r.choice([contextlib.nullcontext, contextlib.nullcontext, torch.no_grad, torch.inference_mode])
    prepared, max_tokens = r.random() < 0.4, r.choice([None, None, 1, 7, 25])
    for module in model.modules():
        module.training = r.random() < 0.3
    for parameter in model.parameters():
        parameter.requires_grad_(r.random() < 0.7)
    small = {name: value for name, (_, value) in limits.items()}
    given = f"prepared for max_tokens={max_tokens}" if prepared else "as given"
    about = [
        f"{model.config.model_type} {model.dtype}, {model.config._attn_implementation}: {options}",
        f"texts {layout}; removed {removed.int().tolist()}, masked {hidden.int().tolist()}",
        f"limits {small}, under {around.__name__}, {given}",
    ]
    return Draw(seed, model, batches, removed, hidden, limits, around, prepared, max_tokens, about)


def _model(r: random.Random, generator: torch.Generator) -> tuple[Any, dict[str, Any]]:
    name, heads, head_dim = r.choice(DRAWN), r.randint(1, 5), r.randint(1, 8)
    row, family = ROWS[name], models.family_of(name)
    if heads * head_dim < 4:  # layer norms of two numbers cancel them
        heads, head_dim = 4, 1
    options: dict[str, Any] = {
        "num_labels": r.choice([1, 2, 2, 3, 3, 4]),
        "num_hidden_layers": r.randint(1, 4),
        "num_attention_heads": heads,
        "hidden_size": heads * head_dim,
        "intermediate_size": r.randint(1, 24),
        "hidden_act": r.choice(["gelu", "relu", "silu", "gelu_new"]),
        **(row.draw or models.as_it_is)(r),
    }
    if row.draw is models.as_it_is:
        options = row.config | {"num_labels": options["num_labels"] if family != "bart" else 3}
    if models.of_texts(name):
        options |= {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "pad_token_id": r.choice([0, 1])}
    if family == "gpt_neo":
        layers = options.pop("num_hidden_layers")
        options |= {"num_layers": layers, "attention_types": [[[r.choice(["global", "local"])], layers]]}
    if "d_model" in options:
        for size in ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "hidden_act"):
            options.pop(size, None)
    options = {RENAMED.get(family, {}).get(name, name): value for name, value in options.items()}
    model = models.auto_of(name).from_config(AutoConfig.for_model(family, **options), attn_implementation="eager")
    if r.random() < 0.5 and model._supports_sdpa:
        model.set_attn_implementation("sdpa")
    spread, sharp = r.choice([0.1, 0.3, 0.6]), 10 ** r.uniform(-1.5, 0.7)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            norm = "norm" in path.lower() and path.endswith("weight")
            parameter.copy_(1 + 0.2 * drawn if norm else drawn * (spread if parameter.dim() > 1 else 0.1))
        for module in {part.module for block in literal.blocks(model) for part in block}:
            module.weight.mul_(sharp)
    double = [] if row.in_float32 else [torch.float64] * 4
    dtype = r.choice([torch.float32] * 5 + double + [torch.bfloat16])
    return model.to(dtype), {**options, "weights": (spread, round(sharp, 3))}


def _signals(r: random.Random, generator: torch.Generator, model: Any) -> tuple[list[dict[str, Tensor]], str]:
    """Pictures, sounds or spectrograms."""
    name, shape = model.main_input_name, models.signal_shape(model.config)
    shape = (r.randint(60, 160),) if len(shape) == 1 else shape
    sizes = [r.randint(1, 5) for _ in range(r.choice([1, 1, 2, 3]))]
    return [{name: torch.randn(n, *shape, generator=generator).to(model.dtype)} for n in sizes], name


def _texts(r: random.Random, generator: torch.Generator, model: Any) -> tuple[list[dict[str, Tensor]], str]:
    layout = r.choice(["right", "right", "right", "left", "holes", "no mask", "wide", "equal", "one token"])
    sizes = [r.choice([1, 2, 3, 4, 5, 9]) for _ in range(r.choice([1, 1, 1, 2, 2, 3, 5]))]
    longest = 1 if layout == "one token" else r.randint(2, LONGEST)
    takes = inspect.signature(model.forward).parameters
    types = getattr(model.config, "type_vocab_size", 0) if r.random() < 0.5 and "token_type_ids" in takes else 0
    several = getattr(model.config, "is_encoder_decoder", False)  # its classifiers read the token that ends a text
    positions = r.random() < 0.2 and "position_ids" in takes
    embedded = r.random() < 0.1 and "inputs_embeds" in takes and not ROWS[model.config.model_type].in_float32
    integers, bits = r.choice([torch.long] * 4 + [torch.int]), r.choice([torch.long, torch.long, torch.int, torch.bool])
    if getattr(model.config, "conv_kernel_size", 0):
        bits = torch.long  # its convolution subtracts the mask from 1
    pad = model.config.pad_token_id
    batches = []
    for count in sizes:
        same = layout in ("equal", "no mask", "one token")
        lengths = torch.tensor([longest if same else r.randint(1, longest) for _ in range(count)])
        width = int(lengths.max()) + (r.randint(1, 5) if layout == "wide" else 0)
        mask = torch.arange(width) < lengths[:, None]
        ids = torch.randint(3, VOCABULARY, mask.shape, generator=generator).masked_fill(~mask, pad)
        if several:
            ids[torch.arange(count), lengths - 1] = model.config.eos_token_id
        if layout == "left":
            mask, ids = mask.flip(1), ids.flip(1)
        if layout == "holes":
            mask &= torch.rand(mask.shape, generator=generator) < 0.8
            mask[torch.arange(count), lengths - 1] = True
        if embedded:
            embed = model.get_input_embeddings()
            batch = {"inputs_embeds": embed(ids).detach()}
        else:
            batch = {"input_ids": ids.to(integers)}
        if layout != "no mask":
            batch["attention_mask"] = mask.to(bits)
        if types:
            batch["token_type_ids"] = torch.randint(0, types, mask.shape, generator=generator)
        if positions:
            batch["position_ids"] = torch.randint(2, POSITIONS, mask.shape, generator=generator)
        batches.append(batch)
    return batches, layout


# ------------------------------------------------------------------------------------------ what is expected


@dataclass
class Plain:
    """Values of transformers and autograd, each (layer, head), of heads that are gone too; whole numbers of a text."""

    gradients: dict[str, Tensor]  # by criterion (layer, projection, head) sums over batches of norms
    entropy: Tensor
    energy: Tensor
    importance: Tensor
    saliency: Tensor
    logits: list[Tensor]  # by batch
    parts: dict[str, list[Tensor]]  # by criterion, of every term of the sum its gradients, flattened by head


def plain(of: Draw, gone: Tensor, dtype: torch.dtype = torch.float64, terms: bool = False) -> Plain:
    """The criteria of ``of``'s model without the heads ``gone`` (layer, head)."""
    model = copy.deepcopy(of.model).to(dtype).eval().requires_grad_(False)
    model.set_attn_implementation("eager")
    for module in model.modules():
        module.register_forward_pre_hook(_bounded_mask, with_kwargs=True)
    blocks, heads = literal.blocks(model), literal.heads_of(model)
    rows, texts = len(blocks), sum(len(batch["labels"]) for batch in of.batches)
    for (*inputs, output), lost in zip(blocks, gone, strict=True):
        for part in inputs:
            part.module.weight.requires_grad_(True)
        output.zero(lost)
    projections = [part for block in blocks for part in block[:3]]
    weights = [part.module.weight for part in projections]
    sums: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor]] = {}
    entropy, energy, importance, saliency = (torch.zeros(rows, heads, dtype=torch.float64) for _ in range(4))
    every = []
    for batch in of.batches:
        inputs = {name: t.to(dtype) if t.is_floating_point() else t for name, t in batch.items() if name != "labels"}
        contexts: list[tuple[int, Tensor]] = []
        hooks = [
            block[3].module.register_forward_pre_hook(
                lambda _, inputs, row=row, to=contexts: to.append((row, inputs[0]))
            )
            for row, block in enumerate(blocks)
        ]
        output = model(**inputs, output_attentions=True)
        for hook in hooks:
            hook.remove()
        z, count = output.logits, len(batch["labels"])
        every.append(z.detach().double())

        def add(name: str, objective: Tensor) -> None:
            found = torch.autograd.grad(objective, weights, retain_graph=True, allow_unused=True)
            flat = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
            own = [part.by_head(g.double()) for part, g in zip(projections, flat, strict=True)]
            widest = max(g.shape[1] for g in own)  # query has more rows where several query heads share a key
            by_head = torch.stack([torch.nn.functional.pad(g, (0, widest - g.shape[1])) for g in own])
            by_head = by_head.unflatten(0, (rows, 3))
            sums[name] = sums.get(name, torch.zeros(rows, 3, heads, dtype=torch.float64)) + by_head.norm(dim=-1)
            if terms:
                parts.setdefault(name, []).append(by_head)

        add("gnorm_scores", z.norm())
        if texts <= BY_TEXT_AT_MOST:
            for row_of_z in z:
                add("gnorm_by_text", row_of_z.norm())
        real = inputs.get("attention_mask")
        several = getattr(output, "attentions", None) is None  # whose kinds follow one another, not the calls
        passes = range(rows) if several else [row for row, _ in contexts]
        for row, attention in zip(passes, literal.attentions(output), strict=True):
            of_query = torch.special.entr(attention.detach().double()).sum(-1)  # (text, query head, query)
            by_unit = of_query.unflatten(1, (heads, -1)).mean(2)
            entropy[row] += torch.einsum("bhq,bq->h", by_unit, _shares(real, count, by_unit.shape[2]))
        split = [(row, c.unflatten(-1, (heads, -1))) for row, c in contexts]  # (text, token, head, head_dim)
        for row, c in split:
            energy[row] += torch.einsum(
                "bqh,bq->h", c.detach().double().square().sum(-1), _shares(real, count, c.shape[1])
            )
        if of.labelled:
            loss = torch.nn.functional.cross_entropy(z, batch["labels"], reduction="sum")
            add("gnorm_cross_entropy", loss / count)
            found = torch.autograd.grad(loss, [c for _, c in contexts], allow_unused=True)
            flows = [torch.zeros_like(c) if g is None else g for g, (_, c) in zip(found, contexts, strict=True)]
            by_text = torch.zeros(rows, count, heads, dtype=torch.float64)
            for (row, c), flow in zip(split, flows, strict=True):
                by_text[row] += (c.detach() * flow.view_as(c)).double().sum((1, 3))
            importance += by_text.abs().sum(1) / texts
            saliency += by_text.sum(1).abs() / count / texts
    energy[gone] = 0
    return Plain(sums, entropy / texts, energy / texts, importance, saliency, every, parts)


def _bounded_mask(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The lowest number of float64 is infinite in float32, in which some models take the softmax; padding that sees no
    token would become NaN, and then every token that it is added to with weight zero."""
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dtype == torch.float64:
        kwargs = {**kwargs, "attention_mask": mask.clamp(min=-1e30)}
    return args, kwargs


def _shares(real: Tensor | None, count: int, tokens: int) -> Tensor:
    """(text, token) weights of the mean over the tokens that are real; all of them where there is no mask."""
    real = torch.ones(count, tokens) if real is None else real
    return real.double() / real.double().sum(1, keepdim=True)


PRUNED_BY_MEANS = {"attention_entropy": "entropy", "head_importance": "importance"}
MEANS = {"activation_energy": "energy", "head_importance": "importance", "output_saliency": "saliency"}


def magnitudes(of: Draw) -> Tensor:
    """(layer, head) natural logarithm of the norm of all weights of a head."""
    rows = []
    for block in literal.blocks(of.model):
        numbers = torch.cat([part.by_head(part.module.weight.detach().double()) for part in block], 1)
        rows.append(numbers.norm(dim=1).log())
    return torch.stack(rows)


def log_product(norms: Tensor) -> Tensor:
    """(layer, projection, head) norms to (layer, head) natural logarithms of their products."""
    return norms.log().sum(1)


# What is pruned by, beside the paper's methods: rows of G-norm's variants, from (layer, projection, head) norms.
VARIANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "gnorm_sum": lambda norms: norms.sum(1).log(),
    "gnorm_max": lambda norms: norms.amax(1).log(),
    "gnorm_q": lambda norms: norms[:, 0].log(),
    "gnorm_k": lambda norms: norms[:, 1].log(),
    "gnorm_v": lambda norms: norms[:, 2].log(),
    "gnorm_qk": lambda norms: log_product(norms[:, :2]),
}


def pruned_by(name: str, state: Plain) -> Tensor | None:
    """(layer, head) scores of a method; None for weights, which are compared by themselves."""
    if name == "weight_magnitude":
        return None
    if name in PRUNED_BY_MEANS:
        return cast(Tensor, getattr(state, PRUNED_BY_MEANS[name]))
    return VARIANTS.get(name, log_product)(state.gradients["gnorm_scores"])


def lower(dtype: torch.dtype) -> torch.dtype:
    """A precision whose rounding float64 shows."""
    return torch.float32 if dtype == torch.float64 else dtype


def noise(of: Draw, gone: Tensor) -> tuple[dict[str, Tensor], Plain, Plain]:
    """The error of plain autograd in a lower precision, in the precision of the model; by criterion of gradients, in
    the logarithm: (layer, head), infinite where nothing is left of a gradient. And the two that were compared."""
    low = lower(of.dtype)
    exact, rough = plain(of, gone, terms=True), plain(of, gone, low, terms=True)
    share = EPSILON[of.dtype] / EPSILON[low]
    found, q, k, v = {}, 0, 1, 2
    weights = torch.stack(
        [
            torch.stack([part.by_head(part.module.weight.double()).norm(dim=1) for part in block[:3]])
            for block in literal.blocks(of.model)
        ]
    ).detach()  # (layer, projection, head)
    for name, norms in exact.gradients.items():
        off = sum((a - b).norm(dim=-1) for a, b in zip(exact.parts[name], rough.parts[name], strict=True))
        off = AMPLIFIED * share * torch.as_tensor(off)
        # Attention that looks at one token alone: the gradient behind a softmax is a difference of numbers of the size
        # of the value's gradient, and vanishes from a lower precision altogether.
        difference = 3 * EPSILON[of.dtype] * of.model.config.hidden_size * norms[:, v] * weights[:, v]
        off[:, q] += difference * weights[:, k]
        off[:, k] += difference * weights[:, q]
        found[name] = (off / norms).nan_to_num(math.inf).sum(1)
        # a gradient that cancels to nothing by chance in one order of sums need not in another
        nothing = min(1e3 * EPSILON[of.dtype], 0.05) * norms.amax((0, 2), keepdim=True)
        found[name][(norms < nothing).any(1)] = math.inf
    return found, exact, rough


# ------------------------------------------------------------------------------------------ what is found


def _count(hooks: Any) -> int:
    """The number of hooks, beside those that transformers registers in a model's first pass."""
    return sum(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks.values())


def snapshot(model: Any) -> list[Any]:
    """The state that a call may not alter."""
    modules = list(model.modules())
    return [
        [
            (parameter.requires_grad, parameter.grad is None)
            for module in modules
            for parameter in module._parameters.values()
            if parameter is not None
        ],
        [(m.training, _count(m._forward_hooks), _count(m._forward_pre_hooks), "forward" in vars(m)) for m in modules],
        model.config._attn_implementation,
        model.config.to_dict(),
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
    ]


def same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return before.dtype == after.dtype and torch.equal(before, after)
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(value, after[name]) for name, value in before.items())
    if isinstance(before, list):
        return len(before) == len(after) and all(map(same, before, after))
    return bool(before == after)


@contextlib.contextmanager
def limited(of: Draw) -> Iterator[None]:
    with contextlib.ExitStack() as patches:
        for name, (module, value) in of.limits.items():
            patches.enter_context(mock.patch.object(importlib.import_module(module), name, value))
        yield


class Check:
    """The draw with a seed, and all that disagrees."""

    def __init__(self, seed: int) -> None:
        self.draw = draw(seed)
        self.gone = self.draw.removed | self.draw.hidden
        self.expected = plain(self.draw, self.gone)
        self.wrong: list[str] = []
        self.error: Exception | None = None
        self.seen: Any = None  # the model that was asked last, and what it was left as
        self.after: list[Any] = []
        self._noise: tuple[dict[str, Tensor], Plain, Plain] | None = None

    def noise(self) -> tuple[dict[str, Tensor], Plain, Plain]:
        self._noise = self._noise or noise(self.draw, self.gone)
        return self._noise

    def compare(self, name: str, found: Tensor, expected: Tensor, allowed: Callable[[], Tensor | float]) -> None:
        """``allowed``, asked for only where they differ by more than ``TOLERANCE``: how far rounding may put them
        apart."""
        expected = expected.masked_fill(self.draw.removed, -math.inf) if expected.dim() == 2 else expected
        if found.dtype != torch.float64 or found.shape != expected.shape:
            self.wrong.append(f"{name}: {found.dtype} of shape {tuple(found.shape)}")
            return
        off = torch.where(found == expected, 0, (found - expected).abs()).nan_to_num(math.inf, math.inf)
        tolerance = torch.full_like(off, TOLERANCE[self.draw.dtype])
        if not bool((off <= tolerance).all()):
            tolerance = tolerance + torch.as_tensor(allowed()).masked_fill(self.draw.removed, 0)
        # Where rounding moves a logarithm by thousands, the gradient is nothing but rounding: it may be zero.
        off = off.masked_fill(found.isneginf() & (tolerance > 1e3), 0)
        # where a gradient is nothing but rounding, the score may be any number that is not large
        largest = expected[~tolerance.isinf()].max() if tolerance.isfinite().any() else torch.tensor(math.inf)
        wrong = ~(off <= tolerance) | ~(found <= largest.clamp(min=0) + 10)
        if bool(wrong.any()):
            self.wrong.append(
                f"{name} is off by {off[wrong].max():.3g}, {tolerance[wrong].min():.3g} allowed:\n"
                f"    found    {found.tolist()}\n    expected {expected.tolist()}"
            )

    def compare_means(self, name: str, found: Tensor, of: str) -> None:
        expected: Tensor = getattr(self.expected, of)
        scale = 1 + expected.abs().max()

        def allowed() -> Tensor:
            _, exact, rough = self.noise()
            share = EPSILON[self.draw.dtype] / EPSILON[lower(self.draw.dtype)]
            return AMPLIFIED * share * (getattr(exact, of) - getattr(rough, of)).abs().max().expand_as(expected) / scale

        self.compare(name, found / scale, expected / scale, allowed)

    @contextlib.contextmanager
    def trying(self, name: str, model: Any) -> Iterator[None]:
        """An error is one thing that is wrong, and others are looked for; whatever happens, the model is as it was."""
        before = snapshot(model) if self.seen is not model else self.after
        self.seen = model
        try:
            yield
        except Exception as error:  # noqa: BLE001
            self.wrong.append(f"{name} ends in {type(error).__name__}: {error}")
            self.error = error
        self.after = snapshot(model)
        if not same(before, self.after):
            self.wrong.append(f"{name} does not leave the model as it was")

    @contextlib.contextmanager
    def refused_where_nothing_flows(self, gone: Tensor) -> Iterator[Tensor]:
        """An intact model all of whose scores are -inf is refused; gives these scores. gone: heads that are masked."""
        of, nothing = self.draw, torch.full(self.draw.removed.shape, -torch.inf, dtype=torch.float64)
        try:
            yield nothing
        except ValueError as error:
            norms = plain(of, of.removed).gradients["gnorm_scores"]
            flows = bool((norms > 1e-9 * norms.max()).all(1).any())
            if "no gradient flows" not in str(error) or flows or of.removed.any() or gone.any():
                raise

    def run(self) -> None:
        of = self.draw
        model = copy.deepcopy(of.model)
        if of.removed.any():
            gnorm.remove_heads(model, ~of.removed)
        with limited(of):
            with gnorm.masked(model, ~of.hidden) if of.hidden.any() else contextlib.nullcontext():
                self.criteria(model)
            self.seen = None  # the hooks of the masks are gone
            if of.seed % 8 == 0 and of.dtype != torch.bfloat16:
                with self.trying("removal", of.model):
                    self.removal()
            if of.seed % 8 == 1 and of.dtype != torch.bfloat16 and of.labelled:
                with self.trying("prune", model):
                    self.pruning(model)

    def given(self, model: Any, together: bool = False) -> Any:
        of = self.draw
        return prepare(of.batches, model, together=together, max_tokens=of.max_tokens) if of.prepared else of.batches

    def criteria(self, model: Any) -> None:
        """The paper's two of every draw, a third of the others."""
        of, expected, r = self.draw, self.expected, random.Random(self.draw.seed)

        def ask(name: str) -> Tensor:
            with self.refused_where_nothing_flows(of.hidden) as refused, of.around():
                return CRITERIA[name].criterion(model, self.given(model))
            return refused

        def of_gradients(name: str, found: Tensor) -> None:
            self.compare(name, found, log_product(expected.gradients[name]), lambda: self.noise()[0][name])

        with self.trying("gnorm_scores", model):
            of_gradients("gnorm_scores", ask("greedy_gnorm"))
        with self.trying("attention_entropy", model):
            self.compare_means("attention_entropy", ask("attention_entropy"), "entropy")
        others = [] if of.dtype == torch.bfloat16 else ["activation_energy", "weight_magnitude", "gnorm_by_text"]
        if of.labelled and others:
            others += ["head_importance", "output_saliency", "hies", "gnorm_cross_entropy", "accuracy"]
        others += [r.choice([*VARIANTS])] if others else []
        for name in others:
            if r.random() < 0.65 or (name == "gnorm_by_text" and name not in expected.gradients):
                continue
            with self.trying(name, model):
                if name == "accuracy":
                    with of.around():
                        given = self.given(model, together=r.random() < 0.5)
                        found = gnorm.metrics.correct_texts(model, given)
                    self.compare_answers(name, found, expected.logits)
                elif name in MEANS:
                    self.compare_means(name, ask(name), MEANS[name])
                elif name == "weight_magnitude":
                    self.compare(name, ask(name), magnitudes(of), lambda: 0.0)
                elif name in VARIANTS:  # off by as much as the product, at most
                    variant = VARIANTS[name](expected.gradients["gnorm_scores"])
                    self.compare(name, ask(name), variant, lambda: self.noise()[0]["gnorm_scores"])
                elif name == "hies":
                    shares = self.share(ask("head_importance")), 1 - self.share(ask("attention_entropy"))
                    self.compare(name, ask(name), sum(shares) / 2, lambda: 1e-6)
                else:
                    of_gradients(name, ask(name))

    def share(self, scores: Tensor) -> Tensor:
        left = scores[~self.draw.removed]
        if not len(left) or left.max() == left.min():
            return torch.zeros_like(scores)
        return (scores - left.min()) / (left.max() - left.min())

    def compare_answers(self, name: str, found: Tensor, logits: list[Tensor]) -> None:
        """Texts whose two largest logits are all but equal may be answered either way."""
        z, labels = torch.cat(logits), torch.cat([batch["labels"] for batch in self.draw.batches])
        first, second = z.topk(2, dim=1).values.unbind(1)
        clear = first - second > 1e-4 * (1 + z.abs().amax(1))
        if not torch.equal(found[clear], (z.argmax(1) == labels)[clear]):
            self.wrong.append(
                f"{name}: found {found.int().tolist()}, expected {(z.argmax(1) == labels).int().tolist()}"
            )

    def removal(self) -> None:
        """Masked, removed, and saved and loaded again."""
        of = self.draw
        model = copy.deepcopy(of.model).eval()

        def logits(model: Any) -> list[Tensor]:
            with torch.inference_mode():
                return [
                    model(**{name: t for name, t in batch.items() if name != "labels"}).logits.double()
                    for batch in of.batches
                ]

        with gnorm.masked(model, ~self.gone):
            found = {"masked": logits(model)}
        gnorm.remove_heads(model, ~of.hidden)
        gnorm.remove_heads(model, ~of.removed)
        found["removed"] = logits(model)
        with tempfile.TemporaryDirectory() as folder:
            loaded = gnorm.load_pruned(gnorm.save_pruned(model, Path(folder) / "pruned"), dtype=of.dtype)
        found["loaded"] = logits(loaded)
        tolerance = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 0.2}[of.dtype]
        for name, parts in found.items():
            for z, expected in zip(parts, self.expected.logits, strict=True):
                off = ((z - expected).abs().max() / (1 + expected.abs().max())).item()
                if not off < tolerance:
                    self.wrong.append(
                        f"logits {name}: off by {off:.3g}, found {z.tolist()}, expected {expected.tolist()}"
                    )
        if not torch.equal(gnorm.head_mask_of(loaded), ~self.gone):
            self.wrong.append(f"the head mask loaded is {gnorm.head_mask_of(loaded).int().tolist()}")

    def pruning(self, model: Any) -> None:
        """The literal loop from the heads that are left, some steps of it."""
        of, r = self.draw, random.Random(self.draw.seed)
        name = r.choice(
            [*VARIANTS, *["greedy_gnorm", "inverse_greedy_gnorm"] * 3, *PRUNED_BY_MEANS, "weight_magnitude"]
        )
        row, count, every = CRITERIA[name], r.randint(1, 2), r.choice([0, 1, 2, 3])
        left = int((~of.removed).sum())
        steps = min(math.ceil(left / count), r.randint(0, 3))
        run = None
        with self.refused_where_nothing_flows(of.removed), of.around():
            run = gnorm.prune(
                model, of.batches, method=name, steps=steps, heads_per_step=count, progress=False, rescore_every=every
            )
        if run is None:
            return
        gone, scores, scored = of.removed.clone(), None, of.removed
        for step in range(steps + 1):
            state = plain(of, gone)
            if step == 0 or (every and step % every == 0):
                scores, scored = pruned_by(name, state), gone.clone()
            at = run.table.index[run.table.pruned_heads == int((gone & ~of.removed).sum())][-1]
            self.compare_answers(f"{name}, {step} steps", torch.from_numpy(run.correct[at]), state.logits)
            if step == steps or scores is None:
                return
            values = [
                (float(scores[i, j]) * (-1 if row.highest_first else 1), i, j)
                for i, j in itertools.product(*map(range, gone.shape))
                if not gone[i, j]
            ]
            values.sort()
            chosen = {(i, j) for _, i, j in values[:count]}
            found = set(run.order()[step * count : (step + 1) * count])
            if len(values) > count:
                last, following = values[count - 1][0], values[count][0]
                near = 1e-7 if of.dtype == torch.float64 else 1e-2
                if not following - last > near * max(1, abs(last)):
                    return  # a near-tie, or gradients that are nothing but rounding
                if name.endswith("gnorm") and last < values[-1][0] - (12 if of.dtype == torch.float32 else 30):
                    return
            if found != chosen and name in VARIANTS:
                at = tuple(torch.tensor(sorted(found ^ chosen)).T)
                if noise(of, scored)[0]["gnorm_scores"][at].max() > scores[at].max() - scores[at].min():
                    return  # rounding decides
            if found != chosen:
                self.wrong.append(
                    f"{name} of every {every}: step {step + 1} takes {sorted(found)}, expected {sorted(chosen)}"
                )
                return
            for layer, head in chosen:
                gone[layer, head] = True


def check(seed: int) -> None:
    """``AssertionError`` with what disagrees in draw number ``seed``, and how to repeat it."""
    checked = Check(seed)
    checked.run()
    if checked.wrong:
        repeat = f"  {checked.draw}\nrepeat with: python tests/fuzz.py {seed}"
        raise AssertionError("\n".join([f"draw {seed}:", *checked.wrong, repeat])) from checked.error


def main(seed: int, count: int = 1) -> int:
    failed = 0
    for number in range(seed, seed + count):
        try:
            check(number)
        except AssertionError as error:
            failed += 1
            print(error, flush=True)
            if count == 1 and error.__cause__:
                traceback.print_exception(error.__cause__)
    print(f"{failed} of {count} draws disagree")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
