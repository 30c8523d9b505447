"""Short runs under the real Trainer."""

import torch
from tiny import tiny_batch, tiny_model
from transformers import Trainer, TrainingArguments

from hf_neuroplastic import DropInCallback, DropInConfig, NeuroPlastic

BUSY = DropInConfig(interval=2, maturity=1, max_fraction=0.1, threshold=float("inf"), stop=None, synaptic_lr=0.01)
GROWING = DropInConfig.plasticity(5, prune=(0.4, 0.9), interval=1, maturity=1)
PRUNING = DropInConfig.compress(0.5, between=(0.1, 0.9), interval=1, maturity=1)


class Samples(torch.utils.data.Dataset):
    def __init__(self, family, size=16):
        self.batch = tiny_batch(family, size, padded=family == "wav2vec2")

    def __len__(self):
        return len(self.batch["labels"])

    def __getitem__(self, index):
        return {name: value[index] for name, value in self.batch.items()}


def trainer_of(
    folder, family="wav2vec2", *, model=None, callback=None, config=BUSY, optimizer=NeuroPlastic, **settings
):
    model = model if model is not None else tiny_model(family)
    settings = {"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 2, "save_steps": 3, **settings}
    args = TrainingArguments(str(folder), use_cpu=True, report_to=[], disable_tqdm=True, seed=1, **settings)
    callback = callback or DropInCallback(config)
    trainer = Trainer(
        model,
        args,
        train_dataset=Samples(family),
        eval_dataset=Samples(family),
        callbacks=[callback],
        optimizers=(optimizer(model.parameters(), lr=1e-3), None),
    )
    return trainer, callback


def final_state(trainer, callback):
    state = callback.dropin.state_dict()
    tensors = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for site, group in state["sites"].items():
        tensors |= {f"{site}/{name}": value for name, value in group.items()}
    return tensors
