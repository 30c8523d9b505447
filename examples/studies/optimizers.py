"""NeuroPlastic against AdamW, SGD with momentum, and its own options, on scikit-learn's digits: scarce data, wrong labels.

    OMP_NUM_THREADS=1 python examples/studies/optimizers.py --output optimizers.jsonl --picture optimizers.png
    python examples/studies/optimizers.py --quick

A perceptron of 128 neurons (ReLU) learns for 30 epochs at a constant rate, from 10, 25 or 100 % of 1077 digits, with 0 or 30 %
of their labels drawn at random. Each method has its rate chosen for each of the six, by mean validation accuracy over seeds.
A line of JSON for each run, then for each method the test accuracy in %, and its paired difference to NeuroPlastic as it comes
over the seeds, with the 95 % interval (Student's t): below zero NeuroPlastic is ahead. "all" is the mean of the six.

milliseconds: of a training step. bytes: of optimizer state per parameter.
"""

import argparse
import json
from pathlib import Path

import torch
from shared import accuracy, best_rate, draw, paired, perceptron, split, tell_chance, train

from hf_neuroplastic import NeuroPlastic

OURS = "neuroplastic"
OPTIONS = {
    OURS: {},
    "gradient only": {"plasticity_scale": 0.0},
    "exact": {"statistics": "exact"},
    "trace": {"activity": "trace"},
    "strength .5": {"strength": 0.5},
    "strength 2": {"strength": 2.0},
}
METHODS = ("adamw", "sgd", *OPTIONS)
RATES = {"sgd": (0.003, 0.01, 0.03, 0.1, 0.3)}
OTHER_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
CONDITIONS = [(share, noise) for noise in (0.0, 0.3) for share in (0.1, 0.25, 1.0)]


def optimizer_of(method: str, parameters, rate: float) -> torch.optim.Optimizer:
    if method == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, fused=True)
    if method == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, fused=True)
    return NeuroPlastic(parameters, lr=rate, weight_decay=0.01, **OPTIONS[method])


def run(method: str, share: float, noise: float, rate: float, seed: int, epochs: int) -> dict:
    model = perceptron(128, seed=seed)
    optimizer = optimizer_of(method, model.parameters(), rate)
    data, validation, test = split(seed, share, noise)
    seconds = train(model, data, epochs, seed, optimizer)
    steps = epochs * -(-len(data[0]) // 32)
    held = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
    return {
        **{"method": method, "share": share, "noise": noise, "rate": rate, "seed": seed},
        **{"validation": accuracy(model, validation), "test": accuracy(model, test)},
        "milliseconds": 1000 * seconds / steps,
        "bytes": sum(x.nbytes for x in held) / sum(x.numel() for x in model.parameters()),
    }


def summarise(rows: list[dict]) -> list[dict]:
    """For each condition, and for all together, a row of each method's means and its difference to NeuroPlastic."""
    chosen = best_rate(rows, lambda row: (row["method"], row["share"], row["noise"]))
    seeds, found = sorted({row["seed"] for row in rows}), []
    for condition in [*CONDITIONS, None]:
        here = [row for row in chosen if condition in (None, (row["share"], row["noise"]))]
        tests = {
            method: {
                seed: sum(mine) / len(mine)
                for seed in seeds
                if (mine := [row["test"] for row in here if (row["method"], row["seed"]) == (method, seed)])
            }
            for method in METHODS
        }
        for method in METHODS:
            mine = [row for row in here if row["method"] == method]
            means = {key: sum(row[key] for row in mine) / len(mine) for key in ("test", "bytes")}
            means["milliseconds"] = sorted(row["milliseconds"] for row in mine)[len(mine) // 2]
            means["rate"] = mine[0]["rate"] if condition else None
            line = {"condition": name(condition), "method": method, **means}
            found.append(line | ({} if method == OURS else paired(tests[method], tests[OURS])))
    return found


def name(condition: tuple[float, float] | None) -> str:
    return f"{condition[0]:.0%} of the data, {condition[1]:.0%} noise" if condition else "all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="two seeds, an epoch, one rate")
    parser.add_argument("--output", type=Path, help="a file that gets the lines; they are printed anyhow")
    parser.add_argument("--picture", type=Path, help="a PNG of the differences")
    arguments = parser.parse_args()
    seeds, epochs = (2, 1) if arguments.quick else (arguments.seeds, 30)
    rows = []
    for seed in range(seeds):
        for share, noise in CONDITIONS:
            for method in METHODS:
                rates = RATES.get(method, OTHER_RATES)
                for rate in rates[2:3] if arguments.quick else rates:
                    rows.append(run(method, share, noise, rate, seed, epochs))
                    print(json.dumps(rows[-1]), flush=True)
    found = summarise(rows)
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *found]))
    compared = [row for row in found if "difference" in row]
    if arguments.picture:
        text = "test accuracy in points minus NeuroPlastic's: left of the line NeuroPlastic is ahead"
        draw(compared, "condition", "method", text, arguments.picture)
    for row in found:
        change = f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]" if "difference" in row else ""
        rate = "" if row["rate"] is None else f"{row['rate']:g}"
        cost = f"{row['milliseconds']:.2f} ms {row['bytes']:5.2f} B"
        print(f"{row['condition']:26} {row['method']:13} rate {rate:6} {row['test']:.2f} {change:22} {cost}")
    print(tell_chance(compared))


if __name__ == "__main__":
    main()
