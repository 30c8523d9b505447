"""What Triton's real compiler makes of the kernels, which needs no device.

The scripts run on their own, without the interpreter, which accepts more than the compiler does.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SUPPORT = Path(__file__).parents[1] / "support"


def lines_of(script: str, cache: Path) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    done = subprocess.run([sys.executable, SUPPORT / script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_optimizers_kernels_compile_and_move_several_elements_at_a_time(tmp_path):
    wide_loads = [int(line.split()[-1]) for line in lines_of("cuda_compilation.py", tmp_path)]
    assert len(wide_loads) == 16
    assert min(wide_loads) > 0


def test_the_kernels_of_the_neurons_compile(tmp_path):
    assert len(lines_of("neuron_compilation.py", tmp_path)) == 6
