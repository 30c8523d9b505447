"""What the command line runs: methods by name, their data, and going on where a run was."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from detectors import save_detector
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, Wav2Vec2FeatureExtractor
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_neuroplastic.audio import AudioCollator, load_asvspoof2019, write_corpus
from hf_neuroplastic.audio.evaluation import bona_fide_scores, window_collator
from hf_neuroplastic.audio.metrics import equal_error_rate
from hf_neuroplastic.audio.recipe import BALANCED_COLUMNS, Recipe
from hf_neuroplastic.audio.selection import KeepBest
from hf_neuroplastic.audio.training import balanced, class_weights, fine_tune
from hf_neuroplastic.neurons.config import DropInConfig


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("data") / "corpus", utterances={"train": 16, "dev": 4, "eval": 12})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_detector("wav2vec2", folder)
    return folder


def loaded(model):
    return AutoModelForAudioClassification.from_pretrained(model), AutoFeatureExtractor.from_pretrained(model)


def splits(corpus, *names):
    return [load_asvspoof2019(corpus, "LA", split) for split in names or ("train", "dev")]


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_are_random_in_training_differ_between_epochs_and_are_the_same_in_every_run(corpus, model, workers):
    rows, seen = splits(corpus, "train")[0], []
    for epoch in (0, 1, 0):
        collator = window_collator(AutoFeatureExtractor.from_pretrained(model), 0.3, seed=1)
        collator.epoch = epoch
        loader = torch.utils.data.DataLoader(rows, batch_size=4, collate_fn=collator, num_workers=workers)
        seen.append(torch.cat([batch["input_values"] for batch in loader]))
    assert torch.equal(seen[0], seen[2])
    assert (seen[0] != seen[1]).any(1).all()
    middle = window_collator(AutoFeatureExtractor.from_pretrained(model), 0.3)([rows[0]])["input_values"]
    assert (middle != seen[0][0]).any()


def test_an_epoch_of_training_has_windows_of_its_own(corpus, model, monkeypatch):
    epochs, window = [], AudioCollator.window

    def noted(self, *given):
        epochs.append(self.epoch)
        return window(self, *given)

    monkeypatch.setattr(AudioCollator, "window", noted)
    recipe = Recipe(method="adamw", steps=8, batch_size=4, seconds=0.3)  # 16 utterances: two epochs
    fine_tune(*loaded(model), splits(corpus)[0], None, recipe)
    assert epochs[:16] == [0] * 16
    assert epochs[16:32] == [1] * 16


def test_training_is_augmented_and_scoring_is_not(corpus, model, monkeypatch):
    (train, dev), seen, window = splits(corpus), set(), AudioCollator.window

    def noted(self, row):
        seen.add(("train" in row["audio"]["path"], self.augment is not None))
        return window(self, row)

    monkeypatch.setattr(AudioCollator, "window", noted)

    def loss(parts):
        recipe = Recipe(method="adamw", steps=2, batch_size=4, seconds=0.3, augment=parts)
        return fine_tune(*loaded(model), train, dev, recipe)[1].train_loss

    plain = loss("")
    assert seen == {(True, False), (False, False)}
    seen.clear()
    assert plain != loss("rawboost:3") == loss("rawboost:3")
    assert seen == {(True, True), (False, False)}


def test_scores_are_higher_for_bona_fide():
    scores = bona_fide_scores(np.array([[2.0, 0.0], [1.0, 0.5], [0.0, 1.0], [-1.0, 3.0]]))
    assert equal_error_rate(scores, [0, 0, 1, 1])[0] == 0.0


class _Energy(torch.nn.Module):
    """A classifier of loudness: nothing in it is a feed-forward layer."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(1, 2)

    def forward(self, input_values, attention_mask=None, labels=None):
        logits = self.head(input_values.square().mean(1, keepdim=True))
        return SequenceClassifierOutput(logits=logits)


