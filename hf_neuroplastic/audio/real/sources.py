"""Where the human speech comes from: voices, the Debian packages that hold them, their texts and licences."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

NO_SPEECH = re.compile(r"silence|beep|tone|monkeys|weasels|ring|confbridge-(join|leave)")
TEXTS = "tuxpaint-stamps-default"  # a sentence in up to a hundred languages beside every stamp


@dataclass(frozen=True)
class Voice:
    """A human voice. No person speaks in two splits.

    limit: most utterances that are taken. package, files: Debian package, and the pattern of the recordings in it; a file in a
    zip archive stands behind "!". narrow: a telephone band of 4 kHz.
    """

    name: str
    split: str
    language: str
    limit: int
    package: str
    files: str
    holder: str
    licence: str
    narrow: bool = False


def _asterisk(name: str, split: str, language: str, limit: int, folder: str, holder: str, licence: str) -> Voice:
    package = f"asterisk-core-sounds-{language}-g722"
    return Voice(name, split, language, limit, package, f"{folder}/**/*.g722", holder, licence)


def _tuxpaint(split: str, language: str, limit: int) -> Voice:
    holder = "Bill Kendrick and the Tux Paint project"
    return Voice(f"tux_{language}", split, language, limit, TEXTS, f"stamps/**/*_desc_{language}.ogg", holder, "GPL-2")


def _hedgewars(split: str, name: str, limit: int) -> Voice:
    files, holder = f"voices/{name}/*.ogg", "Andrey Korotaev and the Hedgewars project"
    return Voice(f"hedgewars_{name.lower()}", split, "en", limit, "hedgewars-data", files, holder, "GFDL-1.3")


def _ktuberling(language: str, folder: str, limit: int) -> Voice:
    files, holder = f"sounds/{folder}/*.*", "Albert Astals Cid and the KDE project"
    return Voice(f"ktuberling_{language}", "eval", language, limit, "ktuberling-data", files, holder, "GPL-2+")


VOICES = (
    _asterisk("allison_en", "train", "en", 140, "en_US_f_Allison", "Allison Smith", "CC-BY-SA-3.0"),
    _asterisk("allison_es", "train", "es", 90, "es_MX_f_Allison", "Allison Smith", "CC-BY-SA-3.0"),
    _asterisk("june_fr", "train", "fr", 100, "fr_CA_f_June", "June Wallack", "CC-BY-SA-3.0"),
    _tuxpaint("train", "fr", 90),
    _tuxpaint("train", "ru", 90),
    _tuxpaint("train", "be", 80),
    _tuxpaint("train", "es", 80),
    Voice(
        "menardi_it",
        "train",
        "it",
        60,
        "asterisk-prompt-it-menardi-wav",
        "it_IT_f_Menardi/**/*.wav",
        "Marco Menardi and Paola Dal Zot",
        "CC-BY-SA-3.0",
        narrow=True,
    ),
    _asterisk("maxim_ru", "dev", "ru", 60, "ru_RU_f_IvrvoiceRU", "Maxim Topal", "CC-BY-3.0"),
    _tuxpaint("dev", "bg", 60),
    _tuxpaint("dev", "ca", 60),
    Voice(
        "jimenez_es",
        "dev",
        "es",
        40,
        "asterisk-prompt-es-co",
        "sounds/es/**/*.gsm",
        "Avatar Ltda., July E. Jiménez",
        "GPL-2",
        narrow=True,
    ),
    _hedgewars("dev", "Default", 27),
    _hedgewars("dev", "Mobster", 33),
    _hedgewars("dev", "Pirate", 33),
    _hedgewars("dev", "Surfer", 33),
    _asterisk("carlo_it", "eval", "it", 100, "it_IT_m_Carlo", "Carlo Flora", "CC-BY-SA-3.0"),
    _tuxpaint("eval", "ro", 80),
    _tuxpaint("eval", "el", 80),
    _tuxpaint("eval", "da", 60),
    Voice(
        "armelle_fr",
        "eval",
        "fr",
        60,
        "asterisk-prompt-fr-armelle",
        "sounds/fr/**/*.gsm",
        "Armelle Desjardins, Michel Gutierrez",
        "BSD-2-Clause with a clause on names",
        narrow=True,
    ),
    _hedgewars("eval", "British", 37),
    _hedgewars("eval", "HillBilly", 33),
    Voice(
        "warzone_en",
        "eval",
        "en",
        70,
        "warzone2100-data",
        "warzone2100/base.wz!audio/(memressp|extra|vtoltalk|trnsppil)/.*ogg",
        "Eidos Interactive and the Warzone 2100 project",
        "GPL-2+",
    ),
    _ktuberling("lt", "lt", 60),
    _ktuberling("nb", "nn", 50),
    Voice(
        "librivox_en",
        "eval",
        "en",
        5,
        "pocketsphinx-testdata",
        "librivox/*.wav",
        "a LibriVox volunteer, Carnegie Mellon University",
        "BSD-2-Clause",
    ),
)


@dataclass(frozen=True)
class Recording:
    """A file of a voice. text: what is said, "" where the package does not tell."""

    path: Path
    text: str


def packages_of(voices: Sequence[Voice]) -> list[str]:
    return sorted({voice.package for voice in voices} | {TEXTS})


def fetch(package: str, folder: Path) -> None:
    """Unpacks a Debian package to folder/package, unless that is there; folder/package_*.deb is taken where it lies there, and
    downloaded by apt-get, as any user may, where it does not.

    Raises:
        FileNotFoundError: no apt-get or dpkg-deb. OSError: they fail, in their own words.
    """
    if (folder / package).is_dir():
        return
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise FileNotFoundError(
                f"{package} comes as a Debian package and {program} is not here; run the command on Debian or Ubuntu, "
                f"or in a container of one"
            )
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob(f"{package}_*.deb")):
        _run(["apt-get", "download", "-qq", package], folder, "; refresh the list of packages with: apt-get update")
    archive = sorted(folder.glob(f"{package}_*.deb"))[-1]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as scratch:
        draft = Path(scratch) / package
        _run(["dpkg-deb", "-x", str(archive), str(draft)], folder, f"; delete {archive} to fetch it again")
        for zipped in draft.rglob("*.wz"):
            with zipfile.ZipFile(zipped) as content:
                names = [name for name in content.namelist() if name.endswith(".ogg")]
                content.extractall(zipped.with_suffix(".unpacked"), names)
        draft.rename(folder / package)


def _run(command: Sequence[str], folder: Path, hint: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise OSError(f"{' '.join(command)}: {told[-1]}{hint}")


def version_of(package: str, folder: Path) -> str:
    """The version of a package that was fetched; "unknown" where its archive is gone."""
    archives = sorted(folder.glob(f"{package}_*.deb"))
    return archives[-1].name.split("_")[1].replace("%3a", ":") if archives else "unknown"


def recordings_of(voice: Voice, folder: Path) -> list[Recording]:
    """The recordings of a voice, sorted by path, without signals and silences.

    Raises:
        FileNotFoundError: the package holds none: another release of Debian may have moved them.
    """
    root, (pattern, _, inside) = folder / voice.package, voice.files.partition("!")
    paths = sorted(root.rglob(pattern))
    if inside:
        unpacked = [path.with_suffix(".unpacked") for path in paths]
        wanted = re.compile(inside)
        paths = sorted(
            path for base in unpacked for path in base.rglob("*") if wanted.fullmatch(path.relative_to(base).as_posix())
        )
    found = [path for path in paths if path.is_file() and not NO_SPEECH.search(f"{path.parent.name}/{path.stem}")]
    if not found:
        raise FileNotFoundError(f"{root} holds no {voice.files}: {voice.package} has moved the voice {voice.name}")
    return [Recording(path, _text_of(path, voice.language)) for path in found]


def _text_of(path: Path, language: str) -> str:
    beside = path.with_name(path.name.replace(f"_desc_{language}.ogg", ".txt"))
    return _sentences(beside).get(language, "") if beside != path and beside.is_file() else ""


def _sentences(path: Path) -> dict[str, str]:
    """The sentence of a stamp by language; the first line is English."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    told = (line.partition(".utf8=") for line in lines[1:])
    return {"en": lines[0].strip() if lines else "", **{name: text.strip() for name, mark, text in told if mark}}


def texts_of(folder: Path, language: str, fits: Callable[[str], bool]) -> list[str]:
    """Sentences of a language, sorted by file."""
    texts = (_sentences(path).get(language, "") for path in sorted((folder / TEXTS).rglob("stamps/**/*.txt")))
    return [text for text in texts if fits(text)]
