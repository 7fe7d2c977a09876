"""The network: values, invariants, dropout, hooks, initial values, checkpoints."""

import argparse
import dataclasses
import re

import numpy as np
import pytest
import reference
import torch

import loss
import model_pytorch
from model_pytorch import (
    ClfHead,
    DoubleHeadModel,
    LMModel,
    MultipleChoiceHead,
    SimilarityHead,
)

N_VOCAB, T = 11, 9
CLASSIFY = N_VOCAB + 2
V = N_VOCAB + 3 + T
CFG = dataclasses.replace(
    model_pytorch.DEFAULT_CONFIG,
    n_embd=8,
    n_head=2,
    n_layer=2,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    resid_pdrop=0.0,
    clf_pdrop=0.0,
)


def make(head: str | tuple[str, int] = "multiple_choice", **settings) -> tuple[DoubleHeadModel, reference.Parameters]:
    model = DoubleHeadModel(dataclasses.replace(CFG, **settings), CLASSIFY, head, vocab=V, n_ctx=T).double()
    return model, reference.randomise(model, seed=1)


def batch(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.tensor(reference.batch(seed, N_VOCAB, *shape)[0])


def assert_close(ours: torch.Tensor, expected: np.ndarray | torch.Tensor, atol: float = 1e-9) -> None:
    assert ours.shape == expected.shape
    np.testing.assert_allclose(
        ours.detach(), expected.detach() if torch.is_tensor(expected) else expected, rtol=0, atol=atol
    )


# ---- values ----


@pytest.mark.parametrize(
    "settings",
    [
        dict(afn="gelu"),
        dict(afn="relu"),
        dict(afn="swish"),
        dict(n_embd=12, n_head=3, n_layer=3),
        dict(n_embd=4, n_head=4, n_layer=1),
        dict(n_head=1),
    ],
    ids=str,
)
def test_hidden_states_and_logits_equal_the_reference(settings):
    model, p = make(**settings)
    cfg, x = dataclasses.replace(CFG, **settings), batch(3, 2, T)
    h, _ = reference.transformer(p, x.numpy(), cfg.n_head, cfg.afn)
    lm, task = model(x)
    assert_close(model.transformer(x), h)
    assert_close(lm, reference.lm_logits(p, h[:, :-1]).reshape(-1, V))
    assert_close(task, reference.task_logits(p, h, x.numpy(), CLASSIFY, "multiple_choice"))


@pytest.mark.parametrize(
    "task, head, shape",
    [
        ("multiple_choice", "multiple_choice", (2, 3, T)),
        ("similarity", "similarity", (3, 2, T)),
        ("inference", "classification", (3, T)),
        ("inference", "classification", (3, 1, T)),
        (("classification", 5), "classification", (3, T)),
    ],
    ids=str,
)
def test_each_head_equals_the_reference(task, head, shape):
    model, p = make(task)
    x = batch(*shape)
    h, _ = reference.transformer(p, x.numpy(), CFG.n_head, CFG.afn)
    assert_close(model(x)[1], reference.task_logits(p, h, x.numpy(), CLASSIFY, head))


def test_language_model_gives_logits_or_probabilities_without_position_rows():
    x = batch(3, T)
    model = LMModel(CFG, V, T).double()
    p = reference.randomise(model, seed=1)
    h, _ = reference.transformer(p, x.numpy(), CFG.n_head, CFG.afn)
    logits = reference.lm_logits(p, h)
    assert_close(model(x), logits)
    with_probs = LMModel(CFG, V, T, return_probs=True).double()
    with_probs.load_state_dict(model.state_dict())
    probs = with_probs(x)
    assert_close(probs[..., :-T], reference.softmax(logits[..., :-T]))
    assert (probs[..., -T:] == 0).all()


def test_any_object_with_the_settings_is_a_config():
    expected, p = make()
    namespace = argparse.Namespace(**dataclasses.asdict(CFG))
    model = DoubleHeadModel(namespace, CLASSIFY, "multiple_choice", vocab=V, n_ctx=T).double()
    reference.set_parameters(model, p)
    x = batch(3, 2, T)
    assert torch.equal(model(x)[1], expected(x)[1])


# ---- invariants ----


def test_no_token_sees_a_later_one():
    model, _ = make()
    x = batch(3, 2, T)
    h = model.transformer(x)
    for t in range(1, T):
        changed = x.clone()
        changed[:, :, t, 0] = (x[:, :, t, 0] + 1) % N_VOCAB
        h_changed = model.transformer(changed)
        assert_close(h_changed[:, :t], h[:, :t], atol=1e-14)
        assert (h_changed[:, t] - h[:, t]).abs().max() > 1e-3


def test_longer_padding_changes_no_task_logit():
    model, _ = make()
    x = batch(3, 2, T - 3)
    padded = torch.zeros(3, 2, T, 2, dtype=x.dtype)
    padded[..., 1] = torch.arange(N_VOCAB + 3, V)
    padded[:, :, : T - 3] = x
    assert_close(model(padded)[1], model(x)[1], atol=1e-13)


def test_swapping_the_endings_swaps_the_logits():
    model, _ = make()
    x = batch(3, 2, T)
    assert_close(model(x.flip(1))[1], model(x)[1].flip(1), atol=1e-13)


def test_similarity_does_not_depend_on_the_order():
    model, _ = make("similarity")
    x = batch(3, 2, T)
    assert_close(model(x.flip(1))[1], model(x)[1], atol=1e-13)


@pytest.mark.parametrize(
    "task, shape, row",
    [
        ("multiple_choice", (3, 2, T), "example 1, choice 1"),
        ("similarity", (3, 2, T), "example 1, choice 1"),
        ("inference", (6, T), "example 3"),
    ],
)
def test_a_row_without_classify_token_is_an_error_that_names_the_row(task, shape, row):
    model, _ = make(task)
    x = batch(*shape)
    rows = x.view(6, T, 2)
    rows[3][rows[3][:, 0] == CLASSIFY, 0] = 0
    with pytest.raises(ValueError, match=row):
        model(x)


def test_the_first_of_two_classify_tokens_counts():
    model, p = make()
    x = batch(3, 2, T)
    before = model(x)[1]
    x[1, 0, 2, 0] = CLASSIFY
    after = model(x)[1]
    h, _ = reference.transformer(p, x.numpy(), CFG.n_head, CFG.afn)
    bias = p["task_head.linear.bias"][0]
    assert abs(after[1, 0].item() - (h[2, 2] @ p["task_head.linear.weight"][0] + bias)) < 1e-9
    others = torch.ones(3, 2, dtype=torch.bool)
    others[1, 0] = False
    assert_close(after[others], before[others], atol=1e-13)


def test_more_tokens_than_positions_are_an_error():
    model, _ = make()
    with pytest.raises(ValueError, match=rf"\b{T + 1}\b.*\b{T}\b|\b{T}\b.*\b{T + 1}\b"):
        model.transformer(torch.zeros(1, 1, T + 1, 2, dtype=torch.long))


# ---- dropout ----


def test_the_table_is_dropped_once_for_inputs_and_decoder():
    model, p = make(embd_pdrop=0.5)
    model.transformer.h = torch.nn.ModuleList()  # only the embedding
    x = batch(3, 2, T)
    x[0, 0, 1, 0] = x[0, 0, 3, 0] = x[2, 1, 1, 0] = 5  # a token that occurs again
    ids, positions = x.view(6, T, 2).unbind(-1)
    torch.manual_seed(0)
    table = model.transformer.dropped_table()
    kept = table != 0
    assert_close(table, np.where(kept, 2 * p[reference.TABLE], 0))
    assert 0.3 < kept.double().mean() < 0.7
    torch.manual_seed(0)
    lm, task = model(x)
    h = table[ids] + table[positions]
    assert_close(model.transformer(x, table), h, atol=1e-14)
    assert_close(lm, (h[:, :-1] @ table.T).reshape(-1, V), atol=1e-12)
    assert_close(task, model.task_head(h, x), atol=1e-12)


@pytest.mark.parametrize(
    "setting, head, removed",
    [
        ("embd_pdrop", "multiple_choice", r"embed"),
        ("attn_pdrop", "multiple_choice", r"attn\.c_proj\.w"),
        ("resid_pdrop", "multiple_choice", r"(attn|mlp)\.c_proj"),
        ("clf_pdrop", "multiple_choice", r"task_head\.linear\.weight"),
        ("clf_pdrop", "similarity", r"task_head\.linear\.weight"),
        ("clf_pdrop", "classification", r"task_head\.linear\.weight"),
    ],
)
def test_each_drop_out_drops_its_part_in_training_only(setting, head, removed):
    """Drop everything: in training as if the weights that read or write the part were 0, in evaluation unchanged."""
    model, p = make(("classification", 4) if head == "classification" else head, **{setting: 1.0})
    x = batch(3, 1 if head == "classification" else 2, T)
    without = {name: 0 * value if re.search(removed, name) else value for name, value in p.items()}
    for training, q in ((False, p), (True, without)):
        model.train(training)
        h, _ = reference.transformer(q, x.numpy(), CFG.n_head, CFG.afn)
        assert_close(model(x)[1], reference.task_logits(q, h, x.numpy(), CLASSIFY, head))


def test_the_choices_of_an_example_share_one_mask_of_features():
    cfg = dataclasses.replace(CFG, n_embd=64, clf_pdrop=0.5)
    head = MultipleChoiceHead(CLASSIFY, cfg).double()
    x = batch(1, 1, T).expand(4, 3, T, 2)
    h = torch.randn(1, T, 64, dtype=torch.double, generator=torch.Generator().manual_seed(0)).expand(12, T, 64)
    torch.manual_seed(0)
    dropped, whole = head.train()(h, x), head.eval()(h, x)
    assert dropped.shape == (4, 3)
    assert_close(dropped, dropped[:, :1].expand(4, 3), atol=1e-13)
    assert len(dropped[:, 0].unique()) == 4  # each example has its own mask
    assert (dropped - whole).abs().min() > 1e-6


# ---- hooks ----

WITH_PARAMETERS = ["attn.c_attn", "attn.c_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2"]  # of a block
# With dropout the embedding matrix is read as a matrix: neither its module nor the tied one is called.
TIED = ["transformer.embed", "lm_head.decoder"]


@pytest.mark.parametrize("head", ["multiple_choice", "similarity", "inference"])
@pytest.mark.parametrize("training", [False, True])
def test_forward_hooks_fire_on_every_module_with_parameters(head, training):
    pdrop = {name: 0.1 for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop", "clf_pdrop")}
    model, _ = make(head, **pdrop)
    model.train(training)
    with_parameters = {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    expected = {f"transformer.h.{i}.{name}" for i in range(CFG.n_layer) for name in WITH_PARAMETERS}
    expected |= {"task_head.linear"}
    assert with_parameters == expected | set(TIED)
    fired = []
    for name, module in model.named_modules():
        if name in with_parameters:
            module.register_forward_hook(lambda *_, name=name: fired.append(name))
    x, m = (torch.tensor(a) for a in reference.batch(2, N_VOCAB, 3, 1 if head == "inference" else 2, T))
    y = torch.tensor([0.0, 1.0, 1.0]) if head == "similarity" else torch.tensor([0, 1, 1])
    with torch.set_grad_enabled(training):
        loss.compute_losses(model, x, m, y, 0.5)  # whose logits of the language model are computed in chunks
        called = expected if training else expected | {"transformer.embed"}
        assert sorted(fired) == sorted(called)  # each once
        fired.clear()
        model(x)
        called = expected if training else with_parameters
        assert sorted(fired) == sorted(called)


# ---- initial values ----


def test_initial_matrices_are_normal_biases_zero_and_gains_one():
    torch.manual_seed(0)
    cfg = dataclasses.replace(CFG, n_embd=64)
    model = DoubleHeadModel(cfg, CLASSIFY, ("classification", 60), vocab=500, n_ctx=T)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            assert abs(parameter.std().item() - 0.02) < 0.001, name
            assert abs(parameter.mean().item()) < 0.001, name
        else:
            assert (parameter == float(name.endswith(".g"))).all(), name


@pytest.mark.parametrize(
    "head",
    [
        lambda cfg: MultipleChoiceHead(CLASSIFY, cfg),
        lambda cfg: SimilarityHead(CLASSIFY, cfg),
        lambda cfg: ClfHead(CLASSIFY, cfg, 3),
    ],
    ids=["multiple_choice", "similarity", "clf"],
)
def test_initial_head_weights_are_normal_and_biases_zero(head):
    torch.manual_seed(0)
    linear = head(dataclasses.replace(CFG, n_embd=4096)).linear
    assert abs(linear.weight.std().item() - 0.02) < 0.001
    assert (linear.bias == 0).all()


# ---- checkpoints ----


def test_a_checkpoint_of_the_port_loads_and_is_saved_without_its_leftovers():
    model, p = make()
    saved = {name: torch.tensor(value) for name, value in p.items()}
    saved["lm_head.decoder.weight"] = saved[reference.TABLE]
    for i in range(CFG.n_layer):
        saved[f"transformer.h.{i}.attn.b"] = torch.ones(T, T).tril().view(1, 1, T, T)
    fresh = DoubleHeadModel(CFG, CLASSIFY, "multiple_choice", vocab=V, n_ctx=T).double()
    fresh.load_state_dict({"module." + name: value for name, value in saved.items()}, strict=True)
    for name, value in reference.get_parameters(fresh).items():
        np.testing.assert_array_equal(value, p[name])
    assert not [name for name in fresh.state_dict() if name.startswith("module.") or name.endswith(".attn.b")]
    assert fresh.lm_head.decoder.weight is fresh.transformer.embed.weight
    with pytest.raises(RuntimeError, match="nonsense"):
        fresh.load_state_dict(saved | {"nonsense": torch.zeros(1)}, strict=True)


def test_a_language_model_checkpoint_of_the_port_loads():
    model = LMModel(CFG, V, T)
    mask = torch.zeros(1, 1, V)
    mask[..., -T:] = -1e12
    LMModel(CFG, V, T).load_state_dict(model.state_dict() | {"pos_emb_mask": mask}, strict=True)
    assert "pos_emb_mask" not in model.state_dict()
