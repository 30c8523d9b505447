"""DropIn and NeuroPlastic in a loop of accelerate's, on one process or several, with batches in parts.

The network of `plain_loop.py`: half of its hidden neurons are dead from the start. Every process watches its own samples; all
processes decide alike, so their networks stay the same bit for bit, which the end checks.

    python examples/accelerate_loop.py
    accelerate launch examples/accelerate_loop.py
    torchrun --nproc_per_node 2 examples/accelerate_loop.py

`multi_gpu.sh` has the commands for DDP and FSDP2.
"""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic


def sample(generator: torch.Generator, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Two numbers of three bits each, [size, 6] with noise, and their sum, [size] in 0..14."""
    bits = torch.randint(0, 2, (size, 6), generator=generator)
    value = (bits * torch.tensor([4, 2, 1, 4, 2, 1])).sum(1)
    return bits + 0.1 * torch.randn(size, 6, generator=generator), value


def train(accelerator: Accelerator, steps: int, with_dropin: bool = True) -> str:
    """What came of it, in words."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1 + accelerator.process_index)
    model = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 15))
    with torch.no_grad():
        model[0].bias[:24] = -10.0  # no input ever wakes these
    model.to(accelerator.device)
    config = DropInConfig(interval=20, maturity=20, max_fraction=0.1)
    dropin = DropIn(model, config, total_steps=steps) if with_dropin else None  # before the model is wrapped
    model, optimizer = accelerator.prepare(model, NeuroPlastic(model.parameters(), lr=1e-2))
    for _ in range(steps * accelerator.gradient_accumulation_steps):
        inputs, target = (tensor.to(accelerator.device) for tensor in sample(generator))
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(inputs), target))
            optimizer.step()
            optimizer.zero_grad()
            if dropin is not None:
                dropin.step(optimizer)  # counts whole steps only
    neurons = ""
    if dropin is not None:
        neurons = f"dead neurons {100 * dropin.report()['neuro/dead_fraction']:.0f} %, "
        dropin.unpatch()
    inputs, target = (tensor.to(accelerator.device) for tensor in sample(torch.Generator().manual_seed(99), 4096))
    accuracy = (model(inputs).argmax(1) == target).float().mean().item()
    tensors = [p.detach() for p in accelerator.unwrap_model(model).parameters()]
    tensors = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in tensors]  # shards of FSDP2
    weights = torch.cat([p.flatten() for p in tensors])
    networks = set(gather_object([hash(tuple(weights.tolist()))]))
    return (
        f"{accelerator.num_processes} processes, {steps} steps: accuracy {accuracy:.3f}, {neurons}{len(networks)} different "
        "networks"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps")
    parser.add_argument("--accumulate", type=int, default=2, help="batches per step")
    parser.add_argument("--no-dropin", action="store_true", help="the optimizer alone")
    options = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=options.accumulate)
    accelerator.print(train(accelerator, options.steps, not options.no_dropin))
    accelerator.end_training()  # after the wrapped model is gone


if __name__ == "__main__":
    main()