@pytest.mark.parametrize("method", ["adamw", "neuroplastic"])
def test_models_without_sites_can_be_trained_without_dropin(method, corpus):
    recipe, extractor = Recipe(method=method, steps=1, batch_size=2, seconds=0.3), Wav2Vec2FeatureExtractor()
    assert fine_tune(_Energy(), extractor, *splits(corpus), recipe)[1].health == []
    with pytest.raises(ValueError, match="no feed-forward layer"):
        fine_tune(_Energy(), extractor, *splits(corpus), replace(recipe, method=f"{method}+dropin"))


@pytest.mark.parametrize("source", ["start", "checkpoint"])
def test_fine_tuning_resumes_a_growing_run(tmp_path, corpus, model, source):
    output, growing = tmp_path / "out", DropInConfig.dropin(5, interval=1)
    recipe = Recipe(steps=5, batch_size=4, seconds=0.4, eval_every=1, dropin=growing)

    def run(folder, resume):
        network, extractor = AutoModelForAudioClassification.from_pretrained(folder), loaded(model)[1]
        return fine_tune(network, extractor, splits(corpus)[0], None, recipe, output=output, resume=resume)[0]

    whole = run(model, resume=False)
    shutil.rmtree(output / "checkpoint-5")
    resumed = run(model if source == "start" else output / "checkpoint-4", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_weights_of_the_lowest_dev_eer_are_kept(corpus, model, tmp_path, monkeypatch):
    """Of EERs .3, .1, .2, .1 the second: the first of the best."""
    eers, weights = iter([0.3, 0.1, 0.2, 0.1]), []
    monkeypatch.setattr("hf_neuroplastic.audio.trainer.equal_error_rate", lambda *_: (next(eers), 0.0))
    kept = KeepBest.on_evaluate

    def noted(self, args, state, control, model=None, **rest):
        weights.append([p.detach().clone() for p in model.parameters()])
        kept(self, args, state, control, model=model, **rest)

    monkeypatch.setattr(KeepBest, "on_evaluate", noted)
    recipe = Recipe(method="adamw", steps=4, batch_size=4, seconds=0.3, eval_every=1, learning_rate=1e-3)
    network, run = fine_tune(*loaded(model), *splits(corpus), recipe, output=tmp_path)
    assert (run.dev_eer, run.best_step, run.averaged) == (0.1, 2, 1)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), weights[1], strict=True))
    assert [path.name for path in sorted((tmp_path / "best").iterdir())] == ["best.json", "step-2.safetensors"]


@pytest.mark.parametrize(("of_the_mean", "averaged"), [(0.05, 2), (0.15, 1)])
def test_the_mean_of_the_best_weights_is_taken_where_it_does_better(of_the_mean, averaged, corpus, model, monkeypatch):
    eers = iter([0.1, 0.2, 0.3, of_the_mean])
    monkeypatch.setattr("hf_neuroplastic.audio.trainer.equal_error_rate", lambda *_: (next(eers), 0.0))
    recipe = Recipe(method="adamw", steps=3, batch_size=4, seconds=0.3, eval_every=1, average=2)
    _, run = fine_tune(*loaded(model), *splits(corpus), recipe)
    assert (run.averaged, run.best_step) == (averaged, None if averaged == 2 else 1)
    assert run.dev_eer == min(0.1, of_the_mean)


def test_training_ends_when_patience_does(corpus, model, monkeypatch):
    eers = iter([0.3, 0.1, 0.2, 0.2, 0.2, 0.2])
    monkeypatch.setattr("hf_neuroplastic.audio.trainer.equal_error_rate", lambda *_: (next(eers), 0.0))
    recipe = Recipe(method="adamw", steps=9, batch_size=2, seconds=0.3, eval_every=1, patience=2)
    assert fine_tune(*loaded(model), *splits(corpus), recipe)[1].steps == 4


