"""Each form of a task against an independent NumPy statement: rows, states, task logits, losses; labels and metrics."""

import dataclasses
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import reference
import scipy.stats
import sklearn.metrics
import torch

from loss import packed_losses, task_losses
from model_pytorch import DEFAULT_CONFIG, DoubleHeadModel
from reading.encoding import Encoded
from reading.rows import CUTS, FORMS, Layout, Rows, soft_labels, special_tokens
from running.inference import answers, evaluate, predict, written_answers
from running.metrics import METRICS
from running.processes import Ranks
from train import balanced_weights

N_VOCAB, T = 20, 24  # words; tokens of the longest row allowed
START, DELIMITER, CLASSIFY = 20, 21, 22
CFG = dataclasses.replace(
    DEFAULT_CONFIG, n_embd=8, n_head=2, n_layer=2, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, clf_pdrop=0.0
)
RANKS, CPU = Ranks(device=torch.device("cpu")), torch.device("cpu")
SCORES = (0.0, 5.0)

Texts = list[list[int]]  # the texts of an example

# --- the independent statement ---------------------------------------------------------------------------------------

ROWS: dict[str, Callable[..., Texts]] = {  # paper, figure 1; RACE: section 3.3
    "classification": lambda text: [[START] + text + [CLASSIFY]],
    "entailment": lambda a, b: [[START] + a + [DELIMITER] + b + [CLASSIFY]],
    "similarity": lambda a, b: [[START] + x + [DELIMITER] + y + [CLASSIFY] for x, y in ((a, b), (b, a))],
    "multiple_choice": lambda z, *choices: [[START] + z + [DELIMITER] + a + [CLASSIFY] for a in choices],
    "reading": lambda z, q, *choices: [[START] + z + q + [DELIMITER] + a + [CLASSIFY] for a in choices],
}
HEADS = {"entailment": "classification", "reading": "multiple_choice"}  # of the reference, where named otherwise


@dataclasses.dataclass
class Expected:
    """What one example gives, computed by itself in float64."""

    states: np.ndarray  # (K, C) at the classify tokens
    logits: np.ndarray  # (n_out,) of classes or choices
    lm: np.ndarray  # (K,) language-model loss of each row


def expect(p: reference.Parameters, form: str, texts: Texts) -> Expected:
    rows = ROWS[form](*texts)
    n = max(map(len, rows))
    ids = np.array([row + [0] * (n - len(row)) for row in rows])[None]  # (1, K, T)
    m = np.array([[1.0] * len(row) + [0.0] * (n - len(row)) for row in rows])[None]
    x = np.stack([ids, np.broadcast_to(N_VOCAB + 3 + np.arange(n), ids.shape)], -1)
    h, _ = reference.transformer(p, x, CFG.n_head, CFG.afn)
    logits = reference.task_logits(p, h, x, CLASSIFY, HEADS.get(form, form))
    return Expected(reference.classify_states(h, x, CLASSIFY), logits[0], reference.lm_losses(p, h, x, m))


# --- the product -----------------------------------------------------------------------------------------------------


def random_examples(seed: int, n: int, n_texts: int | list[int], longest: int = 5) -> list[Texts]:
    """Make examples of random lengths; n_texts of an example, or of each in turn."""
    rng = np.random.default_rng(seed)
    counts = [n_texts] * n if isinstance(n_texts, int) else [n_texts[i % len(n_texts)] for i in range(n)]
    return [[rng.integers(N_VOCAB, size=rng.integers(longest + 1)).tolist() for _ in range(count)] for count in counts]


def make_rows(examples: list[Texts], labels: np.ndarray | None, form: str, scores=None) -> Rows:
    return Rows(Encoded.of(examples), Layout(form, "longest", N_VOCAB, T), labels, scores)


def make_model(form: str, n_out: int) -> tuple[DoubleHeadModel, reference.Parameters]:
    model = DoubleHeadModel(CFG, CLASSIFY, FORMS[form].head(n_out), N_VOCAB + 3 + T, T).double()
    return model, reference.randomise(model, seed=3)


