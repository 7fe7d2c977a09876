"""Task and language-model losses: values, gradients, and what they must not change."""

import copy

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from test_model_pytorch import CFG, CLASSIFY, N_VOCAB, T, V, make
from test_packing import SHARED, assert_all_close, rows_of

import loss
from speed import kernels
from speed.packing import Packing

HEADS = {
    "multiple_choice": "multiple_choice",
    "similarity": "similarity",
    "inference": "classification",
    ("classification", 6): "classification",
}


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.tensor(a) for a in arrays]


@pytest.mark.parametrize(
    "head, shape, y",
    [
        ("multiple_choice", (3, 2, T), np.array([0, 1, 1])),
        ("multiple_choice", (2, 4, T), np.array([3, 0])),
        ("inference", (3, 1, T), np.array([0, 2, 1])),
        ("inference", (3, T), np.array([0, 2, 1])),
        (
            ("classification", 6),
            (3, T),
            np.array([[0, 0.25, 0.75, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0.5, 0.5]]),
        ),
        ("similarity", (3, 2, T), np.array([0.0, 1.0, 0.3])),
    ],
    ids=str,
)
def test_losses_equal_the_reference(head, shape, y):
    model, p = make(head)
    x, m = reference.batch(7, N_VOCAB, *shape)
    task, lm = loss.compute_losses(model, *tensors(x, m, y), 0.5)
    h, _ = reference.transformer(p, x, CFG.n_head, CFG.afn)
    logits = reference.task_logits(p, h, x, CLASSIFY, HEADS[head])
    assert task.shape == (len(y),) and lm.shape == (len(h),)
    np.testing.assert_allclose(task.detach(), reference.task_losses(logits, y), rtol=0, atol=1e-9)
    np.testing.assert_allclose(lm.detach(), reference.lm_losses(p, h, x, m), rtol=0, atol=1e-9)


@pytest.mark.parametrize("afn", sorted(reference.ACTIVATIONS))
def test_gradients_of_the_training_loss_equal_the_reference(afn):
    model, p = make(afn=afn)
    x, m = reference.batch(8, N_VOCAB, 3, 2, T)
    y = np.array([1, 0, 1])
    task, lm = loss.compute_losses(model, *tensors(x, m, y), 0.5)
    (task.mean() + 0.5 * lm.mean()).backward()
    expected = reference.gradients(p, x, m, y, CLASSIFY, CFG.n_head, afn, 0.5)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad, expected[name], rtol=0, atol=1e-9, err_msg=name)


def test_drop_out_gives_the_decoder_the_same_table_as_the_inputs():
    model, p = make(embd_pdrop=0.5)
    x, m = reference.batch(7, N_VOCAB, 3, 2, T)
    y = np.array([0, 1, 1])
    torch.manual_seed(0)
    dropped = p | {reference.TABLE: model.transformer.dropped_table().detach().numpy()}
    torch.manual_seed(0)
    task, lm = loss.compute_losses(model, *tensors(x, m, y), 0.5)
    h, _ = reference.transformer(dropped, x, CFG.n_head, CFG.afn)
    logits = reference.task_logits(dropped, h, x, CLASSIFY, "multiple_choice")
    np.testing.assert_allclose(task.detach(), reference.task_losses(logits, y), rtol=0, atol=1e-9)
    np.testing.assert_allclose(lm.detach(), reference.lm_losses(dropped, h, x, m), rtol=0, atol=1e-9)


def test_without_lm_coef_no_language_model_work_is_done(monkeypatch):
    model, _ = make()
    x, m = reference.batch(7, N_VOCAB, 3, 2, T)
    batch = tensors(x, m, np.array([0, 1, 1]))
    with_lm, _ = loss.compute_losses(model, *batch, 0.5)

    def refuse(*args, **kwargs):
        raise AssertionError("the LM head ran")

    monkeypatch.setattr(loss, "lm_losses", refuse)
    monkeypatch.setattr(model.lm_head, "forward", refuse)
    task, lm = loss.compute_losses(model, *batch, 0)
    assert lm is None
    assert torch.equal(task, with_lm)


