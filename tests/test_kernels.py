"""Every hand-written function against its plain definition: values and gradients in float64."""

import math
from collections.abc import Callable

import pytest
import reference
import torch
from test_model_pytorch import N_VOCAB, T, assert_close, make
from test_packing import assert_all_close
from torch import Tensor, nn

from model_pytorch import ACTIVATIONS
from speed import kernels
from speed.kernels import Dropout
from speed.packing import Packing


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def values_and_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Return function(*inputs) and the gradients of a weighted sum of it with respect to each input."""
    inputs = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, randn(*out.shape, seed=9))]


def rounded(p: float) -> float:
    """Return p as a multiple of 1 / 65536, which is what a CPU drops."""
    return round(p * 2**16) / 2**16


# --- dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("chunk", [8, kernels._Dropout.CHUNK])
@pytest.mark.parametrize("transposed", [False, True])
def test_dropout_is_the_plain_one_under_its_mask(monkeypatch, transposed, chunk, p):
    monkeypatch.setattr(kernels._Dropout, "CHUNK", chunk)
    torch.manual_seed(0)
    x = randn(7, 11).T if transposed else randn(11, 7)  # 77 elements: no multiple of a chunk, nor of four
    masks = []

    def dropout(x: Tensor) -> Tensor:
        out = Dropout(p)(x)
        masks.append((out != 0).double())
        return out

    ours = values_and_gradients(dropout, x)
    assert 0 < masks[0].mean() < 1
    plain = values_and_gradients(lambda x: kernels.plain_dropout(x, masks[0], rounded(p)), x)
    assert_all_close(ours, plain, 1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_drop_out_drops_its_share_and_scales_the_rest(p):
    torch.manual_seed(0)
    x = torch.ones(1000, 1001, requires_grad=True)  # no multiple of four
    y = Dropout(p)(x)
    assert y.unique().tolist() == [0, pytest.approx(1 / (1 - p), rel=1e-5)]
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / y.numel()) ** 0.5)
    assert (y == 0).float().mean(0).std().item() == pytest.approx((p * (1 - p) / 1000) ** 0.5, rel=0.1)  # independent
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(Dropout(p).eval()(x), x)


# --- matrix products -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [1, kernels.LARGE])  # whether oneDNN, where there is one, multiplies them
@pytest.mark.parametrize("dtype", [torch.double, torch.float32, torch.bfloat16])
def test_product_is_the_plain_one(monkeypatch, dtype, large):
    monkeypatch.setattr(kernels, "LARGE", large)
    a, b, bias = (t.to(dtype) for t in (randn(37, 21), randn(21, 53, seed=1), randn(53, seed=2)))
    exact = [kernels.plain_product(a.double(), b.double(), c) for c in (0.0, bias.double())]
    tolerance = {torch.double: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    for ours in (kernels.product(a, b, bias), kernels.product(a.mT.clone().mT, b.mT.clone().mT, bias)):
        assert ours.dtype == dtype and ours.layout == torch.strided
        assert_close(ours.double(), exact[1], atol=tolerance)
    assert_close(kernels.product(a, b).double(), exact[0], atol=tolerance)


# --- activation and linear map ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [1, kernels.LARGE])
@pytest.mark.parametrize("act", [*ACTIVATIONS.values(), None], ids=[*ACTIVATIONS, "no activation"])
def test_activated_linear_is_the_plain_one(monkeypatch, act, large):
    monkeypatch.setattr(kernels, "LARGE", large)
    inputs = randn(6, 5), randn(5, 3, seed=1), randn(3, seed=2)
    plain = values_and_gradients(lambda u, w, b: kernels.plain_activated_linear(u, w, b, act), *inputs)
    for dtype, tolerance in ((torch.double, 1e-12), (torch.float32, 1e-5)):
        of_dtype = [t.to(dtype) for t in inputs]
        ours = values_and_gradients(lambda u, w, b: kernels.activated_linear(u, w, b, act).double(), *of_dtype)
        assert_all_close([t.double() for t in ours], plain, tolerance)
    inputs = [t.requires_grad_() for t in inputs]
    with torch.no_grad():
        assert torch.equal(kernels.activated_linear(*inputs, act), plain[0])


def test_activated_linear_stores_only_its_arguments_for_backward():
    inputs = [t.requires_grad_() for t in (randn(6, 5), randn(5, 3, seed=1), randn(3, seed=2))]
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t.data_ptr()), lambda t: t):
        kernels.activated_linear(*inputs, ACTIVATIONS["gelu"])
    assert stored == [t.data_ptr() for t in inputs[:2]]


# --- attention -------------------------------------------------------------------------------------------------------

H, S, L, D = 2, 3, 7, 4


def attention_inputs(masked: bool) -> tuple[list[Tensor], Tensor | None]:
    """Return q, k, v (H, S, L, D) and None or a mask (S, L, L), in which each slot attends at least to itself."""
    mask = torch.rand(S, L, L, generator=torch.Generator().manual_seed(3)) < 0.5
    mask = (mask | torch.eye(L, dtype=torch.bool)).tril()
    return [randn(H, S, L, D, seed=seed) for seed in (0, 1, 2)], mask if masked else None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dropout", [nn.Dropout(0), Dropout(0), Dropout(0.5).eval()], ids=str)
def test_attention_that_drops_nothing_is_the_plain_one(dropout, masked):
    inputs, mask = attention_inputs(masked)
    ours = values_and_gradients(lambda *qkv: kernels.attention(*qkv, mask, dropout), *inputs)
    plain = values_and_gradients(lambda *qkv: kernels.plain_attention(*qkv, mask, 0.0), *inputs)
    assert_all_close(ours, plain, 1e-12)
    q, k, v = inputs
    scores = (q @ k.mT / math.sqrt(D)).masked_fill(~(torch.ones(L, L).tril().bool() if mask is None else mask), -1e9)
    assert_close(ours[0], scores.softmax(-1) @ v, atol=1e-12)


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_attention_that_drops_is_the_plain_one_under_its_mask(monkeypatch, p, masked, is_full):
    monkeypatch.setattr(kernels._Attention, "BLOCK", 3)  # the last block of 7 queries is of one
    inputs, mask = attention_inputs(masked)
    identity = torch.eye(L, dtype=torch.double).expand(H, S, L, L)  # attention over it returns the weights

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same dropout mask each time
        return kernels.attention(q, k, v, mask, Dropout(p), is_full)

    attended = kernels.plain_attention(*inputs[:2], identity, mask, 0.0) != 0
    kept = ours(*inputs[:2], identity) != 0
    assert not (kept & ~attended).any() and 0 < (attended & ~kept).double().mean()

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = kernels.plain_attention(q, k, identity, mask, 0.0)  # (H, S, L, L)
        return kernels.plain_dropout(weights, kept, rounded(p)) @ v

    assert_all_close(values_and_gradients(ours, *inputs), values_and_gradients(plain, *inputs), 1e-12)


@pytest.mark.parametrize("share_context", [False, True])
def test_attention_written_out_for_drop_out_is_torchs(monkeypatch, share_context):
    model, _ = make(attn_pdrop=0.5)
    x, m = (torch.tensor(a) for a in reference.batch(2, N_VOCAB, 3, 2, T))
    packing = Packing.of_padded(x, m, share_context)
    assert packing.slots is not None
    monkeypatch.setattr(Dropout, "forward", lambda self, x: x)  # drops nothing
    monkeypatch.setattr(kernels._Dropout, "sample", lambda x, n_dropped: (x / 2, torch.ones_like(x)))  # doubled again
    written_out, torchs = (model.train(training).transformer(packing) for training in (True, False))
    assert_close(written_out, torchs, atol=1e-12)


# --- cross entropy over the vocabulary -------------------------------------------------------------------------------

N_STATES, N_TABLE, N_ROWS = 10, 13, 4
FUNCTIONS = {
    "mean": lambda rows: rows.mean(),
    "a multiple of the mean": lambda rows: -0.5 * rows.mean(),
    "weighted sum": lambda rows: (rows * torch.tensor([0.3, -1.0, 0.0, 2.0], dtype=rows.dtype)).sum(),
    "squares": lambda rows: (rows**2).sum(),
    "one row": lambda rows: rows[2],
}


def test_row_losses_by_large_products_in_float32_are_the_plain_ones(monkeypatch):
    monkeypatch.setattr(kernels, "LARGE", 1)
    targets, predictions = torch.arange(N_STATES), torch.arange(N_STATES).view(2, -1)
    inputs = randn(N_STATES, 5), randn(N_TABLE, 5, seed=1)
    weights = torch.full(predictions.shape, 0.2, dtype=torch.double)
    plain = values_and_gradients(lambda s, t: kernels.plain_row_losses(s, t, targets, predictions, weights), *inputs)

    def by_large_products(states: Tensor, table: Tensor) -> Tensor:
        return kernels.row_losses(states, table, targets, predictions, weights.float()).double()

    ours = values_and_gradients(by_large_products, *(t.float() for t in inputs))
    assert_all_close([t.double() for t in ours], plain, 1e-5)


@pytest.mark.parametrize("chunk, width", [(3, 4), (1024, 5), (3, 2048), (1, 1)])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_row_losses_are_the_plain_ones(monkeypatch, function, chunk, width):
    monkeypatch.setattr(kernels._RowLosses, "CHUNK", chunk)
    monkeypatch.setattr(kernels._RowLosses, "WIDTH", width)
    rng = torch.Generator().manual_seed(4)
    targets = torch.randint(N_TABLE, (N_STATES,), generator=rng)
    targets[:2] = torch.tensor([0, N_TABLE - 1])
    predictions = torch.randint(N_STATES + 1, (N_ROWS, 6), generator=rng)  # some count for several rows
    predictions[:, -1] = N_STATES  # none
    weights = torch.rand(N_ROWS, 6, dtype=torch.double, generator=rng) * (predictions < N_STATES)
    inputs = 3 * randn(N_STATES, 5), randn(N_TABLE, 5, seed=1)
    found = []
    for losses in (kernels.row_losses, kernels.plain_row_losses):
        states, table = (t.clone().requires_grad_() for t in inputs)
        rows = losses(states, table, targets, predictions, weights)
        function(rows).backward()
        found.append([rows, states.grad, table.grad])
    assert found[0][0].shape == (N_ROWS,)
    assert_all_close(*found, 1e-12)
    with torch.no_grad():
        assert torch.equal(kernels.row_losses(*inputs, targets, predictions, weights), found[0][0])
