"""Which tokens of a batch are computed: the worked example, no work at padding, a common prefix computed once."""

import pytest
import torch
import torch.nn.functional as F
from test_model_pytorch import CLASSIFY, N_VOCAB, T, make

import loss
from model_pytorch import DoubleHeadModel
from speed.packing import Packing

# --- the worked example of Packing's docstring -----------------------------------------------------------------------

EXAMPLE = [[1, 5, 6, 2, 7, 3], [1, 5, 6, 2, 8, 9, 3]]


def example(share_context: bool) -> Packing:
    """Return the docstring's two rows; position ids count up from 0."""
    return Packing.of_rows([EXAMPLE], 0, share_context)


def padded_example(share_context: bool) -> Packing:
    """Return the same of the two rows as a padded batch."""
    ids = torch.tensor([[row + [0] * (7 - len(row)) for row in EXAMPLE]])
    m = torch.tensor([[[1.0] * len(row) + [0.0] * (7 - len(row)) for row in EXAMPLE]])
    return Packing.of_padded(torch.stack([ids, torch.arange(7).expand_as(ids)], -1), m, share_context, clf_token=3)


def test_the_worked_example_with_each_row_by_itself():
    packing = example(share_context=False)
    assert packing.shape == (2, 7)
    assert packing.sequences == (2, 7)
    assert packing.mask is None  # causal
    assert packing.tokens[:, 0].tolist() == [1, 5, 6, 2, 7, 3, 1, 5, 6, 2, 8, 9, 3]
    assert packing.tokens[:, 1].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 6]
    assert packing.slots.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13]
    assert packing.source.tolist() == [[0, 1, 2, 3, 4, 5, 13], [6, 7, 8, 9, 10, 11, 12]]  # 13: padding
    assert packing.predictors.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert packing.targets.tolist() == [5, 6, 2, 7, 3, 5, 6, 2, 8, 9, 3]
    assert packing.predictions.tolist() == [[0, 1, 2, 3, 4, 11], [5, 6, 7, 8, 9, 10]]  # 11: none
    assert packing.read.tolist() == [[5, 12]]


def test_the_worked_example_with_a_shared_context():
    packing = example(share_context=True)
    assert packing.shape == (2, 7)
    assert packing.sequences == (1, 9)  # S, L
    assert packing.slots is None
    assert packing.tokens[:, 0].tolist() == [1, 5, 6, 2, 7, 3, 8, 9, 3]
    assert packing.tokens[:, 1].tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6]
    assert packing.source.tolist() == [[0, 1, 2, 3, 4, 5, 9], [0, 1, 2, 3, 6, 7, 8]]  # 9: padding
    assert packing.mask.int().tolist() == [
        [
            [1, 0, 0, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 1, 0, 0],
            [1, 1, 1, 1, 0, 0, 1, 1, 0],
            [1, 1, 1, 1, 0, 0, 1, 1, 1],
        ]
    ]
    assert packing.predictors.tolist() == [0, 1, 2, 3, 4, 3, 6, 7]
    assert packing.targets.tolist() == [5, 6, 2, 7, 3, 8, 9, 3]
    assert packing.predictions.tolist() == [[0, 1, 2, 3, 4, 8], [0, 1, 2, 5, 6, 7]]  # 8: none
    assert packing.read.tolist() == [[5, 8]]


@pytest.mark.parametrize("share_context", [False, True])
def test_the_worked_example_in_sequences_and_back(share_context):
    packing = example(share_context)
    tokens = packing.tokens[:, :1]  # as features (N, 1)
    in_sequences = [[1, 5, 6, 2, 7, 3, 8, 9, 3]] if share_context else [[*EXAMPLE[0], 0], EXAMPLE[1]]
    assert packing.to_sequences(tokens)[..., 0].tolist() == in_sequences
    assert torch.equal(packing.to_tokens(packing.to_sequences(tokens)), tokens)
    assert packing.unpack(tokens)[..., 0].tolist() == [[*EXAMPLE[0], 0], EXAMPLE[1]]


