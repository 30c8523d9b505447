"""NeuroPlastic against AdamW, SGD with momentum, and its own options, on recordings: scarce data, wrong labels.

    hf-neuroplastic corpus real voices
    OMP_NUM_THREADS=1 python examples/studies/speech.py --data voices --attacks A04,A05,A06,A07,A08,A09,A10,A12 \\
        --output speech.jsonl --picture speech.png
    python examples/studies/speech.py --quick

The question of optimizers.py, asked of a detector of forged speech. All splits of a corpus are pooled and parted anew: 30 %
of each attack, and of bona fide speech, for the test, the same for all seeds; by seed 20 % for validation, 50 % for training.
Parts share no speaker, where the corpus tells speakers; what has fewer than three of them goes by utterance, which is said. A
model is fine-tuned for about --steps steps of 16, at a rate that falls to zero, on 10, 25 or 100 % of the training part, with 0
or 30 % of the labels drawn at random. The score is the equal error rate (EER) in % on the test; the rate of each method is
chosen for each condition, by mean EER on validation over seeds. Differences are paired, with 95 % intervals (Student's t):
above zero NeuroPlastic is ahead. "all" is the mean of the conditions. The middle --seconds of each recording are read once.
Before this table stand the differences of means over all rates, of the methods that try the same: there nothing is chosen.

--model: a Hub id or folder, such as a pretrained model; "ast" and "wav2vec2" are small ones from random weights.
--start: of these, "speakers" (the default) lets a model first learn who speaks, from the bona fide speech of the training part
(AdamW, 2e-3, four times --steps, once for each seed and all methods), so that it comes to forgeries knowing speech.
Runs that --output holds already are not run again. milliseconds: of a training step. bytes: of optimizer state per parameter.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from shared import (
    CONDITIONS,
    METHODS,
    OURS,
    Data,
    at_equal_rates,
    compare,
    draw,
    interval,
    measured,
    noisy,
    optimizer_of,
    state_bytes,
    tell,
    train,
)
from torch import nn
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    AutoModelForAudioClassification,
    FeatureExtractionMixin,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    set_seed,
)

from hf_neuroplastic.audio import AudioCollator, keep_readable, load_corpus, write_corpus
from hf_neuroplastic.audio.augment import Augmentation
from hf_neuroplastic.audio.corpora.shares import share as shared_out
from hf_neuroplastic.audio.detector import load_detector, require_window
from hf_neuroplastic.audio.metrics.equal_error_rate import equal_error_rate
from hf_neuroplastic.cli.console import quiet
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


def small_ast(classes: int) -> tuple[ASTConfig, FeatureExtractionMixin]:
    """32 mel bins, patches of all bins and 32 frames, two layers of 64."""
    config = ASTConfig(
        num_mel_bins=32,
        max_length=112,
        patch_size=32,
        frequency_stride=32,
        time_stride=8,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
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


def voices(recordings: Recordings, rows: Rows) -> Data:
    """The bona fide speech among the rows whose speakers are told, with the speakers' numbers as labels.

    Raises:
        ValueError: fewer than two speakers.
    """
    told = rows[(recordings.kinds[rows] == BONA_FIDE) & (recordings.speakers[rows] != recordings.names[rows])]
    speakers, numbers = np.unique(recordings.speakers[told], return_inverse=True)
    if len(speakers) < 2:
        raise ValueError(
            f"--start speakers needs two speakers of bona fide speech in the training part, which tells {len(speakers)}; "
            "take --start none"
        )
    return recordings.data[0][told], torch.as_tensor(numbers)


def drawn(data: Data, rows: Rows, share: float, noise: float, seed: int) -> Data:
    """A share of the rows of each class, at least two, with a share of their labels (noise) drawn at random."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.as_tensor(rows)[torch.randperm(len(rows), generator=draw)]
    classes = [order[data[1][order] == label] for label in (0, 1)]
    chosen = torch.cat([each[: max(2, round(share * len(each)))] for each in classes])
    return data[0][chosen], noisy(data[1][chosen], noise, 2, draw)


