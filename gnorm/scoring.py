"""Criteria: (model, batches) -> (layer, head) scores, and the accuracy read off the same forward passes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .batches import (
    NOT_COUNTED,
    Batch,
    Forward,
    MicroBatch,
    Part,
    Prepared,
    by_batch,
    check_labels,
    forwarding,
    labels_of,
    prepare,
)
from .heads import AttentionBlock, attention_blocks, head_mask_of, layers_of
from .norms import log_norm
from .packing import NOTHING_KEPT, Kept, Rectangle, logits_of, packed, plain_attention
from .products import FasterLinear, product
from .state import attention_implementation, evaluating, in_use

# ------------------------------------------------------------------------------------------ accuracy


class Tally:
    """Which texts were classified correctly, collected micro-batch by micro-batch.

    Raises ``ValueError`` as ``check_labels`` does, when it is made.
    """

    def __init__(self, prepared: Prepared, model: nn.Module) -> None:
        if prepared.batches:
            check_labels(prepared.batches, model, "accuracy")
        self.correct = torch.zeros(prepared.num_texts, dtype=torch.bool)
        self.counted = torch.zeros(prepared.num_texts, dtype=torch.bool)
        self.complete = False  # whether every text has been seen
        self._texts_seen = 0
        self._seen: list[tuple[Tensor, ...]] = []

    def __call__(self, logits: Tensor, micro: MicroBatch) -> None:
        z, labels = logits.detach(), labels_of(micro, logits.shape[-1])
        hits, counted = z.argmax(-1) == labels, labels != NOT_COUNTED
        self._seen.append((micro.index, hits, counted, z.isfinite().all(-1)))  # stays on the device
        self._texts_seen += len(micro.index)
        self.complete = self._texts_seen == len(self.correct)

    def result(self) -> Tensor:
        """(text,) bool, in the order in which the batches were given, texts that are ``NOT_COUNTED`` left out;
        ``ValueError`` for logits that are not finite."""
        for index, hits, counted, finite in self._seen:
            if not bool(finite.all()):
                raise ValueError(_not_finite(f"text {int(index[~finite.cpu()].min())}"))
            self.correct[index], self.counted[index] = hits.cpu(), counted.cpu()
        self._seen.clear()
        return self.correct[self.counted]


def correct_texts(model: nn.Module, batches: Iterable[Batch] | Prepared, kept: Sequence[Kept] | None = None) -> Tensor:
    """(text,) bool: which texts the model classifies as their ``labels`` say; those labelled -100 are left out.

    kept: ``kept_of`` the model and prepared batches, for evaluations one after the other of a model that changes.

    Raises ``ValueError`` as ``check_labels`` and ``prepare`` do, and where logits are not finite.
    """
    with in_use(model):
        prepared = prepare(batches, model, together=True)
        tally = Tally(prepared, model)
        with evaluating(model), FasterLinear(), forwarding(model, prepared) as forward, torch.inference_mode():
            for micro, of_micro in zip(prepared, kept or [NOTHING_KEPT] * len(prepared), strict=True):
                tally(forward(micro, of_micro)[0], micro)
        return tally.result()


def _not_finite(of: str) -> str:
    return f"the logits of {of} are not finite: look for NaN or infinity in the weights, or use float32."


def accuracy(model: nn.Module, batches: Iterable[Batch] | Prepared) -> float:
    """Fraction of texts classified as their ``labels`` say; divided by the number of texts that were counted.

    Raises ``ValueError`` as ``correct_texts`` does.
    """
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

    def log_norm_of_logits(logits: Tensor, batch: int) -> Tensor:
        log_z = log_norm(logits.reshape(1, -1))
        if not bool(log_z < torch.inf):
            raise ValueError(_not_finite(f"batch {batch}"))
        return log_z

    return gradient_norms(model, batches, on_logits, log_norm_of_logits)


def logits_themselves(logits: Tensor, micro: MicroBatch) -> Tensor:
    """What the backward pass of the norm of the logits starts from, times that norm."""
    return logits


def gradient_norms(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    on_logits: Tally | None,
    log_divisor: Callable[[Tensor, int], Tensor],
    cotangent: Callable[[Tensor, MicroBatch], Tensor] = logits_themselves,
) -> Tensor:
    """log prod_{W in Q, K, V} sum_b || G_b / d_b || over the rows of W that are a head's: (layer, head) float64.

    G_b is the gradient of batch b that ``gradients_by_batch`` gives for ``cotangent``; ``log_divisor`` (logits, number
    of the batch) -> (1,) float64 gives log d_b. A batch with d_b = 0 has no gradient. Heads that are gone, and those
    where nothing flows, score -inf. Raises ``ValueError`` where gradients are not finite, and as ``prepare`` and
    ``attention_blocks`` do.
    """
    blocks = attention_blocks(model)
    live = [block for block in blocks if block.kept]
    heads = [len(block.kept) for block in live for _ in "QKV"]
    sums = torch.tensor(-torch.inf, dtype=torch.float64)
    if live:
        prepared = by_batch(prepare(batches, model))
        with evaluating(model), FasterLinear(), forwarding(model, prepared) as forward:
            for b, (gradients, logits) in enumerate(gradients_by_batch(forward, model, prepared, on_logits, cotangent)):
                divisor = log_divisor(logits, b)
                if bool(divisor > -torch.inf):
                    norms = torch.cat([log_norm(g.view(n, -1)) for g, n in zip(gradients, heads, strict=True)])
                    sums = torch.logaddexp(sums.to(norms.device), norms - divisor)
    terms = sums.cpu().expand(sum(heads)).split(heads)
    products = iter([q + k + v for q, k, v in zip(terms[0::3], terms[1::3], terms[2::3], strict=True)])
    scores = table_of(blocks, [next(products) if block.kept else torch.zeros(0) for block in blocks])
    if not bool((scores < torch.inf).all()):
        raise ValueError("the gradients are not finite: look for NaN or infinity in the weights, or use float32.")
    return scores


def table_of(blocks: Sequence[AttentionBlock], values: Sequence[Tensor]) -> Tensor:
    """(layer, head) float64 from the values of the heads that are left in each block; -inf elsewhere."""
    scores = torch.full((len(blocks), blocks[0].num_heads), -torch.inf, dtype=torch.float64)
    for row, block, of_block in zip(scores, blocks, values, strict=True):
        row[list(block.kept)] = of_block.double()
    return scores


def gradients_by_batch(
    forward: Forward,
    model: nn.Module,
    prepared: Prepared,
    on_logits: Tally | None = None,
    cotangent: Callable[[Tensor, MicroBatch], Tensor] = logits_themselves,
) -> Iterator[tuple[Iterator[Tensor], Tensor]]:
    """For each batch Z in turn: ||Z|| d||Z|| / dW of every Q, K, V weight W that has rows, and Z (text, class) itself.

    d||Z|| = sum_i <z_i, dz_i> / ||Z||, so a backward pass from the logits themselves gives ||Z|| times the gradient,
    and texts of several batches may share it: dW is the product of what came into a projection and of the gradient of
    what came out, over the tokens of one batch at a time. Weights are never asked for gradients. The gradients are to be
    taken before the next batch is. ``cotangent`` (logits, micro-batch) -> (text, class) starts the backward pass of
    another objective: what it gives is the sum over a batch's texts of that objective's gradient.
    """
    live = [pair for pair in zip(attention_blocks(model), layers_of(model), strict=True) if pair[0].kept]
    totals: list[Tensor] = []
    logits: list[Tensor] = []
    for micro in prepared:
        z, flows = _flows(forward, micro, live, cotangent)
        if on_logits is not None:
            on_logits(z, micro)
        for part in micro.parts:
            logits.append(z[part.texts])
            gradients = _products(totals, flows, part, micro)
            if part.last:
                yield gradients, torch.cat(logits)
                totals, logits = [], []
            else:
                totals = list(gradients)


def _products(totals: list[Tensor], flows: list[list[Flow]], part: Part, micro: MicroBatch) -> Iterator[Tensor]:
    """The gradient of each weight over the tokens of a part, added to ``totals``; one at a time, while it is in cache."""
    for k, passes in enumerate(flows):
        total = totals[k] if totals else None
        for x, dy in passes:
            x, dy = _of_part(part, micro, x, dy)
            folded = x.dim() == 3
            more = torch.einsum("tho,thi->hoi", dy, x).flatten(0, 1) if folded else product(dy.T, x.T)
            total = more if total is None else total.add_(more)
        yield cast(Tensor, total)


def _of_part(part: Part, micro: MicroBatch, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of ``x`` and ``dy`` that belong to a part: in the last pass there is a row a text."""
    if len(micro.parts) == 1:
        return x, dy
    rows = part.texts if len(dy) == len(micro.index) else part.tokens
    return x[rows], dy[rows]


