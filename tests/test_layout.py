"""The architecture that the layout promises: rooms in an order, a stand-alone kernel package, a folder that shadows nothing."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import neuroplastic_kernels

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_neuroplastic"
KERNELS = ROOT / "kernels" / "torch-ext" / "neuroplastic_kernels"

# Each place may import from those before it and from itself; places of one tuple know nothing of each other.
ROOMS = [("optimizer", "neurons"), "huggingface", "__init__", "audio", "cli", "__main__"]
FLOORS = [
    "checks",
    "schedules",
    "config",
    "sites",
    "observe",
    "decide",
    "operate",
    "dropin_state",
    "dropin",
    "__init__",
]
OPERATIONS = ("plasticity_step", "ffn_activation", "neuron_reinit", "synaptic_scale")
WORKSHOPS = ["common", OPERATIONS, "dispatch", "__init__"]
HOUSES = [(PACKAGE, ROOMS), (PACKAGE / "neurons", FLOORS), (KERNELS, WORKSHOPS)]


def places(order: list) -> dict[str, int]:
    return {name: level for level, names in enumerate(order) for name in ([names] if isinstance(names, str) else names)}


def imports(path: Path) -> Iterator[Path]:
    """What a file of this repository imports from its packages, as a path without suffix."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = path.parents[node.level - 1]
            target = start.joinpath(*(node.module or "").split("."))
            if node.module != "_ops":  # written by kernel-builder
                yield from (target / alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from absolute(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from absolute(alias.name for alias in node.names)


def absolute(names) -> Iterator[Path]:
    for name in names:
        package, *parts = name.split(".")
        for house in (PACKAGE, KERNELS):
            if package == house.name:
                yield house.joinpath(*(parts or ["__init__"]))


def place(path: Path, house: Path) -> str:
    """The room of `path`: `house` itself, and what its __init__ offers, is the room "__init__"."""
    name = path.relative_to(house).parts[0].removesuffix(".py")
    return name if (house / name).is_dir() or (house / f"{name}.py").is_file() else "__init__"


FILES = [
    pytest.param(house, order, path, id=str(path.relative_to(house.parent)))
    for house, order in HOUSES
    for path in sorted(house.rglob("*.py"))
]


@pytest.mark.parametrize(("house", "order", "path"), FILES)
def test_a_file_imports_only_from_the_places_before_its_own(house, order, path):
    levels = places(order)
    here = place(path, house)
    for target in imports(path):
        if target.is_relative_to(house) and (there := place(target, house)) != here:
            assert levels[there] < levels[here], f"{path} imports {target}"


def test_every_folder_has_its_place():
    for house, order in HOUSES:
        assert {place(path, house) for path in house.rglob("*.py")} == places(order).keys()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_kernels_are_imported_by_what_their_package_offers(path):
    """A kernel package that is loaded from the Hub serves nothing else."""
    reached = [target.relative_to(KERNELS) for target in imports(path) if target.is_relative_to(KERNELS)]
    offered = set(neuroplastic_kernels.__all__)
    assert all(len(target.parts) == 1 and target.name in offered for target in reached), reached


@pytest.mark.parametrize("path", sorted(KERNELS.rglob("*.py")), ids=lambda path: str(path.relative_to(KERNELS)))
def test_the_kernel_package_stands_alone(path):
    tree = ast.walk(ast.parse(path.read_text()))
    outside = {
        name.split(".")[0]
        for node in tree
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
    }
    assert outside <= {"torch", "triton"} | sys.stdlib_module_names


def test_the_kernels_folder_is_no_package():
    """With an __init__.py, `import kernels` from this directory would find this folder instead of the PyPI package of that
    name, which transformers imports."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list(ROOT.glob("*.py"))
