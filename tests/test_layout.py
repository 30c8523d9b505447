"""The architecture the layout promises: levels, a stand-alone kernel package, a folder that shadows nothing."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_neuroplastic"
KERNELS = ROOT / "kernels" / "torch-ext" / "neuroplastic_kernels"

LEVELS = {
    "checks": -2, "schedules": -1,
    "config": 0, "data": 0, "metrics": 0, "saved_keys": 0,
    "sites": 1,
    "statistics": 2, "frame_mask": 2,
    "criteria": 3, "decisions": 3, "optimizer_state": 3, "observation": 3, "report": 3, "dropin_state": 3,
    "optimizer_options": 2, "optimizer_diagnostics": 3, "optimizer_storage": 3,
    "fused_forward": 4, "surgery": 4, "synaptic_scaling": 4, "resize": 4, "optimizer": 4,
    "neuron_plasticity": 4, "planning": 4, "optimizer_checks": 4, "widths": 5, "growth": 5,
    "dropin": 6,
    "checkpoint": 7,
    "hub": 8,
    "callback": 9,
    "__init__": 10,
    "finetuning": 11,
    "figures": 12,
    "demo": 13,
    "cli": 14,
    "__main__": 15,
}  # fmt: skip


def _level(path: Path) -> int:
    return LEVELS[path.relative_to(PACKAGE).parts[0].removesuffix(".py")]


def _imports(path: Path) -> list[tuple[int, str]]:
    """(relative level, module or name) of every import in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.level, node.module)] if node.module else [(node.level, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_lower_levels(path):
    depth = len(path.relative_to(PACKAGE).parts)
    for level, name in _imports(path):
        if level == depth:  # relative to the package itself
            target = name.split(".")[0]
        elif level == 0 and name.split(".")[0] == "hf_neuroplastic":
            target = [*name.split("."), "__init__"][1]
        else:
            continue
        if depth == 2 and target == path.parent.name:
            continue  # a folder is one level
        assert LEVELS[target] < _level(path), (
            f"{path.name} (level {_level(path)}) imports {target} (level {LEVELS[target]})"
        )


@pytest.mark.parametrize("path", sorted(KERNELS.rglob("*.py")), ids=lambda path: str(path.relative_to(KERNELS)))
def test_the_kernel_package_stands_alone(path):
    outside = {name.split(".")[0] for level, name in _imports(path) if level == 0}
    assert outside <= {"torch", "triton"} | sys.stdlib_module_names


def test_the_kernels_folder_is_no_package():
    """With an __init__.py, `import kernels` from this directory would find this folder instead of the PyPI package of that
    name, which transformers imports."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list(ROOT.glob("*.py"))
