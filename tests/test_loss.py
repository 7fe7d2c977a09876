"""Task and language-model losses: values, gradients, and what they must leave alone."""

import copy

import numpy as np
import pytest
import reference
import torch
from test_model_pytorch import CFG, CLASSIFY, N_VOCAB, T, make

import loss

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
    alone = [loss.compute_losses(model, x[i : i + 1], m[i : i + 1], y[i : i + 1], 0.5) for i in range(4)]
    np.testing.assert_allclose(task.detach(), torch.cat([one[0] for one in alone]).detach(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(lm.detach(), torch.cat([one[1] for one in alone]).detach(), rtol=0, atol=1e-12)


def test_a_row_of_one_token_has_finite_losses_and_disturbs_no_other():
    model, _ = make()
    x, m, y = tensors(*reference.batch(7, N_VOCAB, 2, 2, T), np.array([0, 1]))
    _, before = loss.compute_losses(model, x, m, y, 0.5)
    x[1, 1, 0, 0], m[1, 1, 1:] = CLASSIFY, 0
    task, lm = loss.compute_losses(model, x, m, y, 0.5)
    assert torch.isfinite(task).all() and torch.isfinite(lm).all()
    assert torch.equal(lm[:3], before[:3])
    (task.mean() + 0.5 * lm.mean()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_no_work_at_padding_gives_the_losses_and_gradients_of_the_padded_computation():
    model, _ = make()
    x, m = reference.batch(7, N_VOCAB, 3, 2, T)
    x, m, y = tensors(x, m, np.array([0, 1, 1]))
    results = []
    for mask in (m, None):
        model.zero_grad()
        h = model.transformer(x, m=mask)
        table = model.transformer.embed.weight
        task, lm = loss.task_losses(model.task_head(h, x), y), loss.lm_losses(h, table, x, m)
        (task.mean() + 0.5 * lm.mean()).backward()
        results.append([task, lm, *(p.grad.clone() for p in model.parameters())])
    for packed, padded in zip(*results, strict=True):
        torch.testing.assert_close(packed, padded, rtol=0, atol=1e-12)
    assert (model.transformer(x, m=m)[m.flatten(0, 1) == 0] == 0).all()
