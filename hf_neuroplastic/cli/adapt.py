"""hf-neuroplastic adapt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from .console import MAIN, bars, console, one_line_errors, quiet
from .loading import DEFAULTS, FORMATS, load_splits, splits_found
from .runs import MODEL, RESULTS, fine_tuned, is_finished, require_new, save_trained, scored

LOG, ADAPTER = "adapt.log", "adapter"
BASE = "base"  # folder in the adapter's with what stood beside the base's weights


def adapt(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Hub id or folder of a detector, such as the model/ that train leaves.")],
    output: Annotated[Path, typer.Option(help="Folder for the results; new or empty.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="Folder or table with the new attack: train, eval, at best dev; several times."),
    ] = None,
    rehearse: Annotated[
        list[str] | None, typer.Option(help="Corpus of what the detector knows: trained on beside, and measured.")
    ] = None,
    measure: Annotated[list[str] | None, typer.Option(help="Corpus that is measured only, before and after.")] = None,
    undo: Annotated[
        Path | None, typer.Option(help="An adapter/ to be taken out of MODEL again; nothing is trained then.")
    ] = None,
    neurons: Annotated[int, typer.Option(min=1, help="New neurons in each layer.")] = 64,
    classifier: Annotated[bool, typer.Option("--classifier", help="The classifier's head learns too.")] = False,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Per process.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    method: Annotated[str, typer.Option(help="Optimizer: adamw or neuroplastic.")] = "neuroplastic",
    augment: Annotated[str, typer.Option(help="As for train.")] = "",
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between dev EERs (default a tenth of the steps).")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    seed: Annotated[int, typer.Option(help="Of new neurons, order and windows.")] = 0,
    format: Annotated[str, typer.Option(help=f"Layout of the corpora: {FORMATS}.")] = "auto",
    columns: Annotated[str | None, typer.Option(help="Headings of a table, such as path=wav,label=is_fake.")] = None,
    labels: Annotated[str | None, typer.Option(help="What a table's labels mean, such as 0=bonafide,1=spoof.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that check and load audio.")] = 0,
    on_error: Annotated[str, typer.Option(help="Corrupt or empty audio files: raise or skip.")] = "raise",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last whole checkpoint in the output.")
    ] = False,
) -> None:
    """Teach a detector a new attack by new neurons alone, and show what was won and what was forgotten."""
    with one_line_errors():
        if undo is not None:
            _require_alone(context)
            require_new(output)
            _undo(model, undo, output)
            return
        if not resume:
            require_new(output)
        if not data:
            raise ValueError("--data must name the corpus of the new attack (or --undo an adapter to be taken out)")
        from ..audio.recipe import Recipe
        from ..neurons.config import DropInConfig

        settings: dict[str, Any] = {
            "method": f"{method}+dropin",
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": 0.0,
            "augment": augment,
            "balance": "corpora" if rehearse else "",
            "eval_every": eval_every,
            "precision": precision,
            "freeze": "base" if classifier else "existing",
            "seed": seed,
            "workers": workers,
        }
        # Neurons are there at the first measurement.
        interval = min(10, Recipe(steps=steps, eval_every=eval_every).measured_every)
        recipe = Recipe(**settings, dropin=DropInConfig.adapter(neurons, interval=interval, seed=seed))
        read = DEFAULTS | {"format": format, "columns": columns, "labels": labels, "on_error": on_error}
        places = {"new": data, "rehearsed": rehearse or [], "measured": measure or []}
        _adapt(model, output, places, read, recipe, resume)


def _require_alone(context: typer.Context) -> None:
    """Raises ValueError where options stand beside --undo that would do nothing."""
    given = [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    if idle := [f"--{name.replace('_', '-')}" for name in given if name not in ("model", "output", "undo")]:
        raise ValueError(f"--undo takes an adapter out and trains nothing: leave out {', '.join(idle)}")


def _adapt(
    model: str, output: Path, places: dict[str, list[str]], read: dict[str, Any], recipe: Any, resume: bool
) -> None:
    from dataclasses import replace

    import torch
    from transformers import AutoConfig

    from ..audio.detector import load_detector, read_window, stored_head
    from ..audio.results import results_of, write_json
    from ..audio.trainable import head_of, moving_norms
    from ..audio.training import detector_file_of, require_both_classes, require_trainable
    from ..huggingface.neuron_adapters import save_neurons
    from ..neurons.operate.adapter_base import AdapterBase

    quiet()
    network, extractor = load_detector(model)
    known = read_window(Path(model), extractor)
    recipe = replace(recipe, seconds=known.seconds)
    described = {"model": model, **places, **read, **recipe.to_dict()}
    if resume and is_finished(output, described):
        return
    require_trainable(network, recipe)
    published = AutoConfig.from_pretrained(model)
    stored = stored_head(published)
    if stored == "new" and recipe.freeze != "base":
        raise ValueError(
            f"{model} has no head for bona fide and spoofed speech, and the one that begins would never learn: take a "
            "detector, such as the model/ that train leaves, or pass --classifier"
        )
    head = sorted(head_of(network)) if recipe.freeze == "base" else []
    base = AdapterBase.of(network, modules=[*head, *moving_norms(network)])
    with bars(output / LOG) as report:
        if stored == "turned" or published.dtype not in (None, torch.float32):
            report.say(
                f"the adapter will fit {model} as load_detector brings it, in float32 and with its classes in our order"
            )
        everything = read | {"data": [*places["new"], *places["rehearsed"]]}
        parts = ["train", "dev"]
        if not any("dev" in splits_found(read | {"data": place}) for place in places["new"]):
            parts = parts[:1]  # what is known would choose the weights that learnt least
            report.say("the new corpus has no dev: the last weights are kept, and the detector gets no threshold")
        taught = load_splits(everything, parts, recipe.workers, report)
        sets = [(role, place) for role, each in places.items() for place in each]
        trials = {
            place: load_splits(read | {"data": place}, ("eval",), recipe.workers, report)["eval"] for _, place in sets
        }
        for name, rows in {**taught, **{f"eval of {place}": rows for place, rows in trials.items()}}.items():
            require_both_classes(name, rows)
        before = scored(network, extractor, trials, recipe, report, "before")
        network, run = fine_tuned(network, extractor, taught, recipe, output, described, resume, report)
        if not MAIN:
            return
        grown = save_neurons(network, output / ADAPTER, base)
        after = scored(network, extractor, trials, recipe, report, "after")
        chosen = scored(network, extractor, {"dev": taught["dev"]}, recipe, report) if "dev" in taught else {}
        detector = detector_file_of(run, recipe, taught["train"], chosen.get("dev"))
        detector = replace(detector, attacks=_joined(known.attacks, detector.attacks))
        _save(network, extractor, output, model, known, detector)
        measured = [_compared(role, place, before[place], after[place]) for role, place in sets]
        write_json(output / RESULTS, {**results_of([run], recipe.to_dict()), "neurons": grown, "sets": measured})
    _print(measured, grown, output)


def _compared(role: str, place: str, before: Any, after: Any) -> dict[str, Any]:
    """A corpus by all trials, attack and condition, before and after."""
    from ..audio.results import table_of

    return {"role": role, "data": place, "before": table_of(before), "after": table_of(after)}


def _joined(first: dict[str, list[str]] | None, second: dict[str, list[str]] | None) -> dict[str, list[str]] | None:
    """Attacks of the detector's first training and of this one, by family."""
    families = {*(first or {}), *(second or {})}
    return {f: sorted({*(first or {}).get(f, []), *(second or {}).get(f, [])}) for f in sorted(families)} or None


