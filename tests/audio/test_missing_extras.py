"""Without the `demo` extra the packages say what to install, and nothing else is needed to read the source tree."""

import subprocess
import sys

import pytest

import hf_neuroplastic.audio
from hf_neuroplastic.audio.metrics import equal_error_rate

IMPORT_WITHOUT = """
import sys, types
package = types.ModuleType("hf_neuroplastic")          # the package without its own imports
package.__path__ = [{root!r}]
sys.modules["hf_neuroplastic"] = package
sys.modules[{absent!r}] = None                         # importing it raises ModuleNotFoundError
try:
    __import__({module!r})
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("module", "absent", "names"),
    [
        ("audio", "datasets", "audio"),
        ("audio", "soundfile", "audio"),
        ("audio.metrics", "evaluate", "audio.metrics"),
        ("audio.metrics", "datasets", "audio"),
    ],
)
def test_message_names_the_extra(module, absent, names):
    module = f"hf_neuroplastic.{module}"
    root = hf_neuroplastic.audio.__path__[0].rsplit("audio", 1)[0]
    code = IMPORT_WITHOUT.format(root=root, module=module, absent=absent)
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == f'hf_neuroplastic.{names} needs {absent}: pip install "hf-neuroplastic[demo]"'


def test_label_order_is_what_the_metric_expects():
    labels = [hf_neuroplastic.audio.LABELS.index(name) for name in ("bonafide", "spoof")]
    assert equal_error_rate([1.0, 0.0], labels)[0] == 0.0
