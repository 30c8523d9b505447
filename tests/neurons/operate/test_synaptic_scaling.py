"""Scaling of a model's sites: each by its own neurons' activities, and frozen ones not at all."""

import pytest
import torch
from tiny import tiny_model

from hf_neuroplastic import DropInConfig
from hf_neuroplastic.neurons.observe.statistics import NeuronStatistics
from hf_neuroplastic.neurons.operate.synaptic_scaling import refuse_half_precision, scale_synapses
from hf_neuroplastic.neurons.sites import find_sites
from neuroplastic_kernels.ffn_activation.neuron_sums import ABS_OUTPUT


def _observed(model):
    """The model's sites, and statistics in which neuron i of site k has the activity k + i."""
    sites = find_sites(model)
    everyone = NeuronStatistics.unknown(sum(site.width for site in sites))
    parts = everyone.split([site.width for site in sites])
    everyone.weight.fill_(0.5)
    for index, part in enumerate(parts):
        part.averages[ABS_OUTPUT] = (index + torch.arange(part.scale.numel())) * part.weight
    return sites, everyone, parts


@pytest.mark.parametrize("target", ["layer", 3.0])
def test_every_neuron_goes_by_its_own_activity(target):
    sites, everyone, parts = _observed(tiny_model("ast"))
    before = [site.up.weight.detach().clone() for site in sites]
    scale_synapses(sites, everyone, parts, DropInConfig(synaptic_lr=0.01, homeostatic_target=target))
    for index, (site, part, old) in enumerate(zip(sites, parts, before, strict=True)):
        activity = index + torch.arange(float(site.width))
        error = target - activity if target != "layer" else 1 - activity / activity.mean()
        torch.testing.assert_close(part.scale, (1 + 0.01 * error).clamp(0.1, 2.0))
        torch.testing.assert_close(site.up.weight.detach(), old * part.scale.unsqueeze(1))


def test_frozen_sites_and_slots_in_reserve_are_left_alone():
    sites, everyone, parts = _observed(tiny_model("ast"))
    sites[0].up.weight.requires_grad_(False)
    parts[1].active[3] = False
    before = [site.up.weight.detach().clone() for site in sites]
    scale_synapses(sites, everyone, parts, DropInConfig(synaptic_lr=0.01))
    assert torch.equal(sites[0].up.weight, before[0])
    changed = (sites[1].up.weight != before[1]).any(1)
    assert not changed[3]
    assert changed[:3].all()
    assert parts[0].scale.tolist() == [1.0] * sites[0].width


def test_coarse_weights_are_refused():
    refuse_half_precision(find_sites(tiny_model("ast")))
    with pytest.raises(TypeError, match=r"synaptic_lr.*bfloat16.*float32"):
        refuse_half_precision(find_sites(tiny_model("ast").bfloat16()))
