"""One HTML page that compares runs: tables, learning curves, DET curves, attacks, neurons. The page loads nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from .evaluation import Scores
from .figures import draw_det, dress_det, plt
from .results import read_scores

RESULTS, EVALUATION, SCORES = "results.json", "evaluation.json", "scores.csv"
FIGURES = {"min_dcf": "minDCF", "act_dcf": "actDCF", "cllr": "Cllr", "min_tdcf": "min t-DCF"}
CROWDED = 6  # more curves than this have their names beside the picture
INK = "#7d8590"  # readable on white and on black
STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --line: #30363d; --soft: #161b22; } }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 78rem; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { background: var(--soft); }
.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; } svg { height: auto; width: 100%; } figcaption, footer { color: #7d8590; font-size: .85rem; }
"""


@dataclass(frozen=True)
class Entry:
    """What a folder tells of one run: its name, the run as in results.json, figures and table of an evaluation, its scores."""

    name: str
    run: Mapping[str, Any]
    figures: Mapping[str, float]
    table: Sequence[Mapping[str, Any]]
    scores: Scores | None


def read_entries(folders: Sequence[Path]) -> list[Entry]:
    """An entry for each run in folders that `train`, `evaluate` or `demo` left.

    Raises:
        FileNotFoundError: a folder without such results. ValueError: results that cannot be read.
    """
    entries = []
    for folder in folders:
        found = next((folder / name for name in (RESULTS, EVALUATION) if (folder / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"{folder} holds neither {RESULTS} nor {EVALUATION}; give folders of train or evaluate"
            )
        try:
            content = json.loads(found.read_text(encoding="utf-8"))
            scores = read_scores(folder / SCORES) if (folder / SCORES).is_file() else None
            runs = content.get("runs", [{}])
            told = content.get("evaluation") or content.get("detector") or content
            chosen = (content.get("detector") or {}).get("method")
            for run in runs:
                name = f"{folder.name}: {run['name']}" if len(runs) > 1 else folder.name
                evaluated = chosen is None or run["name"] == chosen
                figures, table = (told.get("figures", {}), told.get("table", [])) if evaluated else ({}, [])
                entries.append(Entry(name, run, figures, table, scores if evaluated else None))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{found} cannot be read: {error!r}") from None
    return entries


def page_of(entries: Sequence[Entry], title: str = "Detectors of spoofed speech") -> str:
    """The page, as HTML."""
    pictures = [
        _figure("Dev EER (%) while training", entries, _dev_eer, "step"),
        _figure("Training loss", entries, _loss, "step"),
        _det(entries),
        _figure("Weak neurons (%): contribution below 10 % of the layer's mean", entries, _weak, "step"),
        _figure("Neurons replaced so far", entries, _replaced, "step"),
        _figure("Of these, new ones again (%): at the first event that judged them", entries, _again, "step"),
        _figure("NeuroPlastic: root mean square of the plasticity coefficient", entries, _alpha, "step"),
        *(_layers(entry) for entry in entries),
    ]
    parts = [
        section("Runs", table(_run_rows(entries))),
        section("Attacks and conditions: EER in %", table(_attack_rows(entries))),
        section("Curves", f'<div class="figures">{"".join(filter(None, pictures))}</div>'),
    ]
    return page(title, parts, "EER: equal error rate; 95 %: its bootstrap interval. Made by hf-neuroplastic.")


def page(title: str, parts: Sequence[str], note: str) -> str:
    """An HTML page that loads nothing, of parts that `section` made."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>{''.join(filter(None, parts))}"
        f"<footer>{escape(note)}</footer></html>\n"
    )


def section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}" if content else ""


def table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(value)}</td>" for value in row.values()) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _percent(rate: Any) -> str:
    return "" if rate is None else f"{100 * rate:.1f}"


def _run_rows(entries: Sequence[Entry]) -> list[dict[str, str]]:
    rows = []
    for entry in entries:
        run, figures = entry.run, entry.figures
        interval = f"{_percent(figures['eer_low'])} to {_percent(figures['eer_high'])}" if "eer_low" in figures else ""
        rows.append(
            {
                "run": entry.name,
                "method": run.get("name", ""),
                "steps": str(run.get("steps", "")),
                "time (s)": f"{run['seconds']:.0f}" if "seconds" in run else "",
                "dev EER (%)": _percent(run.get("dev_eer")),
                "EER (%)": _percent(figures.get("eer", run.get("eer"))),
                "95 %": interval,
                **{shown: f"{figures[name]:.3f}" if name in figures else "" for name, shown in FIGURES.items()},
            }
        )
    empty = {shown for shown in FIGURES.values() if not any(row[shown] for row in rows)}
    return [{heading: value for heading, value in row.items() if heading not in empty} for row in rows]


def _attack_rows(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """A row for each group of trials that any run has, a column for each run."""
    held = [entry for entry in entries if entry.table]
    by_name = [{(row["group"], row["name"]): row for row in entry.table} for entry in held]
    order = list(dict.fromkeys(key for rows in by_name for key in rows))
    return [
        {
            "trials": name if group == name else f"{name} ({group})",
            **{
                entry.name: _percent(rows.get((group, name), {}).get("eer"))
                for entry, rows in zip(held, by_name, strict=True)
            },
        }
        for group, name in order
    ]


Curve = tuple[list[float], list[float]]


def _points(rows: Sequence[Mapping[str, Any]], name: str, factor: float = 1.0) -> Curve:
    held = [(row["step"], factor * row[name]) for row in rows if name in row]
    return [step for step, _ in held], [value for _, value in held]


def _dev_eer(entry: Entry) -> Curve:
    return _points(entry.run.get("history", []), "eval_eer", 100)


def _loss(entry: Entry) -> Curve:
    return _points(entry.run.get("history", []), "loss")


def _weak(entry: Entry) -> Curve:
    return _points(entry.run.get("health", []), "neuro/weak_fraction", 100)


def _replaced(entry: Entry) -> Curve:
    return _points(entry.run.get("health", []), "neuro/replaced_total")


def _again(entry: Entry) -> Curve:
    return _points(entry.run.get("health", []), "neuro/replaced_again", 100)


def _alpha(entry: Entry) -> Curve:
    return _points(entry.run.get("plasticity", []), "alpha_rms")


def _figure(title: str, entries: Sequence[Entry], curve: Callable[[Entry], Curve], xlabel: str) -> str:
    """A picture of a curve for each run that has one; "" where none has."""
    curves = [(entry.name, *curve(entry)) for entry in entries]
    if not any(x for _, x, _ in curves):
        return ""
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for index, (name, x, y) in enumerate(curves):  # a run has one colour in all pictures
        if x:
            axes.plot(x, y, f"C{index}", label=name, linewidth=1.5)
    axes.set(xlabel=xlabel)
    return svg(figure, axes, title)


def _det(entries: Sequence[Entry]) -> str:
    if not any(entry.scores for entry in entries):
        return ""
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for index, entry in enumerate(entries):
        if entry.scores is not None:
            draw_det(axes, entry.scores, entry.name, f"C{index}")
    dress_det(axes)
    axes.set(title="")
    return svg(figure, axes, "Detection error trade-off")


def _layers(entry: Entry) -> str:
    """Weak neurons of every layer over time, as a map."""
    rows = [row for row in entry.run.get("plasticity", []) if row.get("weak")]
    if not rows:
        return ""
    names = list(rows[0]["weak"])
    figure, axes = plt.subplots(figsize=(5, 0.8 + 0.25 * max(4, len(names))), layout="constrained")
    shares = [[100 * row["weak"].get(name, 0.0) for row in rows] for name in names]
    extent = (rows[0]["step"], rows[-1]["step"], len(names) - 0.5, -0.5)
    image = axes.imshow(shares, aspect="auto", cmap="viridis", extent=extent)
    axes.set_yticks(range(len(names)), [str(index) for index in range(len(names))])
    axes.set(xlabel="step", ylabel="layer")
    bar = figure.colorbar(image)
    bar.ax.tick_params(colors=INK)
    return svg(figure, axes, f"Weak neurons (%) by layer: {entry.name}")


def svg(figure: Any, axes: Any, title: str) -> str:
    """The figure as a part of a page, in ink that light and dark pages can bear."""
    axes.tick_params(colors=INK, which="both")
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(INK)
    if names := axes.get_legend_handles_labels()[1]:
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(names) > CROWDED else {}
        axes.legend(fontsize=7, frameon=False, labelcolor=INK, **beside)
    file = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    drawn = file.getvalue()
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawn[drawn.index('<svg') :]}</figure>"
