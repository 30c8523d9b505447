"""The main job in small: write a corpus, fine-tune a small model on it three ways, compare.

Everything is made here: real FLAC files in ASVspoof 2019 layout, and a small model with random weights that is saved and
loaded like any other. It shows that the parts work together. It says nothing about real forgeries or pretrained models.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    set_seed,
)

from ..neurons.config import DropInConfig
from . import load_asvspoof2019, write_corpus
from .detector import label_settings
from .evaluation import score
from .figures import draw_runs
from .recipe import Recipe
from .results import results_of, write_json
from .training import Run, fine_tune

METHODS = ("adamw", "neuroplastic", "neuroplastic+dropin")
MODELS = ("wav2vec2", "ast")
RESULTS, PICTURE, MODEL, CORPUS = "results.json", "demo.png", "model", "corpus"
OWN_FILES = {RESULTS, PICTURE, MODEL, CORPUS}
Report = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Scale:
    """How large the demonstration is."""

    utterances: dict[str, int]
    recipe: Recipe


def scale(model: str, quick: bool, seed: int) -> Scale:
    """The sizes that keep the demonstration under 4 minutes on two cores, or under one minute if `quick`."""
    recipe = Recipe(
        steps=80 if quick else 200,
        batch_size=16,
        learning_rate={"wav2vec2": 2e-3, "ast": 1.5e-3}[model],
        seconds=1.2,
        eval_every=20 if quick else 40,
        seed=seed,
        dropin=DropInConfig(interval=10, start=20, maturity=20, threshold=0.3, max_fraction=0.02, statistics_decay=0.9),
    )
    utterances = {"train": 320, "dev": 16, "eval": 120} if quick else {"train": 480, "dev": 80, "eval": 240}
    return Scale(utterances, recipe)


def save_small_model(kind: str, folder: Path, seed: int) -> None:
    """Saves a small model of `kind` with random weights, and its feature extractor, as `from_pretrained` wants them."""
    labels = label_settings()
    set_seed(seed)
    # initializer_range: with transformers' default of .02 models this small often do not start to learn.
    common = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "initializer_range": 0.1,
        **labels,
    }
    if kind == "wav2vec2":
        speech = Wav2Vec2Config(
            conv_dim=(32, 32, 48, 48, 64),
            conv_stride=(5, 4, 4, 2, 2),
            conv_kernel=(10, 8, 8, 4, 4),
            conv_bias=True,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            classifier_proj_size=64,
            apply_spec_augment=False,
            layerdrop=0.0,
            hidden_dropout=0.05,
            activation_dropout=0.05,
            attention_dropout=0.0,
            feat_proj_dropout=0.0,
            final_dropout=0.0,
            **common,
        )
        model: Any = Wav2Vec2ForSequenceClassification(speech)
        extractor: Any = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    elif kind == "ast":
        patches = ASTConfig(
            num_mel_bins=64,
            max_length=128,
            patch_size=16,
            frequency_stride=16,
            time_stride=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **common,
        )
        model = ASTForAudioClassification(patches)
        extractor = ASTFeatureExtractor(num_mel_bins=64, max_length=128, mean=-5.2, std=1.8)
    else:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {kind!r}")
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)


def run_demo(
    output: str | os.PathLike[str],
    *,
    model: str = "wav2vec2",
    quick: bool = False,
    seed: int = 0,
    report: Report | None = None,
) -> list[Run]:
    """Runs the demonstration and leaves its results in `output`: results.json, demo.png, model/ and corpus/.

    Everything is made in a scratch folder beside `output` and moved there at the end: a run that fails leaves nothing.

    Args:
        output: a folder that does not exist, is empty, or holds an earlier demonstration, which is replaced.
        model: "wav2vec2" or "ast".
        quick: a minute instead of four.
        seed: of corpus, weights and training.
        report: called as report(stage, done, total) while it works.

    Raises:
        ValueError: an unknown model. FileExistsError: `output` holds something else.
    """
    output = Path(output).resolve()
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}")
    check_output(output)
    size = scale(model, quick, seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as scratch:
        draft = Path(scratch) / "new"
        draft.mkdir()
        runs = _run_all(draft, model, size, seed, report)
        config = {"model": model, "quick": quick, "seed": seed, **_plain(size)}
        write_json(draft / RESULTS, results_of(runs, config))
        draw_runs(runs, draft / PICTURE)
        if output.exists():
            output.rename(Path(scratch) / "old")
        draft.rename(output)
    return runs


def check_output(output: Path) -> None:
    """Raises FileExistsError unless `output` may be made or replaced: absent, empty, or an earlier demonstration only."""
    if not output.exists():
        return
    held = {path.name for path in output.iterdir()} if output.is_dir() else {output.name}
    if held and not (RESULTS in held and held <= OWN_FILES):
        raise FileExistsError(f"{output} holds other files, such as {sorted(held)[0]}; choose another --output")


def _plain(size: Scale) -> dict[str, Any]:
    return {"utterances": size.utterances, "recipe": size.recipe.to_dict()}


def _run_all(folder: Path, kind: str, size: Scale, seed: int, report: Report | None) -> list[Run]:
    def stage(name: str) -> Callable[[int, int], object] | None:
        return None if report is None else lambda done, total: report(name, done, total)

    write_corpus(folder / CORPUS, seed=seed, utterances=size.utterances, progress=stage("writing the corpus"))
    train, dev, evaluation = (load_asvspoof2019(folder / CORPUS, "LA", split) for split in ("train", "dev", "eval"))
    start = folder / "start"
    save_small_model(kind, start, seed)
    runs = []
    for method in METHODS:
        model = AutoModelForAudioClassification.from_pretrained(start)
        extractor = AutoFeatureExtractor.from_pretrained(start)
        recipe = replace(size.recipe, method=method)
        model, run = fine_tune(model, extractor, train, dev, recipe, progress=stage(method))
        scores = score(model, extractor, evaluation, recipe.seconds)
        runs.append(replace(run, evaluation=scores))
    model.save_pretrained(folder / MODEL)
    extractor.save_pretrained(folder / MODEL)
    _check_stock_loading(model, folder / MODEL)
    shutil.rmtree(start)
    return runs


def _check_stock_loading(model: Any, folder: Path) -> None:
    """A fine-tuned model must be a plain Hugging Face model; a demonstration that breaks this promise should fail."""
    stock, info = AutoModelForAudioClassification.from_pretrained(folder, output_loading_info=True)
    stray = {key: found for key, found in info.items() if found}
    if stray or any(not torch.equal(a, b) for a, b in zip(model.parameters(), stock.parameters(), strict=True)):
        raise RuntimeError(f"the saved model does not load as it was saved: {stray or 'weights differ'}")