Flow = tuple[Tensor, Tensor]


def _flows(
    forward: Forward,
    micro: MicroBatch,
    live: list[tuple[AttentionBlock, nn.Module]],
    cotangent: Callable[[Tensor, MicroBatch], Tensor],
) -> tuple[Tensor, list[list[Flow]]]:
    """The logits z (text, class) of a micro-batch, and for every projection and each of its passes what came into it
    (token, in) and the gradient <cotangent, dz> / d of what came out of it (token, out); fp32 at least. A weight that
    was folded into something else met (text, head, in) and (text, head, out). live: blocks, each with the layer that it
    is in; a layer that is never called, such as one of ALBERT's spare groups, gets no gradient.

    fp16 gradients are scaled by a power of two on their way back, lowered until nothing overflows.
    """
    # of each pass: the projection, the tensor whose gradient is asked for, and what makes a flow of that gradient
    passes: list[tuple[int, Tensor, Callable[[Tensor], Flow]]] = []

    def see(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, k: int) -> None:
        x = inputs[0].detach().flatten(0, -2)
        passes.append((k, output.requires_grad_(), lambda g: (x, g.flatten(0, -2))))

    projections = [projection for block, _ in live for projection in (block.query, block.key, block.value)]
    called: set[nn.Module] = set()
    with ExitStack() as hooks:
        for _, layer in live:
            hooks.callback(layer.register_forward_hook(lambda layer, *_: called.add(layer)).remove)
        for k, projection in enumerate(projections):
            hooks.callback(projection.register_forward_hook(partial(see, k=k)).remove)
        z, folded = forward(micro)
    seen = {k for k, _, _ in passes}
    if missing := [k for k in range(len(projections)) if k not in seen and live[k // 3][1] in called]:
        raise ValueError(
            f"the {('query', 'key', 'value')[min(missing) % 3]} projection of a block is never called as a module, so "
            "its gradient cannot be seen: correct the family's row with gnorm.register."
        )
    numbers = {projection: k for k, projection in enumerate(projections)}
    passes += [(numbers[one.projection], one.output, one.flow) for one in folded]
    start = cotangent(z.detach(), micro)
    scale = 2.0**16 if z.dtype == torch.float16 else 1.0
    while passes:
        # what a model computes and does not use has no gradient
        gradients = torch.autograd.grad(
            z, [y for _, y, _ in passes], start * scale, retain_graph=scale > 1, allow_unused=True
        )
        if scale <= 1 or all(bool(g.isfinite().all()) for g in gradients if g is not None):
            break
        scale /= 16
    dtype = torch.promote_types(z.dtype, torch.float32)
    flows: list[list[Flow]] = [[] for _ in projections]
    for (k, _, flow), gradient in zip(passes, gradients if passes else (), strict=True):
        if gradient is not None:
            gradient = gradient.to(dtype)
            x, dy = flow(gradient / scale if scale > 1 else gradient)
            flows[k].append((x.to(dtype), dy.to(dtype)))
    for projection, of_passes in zip(projections, flows, strict=True):
        if not of_passes:
            sides = (projection.in_features, projection.out_features)
            nothing, none = (start.new_zeros(0, side, dtype=dtype) for side in sides)
            of_passes.append((nothing, none))
    return z.detach(), flows


def weight_gradients(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """The gradients that the G-norm is made of, summed over batches: (layer, projection, out, hidden).

    The projections are query, key and value; rows ``head * head_dim`` to ``(head + 1) * head_dim`` belong to a head.
    For looking at; ``gnorm_scores`` takes norms batch by batch. The model must not have had heads removed (masking
    is fine). Raises ``ValueError`` where it has, and as ``prepare`` does.
    """
    if not bool(head_mask_of(model).all()):
        raise ValueError("heads have been removed from this model: take its gradients under gnorm.masked instead.")
    prepared = prepare(batches, model)
    with evaluating(model), FasterLinear(), forwarding(model, prepared) as forward:
        total = sum(torch.stack(list(g)) / z.norm() for g, z in gradients_by_batch(forward, model, prepared))
    return torch.as_tensor(total).unflatten(0, (-1, 3))


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

    Raises ``ValueError`` for an unknown form, where the attention modules do not return their weights, where logits are
    not finite, and as ``prepare`` and ``attention_blocks`` do. In the plain form a score may be NaN.
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

    prepared = prepare(batches, model)
    if prepared.packing is not None:
        return _mean_over_texts(model, prepared, _weights_in_rows, entropy, on_logits)
    eager = attention_implementation(model, "eager") if plain_attention(model) else nullcontext()
    with in_use(model), eager, _asked_for_attentions(model):  # attention of somebody's own is looked at as it is
        return _mean_over_texts(model, prepared, partial(_in_padded_texts, tap=tap), entropy, on_logits)


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

    Raises ``ValueError`` where logits are not finite, and as ``prepare`` and ``attention_blocks`` do.
    """
    head_dim = attention_blocks(model)[0].head_dim

    def energy(context: Tensor, mask: Tensor | None) -> Tensor:  # context: (text, token, head * head_dim)
        return context.double().unflatten(-1, (-1, head_dim)).square().sum(-1).transpose(1, 2)

    def tap(block: AttentionBlock, see: Callable[[Tensor], None]) -> RemovableHandle:
        return block.output.register_forward_pre_hook(lambda _, inputs: see(inputs[0]))

    return _mean_over_texts(model, prepare(batches, model), partial(_in_padded_texts, tap=tap), energy, on_logits)


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


See = Callable[[int, Tensor, Tensor | None], None]  # layer, what is looked at, (text, token) which tokens are real
Done = Callable[[MicroBatch, Tensor], None]  # texts that have passed, and their logits


def _in_padded_texts(
    model: nn.Module,
    prepared: Prepared,
    see: See,
    done: Done,
    tap: Callable[[AttentionBlock, Callable[[Tensor], None]], RemovableHandle],
) -> None:
    """Texts of like length at a time, padded; ``tap(block, look)`` hooks ``look`` up to the tensor to look at."""
    mask: Tensor | None = None
    with ExitStack() as hooks:
        for layer, block in enumerate(attention_blocks(model)):
            if block.kept:
                look = partial(lambda tensor, layer: see(layer, tensor, mask), layer=layer)
                hooks.callback(tap(block, look).remove)
        for micro in (rectangle for row in prepared for rectangle in row.rectangles):
            mask = micro.inputs.get("attention_mask")
            mask = None if mask is None else mask.bool()
            done(micro, logits_of(model, micro.inputs))


def _weights_in_rows(model: nn.Module, prepared: Prepared, see: See, done: Done) -> None:
    """Rows of tokens without padding; the attention weights are looked at."""
    layers = {block.module: layer for layer, block in enumerate(attention_blocks(model))}

    def look(module: nn.Module, weights: Tensor, of: Rectangle) -> None:
        see(layers[module], weights, None if of.bias is None else of.bias[:, 0, 0] == 0)

    assert prepared.packing is not None
    with packed(model, dataclasses.replace(prepared.packing, first_token=False), look) as forward:
        for micro in prepared:
            assert micro.row is not None
            done(micro, forward(micro.inputs, micro.row, NOTHING_KEPT)[0])


def _mean_over_texts(
    model: nn.Module,
    prepared: Prepared,
    go_through: Callable[[nn.Module, Prepared, See, Done], None],
    values: Callable[[Tensor, Tensor | None], Tensor],
    on_logits: Tally | None,
) -> Tensor:
    """Mean over texts of the mean over real tokens of ``values`` (text, head, token), for every (layer, head).

    ``go_through`` shows what is looked at once per pass through a block; passes are summed.
    """
    blocks = attention_blocks(model)
    sums = [torch.zeros(len(block.kept), dtype=torch.float64) for block in blocks]
    finite: list[Tensor] = []  # a flag for each micro-batch, on the device

    def see(layer: int, tensor: Tensor, mask: Tensor | None) -> None:
        per_token = values(tensor, mask).double()  # (text, head, token)
        real = torch.ones_like(per_token[:, 0]) if mask is None else mask.double()  # (text, token)
        means = torch.einsum("bht,bt->bh", per_token, real) / real.sum(1, keepdim=True)
        sums[layer] += means.sum(0).cpu()

    def done(micro: MicroBatch, logits: Tensor) -> None:
        finite.append(logits.isfinite().all())
        if on_logits is not None:
            on_logits(logits, micro)

    with evaluating(model), FasterLinear(), torch.inference_mode():
        go_through(model, prepared, see, done)
    if not bool(torch.stack(finite).all()):
        raise ValueError(_not_finite("a text"))
    return table_of(blocks, [total / prepared.num_texts for total in sums])


@contextmanager
def _asked_for_attentions(model: nn.Module) -> Iterator[None]:
    """Attention modules that hand out their weights only when they are asked to are asked to."""
    with ExitStack() as hooks:
        for block in attention_blocks(model):
            signature = inspect.signature(block.module.forward)
            if "output_attentions" in signature.parameters:

                def ask(
                    _: nn.Module, args: Any, kwargs: Any, signature: inspect.Signature = signature
                ) -> tuple[tuple[Any, ...], dict[str, Any]]:
                    call = signature.bind(*args, **kwargs)
                    call.arguments["output_attentions"] = True
                    return call.args, call.kwargs

                hooks.callback(block.module.register_forward_pre_hook(ask, with_kwargs=True).remove)
        yield
