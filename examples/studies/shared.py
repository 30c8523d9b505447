"""For studies: scikit-learn's digits, the methods, training, the choice of rates, paired differences, tables and pictures.

scikit-learn comes with the extra `augment`, scipy and matplotlib with `demo`; `test` holds both.
"""

import json
import math
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import matplotlib
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hf_neuroplastic import NeuroPlastic

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Data = tuple[Tensor, Tensor]  # inputs [N, ...], such as pixels [N, 64] in [0, 1], and labels [N]
load_once = cache(load_digits)

OURS = "neuroplastic"
OPTIONS = {
    OURS: {},
    "gradient only": {"plasticity_scale": 0.0},
    "exact": {"statistics": "exact"},
    "trace": {"activity": "trace"},
    "strength .5": {"strength": 0.5},
    "strength 2": {"strength": 2.0},
    "alignment": {},
}
METHODS = ("adamw", "sgd", *OPTIONS)
CONDITIONS = [(share, noise) for noise in (0.0, 0.3) for share in (0.1, 0.25, 1.0)]  # of the data, of its labels


def optimizer_of(method: str, parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    if method == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, fused=True)
    if method == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, fused=True)
    groups = [{"params": [each]} for each in parameters] if method == "alignment" else parameters
    optimizer = NeuroPlastic(groups, lr=rate, weight_decay=0.01, **OPTIONS[method])
    return aligned(optimizer) if method == "alignment" else optimizer


def aligned(optimizer: torch.optim.Optimizer, temperature: float = 0.2, decay: float = 0.9) -> torch.optim.Optimizer:
    """Multiplies each step of each group, which holds one tensor, by 2 * sigmoid(c / temperature), where c is the running mean
    of the cosine of the tensor's momentum and gradient (after arXiv 2602.15322): in [0, 2], 1 where the two are orthogonal."""
    means: dict[Tensor, float] = {}
    rates: list[float] = []

    def before(*_) -> None:
        rates[:] = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            (tensor,) = group["params"]
            if tensor in optimizer.state and tensor.grad is not None:
                momentum = optimizer.state[tensor]["exp_avg"]
                cosine = nn.functional.cosine_similarity(momentum.flatten(), tensor.grad.flatten(), dim=0).item()
                means[tensor] = decay * means.get(tensor, 0.0) + (1 - decay) * cosine
                group["lr"] *= 2 / (1 + math.exp(-means[tensor] / temperature))

    def after(*_) -> None:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer


def state_bytes(optimizer: torch.optim.Optimizer) -> float:
    """Of state per parameter."""
    held = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
    return sum(x.nbytes for x in held) / sum(x.numel() for group in optimizer.param_groups for x in group["params"])


def noisy(labels: Tensor, noise: float, classes: int, draw: torch.Generator) -> Tensor:
    """The labels, of which a share (noise) is drawn at random: some of these come out right by chance."""
    wrong = torch.rand(len(labels), generator=draw) < noise
    return torch.where(wrong, torch.randint(0, classes, (len(labels),), generator=draw), labels)


def split(seed: int, share: float = 1.0, noise: float = 0.0) -> tuple[Data, Data, Data]:
    """Training, validation and test data. The last 450 digits are the test, whatever the seed; of the others 270, by seed, are
    for validation, and a share of the remaining 1077 for training, with a share of the labels (noise) drawn at random."""
    digits, draw = load_once(), torch.Generator().manual_seed(seed)
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(x) - 450, generator=draw)
    chosen = order[270:][: round(share * (len(order) - 270))]
    return (x[chosen], noisy(y[chosen], noise, 10, draw)), (x[order[:270]], y[order[:270]]), (x[-450:], y[-450:])


def perceptron(*widths: int, seed: int) -> nn.Sequential:
    """Hidden layers of these widths (ReLU) between 64 pixels and 10 classes."""
    torch.manual_seed(seed)
    sizes = (64, *widths)
    hidden = [part for pair in zip(sizes, widths, strict=False) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], 10))


