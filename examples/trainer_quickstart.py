"""Fine-tune a pretrained audio model on ASVspoof 2019 with NeuroPlastic and DropIn, under the Hugging Face Trainer.

    python examples/trainer_quickstart.py facebook/wav2vec2-base /data/ASVspoof2019 --output out

To go on from a checkpoint, with the neurons as they were: --resume out/checkpoint-500
On several GPUs, the same: accelerate launch examples/trainer_quickstart.py ...
"""

import argparse

from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, Trainer, TrainingArguments

from hf_neuroplastic import DropInCallback, DropInConfig, NeuroPlastic
from hf_neuroplastic.audio import LABELS, AudioCollator, load_asvspoof2019
from hf_neuroplastic.audio.evaluation import bona_fide_scores
from hf_neuroplastic.audio.metrics import equal_error_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub id or folder")
    parser.add_argument("data", help="folder that holds LA/")
    parser.add_argument("--output", default="out")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--resume", help="checkpoint of an earlier run")
    arguments = parser.parse_args()

    model = AutoModelForAudioClassification.from_pretrained(
        arguments.resume or arguments.model, num_labels=len(LABELS), id2label=dict(enumerate(LABELS))
    )
    if hasattr(model, "freeze_feature_encoder"):
        model.freeze_feature_encoder()
    train, evaluation = (load_asvspoof2019(arguments.data, "LA", split) for split in ("train", "eval"))

    optimizer = NeuroPlastic([p for p in model.parameters() if p.requires_grad], lr=5e-5)
    config = DropInConfig(interval=max(1, arguments.steps // 20), maturity=arguments.steps // 10)
    callback = DropInCallback(config, resume_from=arguments.resume)
    trainer = Trainer(
        model,
        TrainingArguments(
            arguments.output,
            max_steps=arguments.steps,
            per_device_train_batch_size=8,
            remove_unused_columns=False,
            save_steps=arguments.steps,
            logging_steps=max(1, arguments.steps // 20),
            report_to=[],
        ),
        data_collator=AudioCollator(AutoFeatureExtractor.from_pretrained(arguments.model), max_seconds=4.0),
        train_dataset=train,
        optimizers=(optimizer, None),
        callbacks=[callback],
    )
    callback.attach(trainer)  # sends neuron statistics to every logging integration
    trainer.train(resume_from_checkpoint=arguments.resume)

    prediction = trainer.predict(evaluation)
    eer, _ = equal_error_rate(bona_fide_scores(prediction.predictions), prediction.label_ids)
    print(f"EER {100 * eer:.2f} %")


if __name__ == "__main__":
    main()
