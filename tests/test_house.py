"""The rooms of the package: which module may import which, and what an import loads."""

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import experiments
import gnorm

ROOT = Path(gnorm.__file__).parents[1]
# The rooms of gnorm/, from the lowest up: a module imports those of its own room and of the rooms below. "core" is the
# files at the top and criteria/, "engine" what lies in engine/ itself but forwarding.py, which gradients use.
ROOMS = ("model", "trials", "forward", "texts", "forwarding", "backward", "engine", "core", "storage", "shipping")


def module_of(path):
    names = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


MODULES = {module_of(path): path for name in ("gnorm", "experiments") for path in sorted((ROOT / name).rglob("*.py"))}
TOOL = [name for name in MODULES if name.startswith("gnorm.")]
PAPER = [name for name in MODULES if name.startswith("experiments.")]


def room_of(module):
    """The room of a module; of gnorm also "core", or "public" for the package, whose names are its interface."""
    if module == "gnorm":
        return "public"
    names = module.split(".")
    if names[:2] == ["gnorm", "engine"]:
        return names[2] if len(names) > 2 and names[2] in ROOMS else "engine"
    return names[1] if module.startswith("experiments") or names[1] in ROOMS else "core"


def at_import(tree):
    """The nodes of a module outside its functions: what runs when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_import(node)


def imported_by(module, nodes):
    """The modules of the package that import statements among ``nodes`` name."""
    package = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                if inner in MODULES or base in MODULES:
                    yield inner if inner in MODULES else base


def tree_of(module):
    return ast.parse(MODULES[module].read_text("utf-8"))


@pytest.mark.parametrize("module", TOOL)
def test_imports_of_the_tool_run_downwards_only(module):
    below = ROOMS[: ROOMS.index(room_of(module)) + 1]
    for other in imported_by(module, ast.walk(tree_of(module))):
        assert not other.startswith("experiments"), f"{module} imports {other}"
        assert room_of(other) in below, f"{module} imports {other}"


@pytest.mark.parametrize("module", PAPER)
def test_imports_of_the_experiments_run_downwards_only(module):
    below = experiments.ROOMS[: experiments.ROOMS.index(room_of(module)) + 1]
    for other in imported_by(module, ast.walk(tree_of(module))):
        assert other == "experiments" or other.startswith("gnorm") or room_of(other) in below, f"{module}: {other}"


def test_no_room_of_the_experiments_holds_more_than_ten_modules():
    rooms = Counter(room_of(name) for name in PAPER if name.count(".") == 2)
    assert set(rooms) == set(experiments.ROOMS)
    assert max(rooms.values()) <= 10


def test_a_room_of_the_experiments_is_found_by_the_name_of_its_module():
    found = {name.split(".")[2]: name for name in PAPER if name.count(".") == 2}
    assert len(found) == sum(name.count(".") == 2 for name in PAPER)  # no name twice
    for name, module in found.items():
        assert getattr(experiments, name).__name__ == module
    with pytest.raises(AttributeError, match="has no attribute 'heads'"):
        _ = experiments.heads


def test_no_module_imports_itself_by_way_of_others():
    """Every import counts that runs when a module is imported; the packages themselves are imported before."""
    doors = {"gnorm", "experiments"}
    graph = {module: set(imported_by(module, at_import(tree_of(module)))) - doors for module in MODULES}
    for door in doors:
        del graph[door]
    assert set(graphlib.TopologicalSorter(graph).static_order()) == MODULES.keys() - doors


def test_the_import_reader_sees_every_way_to_import():
    source = "import gnorm.journal, os\nfrom . import release\nfrom .. import heads\n"
    source += "from ..engine.model.state import in_use\n"
    source += "def f():\n    from experiments.analysis.plots import areas\n"
    tree = ast.parse(source)
    below = ["gnorm.journal", "gnorm.shipping.release", "gnorm.heads", "gnorm.engine.model.state"]
    assert list(imported_by("gnorm.shipping.texts", at_import(tree))) == below
    assert list(imported_by("gnorm.shipping", ast.walk(tree))) == [*below, "experiments.analysis.plots"]


def test_the_core_is_thin():
    assert sum(len(path.read_text("utf-8").splitlines()) for path in (ROOT / "gnorm").glob("*.py")) < 2050


@pytest.fixture(scope="module")
def loaded():
    """Which modules are there after each of these lines, in one process: one after the other they load more."""
    lines = ("import gnorm", "gnorm.cost; gnorm.save_pruned", "import gnorm.shipping.command, gnorm.shipping.texts")
    code = "import sys\n" + "".join(f"{line}\nprint(*sys.modules)\n" for line in lines)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return dict(zip(lines, map(set, map(str.split, done.stdout.splitlines())), strict=True))


def test_the_tool_loads_nothing_of_the_experiments(loaded):
    """The package and its command are imported without matplotlib, IPython, datasets and Faker."""
    (*_, every) = loaded.values()
    assert not {"matplotlib", "IPython", "datasets", "faker", "onnx", "experiments"} & every


def test_what_lies_above_the_method_is_loaded_when_it_is_used(loaded):
    above = {"gnorm.storage", "gnorm.shipping"}
    assert not above & loaded["import gnorm"]
    assert above <= loaded["gnorm.cost; gnorm.save_pruned"]
    assert set(gnorm.__all__) <= set(dir(gnorm))
    for name in gnorm.__all__:
        assert getattr(gnorm, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'prunes'"):
        _ = gnorm.prunes