def train(
    model: Callable[[Tensor], Tensor],
    data: Data,
    epochs: int,
    seed: int,
    optimizer: torch.optim.Optimizer,
    after: Callable[[], object] = bool,
    size: int = 32,
) -> float:
    """Batches of this size, whose order is the seed's alone. `after` is called after every step. Returns seconds."""
    draw, start = torch.Generator().manual_seed(seed), time.perf_counter()
    for _ in range(epochs):
        for batch in torch.randperm(len(data[0]), generator=draw).split(size):
            nn.functional.cross_entropy(model(data[0][batch]), data[1][batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
            after()
    return time.perf_counter() - start


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """In %."""
    return 100 * (model(data[0]).argmax(1) == data[1]).float().mean().item()


def measured(setup: dict, trials: Iterable[dict], run: Callable[..., dict], output: Path | None) -> list[dict]:
    """A row for each trial, which is what `run` is told: the setup, the trial, and what came of it. Each is a line of JSON on
    the screen, and in `output` as it comes; what `output` holds already is not run again."""
    lines = output.read_text().splitlines() if output and output.is_file() else []
    held, rows = [json.loads(line) for line in lines], []
    for trial in trials:
        told = setup | trial
        row = next((row for row in held if row | told == row), None)
        if row is None:
            row = told | run(**trial)
            print(json.dumps(row), flush=True)
            if output:
                with output.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        rows.append(row)
    return rows


def best_rate(rows: Iterable[dict], arm: Callable[[dict], object], best: Callable = max) -> list[dict]:
    """Of each arm the rows at the rate whose mean validation score over the seeds is best; the lower rate of equals."""
    found: dict[object, dict[float, list[dict]]] = {}
    for row in sorted(rows, key=lambda row: row["rate"]):
        found.setdefault(arm(row), {}).setdefault(row["rate"], []).append(row)
    chosen = [
        best(rates.values(), key=lambda same: round(sum(row["validation"] for row in same), 6))
        for rates in found.values()
    ]
    return [row for same in chosen for row in same]


def compare(rows: list[dict], best: Callable = max) -> list[dict]:
    """For each condition, and for all together where there are several, a row of each method's means, and of its paired
    difference to NeuroPlastic as it comes."""
    chosen = best_rate(rows, lambda row: (row["method"], row["share"], row["noise"]), best)
    seeds, methods = (dict.fromkeys(row[name] for row in rows) for name in ("seed", "method"))
    conditions, found = sorted({(row["noise"], row["share"]) for row in rows}), []
    for condition in [*conditions, *([None] if len(conditions) > 1 else [])]:
        here = [row for row in chosen if condition in (None, (row["noise"], row["share"]))]
        held = {method: [row for row in here if row["method"] == method] for method in methods}
        tests = {
            method: {seed: mean(row["test"] for row in mine if row["seed"] == seed) for seed in seeds}
            for method, mine in held.items()
        }
        for method, mine in held.items():
            line = {
                "condition": f"{condition[1]:.0%} of the data, {condition[0]:.0%} noise" if condition else "all",
                "method": method,
                **{key: mean(row[key] for row in mine) for key in ("test", "bytes")},
                "milliseconds": sorted(row["milliseconds"] for row in mine)[len(mine) // 2],
                "rate": mine[0]["rate"] if condition else None,
            }
            found.append(line | ({} if method == OURS else paired(tests[method], tests[OURS])))
    return found


def at_equal_rates(rows: list[dict]) -> list[dict]:
    """The paired difference to NeuroPlastic of each method that tried the same rates, of means over all rates and conditions:
    nothing is chosen here, so that the chance of a choice is not in it."""
    held: dict[str, dict[int, list[dict]]] = {}
    for row in rows:
        held.setdefault(row["method"], {}).setdefault(row["seed"], []).append(row)
    rates = {method: {row["rate"] for mine in seeds.values() for row in mine} for method, seeds in held.items()}
    tests = {
        method: {seed: mean(row["test"] for row in mine) for seed, mine in held[method].items()}
        for method in held
        if rates[method] == rates[OURS]
    }
    return [{"method": method, **paired(tests[method], tests[OURS])} for method in tests if method != OURS]


def mean(values: Iterable[float]) -> float:
    held = list(values)
    return sum(held) / len(held)


def tell(found: list[dict]) -> None:
    """Prints what `compare` gave, and how much of this is chance."""
    for row in found:
        change = interval(row) if "difference" in row else ""
        rate = "" if row["rate"] is None else f"{row['rate']:g}"
        cost = f"{row['milliseconds']:.2f} ms {row['bytes']:5.2f} B"
        print(f"{row['condition']:26} {row['method']:13} rate {rate:6} {row['test']:.2f} {change:22} {cost}")
    print(tell_chance([row for row in found if "difference" in row]))


def paired(values: dict[int, float], others: dict[int, float]) -> dict[str, float]:
    """Mean of values - others over the seeds, the ends of the 95 % interval (Student's t), and p of no difference."""
    change = [values[seed] - others[seed] for seed in sorted(values)]
    test = stats.ttest_1samp(change, 0.0)
    low, high = test.confidence_interval(0.95)
    return {"difference": sum(change) / len(change), "low": float(low), "high": float(high), "p": float(test.pvalue)}


def interval(row: dict[str, float]) -> str:
    return f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


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


def draw_courses(held: dict[str, list[dict]], titles: dict[str, str], path: Path) -> None:
    """A panel for each title: by task, the mean over seeds of running means over five tasks, and its 95 % interval.
    held: by method, rows whose `by_task` holds a list for each title."""
    figure, panels = plt.subplots(
        1, len(titles), figsize=(max(6, 4 * len(titles)), 3.4), layout="constrained", squeeze=False
    )
    for panel, (name, title) in zip(panels[0], titles.items(), strict=True):
        for method, rows in held.items():
            courses = torch.tensor([row["by_task"][name] for row in rows], dtype=torch.float64)
            courses = courses.unfold(1, min(5, courses.shape[1]), 1).mean(2)
            tasks = range(min(5, len(rows[0]["by_task"][name])), len(rows[0]["by_task"][name]) + 1)
            middle = courses.mean(0)
            reach = (
                stats.t.ppf(0.975, len(rows) - 1) * courses.std(0) / math.sqrt(len(rows))
                if len(rows) > 1
                else 0 * middle
            )
            (line,) = panel.plot(tasks, middle, label=method)
            panel.fill_between(tasks, middle - reach, middle + reach, color=line.get_color(), alpha=0.15, lw=0)
        panel.set(title=title, xlabel="task")
    panels[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
