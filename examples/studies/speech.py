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
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from recordings import (
    BONA_FIDE,
    FEW,
    SMALL,
    Make,
    Recordings,
    Rows,
    corpus_options,
    error_rate,
    few_speakers,
    learn,
    listed,
    maker,
    parts,
    read_corpus,
    taken,
)
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
)
from transformers import set_seed

from hf_neuroplastic.cli.console import quiet


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
            **{name: error_rate(model, taken(recordings.data, rows[name])) for name in ("validation", "test")},
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
    corpus_options(parser)
    parser.add_argument("--model", default="ast", help="ast, wav2vec2, a Hub id, or a folder")
    parser.add_argument("--start", choices=("speakers", "none"), help="what a small model learns first")
    parser.add_argument("--methods", type=listed(str), default=list(METHODS), help="by commas; default: all")
    parser.add_argument("--shares", type=listed(float), default=sorted({each for each, _ in CONDITIONS}))
    parser.add_argument("--noises", type=listed(float), default=sorted({each for _, each in CONDITIONS}))
    parser.add_argument("--rates", type=listed(float), default=[3e-4, 1e-3, 3e-3], help="lower for pretrained models")
    parser.add_argument("--sgd-rates", type=listed(float), default=[0.01, 0.03, 0.1])
    parser.add_argument("--steps", type=int, default=150)
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
    try:
        make, extractor = maker(arguments.model)
        recordings = read_corpus(arguments, extractor, {"train": 96, "dev": 24, "eval": 24})[""]
        first, *_ = [parts(recordings, seed) for seed in range(arguments.first, arguments.first + seeds)]
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
