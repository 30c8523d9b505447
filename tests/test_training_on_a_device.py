"""A whole training run, as a user has it: small here on the CPU, of wav2vec2-base's size on a CUDA device."""

import pytest
import torch
from tiny import SPEECH
from transformers import (
    AutoModelForAudioClassification,
    Trainer,
    TrainingArguments,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from hf_neuroplastic import DropIn, DropInCallback, DropInConfig, NeuroPlastic
from hf_neuroplastic.neurons.decide.decisions import decide_replacement
from hf_neuroplastic.neurons.observe.statistics import NeuronStatistics

BASE = {"layerdrop": 0.0, "mask_time_prob": 0.0}  # wav2vec2-base is what Wav2Vec2Config() describes
RUNS = [
    pytest.param("cpu", SPEECH, 1600, False, id="cpu-float32"),
    pytest.param("cpu", SPEECH, 1600, True, id="cpu-bf16"),
    pytest.param("cuda", BASE, 16000, False, marks=pytest.mark.gpu, id="cuda-float32"),
    pytest.param("cuda", BASE, 16000, True, marks=pytest.mark.gpu, id="cuda-bf16"),
]
CONFIG = DropInConfig(interval=20, maturity=10, stop=0.75)


class Tones(torch.utils.data.Dataset):
    """Noise, with a loud low tone in every second recording."""

    def __init__(self, samples: int, length: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(samples) % 2
        tone = torch.sin(torch.arange(length) * 0.05)
        self.values = 0.3 * torch.randn(samples, length, generator=generator) + self.labels.unsqueeze(1) * tone

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_values": self.values[index], "labels": self.labels[index]}


@pytest.mark.parametrize(("device", "shape", "length", "bf16"), RUNS)
def test_loss_falls_neurons_are_reborn_and_the_checkpoint_is_stock(tmp_path, device, shape, length, bf16):
    model = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**shape, num_labels=2))
    dropin = DropIn(model, CONFIG, total_steps=200)
    settings = TrainingArguments(
        str(tmp_path),
        max_steps=200,
        per_device_train_batch_size=8,
        logging_steps=10,
        save_steps=200,
        bf16=bf16,
        use_cpu=device == "cpu",
        warmup_steps=20,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        settings,
        train_dataset=Tones(64, length),
        callbacks=[DropInCallback(dropin)],
        optimizers=(NeuroPlastic(model.parameters(), lr=1e-4 if device == "cuda" else 3e-3), None),
    )
    trainer.train()

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert sum(int(count) for count in dropin.replaced) > 0

    batch = {name: value[:4] for name, value in (("input_values", trainer.train_dataset.values),)}
    stock = AutoModelForAudioClassification.from_pretrained(tmp_path / "checkpoint-200").to(device).eval()
    with torch.no_grad():
        here = {name: value.to(device) for name, value in batch.items()}
        plain = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # no longer under autocast
        assert torch.equal(stock(**here).logits, plain.eval()(**here).logits)

    for score, known in zip(dropin.scores(), dropin.statistics, strict=True):
        copy = NeuronStatistics.unknown(score.numel())
        copy.load_state_dict({name: value.cpu() for name, value in known.state_dict().items()})
        known.seen.fill_(True), copy.seen.fill_(True)
        decided = decide_replacement(score, known, CONFIG).mask.cpu()
        assert torch.equal(decided, decide_replacement(score.cpu(), copy, CONFIG).mask)