def learn(model: nn.Module, data: Data, steps: int, seed: int, optimizer: torch.optim.Optimizer) -> float:
    """Whole epochs that come to about so many steps, at a rate that falls to zero; returns milliseconds of a step."""
    batches = -(-len(data[0]) // BATCH)
    epochs = max(1, round(steps / batches))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * batches)
    model.train()
    seconds = train(lambda x: model(x).logits, data, epochs, seed, optimizer, decay.step, BATCH)
    return 1000 * seconds / (epochs * batches)


@torch.no_grad()
def error_rate(model: nn.Module, data: Data, rows: Rows) -> float:
    """EER in %; a model that has diverged counts as one that cannot tell."""
    model.eval()
    logits = torch.cat([model(data[0][part]).logits for part in torch.as_tensor(rows).split(128)])
    return 100 * equal_error_rate((logits[:, 0] - logits[:, 1]).nan_to_num(), data[1][rows])[0]


def runner(make: Make, recordings: Recordings, start: str, steps: int) -> Callable[..., dict]:
    """run(method, share, noise, rate, seed) of a study."""

    @cache
    def begun(seed: int) -> tuple[dict[str, torch.Tensor], dict[str, Rows]]:
        set_seed(seed)
        rows, weights = parts(recordings, seed), make(2).state_dict()
        if start == "speakers":
            data = voices(recordings, rows["train"])
            model = make(int(data[1].max()) + 1)
            learn(model, data, 4 * steps, seed, torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01))
            learnt = model.state_dict()  # all but what the number of classes shapes
            weights = {name: learnt[name] if learnt[name].shape == own.shape else own for name, own in weights.items()}
        return weights, rows

    def run(method: str, share: float, noise: float, rate: float, seed: int) -> dict:
        weights, rows = begun(seed)
        model = make(2)
        model.load_state_dict(weights)
        optimizer = optimizer_of(method, model.parameters(), rate)
        milliseconds = learn(model, drawn(recordings.data, rows["train"], share, noise, seed), steps, seed, optimizer)
        return {
            **{name: error_rate(model, recordings.data, rows[name]) for name in ("validation", "test")},
            **{"milliseconds": milliseconds, "bytes": state_bytes(optimizer)},
        }

    return run


def told(recordings: Recordings, rows: dict[str, Rows]) -> str:
    lines = []
    for name, held in rows.items():
        kinds, counts = np.unique(recordings.kinds[held], return_counts=True)
        lines.append(f"{name}: " + ", ".join(f"{count} {kind}" for kind, count in zip(kinds, counts, strict=True)))
    few = few_speakers(recordings.kinds, recordings.speakers)
    return "\n".join(lines + ([f"fewer than {FEW} speakers, parted by utterance: {', '.join(few)}"] if few else []))


def listed(what: Callable) -> Callable[[str], list]:
    return lambda text: [what(each.strip()) for each in text.split(",") if each.strip()]


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """What can be refused before anything is read."""
    wrong = sorted(set(arguments.methods) - set(METHODS))
    if wrong or not arguments.methods:
        parser.error(f"--methods must be of {', '.join(METHODS)}, by commas; got {', '.join(wrong) or 'none'}")
    if OURS not in arguments.methods:
        parser.error(
            f"--methods must hold {OURS}, to which the others are compared; got {', '.join(arguments.methods)}"
        )
    if arguments.start == "speakers" and arguments.model not in SMALL:
        parser.error(f"--start speakers is for the models {' and '.join(SMALL)}; {arguments.model} has its own weights")
    for name in ("shares", "noises", "rates", "sgd_rates"):
        values = getattr(arguments, name)
        if not values or not all(0 <= value <= 1 for value in values) or (name != "noises" and 0 in values):
            option, least = f"--{name.replace('_', '-')}", "from 0" if name == "noises" else "above 0"
            parser.error(f"{option} must be numbers {least} and up to 1, by commas, such as .25,1; got {values}")
    if not arguments.data and not arguments.quick:
        parser.error("--data must be the folder or table of a corpus; `hf-neuroplastic corpus real FOLDER` makes one")


