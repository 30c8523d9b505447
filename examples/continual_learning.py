"""Does a network that learns one task after another keep its ability to learn? AdamW alone, and with DropIn.

Every task is to memorise fresh random labels of fresh random inputs, so nothing of one task helps in the next and only the
ability to learn counts: the accuracy at the end of each task. Beside it, the share of dormant neurons (mean activity at most
2.5 % of their layer's mean) and the effective rank of the last hidden layer (exp of the entropy of its normalised singular
values, Roy and Vetterli 2007), both at the end of each task.

    python examples/continual_learning.py --seeds 5 --output continual

writes continual/results.json and continual/continual_learning.png and prints a table.
"""

import argparse
import json
import math
from pathlib import Path

import matplotlib
import torch
from torch import nn

from hf_neuroplastic import DropIn, DropInConfig

matplotlib.use("Agg")
from matplotlib import pyplot as plt

INPUTS, HIDDEN, CLASSES, SAMPLES, BATCH = 32, 128, 10, 512, 64
EVENTS = {"interval": 25, "maturity": 200, "stop": None}
METHODS = {
    "AdamW": DropInConfig(max_fraction=0.0, stop=None),
    "AdamW, decay .1": DropInConfig(max_fraction=0.0, stop=None),
    "DropIn (contribution)": DropInConfig(threshold=math.inf, max_fraction=0.01, **EVENTS),
    "DropIn (dormant only)": DropInConfig(criterion="dormant", threshold=0.025, max_fraction=0.1, **EVENTS),
    "DropIn (random)": DropInConfig(criterion="random", threshold=math.inf, max_fraction=0.01, **EVENTS),
}


def network() -> nn.Sequential:
    """Three hidden layers: two of them are sites whose outgoing weights feed a further hidden layer."""
    return nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, CLASSES),
    )


def effective_rank(features: torch.Tensor) -> float:
    """exp(entropy) of the normalised singular values of features [samples, neurons]."""
    values = torch.linalg.svdvals(features)
    share = values / values.sum().clamp_min(1e-12)
    return float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum()))


def run(method: str, seed: int, tasks: int, epochs: int, lr: float) -> list[dict[str, float]]:
    """One row per task: accuracy, dormant fraction and effective rank at its end."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = network()
    decay = 0.1 if "decay" in method else 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=decay)
    dropin = DropIn(model, METHODS[method])
    rows = []
    for _ in range(tasks):
        inputs = torch.randn(SAMPLES, INPUTS, generator=generator)
        labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
        for _ in range(epochs):
            for batch in torch.randperm(SAMPLES, generator=generator).split(BATCH):
                nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
                optimizer.step()
                optimizer.zero_grad()
                dropin.step(optimizer)
        with torch.no_grad():
            accuracy = (model(inputs).argmax(1) == labels).float().mean().item()
            rank = effective_rank(model[:-1](inputs))
        rows.append({"accuracy": accuracy, "dormant": dropin.report()["neuro/dead_fraction"], "rank": rank})
    return rows


def draw(results: dict[str, list[list[dict[str, float]]]], path: Path) -> None:
    """Mean over seeds of each measure, by task; the band is one standard deviation."""
    figure, panels = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    titles = {
        "accuracy": "Accuracy at the end of the task",
        "dormant": "Dormant neurons (share)",
        "rank": "Effective rank",
    }
    for axes, (measure, title) in zip(panels, titles.items(), strict=True):
        for method, seeds in results.items():
            values = torch.tensor([[row[measure] for row in rows] for rows in seeds])
            mean, spread = values.mean(0), values.std(0) if len(seeds) > 1 else torch.zeros(values.shape[1])
            tasks = range(1, values.shape[1] + 1)
            axes.plot(tasks, mean, label=method)
            axes.fill_between(tasks, mean - spread, mean + spread, alpha=0.15)
        axes.set(xlabel="task", title=title)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=30, help="passes over each task's samples")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--output", type=Path, default=Path("continual"))
    arguments = parser.parse_args()

    results = {
        method: [run(method, seed, arguments.tasks, arguments.epochs, arguments.lr) for seed in range(arguments.seeds)]
        for method in METHODS
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    (arguments.output / "results.json").write_text(json.dumps({"settings": settings, "results": results}, indent=1))
    draw(results, arguments.output / "continual_learning.png")
    last = max(1, arguments.tasks // 5)
    print(f"mean over {arguments.seeds} seeds, last {last} of {arguments.tasks} tasks")
    for method, seeds in results.items():
        tail = {
            name: [sum(row[name] for row in rows[-last:]) / last for rows in seeds]
            for name in ("accuracy", "dormant", "rank")
        }
        accuracy = torch.tensor(tail["accuracy"])
        spread = accuracy.std().item() if len(seeds) > 1 else 0.0
        print(
            f"{method:24} accuracy {accuracy.mean():.3f} (sd {spread:.3f})  dormant {sum(tail['dormant']) / len(seeds):.3f}  "
            f"rank {sum(tail['rank']) / len(seeds):.1f}"
        )


if __name__ == "__main__":
    main()
