"""hf-neuroplastic stream."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from shutil import rmtree
from threading import Thread
from typing import Annotated, Any

import typer
from filelock import FileLock, Timeout
from rich.markup import escape

from .console import Report, bars, console, one_line_errors, quiet
from .loading import DEFAULTS, load_splits
from .tables import print_table

SETTINGS, COURSES, STARTS, PAGE, TABLE, LOG, LOCK = (
    "stream.yaml",
    "courses",
    "starts",
    "stream.html",
    "table.json",
    "stream.log",
    ".lock",
)
QUICK = {"seeds": [0], "rates": [1e-3], "examples": 8, "start_steps": 20, "evaluate": 16}


def stream(
    config: Annotated[
        Path, typer.Option(help="YAML file: model, data, start, stages, arms, ...; see the documentation.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the results; a stream that was begun there goes on.")],
    processes: Annotated[int, typer.Option(min=1, help="Courses that run side by side.")] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, one rate, few examples: the shape of the result.")
    ] = False,
) -> None:
    """Attacks one after another, with few examples each: what every way of going on learns, forgets and costs."""
    with one_line_errors():
        _stream(config, output, processes, quick)


def _stream(config: Path, output: Path, processes: int, quick: bool) -> None:
    from ..audio.recipe import read_yaml, write_yaml
    from ..audio.results import write_json
    from ..audio.stream.course import Job
    from ..audio.stream.page import page_of, rows_of
    from ..audio.stream.summary import chosen_courses, table_of

    settings = read_yaml(config)
    if quick:
        settings = _quickened(settings)
    missing = [name for name in ("model", "data") if settings.get(name) is None]
    if missing:
        raise ValueError(f"{config} lacks {' and '.join(missing)}")
    for name in ("model", "data"):
        given = settings[name]
        listed = given if name == "data" and isinstance(given, list) else [given]
        if not listed or not all(isinstance(place, str) and place for place in listed):
            what = "a Hub id or folder" if name == "model" else "a folder or table, or a list of such"
            raise ValueError(f"{name} in {config} must be {what}; got {given!r}")
    plan = _plan_of(settings)
    names = [arm.name for arm in plan.arms]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"arms and optimizers in {config} must make at least one arm, and none twice; got {names or 'none'}"
        )
    if (output / SETTINGS).is_file():
        if read_yaml(output / SETTINGS) != settings:
            raise ValueError(f"{output} holds a stream of other settings, {output / SETTINGS}; choose another --output")
    elif output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty; choose another --output")
    quiet()
    jobs = [
        Job(arm, trial, seed)
        for seed in plan.seeds
        for arm in range(len(plan.arms))
        for trial in range(len(plan.arms[0].trials))
    ]
    with bars(output / LOG) as report:
        starts = [seed for seed in plan.seeds if not (output / STARTS / str(seed)).is_dir()]
        waiting = [job for job in jobs if not (output / COURSES / f"{job.name}.json").is_file()]
        if starts or waiting:
            _require(plan, settings, report)
            output.mkdir(parents=True, exist_ok=True)
            with alone(output):
                write_yaml(output / SETTINGS, settings)
                (output / COURSES).mkdir(exist_ok=True)
                _run(output, {"starts": (start, starts), "courses": (course, waiting)}, processes, report)
    courses = [json.loads((output / COURSES / f"{job.name}.json").read_text(encoding="utf-8")) for job in jobs]
    chosen = chosen_courses(courses)
    rows = table_of(chosen)
    write_json(output / TABLE, {"table": rows, "settings": settings})
    (output / PAGE).write_text(page_of(chosen, f"Stream of attacks: {config.stem}"), encoding="utf-8")
    shown = ("arm", "average", "new", "forgetting", "difference")
    print_table("arms: EER in %", [{name: row[name] for name in shown} for row in rows_of(rows)])
    console.print(f"open {escape(str(output / PAGE))} in a browser")


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """No other stream works in the folder meanwhile; what a killed one left half done is taken away.

    Raises:
        FileExistsError: another stream works there.
    """
    lock = FileLock(output / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise FileExistsError(f"a stream works in {output}; wait for its end, or choose another --output") from None
    try:
        for draft in (output / STARTS).glob(".*"):
            rmtree(draft)
        yield
    finally:
        lock.release()


def _require(plan: Any, settings: dict[str, Any], report: Report) -> None:
    """Says what is wrong with the data, and with an arm for this model, before anything is written or trained."""
    from ..audio.detector import load_detector, require_window
    from ..audio.stream.course import stage_recipe
    from ..audio.training import require_trainable

    model, extractor = load_detector(str(settings["model"]))
    for arm in plan.arms:
        for trial in range(len(arm.trials)):
            recipe = stage_recipe(arm, trial, 0)
            require_window(recipe.seconds, extractor)
            require_trainable(model, recipe)
    _parts(settings, plan, report)


def _quickened(settings: dict[str, Any]) -> dict[str, Any]:
    """The stream in small; of an arm's own trials the first."""
    few = {**settings, **QUICK, "recipe": {**(settings.get("recipe") or {}), "steps": 10}}
    if isinstance(arms := settings.get("arms"), dict):
        few["arms"] = {
            name: {**arm, "trials": arm["trials"][:1]}
            if isinstance(arm, dict) and isinstance(arm.get("trials"), list)
            else arm
            for name, arm in arms.items()
        }
    return few


