"""For studies on scikit-learn's digits: the data, training, the choice of rates, paired differences and their picture.

scikit-learn comes with the extra `augment`, scipy and matplotlib with `demo`; `test` holds both.
"""

import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import matplotlib
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Data = tuple[Tensor, Tensor]  # pixels [N, 64] in [0, 1], labels [N]
load_once = cache(load_digits)


def split(seed: int, share: float = 1.0, noise: float = 0.0) -> tuple[Data, Data, Data]:
    """Training, validation and test data. The last 450 digits are the test, whatever the seed; of the others 270, by seed, are
    for validation, and a share of the remaining 1077 for training, with a share of the labels (noise) drawn at random."""
    digits, draw = load_once(), torch.Generator().manual_seed(seed)
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(x) - 450, generator=draw)
    chosen = order[270:][: round(share * (len(order) - 270))]
    wrong = torch.rand(len(chosen), generator=draw) < noise
    labels = torch.where(wrong, torch.randint(0, 10, (len(chosen),), generator=draw), y[chosen])
    return (x[chosen], labels), (x[order[:270]], y[order[:270]]), (x[-450:], y[-450:])


def perceptron(*widths: int, seed: int) -> nn.Sequential:
    """Hidden layers of these widths (ReLU) between 64 pixels and 10 classes."""
    torch.manual_seed(seed)
    sizes = (64, *widths)
    hidden = [part for pair in zip(sizes, widths, strict=False) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], 10))


def train(model: nn.Module, data: Data, epochs: int, seed: int, optimizer, after: Callable[[], None] = bool) -> float:
    """Batches of 32, whose order is the seed's alone. `after` is called after every step. Returns seconds."""
    draw, start = torch.Generator().manual_seed(seed), time.perf_counter()
    for _ in range(epochs):
        for batch in torch.randperm(len(data[0]), generator=draw).split(32):
            nn.functional.cross_entropy(model(data[0][batch]), data[1][batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
            after()
    return time.perf_counter() - start


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """In %."""
    return 100 * (model(data[0]).argmax(1) == data[1]).float().mean().item()


def best_rate(rows: Iterable[dict], arm: Callable[[dict], object]) -> list[dict]:
    """Of each arm the rows at the rate whose mean validation accuracy over the seeds is best; the lower rate of equals."""
    found: dict[object, dict[float, list[dict]]] = {}
    for row in sorted(rows, key=lambda row: row["rate"]):
        found.setdefault(arm(row), {}).setdefault(row["rate"], []).append(row)
    best = [
        max(rates.values(), key=lambda same: round(sum(row["validation"] for row in same), 6))
        for rates in found.values()
    ]
    return [row for same in best for row in same]


def paired(values: dict[int, float], others: dict[int, float]) -> dict[str, float]:
    """Mean of values - others over the seeds, the ends of the 95 % interval (Student's t), and p of no difference."""
    change = [values[seed] - others[seed] for seed in sorted(values)]
    test = stats.ttest_1samp(change, 0.0)
    low, high = test.confidence_interval(0.95)
    return {"difference": sum(change) / len(change), "low": float(low), "high": float(high), "p": float(test.pvalue)}


def tell_chance(found: list[dict[str, float]]) -> str:
    """How many intervals exclude zero, how many would by chance, and how many differences stand Bonferroni's correction."""
    apart = sum(one["low"] > 0 or one["high"] < 0 for one in found)
    sure = sum(one["p"] < 0.05 / len(found) for one in found)
    chance = f"{0.05 * len(found):.1f} by chance"
    return f"{len(found)} comparisons: {apart} intervals exclude zero ({chance}), {sure} have p < .05/{len(found)}"


def draw(found: list[dict], title: str, label: str, text: str, path: Path) -> None:
    """A panel for each value of `title`, a line in it for each value of `label`, from what `paired` gave. text: below."""
    titles = list(dict.fromkeys(row[title] for row in found))
    figure, axes = plt.subplots(
        1, len(titles), figsize=(1 + 2 * len(titles), 3), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, each in zip(axes[0], titles, strict=True):
        here = [row for row in found if row[title] == each]
        middles = [row["difference"] for row in here]
        ends = [[abs(row[end] - row["difference"]) for row in here] for end in ("low", "high")]
        axis.errorbar(middles, [row[label] for row in here], xerr=ends, fmt="o", capsize=3)
        axis.axvline(0, color="grey", lw=1)
        axis.margins(y=0.15)
        axis.set_title(each.replace(", ", ",\n"), fontsize=9)
    figure.supxlabel(text, fontsize=9)
    figure.savefig(path, dpi=100)
    plt.close(figure)
