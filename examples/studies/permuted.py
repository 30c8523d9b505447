"""Forty tasks one after another: AdamW with a tuned rate and weight decay, and the same with DropIn, each for each optimizer.

    OMP_NUM_THREADS=1 python examples/studies/permuted.py --output permuted.jsonl --picture permuted.png
    python examples/studies/permuted.py --quick

A perceptron of three hidden layers of 100 (ReLU) learns scikit-learn's digits, whose 64 pixels are permuted anew every 100
steps, 40 times. The score is the accuracy on batches of 32 of the last 8 tasks, seen before they are learned from: what counts
is how fast a network learns that has learned much before. Every method has the same trials, rates times weight decays; the one
that scores best on two seeds of its own (100, 101) speaks for the method on the seeds of the measurement. A line of JSON for
each run, then means, and paired differences to "adamw" with 95 % intervals (Student's t).
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path

import torch
from shared import draw_courses, load_once, paired, perceptron, tell_chance
from torch import nn

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic

OPTIMIZERS = {"adamw": lambda p, **given: torch.optim.AdamW(p, fused=True, **given), "neuroplastic": NeuroPlastic}
METHODS = [f"{optimizer}{way}" for optimizer, way in product(OPTIMIZERS, ("", "+dropin"))]
RATES, DECAYS = (5e-4, 1.5e-3, 5e-3, 1.5e-2), (0.0, 0.01, 0.1, 1.0)
CHOSEN_ON = (100, 101)
STEPS = 100  # of a task


def run(method: str, rate: float, decay: float, seed: int, tasks: int) -> dict:
    digits = load_once()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    course = torch.Generator().manual_seed(seed)
    pixels = [torch.randperm(64, generator=course) for _ in range(tasks)]
    model = perceptron(100, 100, 100, seed=seed)
    optimizer = OPTIMIZERS[method.partition("+")[0]](model.parameters(), lr=rate, weight_decay=decay)
    config = DropInConfig(interval=25, max_fraction=0.02, stop=None, seed=seed)
    dropin = DropIn(model, config, total_steps=STEPS * tasks) if method.endswith("+dropin") else None
    hits, start = [], time.perf_counter()
    for step in range(STEPS * tasks):
        batch = torch.randint(0, len(x), (32,), generator=course)
        logits = model(x[batch][:, pixels[step // STEPS]])
        hits.append((logits.argmax(1) == y[batch]).float().mean().item())
        nn.functional.cross_entropy(logits, y[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if dropin is not None:
            dropin.step(optimizer)
    accuracy = torch.tensor(hits).view(tasks, STEPS).mean(1).mul(100)
    seconds = round(time.perf_counter() - start, 2)
    score = accuracy[-max(1, tasks // 5) :].mean().item()
    trial = {"method": method, "rate": rate, "decay": decay, "seed": seed}
    return trial | {
        "score": score,
        "seconds": seconds,
        "by_task": {"accuracy": [round(x, 2) for x in accuracy.tolist()]},
    }


def chosen_trial(rows: list[dict]) -> tuple[float, float]:
    """Rate and decay with the best mean score."""
    scores: dict[tuple[float, float], float] = {}
    for row in rows:
        place = row["rate"], row["decay"]
        scores[place] = scores.get(place, 0.0) + row["score"]
    return max(scores, key=lambda place: scores[place])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="two seeds, two tasks, one trial")
    parser.add_argument("--output", type=Path, help="a file that gets the lines; they are printed anyhow")
    parser.add_argument("--picture", type=Path, help="a PNG of the course of the tasks")
    arguments = parser.parse_args()
    tasks, seeds = (2, 2) if arguments.quick else (40, arguments.seeds)
    trials = [(1.5e-3, 0.01)] if arguments.quick else list(product(RATES, DECAYS))
    rows: list[dict] = []

    def tell(row: dict) -> dict:
        rows.append(row)
        print(json.dumps(row), flush=True)
        return row

    measured: dict[str, list[dict]] = {}
    for method in METHODS:
        tried = [tell(run(method, *trial, seed, tasks)) for trial in trials for seed in CHOSEN_ON]
        best = chosen_trial(tried)
        measured[method] = [tell(run(method, *best, seed, tasks)) for seed in range(seeds)]
    scores = {method: {row["seed"]: row["score"] for row in held} for method, held in measured.items()}
    found = []
    for method, held in measured.items():
        mean, seconds = (sum(row[name] for row in held) / len(held) for name in ("score", "seconds"))
        text = f"{method:20} rate {held[0]['rate']:g}, decay {held[0]['decay']:g}: {mean:.2f} %, {seconds:.1f} s a run"
        if method != "adamw":
            found.append({"method": method, **paired(scores[method], scores["adamw"])})
            text += "   to adamw {difference:+.2f} [{low:+.2f}, {high:+.2f}]".format(**found[-1])
        print(text)
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows + found))
    print(tell_chance(found))
    if arguments.picture:
        draw_courses(measured, {"accuracy": "accuracy while a task is learnt, %"}, arguments.picture)


if __name__ == "__main__":
    main()
