"""Pruned while training, then compacted, against trained narrow from the start, and against random pruning.

    OMP_NUM_THREADS=1 python examples/studies/compression.py --output compression.jsonl --picture compression.png
    python examples/studies/compression.py --shares .25 --first 8 --seeds 16      # one share, seeds 8 to 23
    python examples/studies/compression.py --data voices      # a small AST on recordings, from `hf-neuroplastic corpus real`
    python examples/studies/compression.py --quick

A perceptron of two hidden layers of 64 (ReLU) learns scikit-learn's digits (1077 of them) for 30 epochs by AdamW at a constant
rate. `pruned`: `DropInConfig.compress` leaves 75, 50 or 25 % of the hidden neurons, the weakest go between 10 and 70 % of
training, and `compact` takes their slots out. `random`: the same, but who goes is drawn. `narrow`: as narrow from the start.
`wide`: all 64 until the end. Each has its rate chosen by mean validation accuracy over the seeds. A line of JSON for each run,
then test accuracy in %, and paired differences over the seeds with 95 % intervals (Student's t).

--data: a small AST (two layers of 128 feed-forward neurons) from random weights learns a corpus, parted as speech.py does, for
--epochs (10) in batches of 16; the score is 100 less the equal error rate in %.
Runs that --output holds already are not run again.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from recordings import BATCH, Recordings, corpus_options, error_rate, parts, read_corpus, small_ast, taken
from shared import Data, accuracy, best_rate, draw, measured, paired, perceptron, split, tell_chance, train
from torch import Tensor, nn
from transformers import AutoModelForAudioClassification, set_seed

from hf_neuroplastic import DropIn, DropInConfig, compact
from hf_neuroplastic.cli.console import quiet

SHARES = (0.75, 0.5, 0.25)
CRITERIA = {"pruned": "contribution", "random": "random"}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
PAIRS = [("pruned", "narrow"), ("pruned", "random"), ("pruned", "wide")]


class Problem(NamedTuple):
    """What is learnt. make(width, seed) a model, split(seed) training, validation and test data, score(model, data) in %."""

    width: int
    make: Callable[[int, int], nn.Module]
    logits: Callable[[nn.Module, Tensor], Tensor]
    split: Callable[[int], Sequence[Data]]
    score: Callable[[nn.Module, Data], float]
    batch: int
    epochs: int


def digits(epochs: int) -> Problem:
    return Problem(
        64, lambda width, seed: perceptron(width, width, seed=seed), nn.Module.__call__, split, accuracy, 32, epochs
    )


def detection(recordings: Recordings, epochs: int) -> Problem:
    def make(width: int, seed: int) -> nn.Module:
        set_seed(seed)
        return AutoModelForAudioClassification.from_config(small_ast(2, width)[0]).train()

    return Problem(
        128,
        make,
        lambda model, inputs: model(inputs).logits,
        lambda seed: [taken(recordings.data, rows) for rows in parts(recordings, seed).values()],
        lambda model, data: 100 - error_rate(model, data),
        BATCH,
        epochs,
    )


def run(problem: Problem, method: str, share: float, rate: float, seed: int) -> dict:
    model = problem.make(round(share * problem.width) if method == "narrow" else problem.width, seed)
    data, validation, test = problem.split(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    course = partial(problem.logits, model), data, problem.epochs, seed, optimizer
    if method in CRITERIA:
        config = DropInConfig.compress(share, criterion=CRITERIA[method], seed=seed)
        dropin = DropIn(model, config, total_steps=problem.epochs * -(-len(data[0]) // problem.batch))
        seconds = train(*course, lambda: dropin.step(optimizer), problem.batch)
        dropin.unpatch()
        with torch.no_grad():
            before = problem.logits(model, test[0])
            compact(model, optimizer=optimizer)
            torch.testing.assert_close(problem.logits(model, test[0]), before, rtol=1e-4, atol=1e-4, equal_nan=True)
    else:
        seconds = train(*course, size=problem.batch)
    return {
        **{"validation": problem.score(model, validation), "test": problem.score(model, test)},
        **{"parameters": sum(x.numel() for x in model.parameters()), "seconds": seconds},
    }


def scores(rows: list[dict], method: str, share: float) -> dict[int, float]:
    """Test accuracy by seed."""
    return {row["seed"]: row["test"] for row in rows if (row["method"], row["share"]) == (method, share)}


def summarise(chosen: list[dict]) -> tuple[list[dict], list[dict]]:
    """Means of each arm, and the differences of pruning to the other arms."""
    arms = []
    for method, share in dict.fromkeys((row["method"], row["share"]) for row in chosen):
        mine = [row for row in chosen if (row["method"], row["share"]) == (method, share)]
        means = {
            "test": sum(row["test"] for row in mine) / len(mine),
            "seconds": sorted(row["seconds"] for row in mine)[len(mine) // 2],
        }
        arms.append({key: mine[0][key] for key in ("method", "share", "rate", "parameters")} | means)
    compared = [
        {"left": f"{share:.0%} of the neurons", "method": method, "to": other}
        | paired(scores(chosen, method, share), scores(chosen, other, 1.0 if other == "wide" else share))
        for share in sorted({row["share"] for row in chosen} - {1.0}, reverse=True)
        for method, other in PAIRS
    ]
    return arms, compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpus_options(parser)
    parser.add_argument("--epochs", type=int, help="of training; default: 30, with --data 10")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the neurons that stay")
    parser.add_argument("--quick", action="store_true", help="two seeds, an epoch, one rate")
    parser.add_argument("--output", type=Path, help="a file that gets the lines; they are printed anyhow")
    parser.add_argument("--picture", type=Path, help="a PNG of the differences")
    given = parser.parse_args()
    seeds, epochs = (2, 1) if given.quick else (given.seeds, given.epochs or (10 if given.data else 30))
    if not given.data and (given.attacks or given.format != "auto"):
        parser.error("--attacks and --format are of the corpus in --data, which is missing")
    problem = digits(epochs)
    if given.data:
        quiet()
        try:
            recordings = read_corpus(given, small_ast(2)[1])[""]
            for seed in range(given.first, given.first + seeds):
                parts(recordings, seed)
        except (ValueError, OSError) as error:
            parser.error(str(error))
        problem = detection(recordings, epochs)
    arms = [("wide", 1.0), *product(("pruned", "random", "narrow"), given.shares)]
    rates = RATES[1:2] if given.quick else RATES
    trials = [
        {"method": method, "share": share, "rate": rate, "seed": seed}
        for seed, (method, share), rate in product(range(given.first, given.first + seeds), arms, rates)
    ]
    corpus = {"attacks": ",".join(given.attacks), "window": given.seconds, "most": given.most}
    setup = {"data": str(given.data or "digits"), "epochs": epochs, **(corpus if given.data else {})}
    rows = measured(setup, trials, partial(run, problem), given.output)
    means, compared = summarise(best_rate(rows, lambda row: (row["method"], row["share"])))
    if given.picture:
        text = "score of pruned in points, minus that of the arm: right of the line pruned is better"
        draw(compared, "left", "to", text, given.picture)
    for row in means:
        name = "{method:7} {share:.0%} rate {rate:g}".format(**row)
        print(name, "{test:.2f} %, {parameters} parameters, {seconds:.2f} s".format(**row))
    for row in compared:
        print("{left}: {method} - {to} {difference:+.2f} [{low:+.2f}, {high:+.2f}] p {p:.3f}".format(**row))
    print(tell_chance(compared))


if __name__ == "__main__":
    main()