def _save(network: Any, extractor: Any, output: Path, base: str, known: Any, detector: Any) -> None:
    """The merged detector, and beside the adapter what belongs to the detector with it, and without it."""
    from ..audio.detector_file import write_detector

    save_trained(network, extractor, output / MODEL, base)
    (output / ADAPTER / BASE).mkdir(exist_ok=True)
    for folder, content in ((MODEL, detector), (ADAPTER, detector), (f"{ADAPTER}/{BASE}", known)):
        write_detector(output / folder, content)


def _print(measured: Sequence[dict[str, Any]], grown: int, output: Path) -> None:
    from .tables import name_of, percent, print_table

    for each in measured:
        pairs = zip(each["before"], each["after"], strict=True)
        rows = [
            {
                "trials": name_of(first),
                "bona fide": str(first["bonafide"]),
                "spoof": str(first["spoof"]),
                "EER before (%)": percent(first["eer"]),
                "EER after (%)": percent(second["eer"]),
            }
            for first, second in pairs
        ]
        print_table(f"{each['role']}: {each['data']}", rows)
    place, size = escape(str(output)), sum(path.stat().st_size for path in (output / ADAPTER).glob("neuron_adapter.*"))
    console.print(
        f"{grown} new neurons, {size / 1e6:.2f} MB: {place}/{ADAPTER}; the detector with them: {place}/{MODEL}"
    )
    undo = f"hf-neuroplastic adapt {place}/{MODEL} --undo {place}/{ADAPTER} --output {place}-undone"
    console.print(f"[dim]take them out again:[/] {undo}", soft_wrap=True)


def _undo(model: str, adapter: Path, output: Path) -> None:
    from ..audio.detector import load_detector
    from ..audio.detector_file import DETECTOR, read_detector, write_detector
    from ..huggingface.neuron_adapter_files import read_adapter
    from ..huggingface.neuron_adapters import detach_neurons
    from ..neurons.operate.adapters import grown_neurons

    quiet()
    network, extractor = load_detector(model)
    taken = detach_neurons(network, adapter)
    if other := sum(grown_neurons(network, read_adapter(adapter).base)[0].values()):
        raise ValueError(
            f"{model} holds {other} more neurons than {adapter} and its base: of adapters trained one on top of another the "
            "last goes first; of those put on one base side by side, detach_neurons takes out any"
        )
    folder, beside = output / MODEL, adapter / BASE
    network.save_pretrained(folder)
    extractor.save_pretrained(folder)
    if (beside / DETECTOR).is_file():
        write_detector(folder, read_detector(beside))
    else:
        console.print("no threshold: the adapter does not tell that of its base; evaluate chooses one")
    console.print(f"{taken} neurons are taken out; the detector without them: {escape(str(folder))}")
