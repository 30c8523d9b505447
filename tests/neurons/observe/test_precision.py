"""Half precision: both forms of a layer see finite sums, the same tokens, and decide alike."""

import contextlib

import pytest
import torch
from tiny import tiny_batch, tiny_model

from hf_neuroplastic import DropIn, DropInConfig
from neuroplastic_kernels.ffn_activation.neuron_sums import TOKENS

SCALE = 2.0**8  # of the loss, as fp16 needs it
PLANTED = [3, 17]


def _watched_steps(backend, dtype, autocast):
    """The sums of the first step, and the statistics after an event among neurons of which PLANTED are dead."""
    model = tiny_model("wav2vec2").to(torch.float32 if autocast else dtype)
    config = DropInConfig(interval=2, maturity=1, max_fraction=1.0, threshold=0.01, stop=None, backend=backend)
    dropin = DropIn(model, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with torch.no_grad():
        for site in dropin.sites:
            site.up.weight[PLANTED] = 0.0
            site.up.bias[PLANTED] = -30.0  # gelu gives 0, and no gradient passes
    sums = None
    for seed in range(2):
        batch = tiny_batch("wav2vec2", padded=True, seed=seed)
        if not autocast:
            batch["input_values"] = batch["input_values"].to(dtype)
        with torch.autocast("cpu", dtype=dtype) if autocast else contextlib.nullcontext():
            loss = model(**batch).loss
        (loss.float() * SCALE).backward()
        sums = torch.cat([known.sums for known in dropin.statistics], 1) if sums is None else sums
        optimizer.step()
        optimizer.zero_grad()
        dropin.step(optimizer, gradient_scale=SCALE)
    return sums, dropin.statistics


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "all half"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_both_forms_decide_alike_in_half_precision(dtype, autocast):
    pytest.importorskip("triton")
    (sums, statistics), (expected, wanted) = (_watched_steps(form, dtype, autocast) for form in ("fused", "reference"))
    assert sums.dtype == torch.float32
    assert torch.equal(sums[TOKENS], expected[TOKENS])
    tolerance = 0.05 if dtype is torch.bfloat16 else 0.01
    torch.testing.assert_close(sums, expected, rtol=tolerance, atol=tolerance * float(expected[:TOKENS].abs().mean()))
    for found, known in zip(statistics, wanted, strict=True):
        assert found.averages.isfinite().all()
        assert (found.age == 0).nonzero().squeeze(1).tolist() == PLANTED
        assert torch.equal(found.age, known.age)
