"""Sixty short tasks of detection one after another: does a detector that is adapted again and again still learn?

    hf-neuroplastic corpus real voices
    OMP_NUM_THREADS=1 python examples/studies/audio_tasks.py --data voices --attacks A04,A05,A06,A07,A08,A09,A10,A12 \\
        --output tasks.jsonl --picture tasks.png
    python examples/studies/audio_tasks.py --quick

A task is an attack, a channel and a half of the speakers of bona fide speech: to tell --size recordings of the attack from as
many bona fide ones, both through the channel. Two thirds are trained on, for --steps steps of 16 at a constant rate; the
score is the accuracy in % on the other third right after, mean of the last sixth of the tasks: what counts is how well the
newest task is learnt. A detector that has learnt two of the attacks, drawn by seed, as they come (AdamW, 1e-3, 300 steps) is
the start of all methods. --change gradual: in the second half of a task ever more recordings are of the next one. --redrawn:
which class is called 0 is drawn anew for every task, which no detector meets; the harshest change, as a control.

Every method tries the same rates, on seeds of its own (100 to 103); the best speaks for the method on the seeds of the
measurement. "+dropin" replaces neurons as DropIn comes but for `interval=25`, `max_fraction=.02`, `stop=None`; "+random"
replaces as many at every event, whoever they are; "fresh" begins every task at the start, so that nothing can be lost.
dormant: share of neurons with at most 2.5 % of their layer's mean activity; rank: the effective rank (exp of the entropy of
the normalised singular values) of the mean hidden states of the held-out third; both at the end of a task. Differences to
"adamw" are paired, with 95 % intervals (Student's t).
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from recordings import BONA_FIDE, Recordings, Rows, corpus_options, learn, listed, maker, read_corpus, taken
from shared import best_rate, draw_courses, mean, measured, paired, tell_chance
from torch import Tensor, nn
from transformers import set_seed

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic
from hf_neuroplastic.cli.console import quiet

OPTIMIZERS = {"adamw": partial(torch.optim.AdamW, fused=True), "neuroplastic": NeuroPlastic}
WAYS = {
    "": {"max_fraction": 0.0},  # watches only
    "+dropin": {"max_fraction": 0.02},
    "+random": {"max_fraction": 0.02, "criterion": "random", "threshold": math.inf},
}
METHODS = ("adamw", "adamw+dropin", "adamw+random", "neuroplastic", "neuroplastic+dropin", "fresh")
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
CHOSEN_ON = (100, 101, 102, 103)
CHANNELS = ("", "codec@1", "room@1", "noise@1", "filter@1", "rawboost:3")
BATCH, START_STEPS, START_RATE, LEAST = 16, 300, 1e-3, 6


class Task(NamedTuple):
    """What a task is called, its channel, its rows to train on and to score, and whether its labels are turned around."""

    name: str
    channel: str
    train: Rows
    held_out: Rows
    turned: bool


def halves(names: np.ndarray, rows: Rows, seed: int) -> list[Rows]:
    """The rows parted by name (of a speaker): whole names, about as many rows on each side."""
    order = np.random.default_rng(seed).permutation(np.unique(names[rows]))
    counts = np.array([np.sum(names[rows] == name) for name in order])
    first = order[np.cumsum(counts) - counts / 2 < len(rows) / 2]
    inside = np.isin(names[rows], first)
    return [rows[inside], rows[~inside]]


def tasks_of(
    recordings: Recordings, channels: tuple[str, ...], count: int, size: int, redrawn: bool, seed: int
) -> list[Task]:
    """So many tasks, in an order that is the seed's: all attacks, channels and halves, before one comes again.

    Raises:
        ValueError: half of the bona fide speech, or an attack, is too little for a task.
    """
    draw = np.random.default_rng(seed)
    speech = halves(recordings.speakers, np.flatnonzero(recordings.kinds == BONA_FIDE), seed)
    attacks = {
        str(kind): np.flatnonzero(recordings.kinds == kind) for kind in sorted(set(recordings.kinds) - {BONA_FIDE})
    }
    held = {
        "a half of the bona fide speech, by speakers,": min(map(len, speech)),
        **{k: len(v) for k, v in attacks.items()},
    }
    if few := {name: count for name, count in held.items() if count < LEAST}:
        told = ", ".join(f"{name} has {count}" for name, count in few.items())
        raise ValueError(f"{told} recordings, and a task needs {LEAST} of each: take more data, or other --attacks")
    if not attacks:
        raise ValueError("the corpus has no spoofed speech")
    kinds = list(product(attacks, channels, (0, 1)))
    order = [kinds[place] for _ in range(-(-count // len(kinds))) for place in draw.permutation(len(kinds))][:count]
    tasks = []
    for attack, channel, half in order:
        few = min(size, len(speech[half]), len(attacks[attack]))
        drawn = [draw.permutation(rows)[:few] for rows in (speech[half], attacks[attack])]
        cut = 2 * few // 3
        train, held_out = (np.concatenate([rows[part] for rows in drawn]) for part in (slice(cut), slice(cut, None)))
        name = f"{attack} {channel or 'as it comes'} {half}"
        tasks.append(Task(name, channel, train, held_out, redrawn and bool(draw.integers(2))))
    return tasks


Recorded = dict[str, Recordings]  # by channel


def batch_of(recorded: Recorded, task: Task, rows: Rows) -> tuple[Tensor, Tensor]:
    inputs, labels = recorded[task.channel].data
    return inputs[rows], (1 - labels[rows]) if task.turned else labels[rows]


def share_of_next(step: int, steps: int) -> float:
    """Of the recordings, in a gradual change: none in the first half of a task, then up to all."""
    return max(0.0, 2 * (step + 0.5) / steps - 1)


def batches(recorded: Recorded, tasks: list[Task], number: int, steps: int, gradual: bool, draw: np.random.Generator):
    """The training batches of a task."""
    task, following = tasks[number], tasks[min(number + 1, len(tasks) - 1)]
    for step in range(steps):
        late = int((draw.random(BATCH) < share_of_next(step, steps)).sum()) if gradual else 0
        parts = [
            batch_of(recorded, each, draw.choice(each.train, size))
            for each, size in ((task, BATCH - late), (following, late))
            if size
        ]
        yield tuple(map(torch.cat, zip(*parts, strict=True)))


@torch.no_grad()
def figures(model: nn.Module, recorded: Recorded, task: Task) -> dict[str, float]:
    """Accuracy in %, and the effective rank (Roy and Vetterli 2007) of the last hidden states, mean over time."""
    model.eval()
    inputs, labels = batch_of(recorded, task, task.held_out)
    told = model(inputs, output_hidden_states=True)
    model.train()
    values = torch.linalg.svdvals(told.hidden_states[-1].mean(1).nan_to_num())
    shares = values / values.sum().clamp_min(1e-12)
    rank = float(torch.exp(-(shares * shares.clamp_min(1e-12).log()).sum()))
    return {"accuracy": 100 * (told.logits.argmax(1) == labels).float().mean().item(), "rank": rank}


def runner(make: Callable, recorded: Recorded, given: argparse.Namespace) -> Callable[..., dict]:
    """run(method, rate, seed) of a study."""
    first = recorded[""]

    @cache
    def begun(seed: int) -> dict[str, Tensor]:
        set_seed(seed)
        model = make(2)
        known = np.random.default_rng(seed).permutation(sorted(set(first.kinds) - {BONA_FIDE}))[:2]
        rows = np.flatnonzero(np.isin(first.kinds, [BONA_FIDE, *known]))
        spoofed, speech = (rows[(first.kinds[rows] != BONA_FIDE) == which] for which in (True, False))
        few = min(len(spoofed), len(speech))
        rows = np.concatenate([np.random.default_rng(seed).permutation(each)[:few] for each in (spoofed, speech)])
        optimizer = torch.optim.AdamW(model.parameters(), lr=START_RATE)
        learn(model, taken(first.data, rows), 2 if given.quick else START_STEPS, seed, optimizer)
        return {name: value.clone() for name, value in model.state_dict().items()}

    def run(method: str, rate: float, seed: int) -> dict:
        tasks = tasks_of(first, given.channels, given.tasks, given.size, given.redrawn, seed)
        draw, start = np.random.default_rng(seed), time.perf_counter()
        model = make(2)
        base, _, way = method.partition("+")
        optimizer_of = OPTIMIZERS["adamw" if base == "fresh" else base]
        config = DropInConfig(**{"interval": 25, "stop": None, "seed": seed, **WAYS["+" + way if way else ""]})
        dropin, rows = None, []
        for number, task in enumerate(tasks):
            if number == 0 or method == "fresh":
                if dropin is not None:
                    dropin.unpatch()
                model.load_state_dict(begun(seed))
                optimizer = optimizer_of(model.parameters(), lr=rate, weight_decay=0.01)
                dropin = DropIn(model, config)
                model.train()
            for inputs, labels in batches(recorded, tasks, number, given.steps, given.change == "gradual", draw):
                nn.functional.cross_entropy(model(inputs).logits, labels).backward()
                optimizer.step()
                optimizer.zero_grad()
                dropin.step(optimizer)
            health = dropin.report()
            rows.append(figures(model, recorded, task) | {"dormant": health["neuro/dead_fraction"]})
        dropin.unpatch()
        by_task = {name: [round(row[name], 3) for row in rows] for name in rows[0]}
        last = max(1, given.tasks // 6)
        return {
            "score": mean(by_task["accuracy"][-last:]),
            "first": mean(by_task["accuracy"][:last]),
            **{name: mean(by_task[name][-last:]) for name in ("rank", "dormant")},
            "replaced": health["neuro/replaced_total"],
            "seconds": round(time.perf_counter() - start, 1),
            "by_task": by_task,
        }

    return run


def study(
    run: Callable[..., dict], setup: dict, methods: list[str], rates: tuple[float, ...], seeds: int, output: Path | None
):
    """The rows of each method, on its best rate, and the differences to AdamW."""
    held = {}
    for method in methods:
        trials = [{"method": method, "rate": rate, "seed": seed} for rate in rates for seed in CHOSEN_ON]
        tried = measured(setup, trials, run, output)
        tried = [
            row | {"validation": row["score"]} for row in tried if row["method"] == method and row["seed"] in CHOSEN_ON
        ]
        best = best_rate(tried, lambda row: row["method"])[0]["rate"]
        trials = [{"method": method, "rate": best, "seed": seed} for seed in range(seeds)]
        rows = measured(setup, trials, run, output)
        held[method] = [row for row in rows if (row["method"], row["rate"]) == (method, best) and row["seed"] < seeds]
    scores = {method: {row["seed"]: row["score"] for row in rows} for method, rows in held.items()}
    found = {method: paired(scores[method], scores["adamw"]) for method in held if method != "adamw"}
    return held, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpus_options(parser)
    parser.add_argument("--model", default="ast", help="ast, wav2vec2, a Hub id, or a folder")
    parser.add_argument(
        "--methods", type=listed(str), default=list(METHODS), help="by commas, adamw first; default: all"
    )
    parser.add_argument("--change", choices=("abrupt", "gradual"), default="abrupt")
    parser.add_argument("--redrawn", action="store_true", help="each task draws which class is called 0")
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--steps", type=int, default=40, help="of a task")
    parser.add_argument("--size", type=int, default=48, help="recordings of each class in a task, at most")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument(
        "--quick", action="store_true", help="two seeds, three tasks, one rate; makes a corpus without --data"
    )
    parser.add_argument(
        "--output", type=Path, help="a file that gets the lines; runs that stand there are not run again"
    )
    parser.add_argument("--picture", type=Path, help="a PNG of the course of the tasks")
    given = parser.parse_args()
    if wrong := sorted(set(given.methods) - set(METHODS)):
        parser.error(f"--methods must be of {', '.join(METHODS)}, by commas; got {', '.join(wrong)}")
    if "adamw" not in given.methods:
        parser.error("--methods needs adamw, to which the others are compared")
    if not given.data and not given.quick:
        parser.error("--data must be the folder or table of a corpus; `hf-neuroplastic corpus real FOLDER` makes one")
    quiet()
    given.channels = CHANNELS[:2] if given.quick else CHANNELS
    if given.quick:
        given.tasks, given.steps, given.seeds = 3, 2, 2
    try:
        make, extractor = maker(given.model)
        by_channel = read_corpus(given, extractor, {"train": 96, "dev": 24, "eval": 48}, given.channels)
        for seed in range(given.seeds):
            tasks_of(by_channel[""], given.channels, given.tasks, given.size, False, seed)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    names = ("model", "change", "redrawn", "tasks", "steps", "size", "most")
    setup = {
        "data": str(given.data),
        "attacks": ",".join(given.attacks),
        "window": given.seconds,
        **{name: getattr(given, name) for name in names},
    }
    rates = RATES[2:3] if given.quick else RATES
    held, found = study(runner(make, by_channel, given), setup, given.methods, rates, given.seeds, given.output)
    for method, rows in held.items():
        keys = ("score", "first", "dormant", "rank", "replaced", "seconds")
        told = "  ".join(f"{key} {mean(row[key] for row in rows):.2f}" for key in keys)
        change = " {difference:+.2f} [{low:+.2f}, {high:+.2f}]".format(**found[method]) if method in found else ""
        print(f"{method:20} rate {rows[0]['rate']:g}  {told}{change}")
    if found:
        print(tell_chance(list(found.values())))
    if given.picture:
        titles = {
            "accuracy": "accuracy on the newest task, %",
            "dormant": "share of dormant neurons",
            "rank": "effective rank",
        }
        draw_courses(held, titles, given.picture)


if __name__ == "__main__":
    main()
