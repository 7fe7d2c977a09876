"""Task and language-model losses: values, gradients, and what they must leave alone."""

import copy

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from test_model_pytorch import CFG, CLASSIFY, N_VOCAB, T, V, make

import loss
from model_pytorch import DoubleHeadModel, Packing

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
    torch.testing.assert_close(lm[:3], before[:3], rtol=0, atol=1e-12)
    assert lm[3] == 0
    (task.mean() + 0.5 * lm.mean()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


# --- only the tokens that must be computed are -----------------------------------------------------------------------


def padded_losses(
    model: DoubleHeadModel, x: torch.Tensor, m: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the losses with all positions in the blocks and all logits in memory; only the means leave padding out."""
    ids, real = x[..., 0].flatten(0, 1), m.flatten(0, 1)
    h = model.transformer(x)
    logits = h[:, :-1] @ model.transformer.embed.weight.T
    of_tokens = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * real[:, 1:]
    lm = of_tokens.sum(1) / real[:, 1:].sum(1)
    states = h[torch.arange(len(h)), [row.index(CLASSIFY) for row in ids.tolist()]]
    task_logits = (states @ model.task_head.linear.weight.T + model.task_head.linear.bias).view(x.shape[:2])
    return F.cross_entropy(task_logits, y, reduction="none"), lm


def results(model: DoubleHeadModel, task: torch.Tensor, lm: torch.Tensor) -> list[torch.Tensor]:
    """Give the losses and, of the training loss, the gradients."""
    model.zero_grad()
    (task.mean() + 0.5 * lm.mean()).backward()
    return [task, lm, *(parameter.grad.clone() for parameter in model.parameters())]


def assert_all_close(ours: list[torch.Tensor], expected: list[torch.Tensor], atol: float) -> None:
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def rows_of(examples: list[list[list[int]]], n_tokens: int = T) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay ids of examples, choices and tokens out as x (B, K, T, 2) and m (B, K, T)."""
    lengths = torch.tensor([[len(row) for row in rows] for rows in examples])
    ids = torch.tensor([[row + [0] * (n_tokens - len(row)) for row in rows] for rows in examples])
    positions = (N_VOCAB + 3 + torch.arange(n_tokens)).expand_as(ids)
    return torch.stack([ids, positions], -1), (torch.arange(n_tokens) < lengths[..., None]).float()


def filled(n: int, packing: Packing) -> int:
    """Return how many of n tokens are computed: a multiple of 4, as far as there is room beside them."""
    n_places = packing.rows[0] * packing.rows[1]
    return min(-(-n // 4) * 4, n_places)


S, D, C = N_VOCAB, N_VOCAB + 1, CLASSIFY


@pytest.mark.parametrize(
    "examples",
    [
        [[[S, 1, 2, D, 3, C], [S, 1, 2, D, 4, 5, 6, 7, C]], [[S, 8, D, 1, C], [S, 9, 9, D, 1, C]]],
        [[[S, 1, D, 3, C], [S, 1, D, 4, C]], [[S, 8, D, 1, C], [S, 9, D, 1, C]]],
        [[[S, 1, 2, 3, 4, D, 5, 6, C], [S, 1, 2, 3, 4, D, 7, 8, C]]],
    ],
    ids=["some padding", "all rows alike and padded", "no padding"],
)
def test_no_work_at_padding_gives_the_losses_and_gradients_of_the_padded_computation(examples):
    model, _ = make()
    x, m = rows_of(examples)
    y = torch.arange(len(x)) % 2
    expected = results(model, *padded_losses(model, x, m, y))
    assert_all_close(results(model, *loss.compute_losses(model, x, m, y, 0.5)), expected, 1e-12)
    assert len(Packing(x, m).tokens) == filled(int(m.sum()), Packing(x, m))
    assert Packing(x, m).rows == (m.numel() // T, int(m.sum(2).max()))  # attention is cut to the longest row
    h = model.transformer(x, m=m)
    assert (h[m.flatten(0, 1) == 0] == 0).all()
    real = m.flatten(0, 1) == 1
    torch.testing.assert_close(h[real], model.transformer(x)[real], rtol=0, atol=1e-12)


# name: choices of each example, and how many of their tokens are distinct
SHARED = {
    "endings of different lengths": ([[[S, 1, 2, D, 3, C], [S, 1, 2, D, 4, 5, 6, 7, C]]], 4 + 2 + 5),
    "no common beginning": ([[[1, S, 2, D, 3, C], [2, S, 2, D, 3, C]]], 6 + 6),
    "two identical choices": ([[[S, 1, D, 2, C], [S, 1, D, 2, C]]], 4 + 1 + 1),
    "a choice that begins another": ([[[S, 1, D, C], [S, 1, D, C, 5, 6]]], 3 + 1 + 3),
    "a choice of one token": ([[[C], [C, 2, D, 3]]], 1 + 4),
    "endings that begin alike": ([[[S, 1, D, 2, 3, 4, C], [S, 1, D, 2, 3, 5, C]]], 5 + 2 + 2),
    "no padding": ([[[S, 1, 2, 3, 4, D, 5, 6, C], [S, 1, 2, 3, 4, D, 7, 6, C]]], 6 + 3 + 3),
    "examples of all kinds": (
        [
            [[S, 1, 2, D, 3, C], [S, 1, 2, D, 4, 5, 6, 7, C]],
            [[3, S, 2, D, 3, C], [2, S, 2, D, 3, C]],
            [[S, 1, D, 2, C], [S, 1, D, 2, C]],
            [[S, 9, 9, 9, D, 2, 3, 4, C], [S, 9, 9, 9, D, 2, 3, C]],
        ],
        11 + 12 + 6 + (8 - 1 + 1 + 1 + 1),
    ),
    "four choices": (
        [
            [[S, 1, D, 2, C], [S, 1, D, 3, 4, 5, C], [S, 1, D, 2, C], [S, 1, D, 2, 6, C]],
            [[S, 7, 8, D, 2, C], [S, 7, D, 3, C], [S, 7, 8, D, 4, C], [S, 7, 8, D, 2, 6, C]],
            [[S, 1, D, C], [2, D, C], [S, 1, C], [S, 1, D, 4, C]],
            [[S, 1, D, 2, C]] * 4,
        ],
        (3 + 2 + 4 + 2 + 3) + (2 + 4 + 3 + 4 + 5) + (4 + 3 + 3 + 5) + (4 + 4),
    ),
}


@pytest.mark.parametrize("examples, n_distinct", SHARED.values(), ids=SHARED)
def test_a_shared_context_changes_neither_losses_nor_gradients(examples, n_distinct):
    model, _ = make()
    x, m = rows_of(examples)
    y = torch.arange(len(x)) % x.size(1)
    packing = Packing(x, m, share_context=True)
    assert len(packing.places) == len(packing.tokens) == filled(n_distinct, packing)
    shared = results(model, *loss.compute_losses(model, x, m, y, 0.5, packing))
    assert_all_close(shared, results(model, *loss.compute_losses(model, x, m, y, 0.5)), 1e-10)
    if (m.sum(2) > 1).all():  # a row of one token has no mean over next ones
        assert_all_close(shared, results(model, *padded_losses(model, x, m, y)), 1e-10)

    table = model.transformer.embed.weight
    h = packing.unpack(model.transformer.packed_states(packing, table))
    torch.testing.assert_close(h, model.transformer(x, m=m), rtol=0, atol=1e-10)
    torch.testing.assert_close(model.task_head(h, x), model.task_head(model.transformer(x), x), rtol=0, atol=1e-10)


def test_sharing_without_choices_or_mask_changes_nothing():
    model, _ = make("inference")
    x, m = rows_of([[[S, 1, 2, D, 3, C]], [[S, 1, 2, D, 4, 5, 6, 7, C]]])
    for x_, m_ in ((x, m), (x[:, 0], m[:, 0]), (x[:, 0], None)):
        plain, shared = (
            model.transformer.packed_states(p, model.transformer.embed.weight)
            for p in (Packing(x_, m_), Packing(x_, m_, share_context=True))
        )
        torch.testing.assert_close(shared, plain, rtol=0, atol=1e-12)
    choices, _ = rows_of(SHARED["no padding"][0])
    table = model.transformer.embed.weight
    h = (packing := Packing(choices, None, share_context=True)).unpack(model.transformer.packed_states(packing, table))
    torch.testing.assert_close(h, model.transformer(choices), rtol=0, atol=1e-12)


# --- the language model's losses without all logits ------------------------------------------------------------------

FUNCTIONS = {
    "mean": lambda lm: lm.mean(),
    "weighted sum": lambda lm: (lm * torch.tensor([0.3, -1.0, 0.0, 2.0, 0.5, 0.1], dtype=lm.dtype)).sum(),
    "squares": lambda lm: (lm**2).sum(),
    "one row": lambda lm: lm[4],
}


def full_losses(h: torch.Tensor, table: torch.Tensor, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """Give the mean cross entropy of each row from all logits; h (N, C) are the states of the real tokens."""
    ids, real = x[..., 0].flatten(0, 1), m.flatten(0, 1)
    states = torch.zeros(*real.shape, h.size(1), dtype=h.dtype).masked_scatter(real.bool()[..., None], h)
    logits = states[:, :-1] @ table.T
    of_tokens = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * real[:, 1:]
    return of_tokens.sum(1) / real[:, 1:].sum(1)


@pytest.mark.parametrize("piece, width", [(3, 4), (1024, 5), (3, 2048)])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_language_model_losses_and_gradients_are_those_of_all_logits(monkeypatch, function, piece, width):
    monkeypatch.setattr(loss._RowCrossEntropy, "PIECE", piece)
    monkeypatch.setattr(loss._RowCrossEntropy, "WIDTH", width)
    x, m = (torch.tensor(a) for a in reference.batch(7, N_VOCAB, 3, 2, T))
    rng = torch.Generator().manual_seed(0)
    values = [torch.randn(n, 5, dtype=torch.double, generator=rng) for n in (int(m.sum()), V)]
    ours, theirs = ([value.clone().requires_grad_() for value in values] for _ in range(2))
    lm, expected = loss.lm_losses(*ours, Packing(x, m)), full_losses(*theirs, x, m)
    assert lm.shape == (6,)
    function(lm).backward()
    function(expected).backward()
    assert_all_close([lm, *(t.grad for t in ours)], [expected, *(t.grad for t in theirs)], 1e-12)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_next_token_of_several_rows_counts_in_each(monkeypatch, function):
    monkeypatch.setattr(loss._RowCrossEntropy, "PIECE", 3)
    model, _ = make()
    x, m = rows_of(SHARED["examples of all kinds"][0][1:])
    found = []
    for packing in (Packing(x, m), Packing(x, m, share_context=True)):
        model.zero_grad()
        _, lm = loss.compute_losses(model, x, m, torch.tensor([0, 1, 1]), 0.5, packing)
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
    x, m = rows_of(SHARED["examples of all kinds"][0][1:])
    found = []
    for is_rounded in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_rounded):
            packing = Packing(x, m, share_context)
            task, lm = loss.compute_losses(model, x, m, torch.tensor([0, 1, 1]), 0.5, packing)
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
