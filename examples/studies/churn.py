"""Do new neurons earn their place? Pairs that cancel (the default) against silent starts, splits and controls.

    python examples/studies/churn.py --task stream --seeds 5 --output stream.jsonl
    python examples/studies/churn.py --task speech --seeds 5 --output speech.jsonl     # writes a corpus first
    python examples/studies/churn.py --task stream --quick

`stream`: an MLP of three hidden layers of 100 (ReLU) learns the digits of scikit-learn, whose 64 pixels are permuted anew every
100 steps, 40 times. `speech`: the small AST of `hf-neuroplastic demo` and that demonstration's settings for 250 steps, in a
plain loop. A line of JSON for each run, then paired differences to "silent" over the seeds, with 95 % intervals (Student's t).

replaced: neurons in all. again: of those that had 100 steps to live on, the share that was replaced within 100 steps. early:
share replaced before they came to half of the median contribution of the neurons that the model came with. median: steps until
half of the new ones have reached that median (Kaplan-Meier; none: they never did). weak: neurons below 10 % of their layer's
mean contribution at the end. loss: mean of the last fifth of training. score: accuracy on the batches of the last fifth of the
tasks, seen before they are learned from (stream), or the dev EER (speech).

What was seen is in RESULTS.md beside this file.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch
from scipy import stats
from torch import nn

from hf_neuroplastic import DropIn, DropInConfig

METHODS = {
    "none": {"max_fraction": 0.0},
    "random": {"criterion": "random", "threshold": math.inf, "outgoing": "zero"},
    "silent": {"outgoing": "zero"},
    "split": {"init": "split"},
    "random pair": {"criterion": "random", "threshold": math.inf},
    "pair": {},
}
KEYS = ("replaced", "again", "early", "median", "weak", "loss", "score")


class Lives:
    """What became of every new neuron: [steps from birth to half of the median, to the median, to its end], inf for never."""

    def __init__(self, dropin: DropIn) -> None:
        self.dropin, self.ended, self.step = dropin, [], 0
        self.rows = [torch.full((3, site.width), math.inf) for site in dropin.sites]  # born, half, median
        self.rows = [rows.index_fill(0, torch.tensor([0]), math.nan) for rows in self.rows]

    def follow(self) -> None:
        """Call after every `dropin.step`."""
        self.step += 1
        for rows, known in zip(self.rows, self.dropin.statistics, strict=True):
            new = known.fresh & (known.age == 0)
            self._end(rows[:, new], self.step)
            rows[:, new] = torch.tensor([self.step, math.inf, math.inf]).unsqueeze(1)
            median = known.contribution[known.active & ~known.fresh].nanmedian()
            grown = known.age > 5  # whose averages say something
            for row, goal in ((1, median / 2), (2, median)):
                reached = grown & (known.contribution >= goal) & rows[row].isinf()
                rows[row] = torch.where(reached, self.step - rows[0], rows[row])

    def _end(self, rows: torch.Tensor, died: float) -> None:
        self.ended += [[born, half, full, died - born] for born, half, full in rows.T.tolist() if born == born]

    def figures(self) -> dict[str, float | None]:
        for rows in self.rows:
            self._end(rows, math.inf)
        old = [died for born, _, _, died in self.ended if born + 100 <= self.step]
        early = [half == math.inf > died for _, half, _, died in self.ended]
        return {
            "again": sum(died <= 100 for died in old) / max(1, len(old)),
            "early": sum(early) / max(1, len(early)),
            "median": self._median(),
        }

    def _median(self) -> float | None:
        ends = sorted((min(full, died, self.step - born), full == math.inf) for born, _, full, died in self.ended)
        left = 1.0
        for place, (steps, censored) in enumerate(ends):
            left *= 1.0 if censored else 1.0 - 1.0 / (len(ends) - place)
            if left <= 0.5:
                return steps
        return None


def train(model, method, settings, lr, steps, batch_of, schedule=lambda step: 1.0):
    """Figures of the run, the outcomes [hits, loss] by step. batch_of(step): inputs and labels."""
    config = DropInConfig(**{**settings, **METHODS[method]})
    dropin, optimizer = DropIn(model, config, total_steps=steps), torch.optim.AdamW(model.parameters(), lr=lr)
    lives, outcomes = Lives(dropin), []
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    for step in range(steps):
        x, y = batch_of(step)
        logits = getattr(answer := model(x), "logits", answer)
        loss = nn.functional.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        dropin.step(optimizer)
        lives.follow()
        outcomes.append([(logits.argmax(1) == y).float().mean().item(), loss.item()])
    report = dropin.report()
    dropin.unpatch()
    last = torch.tensor(outcomes[-max(1, steps // 5) :]).mean(0).tolist()
    figures = {"replaced": report["neuro/replaced_total"], **lives.figures(), "weak": report["neuro/weak_fraction"]}
    return {**figures, "loss": last[1], "score": last[0]}


def stream(method: str, seed: int, quick: bool, folder: Path) -> dict[str, float | None]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    widths = [64, 100, 100, 100]
    hidden = [part for i in range(3) for part in (nn.Linear(widths[i], widths[i + 1]), nn.ReLU())]
    tasks = 8 if quick else 40
    pixels = [torch.randperm(64, generator=draw) for _ in range(tasks)]
    chosen = [torch.randint(0, len(x), (32,), generator=draw) for _ in range(100 * tasks)]
    settings = {"interval": 25, "max_fraction": 0.02, "stop": None, "seed": seed}
    model = nn.Sequential(*hidden, nn.Linear(100, 10))
    return train(
        model, method, settings, 3e-3, 100 * tasks, lambda s: (x[chosen[s]][:, pixels[s // 100]], y[chosen[s]])
    )


def speech(method: str, seed: int, quick: bool, folder: Path) -> dict[str, float | None]:
    from transformers import AutoModelForAudioClassification

    from hf_neuroplastic.audio.demo import save_small_model, scale
    from hf_neuroplastic.audio.metrics import equal_error_rate

    save_small_model(folder / "start", seed)
    model = AutoModelForAudioClassification.from_pretrained(folder / "start").train()
    held = folder / f"{seed}{'-quick' * quick}.pt"
    if not held.is_file():
        torch.save(features(model, seed, quick, folder), held)
    (x, y), (dev_x, dev_y) = torch.load(held)
    draw, steps = torch.Generator().manual_seed(seed), 100 if quick else 250
    chosen = [torch.randint(0, len(x), (16,), generator=draw) for _ in range(steps)]
    recipe = scale(False, seed).recipe
    settings = {**recipe.dropin.to_dict(), "seed": seed}
    for name in ("init", "outgoing"):
        settings.pop(name)
    warm = steps // 10

    def schedule(step: int) -> float:
        return (step + 1) / warm if step < warm else 0.5 + 0.5 * math.cos(math.pi * (step - warm) / (steps - warm))

    batches = lambda step: (x[chosen[step]], y[chosen[step]])  # noqa: E731
    figures = train(model, method, settings, recipe.learning_rate, steps, batches, schedule)
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(part).logits for part in dev_x.split(60)]).double()
    return {**figures, "score": float(equal_error_rate((logits[:, 0] - logits[:, 1]).numpy(), dev_y.numpy())[0])}


def features(model, seed: int, quick: bool, folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and labels of train and dev."""
    from transformers import AutoFeatureExtractor

    from hf_neuroplastic.audio import load_asvspoof2019, write_corpus
    from hf_neuroplastic.audio.evaluation import window_collator

    corpus = folder / f"corpus{seed}{'-quick' * quick}"
    write_corpus(corpus, seed=seed, utterances={"train": 160 if quick else 960, "dev": 80 if quick else 240, "eval": 2})
    extractor = AutoFeatureExtractor.from_pretrained(folder / "start")
    collate = window_collator(extractor, 1.2, model=model, seed=seed)
    sets = (list(load_asvspoof2019(corpus, "LA", split)) for split in ("train", "dev"))
    batches = (collate(rows) for rows in sets)
    return [(batch["input_values"], batch["labels"]) for batch in batches]


