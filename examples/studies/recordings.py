"""For studies on recordings: small detectors, a corpus read once, parts that share no speaker, training, and the error rate."""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from shared import Data, train
from torch import nn
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    AutoModelForAudioClassification,
    FeatureExtractionMixin,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
)

from hf_neuroplastic.audio import AudioCollator, keep_readable, load_corpus, write_corpus
from hf_neuroplastic.audio.augment import Augmentation, augmentation
from hf_neuroplastic.audio.corpora.shares import share as shared_out
from hf_neuroplastic.audio.detector import load_detector, require_window
from hf_neuroplastic.audio.metrics.equal_error_rate import equal_error_rate
from hf_neuroplastic.cli.loading import OPTIONS, options_of

BATCH = 16
FEW = 3  # speakers, at least, of what is parted by speakers
TEST, VALIDATION = 0.3, 0.2
BONA_FIDE = "bona fide"
Names = NDArray[np.str_]
Rows = NDArray[np.int64]


class Recordings(NamedTuple):
    """Inputs of a model and labels, and for each recording its kind ("bona fide", or the attack), its name, and its speaker, or
    its name again where the corpus does not tell."""

    data: Data
    kinds: Names
    names: Names
    speakers: Names


def small_ast(classes: int, width: int = 128) -> tuple[ASTConfig, FeatureExtractionMixin]:
    """32 mel bins, patches of all bins and 32 frames, two layers of 64 with `width` feed-forward neurons each."""
    config = ASTConfig(
        num_mel_bins=32,
        max_length=112,
        patch_size=32,
        frequency_stride=32,
        time_stride=8,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=width,
        initializer_range=0.06,
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
        num_labels=classes,
    )
    return config, ASTFeatureExtractor(num_mel_bins=32, max_length=112, mean=-4.9, std=1.9)


def small_wav2vec2(classes: int) -> tuple[Wav2Vec2Config, FeatureExtractionMixin]:
    """Three convolutions of 16 channels to a frame of 20 ms, two layers of 64."""
    config = Wav2Vec2Config(
        conv_dim=(16, 16, 16),
        conv_kernel=(32, 10, 8),
        conv_stride=(16, 5, 4),
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        classifier_proj_size=64,
        initializer_range=0.06,
        apply_spec_augment=False,
        layerdrop=0.0,
        **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0),
        num_labels=classes,
    )
    return config, Wav2Vec2FeatureExtractor()


SMALL = {"ast": small_ast, "wav2vec2": small_wav2vec2}
Make = Callable[[int], nn.Module]


def maker(name: str) -> tuple[Make, FeatureExtractionMixin]:
    """What makes a new model of so many classes (two, where it is not a small one), and the feature extractor."""
    if name in SMALL:
        small = SMALL[name]
        return lambda classes: AutoModelForAudioClassification.from_config(small(classes)[0]), small(2)[1]
    return lambda _: load_detector(name)[0], load_detector(name)[1]


def column(rows: Dataset, name: str) -> Names:
    return np.asarray(rows[name][:] if name in rows.column_names else ["-"] * len(rows), dtype=str)


def read(
    rows: Dataset,
    wanted: Sequence[str],
    most: int,
    extractor: FeatureExtractionMixin,
    seconds: float,
    augment: Augmentation | None = None,
) -> Recordings:
    """Bona fide speech and the wanted attacks, all where none is named; at most so many recordings of each of the two classes,
    and no copies. augment: what all of them go through."""
    labels, attacks = np.asarray(rows["label"][:]), column(rows, "attack")
    held = sorted(set(attacks[labels == 1]))
    if absent := sorted(set(wanted) - set(held)):
        raise ValueError(f"the corpus has no attacks {', '.join(absent)}; it has {', '.join(held)} ('-': not told)")
    classes = labels == 0, (labels == 1) & np.isin(attacks, list(wanted) or held)
    order = np.random.default_rng(0).permutation(len(labels))
    kept = np.sort(np.concatenate([order[one[order]][:most] for one in classes]))
    rows = keep_readable(rows.select(kept))
    rows = rows.select(np.sort(np.unique(rows["digest"][:], return_index=True)[1]))
    collator = AudioCollator(extractor, max_seconds=seconds, augment=augment)
    name = extractor.model_input_names[0]
    batches = [collator(list(rows.select(part)))[name] for part in torch.arange(len(rows)).split(64)]
    labels, names, speakers = torch.tensor(rows["label"][:]), column(rows, "file_name"), column(rows, "speaker")
    kinds = np.where(labels.numpy() == 0, BONA_FIDE, column(rows, "attack"))
    return Recordings((torch.cat(batches), labels), kinds, names, np.where(speakers == "-", names, speakers))