CASES = {  # form, outputs of the head, texts of the examples in turn
    "classification of 2": ("classification", 2, 1),
    "classification of 7": ("classification", 7, 1),
    "entailment of 2": ("entailment", 2, 2),
    "entailment of 3": ("entailment", 3, 2),
    "similarity of 2": ("similarity", 2, 2),
    "similarity as a score": ("similarity", 6, 2),
    "2 choices": ("multiple_choice", 2, 3),
    "4 choices": ("multiple_choice", 4, 5),
    "2 to 4 choices": ("multiple_choice", 4, [3, 5, 4]),
    "reading, 4 choices": ("reading", 4, 6),
    "reading, 2 to 4 choices": ("reading", 4, [6, 4, 5]),
}


def problem(name: str, n: int = 5) -> tuple[Rows, np.ndarray, list[Texts]]:
    """Return the rows of a case, its labels, or weights of classes for scores, and its examples."""
    form, n_out, n_texts = CASES[name]
    examples = random_examples(0, n, n_texts)
    if n_out == 6:
        labels = np.array([0.0, 3.6, 5.0, 2.0, 4.25])[:n]
        weights = np.array([[max(0, 1 - abs(score - k)) for k in range(6)] for score in labels])
        return make_rows(examples, labels, form, SCORES), weights, examples
    n_right = [len(texts) - FORMS[form].n_texts if FORMS[form].has_choices else n_out for texts in examples]
    labels = np.array([i % k for i, k in enumerate(n_right, 1)])
    return make_rows(examples, labels, form), labels, examples


