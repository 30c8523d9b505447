"""hf-neuroplastic train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from .console import MAIN, bars, console, one_line_errors, quiet
from .loading import DEFAULTS, FORMATS, load_splits
from .runs import MODEL, RECIPE, RESULTS, fine_tuned, is_finished, require_new, save_trained, scored

CURVES, SCORES, LOG = "results.png", "scores.csv", "train.log"
NOT_OF_A_RECIPE = ("model", "data", *DEFAULTS)


def train(
    output: Annotated[Path, typer.Option(help="Folder for the results; new or empty.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML file of these settings, such as a run's recipe.yaml.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Hub id or folder of a pretrained audio model.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Folder or table of the corpus; several times to join corpora.")
    ] = None,
    format: Annotated[str | None, typer.Option(help=f"Layout of the corpora: {FORMATS}.")] = None,
    columns: Annotated[str | None, typer.Option(help="Headings of a table, such as path=wav,label=is_fake.")] = None,
    labels: Annotated[str | None, typer.Option(help="What a table's labels mean, such as 0=bonafide,1=spoof.")] = None,
    access: Annotated[str | None, typer.Option(help="Part of ASVspoof: LA, PA or DF; default: what is there.")] = None,
    variant: Annotated[str | None, typer.Option(help="Variant of Fake-or-Real, such as for-norm.")] = None,
    real: Annotated[str | None, typer.Option(help="Folder of the real speech of WaveFake.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="adamw or neuroplastic, alone or with +dropin (default neuroplastic+dropin); neuroplastic-8bit."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps (default 1000).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Per process (default 8).")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Batches per step (default 1).")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate (default 5e-5).")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Default 0.01.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Window of audio (default 4.0375, 64,600 samples); shorter audio is repeated.")
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="Parts by commas: rawboost:1 to 8, codec, room, noise, filter, gain, mask; noise@.3 for a probability."
        ),
    ] = None,
    class_weights: Annotated[
        str | None, typer.Option(help="Of the loss: auto (default), none, or bonafide,spoof such as 0.9,0.1.")
    ] = None,
    balance: Annotated[
        str | None,
        typer.Option(help="What weighs alike in training, by commas: corpora, classes, attacks; default: nothing."),
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between dev EERs (default a tenth of the steps).")
    ] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after so many dev EERs without a better one.")] = None,
    average: Annotated[int | None, typer.Option(help="Also try the mean of so many best checkpoints.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 (default), bf16 or fp16.")] = None,
    gradient_checkpointing: Annotated[bool | None, typer.Option(help="Less memory, more time.")] = None,
    freeze: Annotated[
        str | None, typer.Option(help="nothing, features (default), all but the head, first:K or last:K layers train.")
    ] = None,
    lora: Annotated[int | None, typer.Option(help="Rank of low-rank adapters (PEFT), merged at the end.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default 0.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that check and load audio (default 0).")] = None,
    report_to: Annotated[str | None, typer.Option(help="Trainer's integrations, such as tensorboard,trackio.")] = None,
    on_error: Annotated[str | None, typer.Option(help="Corrupt or empty audio files: raise (default) or skip.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last whole checkpoint in the output.")
    ] = False,
) -> None:
    """Fine-tune MODEL on your own data, choose the weights on its dev split, and report the equal error rates."""
    given = {name: value for name, value in locals().items() if name not in ("output", "config", "resume")}
    with one_line_errors():
        _train(output, config, {name: value for name, value in given.items() if value is not None}, resume)


def _train(output: Path, config: Path | None, given: dict[str, Any], resume: bool) -> None:
    from ..audio.recipe import read_yaml, recipe_of

    settings = DEFAULTS | (read_yaml(config) if config else {}) | given
    missing = [f"--{name}" for name in ("model", "data") if name not in settings]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be given, on the command line or in --config")
    recipe = recipe_of({name: value for name, value in settings.items() if name not in NOT_OF_A_RECIPE})
    described = {name: settings[name] for name in NOT_OF_A_RECIPE} | recipe.to_dict()
    if not resume:
        require_new(output, ", or --resume an interrupted training")
    elif is_finished(output, described):
        return

    from dataclasses import replace

    from ..audio.detector import load_detector, require_window
    from ..audio.detector_file import write_detector
    from ..audio.figures import draw_runs
    from ..audio.results import figures_of, results_of, table_of, write_json, write_scores
    from ..audio.training import detector_file_of, require_both_classes, require_trainable
    from .tables import print_evaluation, print_runs

    quiet()
    network, extractor = load_detector(str(settings["model"]))
    require_window(recipe.seconds, extractor)
    require_trainable(network, recipe)
    with bars(output / LOG) as report:
        splits = load_splits(settings, ("train", "dev", "eval"), recipe.workers, report)
        for name, rows in splits.items():
            require_both_classes(name, rows)
        network, run = fine_tuned(network, extractor, splits, recipe, output, described, resume, report)
        if not MAIN:
            return
        held_out = {name: rows for name, rows in splits.items() if name != "train"}
        found = scored(network, extractor, held_out, recipe, report)
        run = replace(run, evaluation=found.get("eval"))
        folder = output / MODEL
        if recipe.method == "adamw":  # a card's tag is for models that this package's methods have trained
            network.save_pretrained(folder)
            extractor.save_pretrained(folder)
        else:
            save_trained(network, extractor, folder, str(settings["model"]))
        detector = detector_file_of(run, recipe, splits["train"], found.get("dev"))
        write_detector(folder, detector)
        content = results_of([run], described)
        if run.evaluation is not None:
            content["evaluation"] = {
                "figures": figures_of(run.evaluation, detector.log_prior_odds),
                "table": table_of(run.evaluation, sorted(set(splits["train"]["attack"]) - {"-"}) or None),
            }
            draw_runs([run], output / CURVES)
            write_scores(output / SCORES, run.evaluation, detector.log_prior_odds)
        write_json(output / RESULTS, content)
    print_runs([run])
    if "evaluation" in content:
        print_evaluation("eval", **content["evaluation"])
    console.print(f"[dim]{RESULTS}, {LOG}, {RECIPE} and the detector, model/, are in[/] {escape(str(output))}")
