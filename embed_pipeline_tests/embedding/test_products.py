"""fp32 products by oneDNN: the same values and gradients as torch's, only where the machine gains by them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from embed_pipeline import machine
from embed_pipeline.embedding.models import load_model
from embed_pipeline.embedding.products import OneDnnLinear, inner_products, use_fast_products
from embed_pipeline.embedding.torch_backend import TorchBackend
from embed_pipeline.settings import Embedding

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")


@pytest.fixture(autouse=True)
def gains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gains_by_onednn", lambda: True)


def _layers(*, bias: bool) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(24, 40, bias=bias), nn.GELU(), nn.Linear(40, 8, bias=bias))
    fast = copy.deepcopy(plain)
    use_fast_products(fast)
    return plain, fast


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (7, 24), (3, 5, 24), (0, 24)])
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...], *, bias: bool) -> None:
    plain, fast = _layers(bias=bias)
    rows = torch.randn(shape)
    found = []
    for layers in (plain, fast):
        given = rows.clone().requires_grad_()
        output = layers(given)
        output.square().sum().backward()
        found.append([output, given.grad, *(weight.grad for weight in layers.parameters())])
    for expected, value in zip(*found, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_inner_products_are_those_of_torch_and_pass_gradients_on(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    left, right = torch.randn(5, 16, requires_grad=True), torch.randn(9, 16, requires_grad=True)
    found = []
    for here in (True, False):
        monkeypatch.setattr(machine, "gains_by_onednn", lambda here=here: here)
        products = inner_products(left, right)
        found.append([products, *torch.autograd.grad(products.square().sum(), (left, right))])
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_frozen_weights_get_no_gradient() -> None:
    _, fast = _layers(bias=True)
    fast[0].requires_grad_(requires_grad=False)
    fast(torch.randn(4, 24)).sum().backward()
    assert [weight.grad is None for weight in fast.parameters()] == [True, True, False, False]


def test_operations_are_counted_like_those_of_torch() -> None:
    counted = []
    for layers in _layers(bias=True):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            layers(torch.randn(2, 3, 24))
        counted.append(counter.get_total_flops())
    assert counted == [2 * 6 * (24 * 40 + 40 * 8)] * 2


def test_a_layer_is_copied_pickled_and_saved_like_any_other() -> None:
    plain, fast = _layers(bias=True)
    rows = torch.randn(4, 24)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(other(rows), fast(rows))


def test_half_precision_and_export_are_left_to_torch() -> None:
    plain, fast = _layers(bias=True)
    rows = torch.randn(4, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fast(rows), plain(rows))
    assert torch.equal(copy.deepcopy(fast).double()(rows.double()), copy.deepcopy(plain).double()(rows.double()))
    assert "mkldnn" not in str(torch.export.export(fast, (rows,)).graph)


def test_a_model_computes_so_only_where_the_machine_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    identities = []
    for here in (True, False):
        monkeypatch.setattr(machine, "gains_by_onednn", lambda here=here: here)
        model = load_model("packaged", Embedding(device="cpu"))
        assert any(isinstance(module, OneDnnLinear) for module in model.modules()) == here
        identities.append(TorchBackend(model).identity)
    assert identities[0] != identities[1]
