"""The command ``gnorm``: what the functions of this package do, from a terminal.

Exit codes: 0 done; 1 a run failed, its finished steps kept; 2 wrong usage, or files that will not do, before anything
is pruned; 130 and 143 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..engine.model.blocks import FAMILIES
from ..engine.model.state import default_device
from ..heads import head_mask_of
from ..journal import InUseError
from ..methods import METHODS, MORE_METHODS, find_method
from ..metrics import METRICS, find_metric
from ..pruning import checked_int, prune
from ..storage.errors import RunError, code_of, terminable
from ..storage.files import check_room, free_file, free_folder
from ..storage.loading import find_class, load_checked, quiet_library, read_config
from . import RECOMMENDED, load
from .choosing import BUDGETS, until_known
from .costs import cost
from .release import smaller_model
from .texts import A_FILE
from .units import UNITS, prune_units

USAGE = (ValueError, TypeError, OSError, ModuleNotFoundError)  # what functions raise before they change anything

SHADES = "░▒▓█"  # a quarter of the heads each, the lowest scores, which go first, in the lightest

GONE = "·"

FLAGS = {  # for what messages tell a caller in Python
    "pass overwrite=True": "add --overwrite",
    'say labels="names" or labels="numbers"': "add --labels names or --labels numbers",
    "confidence=None": "--confidence none",
    "steps=": "--heads ",
    '(units=("heads",))': "(without --units)",
}


def arguments() -> argparse.ArgumentParser:
    """The command line; ``do`` holds the function of a subcommand."""
    top = argparse.ArgumentParser(prog="gnorm", description="Remove attention heads from transformers.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, do: Callable[[argparse.Namespace], None], says: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=says, description=says)
        added.set_defaults(do=do)
        return added

    pruning = command("prune", do_prune, "Prune a model, choose how many heads go, and save what is left.")
    scoring = command("score", do_score, "Score the heads of a model: a table, and a map of what would go first.")
    for each in (pruning, scoring):
        each.add_argument("checkpoint", metavar="CHECKPOINT", help="folder of a model and its tokenizer")
        each.add_argument("texts", metavar="TEXTS", help=f"{A_FILE} of texts and labels")
        each.add_argument("--method", default=RECOMMENDED, metavar="NAME", help=f"default: {RECOMMENDED}")
        each.add_argument("--labels", choices=("names", "numbers"), help="for labels that can be read both ways")
        each.add_argument("--device", choices=("cpu", "cuda", "mps"), help=f"default: {default_device()}")
    pruning.add_argument("out", metavar="OUT", help="folder for the smaller model, its tokenizer and its card")
    pruning.add_argument("--metric", metavar="NAME", help=f"{', '.join(METRICS)}; by the model's task if none is named")
    pruning.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    pruning.add_argument("--overwrite", action="store_true", help="replace OUT where it holds files")
    pruning.add_argument(
        "--confidence", type=_confidence, default=0.9, metavar="C", help="that --budget is kept on other texts; or none"
    )
    pruning.add_argument(
        "--units",
        type=_names,
        default=("heads",),
        metavar="NAMES",
        help="heads, neurons, or heads,neurons",
    )
    pruning.add_argument(
        "--recover", type=int, default=0, metavar="EPOCHS", help="of training what is left, on half of the texts"
    )
    pruning.add_argument("--all", action="store_true", help="prune to the last head, though the answer is known before")
    how_many = pruning.add_mutually_exclusive_group()
    for name, row in BUDGETS.items():
        how_many.add_argument(f"--{row.flag or name}", dest=f"by_{name}", type=row.kind, metavar="N", help=row.help)

    costing = command("cost", do_cost, "What a model costs beside the intact one: parameters, operations, time.")
    costing.add_argument("folder", metavar="FOLDER", help="folder of a pruned or an intact model")
    command("methods", do_methods, "The methods that score heads.")
    command("families", do_families, "The families of models whose heads are known.")
    return top


def _names(given: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in given.split(","))


def _confidence(given: str) -> float | None:
    try:
        return None if given.lower() == "none" else float(given)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{given!r} is neither a number such as 0.9 nor none") from None


def do_prune(asked: argparse.Namespace) -> None:
    """Load, prune, choose, save; the steps are in a journal beside the folder until it is there."""
    read = (Path(given).expanduser().resolve() for given in (asked.checkpoint, asked.texts))
    out = free_folder(asked.out, asked.overwrite, read)
    journal = free_file(_beside(out), overwrite=True)
    if journal.exists() and not asked.resume:
        raise FileExistsError(f"{journal} holds the steps of an earlier run: add --resume to go on, or delete it.")
    find_method(asked.method)
    _check_units(asked)
    given = {name: n for name in BUDGETS if (n := vars(asked)[f"by_{name}"]) is not None}
    ((by, budget),) = (given or {"metric": 0.01}).items()
    own = load(asked.checkpoint, asked.texts, device=asked.device, labels=asked.labels)
    check_room(out, sum(p.numel() * p.element_size() for p in own.model.parameters()))
    epochs = checked_int("--recover", asked.recover, 0)
    if by == "metric" and budget > 1 and (metric := find_metric(asked.metric, own.model)).fraction:
        raise ValueError(
            f"--budget {budget:g} is more than all of the {metric.name}: it goes from 0 to 1, and {budget:g} points of "
            f"it are {budget / 100:g}."
        )
    if asked.units == ("heads",) and not head_mask_of(own.model).any():
        raise ValueError(f"{asked.checkpoint} has no head left to remove: its neurons can go, with --units neurons.")
    until = until_known(own, budget, by, asked.confidence, asked.metric, epochs)
    steps_before, began = _steps_in(journal), False
    try:
        options = {"metric": asked.metric, "journal": journal, "until": None if asked.all else until}
        texts = own.scoring, own.choosing
        if asked.units == ("heads",):
            run = prune(own.model, *texts, asked.method, steps=int(budget) if by == "heads" else None, **options)
        else:
            run = prune_units(own.model, *texts, asked.units, **options)
        began = True
        smaller = smaller_model(own, run, budget, by, asked.confidence, epochs)
        smaller.save(out, asked.overwrite)
    except USAGE as error:
        steps = _steps_in(journal)
        again_the_same = steps == steps_before and not began and not isinstance(error, OSError)
        if not steps or again_the_same:
            raise
        again = "the same command with --resume" + (", and another budget," if began else "")
        raise RunError(f"{error} Finished steps are kept in {journal}; {again} goes on from there.") from error
    journal.unlink()
    print(smaller.summary())
    if len(run.order()) < int(run.start.sum()) and by != "heads":
        print(f"the run ended at step {run.info['steps']}, where the answer was known; --all goes on to the last head.")
    print(f'saved in {out}, with its tokenizer and a model card; gnorm.load_pruned("{out}") loads it.')


def _check_units(asked: argparse.Namespace) -> None:
    """``ValueError`` for units that are not known, and for what is asked of heads alone."""
    if unknown := [name for name in asked.units if name not in UNITS]:
        raise ValueError(f"--units {unknown[0]} is not known: name {' or '.join(UNITS)}, or both with a comma between.")
    if "neurons" in asked.units and (asked.method != RECOMMENDED or asked.by_heads is not None):
        given = "--heads" if asked.by_heads is not None else f"--method {asked.method}"
        raise ValueError(f"{given} is for heads alone, and neurons are to go too: leave it out, or --units.")


def _beside(out: Path) -> Path:
    """The journal of a run that ends in the folder ``out``: it lies beside the folder, never in it."""
    whole = out if out.name not in ("", "..") else out.resolve()
    return whole.with_name(f"{whole.name}.journal.jsonl")


def _steps_in(journal: Path) -> int:
    """The number of lines of a journal; 0 where there is none."""
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def do_score(asked: argparse.Namespace) -> None:
    """Print the scores (layer, head), and a map of them."""
    method = find_method(asked.method)
    own = load(asked.checkpoint, asked.texts, device=asked.device, labels=asked.labels)
    scores = method.scores(own.model, own.scoring, torch.Generator().manual_seed(0))
    left = head_mask_of(own.model)
    order = "highest" if method.highest_first else "lowest"
    print(f"{method.title}: scores by layer and head, the {order} would go first")
    for layer, (row, bits) in enumerate(zip(scores.tolist(), left.tolist(), strict=True)):
        cells = (f"{score:>11.4g}" if bit else f"{GONE:>11}" for score, bit in zip(row, bits, strict=True))
        print(f"layer {layer:>3}", *cells)
    print(f"\n{SHADES[0]} a quarter that would go first, {SHADES[-1]} a quarter that would go last, {GONE} gone")
    ranks = torch.where(left, -scores if method.highest_first else scores, torch.inf).flatten().argsort().argsort()
    for layer, (row, bits) in enumerate(zip(ranks.view_as(scores).tolist(), left.tolist(), strict=True)):
        shades = (SHADES[len(SHADES) * rank // int(left.sum())] if bit else GONE for rank, bit in zip(row, bits))
        print(f"layer {layer:>3}", " ".join(2 * shade for shade in shades))


def do_cost(asked: argparse.Namespace) -> None:
    """Print the table of ``cost``."""
    kind = find_class(asked.folder, read_config(asked.folder), None, {})
    print(cost(load_checked(asked.folder, kind)[0]).round(3).to_string(index=False))


def do_methods(_: argparse.Namespace) -> None:
    """Print a line for each method: name, title, how often it scores, whether it is recommended."""
    for name, method in (METHODS | MORE_METHODS).items():
        often = f"every {method.rescore_every} steps" if method.rescore_every > 1 else "every step"
        marks = [often if method.rescore_every else "once"] + ["recommended"] * (name == RECOMMENDED)
        print(f"{name:32} {method.title} ({', '.join(marks)})")


def do_families(_: argparse.Namespace) -> None:
    """Print the model types."""
    print("\n".join(FAMILIES))


def main(given: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code, after one sentence on standard error where it is not 0."""
    os.environ.setdefault("TQDM_MININTERVAL", "0.5" if sys.stderr.isatty() else "15")
    asked = arguments().parse_args(given)
    try:
        with terminable(), quiet_library():
            asked.do(asked)
    except (RunError, InUseError) as error:
        return _said(error, 1)
    except USAGE as error:
        return _said(error, 2)
    except KeyboardInterrupt as stopped:
        goes_on = "; the same command with --resume goes on from here" if asked.do is do_prune else ""
        return _said(f"stopped{goes_on}.", code_of(stopped))
    return 0


def _said(error: object, code: int) -> int:
    message = str(error)
    for python, flag in FLAGS.items():
        message = message.replace(python, flag)
    print(f"gnorm: {message}", file=sys.stderr)
    return code
