"""The rooms of the package: which module may import which, and what an import loads."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import gnorm

PACKAGE = Path(gnorm.__file__).parent
WINGS = {"engine", "storage", "experiments", "shipping"}
ENGINE_USES = {"gnorm.heads", "gnorm.norms"}  # of the core
# The wings that the modules of each room may import; "core" is the files at the top of gnorm/.
MAY_IMPORT = {
    "core": {"core", "engine"},
    "engine": {"engine", "core"},
    "storage": {"storage", "core", "engine"},
    "shipping": {"shipping", "storage", "core", "engine"},
    "experiments": {"experiments", "storage", "core", "engine", "public"},
}


def module_of(path):
    names = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module):
    """The wing of a module, "core", or "public" for the package itself, whose names are its public interface."""
    if module == "gnorm":
        return "public"
    wing = module.split(".")[1]
    return wing if wing in WINGS else "core"


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


@pytest.mark.parametrize("module", [name for name in MODULES if name != "gnorm"])
def test_imports_run_downwards_only(module):
    room = room_of(module)
    for other in imported_by(module, ast.walk(tree_of(module))):
        assert room_of(other) in MAY_IMPORT[room], f"{module} imports {other}"
        if (room, room_of(other)) == ("engine", "core"):
            assert other in ENGINE_USES, f"{module} imports {other}"


def test_the_public_interface_imports_no_experiments():
    rooms = {room_of(other) for other in imported_by("gnorm", ast.walk(tree_of("gnorm")))}
    assert rooms == {"core", "engine", "storage", "shipping"}


def test_no_module_imports_itself_by_way_of_others():
    """Every import counts that runs when a module is imported; ``gnorm`` itself is imported before all others."""
    graph = {module: set(imported_by(module, at_import(tree_of(module)))) - {"gnorm"} for module in MODULES}
    del graph["gnorm"]
    assert set(graphlib.TopologicalSorter(graph).static_order()) == MODULES.keys() - {"gnorm"}


def test_the_import_reader_sees_every_way_to_import():
    source = "import gnorm.norms, os\nfrom . import release\nfrom .. import heads\nfrom ..engine.state import in_use\n"
    source += "def f():\n    from ..experiments.plots import areas\n"
    tree = ast.parse(source)
    below = ["gnorm.norms", "gnorm.shipping.release", "gnorm.heads", "gnorm.engine.state"]
    assert list(imported_by("gnorm.shipping.texts", at_import(tree))) == below
    assert list(imported_by("gnorm.shipping", ast.walk(tree))) == [*below, "gnorm.experiments.plots"]


def test_the_core_is_thin():
    assert sum(len(path.read_text("utf-8").splitlines()) for path in PACKAGE.glob("*.py")) < 1900


def test_the_tool_loads_nothing_of_the_experiments():
    """The package is imported without matplotlib, IPython, datasets and Faker."""
    heavy = {"matplotlib", "IPython", "datasets", "faker", "gnorm.experiments"}
    code = f"import sys, gnorm, gnorm.shipping; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
