"""Pruned while training, then compacted, against trained narrow from the start, and against random pruning.

    OMP_NUM_THREADS=1 python examples/studies/compression.py --output compression.jsonl --picture compression.png
    python examples/studies/compression.py --shares .25 --first 8 --seeds 16      # one share, seeds 8 to 23
    python examples/studies/compression.py --quick

A perceptron of two hidden layers of 64 (ReLU) learns scikit-learn's digits (1077 of them) for 30 epochs by AdamW at a constant
rate. `pruned`: `DropInConfig.compress` leaves 75, 50 or 25 % of the hidden neurons, the weakest go between 10 and 70 % of
training, and `compact` takes their slots out. `random`: the same, but who goes is drawn. `narrow`: as narrow from the start.
`wide`: all 64 until the end. Each has its rate chosen by mean validation accuracy over the seeds. A line of JSON for each run,
then test accuracy in %, and paired differences over the seeds with 95 % intervals (Student's t).
"""

import argparse
import json
from pathlib import Path

import torch
from shared import accuracy, best_rate, draw, paired, perceptron, split, tell_chance, train

from hf_neuroplastic import DropIn, DropInConfig, compact

WIDTH = 64
SHARES = (0.75, 0.5, 0.25)
CRITERIA = {"pruned": "contribution", "random": "random"}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
PAIRS = [("pruned", "narrow"), ("pruned", "random"), ("pruned", "wide")]


def run(method: str, share: float, rate: float, seed: int, epochs: int) -> dict:
    width = round(share * WIDTH) if method == "narrow" else WIDTH
    model = perceptron(width, width, seed=seed)
    data, validation, test = split(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    if method in CRITERIA:
        config = DropInConfig.compress(share, criterion=CRITERIA[method], seed=seed)
        dropin = DropIn(model, config, total_steps=epochs * -(-len(data[0]) // 32))
        seconds = train(model, data, epochs, seed, optimizer, lambda: dropin.step(optimizer))
        dropin.unpatch()
        before = model(test[0])
        compact(model, optimizer=optimizer)
        torch.testing.assert_close(model(test[0]), before)
    else:
        seconds = train(model, data, epochs, seed, optimizer)
    return {
        **{"method": method, "share": share, "rate": rate, "seed": seed},
        **{"validation": accuracy(model, validation), "test": accuracy(model, test)},
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
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the neurons that stay")
    parser.add_argument("--quick", action="store_true", help="two seeds, an epoch, one rate")
    parser.add_argument("--output", type=Path, help="a file that gets the lines; they are printed anyhow")
    parser.add_argument("--picture", type=Path, help="a PNG of the differences")
    arguments = parser.parse_args()
    seeds, epochs = (2, 1) if arguments.quick else (arguments.seeds, 30)
    arms = [
        ("wide", 1.0),
        *((method, share) for share in arguments.shares for method in ("pruned", "random", "narrow")),
    ]
    rows = []
    for seed in range(arguments.first, arguments.first + seeds):
        for method, share in arms:
            for rate in RATES[1:2] if arguments.quick else RATES:
                rows.append(run(method, share, rate, seed, epochs))
                print(json.dumps(rows[-1]), flush=True)
    means, compared = summarise(best_rate(rows, lambda row: (row["method"], row["share"])))
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *means, *compared]))
    if arguments.picture:
        text = "test accuracy of pruned in points, minus that of the arm: right of the line pruned is better"
        draw(compared, "left", "to", text, arguments.picture)
    for row in means:
        name = "{method:7} {share:.0%} rate {rate:g}".format(**row)
        print(name, "{test:.2f} %, {parameters} parameters, {seconds:.2f} s".format(**row))
    for row in compared:
        print("{left}: {method} - {to} {difference:+.2f} [{low:+.2f}, {high:+.2f}] p {p:.3f}".format(**row))
    print(tell_chance(compared))


if __name__ == "__main__":
    main()
