"""Model folders in the authors' format: loading, and what is refused before a parameter changes."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import reference
from helpers import Touch, shard_values
from test_model_pytorch import CFG, N_VOCAB

from formats import authors as shards
from formats.authors import load_openai_pretrained_model
from formats.files import InputError
from model_pytorch import TransformerModel

# --- the authors' weights --------------------------------------------------------------------------------------------

N_POSITIONS = 7
BLOCK = {"attn.c_attn.w": (1, 8, 24), "attn.c_attn.b": (24,), "attn.c_proj.w": (1, 8, 8), "attn.c_proj.b": (8,)}
BLOCK |= {"ln_1.g": (8,), "ln_1.b": (8,), "mlp.c_fc.w": (1, 8, 32), "mlp.c_fc.b": (32,)}
BLOCK |= {"mlp.c_proj.w": (1, 32, 8), "mlp.c_proj.b": (8,), "ln_2.g": (8,), "ln_2.b": (8,)}
NAMES = ["positions", "tokens"] + [f"h.{i}.{name}" for i in range(4) for name in BLOCK]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write four random blocks as the authors do: one flat run of float32 numbers, cut into ten files anywhere."""
    shapes = [(N_POSITIONS, 8), (N_VOCAB, 8)] + [*BLOCK.values()] * 4
    flat = np.random.default_rng(0).normal(size=sum(map(np.prod, shapes))).astype(np.float32)
    (tmp_path / "params_shapes.json").write_text(json.dumps(shapes))
    (tmp_path / "hparams.json").write_text(json.dumps({"n_head": CFG.n_head}))
    for i, shard in enumerate(np.array_split(flat, 10)):
        np.save(tmp_path / f"params_{i}.npy", shard)
    return tmp_path


def read(folder: Path) -> reference.Parameters:
    flat = shard_values(folder)
    shapes = json.loads((folder / "params_shapes.json").read_text())
    arrays = np.split(flat, np.cumsum([np.prod(shape) for shape in shapes])[:-1])
    return {
        name: array.reshape(shape[1:] if len(shape) == 3 else shape)
        for name, array, shape in zip(NAMES, arrays, shapes, strict=True)
    }


def make_transformer(n_ctx: int, **settings) -> tuple[TransformerModel, reference.Parameters]:
    model = TransformerModel(dataclasses.replace(CFG, n_layer=4, **settings), vocab=N_VOCAB + 3 + n_ctx, n_ctx=n_ctx)
    return model, reference.randomise(model, seed=4)


@pytest.mark.parametrize("n_transfer, n_blocks", [(0, 0), (3, 3), (4, 4), (12, 4), (-1, None)])
@pytest.mark.parametrize("n_ctx", [N_POSITIONS, 5])
def test_loading_sets_the_table_and_the_blocks_asked_for(folder, n_ctx, n_transfer, n_blocks):
    model, before = make_transformer(n_ctx)
    np.random.seed(6)
    load_openai_pretrained_model(model, n_ctx=n_ctx, n_special=3, n_transfer=n_transfer, path=str(folder))
    theirs = read(folder)
    special = (np.random.RandomState(6).randn(3, 8) * 0.02).astype(np.float32)
    theirs["embed.weight"] = np.concatenate([theirs["tokens"], special, theirs["positions"][:n_ctx]])
    loaded = []
    if n_blocks is not None:
        loaded = [name for name in before if name == "embed.weight" or int(name.split(".")[1]) < n_blocks]
    for name, value in reference.get_parameters(model).items():
        expected = theirs[name] if name in loaded else before[name].astype(np.float32)
        np.testing.assert_array_equal(value, expected, err_msg=name)


def test_heads_are_twelve_unless_the_folder_says_otherwise(tmp_path):
    shapes = shards.FolderSizes(n_vocab=5, n_positions=4, n_embd=24, n_head=12, n_layer=1).shapes()
    (tmp_path / "params_shapes.json").write_text(json.dumps(shapes))
    assert shards.read_sizes(tmp_path).n_head == 12
    (tmp_path / "hparams.json").write_text(json.dumps({"n_head": 6}))
    assert shards.read_sizes(tmp_path).n_head == 6


def test_loading_takes_all_positions_and_the_rows_left_over_as_special(folder):
    model, _ = make_transformer(N_POSITIONS)
    np.random.seed(6)
    load_openai_pretrained_model(model, path=str(folder))
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
        *((damage, "params_3.npy", "params_3.npy") for damage in (remove, truncate, pickle_objects)),
        (shorten, "params_9.npy", "params_"),
        *((damage, "params_shapes.json", "params_shapes.json") for damage in (remove, garble, narrow)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_damaged_folder_is_an_error_that_names_the_file_and_loads_nothing(folder, damage, file, named):
    model, before = make_transformer(N_POSITIONS)
    damage(folder / file)
    with pytest.raises(InputError, match=named):
        load_openai_pretrained_model(model, n_ctx=N_POSITIONS, n_special=3, path=str(folder))
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
    with pytest.raises(InputError, match=named):
        load_openai_pretrained_model(model, n_ctx=n_ctx, n_special=3, path=str(folder))
    assert_unchanged(model, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("shard", range(10))
def test_a_value_that_is_not_finite_is_an_error_that_names_the_shard_and_loads_nothing(folder, shard, value):
    model, before = make_transformer(N_POSITIONS)
    values = np.load(folder / f"params_{shard}.npy")
    for at in (0, len(values) // 2, len(values) - 1):
        damaged = values.copy()
        damaged[at] = value
        np.save(folder / f"params_{shard}.npy", damaged)
        with pytest.raises(InputError, match=rf"params_{shard}\.npy: value {at:,} is {value}"):
            load_openai_pretrained_model(model, n_ctx=N_POSITIONS, n_special=3, path=str(folder))
        assert_unchanged(model, before)
