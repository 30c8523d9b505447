"""The package loads as the `kernels` package loads what lies on the Hub."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import neuroplastic_kernels


@pytest.fixture
def kernels():
    """The PyPI package of that name. Without it, the folder of this repository answers to the name as an empty package."""
    package = pytest.importorskip("kernels")
    if package.__file__ is None:
        pytest.skip("the package `kernels` is not installed")
    return package


@pytest.fixture
def kernel_folder(tmp_path):
    """The package as kernel-builder lays it out: its own operator namespace and its metadata added."""
    folder = tmp_path / "neuroplastic-kernels"
    shutil.copytree(Path(neuroplastic_kernels.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "_ops.py").write_text(
        'def add_op_namespace_prefix(name):\n    return f"_neuroplastic_kernels_built::{name}"\n'
    )
    metadata = {
        "id": "_neuroplastic_kernels_built",
        "name": "neuroplastic-kernels",
        "version": 1,
        "license": "Apache-2.0",
        "backend": {"type": "cpu"},
        "python-depends": [],
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder


def test_loads_as_a_local_kernel_beside_the_installed_package(kernels, kernel_folder):
    loaded = kernels.get_local_kernel(kernel_folder)
    assert loaded is not neuroplastic_kernels
    h = torch.randn(3, 5)
    torch.testing.assert_close(loaded.ffn_activation(h, None), neuroplastic_kernels.ffn_activation(h, None))
