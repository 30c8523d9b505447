"""DropIn and NeuroPlastic in a plain PyTorch loop, on a network small enough to watch neuron by neuron.

A classifier learns to add two digits bit by bit from noisy samples. Half of its hidden neurons are dead from the start;
DropIn finds them and puts new ones in their place.

    python examples/plain_loop.py
"""

import torch
from torch import nn

from hf_neuroplastic import DropIn, DropInConfig, NeuroPlastic


def sample(generator: torch.Generator, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Two numbers of three bits each, [size, 6] with noise, and their sum, [size] in 0..14."""
    bits = torch.randint(0, 2, (size, 6), generator=generator)
    value = (bits * torch.tensor([4, 2, 1, 4, 2, 1])).sum(1)
    return bits + 0.1 * torch.randn(size, 6, generator=generator), value


def train(with_dropin: bool, steps: int = 800) -> tuple[float, float]:
    """Accuracy at the end, and the share of neurons that are dead then."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 15))
    with torch.no_grad():
        model[0].bias[:24] = -10.0  # no input ever wakes these
    optimizer = NeuroPlastic(model.parameters(), lr=1e-2)
    config = DropInConfig(interval=20, maturity=20, max_fraction=0.1 if with_dropin else 0.0)
    dropin = DropIn(model, config, total_steps=steps)
    for _ in range(steps):
        inputs, target = sample(generator)
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        dropin.step(optimizer)
    dead = dropin.report()["neuro/dead_fraction"]
    dropin.unpatch()  # the model was a plain nn.Sequential all along, and now nothing watches it
    inputs, target = sample(generator, 4096)
    return (model(inputs).argmax(1) == target).float().mean().item(), dead


if __name__ == "__main__":
    for with_dropin in (False, True):
        accuracy, dead = train(with_dropin)
        print(
            f"{'with' if with_dropin else 'without'} DropIn: accuracy {accuracy:.3f}, dead neurons {100 * dead:.0f} %"
        )
