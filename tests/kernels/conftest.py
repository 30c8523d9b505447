"""Where the fused forms are tested: in Triton's interpreter on the CPU, and on a CUDA device (`-m gpu`)."""

import os
from typing import NamedTuple

import pytest
from steps import needs_compiler

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = [
    pytest.param("cpu", id="interpreter", marks=pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


FORMS = [pytest.param(("cpu", "reference"), id="reference")]
FORMS += [pytest.param((param.values[0], "fused"), id=f"fused-{param.id}", marks=param.marks) for param in DEVICES]


@pytest.fixture(params=FORMS)
def where(request):
    """A device, and the name of a form that runs there."""
    return request.param


class Fast(NamedTuple):
    device: str
    form: str


FAST = [pytest.param(Fast("cpu", "native"), id="native", marks=needs_compiler)]
FAST += [pytest.param(Fast(param.values[0], "fused"), id=f"fused-{param.id}", marks=param.marks) for param in DEVICES]


@pytest.fixture(params=FAST)
def fast(request):
    """A device, and a form of the step other than the reference that runs there."""
    return request.param