def few_speakers(kinds: Names, speakers: Names) -> list[str]:
    """The kinds that have too few speakers to be parted by them."""
    return [str(kind) for kind in np.unique(kinds) if len(set(speakers[kinds == kind])) < FEW]


def held_out(recordings: Recordings, rows: Rows, part: float, seed: int) -> NDArray[np.bool_]:
    """Which of the rows to hold out: about this part of each kind, and whole speakers, but for kinds of few.

    Kinds of many speakers come first: who speaks in several is placed once, with all that he says.
    """
    kinds, names, speakers = (each[rows] for each in recordings[1:])
    few = few_speakers(kinds, speakers)
    held, placed = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    for kind in sorted(set(kinds), key=lambda kind: (-len(set(speakers[kinds == kind])), kind)):
        here = (kinds == kind) & ~placed
        if not here.any():
            continue
        units = names if kind in few else speakers
        out = np.asarray(shared_out(list(units[here]), seed, (1 - part, 0.0, part))) == "eval"
        reach = here if kind in few else ~placed & np.isin(units, units[here])
        held[reach] = np.isin(units[reach], units[here][out])
        placed |= reach
    return held


def parts(recordings: Recordings, seed: int) -> dict[str, Rows]:
    """The rows of the parts "train", "validation", and "test", which is the same for all seeds.

    Raises:
        ValueError: a part with fewer than two recordings of a class.
    """
    everything = np.arange(len(recordings.kinds))
    in_test = held_out(recordings, everything, TEST, 0)
    rest = everything[~in_test]
    in_validation = held_out(recordings, rest, VALIDATION / (1 - TEST), seed)
    found = {"train": rest[~in_validation], "validation": rest[in_validation], "test": everything[in_test]}
    for name, rows in found.items():
        bona_fide = int((recordings.kinds[rows] == BONA_FIDE).sum())
        if min(bona_fide, len(rows) - bona_fide) < 2:
            raise ValueError(
                f"the {name} part would hold {bona_fide} bona fide and {len(rows) - bona_fide} spoofed recordings, and needs "
                "two of each: take more data, other --attacks, or a larger --most"
            )
    return found


def taken(data: Data, rows: Rows) -> Data:
    return data[0][rows], data[1][rows]


def learn(model: nn.Module, data: Data, steps: int, seed: int, optimizer: torch.optim.Optimizer) -> float:
    """Whole epochs that come to about so many steps, at a rate that falls to zero; returns milliseconds of a step."""
    batches = -(-len(data[0]) // BATCH)
    epochs = max(1, round(steps / batches))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * batches)
    model.train()
    seconds = train(lambda x: model(x).logits, data, epochs, seed, optimizer, decay.step, BATCH)
    return 1000 * seconds / (epochs * batches)


@torch.no_grad()
def error_rate(model: nn.Module, data: Data) -> float:
    """EER in %; a model that has diverged counts as one that cannot tell."""
    model.eval()
    logits = torch.cat([model(inputs).logits for inputs in data[0].split(128)])
    return 100 * equal_error_rate((logits[:, 0] - logits[:, 1]).nan_to_num(), data[1])[0]


def listed(what: Callable) -> Callable[[str], list]:
    return lambda text: [what(each.strip()) for each in text.split(",") if each.strip()]


def corpus_options(parser: argparse.ArgumentParser) -> None:
    """What every study on recordings takes."""
    parser.add_argument("--data", type=Path, help="folder or table of a corpus, of any layout that the package reads")
    parser.add_argument("--format", default="auto", help="layout; auto recognises it")
    for name in OPTIONS:
        parser.add_argument(f"--{name}", help="as `hf-neuroplastic train` takes it")
    parser.add_argument("--attacks", type=listed(str), default=[], help="by commas; default: all")
    parser.add_argument("--seconds", type=float, default=1.12)
    parser.add_argument("--most", type=int, default=2000, help="recordings of each of the two classes")


def read_corpus(
    given: argparse.Namespace,
    extractor: FeatureExtractionMixin,
    utterances: dict[str, int] | None = None,
    channels: Sequence[str] = ("",),
) -> dict[str, Recordings]:
    """By channel, the recordings of the corpus that the options name; without --data a corpus of so many utterances is made.

    Raises:
        ValueError, OSError: what is wrong with an option or with the corpus.
    """
    require_window(given.seconds, extractor)
    with tempfile.TemporaryDirectory() as scratch:
        place = given.data or write_corpus(Path(scratch), utterances=utterances)
        rows = load_corpus(place, "all", given.format, options=options_of(vars(given)), on_error="raise")
        return {
            channel: read(
                rows, given.attacks, given.most, extractor, given.seconds, augmentation(channel) if channel else None
            )
            for channel in channels
        }
