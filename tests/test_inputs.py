"""Examples -> rows: the paper's four layouts and that of reading, cuts, batches."""

import random
import re

import numpy as np
import pytest
import torch

import train
from reading import rows as inputs
from reading.encoding import Encoded
from reading.rows import (
    CUTS,
    FORMS,
    Layout,
    Rows,
    classification_rows,
    cut_halves,
    cut_longest,
    entailment_rows,
    multiple_choice_rows,
    pad_rows,
    reading_rows,
    similarity_rows,
    special_tokens,
)
from speed.packing import Packing

SPECIAL = special_tokens(100)  # start 100, delimiter 101, classify 102


# --- the four layouts ------------------------------------------------------------------------------------------------


def test_special_tokens_follow_the_vocabulary():
    assert SPECIAL == (100, 101, 102) and inputs.N_SPECIAL == 3
    assert (SPECIAL.start, SPECIAL.delimiter, SPECIAL.classify) == (100, 101, 102)


def test_a_classification_is_one_row():
    assert classification_rows([[5, 6]], SPECIAL) == [[100, 5, 6, 102]]


def test_an_entailment_is_one_row_with_a_delimiter():
    assert entailment_rows([[5, 6], [7]], SPECIAL) == [[100, 5, 6, 101, 7, 102]]


def test_a_similarity_has_both_orders():
    assert similarity_rows([[5, 6], [7]], SPECIAL) == [[100, 5, 6, 101, 7, 102], [100, 7, 101, 5, 6, 102]]


def test_a_multiple_choice_has_a_row_for_each_choice():
    expected = [[100, 5, 6, 101, 7, 102], [100, 5, 6, 101, 8, 9, 102]]
    assert multiple_choice_rows([[5, 6], [7], [8, 9]], SPECIAL) == expected
    assert multiple_choice_rows([[5, 6], [7], [8, 9], []], SPECIAL) == [*expected, [100, 5, 6, 101, 102]]


def test_reading_has_the_question_behind_the_article():
    expected = [[100, 5, 6, 3, 101, 7, 102], [100, 5, 6, 3, 101, 8, 9, 102]]
    assert reading_rows([[5, 6], [3], [7], [8, 9]], SPECIAL) == expected


@pytest.mark.parametrize("form, n_texts", [("classification", 2), ("entailment", 1), ("similarity", 3)])
def test_an_example_with_another_number_of_texts_is_an_error(form, n_texts):
    with pytest.raises(ValueError, match="values to unpack"):
        FORMS[form].rows([[1]] * n_texts, SPECIAL)


DOCSTRING_ROW = re.compile(r"\[[\d ]+\]")


@pytest.mark.parametrize(
    "form, n_texts",
    [("classification", 1), ("entailment", 2), ("similarity", 2), ("multiple_choice", 3), ("reading", 4)],
)
def test_the_example_in_each_docstring_is_what_the_function_returns(form, n_texts):
    lists = [[int(i) for i in text[1:-1].split()] for text in DOCSTRING_ROW.findall(FORMS[form].rows.__doc__)]
    texts, rows = lists[:n_texts], lists[n_texts:]
    assert rows and FORMS[form].rows(texts, SPECIAL) == rows


# --- examples too long for the network -------------------------------------------------------------------------------


def cut_to(cut, texts: list[list[int]], form: str, n_ctx: int) -> list[list[int]]:
    return [text[:n] for text, n in zip(texts, cut([len(text) for text in texts], form, n_ctx), strict=True)]


