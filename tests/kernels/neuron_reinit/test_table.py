"""The table of the fused rebirth: every element is in it once, and no launch touches memory twice."""

import itertools

import pytest
import torch
from neuron_cases import chain, chosen_mask, convolution_site, gated_site, random_site, recurrent_site

pytest.importorskip("triton")

from neuroplastic_kernels.common.strided_planes import planes
from neuroplastic_kernels.neuron_reinit.table import launch_numbers, table

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "permuted": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "gaps": lambda x: torch.nn.functional.pad(x, (1, 2, 1, 1, 0, 3, 2, 0))[2:, : x.shape[1], 1:-1, 1:-2],
    "one number": lambda x: x[:1, :1, :1, :1],
    "part": lambda x: x[1:, :, :, 1],
    "vector": lambda x: x[0, :, 0, 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", range(4))
def test_planes_hold_every_entry_under_its_number(dim, layout):
    tensor = LAYOUTS[layout](torch.arange(2 * 5 * 3 * 4).reshape(2, 5, 3, 4))
    dim = min(dim, tensor.ndim - 1)
    expected, found = tensor.movedim(dim, 0).flatten(1) if tensor.ndim > 1 else tensor.unsqueeze(1), {}
    for plane in planes(tensor, dim):
        start = tensor.storage_offset() + plane.offset
        view = tensor.as_strided((plane.neurons, plane.lanes), (plane.neuron_stride, plane.lane_stride), start)
        for lane in range(plane.lanes):
            assert found.setdefault(plane.first + lane * plane.step, view[:, lane]) is not None
    assert len(found) == sum(plane.lanes for plane in planes(tensor, dim))  # no number twice
    assert torch.equal(torch.stack([found[number] for number in range(expected.shape[1])], 1), expected)


def test_what_lies_side_by_side_is_one_plane():
    assert len(list(planes(torch.empty(7, 5, 3, 3), 0))) == 1
    assert len(list(planes(torch.empty(7, 1, 3, 1), 0))) == 1
    outgoing = list(planes(torch.empty(16, 5, 3, 3), 1))
    assert [(plane.lanes, plane.neuron_stride, plane.lane_stride) for plane in outgoing] == [(16, 9, 45)] * 9


def test_a_launch_follows_all_that_it_shares_memory_with():
    """Random intervals: those of one launch are apart, and of two that meet the later one is in a later launch."""
    ends = torch.randint(0, 200, (60, 2), generator=torch.Generator().manual_seed(0)).tolist()
    spans = [[(start, start + 1 + length // 10)] for start, length in ends]
    spans[7].append((150, 160))
    numbers = launch_numbers(spans)
    for first, second in itertools.combinations(range(len(spans)), 2):
        if any(a[0] < b[1] and b[0] < a[1] for a in spans[first] for b in spans[second]):
            assert numbers[first] < numbers[second]
    assert set(numbers) == set(range(max(numbers) + 1))


def _launches(sites, init="layer"):
    return len(table(sites, init, silence=True)[1])


def test_without_shared_memory_there_is_one_launch():
    masks = [chosen_mask(1), chosen_mask(2)]
    assert _launches([random_site(masks[0]), gated_site(masks[0]), convolution_site(masks[1])]) == 1
    assert _launches(chain(*masks)) == 2
    assert _launches([*chain(*masks), *chain(*masks)]) == 2
    assert _launches([recurrent_site(masks[0])]) == 2
    assert _launches([]) == 0


@pytest.mark.parametrize("init", ["normal", "layer"])
def test_the_statistics_of_a_weight_have_parts_of_their_own(init):
    site = convolution_site(chosen_mask(1, n=100), n=100, layout=torch.channels_last)
    rows, launches = table([site, random_site(chosen_mask(1))], init, silence=True)
    partials = [range(row.first_partial, row.first_partial + row.partials) for row in rows[: launches[0].weights]]
    assert sorted(itertools.chain(*partials)) == list(range(sum(map(len, partials))))
    for row, own in zip(rows, partials, strict=False):
        assert set(own) <= set(range(row.weight_first_partial, row.weight_first_partial + row.weight_partials))
    assert sum(
        row.weight_partials for row in {row.weight_first_partial: row for row in rows if row.partials}.values()
    ) == sum(map(len, partials))