def parser_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder or table of a corpus, of any layout that the package reads")
    parser.add_argument("--format", default="auto", help="layout; auto recognises it")
    for name in OPTIONS:
        parser.add_argument(f"--{name}", help="as `hf-neuroplastic train` takes it")
    parser.add_argument("--model", default="ast", help="ast, wav2vec2, a Hub id, or a folder")
    parser.add_argument("--start", choices=("speakers", "none"), help="what a small model learns first")
    parser.add_argument("--attacks", type=listed(str), default=[], help="by commas; default: all")
    parser.add_argument("--methods", type=listed(str), default=list(METHODS), help="by commas; default: all")
    parser.add_argument("--shares", type=listed(float), default=sorted({each for each, _ in CONDITIONS}))
    parser.add_argument("--noises", type=listed(float), default=sorted({each for _, each in CONDITIONS}))
    parser.add_argument("--rates", type=listed(float), default=[3e-4, 1e-3, 3e-3], help="lower for pretrained models")
    parser.add_argument("--sgd-rates", type=listed(float), default=[0.01, 0.03, 0.1])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=1.12)
    parser.add_argument("--most", type=int, default=2000, help="recordings of each of the two classes")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument(
        "--quick", action="store_true", help="two seeds, two steps, one rate; makes a corpus without --data"
    )
    parser.add_argument("--output", type=Path, help="a file that gets the lines; they are printed anyhow")
    parser.add_argument("--picture", type=Path, help="a PNG of the differences")
    return parser


def main() -> None:
    parser = parser_of()
    arguments = parser.parse_args()
    check(parser, arguments)
    quiet()
    seeds, steps = (2, 2) if arguments.quick else (arguments.seeds, arguments.steps)
    start = arguments.start or ("speakers" if arguments.model in SMALL else "none")
    with tempfile.TemporaryDirectory() as scratch:
        place = arguments.data or write_corpus(Path(scratch), utterances={"train": 96, "dev": 24, "eval": 24})
        try:
            make, extractor = maker(arguments.model)
            require_window(arguments.seconds, extractor)
            rows = load_corpus(place, "all", arguments.format, options=options_of(vars(arguments)), on_error="raise")
            recordings = read(rows, arguments.attacks, arguments.most, extractor, arguments.seconds)
            first = parts(recordings, arguments.first)
            if start == "speakers":
                voices(recordings, first["train"])
            print(told(recordings, first), flush=True)
        except (ValueError, OSError) as error:
            parser.error(str(error))
    setup = {
        **{"data": str(arguments.data), "model": arguments.model, "steps": steps, "seconds": arguments.seconds},
        **{"start": start, "attacks": ",".join(arguments.attacks), "most": arguments.most},
    }
    trials = [
        {"method": method, "share": share, "noise": noise, "rate": rate, "seed": seed}
        for seed in range(arguments.first, arguments.first + seeds)
        for noise, share, method in product(arguments.noises, arguments.shares, arguments.methods)
        for rate in (arguments.sgd_rates if method == "sgd" else arguments.rates)[: 1 if arguments.quick else None]
    ]
    run = runner(make, recordings, start, steps)
    rows = measured(setup, trials, run, arguments.output)
    found = compare(rows, min)
    if arguments.picture:
        text = "EER in points minus NeuroPlastic's: right of the line NeuroPlastic is ahead"
        draw([row for row in found if "difference" in row], "condition", "method", text, arguments.picture)
    for row in at_equal_rates(rows):
        print(f"mean over all rates and conditions: {row['method']:13} {interval(row)}")
    tell(found)


if __name__ == "__main__":
    main()