def batch(rows: Rows, which: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the packed rows of some examples as a padded batch, tokens (B*K, T, 2) and mask (B*K, T)."""
    packing = rows.packed(which)
    return packing.unpack(packing.tokens), packing.unpack(torch.ones(len(packing.tokens)))


def test_the_authors_cut_each_text_to_half_of_the_row():
    texts = [list(range(300)), list(range(254)), [1, 2], []]
    assert cut_to(cut_halves, texts, "multiple_choice", 512) == [list(range(254)), list(range(254)), [1, 2], []]
    assert cut_to(cut_halves, [[1, 2, 3, 4], [5]], "multiple_choice", 10) == [[1, 2, 3], [5]]


@pytest.mark.parametrize(
    "form, texts, n_ctx, expected",
    [
        ("entailment", [[1, 2, 3, 4, 5], [6, 7]], 8, [[1, 2, 3], [6, 7]]),  # the docstring's
        ("similarity", [[1, 2], [3, 4, 5, 6, 7]], 8, [[1, 2], [3, 4, 5]]),
        ("entailment", [[1, 2, 3, 4, 5], [6, 7, 8, 9]], 8, [[1, 2, 3], [6, 7]]),  # both: to half
        ("entailment", [[1, 2, 3], [4, 5]], 8, [[1, 2, 3], [4, 5]]),
        ("entailment", [[], [4, 5, 6, 7, 8, 9]], 8, [[], [4, 5, 6, 7, 8]]),
        ("classification", [[1, 2, 3, 4, 5, 6, 7]], 8, [[1, 2, 3, 4, 5, 6]]),
        ("classification", [[1, 2, 3]], 8, [[1, 2, 3]]),
        ("multiple_choice", [[1, 2, 3, 4, 5], [6], [7, 8]], 8, [[1, 2, 3], [6], [7, 8]]),
        ("multiple_choice", [[1, 2, 3], [6], [7]], 8, [[1, 2, 3], [6], [7]]),
        ("multiple_choice", [[1, 2, 3], [6] * 6, [7]], 8, [[], [6] * 6, [7]]),  # too long: see read_splits
        ("reading", [[1, 2, 3, 4], [5], [6], [7, 8]], 8, [[1, 2], [5], [6], [7, 8]]),
        ("reading", [[1, 2], [5], [6], [7, 8]], 8, [[1, 2], [5], [6], [7, 8]]),
        ("reading", [[1, 2], [5] * 7, [6], [7, 8]], 8, [[], [5] * 7, [6], [7, 8]]),
    ],
)
def test_the_longest_text_is_cut_at_its_end(form, texts, n_ctx, expected):
    assert [list(text) for text in cut_to(cut_longest, texts, form, n_ctx)] == expected


@pytest.mark.parametrize("form, n_before", [("multiple_choice", 1), ("reading", 2)])
def test_every_multiple_choice_is_cut_to_fit(form, n_before):
    rng = random.Random(0)
    for _ in range(300):
        n_ctx = rng.randint(6, 20)
        texts = [[rng.randrange(100)] * rng.randint(0, 15) for _ in range(n_before + 3)]
        (context, *question), choices = texts[:n_before], texts[n_before:]
        kept, *others = cut_to(cut_longest, texts, form, n_ctx)
        assert others == [*question, *choices]  # only the context is cut, at its end
        assert kept == context[: len(kept)]
        n_rest = sum(map(len, question)) + max(map(len, choices)) + 3
        longest = max(map(len, FORMS[form].rows([kept, *others], SPECIAL)))
        assert longest == max(n_rest, min(n_ctx, len(context) + n_rest))  # to fit, and no further


@pytest.mark.parametrize("form, n_texts", [("classification", 1), ("entailment", 2), ("similarity", 2)])
def test_what_was_cut_fits_and_nothing_is_cut_without_need(form, n_texts):
    rng = random.Random(0)
    for _ in range(300):
        n_ctx = rng.randint(6, 20)
        texts = [[1] * rng.randint(0, 15) for _ in range(n_texts)]
        cut = cut_to(cut_longest, texts, form, n_ctx)
        n_tokens = sum(map(len, cut)) + FORMS[form].n_special
        assert n_tokens == min(n_ctx, sum(map(len, texts)) + FORMS[form].n_special)
        for text, kept in zip(texts, cut, strict=True):
            assert kept == text[: len(kept)]
            assert len(kept) == len(text) or len(kept) >= max(map(len, cut)) - 1  # only the longest loses tokens


# --- batches ---------------------------------------------------------------------------------------------------------


def test_rows_are_laid_out_as_the_authors_do():
    x, m = train.transform_roc([[5, 6, 7, 8]], [[9]], [[10, 11, 12, 13]], n_vocab=100, n_ctx=9, max_len=3)
    assert x[0, :, :, 0].tolist() == [[100, 5, 6, 7, 101, 9, 102, 0, 0], [100, 5, 6, 7, 101, 10, 11, 12, 102]]
    assert (x[..., 1] == np.arange(103, 112)).all()
    assert m[0].tolist() == [[1] * 7 + [0] * 2, [1] * 9]


def test_a_special_id_inside_a_story_is_refused():
    with pytest.raises(ValueError, match="example 1: .* 102"):
        train.transform_roc([[1], [1, 102]], [[2], [2]], [[3], [3]], n_vocab=102, n_ctx=9, max_len=3)


def test_a_row_longer_than_the_input_is_refused():
    with pytest.raises(ValueError, match="example 1: 7 tokens do not fit n_ctx 6"):
        train.transform_roc([[1], [1, 2, 3]], [[2], [2]], [[3], [3]], n_vocab=100, n_ctx=6, max_len=3)


def test_longest_row_counts_the_longer_ending_and_cuts():
    encoded = Encoded.of([([1] * 10, [2], [3] * 2), ([1], [2] * 4, [3])])
    for max_len, expected in ((254, 10 + 2 + 3), (3, 3 + 3 + 3 - 1)):
        rows = Rows(encoded, Layout("multiple_choice", "halves", 100, n_ctx=2 * (max_len + 2)))
        assert rows.lengths().max() == expected


def random_texts(rng: random.Random, n: int, n_texts: int, longest: int = 9) -> list[tuple[list[int], ...]]:
    return [
        tuple([rng.randrange(100) for _ in range(rng.randint(0, longest))] for _ in range(n_texts)) for _ in range(n)
    ]


@pytest.mark.parametrize("n_ctx", [10, 12, 64])
def test_transform_roc_and_a_batch_have_the_same_layout(n_ctx):
    texts, y = random_texts(random.Random(0), 20, 3), np.arange(20) % 2
    rows = Rows(Encoded.of(texts), Layout("multiple_choice", "halves", 100, n_ctx), y)
    which = np.array([7, 3, 19, 0])
    x, m = batch(rows, which)
    columns = map(list, zip(*(texts[i] for i in which), strict=True))
    expected_x, expected_m = train.transform_roc(*columns, 100, x.size(1), n_ctx // 2 - 2)
    assert expected_x.dtype == np.int64 and expected_m.dtype == np.float32
    np.testing.assert_array_equal(m, expected_m.reshape(8, -1))
    np.testing.assert_array_equal(x, expected_x.reshape(8, -1, 2) * expected_m.reshape(8, -1, 1))
    assert rows.targets(which).tolist() == y[which].tolist()
    assert m.any(dim=0).all()  # as long as the longest row, not longer
    assert rows.lengths().tolist() == [batch(rows, np.array([i]))[0].size(1) for i in range(20)]
    assert rows.lengths().max() <= n_ctx


@pytest.mark.parametrize(
    "form, n_texts, n_rows", [("classification", 1, 1), ("entailment", 2, 1), ("similarity", 2, 2)]
)
@pytest.mark.parametrize("cut", CUTS)
def test_every_form_makes_batches(form, n_texts, n_rows, cut):
    texts = random_texts(random.Random(1), 9, n_texts)
    rows = Rows(Encoded.of(texts), Layout(form, cut, 100, 12))
    x, m = batch(rows, np.arange(9))
    assert len(x) == 9 * n_rows and x.size(1) == rows.lengths().max() <= 12
    for i, example in enumerate(texts):
        expected = FORMS[form].rows(cut_to(CUTS[cut], example, form, 12), SPECIAL)
        found = range(i * n_rows, (i + 1) * n_rows)
        assert [x[k, : int(m[k].sum()), 0].tolist() for k in found] == expected
        assert all(row[-1] == SPECIAL.classify for row in expected)
    positions = (103 + torch.arange(x.size(1))).expand_as(m)
    assert torch.equal(x[..., 1], positions * m.long())


@pytest.mark.parametrize("share_context", [False, True])
def test_packed_rows_are_those_of_the_padded_batch(share_context):
    rows = Rows(Encoded.of(random_texts(random.Random(2), 9, 3)), Layout("multiple_choice", "halves", 100, 16))
    which = np.array([2, 8])
    x, m = (torch.from_numpy(a) for a in pad_rows([rows.rows(i) for i in which], 100, rows.lengths()[which].max()))
    expected = Packing.of_padded(x, m, share_context, clf_token=SPECIAL.classify)
    found = rows.packed(which, share_context)
    for name, value in vars(expected).items():
        ours = getattr(found, name)
        assert torch.equal(ours, value) if isinstance(value, torch.Tensor) else ours == value, name


def test_the_first_examples_keep_texts_and_labels():
    texts = random_texts(random.Random(3), 9, 2)
    rows = Rows(Encoded.of(texts), Layout("entailment", "longest", 100, 16), np.arange(9))
    for n in (1, 4, 9, 12):
        first = rows.first(n)
        assert len(first) == min(n, 9) and first.labels.tolist() == list(range(min(n, 9)))
        assert [first.rows(i) for i in range(len(first))] == [rows.rows(i) for i in range(min(n, 9))]
        assert first.lengths().tolist() == rows.lengths().tolist()[:n]


def test_rows_of_chosen_examples_are_those_of_all():
    texts, which = random_texts(random.Random(3), 9, 3), np.array([7, 2, 2, 0])
    rows = Rows(Encoded.of(texts), Layout("multiple_choice", "halves", 100, 16), np.arange(9))
    chosen = rows.chosen(which)
    assert len(chosen) == 4 and [chosen.rows(i) for i in range(4)] == [rows.rows(i) for i in which]
    assert chosen.lengths().tolist() == rows.lengths()[which].tolist()
    for n in (2, 4):
        assert all(map(torch.equal, batch(chosen.first(n), np.arange(n)), batch(rows, which[:n])))
        assert chosen.first(n).targets(np.arange(n)).tolist() == which[:n].tolist()
    assert chosen.chosen(np.array([3, 0])).targets(np.arange(2)).tolist() == [0, 7]
