"""Places of tensors: equal while nothing moved, different after whatever moves, reshapes or converts one."""

import pytest
import torch
from torch import Tensor

from neuroplastic_kernels.common.tensor_places import tensor_places


def tensors() -> list[Tensor | None]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(4, 4)), None, torch.randn(()), torch.empty(0, 3), torch.randn(6).bfloat16()]


def swap(values, index, value):
    values[index] = value


CHANGES = {
    "another tensor": lambda t: swap(t, 2, t[2].clone()),
    "other storage behind the same tensor": lambda t: setattr(t[0], "data", t[0].data.clone()),
    "transposed in place": lambda t: setattr(t[0], "data", t[0].data.t()),
    "reshaped in place": lambda t: setattr(t[0], "data", t[0].data.view(2, 8)),
    "fewer elements": lambda t: setattr(t[0], "data", t[0].data[:3]),
    "a later start in the same storage": lambda t: swap(t, 4, t[4][1:]),
    "another dtype in the same place": lambda t: setattr(t[4], "data", t[4].data.view(torch.float16)),
    "another dtype of no elements": lambda t: swap(t, 3, t[3].double()),
    "gone": lambda t: swap(t, 2, None),
    "come": lambda t: swap(t, 1, t[2]),
    "exchanged": lambda t: t.reverse(),
    "gone from elsewhere": lambda t: t.insert(0, t.pop(1)),
    "one more": lambda t: t.append(t[2]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_moves_a_tensor_changes_the_tensor_places(change):
    mine = tensors()
    before = tensor_places(mine)
    assert tensor_places(mine) == before
    CHANGES[change](mine)
    assert tensor_places(mine) != before


def test_values_versions_and_gradients_do_not_matter():
    mine = tensors()
    before = tensor_places(mine)
    with torch.no_grad():
        mine[0].mul_(2)
    mine[0].grad = torch.ones_like(mine[0])
    mine[0].requires_grad_(False)
    assert tensor_places(mine) == before
    assert tensor_places([t if t is None else t.detach() for t in mine]) == before  # other objects, the same memory


def test_nothing_has_places_too():
    assert tensor_places([]) == tensor_places([])
    assert tensor_places([None]) != tensor_places([])


@pytest.mark.gpu
def test_tensors_on_a_device():
    mine = [torch.randn(3, device="cuda"), torch.randn(3)]
    assert tensor_places(mine) == tensor_places(mine)
    assert tensor_places(mine) != tensor_places([mine[0].clone(), mine[1]])
    assert tensor_places(mine) != tensor_places([mine[0].cpu(), mine[1]])


@pytest.mark.parametrize("odd", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")], ids=["sparse", "meta"])
def test_tensors_without_an_address(odd):
    beside = torch.randn(3)
    before = tensor_places([odd, beside])
    assert tensor_places([odd, beside]) == before
    assert tensor_places([odd, beside.clone()]) != before
