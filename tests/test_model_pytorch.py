"""The network: values, invariants, drop-out, initial values, checkpoints, the authors' weights."""

import argparse
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import reference
import torch

import model_pytorch
import utils
from model_pytorch import (
    ClfHead,
    DoubleHeadModel,
    Dropout,
    LMModel,
    MultipleChoiceHead,
    Packing,
    SimilarityHead,
    TransformerModel,
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


# ---- drop-out ----


def test_the_table_is_dropped_once_for_inputs_and_decoder():
    model, p = make(embd_pdrop=0.5)
    model.transformer.h = torch.nn.ModuleList()  # the embedding alone
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


@pytest.mark.parametrize("share_context", [False, True])
def test_attention_written_out_for_drop_out_is_torchs(monkeypatch, share_context):
    model, _ = make(attn_pdrop=0.5)
    x, m = (torch.tensor(a) for a in reference.batch(2, N_VOCAB, 3, 2, T))
    packing = Packing(x, m, share_context)
    assert not packing.is_dense
    monkeypatch.setattr(Dropout, "forward", lambda self, x: x)  # drops nothing
    written_out, torchs = (
        model.train(t).transformer.packed_states(packing, model.transformer.dropped_table()) for t in (True, False)
    )
    assert_close(written_out, torchs, atol=1e-12)


def test_the_choices_of_an_example_share_one_mask_of_features():
    cfg = dataclasses.replace(CFG, n_embd=64, clf_pdrop=0.5)
    head = MultipleChoiceHead(CLASSIFY, cfg).double()
    x = batch(1, 1, T).expand(4, 3, T, 2)
    h = torch.randn(1, T, 64, dtype=torch.double, generator=torch.Generator().manual_seed(0)).expand(12, T, 64)
    torch.manual_seed(0)
    dropped, whole = head.train()(h, x), head.eval()(h, x)
    assert dropped.shape == (4, 3)
    assert_close(dropped, dropped[:, :1].expand(4, 3), atol=1e-13)
    assert len(dropped[:, 0].unique()) == 4  # each example its own mask
    assert (dropped - whole).abs().min() > 1e-6


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


# ---- the authors' weights ----

N_POSITIONS = 7
BLOCK = [
    ("attn.c_attn.w", (1, 8, 24)),
    ("attn.c_attn.b", (24,)),
    ("attn.c_proj.w", (1, 8, 8)),
    ("attn.c_proj.b", (8,)),
    ("ln_1.g", (8,)),
    ("ln_1.b", (8,)),
    ("mlp.c_fc.w", (1, 8, 32)),
    ("mlp.c_fc.b", (32,)),
    ("mlp.c_proj.w", (1, 32, 8)),
    ("mlp.c_proj.b", (8,)),
    ("ln_2.g", (8,)),
    ("ln_2.b", (8,)),
]
NAMES = ["positions", "tokens"] + [f"h.{i}.{name}" for i in range(4) for name, _ in BLOCK]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write four random blocks as the authors do: one flat run of float32 numbers, cut into ten files anywhere."""
    shapes = [(N_POSITIONS, 8), (N_VOCAB, 8)] + [shape for _ in range(4) for _, shape in BLOCK]
    flat = np.random.default_rng(0).normal(size=sum(map(np.prod, shapes))).astype(np.float32)
    (tmp_path / "params_shapes.json").write_text(json.dumps(shapes))
    (tmp_path / "hparams.json").write_text(json.dumps({"n_head": CFG.n_head}))
    for i, piece in enumerate(np.array_split(flat, 10)):
        np.save(tmp_path / f"params_{i}.npy", piece)
    return tmp_path


def read(folder: Path) -> reference.Parameters:
    flat = np.concatenate([np.load(folder / f"params_{i}.npy") for i in range(10)])
    shapes = json.loads((folder / "params_shapes.json").read_text())
    pieces = np.split(flat, np.cumsum([np.prod(shape) for shape in shapes])[:-1])
    return {
        name: piece.reshape(shape[1:] if len(shape) == 3 else shape)
        for name, piece, shape in zip(NAMES, pieces, shapes, strict=True)
    }


def make_transformer(n_ctx: int, **settings) -> tuple[TransformerModel, reference.Parameters]:
    model = TransformerModel(dataclasses.replace(CFG, n_layer=4, **settings), vocab=N_VOCAB + 3 + n_ctx, n_ctx=n_ctx)
    return model, reference.randomise(model, seed=4)


@pytest.mark.parametrize("n_transfer, n_blocks", [(0, 0), (3, 3), (4, 4), (12, 4), (-1, None)])
@pytest.mark.parametrize("n_ctx", [N_POSITIONS, 5])
def test_loading_sets_the_table_and_the_blocks_asked_for(folder, n_ctx, n_transfer, n_blocks):
    model, before = make_transformer(n_ctx)
    np.random.seed(6)
    model_pytorch.load_openai_pretrained_model(model, n_ctx=n_ctx, n_special=3, n_transfer=n_transfer, path=str(folder))
    theirs = read(folder)
    special = (np.random.RandomState(6).randn(3, 8) * 0.02).astype(np.float32)
    theirs["embed.weight"] = np.concatenate([theirs["tokens"], special, theirs["positions"][:n_ctx]])
    loaded = [
        name
        for name in before
        if n_blocks is not None and (name == "embed.weight" or int(name.split(".")[1]) < n_blocks)
    ]
    for name, value in reference.get_parameters(model).items():
        expected = theirs[name] if name in loaded else before[name].astype(np.float32)
        np.testing.assert_array_equal(value, expected, err_msg=name)


def test_heads_are_twelve_unless_the_folder_says_otherwise(tmp_path):
    shapes = model_pytorch.FolderSizes(n_vocab=5, n_positions=4, n_embd=24, n_head=12, n_layer=1).shapes()
    (tmp_path / "params_shapes.json").write_text(json.dumps(shapes))
    assert model_pytorch.read_sizes(tmp_path).n_head == 12
    (tmp_path / "hparams.json").write_text(json.dumps({"n_head": 6}))
    assert model_pytorch.read_sizes(tmp_path).n_head == 6


def test_loading_takes_all_positions_and_the_rows_left_over_as_special(folder):
    model, _ = make_transformer(N_POSITIONS)
    np.random.seed(6)
    model_pytorch.load_openai_pretrained_model(model, path=str(folder))
    table, theirs = model.embed.weight.detach().numpy(), read(folder)
    np.testing.assert_array_equal(table[:N_VOCAB], theirs["tokens"])
    np.testing.assert_array_equal(table[-N_POSITIONS:], theirs["positions"])
    np.testing.assert_allclose(table[N_VOCAB:-N_POSITIONS], np.random.RandomState(6).randn(3, 8) * 0.02, rtol=1e-6)


def assert_unchanged(model: TransformerModel, before: reference.Parameters) -> None:
    for name, value in reference.get_parameters(model).items():
        np.testing.assert_array_equal(value, before[name].astype(np.float32), err_msg=name)


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


class Touch:
    """Pickled, a command to make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def pickle_objects(path: Path) -> None:
    np.save(path, np.array([Touch(path.with_name("unpickled"))], object), allow_pickle=True)


def shorten(path: Path) -> None:
    np.save(path, np.load(path)[:-1])


def narrow(path: Path) -> None:
    path.write_text(path.read_text().replace("8]", "6]"))


def garble(path: Path) -> None:
    path.write_text("[[7, 8], ")


@pytest.mark.parametrize(
    "damage, file, named",
    [
        (remove, "params_3.npy", "params_3.npy"),
        (truncate, "params_3.npy", "params_3.npy"),
        (pickle_objects, "params_3.npy", "params_3.npy"),
        (shorten, "params_9.npy", "params_"),
        (remove, "params_shapes.json", "params_shapes.json"),
        (garble, "params_shapes.json", "params_shapes.json"),
        (narrow, "params_shapes.json", "params_shapes.json"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_damaged_folder_is_an_error_that_names_the_file_and_loads_nothing(folder, damage, file, named):
    model, before = make_transformer(N_POSITIONS)
    damage(folder / file)
    with pytest.raises(utils.InputError, match=named):
        model_pytorch.load_openai_pretrained_model(model, n_ctx=N_POSITIONS, n_special=3, path=str(folder))
    assert_unchanged(model, before)
    assert not (folder / "unpickled").exists()


@pytest.mark.parametrize(
    "n_embd, vocab, n_ctx, named",
    [
        (16, N_VOCAB + 3 + N_POSITIONS, N_POSITIONS, "n_embd 8.* 16"),
        (8, N_VOCAB + 2 + N_POSITIONS, N_POSITIONS, f"{N_VOCAB + 2 + N_POSITIONS}"),
        (8, N_VOCAB + 3 + N_POSITIONS + 1, N_POSITIONS + 1, f"{N_POSITIONS} positions.* {N_POSITIONS + 1}"),
    ],
)
def test_a_model_of_other_sizes_is_an_error_that_names_the_sizes_and_loads_nothing(folder, n_embd, vocab, n_ctx, named):
    model = TransformerModel(dataclasses.replace(CFG, n_embd=n_embd, n_layer=4), vocab, n_ctx)
    before = reference.randomise(model, seed=4)
    with pytest.raises(utils.InputError, match=named):
        model_pytorch.load_openai_pretrained_model(model, n_ctx=n_ctx, n_special=3, path=str(folder))
    assert_unchanged(model, before)


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
