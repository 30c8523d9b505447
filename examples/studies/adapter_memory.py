"""What learning costs in memory: all weights, low-rank adapters (PEFT), new neurons. A wav2vec2-base of random weights, AdamW.

    python examples/studies/adapter_memory.py            # 94 M parameters; about 3 GB of memory
    python examples/studies/adapter_memory.py --small

After one step on a second of noise: parameters that learn, bytes of gradients after the backward pass, bytes of optimizer state
after the step, and bytes of the file that holds what was learnt. Activations are not counted.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from hf_neuroplastic import DropIn, DropInConfig, grow, new_neuron_optimizer, only_new_neurons, save_neurons

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
FFN = ["intermediate_dense", "output_dense"]
LINEAR = [*FFN, "q_proj", "k_proj", "v_proj", "out_proj"]


def network(small: bool) -> Wav2Vec2ForSequenceClassification:
    torch.manual_seed(0)
    config = Wav2Vec2Config(**(SMALL if small else {}), mask_time_prob=0.0, layerdrop=0.0, num_labels=2)
    return Wav2Vec2ForSequenceClassification(config)


def learning(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adamw(parameters, **options) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, **options)


def step(model, optimizer, after=lambda: None) -> int:
    """Takes a step; returns the bytes of gradients before it."""
    model(torch.randn(1, 16000), labels=torch.tensor([0])).loss.backward()
    held = sum(parameter.grad.nbytes for parameter in model.parameters() if parameter.grad is not None)
    optimizer.step()
    after()
    return held


def everything(model, neurons, folder):
    optimizer = adamw(model.parameters())
    held = step(model, optimizer)
    model.save_pretrained(folder)
    return sum(p.numel() for p in learning(model)), held, optimizer


def lora(targets, rank=8):
    def arm(model, neurons, folder):
        model = get_peft_model(model, LoraConfig(r=rank, target_modules=targets))
        optimizer = adamw(learning(model))
        held = step(model, optimizer)
        model.save_pretrained(folder)
        return sum(p.numel() for p in learning(model)), held, optimizer

    return arm


def with_dropin(model, neurons, folder):
    base = only_new_neurons(model)
    dropin = DropIn(model, DropInConfig.adapter(neurons, interval=1), total_steps=10)
    optimizer = adamw(learning(model))
    held = step(model, optimizer, lambda: dropin.step(optimizer))
    save_neurons(model, folder, base)
    parts = [part for site in dropin.sites for part in site.slices]
    return sum(part.tensor.numel() // part.tensor.shape[part.dim] * neurons for part in parts), held, optimizer


def with_an_optimizer_of_their_own(model, neurons, folder):
    base = only_new_neurons(model)
    grow(model, neurons)
    optimizer = new_neuron_optimizer(model, base, torch.optim.AdamW, lr=1e-4)
    held = step(model, optimizer)
    save_neurons(model, folder, base)
    return sum(p.numel() for group in optimizer.param_groups for p in group["params"]), held, optimizer


ARMS = {
    "all weights": everything,
    "LoRA, rank 8, feed-forward layers": lora(FFN),
    "LoRA, rank 8, all Linear layers": lora(LINEAR),
    "new neurons, DropIn": with_dropin,
    "new neurons, new_neuron_optimizer": with_an_optimizer_of_their_own,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--neurons", type=int, default=64, help="in each layer")
    arguments = parser.parse_args()
    print(f"{'':36} {'learns':>12} {'gradients MB':>13} {'state MB':>9} {'file MB':>8}")
    for name, arm in ARMS.items():
        with tempfile.TemporaryDirectory() as folder:
            learns, gradients, optimizer = arm(network(arguments.small), arguments.neurons, f"{folder}/a")
            state = sum(
                v.nbytes for each in optimizer.state.values() for v in each.values() if isinstance(v, torch.Tensor)
            )
            saved = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(f"{name:36} {learns:12,} {gradients / 1e6:13.1f} {state / 1e6:9.1f} {saved / 1e6:8.1f}")


if __name__ == "__main__":
    main()