@pytest.mark.parametrize("share_context", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_each_form_equals_the_reference(name, share_context):
    form, n_out, _ = CASES[name]
    model, p = make_model(form, n_out)
    rows, y, examples = problem(name)
    which = np.array([3, 0, 4, 1])
    packing, labels = rows.packed(which, share_context), rows.targets(which)
    h, _, logits = model.forward_packed(packing)
    states = h[packing.read].detach().numpy()  # (B, K, C)
    task, lm = packed_losses(model, packing, labels, 0.5)

    assert logits.shape == (4, n_out) and task.shape == (4,)
    found_lm = lm.detach().numpy()
    for b, i in enumerate(which):
        expected = expect(p, form, examples[i])
        n_rows = len(expected.states)
        assert rows.rows(i) == ROWS[form](*examples[i])
        np.testing.assert_allclose(states[b, :n_rows], expected.states, rtol=0, atol=1e-9)
        n_logits = len(expected.logits)
        np.testing.assert_allclose(logits[b, :n_logits].detach(), expected.logits, rtol=0, atol=1e-9)
        assert (logits[b, n_logits:] == -torch.inf).all()  # choices that this example lacks
        loss = reference.task_losses(expected.logits[None], y[i : i + 1])
        # soft labels are float32 in the product
        np.testing.assert_allclose(task[b : b + 1].detach(), loss, rtol=0, atol=1e-6 if rows.scores else 1e-9)
        np.testing.assert_allclose(found_lm[:n_rows], expected.lm, rtol=0, atol=1e-9)
        found_lm = found_lm[n_rows:]
    assert len(found_lm) == 0  # rows that are no choices have none


@pytest.mark.parametrize("share_context", [False, True])
@pytest.mark.parametrize("lm_coef", [0, 0.5])
@pytest.mark.parametrize("name", ["2 to 4 choices", "reading, 2 to 4 choices"])
def test_examples_of_different_numbers_of_choices_train_as_each_alone(name, lm_coef, share_context):
    model, _ = make_model(*CASES[name][:2])
    rows, _, _ = problem(name)

    def losses(which: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        return packed_losses(model, rows.packed(np.array(which), share_context), rows.targets(np.array(which)), lm_coef)

    def gradients(cost: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        cost.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    task, lm = losses([0, 1, 2, 3, 4])
    alone = [losses([i]) for i in range(5)]
    torch.testing.assert_close(task, torch.cat([t for t, _ in alone]), rtol=0, atol=1e-10)
    cost, cost_alone = task.sum(), sum(t.sum() for t, _ in alone)
    if lm_coef:
        torch.testing.assert_close(lm, torch.cat([rows_lm for _, rows_lm in alone]), rtol=0, atol=1e-10)
        assert len(lm) == sum(len(rows.rows(i)) for i in range(5))
        cost, cost_alone = cost + lm.sum(), cost_alone + sum(rows_lm.sum() for _, rows_lm in alone)
    for found, expected in zip(gradients(cost), gradients(cost_alone), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n_batch", [1, 2, 5])
def test_a_choice_that_an_example_lacks_is_never_its_answer(n_batch):
    model, p = make_model("multiple_choice", 4)
    rows, y, examples = problem("2 to 4 choices")
    with torch.no_grad():
        model.task_head.linear.bias.fill_(-50)  # worse than the 0 of anything left out
    found = predict(model, rows, n_batch, RANKS)
    assert found.shape == (5, 4)
    expected = [expect(p, "multiple_choice", texts) for texts in examples]
    for logits, of_example in zip(found.tolist(), expected, strict=True):
        n = len(of_example.logits)
        bias = p["task_head.linear.bias"]
        np.testing.assert_allclose(logits[:n], of_example.logits - bias - 50, rtol=0, atol=1e-4)
        assert logits[n:] == [-np.inf] * (4 - n)
    right = [of_example.logits.argmax() for of_example in expected]
    assert answers(found, None).tolist() == right
    cost, figures = evaluate(model, rows, ["acc"], n_batch, RANKS, "rows")
    losses = [reference.task_losses(of_example.logits[None], y[i : i + 1])[0] for i, of_example in enumerate(expected)]
    assert cost == pytest.approx(np.mean(losses), abs=1e-5)
    assert figures == {"acc": pytest.approx(np.mean(np.array(right) == y) * 100)}


@pytest.mark.parametrize("n_out", [1, 2, 6])
@pytest.mark.parametrize("share_context", [False, True])
def test_similarity_stays_the_same_when_its_texts_are_swapped(n_out, share_context):
    model, _ = make_model("similarity", n_out)
    examples = random_examples(4, 6, 2)
    found = []
    for texts in (examples, [pair[::-1] for pair in examples]):
        packing = make_rows(texts, None, "similarity").packed(np.arange(6), share_context)
        found.append(model.forward_packed(packing)[2])
    assert found[0].shape == (6, n_out) and found[0].std() > 0.1
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_entailment_depends_on_the_order_of_its_texts():
    model, _ = make_model("entailment", 3)
    one, other = (make_rows(texts, None, "entailment") for texts in ([[[1, 2], [3]]], [[[3], [1, 2]]]))
    logits = [model.forward_packed(rows.packed(np.arange(1)))[2] for rows in (one, other)]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_choices_in_another_order_have_their_logits_in_that_order():
    model, _ = make_model("reading", 4)
    article, question, *choices = random_examples(5, 1, 6)[0]
    order = [2, 0, 3, 1]
    found = []
    for texts in (choices, [choices[k] for k in order]):
        packing = make_rows([[article, question, *texts]], None, "reading").packed(np.arange(1), share_context=True)
        found.append(model.forward_packed(packing)[2][0])
    torch.testing.assert_close(found[0][order], found[1], rtol=0, atol=1e-12)


# --- labels ----------------------------------------------------------------------------------------------------------


def test_a_score_is_divided_between_the_two_classes_around_it():
    expected = {
        3.6: [0, 0, 0, 0.4, 0.6, 0],  # the worked example: 0.4 on class 3, 0.6 on class 4
        0.0: [1, 0, 0, 0, 0, 0],
        5.0: [0, 0, 0, 0, 0, 1],
        2.0: [0, 0, 1, 0, 0, 0],
        0.25: [0.75, 0.25, 0, 0, 0, 0],
        4.8: [0, 0, 0, 0, 0.2, 0.8],
    }
    found = soft_labels(np.array(list(expected)), 0, 5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, list(expected.values()), atol=1e-6)


def authors_labels(scores: np.ndarray) -> np.ndarray:
    """Return what TF's utils.py:25-36 makes of scores from 0 to 5: (N, 6)."""
    y = np.zeros((len(scores), 6))
    for i, score in enumerate(scores):
        for k in range(6):
            if k == np.floor(score) + 1:
                y[i, k] = score - np.floor(score)
            if k == np.floor(score):
                y[i, k] = np.floor(score) - score + 1
    return y


def test_soft_labels_are_the_authors_and_their_expectation_is_the_score():
    scores = np.concatenate([np.random.default_rng(0).uniform(0, 5, 200), np.arange(6)])
    found = soft_labels(scores, *SCORES)
    np.testing.assert_allclose(found, authors_labels(scores), atol=1e-6)
    for low, high in ((0, 5), (-1, 1), (10, 110)):
        scores = np.linspace(low, high, 101)
        found = soft_labels(scores, low, high)
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
        assert (found >= 0).all() and ((found > 1e-6).sum(1) <= 2).all()
        np.testing.assert_allclose(found @ np.linspace(low, high, 6), scores, rtol=0, atol=1e-6 * (high - low) * 5)
    # a score of other examples than those of training may lie outside the range: it counts as its end
    np.testing.assert_array_equal(soft_labels(np.array([-3.0, 7.0]), 0, 5), np.eye(6)[[0, 5]])


def test_the_answer_to_scores_is_the_expectation():
    logits = torch.tensor(np.random.default_rng(0).normal(0, 3, (50, 6)), dtype=torch.float32)
    for scores in (SCORES, (-1.0, 1.0)):
        found = answers(logits, scores)
        expected = reference.softmax(logits.double().numpy()) @ np.linspace(*scores, 6)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        assert (found >= scores[0]).all() and (found <= scores[1]).all()
    assert written_answers(np.array([3.14159, 0.0, 5.0]), None, SCORES) == ["3.142", "0.000", "5.000"]
    certain = 100 * torch.eye(6)
    np.testing.assert_allclose(answers(certain, SCORES), range(6), atol=1e-9)


def test_the_answer_to_classes_is_the_likeliest():
    logits = torch.tensor([[0.0, 2.0, 1.0], [-1.0, -3.0, -2.0]])
    found = answers(logits, None)
    assert found.tolist() == [1, 0] and written_answers(found, ["yes", "no", "maybe"], None) == ["no", "yes"]


def test_balanced_weights_let_every_label_weigh_the_same():
    assert balanced_weights(np.array([0, 0, 0, 1]), 2).tolist() == pytest.approx([2 / 3, 2])
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 200, p=[0.6, 0.25, 0.1, 0.05])
    weights = balanced_weights(labels, 4).numpy()
    expected = sklearn.utils.class_weight.compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    np.testing.assert_allclose(weights * np.bincount(labels), 50, rtol=1e-5)
    assert balanced_weights(np.array([0, 0, 2]), 3).isfinite().all()  # a label without examples


@pytest.mark.parametrize("name", CASES)
def test_targets_are_what_the_loss_takes(name):
    rows, y, _ = problem(name)
    which = np.array([4, 2])
    targets = rows.targets(which)
    np.testing.assert_allclose(targets, y[which], atol=1e-6)
    logits = torch.randn(2, CASES[name][1], dtype=torch.double)
    expected = reference.task_losses(logits.numpy(), y[which])
    np.testing.assert_allclose(task_losses(logits, targets), expected, rtol=0, atol=1e-6)


# --- cuts and lengths ------------------------------------------------------------------------------------------------

N_TEXTS = {
    "classification": [1],
    "regression": [1],
    "entailment": [2],
    "similarity": [2],
    "multiple_choice": [3, 6, 4],
    "reading": [4, 6],
}


@pytest.mark.parametrize("form", FORMS)
def test_only_the_longest_part_is_cut_never_question_or_choice(form):
    special, rng = special_tokens(N_VOCAB), np.random.default_rng(0)
    n_cut = 0
    for texts in random_examples(6, 400, N_TEXTS[form], longest=12):
        n_ctx = int(rng.integers(6, 30))
        cut = Layout(form, "longest", N_VOCAB, n_ctx).cut_texts(texts)
        assert len(cut) == len(texts)
        for text, kept in zip(texts, cut, strict=True):
            assert kept == text[: len(kept)]  # at its end
        shorter = [i for i, (text, kept) in enumerate(zip(texts, cut, strict=True)) if len(kept) < len(text)]
        if FORMS[form].has_choices:
            assert shorter in ([], [0])  # the context alone
            fits = max(map(len, FORMS[form].rows([[], *texts[1:]], special))) <= n_ctx
            assert fits or cut[0] == []
        else:
            fits = True
            for i in shorter:  # a text that lost tokens is still as long as the longest, but for an odd one
                assert len(cut[i]) >= max(map(len, cut)) - 1
        before, after = (max(map(len, FORMS[form].rows(t, special))) for t in (texts, cut))
        assert not fits or after == min(before, n_ctx)  # no token is cut without need
        n_cut += bool(shorter)
    assert 30 < n_cut < 400


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("form", FORMS)
def test_lengths_are_those_of_the_rows(form, cut):
    rng = np.random.default_rng(1)
    for seed in range(12):
        examples = random_examples(seed, 25, N_TEXTS[form], longest=14)
        n_ctx, which = int(rng.integers(6, 50)), rng.integers(25, size=30)
        for chosen in (None, which, which[:1]):
            rows = Rows(Encoded.of(examples), Layout(form, cut, N_VOCAB, n_ctx), which=chosen)
            assert rows.lengths().tolist() == [max(map(len, rows.rows(i))) for i in range(len(rows))]
            whole = [
                max(map(len, FORMS[form].rows(rows.encoded.texts(i), special_tokens(N_VOCAB)))) for i in rows.which
            ]
            assert rows.lengths(is_cut=False).tolist() == whole
        if FORMS[form].has_choices:
            counts = [len(texts) - FORMS[form].n_texts for texts in examples]
            assert Rows(rows.encoded, Layout(form, cut, N_VOCAB, n_ctx)).n_choices() == max(counts)
            assert rows.n_choices() == counts[which[0]]  # of the chosen ones


# --- metrics ---------------------------------------------------------------------------------------------------------

INDEPENDENT = {
    "acc": sklearn.metrics.accuracy_score,
    "f1": sklearn.metrics.f1_score,
    "macro_f1": partial(sklearn.metrics.f1_score, average="macro"),
    "mcc": sklearn.metrics.matthews_corrcoef,
    "pearson": lambda labels, found: scipy.stats.pearsonr(labels, found)[0],
    "spearman": lambda labels, found: scipy.stats.spearmanr(labels, found)[0],
}


def by_formula(name: str, labels: np.ndarray, found: np.ndarray) -> float:
    """Return a metric from its definition."""
    tp, tn, fp, fn = (np.sum((labels == a) & (found == b)) for a, b in ((1, 1), (0, 0), (0, 1), (1, 0)))
    ranks = scipy.stats.rankdata
    match name:
        case "acc":
            return np.mean(labels == found)
        case "f1":
            return 2 * tp / (2 * tp + fp + fn)
        case "macro_f1":
            return (2 * tp / (2 * tp + fp + fn) + 2 * tn / (2 * tn + fp + fn)) / 2
        case "mcc":
            return (tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
        case "pearson":
            return np.corrcoef(labels, found)[0, 1]
        case "spearman":
            return np.corrcoef(ranks(labels), ranks(found))[0, 1]


def test_every_metric_is_compared():
    assert INDEPENDENT.keys() == METRICS.keys()


@pytest.mark.parametrize("name", METRICS)
def test_metrics_equal_scikit_learns_and_scipys_and_their_formulas(name):
    rng = np.random.default_rng(0)
    for n in (3, 10, 200):
        for _ in range(20):
            if name in ("pearson", "spearman"):
                labels, found = np.round(rng.uniform(0, 5, n), 1), rng.uniform(0, 5, n)
            else:
                labels, found = rng.integers(2, size=(2, n))
                labels[:2] = found[1:3] = 0, 1  # both are there
            ours = METRICS[name].of(labels, found)
            assert type(ours) is float
            assert ours == pytest.approx(INDEPENDENT[name](labels, found), abs=1e-12)
            assert ours == pytest.approx(by_formula(name, labels, found), abs=1e-12)
            assert METRICS[name].of(labels, labels) == pytest.approx(1)


CONSTANT = {
    "constant prediction": ([0, 1, 1, 0], [1, 1, 1, 1]),
    "the other constant": ([0, 1, 1, 0], [0, 0, 0, 0]),
    "constant labels": ([0, 0, 0, 0], [0, 1, 1, 0]),
    "both constant, right": ([0, 0, 0, 0], [0, 0, 0, 0]),
    "both constant, wrong": ([0, 0, 0, 0], [1, 1, 1, 1]),
    "one example": ([1], [1]),
    "constant but for rounding": ([0, 1, 2, 3], [2.5, 2.5 + 1e-15, 2.5, 2.5 - 1e-15]),
}


CONSTANT_CASES = [
    (name, case) for name in METRICS for case in CONSTANT if name not in ("f1", "macro_f1", "mcc") or "but" not in case
]


@pytest.mark.parametrize("name, case", CONSTANT_CASES)
def test_a_constant_prediction_gives_a_number_and_no_warning(name, case):
    labels, found = map(np.array, CONSTANT[case])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value = METRICS[name].of(labels, found)
    assert type(value) is float and -1 <= value <= 1
    if name in ("mcc", "pearson", "spearman"):
        assert value == 0  # nothing is explained