def differences(rows: list[dict]) -> None:
    """Prints, for each method and figure, the mean, and the mean paired difference to "silent" with its interval."""
    for method in METHODS:
        for key in KEYS:
            pairs = [
                (row[key], other[key])
                for row in rows
                for other in rows
                if (row["method"], other["method"], row["seed"]) == (method, "silent", other["seed"])
            ]
            known = [(a, b) for a, b in pairs if a is not None and b is not None]
            mean = [a for a, _ in pairs if a is not None]
            text = f"{sum(mean) / len(mean):.4f} (of {len(mean)})" if mean else "never"
            change = [a - b for a, b in known]
            if len(change) > 1 and len(set(change)) > 1:
                centre = sum(change) / len(change)
                low, high = stats.t.interval(0.95, len(change) - 1, loc=centre, scale=stats.sem(change))
                text += f"   to silent {centre:+.4f} [{low:+.4f}, {high:+.4f}]"
            print(f"{method:11} {key:9} {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("stream", "speech"), default="stream")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two seeds of a short course")
    parser.add_argument("--output", type=Path, help="a file that gets the lines; they are printed anyhow")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(2 if arguments.quick else arguments.seeds):
            for method in METHODS:
                start = time.perf_counter()
                figures = {"stream": stream, "speech": speech}[arguments.task](
                    method, seed, arguments.quick, Path(folder)
                )
                seconds = round(time.perf_counter() - start, 1)
                rows.append({"task": arguments.task, "method": method, "seed": seed, **figures, "seconds": seconds})
                print(json.dumps(rows[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    differences(rows)


if __name__ == "__main__":
    main()
