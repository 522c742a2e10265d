"""The paper's experiments and what goes beyond: profiles, data, training, runs, results, figures, the pipeline.

Six rooms; each imports the rooms before it in ``ROOMS``, and ``gnorm``. ``from experiments import plots`` finds a
module in whichever room it is.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

ROOMS = ("files", "data", "runs", "analysis", "report", "pipeline")


def __getattr__(name: str) -> ModuleType:
    """The module ``name`` of a room, loaded when it is asked for."""
    for room in ROOMS:
        if (Path(__file__).parent / room / f"{name}.py").is_file():
            return importlib.import_module(f".{room}.{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