def assert_equal(ours: Packing, expected: Packing) -> None:
    for name, value in vars(expected).items():
        found = getattr(ours, name)
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value, name


@pytest.mark.parametrize("share_context", [False, True])
def test_a_padded_batch_is_packed_as_its_rows(share_context):
    assert_equal(padded_example(share_context), example(share_context))


def test_examples_with_different_numbers_of_choices():
    packing = Packing.of_rows([EXAMPLE, EXAMPLE[:1]], 0)
    assert packing.is_choice.tolist() == [[True, True], [True, False]]
    assert packing.read.tolist() == [[5, 12], [18, 0]]
    assert packing.shape == (3, 7)  # only real rows


@pytest.mark.parametrize("mask", [[0.0, 1, 1], [1, 0, 1], [0, 0, 1]])
def test_padding_before_a_token_is_refused_with_the_row(mask):
    with pytest.raises(ValueError, match="row 1 of the mask has a 0 before a 1"):
        Packing.of_padded(torch.zeros(2, 1, 3, 2, dtype=torch.long), torch.tensor([[[1.0, 1, 0]], [mask]]))


# --- only the tokens that must be computed are -----------------------------------------------------------------------


def padded_losses(
    model: DoubleHeadModel, x: torch.Tensor, m: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses, computed with padding and all logits in memory; only the means leave padding out."""
    ids, real = x[..., 0].flatten(0, 1), m.flatten(0, 1)
    h = model.transformer(x)
    logits = h[:, :-1] @ model.transformer.embed.weight.T
    of_tokens = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * real[:, 1:]
    lm = of_tokens.sum(1) / real[:, 1:].sum(1)
    states = h[torch.arange(len(h)), [row.index(CLASSIFY) for row in ids.tolist()]]
    task_logits = (states @ model.task_head.linear.weight.T + model.task_head.linear.bias).view(x.shape[:2])
    return F.cross_entropy(task_logits, y, reduction="none"), lm


def results(model: DoubleHeadModel, task: torch.Tensor, lm: torch.Tensor) -> list[torch.Tensor]:
    """Return the losses and the gradients of the training loss."""
    model.zero_grad()
    (task.mean() + 0.5 * lm.mean()).backward()
    return [task, lm, *(parameter.grad.clone() for parameter in model.parameters())]


def assert_all_close(ours: list[torch.Tensor], expected: list[torch.Tensor], atol: float) -> None:
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def states(model: DoubleHeadModel, packing: Packing) -> torch.Tensor:
    """Return the hidden states (B*K, T, C), 0 on padding."""
    return packing.unpack(model.transformer(packing))


def rows_of(examples: list[list[list[int]]], n_tokens: int = T) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token ids of examples, K rows each, as x (B, K, T, 2) and m (B, K, T)."""
    lengths = torch.tensor([[len(row) for row in rows] for rows in examples])
    ids = torch.tensor([[row + [0] * (n_tokens - len(row)) for row in rows] for rows in examples])
    positions = (N_VOCAB + 3 + torch.arange(n_tokens)).expand_as(ids)
    return torch.stack([ids, positions], -1), (torch.arange(n_tokens) < lengths[..., None]).float()


S, D, C = N_VOCAB, N_VOCAB + 1, CLASSIFY


@pytest.mark.parametrize(
    "examples",
    [
        [[[S, 1, 2, D, 3, C], [S, 1, 2, D, 4, 5, 6, 7, C]], [[S, 8, D, 1, C], [S, 9, 9, D, 1, C]]],
        [[[S, 1, D, 3, C], [S, 1, D, 4, C]], [[S, 8, D, 1, C], [S, 9, D, 1, C]]],
        [[[S, 1, 2, 3, 4, D, 5, 6, C], [S, 1, 2, 3, 4, D, 7, 8, C]]],
    ],
    ids=["some padding", "all rows of one length and padded", "no padding"],
)
def test_no_work_at_padding_gives_the_losses_and_gradients_of_the_padded_computation(examples):
    model, _ = make()
    x, m = rows_of(examples)
    y = torch.arange(len(x)) % 2
    expected = results(model, *padded_losses(model, x, m, y))
    assert_all_close(results(model, *loss.compute_losses(model, x, m, y, 0.5)), expected, 1e-12)
    assert len(Packing.of_padded(x, m).tokens) == int(m.sum())
    assert Packing.of_padded(x, m).sequences == (
        m.numel() // T,
        int(m.sum(2).max()),
    )  # attention is cut to the longest row
    h = states(model, Packing.of_padded(x, m))
    assert (h[m.flatten(0, 1) == 0] == 0).all()
    real = m.flatten(0, 1) == 1
    torch.testing.assert_close(h[real], model.transformer(x)[real], rtol=0, atol=1e-12)


# name: the rows of each example, and how many of their tokens are computed
SHARED = {
    "endings of different lengths": ([[[S, 1, 2, D, 3, C], [S, 1, 2, D, 4, 5, 6, 7, C]]], 4 + 2 + 5),
    "no common prefix": ([[[1, S, 2, D, 3, C], [2, S, 2, D, 3, C]]], 6 + 6),
    "two identical choices": ([[[S, 1, D, 2, C], [S, 1, D, 2, C]]], 4 + 1 + 1),
    "a choice that is a prefix of another": ([[[S, 1, D, C], [S, 1, D, C, 5, 6]]], 3 + 1 + 3),
    "a choice of one token": ([[[C], [C, 2, D, 3]]], 1 + 4),
    "endings that begin alike": ([[[S, 1, D, 2, 3, 4, C], [S, 1, D, 2, 3, 5, C]]], 5 + 2 + 2),
    "no padding": ([[[S, 1, 2, 3, 4, D, 5, 6, C], [S, 1, 2, 3, 4, D, 7, 6, C]]], 6 + 3 + 3),
    "several different examples": (
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
    packing = Packing.of_padded(x, m, share_context=True, clf_token=CLASSIFY)
    assert len(packing.tokens) == n_distinct
    shared = results(model, *loss.packed_losses(model, packing, y, 0.5))
    assert_all_close(shared, results(model, *loss.compute_losses(model, x, m, y, 0.5)), 1e-10)
    if (m.sum(2) > 1).all():  # a row of one token has no next tokens to average
        assert_all_close(shared, results(model, *padded_losses(model, x, m, y)), 1e-10)

    h = states(model, packing)
    torch.testing.assert_close(h, states(model, Packing.of_padded(x, m)), rtol=0, atol=1e-10)
    torch.testing.assert_close(model.task_head(h, x), model.task_head(model.transformer(x), x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("n_choices", [None, 1, 3])
def test_a_full_batch_is_packed_as_one_whose_mask_says_so(n_choices):
    shape = (2, 5) if n_choices is None else (2, n_choices, 5)
    for n_tokens in (1, 4, 5):
        x = torch.randint(N_VOCAB, (*shape, 2), generator=torch.Generator().manual_seed(1))[..., :n_tokens, :]
        assert_equal(Packing.full(x), Packing.of_padded(x, torch.ones(x.shape[:-1])))
        assert Packing.full(x).is_full


def test_sharing_without_choices_or_mask_changes_nothing():
    model, _ = make("inference")
    x, m = rows_of([[[S, 1, 2, D, 3, C]], [[S, 1, 2, D, 4, 5, 6, 7, C]]])
    for x_, m_ in ((x, m), (x[:, 0], m[:, 0]), (x[:, 0], None)):
        plain, shared = (
            model.transformer(packing)
            for packing in (Packing.of_padded(x_, m_), Packing.of_padded(x_, m_, share_context=True))
        )
        torch.testing.assert_close(shared, plain, rtol=0, atol=1e-12)
    choices, _ = rows_of(SHARED["no padding"][0])
    h = states(model, Packing.of_padded(choices, None, share_context=True))
    torch.testing.assert_close(h, model.transformer(choices), rtol=0, atol=1e-12)
