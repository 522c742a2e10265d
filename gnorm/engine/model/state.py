"""Temporary changes of a model: its modes, its attention implementation, compiled modules. All are undone on leaving.

A model has one set of hooks and modes, so one thread at a time may use it (``in_use``).
"""

from __future__ import annotations

import copy
import threading
import types
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn


class _Turn:
    """The lock of a model: which thread uses it. That thread may take it several times, and gives it back as often."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.thread: int | None = None
        self.depth = 0  # how often that thread has taken it
        self.masks = 0  # how many of these are ``gnorm.masked`` blocks

    def take(self, masks: bool) -> None:
        me = threading.get_ident()
        with self.changed:
            while self.thread not in (None, me):
                if self.masks:  # such a block may last for ever, or wait for this very thread
                    raise ValueError(
                        "the model is under gnorm.masked in another thread: give each thread a model of its own "
                        "(copy.deepcopy)."
                    )
                self.changed.wait()
            self.thread, self.depth, self.masks = me, self.depth + 1, self.masks + masks
            self.changed.notify_all()

    def give_back(self, masks: bool) -> None:
        with self.changed:
            self.depth, self.masks = self.depth - 1, self.masks - masks
            if not self.depth:
                self.thread = None
            self.changed.notify_all()


_TURNS: WeakKeyDictionary[nn.Module, _Turn] = WeakKeyDictionary()


_ONE_TABLE = threading.Lock()


@contextmanager
def in_use(model: nn.Module, masks: bool = False) -> Iterator[None]:
    """Keep other threads away from ``model`` for the length of a ``with`` block: they wait until it ends.

    Models that share their first module share a lock. masks: the block is ``gnorm.masked``; other threads do not wait
    for it and get a ``ValueError``.
    """
    first = next(module for module in model.modules() if next(module.children(), None) is None)
    with _ONE_TABLE:
        turn = _TURNS.setdefault(first, _Turn())
    turn.take(masks)
    try:
        yield
    finally:
        turn.give_back(masks)


@contextmanager
def uncompiled(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run compiled modules among ``modules`` uncompiled for the length of a ``with`` block.

    Compiled code does not call hooks that were registered after compilation. ``torch.compile`` replaces a module's
    forward, ``nn.Module.compile`` its call.
    """
    calls: list[tuple[nn.Module, Any]] = []
    forwards: list[tuple[nn.Module, Any]] = []
    try:
        for module in modules:
            own = vars(module)
            if (call := own.get("_compiled_call_impl")) is not None:
                calls.append((module, call))
                module._compiled_call_impl = None
            if (written := getattr(own.get("forward"), "_torchdynamo_orig_callable", None)) is not None:
                forwards.append((module, own["forward"]))
                original = own["_modules"].get("_orig_mod")
                module.forward = written if original is None else original.__call__
        yield
    finally:
        for module, call in calls:
            module._compiled_call_impl = call
        for module, forward in forwards:
            module.forward = forward


def is_compiled(model: nn.Module) -> bool:
    """True if the model, or a module of it, was compiled by torch.compile or nn.Module.compile."""
    return any(
        vars(module).get("_compiled_call_impl") is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )


def copy_of(model: nn.Module) -> nn.Module:
    """A copy of the model, to be changed.

    ``ValueError`` where it cannot be copied, or where a function in the place of a module's forward would call the
    original.
    """
    with in_use(model), uncompiled(model.modules()):
        for name, module in model.named_modules():
            if isinstance(vars(module).get("forward"), types.FunctionType):
                raise ValueError(  # noqa: TRY004 - of this model, not of a type
                    f"the forward of {name or type(module).__name__} was replaced by a function, which a copy of the "
                    "model would share: write a subclass of the module instead, with a forward of its own."
                )
        try:
            return copy.deepcopy(model)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"{type(model).__name__} cannot be copied ({' '.join(str(error).split())[:200]}): take off what hooks "
                "and parametrizations have put on it."
            ) from None


@contextmanager
def own_modes() -> Iterator[None]:
    """Gradients recorded, in the precision of the tensors, whatever mode is on outside: no_grad, inference_mode or
    autocast."""
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for device in filter(torch.is_autocast_enabled, ("cpu", "cuda", "mps", "xpu")):
            modes.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def evaluating(model: nn.Module, modules: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """Eval mode, no parameter requires a gradient, nothing compiled, and ``own_modes``.

    Feed-forward blocks are not computed in chunks: chunks change no result, but fail on widths that they do not divide.
    Other threads that call gnorm on the model wait; those that call the model itself get a ``ValueError``. Everything
    is undone on leaving. modules: all of the model, where they are known.
    """
    me = threading.get_ident()

    def refuse_others(*_: Any) -> None:
        if threading.get_ident() != me:
            raise ValueError(
                "gnorm works on this model in another thread: wait for it, or give each thread a model of its own "
                "(copy.deepcopy)."
            )

    modules = list(model.modules()) if modules is None else modules
    with in_use(model), uncompiled(modules), own_modes():
        training = [module for module in modules if module.training]
        wanted = [p for module in modules for p in module._parameters.values() if p is not None and p.requires_grad]
        chunks = [(m, m.chunk_size_feed_forward) for m in modules if vars(m).get("chunk_size_feed_forward")]
        hook = model.register_forward_pre_hook(refuse_others)
        try:
            if training:
                model.eval()
            for module, _ in chunks:
                module.chunk_size_feed_forward = 0  # type: ignore[assignment]
            for parameter in wanted:
                parameter.requires_grad_(False)
            yield
        finally:
            hook.remove()
            for parameter in wanted:
                parameter.requires_grad_(True)
            for module, size in chunks:
                module.chunk_size_feed_forward = size
            for module in training:
                module.training = True


@contextmanager
def attention_implementation(model: Any, name: str, modules: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """Compute attention by the implementation ``name`` for the length of a ``with`` block.

    The modules get a configuration of their own meanwhile, since other models may share the one they have.
    """
    if getattr(model.config, "_attn_implementation", None) in (None, name):
        yield
        return
    modules = list(model.modules()) if modules is None else modules
    owners = [(module, config) for module in modules if (config := vars(module).get("config")) is not None]
    replaced = {}
    for _, config in owners:
        replaced[id(config)] = copy.copy(config)
        replaced[id(config)]._attn_implementation = name
    try:
        for module, config in owners:
            module.config = replaced[id(config)]
        yield
    finally:
        for module, config in owners:
            module.config = config


def with_own_config(model: Any) -> Any:
    """Give ``model`` a copy of its configuration that no other model shares, and return it."""
    before, own = model.config, copy.deepcopy(model.config)
    for module in model.modules():
        if (its := vars(module).get("config")) is before:
            module.config = own
        elif getattr(its, "whole", None) is before:  # with fewer heads: engine.model.fewer_heads.CountsLeft
            its.whole = own
    return own


def default_device() -> str:
    """The first available of cuda, mps and cpu."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