def test_class_weights_are_one_on_average_and_auto_weighs_both_classes_alike():
    for rule in ("auto", "none", "0.9,0.1"):
        first, second = class_weights(rule, (10, 90))
        assert (10 * first + 90 * second) / 100 == pytest.approx(1)
    first, second = class_weights("auto", (10, 90))
    assert 10 * first == pytest.approx(90 * second)
    first, second = class_weights("0.9,0.1", (10, 90))
    assert first == pytest.approx(9 * second)


def test_balancing_repeats_the_smaller_class(corpus):
    rows = splits(corpus)[0]
    few = rows.select([i for i, label in enumerate(rows["label"]) if label == 1 or i % 3 == 0])
    labels = np.asarray(balanced(few, "classes", 0)["label"])
    assert (labels == 0).sum() == (labels == 1).sum() == max(np.bincount(few["label"]))


CORPORA = ["x"] * 8 + ["y"] * 90
KINDS = ["-", "-", "-", "a", "a", "a", "a", "b"] + ["-"] * 30 + ["c"] * 50 + ["d"] * 10


@pytest.mark.parametrize("balance", ["corpora", "classes", "attacks", "corpora,classes", "attacks,classes,corpora"])
def test_what_is_balanced_weighs_alike_and_no_row_is_left_out(balance):
    table = {"corpus": CORPORA, "attack": KINDS, "label": [int(kind != "-") for kind in KINDS], "row": range(98)}
    drawn = balanced(Dataset.from_dict(table), balance, 0)
    assert set(drawn["row"]) == set(range(98))
    columns = [name for part, name in BALANCED_COLUMNS.items() if part in balance]
    for depth in range(len(columns)):
        outer = Counter(zip(*(drawn[name] for name in columns[:depth]), strict=True)) if depth else {(): len(drawn)}
        inner = Counter(zip(*(drawn[name] for name in columns[: depth + 1]), strict=True))
        for group, count in outer.items():
            counts = [n for key, n in inner.items() if key[:depth] == group]
            assert max(counts) - min(counts) <= len(columns)  # rounding
            assert sum(counts) == count


def test_balancing_what_the_data_do_not_tell_is_refused():
    rows = Dataset.from_dict({"label": [0, 1], "corpus": ["x", "x"]})
    for balance, column in (("corpora", "corpus"), ("attacks", "attack")):
        with pytest.raises(ValueError, match=f"balance='{balance}' needs rows of two values of '{column}'"):
            balanced(rows, balance, 0)


@pytest.mark.parametrize(
    ("freeze", "learns"),
    [
        ("nothing", {"feature_extractor", "layers.0", "layers.2", "classifier"}),
        ("features", {"layers.0", "layers.2", "classifier"}),
        ("all", {"classifier"}),
        ("first:1", {"layers.0", "classifier"}),
        ("last:1", {"layers.2", "classifier"}),
    ],
)
def test_what_is_frozen_keeps_its_weights(freeze, learns, corpus, model):
    network, extractor = loaded(model)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    recipe = Recipe(method="adamw", steps=2, batch_size=4, seconds=0.3, freeze=freeze, learning_rate=1e-2)
    network, _ = fine_tune(network, extractor, splits(corpus)[0], None, recipe)
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    parts = {"feature_extractor", "layers.0", "layers.2", "classifier"}
    assert {part for part in parts if any(part in name for name in changed)} == learns


def test_low_rank_adapters_leave_a_plain_model(corpus, model):
    pytest.importorskip("peft")
    network, extractor = loaded(model)
    names = [name for name, _ in network.named_parameters()]
    recipe = Recipe(method="neuroplastic", steps=2, batch_size=4, seconds=0.3, lora=2, learning_rate=1e-2)
    network, run = fine_tune(network, extractor, *splits(corpus), recipe)
    assert [name for name, _ in network.named_parameters()] == names
    assert run.dev_eer is not None
    with pytest.raises(ValueError, match=r"lora=2 and method='adamw\+dropin' exclude each other"):
        Recipe(method="adamw+dropin", lora=2)
