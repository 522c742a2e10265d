"""The parts of a trial: a copy with random attention, inputs that it runs on, and its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..model.blocks import blocks_of, mask_of, owners_of
from ..model.errors import in_short
from ..model.families import FAMILIES
from ..model.sizes import parameter_of
from ..model.state import copy_of
from .examples import examples_of, inputs_of, longest_text, usual_lengths

# Of a configuration: what changes nothing of how attention is computed.
NO_DIFFERENCE = (
    *("_name_or_path", "architectures", "auto_map", "feed_forward_sizes", "head_mask", "pruned_heads"),
    "transformers_version",
)


T = TypeVar("T")


SHAPES = ((2, 3), (2, 24), (1, 160))  # texts, and tokens of the longest; fewer where the model takes fewer


def key_of(model: Any) -> tuple[Any, ...]:
    """The key of a trial's result: the classes of the model and its modules, functions in the place of their
    forwards, its configuration, and its row."""
    options = {name: value for name, value in sorted(vars(model.config).items()) if name not in NO_DIFFERENCE}
    return type(model), frozenset(map(_written_as, model.modules())), repr(options), FAMILIES[model.config.model_type]


def _written_as(module: nn.Module) -> tuple[Any, ...]:
    """The class of a module, and the function that somebody put in the place of its forward."""
    forward = vars(module).get("forward")
    function = getattr(forward, "func", forward)  # of a partial
    if function is None or str(getattr(function, "__module__", "")).startswith("gnorm."):
        return type(module), None
    return type(module), getattr(function, "__code__", None) or repr(function)


def with_random_attention(model: Any, everywhere: bool = False) -> nn.Module:
    """A copy in fp32, made anew where the model waits for its weights, with random weights in its attention blocks and
    in every other parameter that may be by head; ``everywhere``, in all."""
    if any(parameter.is_meta for parameter in model.parameters()):
        with torch.device("cpu"):
            copy = as_ours(f"{type(model).__name__} cannot be built from its configuration", lambda: _built_anew(model))
    else:
        copy = copy_of(model).float()
    generator, heads = torch.Generator().manual_seed(0), len(mask_of(blocks_of(copy))[0])
    within = {parameter for owner in owners_of(copy) for parameter in owner.parameters()}
    for parameter in copy.parameters():
        drawn_anew = everywhere or parameter in within or heads in parameter.shape
        if parameter.is_floating_point() and parameter.numel() and drawn_anew:
            drawn = torch.randn(parameter.shape, generator=generator, device="cpu").to(parameter.device)
            matrix = parameter.dim() > 1
            drawn = drawn / max(1, parameter[0].numel()) ** 0.5 if matrix else parameter.detach() + 0.3 * drawn
            parameter.data.copy_(drawn)
    return copy.eval()


def _built_anew(model: Any) -> Any:
    config = type(model.config).from_dict(model.config.to_dict())
    config.head_mask = config.feed_forward_sizes = None
    return type(model)(config).float()


def runnable(copy: Any, given: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Inputs that the model runs on: random ones of several lengths, and those that are ``given``.

    Raises ``ValueError`` where there are none, and where the model exchanges its modules in a pass.
    """
    found: list[dict[str, Tensor]] = []
    errors: list[BaseException] = []
    modules, dtype = dict(copy.named_modules()), parameter_of(copy).dtype
    own: list[list[Callable[[], Mapping[str, Tensor]]]] = [[partial(dict, one)] for one in given]
    for alternatives in (*_random(copy), *own):
        for make in alternatives:
            try:
                one = {n: t.to(dtype) if t.is_floating_point() else t for n, t in make().items()}
                with torch.no_grad():
                    finite = all(bool(tensor.isfinite().all()) for tensor in outputs(copy, one).values())
                if not finite:
                    raise ValueError("its results are not finite")
            except Exception as error:  # noqa: BLE001 - whatever a model makes of inputs that are not for it
                errors.append(error)
                continue
            if dict(copy.named_modules()) != modules:
                raise ValueError(
                    f"{type(copy).__name__} puts other modules in the place of its own while it runs, so heads that "
                    "were removed would come back: choose one kind of attention for texts of every length in its "
                    'configuration (of BigBird: attention_type="original_full").'
                )
            found.append(one)
            break
    if not found:
        why = f"{type(errors[0]).__name__}: {in_short(errors[0])}" if errors else "no input"
        raise ValueError(
            f"{type(copy).__name__} does not run on random inputs ({why}), on which its heads are tried before they "
            "are believed: show it texts of its own first, with gnorm.prepare(batches, model)."
        )
    return found


def _random(copy: Any) -> Iterator[list[Callable[[], Mapping[str, Tensor]]]]:
    """For each of ``SHAPES``, what makes random inputs, better ones first: with padding, without, of one text, with
    what a decoder reads."""
    text = getattr(copy, "main_input_name", "") == "input_ids"
    for batch, tokens in SHAPES if text else ((2, 0),):
        length = min(tokens, longest_text(copy)) if text else 0

        def plain(batch: int, length: int = length) -> dict[str, Tensor]:
            inputs = inputs_of(copy, batch, length or usual_lengths(copy)[0])
            return {name: tensor.to(copy.device) for name, tensor in inputs.items()}

        def with_decoder(plain: Callable[[int], dict[str, Tensor]] = plain) -> dict[str, Tensor]:
            inputs = plain(1)
            return {**inputs, "decoder_input_ids": inputs["input_ids"]}

        yield [partial(examples_of, copy, batch, length), partial(plain, batch), partial(plain, 1), with_decoder]


def outputs(copy: Any, inputs: Mapping[str, Tensor]) -> dict[tuple[str, int], Tensor]:
    """The outputs of the attention blocks, pass by pass, and of the model itself."""
    found: dict[tuple[str, int], Tensor] = {}

    def keep(_: nn.Module, __: Any, output: Any, name: str) -> None:
        tensor = _first_tensor(output)
        if tensor is not None:
            found[name, sum(other == name for other, _ in found)] = tensor.detach()

    with ExitStack() as hooks:
        for number, owner in enumerate(owners_of(copy)):
            hooks.callback(owner.register_forward_hook(partial(keep, name=f"block {number}")).remove)
        keep(copy, (), copy(**inputs), "model")
    return found


def _first_tensor(output: Any) -> Tensor | None:
    """The first tensor of fractions in what a module gives."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    inside: Any = output.values() if isinstance(output, Mapping) else output
    parts = inside if isinstance(output, Mapping | list | tuple) else ()
    return next((tensor for one in parts if (tensor := _first_tensor(one)) is not None), None)


def differ(
    found: Mapping[Any, Tensor], expected: Mapping[Any, Tensor], whole: Mapping[Any, Tensor] | None = None
) -> bool:
    """True if results differ by more than rounding, held against what heads do: their distance from the ``whole``."""
    for name in found.keys() & expected.keys():
        one, other = found[name], expected[name]
        if one.shape != other.shape:
            return True
        scale = 0.0 if whole is None else float((whole[name] - other).abs().max())
        if not float((one - other).abs().max()) <= 1e-3 * scale + 1e-5 * float(other.abs().max()):
            return True
    return not found.keys() & expected.keys()


def as_ours(what: str, call: Callable[[], T]) -> T:
    """The result of ``call``; errors of other libraries are raised as a ``ValueError`` that begins with ``what``."""
    try:
        return call()
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever another library raises
        raise ValueError(f"{what} ({type(error).__name__}: {in_short(error)}): correct it first.") from None
