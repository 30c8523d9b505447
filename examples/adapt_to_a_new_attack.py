"""Teach a detector a new attack by new neurons alone, keep these in a folder of their own, and take them out again.

    python examples/adapt_to_a_new_attack.py out/model /data/new --old /data/ASVspoof2019 --output adapter

Corpora have the layout of ASVspoof 2019 LA here; `hf-neuroplastic adapt` does the same for any layout, and chooses the weights
on dev. Training takes the new attack and, with --old, as many recordings of what the detector knows. All else stays bit for
bit what it was: the last figure, after the neurons were taken out, is the first.
"""

import argparse
from pathlib import Path

from datasets import concatenate_datasets
from transformers import Trainer, TrainingArguments

from hf_neuroplastic import (
    DropInCallback,
    DropInConfig,
    NeuroPlastic,
    attach_neurons,
    detach_neurons,
    only_new_neurons,
    save_neurons,
)
from hf_neuroplastic.audio import AudioCollator, load_asvspoof2019
from hf_neuroplastic.audio.detector import load_detector
from hf_neuroplastic.audio.evaluation import score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub id or folder of a detector")
    parser.add_argument("new", help="corpus with the new attack")
    parser.add_argument("--old", help="corpus of what the detector knows")
    parser.add_argument("--output", default="adapter")
    parser.add_argument("--neurons", type=int, default=64, help="in each layer")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of windows")
    arguments = parser.parse_args()

    corpora = {"new": arguments.new} | ({"old": arguments.old} if arguments.old else {})
    train = [load_asvspoof2019(place, "LA", "train").shuffle(seed=0) for place in corpora.values()]
    train = [rows.select(range(min(len(rows), len(train[0])))) for rows in train]
    trials = {name: load_asvspoof2019(place, "LA", "eval") for name, place in corpora.items()}
    model, extractor = load_detector(arguments.model)  # its classes in our order, whatever that of the checkpoint

    def eers(model):
        return [100 * score(model, extractor, rows, arguments.seconds).eer for rows in trials.values()]

    before = eers(model)
    base = only_new_neurons(model)  # classifier=True lets the head learn as well
    trainer = Trainer(
        model,
        TrainingArguments(
            f"{arguments.output}-run",
            max_steps=arguments.steps,
            per_device_train_batch_size=16,
            remove_unused_columns=False,
            save_strategy="no",
            logging_steps=max(1, arguments.steps // 10),
            report_to=[],
        ),
        data_collator=AudioCollator(extractor, max_seconds=arguments.seconds),
        train_dataset=concatenate_datasets(train),
        optimizers=(NeuroPlastic([p for p in model.parameters() if p.requires_grad], lr=5e-3), None),
        callbacks=[DropInCallback(DropInConfig.adapter(arguments.neurons))],
    )
    trainer.train()
    count = save_neurons(trainer.model, arguments.output, base)
    size = sum(path.stat().st_size for path in Path(arguments.output).iterdir())
    print(f"{count} new neurons, {size / 1e6:.2f} MB in {arguments.output}")

    model, _ = load_detector(arguments.model)
    attach_neurons(model, arguments.output)
    after = eers(model)
    detach_neurons(model, arguments.output)
    for name, *row in zip(trials, before, after, eers(model), strict=True):
        print(
            f"{name}: EER {row[0]:.1f} % before, {row[1]:.1f} % with the new neurons, {row[2]:.1f} % without them again"
        )


if __name__ == "__main__":
    main()