def _run(output: Path, stages: dict[str, tuple[Any, list[Any]]], processes: int, report: Report) -> None:
    """One stage after another; in each a task for every part, in a pool of processes, which share torch's threads."""
    import torch

    threads = max(1, torch.get_num_threads() // processes)  # OMP_NUM_THREADS and the cores that are ours count
    for stage, (task, parts) in stages.items():
        with ProcessPoolExecutor(processes, get_context("spawn"), initializer=end_with_parent) as pool:
            running = [pool.submit(task, str(output), threads, part) for part in parts]
            if running:
                report(stage, 0, len(running))
            try:
                for done, finished in enumerate(as_completed(running), 1):
                    report.say(f"{finished.result()} ({done} of {len(running)})")
                    report(stage, done, len(running))
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                if isinstance(error, BrokenProcessPool):
                    raise ChildProcessError(
                        "a process of the stream was ended from outside, perhaps for lack of memory; the same command goes on, "
                        "at best with fewer --processes"
                    ) from None
                raise


def end_with_parent() -> None:
    """In a process of the pool: ends it when the first process was killed, which else would leave it waiting for ever."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def start(output: str, threads: int, seed: int) -> str:
    """In a process of the pool: trains the detector that courses of a seed start from."""
    from ..audio.stream.course import train_start

    model, plan, parts = _prepared(output, threads)
    draft = Path(output) / STARTS / f".{seed}.{os.getpid()}"
    train_start(model, parts, plan, seed, draft)
    draft.rename(Path(output) / STARTS / str(seed))
    return f"start of seed {seed}"


def course(output: str, threads: int, job: Any) -> str:
    """In a process of the pool: one course, written when it is complete."""
    from ..audio.stream.course import course as run_course
    from ..audio.stream.course import described

    _, plan, parts = _prepared(output, threads)
    told = run_course(Path(output) / STARTS / str(job.seed), parts, plan, job)
    path = Path(output) / COURSES / f"{job.name}.json"
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(told, allow_nan=False), encoding="utf-8")
    draft.rename(path)
    return described(told)


@cache
def _prepared(output: str, threads: int) -> tuple[str, Any, Any]:
    """Once in a process: the model's name, the stream, and the parts of the data."""
    import torch

    from ..audio.recipe import read_yaml

    torch.set_num_threads(threads)
    console.quiet = True  # the first process has said what there is to say
    quiet()
    settings = read_yaml(Path(output) / SETTINGS)
    plan = _plan_of(settings)
    return str(settings["model"]), plan, _parts(settings, plan, Report(None, None))


def _plan_of(settings: dict[str, Any]) -> Any:
    from ..audio.stream.settings import stream_of

    return stream_of({name: value for name, value in settings.items() if name not in ("model", "data", *DEFAULTS)})


def _parts(settings: dict[str, Any], plan: Any, report: Report) -> Any:
    """All splits of the corpora, pooled and parted anew."""
    from datasets import concatenate_datasets

    from ..audio.stream.parts import parts_of

    splits = load_splits(DEFAULTS | settings, ("train", "dev", "eval"), 0, report)
    return parts_of(concatenate_datasets(list(splits.values())), plan)
