"""Places of tensors: equal while nothing moved, different after whatever moves, reshapes or converts one, in every form."""

import logging

import pytest
import torch
from torch import Tensor

from neuroplastic_kernels.common import tensor_places as module
from neuroplastic_kernels.common.tensor_places import tensor_places

FORMS = ("compiled", "one by one")


@pytest.fixture(params=FORMS)
def places(request, monkeypatch):
    if request.param == "one by one":
        monkeypatch.setattr(module, "compiled", lambda: None)
    elif module.compiled() is None:
        pytest.skip("needs torch 2.10 and a C++ compiler")
    return tensor_places


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
def test_whatever_moves_a_tensor_changes_the_places(places, change):
    mine = tensors()
    before = places(mine)
    assert places(mine) == before
    CHANGES[change](mine)
    assert places(mine) != before


def test_values_versions_and_gradients_do_not_matter(places):
    mine = tensors()
    before = places(mine)
    with torch.no_grad():
        mine[0].mul_(2)
    mine[0].grad = torch.ones_like(mine[0])
    mine[0].requires_grad_(False)
    assert places(mine) == before
    assert places([t if t is None else t.detach() for t in mine]) == before  # other objects, the same memory


def test_nothing_has_places_too(places):
    assert places([]) == places([])
    assert places([None]) != places([])


def test_what_is_no_list_is_an_error_and_no_crash():
    if module.compiled() is None:
        pytest.skip("needs torch 2.10 and a C++ compiler")
    with pytest.raises(SystemError):
        module.compiled()((torch.zeros(1),))


@pytest.mark.gpu
def test_tensors_on_a_device(places):
    mine = [torch.randn(3, device="cuda"), torch.randn(3)]
    assert places(mine) == places(mine)
    assert places(mine) != places([mine[0].clone(), mine[1]])
    assert places(mine) != places([mine[0].cpu(), mine[1]])


@pytest.mark.parametrize("odd", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")], ids=["sparse", "meta"])
def test_tensors_that_dlpack_does_not_know(places, odd):
    beside = torch.randn(3)
    before = places([odd, beside])
    assert places([odd, beside]) == before
    assert places([odd, beside.clone()]) != before


def test_old_torch_and_missing_compilers_are_survived(monkeypatch, caplog):
    mine = tensors()
    for name, broken in (("exchange_interface", "no DLPack"), ("load", "no compiler")):
        with monkeypatch.context() as context, caplog.at_level(logging.INFO):

            def fail(*_, message=broken):
                raise RuntimeError(message)

            context.setattr(module, name, fail)
            context.setattr(module, "compiled", module.compiled.__wrapped__)
            assert tensor_places(mine) == tensor_places(mine)
            assert isinstance(tensor_places(mine), list)
        assert broken in caplog.text


def test_another_version_of_the_interface_is_refused(monkeypatch):
    if module.compiled() is None:
        pytest.skip("needs torch 2.10 and a C++ compiler")
    monkeypatch.setattr(module, "MAJOR", 7)
    with pytest.raises(RuntimeError, match="version 1 of DLPack's exchange interface, not 7"):
        module.exchange_interface()
