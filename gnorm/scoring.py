"""Criteria: (model, batches) -> (layer, head) scores, and the accuracy read off the same forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.hooks import RemovableHandle

from .heads import AttentionBlock, attention_blocks, head_mask_of
from .norms import log_norm

Batch = Mapping[str, Tensor]

# ------------------------------------------------------------------------------------------ batches


@dataclass(frozen=True)
class MicroBatch:
    """Texts of similar length that go through the model together, cut to the longest of them."""

    inputs: dict[str, Tensor]  # what forward takes, each (text, ...)
    labels: Tensor | None  # (text,)
    index: Tensor  # (text,) position of each text in the batches as they were given
    lengths: Tensor  # (text,) tokens of each text


class Prepared(Sequence[tuple[MicroBatch, ...]]):
    """Batches sorted by length, cut into micro-batches and moved to the device, once; goes wherever batches go."""

    def __init__(self, groups: Sequence[tuple[MicroBatch, ...]]) -> None:
        self.groups = groups
        self.num_texts = sum(len(micro.index) for micro in self.micro_batches())

    def micro_batches(self) -> Iterator[MicroBatch]:
        return (micro for group in self.groups for micro in group)

    def __getitem__(self, i: Any) -> Any:
        return self.groups[i]

    def __len__(self) -> int:
        return len(self.groups)


# A forward pass costs about as much as this many tokens before it computes anything, and grows slower than linear
# below it. Measured on CPU and assumed for GPUs, where launches cost more and width is free.
OVERHEAD_TOKENS = {"cpu": 48, "cuda": 2048, "mps": 1024}
MAX_TOKENS = {"cpu": 512, "cuda": 16384, "mps": 4096}


def prepare(
    batches: Iterable[Batch] | Prepared, model: nn.Module, *, together: bool = False, max_tokens: int | None = None
) -> Prepared:
    """Cut each batch into length-sorted micro-batches on the model's device.

    batches: mappings of tensors (text, ...): what the model's forward takes, and optionally ``labels`` (text,).
    together: texts of all batches may share micro-batches (evaluation, where a batch means nothing).
    max_tokens: the most tokens, padding counted, that one micro-batch holds (a single longer text goes alone); it
    bounds the memory of a forward and backward pass. Default by device.

    Raises ``ValueError`` for no batches, an empty batch, tensors of unequal first dimension, or a text whose
    attention mask is all zero.
    """
    if isinstance(batches, Prepared):
        return batches
    checked = [_checked(batch, i) for i, batch in enumerate(batches)]
    if not checked:
        raise ValueError("there are no batches: give at least one mapping of tensors such as a tokenizer returns.")
    offsets = [0]
    for batch in checked:
        offsets.append(offsets[-1] + _size(batch))
    if together and len(checked) > 1:
        checked, offsets = [_joined(checked, getattr(model.config, "pad_token_id", None) or 0)], [0]
    parameter = next(model.parameters())
    return Prepared(
        [tuple(_micro_batches(b, o, parameter.device, max_tokens)) for b, o in zip(checked, offsets, strict=False)]
    )


def _size(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _checked(batch: Batch, i: int) -> Batch:
    sizes = {name: len(tensor) for name, tensor in batch.items()}
    if not sizes or not min(sizes.values()):
        raise ValueError(f"batch {i} is empty: give every batch at least one text.")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the tensors of batch {i} disagree on how many texts there are: {sizes}.")
    if "attention_mask" in batch:
        blank = (batch["attention_mask"] == 0).all(1).nonzero()
        if len(blank):
            raise ValueError(f"text {int(blank[0])} of batch {i} is all padding: its attention mask holds no 1.")
    return batch


def _joined(batches: Sequence[Batch], pad_token: int) -> Batch:
    """All batches as one, padded to the longest."""
    joined = {}
    for name in batches[0]:
        tensors = [batch[name] for batch in batches]
        if "attention_mask" in batches[0] and tensors[0].dim() == 2:
            width, value = max(t.shape[1] for t in tensors), pad_token if name == "input_ids" else 0
            tensors = [pad(t, (0, width - t.shape[1]), value=value) for t in tensors]
        joined[name] = torch.cat(tensors)
    return joined


def _micro_batches(batch: Batch, offset: int, device: torch.device, max_tokens: int | None) -> Iterator[MicroBatch]:
    size, mask = _size(batch), batch.get("attention_mask")
    if mask is None:
        width, lengths = 1, torch.ones(size, dtype=torch.long)
    else:  # a text ends at its last unmasked token; padding before it, where there is any, stays
        width = mask.shape[1]
        lengths = (mask != 0).mul(torch.arange(1, width + 1, device=mask.device)).amax(1).cpu()
    order = lengths.argsort(descending=True, stable=True)
    for rows in order.split(_cuts(lengths[order].tolist(), device.type, max_tokens)):
        longest = int(lengths[rows].max())
        tensors = {name: t[rows.to(t.device)] for name, t in batch.items()}
        if mask is not None:
            tensors = {n: t[:, :longest] if t.dim() > 1 and t.shape[1] == width else t for n, t in tensors.items()}
        tensors = {name: t.contiguous().to(device) for name, t in tensors.items()}
        labels = tensors.pop("labels", None)
        yield MicroBatch(tensors, labels, rows + offset, lengths[rows])


def _cuts(lengths: list[int], device: str, max_tokens: int | None) -> list[int]:
    """Sizes of the micro-batches into which texts, longest first, are cut at the least cost (dynamic programming)."""
    overhead, most = OVERHEAD_TOKENS.get(device, 48), max_tokens or MAX_TOKENS.get(device, 512)
    best, cut = [0.0] * (len(lengths) + 1), [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        best[end] = math.inf
        for start in range(end - 1, -1, -1):
            tokens = lengths[start] * (end - start)
            if tokens > most and start < end - 1:
                break
            if best[start] + overhead + tokens <= best[end]:
                best[end], cut[end] = best[start] + overhead + tokens, start
    sizes, end = [], len(lengths)
    while end:
        sizes.append(end - cut[end])
        end = cut[end]
    return sizes[::-1]


# ------------------------------------------------------------------------------------------ accuracy


class Tally:
    """Which texts were classified correctly, collected micro-batch by micro-batch."""

    def __init__(self, num_texts: int) -> None:
        self.correct = torch.zeros(num_texts, dtype=torch.bool)
        self.complete = False  # whether every text has been seen
        self._texts_seen = 0
        self._seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, logits: Tensor, micro: MicroBatch) -> None:
        if micro.labels is None:
            raise ValueError(f"text {int(micro.index[0])} has no label: accuracy needs `labels` in every batch.")
        self._seen.append((micro.index, logits.detach().argmax(-1) == micro.labels))  # stays on the device
        self._texts_seen += len(micro.index)
        self.complete = self._texts_seen == len(self.correct)

    def result(self) -> Tensor:
        """(text,) bool, in the order in which the batches were given."""
        for index, hits in self._seen:
            self.correct[index] = hits.cpu()
        self._seen.clear()
        return self.correct


def correct_texts(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """(text,) bool: which texts the model classifies as their ``labels`` say.

    Raises ``ValueError`` where a batch has no labels or as ``prepare`` does.
    """
    prepared = prepare(batches, model, together=True)
    tally = Tally(prepared.num_texts)
    with evaluating(model), torch.inference_mode():
        for micro in prepared.micro_batches():
            tally(model(**micro.inputs).logits, micro)
    return tally.result()


def accuracy(model: nn.Module, batches: Iterable[Batch] | Prepared) -> float:
    """Fraction of texts classified as their ``labels`` say; divided by the number of texts that were counted."""
    return correct_texts(model, batches).double().mean().item()


# ------------------------------------------------------------------------------------------ criteria


class Criterion(Protocol):
    """A row of METHODS names one of these. Scores come as (layer, head) float64, -inf for heads that are gone.

    on_logits is called with the logits and the micro-batch of every forward pass of the unaltered model; criteria that
    make none ignore it. generator drives whatever is random.
    """

    def __call__(
        self,
        model: nn.Module,
        batches: Iterable[Batch] | Prepared,
        *,
        generator: torch.Generator | None = None,
        on_logits: Tally | None = None,
    ) -> Tensor: ...


def gnorm_scores(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    *,
    generator: torch.Generator | None = None,
    on_logits: Tally | None = None,
) -> Tensor:
    """G-norm of every head: (layer, head) float64, natural logarithm, -inf where no gradient flows.

    score(h) = log prod_{W in Q, K, V} sum_b || d||Z_b|| / dW_h ||  over the batches b, where Z_b are the logits
    (text, class) of batch b and W_h the (head_dim, hidden) block of head h (arXiv 2602.04491). Labels are not used.

    One backward gives the gradients of all layers. Each batch goes through in micro-batches: since
    d||Z|| = sum_i <z_i, dz_i> / ||Z||, backward from the logits themselves, summed over micro-batches and divided by
    ||Z|| at the end, is the gradient of the whole batch. Logits of zero have no gradient. In fp16 the backward pass is
    scaled by a power of two, lowered until nothing overflows, and the scale is taken out of the logarithm.

    Raises ``ValueError`` as ``prepare`` and ``attention_blocks`` do, and where logits or gradients are not finite.
    """
    blocks = attention_blocks(model)
    scores = torch.full((len(blocks), blocks[0].num_heads), -torch.inf, dtype=torch.float64)
    live = [i for i, block in enumerate(blocks) if block.kept]
    weights = [w for i in live for w in (blocks[i].query.weight, blocks[i].key.weight, blocks[i].value.weight)]
    heads = [len(blocks[i].kept) for i in live for _ in "QKV"]
    sums = [torch.full((n,), -torch.inf, dtype=torch.float64) for n in heads]
    with evaluating(model, weights):
        for b, group in enumerate(prepare(batches, model) if live else []):
            log_norms, logits = _batch_log_norms(model, group, weights, heads)
            log_z = log_norm(torch.cat(logits).reshape(1, -1)).cpu()
            if not bool(log_z < torch.inf):
                raise ValueError(f"the logits of batch {b} are not finite: look for NaN or infinity in the weights.")
            if on_logits is not None:
                for micro, z in zip(group, logits, strict=True):
                    on_logits(z, micro)
            if log_z > -torch.inf:
                sums = [torch.logaddexp(s, n - log_z) for s, n in zip(sums, log_norms, strict=True)]
    for i, q, k, v in zip(live, sums[0::3], sums[1::3], sums[2::3], strict=True):
        scores[i, list(blocks[i].kept)] = q + k + v
    if not bool((scores < torch.inf).all()):
        raise ValueError("the gradients are not finite: look for NaN or infinity in the weights, or use float32.")
    return scores


def _batch_log_norms(
    model: nn.Module, group: Sequence[MicroBatch], weights: Sequence[Tensor], heads: list[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """log || ||Z|| d||Z|| / dW_h || for each weight, (head,) each, and the logits of each micro-batch, of one batch Z."""
    scale = 2.0**16 if weights[0].dtype == torch.float16 else 1.0
    while True:
        gradients, logits = _batch_gradients(model, group, weights, scale)
        log_norms = [log_norm(g.view(n, -1)).cpu() - math.log(scale) for g, n in zip(gradients, heads, strict=True)]
        if scale <= 1 or all(bool((n < torch.inf).all()) for n in log_norms):
            return log_norms, logits
        scale /= 16


def _batch_gradients(
    model: nn.Module, group: Sequence[MicroBatch], weights: Sequence[Tensor], scale: float
) -> tuple[list[Tensor], list[Tensor]]:
    """``scale`` ||Z|| d||Z|| / dW for each weight, and the logits of each micro-batch, of one batch Z."""
    total: list[Tensor] = []
    logits: list[Tensor] = []
    for micro in group:
        z = model(**micro.inputs).logits  # (text, class)
        gradients = torch.autograd.grad(z, weights, grad_outputs=z.detach() * scale)
        total = [t.add_(g) for t, g in zip(total, gradients, strict=True)] if total else list(gradients)
        logits.append(z.detach())
    return total, logits


def weight_gradients(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """The gradients that the G-norm is made of, summed over batches: (layer, projection, out, hidden).

    The projections are query, key and value; rows ``head * head_dim`` to ``(head + 1) * head_dim`` belong to a head.
    For looking at; ``gnorm_scores`` takes norms batch by batch. The model must not have had heads removed (masking
    is fine). Raises ``ValueError`` where it has, and as ``prepare`` does.
    """
    if not bool(head_mask_of(model).all()):
        raise ValueError("heads have been removed from this model: take its gradients under gnorm.masked instead.")
    weights = [w for b in attention_blocks(model) for w in (b.query.weight, b.key.weight, b.value.weight)]
    total = torch.zeros(len(weights), *weights[0].shape, dtype=weights[0].dtype, device=weights[0].device)
    with evaluating(model, weights):
        for group in prepare(batches, model):
            gradients, logits = _batch_gradients(model, group, weights, 1.0)
            total += torch.stack(gradients) / torch.cat(logits).norm()
    return total.unflatten(0, (-1, 3))


ENTROPY_FORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "exact": lambda a, eps: torch.special.entr(a),  # 0 at a = 0, no eps
    "plain": lambda a, eps: -a * a.log(),  # NaN where an attention weight underflows to 0
    "eps_inside": lambda a, eps: -a * (a + eps).log(),
    "eps_both": lambda a, eps: -(a + eps) * (a + eps).log(),  # what the paper reports
}


def attention_entropy(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    *,
    form: str = "exact",
    eps: float = 1e-7,
    generator: torch.Generator | None = None,
    on_logits: Tally | None = None,
) -> Tensor:
    """Attention entropy of every head: (layer, head) float64, nats, -inf for heads that are gone.

    H(h) = mean over texts of mean over query tokens of sum over key tokens of -a log a, padding left out on both
    axes; passes through a shared block are summed. ``form`` and ``eps`` name the variants in ``ENTROPY_FORMS``.
    Holds the attention weights of one layer and one micro-batch at a time.

    Raises ``ValueError`` for an unknown form, or where the attention modules do not return their weights.
    """
    if form not in ENTROPY_FORMS:
        raise ValueError(f"entropy form {form!r} is not known; choose one of {', '.join(ENTROPY_FORMS)}.")

    def entropy(weights: Tensor, mask: Tensor | None) -> Tensor:
        weights = weights.to(torch.promote_types(weights.dtype, torch.float32))  # (text, head, query, key)
        terms = ENTROPY_FORMS[form](weights, eps)
        return (terms if mask is None else terms.masked_fill(~mask[:, None, None, :], 0)).sum(-1)

    def tap(block: AttentionBlock, see: Callable[[Tensor], None]) -> RemovableHandle:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if not isinstance(output, tuple) or len(output) < 2 or output[1] is None:
                raise ValueError(f"{type(module).__name__} does not return its attention weights; entropy needs them.")
            see(output[1])

        return block.module.register_forward_hook(hook)

    with _eager_attention(model):
        return _mean_over_texts(model, batches, tap, entropy, on_logits)


def activation_energy(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    *,
    generator: torch.Generator | None = None,
    on_logits: Tally | None = None,
) -> Tensor:
    """Mean squared L2 norm of each head's context vectors: (layer, head) float64, -inf for heads that are gone.

    E(h) = mean over texts of mean over tokens of ||c_h||^2, where c_h (head_dim,) is what head h hands to the output
    projection; padding left out, passes through a shared block summed.
    """
    head_dim = attention_blocks(model)[0].head_dim

    def energy(context: Tensor, mask: Tensor | None) -> Tensor:  # context: (text, token, head * head_dim)
        return context.double().unflatten(-1, (-1, head_dim)).square().sum(-1).transpose(1, 2)

    def tap(block: AttentionBlock, see: Callable[[Tensor], None]) -> RemovableHandle:
        return block.output.register_forward_pre_hook(lambda _, inputs: see(inputs[0]))

    return _mean_over_texts(model, batches, tap, energy, on_logits)


def uniform_scores(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    *,
    generator: torch.Generator | None = None,
    on_logits: Tally | None = None,
) -> Tensor:
    """Scores drawn uniformly from [0, 1): (layer, head) float64; whatever order they give is a random order."""
    mask = head_mask_of(model)
    return torch.rand(mask.shape, generator=generator, dtype=torch.float64).masked_fill(~mask, -torch.inf)


def _mean_over_texts(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    tap: Callable[[AttentionBlock, Callable[[Tensor], None]], RemovableHandle],
    values: Callable[[Tensor, Tensor | None], Tensor],
    on_logits: Tally | None,
) -> Tensor:
    """Mean over texts of the mean over real tokens of ``values`` (text, head, token), for every (layer, head).

    ``tap(block, see)`` hooks ``see`` up to the tensor to look at; it is called once per pass through the block, and
    passes are summed.
    """
    blocks = attention_blocks(model)
    prepared = prepare(batches, model)
    sums = [torch.zeros(len(block.kept), dtype=torch.float64) for block in blocks]
    mask: Tensor | None = None

    def see(tensor: Tensor, layer: int) -> None:
        per_token = values(tensor, mask).double()  # (text, head, token)
        real = torch.ones_like(per_token[:, 0]) if mask is None else mask.double()  # (text, token)
        means = torch.einsum("bht,bt->bh", per_token, real) / real.sum(1, keepdim=True)
        sums[layer] += means.sum(0).cpu()

    with evaluating(model), torch.inference_mode(), ExitStack() as hooks:
        for layer, block in enumerate(blocks):
            if block.kept:
                hooks.callback(tap(block, partial(see, layer=layer)).remove)
        for micro in prepared.micro_batches():
            mask = micro.inputs.get("attention_mask")
            mask = None if mask is None else mask.bool()
            logits = model(**micro.inputs).logits
            if on_logits is not None:
                on_logits(logits, micro)
    scores = torch.full((len(blocks), blocks[0].num_heads), -torch.inf, dtype=torch.float64)
    for row, block, total in zip(scores, blocks, sums, strict=True):
        row[list(block.kept)] = total / prepared.num_texts
    return scores


# ------------------------------------------------------------------------------------------ the model, borrowed


@contextmanager
def evaluating(model: nn.Module, weights: Sequence[Tensor] = ()) -> Iterator[None]:
    """Eval mode, and gradients recorded for ``weights`` alone; mode and requires_grad are put back on leaving."""
    training = [module for module in model.modules() if module.training]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        for module in training:
            module.training = True


@contextmanager
def _eager_attention(model: Any) -> Iterator[None]:
    """The attention implementation that returns its weights, for as long as it is needed."""
    before = getattr(model.config, "_attn_implementation", None)
    if before in (None, "eager"):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
