"""NeuroPlastic against AdamW, SGD with momentum, and its own options, on scikit-learn's digits: scarce data, wrong labels.

    OMP_NUM_THREADS=1 python examples/studies/optimizers.py --output optimizers.jsonl --picture optimizers.png
    python examples/studies/optimizers.py --quick

A perceptron of 128 neurons (ReLU) learns for 30 epochs at a constant rate, from 10, 25 or 100 % of 1077 digits, with 0 or 30 %
of their labels drawn at random. Each method has its rate chosen for each of the six, by mean validation accuracy over seeds.
A line of JSON for each run, then for each method the test accuracy in %, and its paired difference to NeuroPlastic as it comes
over the seeds, with the 95 % interval (Student's t): below zero NeuroPlastic is ahead. "all" is the mean of the six. Runs that
--output holds already are not run again.

"alignment" is NeuroPlastic with the step of each tensor scaled by the cosine of momentum and gradient: `aligned` in shared.py.
milliseconds: of a training step. bytes: of optimizer state per parameter.
"""

import argparse
from functools import partial
from itertools import product
from pathlib import Path

from shared import (
    CONDITIONS,
    METHODS,
    accuracy,
    compare,
    draw,
    measured,
    optimizer_of,
    perceptron,
    split,
    state_bytes,
    tell,
    train,
)

RATES = {"sgd": (0.003, 0.01, 0.03, 0.1, 0.3)}
OTHER_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def run(epochs: int, method: str, share: float, noise: float, rate: float, seed: int) -> dict:
    model = perceptron(128, seed=seed)
    optimizer = optimizer_of(method, model.parameters(), rate)
    data, validation, test = split(seed, share, noise)
    seconds = train(model, data, epochs, seed, optimizer)
    return {
        **{"validation": accuracy(model, validation), "test": accuracy(model, test)},
        "milliseconds": 1000 * seconds / (epochs * -(-len(data[0]) // 32)),
        "bytes": state_bytes(optimizer),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="two seeds, an epoch, one rate")
    parser.add_argument("--output", type=Path, help="a file that gets the lines; they are printed anyhow")
    parser.add_argument("--picture", type=Path, help="a PNG of the differences")
    arguments = parser.parse_args()
    seeds, epochs = (2, 1) if arguments.quick else (arguments.seeds, 30)
    trials = [
        {"method": method, "share": share, "noise": noise, "rate": rate, "seed": seed}
        for seed, (share, noise), method in product(range(seeds), CONDITIONS, METHODS)
        for rate in (RATES.get(method, OTHER_RATES)[2:3] if arguments.quick else RATES.get(method, OTHER_RATES))
    ]
    found = compare(measured({"epochs": epochs}, trials, partial(run, epochs), arguments.output))
    if arguments.picture:
        text = "test accuracy in points minus NeuroPlastic's: left of the line NeuroPlastic is ahead"
        draw([row for row in found if "difference" in row], "condition", "method", text, arguments.picture)
    tell(found)


if __name__ == "__main__":
    main()
