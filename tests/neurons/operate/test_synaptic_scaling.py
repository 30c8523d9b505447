"""Scaling of a model's sites: each by its own neurons' activities, and frozen ones not at all."""

import pytest
import torch
from tiny import tiny_model

from hf_neuroplastic import DropInConfig
from hf_neuroplastic.neurons.observe.statistics import NeuronStatistics, watched_sites
from hf_neuroplastic.neurons.operate.synaptic_scaling import refuse_half_precision, scale_synapses
from hf_neuroplastic.neurons.sites import find_sites
from neuroplastic_kernels.ffn_activation.neuron_sums import ABS_OUTPUT


def _observed(model):
    """The model's watched sites and all their statistics, in which neuron i of site k has the activity k + i."""
    sites = find_sites(model)
    all_neurons = NeuronStatistics.unknown(sum(site.width for site in sites))
    watched = watched_sites(sites, all_neurons, [site.width for site in sites])
    all_neurons.weight.fill_(0.5)
    for index, known in enumerate(watched):
        part = known.statistics
        part.averages[ABS_OUTPUT] = (index + torch.arange(part.scale.numel())) * part.weight
    return watched, all_neurons


@pytest.mark.parametrize("target", ["layer", 3.0])
def test_every_neuron_goes_by_its_own_activity(target):
    watched, all_neurons = _observed(tiny_model("ast"))
    before = [known.site.up.weight.detach().clone() for known in watched]
    scale_synapses(watched, all_neurons, DropInConfig(synaptic_lr=0.01, homeostatic_target=target))
    for index, (known, old) in enumerate(zip(watched, before, strict=True)):
        activity, scale = index + torch.arange(float(known.site.width)), known.statistics.scale
        error = target - activity if target != "layer" else 1 - activity / activity.mean()
        torch.testing.assert_close(scale, (1 + 0.01 * error).clamp(0.1, 2.0))
        torch.testing.assert_close(known.site.up.weight.detach(), old * scale.unsqueeze(1))


def test_sites_that_do_not_learn_and_slots_in_reserve_are_left_alone():
    watched, all_neurons = _observed(tiny_model("ast"))
    frozen, other = watched
    frozen.learns = False
    other.statistics.active[3] = False
    before = [known.site.up.weight.detach().clone() for known in watched]
    scale_synapses(watched, all_neurons, DropInConfig(synaptic_lr=0.01))
    assert torch.equal(frozen.site.up.weight, before[0])
    changed = (other.site.up.weight != before[1]).any(1)
    assert not changed[3]
    assert changed[:3].all()
    assert frozen.statistics.scale.tolist() == [1.0] * frozen.site.width


def test_coarse_weights_are_refused():
    refuse_half_precision(find_sites(tiny_model("ast")))
    with pytest.raises(TypeError, match=r"synaptic_lr.*bfloat16.*float32"):
        refuse_half_precision(find_sites(tiny_model("ast").bfloat16()))
