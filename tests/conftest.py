"""Tests run on one thread each (pytest-xdist runs them side by side) and never ask the network for anything."""

import importlib.util
import os
import tempfile

os.environ["HF_HOME"] = tempfile.mkdtemp(
    prefix="hf-home-"
)  # what is remembered of audio files stays out of the user's folder
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # of the processes that tests start; threads that share a core wait for each other
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
os.environ.setdefault("WANDB_DISABLED", "true")
os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # a cached graph may call an operator as it once was

import pytest
import torch
from interpreter import patch_the_language_once

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # runs the real kernels, on the CPU
patch_the_language_once()
torch.set_num_threads(1)

# What the command line and the corpora need comes with the `demo` extra; the kernels can be tested where it is missing.
EXTRAS = ("datasets", "evaluate", "matplotlib", "soundfile", "typer")
MISSING = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
collect_ignore = ["audio", "cli", "test_docs.py", "test_examples.py"] if MISSING else []


def pytest_report_header():
    return f"without {', '.join(MISSING)}, not collected: {', '.join(collect_ignore)}" if MISSING else None


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