def test_training_and_evaluation_mode_inputs_and_gradients_are_left_alone():
    x, m = reference.batch(7, N_VOCAB, 3, 2, T)
    batch = tensors(x, m, np.array([0, 1, 1]))
    for training in (True, False):
        model, _ = make()
        model.train(training)
        before, state = copy.deepcopy(batch), copy.deepcopy(model.state_dict())
        loss.compute_losses(model, *batch, 0.5)
        assert all(module.training is training for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(a, b) for a, b in zip(batch, before, strict=True))
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_an_example_costs_the_same_alone_and_in_a_batch():
    model, _ = make()
    x, m, y = tensors(*reference.batch(7, N_VOCAB, 4, 2, T), np.array([0, 1, 1, 0]))
    task, lm = loss.compute_losses(model, x, m, y, 0.5)
    single = [loss.compute_losses(model, x[i : i + 1], m[i : i + 1], y[i : i + 1], 0.5) for i in range(4)]
    np.testing.assert_allclose(task.detach(), torch.cat([one[0] for one in single]).detach(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(lm.detach(), torch.cat([one[1] for one in single]).detach(), rtol=0, atol=1e-12)


def test_a_row_of_one_token_has_finite_losses_and_disturbs_no_other():
    model, _ = make()
    x, m, y = tensors(*reference.batch(7, N_VOCAB, 2, 2, T), np.array([0, 1]))
    _, before = loss.compute_losses(model, x, m, y, 0.5)
    x[1, 1, 0, 0], m[1, 1, 1:] = CLASSIFY, 0
    task, lm = loss.compute_losses(model, x, m, y, 0.5)
    assert torch.isfinite(task).all() and torch.isfinite(lm).all()
    torch.testing.assert_close(lm[:3], before[:3], rtol=0, atol=1e-12)
    assert lm[3] == 0
    (task.mean() + 0.5 * lm.mean()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


# --- the language model's losses without all logits ------------------------------------------------------------------

FUNCTIONS = {
    "mean": lambda lm: lm.mean(),
    "weighted sum": lambda lm: (lm * torch.tensor([0.3, -1.0, 0.0, 2.0, 0.5, 0.1], dtype=lm.dtype)).sum(),
    "squares": lambda lm: (lm**2).sum(),
    "one row": lambda lm: lm[4],
}


def full_losses(h: torch.Tensor, table: torch.Tensor, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of each row from all logits; h (N, C) are the states of the real tokens."""
    ids, real = x[..., 0].flatten(0, 1), m.flatten(0, 1)
    states = torch.zeros(*real.shape, h.size(1), dtype=h.dtype).masked_scatter(real.bool()[..., None], h)
    logits = states[:, :-1] @ table.T
    of_tokens = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * real[:, 1:]
    return of_tokens.sum(1) / real[:, 1:].sum(1)


@pytest.mark.parametrize("chunk, width", [(3, 4), (1024, 5), (3, 2048)])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_language_model_losses_and_gradients_are_those_of_all_logits(monkeypatch, function, chunk, width):
    monkeypatch.setattr(kernels._RowLosses, "CHUNK", chunk)
    monkeypatch.setattr(kernels._RowLosses, "WIDTH", width)
    x, m = (torch.tensor(a) for a in reference.batch(7, N_VOCAB, 3, 2, T))
    rng = torch.Generator().manual_seed(0)
    values = [torch.randn(n, 5, dtype=torch.double, generator=rng) for n in (int(m.sum()), V)]
    ours, theirs = ([value.clone().requires_grad_() for value in values] for _ in range(2))
    lm, expected = loss.lm_losses(*ours, Packing.of_padded(x, m)), full_losses(*theirs, x, m)
    assert lm.shape == (6,)
    function(lm).backward()
    function(expected).backward()
    assert_all_close([lm, *(t.grad for t in ours)], [expected, *(t.grad for t in theirs)], 1e-12)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_next_token_of_several_rows_counts_in_each(monkeypatch, function):
    monkeypatch.setattr(kernels._RowLosses, "CHUNK", 3)
    model, _ = make()
    x, m = rows_of(SHARED["several different examples"][0][1:])
    found = []
    for share_context in (False, True):
        packing = Packing.of_padded(x, m, share_context, CLASSIFY)
        model.zero_grad()
        _, lm = loss.packed_losses(model, packing, torch.tensor([0, 1, 1]), 0.5)
        function(lm).backward()
        found.append([lm, *(parameter.grad.clone() for parameter in model.transformer.parameters())])
    assert_all_close(*found, 1e-10)


def test_losses_without_gradients_are_the_same():
    model, _ = make()
    batch = tensors(*reference.batch(7, N_VOCAB, 3, 2, T), np.array([0, 1, 1]))
    with_gradients = loss.compute_losses(model, *batch, 0.5)
    with torch.no_grad():
        without = loss.compute_losses(model, *batch, 0.5)
    assert all(torch.equal(a, b) and not b.requires_grad for a, b in zip(with_gradients, without, strict=True))


@pytest.mark.parametrize("share_context", [False, True])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_losses_are_float32_under_autocast_and_near_the_exact_ones(function, share_context):
    model, _ = make()
    model.float()
    x, m = rows_of(SHARED["several different examples"][0][1:])
    found = []
    for is_rounded in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_rounded):
            packing = Packing.of_padded(x, m, share_context, CLASSIFY)
            task, lm = loss.packed_losses(model, packing, torch.tensor([0, 1, 1]), 0.5)
            cost = task.mean() + function(lm)
        cost.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        assert {t.dtype for t in (task, lm, gradient)} == {torch.float32}
        found.append((task, lm, gradient))
    (task, lm, gradient), (rounded_task, rounded_lm, rounded_gradient) = found
    assert not torch.equal(lm, rounded_lm)
    torch.testing.assert_close(rounded_task, task, rtol=0.02, atol=0.02)
    torch.testing.assert_close(rounded_lm, lm, rtol=0.02, atol=0.02)
    assert (rounded_gradient - gradient).norm() < 0.05 * gradient.norm()
