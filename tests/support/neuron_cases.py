"""Sites of random tensors for the tests of `neuron_reinit`."""

from itertools import pairwise

import torch

from neuroplastic_kernels.neuron_reinit.neurons import Incoming, NeuronTensors, StateSlice

N, D, M = 12, 7, 5
INITS = ("normal", "fan_in", "layer", "split", "zero")


def chosen_mask(*chosen, n=N):
    """[n] bool, True at `chosen`."""
    mask = torch.zeros(n, dtype=torch.bool)
    mask[list(chosen)] = True
    return mask


def random_site(mask, *, bias=True, dtype=torch.float32, site=0, n=N, d=D, m=M):
    """A site of n neurons with d inputs and m outputs; the k-th chosen neuron has the k-th survivor as donor."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    mask = torch.as_tensor(mask)
    survivors = ~mask
    strongest = survivors.nonzero().squeeze(1)
    donors = torch.zeros(n, dtype=torch.long)
    count = min(int(mask.sum()), strongest.numel())
    donors[mask.nonzero().squeeze(1)[:count]] = strongest[:count]
    return NeuronTensors(
        incoming=(Incoming(draw(n, d), draw(n) if bias else None),),
        down_weight=draw(m, n),
        down_bias=draw(m) if bias else None,
        mask=mask,
        survivors=survivors,
        mean_output=torch.randn(n, generator=generator),
        donors=donors,
        state=(
            StateSlice(draw(n, d), 0, "zero"),
            StateSlice(draw(n, d).abs(), 0, "mean"),
            StateSlice(draw(m, n), 1, "zero"),
            StateSlice(draw(m, n).abs(), 1, "mean"),
            StateSlice(draw(n).abs(), 0, "mean"),
        ),
        site=site,
    )


def gated_site(mask, **options):
    """A site like `random_site`, with a second set of incoming rows."""
    site = random_site(mask, **options)
    up = site.incoming[0]
    return site._replace(incoming=(up, Incoming(up.weight * 0.3 - 1.0, None if up.bias is None else up.bias + 5.0)))


def convolution_site(mask, *, n=N, d=3, m=4, kernel=(3, 2), layout=torch.contiguous_format, **options):
    """A site between two convolutions and a batch normalisation, its outgoing weights among the state."""
    site = random_site(mask, n=n, **options)
    generator = torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(memory_format=layout)

    outgoing, statistics = draw(m, n, *kernel), torch.rand(n, generator=generator)
    states = [(outgoing, 1, "zero"), (draw(m, n, *kernel).abs(), 1, "mean"), (draw(n, d, *kernel).abs(), 0, "mean")]
    return site._replace(
        incoming=(Incoming(draw(n, d, *kernel), site.incoming[0].bias),),
        down_weight=None,
        down_bias=None,
        state=tuple(StateSlice(*state) for state in (*states, (statistics, 0, "mean"))),
    )


def chain(*masks, m=M):
    """Sites of N neurons in a row: the outgoing weights of each, and their optimizer state, are the next one's incoming."""
    generator = torch.Generator().manual_seed(3)
    widths = [D, *(N for _ in masks), m]
    weights = [torch.randn(n, d, generator=generator) for d, n in pairwise(widths)]
    biases = [torch.randn(n, generator=generator) for n in widths[1:]]
    squares, moments = [weight.abs() * 3 for weight in weights], [weight * 2 for weight in weights]
    return [
        random_site(mask, site=index)._replace(
            incoming=(Incoming(weights[index], biases[index]),),
            down_weight=weights[index + 1],
            down_bias=biases[index + 1],
            state=tuple(
                StateSlice(state[index + dim], dim, fill)
                for state, fill in ((moments, "zero"), (squares, "mean"))
                for dim in (0, 1)
            ),
        )
        for index, mask in enumerate(masks)
    ]


def recurrent_site(mask):
    """A site with two sets of rows in one tensor, whose neurons are rows and columns of the same square blocks."""
    site = random_site(mask)
    generator = torch.Generator().manual_seed(4)
    incoming, hidden, squares = (torch.randn(2 * N, n, generator=generator) for n in (D, N, N))
    rows = [
        (block, 0, fill) for tensor, fill in ((hidden, "zero"), (squares.abs_(), "mean")) for block in tensor.split(N)
    ]
    columns = [(hidden, 1, "zero"), (squares, 1, "mean")]
    return site._replace(
        incoming=tuple(Incoming(block) for block in incoming.split(N)),
        down_weight=None,
        down_bias=None,
        state=tuple(StateSlice(*state) for state in (*rows, *columns)),
    )


def map_tensors(value, function):
    """The site with every tensor replaced by function(tensor)."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if not isinstance(value, tuple):
        return value
    parts = [map_tensors(part, function) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def copy_site(site):
    return map_tensors(site, torch.clone)


def twins(sites, device):
    """The sites on `device`, memory they share still shared."""
    copies = {}

    def copied(tensor):
        if not tensor.numel():  # has no address
            return tensor.to(device, copy=True)
        whole = tensor if tensor._base is None else tensor._base
        twin = copies.setdefault(whole.data_ptr(), whole.to(device, copy=True))
        return twin.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    return [map_tensors(site, copied) for site in sites]
