"""Run the notebooks in order and regenerate every table and figure of a profile.

python run_all.py [--profile auto|paper|local|study|smoke] [--only NAME,...] [--models NAME,...] [--device ...]
                  [--fresh] [--list] [--report] [--published DIR] [--strict] [--jobs N | --dask ADDRESS]

Exit codes: 0 done; 1 a notebook failed; 2 wrong usage, missing assets, or with --strict assets not as accurate as
published; 130 and 143 interrupted, to be taken up by the same command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

try:
    from experiments.data.profiles import profile_names
    from experiments.files.errors import RunError, UsageError
    from experiments.files.paths import shown
    from experiments.pipeline import runner
    from gnorm.storage.errors import code_of, terminable
except ModuleNotFoundError as missing:
    print(
        f"run_all.py needs the package {missing.name}: run `make setup`, then .venv/bin/python run_all.py",
        file=sys.stderr,
    )
    sys.exit(2)

# The order is the order of dependence: what reads trajectories comes after what makes them.
NOTEBOOKS = (
    "data_processing",
    "greedy_pruning",
    "inverse_greedy_gnorm_pruning",
    "ae_pruning",
    "ae_inverse_pruning",
    "random_pruning",
    "greedyprune_all_models",
    "gradient_test",
    "four_models",
    "custom_bert_pruning",
    "solve_underflow",
    "show_pruning_result",
    "pruning_summary",
)
# Beyond the paper: run by name, `--only NAME`, or where the profile names them, as `study` does.
OPTIONAL = (
    "criteria_comparison",
    "prune_your_model",
    "recovery",
    "decoder_pruning",
    "published_claims",
    "claims",
    "pretrained",
    "ablations",
    "stability",
    "rescaling",
    "sharpness",
    "thresholds",
    "cost_quality",
)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run_all.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--profile", default="auto", help=f"auto, {', '.join(profile_names())} (default: auto)")
    parser.add_argument("--only", metavar="NAME,...", help="these notebooks alone")
    parser.add_argument("--models", metavar="NAME,...", help="these models of the profile alone")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: the first accelerator, else the CPU")
    parser.add_argument("--fresh", action="store_true", help="run finished work again (trained models are kept)")
    parser.add_argument("--list", action="store_true", help="name the notebooks and say which are done, and stop")
    parser.add_argument(
        "--report", action="store_true", help="write the report of what is there, run nothing, and stop"
    )
    parser.add_argument("--published", metavar="DIR", help="compare with the authors' result files in this folder")
    parser.add_argument(
        "--strict", action="store_true", help="stop where an intact model is not as accurate as was published"
    )
    side_by_side = parser.add_mutually_exclusive_group()
    side_by_side.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="N workers make trajectories, N notebooks run at a time (default: what this machine has room for)",
    )
    side_by_side.add_argument(
        "--dask", metavar="ADDRESS", help="make trajectories on the workers of this Dask scheduler"
    )
    return parser.parse_args(arguments)


def names_in(flag: str, text: str) -> list[str]:
    """The names behind a flag, each once; raises ``UsageError`` for an empty name and for one given twice."""
    names = text.split(",")
    if "" in names:
        raise UsageError(f"{flag} {text!r} holds an empty name: give names with commas in between, and no spaces.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{flag} names {twice[0]!r} twice; name it once.")
    return names


def run(asked: argparse.Namespace) -> None:
    """Do what the command line asks for; raises ``UsageError`` and ``RunError``."""
    plan = runner.make_plan(
        order=NOTEBOOKS + OPTIONAL,
        notebooks=None if asked.only is None else names_in("--only", asked.only),
        default=NOTEBOOKS,
        profile=asked.profile,
        models=None if asked.models is None else names_in("--models", asked.models),
        device=asked.device,
        published=asked.published,
        fresh=asked.fresh,
        strict=asked.strict,
        jobs=asked.jobs,
        dask=asked.dask,
    )
    if asked.list:
        for name, finished in runner.done(plan).items():
            print(f"{name:32} {'done' if finished else 'to do'}")
    elif asked.report:
        print(f"written: {shown(runner.write_report_again(plan))}")
    else:
        runner.run(plan)


def main(arguments: list[str] | None = None) -> int:
    """Run the notebooks; returns 0, or ends the process with the exit code and a message."""
    try:
        run(parse(arguments))
    except UsageError as error:
        print(f"run_all.py: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    return 0


if __name__ == "__main__":
    try:
        with terminable():
            sys.exit(main())
    except KeyboardInterrupt as stopped:
        print("\nstopped; the same command goes on from here.", file=sys.stderr)
        sys.exit(code_of(stopped))
