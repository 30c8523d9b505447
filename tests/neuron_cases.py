"""Sites of random tensors for the tests of `neuron_reinit`."""

import torch

from neuroplastic_kernels.neurons import NeuronTensors, StateSlice

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
        up_weight=draw(n, d), up_bias=draw(n) if bias else None,
        down_weight=draw(m, n), down_bias=draw(m) if bias else None,
        mask=mask, survivors=survivors, mean_output=torch.randn(n, generator=generator),
        donors=donors,
        state=(StateSlice(draw(n, d), 0, "zero"), StateSlice(draw(n, d).abs(), 0, "mean"), StateSlice(draw(m, n), 1, "zero"),
               StateSlice(draw(m, n).abs(), 1, "mean"), StateSlice(draw(n).abs(), 0, "mean")),
        site=site,
    )  # fmt: skip


def map_tensors(site, function):
    """The site with every tensor replaced by function(tensor)."""
    fields = (function(field) if isinstance(field, torch.Tensor) else field for field in site)
    state = tuple(StateSlice(function(s.tensor), s.dim, s.fill) for s in site.state)
    return NeuronTensors(*fields)._replace(state=state)


def copy_site(site):
    return map_tensors(site, torch.clone)
