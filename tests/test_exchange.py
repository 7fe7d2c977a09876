"""Hugging Face folders: round trips, the same numbers as transformers, training from one, and what is refused."""

import importlib.util
import json
import math
import pickle
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_model
from helpers import ROOT, Touch, contents, refused
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch.export import Dim, export

import convert
import train
from finetuning import fit
from formats.files import InputError
from formats.folders import FolderSizes, read_sizes
from formats.hugging_face import array_names
from model_pytorch import DEFAULT_CONFIG, LMModel, load_openai_pretrained_model
from reading.rows import FORMS, N_SPECIAL, pad_rows, special_tokens, with_positions
from text_utils import TextEncoder
from weights import SavedRun, open_model, open_run

DEMO = ROOT / "demo/model"
TEXT = "Anna had a big exam. She went over each chapter twice."


def needs_transformers(test):
    """Mark a test that compares with transformers, whose warnings are its own."""
    is_missing = not importlib.util.find_spec("transformers")
    return pytest.mark.skipif(is_missing, reason="requirements-bench.txt is not installed")(
        pytest.mark.filterwarnings("ignore")(test)
    )


def to_hf(src: Path, out: Path) -> Path:
    assert convert.main(["to_hf", str(src), str(out)]) == 0
    return out


def from_hf(src: Path, out: Path) -> Path:
    assert convert.main(["from_hf", str(src), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def demo_hf(tmp_path_factory) -> Path:
    return to_hf(DEMO, tmp_path_factory.mktemp("demo") / "hf")


@pytest.fixture
def hf_dir(model_dir, tmp_path) -> Path:
    """The small model as a Hugging Face folder."""
    return to_hf(model_dir, tmp_path / "hf")


# --- round trips -----------------------------------------------------------------------------------------------------


def test_a_model_folder_comes_back_bit_identical(demo_hf, tmp_path):
    assert contents(from_hf(demo_hf, tmp_path / "back")) == contents(DEMO)
    assert (demo_hf / "vocab.json").read_bytes() == (DEMO / "encoder_bpe_40000.json").read_bytes()
    assert (demo_hf / "merges.txt").read_bytes() == (DEMO / "vocab_40000.bpe").read_bytes()


def test_a_folder_like_the_authors_gets_no_further_file(tmp_path, model_dir):
    (model_dir / "hparams.json").unlink()  # twelve heads, gelu
    n_vocab = len(json.loads((model_dir / "encoder_bpe_40000.json").read_text()))
    shapes = FolderSizes(n_vocab, n_positions=8, n_embd=24, n_head=12, n_layer=1).shapes()
    values = np.random.default_rng(0).normal(size=sum(map(math.prod, shapes))).astype(np.float32)
    (model_dir / "params_shapes.json").write_text(json.dumps(shapes))
    for i, part in enumerate(np.array_split(values, 10)):
        np.save(model_dir / f"params_{i}.npy", part)
    back = from_hf(to_hf(model_dir, tmp_path / "hf"), tmp_path / "back")
    assert contents(back) == contents(model_dir)


@pytest.mark.parametrize("afn", ["relu", "swish"])
def test_another_activation_is_kept(model_dir, tmp_path, afn):
    (model_dir / "hparams.json").write_text(json.dumps({"n_head": 2, "afn": afn}))
    hf = to_hf(model_dir, tmp_path / "hf")
    assert read_sizes(hf).afn == json.loads((hf / "config.json").read_text())["afn"] == afn
    back = from_hf(hf, tmp_path / "back")
    assert contents(back) == contents(model_dir)
    x = torch.zeros(1, 3, 2, dtype=torch.long)
    logits = {folder: open_model(folder, return_probs=False)[0](x) for folder in (model_dir, hf, back)}
    assert torch.equal(logits[model_dir], logits[hf]) and torch.equal(logits[model_dir], logits[back])
    (model_dir / "hparams.json").write_text(json.dumps({"n_head": 2}))
    assert not torch.equal(logits[hf], open_model(model_dir, return_probs=False)[0](x))


@pytest.mark.parametrize("value", ["tanh", 3, ["gelu"]])
def test_an_unknown_activation_of_hparams_is_refused(model_dir, value):
    (model_dir / "hparams.json").write_text(json.dumps({"n_head": 2, "afn": value}))
    with pytest.raises(InputError, match="hparams.json"):
        read_sizes(model_dir)


# --- the files that others wrote -------------------------------------------------------------------------------------


def rewrite(folder: Path, rename, **changes) -> None:
    """Write the weights as pytorch_model.bin, under other names, and remove the safetensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({rename(name): value for name, value in tensors.items()} | changes, folder / "pytorch_model.bin")


def bare(name: str) -> str:
    return name.removeprefix("transformer.")


def of_2018(name: str) -> str:
    for ours, theirs in (("ln_1.weight", "ln_1.g"), ("ln_1.bias", "ln_1.b"), ("c_fc.weight", "c_fc.w")):
        name = name.replace(ours, theirs)
    return bare(name)


@pytest.mark.parametrize("rename", [str, bare, of_2018], ids=["transformer.", "bare", "2018"])
def test_names_of_all_times_are_read(hf_dir, model_dir, rename):
    mask = torch.ones(1, 1, 64, 64).tril()
    rewrite(hf_dir, rename, **{rename("transformer.h.0.attn.bias"): mask, "transformer.position_ids": torch.arange(64)})
    x = torch.randint(40, (2, 5, 2))
    with torch.no_grad():
        assert torch.equal(open_model(hf_dir)[0](x), open_model(model_dir)[0](x))


def test_weights_of_the_old_file_format_and_of_16_bits_are_read(hf_dir, model_dir):
    tensors = {name: value.bfloat16() for name, value in load_file(hf_dir / "model.safetensors").items()}
    (hf_dir / "model.safetensors").unlink()
    torch.save(tensors, hf_dir / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    table = open_model(hf_dir)[0].transformer.embed.weight
    expected = open_model(model_dir)[0].transformer.embed.weight
    assert table.dtype == torch.float32 and torch.equal(table, expected.bfloat16().float())


def test_only_the_tied_decoder_is_there(hf_dir, model_dir):
    tensors = load_file(hf_dir / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("transformer.tokens_embed.weight")  # as a DoubleHeads model is saved
    save_file(tensors, hf_dir / "model.safetensors")
    assert torch.equal(
        open_model(hf_dir)[0].transformer.embed.weight, open_model(model_dir)[0].transformer.embed.weight
    )


def test_added_tokens_are_left_out_of_a_language_model(hf_dir, model_dir, tmp_path, capsys):
    tensors, config = load_file(hf_dir / "model.safetensors"), json.loads((hf_dir / "config.json").read_text())
    name = "transformer.tokens_embed.weight"
    tensors[name] = torch.cat([tensors[name], torch.ones(2, 16)])
    save_file(tensors, hf_dir / "model.safetensors")
    (hf_dir / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 2}))
    back = from_hf(hf_dir, tmp_path / "back")
    assert contents(back) == contents(model_dir)
    assert "2 added ones are left out" in capsys.readouterr().out


# --- as transformers of today writes them ---------------------------------------------------------------------------


def tokenizer_json(folder: Path, as_text: bool = False, **added) -> None:
    """Put a tokenizer.json in the place of vocab.json and merges.txt, by the library that transformers uses."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in (folder / "merges.txt").read_text().splitlines()[1:]]
    Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>")).save(str(folder / "tokenizer.json"))
    content = json.loads((folder / "tokenizer.json").read_text())
    if as_text:
        content["model"]["merges"] = [" ".join(merge) for merge in merges]
    content["added_tokens"] = [{"content": token, "id": i} for token, i in added.items()]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()


def split_weights(folder: Path) -> None:
    """Put two files and an index in the place of model.safetensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(index.values()):
        save_file({name: tensors[name] for name in tensors if index[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


@pytest.mark.parametrize("as_text", [False, True])
def test_tokenizer_json_alone_and_weights_in_several_files(hf_dir, model_dir, tmp_path, as_text):
    tokenizer_json(hf_dir, as_text, _start_=len(json.loads((model_dir / "encoder_bpe_40000.json").read_text())))
    split_weights(hf_dir)
    expected, found = open_model(model_dir), open_model(hf_dir)
    assert found[1].encoder == expected[1].encoder and found[1].bpe_ranks == expected[1].bpe_ranks
    x = torch.randint(40, (2, 5, 2))
    with torch.no_grad():
        assert torch.equal(found[0](x), expected[0](x))
    back = from_hf(hf_dir, tmp_path / "back")
    for path in model_dir.iterdir():
        if path.name != "encoder_bpe_40000.json":
            assert (back / path.name).read_bytes() == path.read_bytes()
    assert open_model(back)[1].encoder == expected[1].encoder


def test_training_from_tokenizer_json(hf_dir, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer_json(hf_dir)
    split_weights(hf_dir)
    flags = f"--data_dir {data_dir} --n_valid 10 --n_batch 4 --n_iter 1 --model_dir {hf_dir}".split()
    assert train.main(flags) == 0
    assert len(open_run(tmp_path / "save/rocstories").predict([("the cat", "red", "a cat")])) == 1
    digests = json.loads((tmp_path / "save/rocstories/settings.json").read_text())["digests"]
    assert {"vocab.json", "merges.txt", "model-00002-of-00002.safetensors"} <= digests.keys()
    (hf_dir / "tokenizer.json").write_text("{}")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        train.main(flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert "tokenizer.json holds no vocabulary" in line


def test_a_folder_without_vocabulary_opens_as_a_transformer(hf_dir, model_dir):
    for name in ("vocab.json", "merges.txt"):
        (hf_dir / name).unlink()
    sizes = read_sizes(hf_dir)
    assert sizes == read_sizes(model_dir)
    expected = open_model(model_dir)[0]
    model = LMModel(expected.cfg, sizes.n_vocab + sizes.n_positions, sizes.n_positions)
    load_openai_pretrained_model(model.transformer, path=hf_dir)
    for name, value in expected.transformer.state_dict().items():
        assert torch.equal(value, model.transformer.state_dict()[name])
    with pytest.raises(InputError, match="vocab.json is missing, and so is tokenizer.json: no text can be encoded"):
        open_model(hf_dir)


def test_tensors_that_are_left_out_are_named(hf_dir, capsys):
    open_model(hf_dir)
    assert capsys.readouterr().err == ""
    tensors(score__weight=torch.ones(3, 16))(hf_dir)
    open_model(hf_dir)
    assert capsys.readouterr().err == f"{hf_dir}/model.safetensors: not of the transformer, left out: score.weight\n"


def tokenizer(**changes):
    """Return a damage: tokenizer.json alone, with changes to its model."""

    def damage(folder: Path) -> None:
        tokenizer_json(folder)
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"] |= changes
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return damage


def other_unknown(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    swapped = {"<unk>" if token == "b" else token: i for token, i in vocabulary.items()}
    (folder / "vocab.json").write_text(json.dumps(swapped))


def index_of(value):
    """Return a damage: several files of weights, their index another value."""

    def damage(folder: Path) -> None:
        split_weights(folder)
        (folder / "model.safetensors.index.json").write_text(json.dumps(value))

    return damage


def lose_part(folder: Path) -> None:
    split_weights(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


# --- training from one -----------------------------------------------------------------------------------------------


def test_training_from_either_format_gives_the_same_parameters(model_dir, hf_dir, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = f"--data_dir {data_dir} --n_valid 10 --n_batch 4 --n_iter 1 --lr 1e-3".split()
    for name, folder in (("authors", model_dir), ("hf", hf_dir)):
        assert train.main([*flags, "--desc", name, "--model_dir", str(folder)]) == 0
    saved = [load_file(tmp_path / "save" / name / "best_params") for name in ("authors", "hf")]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    shutil.rmtree(hf_dir)
    settings = json.loads((tmp_path / "save/hf/settings.json").read_text())
    assert {"model.safetensors", "vocab.json", "merges.txt"} <= settings["digests"].keys()
    story = ("the cat was in", "red", "the cat")
    assert open_run(tmp_path / "save/hf").predict([story]) == open_run(tmp_path / "save/authors").predict([story])


# --- runs ------------------------------------------------------------------------------------------------------------

EXAMPLES = {
    "classification": "the cat was in red",
    "entailment": ("the cat was in", "the red cat"),
    "similarity": ("the cat was in", "the red cat"),
    "multiple_choice": ("the cat was in", "red", "a cat"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, SavedRun]:
    """A run of each form, from the demo's model."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for form, example in EXAMPLES.items():
        texts = example if isinstance(example, tuple) else (example,)
        examples = [(" ".join([texts[0]] + ["and anna"] * (i % 5)), *texts[1:]) for i in range(20)]
        labels = [1 + i % 2 if form == "multiple_choice" else "nay yea well".split()[i % 3] for i in range(20)]
        labels = ["yea" if label == "well" else label for label in labels] if form == "similarity" else labels
        settings = {"model_dir": str(DEMO), "n_iter": 2, "lr": 3e-3, "n_batch": 4, "n_valid": 4}
        run = fit([e[0] if len(e) == 1 else e for e in examples], labels, form, **settings)
        run.save(folder / form)
        found[form] = open_run(folder / form)
    return found


def test_a_run_of_multiple_choice_comes_back_with_the_same_predictions(runs, tmp_path):
    run, example = runs["multiple_choice"], EXAMPLES["multiple_choice"]
    hf = to_hf(run.folder, tmp_path / "hf")
    back = open_run(from_hf(hf, tmp_path / "back"))
    assert back.predict([example]) == run.predict([example])
    for name in ("form", "cut", "labels", "n_ctx", "n_ctx_allowed", "n_vocab", "clf_pdrop", "n_head"):
        assert getattr(back.record, name) == getattr(run.record, name)
    theirs = dict(back.model.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in run.model.named_parameters())
    assert back.encoder.encode([TEXT], verbose=False) == run.encoder.encode([TEXT], verbose=False)
    config = json.loads((hf / "config.json").read_text())
    assert config["vocab_size"] == run.record.n_vocab + N_SPECIAL and config["pad_token_id"] == 0
    transformer = open_model(hf)[0].transformer  # as a language model, without the three added tokens
    assert torch.equal(transformer.h[0].ln_1.g, run.model.transformer.h[0].ln_1.g)
    assert len(transformer.embed.weight) == run.record.n_vocab + run.record.n_ctx


@pytest.mark.parametrize(
    "form, why",
    [
        ("classification", "OpenAIGPTForSequenceClassification has no bias"),
        ("entailment", "OpenAIGPTForSequenceClassification has no bias"),
        ("similarity", "no head of transformers adds"),
    ],
)
def test_of_other_runs_the_language_model_goes_and_it_is_said_so(runs, tmp_path, capsys, form, why):
    hf = to_hf(runs[form].folder, tmp_path / "hf")
    out = capsys.readouterr().out
    assert f"OpenAIGPTLMHeadModel: the language model only, without the head of the {form} ({why}" in out
    assert not any("score" in name or "choice" in name for name in load_file(hf / "model.safetensors"))
    assert json.loads((hf / "config.json").read_text())["architectures"] == ["OpenAIGPTLMHeadModel"]
    back = from_hf(hf, tmp_path / "back")
    assert not (back / "settings.json").exists()  # the transformer alone
    ours, theirs = runs[form].model.transformer, open_model(back)[0].transformer
    assert all(torch.equal(a, b) for a, b in zip(ours.h.parameters(), theirs.h.parameters(), strict=True))


DAMAGED_RUNS = {
    "no settings": "none",
    "another form": {"form": "classification"},
    "a form that none has": {"form": "poetry"},
    "no cut": {"cut": "none"},
}


@pytest.mark.parametrize("change", DAMAGED_RUNS.values(), ids=DAMAGED_RUNS)
def test_settings_of_another_run_are_refused(runs, tmp_path, capsys, change):
    hf = to_hf(runs["multiple_choice"].folder, tmp_path / "hf")
    path = hf / "config.json"
    values = json.loads(path.read_text())
    values["fine_tuned"] = change if isinstance(change, str) else values["fine_tuned"] | change
    path.write_text(json.dumps(values))
    assert_refused(["from_hf", str(hf), str(tmp_path / "back")], "config.json.*Remove 'fine_tuned' for", capsys)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("size", [None, (2, 96), (1, 95), (1, 1), (96,)])
def test_a_run_with_another_head_is_refused(runs, tmp_path, capsys, size):
    hf = to_hf(runs["multiple_choice"].folder, tmp_path / "hf")
    head = {} if size is None else {"multiple_choice_head.summary.weight": torch.ones(size)}
    others = {name: t for name, t in load_file(hf / "model.safetensors").items() if "summary.weight" not in name}
    save_file(others | head, hf / "model.safetensors")
    assert_refused(
        ["from_hf", str(hf), str(tmp_path / "back")], "the weights are not of the run that config.json", capsys
    )
    assert not (tmp_path / "back").exists()


def test_a_run_without_its_special_tokens_is_refused(runs, tmp_path, capsys):
    hf = to_hf(runs["multiple_choice"].folder, tmp_path / "hf")
    config(vocab_size=runs["multiple_choice"].record.n_vocab + 1)(hf)
    assert_refused(["from_hf", str(hf), str(tmp_path / "back")], "without the special tokens", capsys)
    config(vocab_size=runs["multiple_choice"].record.n_vocab + N_SPECIAL, attn_pdrop="often")(hf)
    assert_refused(["from_hf", str(hf), str(tmp_path / "back")], "config.json tells of .TypeError", capsys)


def test_a_run_without_vocabulary_is_refused(runs, tmp_path, capsys):
    hf = to_hf(runs["multiple_choice"].folder, tmp_path / "hf")
    (hf / "vocab.json").unlink()
    assert_refused(["from_hf", str(hf), str(tmp_path / "back")], "vocab.json is missing", capsys)


# --- torch.export ----------------------------------------------------------------------------------------------------


def rows_of(run: SavedRun, example: tuple[str, ...] | str, n_tokens: int) -> torch.Tensor:
    """Return x (1, K, T, 2) of an example, padded."""
    texts = (example,) if isinstance(example, str) else example
    ids = run.encoder.encode(list(texts), verbose=False)
    rows = FORMS[run.record.form].rows(ids, special_tokens(run.record.n_vocab))
    return torch.from_numpy(pad_rows([rows], run.record.n_vocab, n_tokens)[0])


@pytest.mark.parametrize(
    "form", [name if name == "multiple_choice" else pytest.param(name, marks=pytest.mark.slow) for name in EXAMPLES]
)
def test_an_exported_model_gives_the_same_logits(runs, form, tmp_path):
    run = runs[form]
    x = rows_of(run, EXAMPLES[form], 12).repeat(3, 1, 1, 1)
    path = tmp_path / "model.pt2"
    torch.export.save(export(run.model, (x,), dynamic_shapes=({0: Dim("B")},)), path)
    exported = torch.export.load(path).module()
    with torch.no_grad():
        for batch in (x, x[:1], x.repeat(2, 1, 1, 1)):
            for expected, found in zip(run.model(batch), exported(batch), strict=True):
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


# --- a notebook of the early PyTorch port ----------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [0, 5])
def test_calls_of_the_early_pytorch_port_run_unmodified(tmp_path, monkeypatch, top_k):
    shutil.copytree(DEMO, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    class Args:  # its command line
        n_embd, n_head, n_layer, afn = 96, 3, 4, "gelu"
        embd_pdrop = attn_pdrop = resid_pdrop = clf_pdrop = 0.1

    text_encoder = TextEncoder("model/encoder_bpe_40000.json", "model/vocab_40000.bpe")
    n_vocab, n_special, n_ctx = len(text_encoder.encoder), 0, 96
    lm_model = LMModel(Args(), n_vocab + n_special + n_ctx, n_ctx, return_probs=True)
    load_openai_pretrained_model(lm_model.transformer, n_ctx=n_ctx, n_special=n_special)
    lm_model.to(torch.device("cpu"))
    lm_model.eval()

    tokens = np.array(text_encoder.encode([TEXT]))
    positions = np.arange(n_vocab + n_special, n_vocab + n_special + tokens.shape[-1])[None]
    batch = torch.tensor(np.stack([tokens, positions], axis=-1), dtype=torch.long)
    words = []
    for _ in range(12):
        lm_probs = lm_model(batch)
        if top_k == 0:
            next_idx = torch.multinomial(lm_probs[:, -1, :], 1)
        else:
            values, indices = lm_probs[:, -1, :].topk(top_k)
            next_idx = indices.gather(-1, torch.multinomial(values, 1))
        words.append(text_encoder.decoder[next_idx.item()].replace("</w>", ""))
        next_x = torch.cat((next_idx, batch[:, -1:, 1] + 1), -1).unsqueeze(1)
        batch = torch.cat((batch, next_x), 1)
    assert len(words) == 12 and all(words) and DEFAULT_CONFIG.n_layer == 12


# --- the same numbers as transformers --------------------------------------------------------------------------------


def compare_language_models(ours: LMModel, n_vocab: int, folder: Path, ids: list[int], n_greedy: int) -> None:
    """Assert that hidden states, logits and greedy tokens are those of transformers."""
    from transformers import OpenAIGPTLMHeadModel

    theirs, info = OpenAIGPTLMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and theirs.config.n_head == ours.transformer.h[0].attn.n_head
    tokens = torch.tensor([ids])
    x = torch.from_numpy(with_positions(tokens.numpy(), n_vocab))
    with torch.no_grad():
        found = theirs.eval()(tokens, output_hidden_states=True)
        torch.testing.assert_close(ours.transformer(x), found.hidden_states[-1], atol=1e-5, rtol=0)
        # float32 rounds logits of 16 and more by 1e-6 at each step: there 1e-5 is relative, in float64 absolute
        torch.testing.assert_close(ours(x)[..., :n_vocab], found.logits, atol=1e-5, rtol=1e-5)
        logits = theirs.double()(tokens).logits
        torch.testing.assert_close(ours.double()(x)[..., :n_vocab], logits, atol=1e-5, rtol=0)
        theirs.float(), ours.float()
        greedy = list(ids)
        for _ in range(n_greedy):
            x = torch.from_numpy(with_positions(np.array([greedy]), n_vocab))
            greedy.append(int(ours(x)[0, -1, :n_vocab].argmax()))
        options = {"max_new_tokens": n_greedy, "do_sample": False, "pad_token_id": 0}
        assert theirs.generate(tokens, **options)[0].tolist() == greedy


@needs_transformers
def test_the_demo_computes_what_transformers_computes(demo_hf):
    ours, encoder = open_model(demo_hf, return_probs=False)
    (ids,) = encoder.encode([TEXT], verbose=False)
    compare_language_models(ours, len(encoder.encoder), demo_hf, ids, 40)


@pytest.mark.slow
@needs_transformers
def test_the_full_sizes_compute_what_transformers_computes(tmp_path, real_model_dir):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("encoder_bpe_40000.json", "vocab_40000.bpe", "params_shapes.json"):
        shutil.copy(real_model_dir / name, folder)
    values = np.random.default_rng(0).standard_normal(116_534_784, dtype=np.float32) * np.float32(0.02)
    for i, part in enumerate(np.array_split(values, 10)):
        np.save(folder / f"params_{i}.npy", part)
    del values
    hf = to_hf(folder, tmp_path / "hf")
    model, encoder = open_model(hf, return_probs=False)
    (ids,) = encoder.encode([TEXT], verbose=False)
    compare_language_models(model, 40478, hf, ids, 8)
    del model
    back = from_hf(hf, tmp_path / "back")
    for path in folder.iterdir():
        assert path.read_bytes() == (back / path.name).read_bytes(), path.name
    assert len(list(back.iterdir())) == len(list(folder.iterdir()))


@needs_transformers
def test_multiple_choice_logits_are_those_of_transformers(runs, tmp_path):
    from transformers import OpenAIGPTDoubleHeadsModel

    run = runs["multiple_choice"]
    hf = to_hf(run.folder, tmp_path / "hf")
    theirs, info = OpenAIGPTDoubleHeadsModel.from_pretrained(hf, output_loading_info=True)
    assert not any(info.values())
    x = rows_of(run, EXAMPLES["multiple_choice"], 16)
    classify = special_tokens(run.record.n_vocab).classify
    with torch.no_grad():
        lm_logits, expected = run.model(x)
        found = theirs.eval()(x[..., 0], mc_token_ids=(x[..., 0] == classify).int().argmax(-1).long())
        torch.testing.assert_close(found.mc_logits, expected, atol=1e-5, rtol=0)
        n_rows = theirs.config.vocab_size
        found = found.logits[0, :, :-1].flatten(0, 1)
        torch.testing.assert_close(found, lm_logits[:, :n_rows], atol=1e-5, rtol=0)
    # saved by them, it comes back as a run
    theirs.save_pretrained(tmp_path / "theirs")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(hf / name, tmp_path / "theirs")
    back = open_run(from_hf(tmp_path / "theirs", tmp_path / "back"))
    assert back.predict([EXAMPLES["multiple_choice"]]) == run.predict([EXAMPLES["multiple_choice"]])


@needs_transformers
def test_their_tokenizer_of_a_run_reads_special_tokens_in_a_text(runs, tmp_path):
    from transformers import AutoTokenizer

    run, (context, *choices) = runs["multiple_choice"], EXAMPLES["multiple_choice"]
    tokenizer = AutoTokenizer.from_pretrained(to_hf(run.folder, tmp_path / "hf"))
    texts = [f"_start_ {context} _delimiter_ {choice} _classify_" for choice in choices]
    found = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    x = rows_of(run, EXAMPLES["multiple_choice"], found.size(1))
    assert torch.equal(found, x[0, :, :, 0])  # these words are split alike


@needs_transformers
def test_their_tokenizer_of_a_language_model_adds_nothing(demo_hf):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_hf)
    encoder = open_model(demo_hf)[1]
    assert len(tokenizer) == len(encoder.encoder)
    assert tokenizer(TEXT)["input_ids"] == encoder.encode([TEXT], verbose=False)[0]
    assert tokenizer("☃")["input_ids"] == [0]


# --- what is refused -------------------------------------------------------------------------------------------------


def assert_refused(arguments: list[str], message: str, capsys) -> None:
    """Assert one line that says what is wrong."""
    line = refused(convert.main, arguments, capsys)
    assert re.search(message, line), line


def evil_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"h": Touch(path.with_name("executed"))}))


def evil_zip(path: Path) -> None:
    torch.save({"h": Touch(path.with_name("executed"))}, path)


def evil_old(path: Path) -> None:
    torch.save({"h": Touch(path.with_name("executed"))}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [evil_pickle, evil_zip, evil_old])
def test_an_evil_pickle_is_refused_and_never_executed(hf_dir, tmp_path, capsys, write, data_dir, monkeypatch):
    (hf_dir / "model.safetensors").unlink()
    write(hf_dir / "pytorch_model.bin")
    assert_refused(
        ["from_hf", str(hf_dir), str(tmp_path / "o")],
        r"pytorch_model.bin is not a valid file of tensors \(Weights only load failed\)",
        capsys,
    )
    monkeypatch.chdir(tmp_path)
    assert train.main(["--model_dir", str(hf_dir), "--data_dir", str(data_dir), "--n_valid", "10"]) == 2
    assert not (hf_dir / "executed").exists()
    assert not (tmp_path / "o").exists()


def config(**changes):
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))

    return damage


def tensors(**changes):
    """Return a damage: other tensors in the safetensors; None removes one."""

    def damage(folder: Path) -> None:
        values = load_file(folder / "model.safetensors") | {name.replace("__", "."): t for name, t in changes.items()}
        save_file({name: t for name, t in values.items() if t is not None}, folder / "model.safetensors")

    return damage


def binary(value):
    """Return a damage: a pytorch_model.bin that holds a value."""

    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save(value, folder / "pytorch_model.bin")

    return damage


def text(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def without(name: str):
    return lambda folder: (folder / name).unlink()


def halve(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def add_word(folder: Path) -> None:
    encoder = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(encoder | {"zzz": len(encoder)}))


BLOCK = "transformer__h__0__ln_1__weight"
DAMAGES = {
    "gpt2": (config(model_type="gpt2"), "config.json: model_type is 'gpt2', not 'openai-gpt'"),
    "no model type": (config(model_type=None), "model_type is None"),
    "a list": (text("config.json", b"[]"), "config.json is not an object"),
    "no JSON": (text("config.json", b"{"), "config.json cannot be read as JSON"),
    "no config": (without("config.json"), "config.json is missing"),
    "words": (config(n_layer="many"), "config.json: n_layer is a whole number from 1, not 'many'"),
    "no blocks": (config(n_layer=0), "config.json: n_layer is a whole number from 1, not 0"),
    "a truth value": (config(n_head=True), "config.json: n_head is a whole number"),
    "heads": (config(n_head=3), "not a multiple of n_head 3"),
    "activation": (config(afn="tanh"), "config.json: the activation 'tanh'"),
    "activations": (config(afn=["gelu"]), "config.json: the activation"),
    "epsilon": (config(layer_norm_epsilon=1e-6), "layer_norm_epsilon is 1e-06"),
    "more blocks": (config(n_layer=3), "model.safetensors: h.2.attn.c_attn.weight is missing"),
    "fewer blocks": (config(n_layer=1), "model.safetensors: h.1.* is not of this network"),
    "features": (config(n_embd=32), "model.safetensors: positions_embed.weight is"),
    "positions": (config(n_positions=32), "positions_embed.weight is"),
    "rows": (config(vocab_size=10), "vocab.json has"),
    "no vocabulary": (without("vocab.json"), "vocab.json is missing"),
    "no merges": (without("merges.txt"), "merges.txt is missing"),
    "vocabulary": (add_word, "vocab.json has .* tokens, the weights are for"),
    "vocabulary of a list": (text("vocab.json", b"[1]"), "vocab.json is not an object"),
    "no weights": (without("model.safetensors"), "model.safetensors is missing, and so is pytorch_model.bin"),
    "no tokens": (tokenizer(vocab=None), "tokenizer.json holds no vocabulary"),
    "no pairs": (tokenizer(merges=["t h e"]), "tokenizer.json holds no vocabulary"),
    "a merge of none": (tokenizer(merges=[["x", "y"]]), "tokenizer.json holds .* makes no token"),
    "numbers of tokens": (tokenizer(vocab={"a": 1}, merges=[]), "tokenizer.json holds .*the ids are not 0"),
    "unknown added": (partial(tokenizer_json, **{"<unk>": 95}), "tokenizer.json: <unk> has the id 95, and here 0"),
    "unknown": (other_unknown, "vocab.json: <unk> has the id 1, and here 0"),
    "no index": (index_of([]), "index.json does not say which files"),
    "files elsewhere": (index_of({"weight_map": {"h": "../model.safetensors"}}), "index.json does not say which files"),
    "a part": (lose_part, "model-00002-of-00002.safetensors is missing, which model.safetensors.index.json names"),
    "half": (halve, "model.safetensors is not a valid file"),
    "empty": (text("model.safetensors", b""), "model.safetensors is not a valid file"),
    "garbage": (text("model.safetensors", b"\xff" * 100), "model.safetensors is not a valid file"),
    "a block": (tensors(**{BLOCK: None}), "h.0.ln_1.weight is missing"),
    "a shape": (tensors(**{BLOCK: torch.ones(15)}), r"h.0.ln_1.weight is \[15\]"),
    "whole numbers": (tensors(**{BLOCK: torch.ones(16).int()}), "h.0.ln_1.weight holds values that are not finite"),
    "NaN": (tensors(**{BLOCK: torch.full((16,), torch.nan)}), "h.0.ln_1.weight holds values that are not finite"),
    "no table": (tensors(transformer__tokens_embed__weight=None), "tokens_embed.weight is missing"),
    "untied": (tensors(lm_head__weight=torch.ones(95, 16)), "lm_head.weight differs from the embedding matrix"),
    "a tensor": (binary(torch.ones(3)), "pytorch_model.bin holds a Tensor"),
    "numbers": (binary({"h": 3}), "pytorch_model.bin: 'h' is not a tensor"),
    "numbered": (binary({3: torch.ones(3)}), "pytorch_model.bin: 3 is not a tensor"),
    "sparse": (binary({"h": torch.ones(2, 2).to_sparse()}), "pytorch_model.bin"),
    "a view of terabytes": (binary({"h": torch.ones(1).expand(10**6, 10**6)}), "'h' is not a tensor of numbers"),
}


@pytest.mark.filterwarnings("ignore:.*invariant checks")
@pytest.mark.parametrize("damage, message", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_refused_with_one_line(hf_dir, tmp_path, capsys, damage, message):
    damage(hf_dir)
    assert_refused(["from_hf", str(hf_dir), str(tmp_path / "out")], message, capsys)
    assert not (tmp_path / "out").exists()


def test_other_mistakes_of_the_command(hf_dir, model_dir, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert_refused(["to_hf", str(hf_dir), out], "is a Hugging Face folder already", capsys)
    assert_refused(["from_hf", str(model_dir), out], "is not a Hugging Face folder", capsys)
    assert_refused(["to_hf", str(tmp_path / "none"), out], "params_shapes.json is missing", capsys)
    assert_refused(["from_hf", str(tmp_path / "none"), out], "is not a Hugging Face folder", capsys)
    assert_refused(["to_hf", str(model_dir), str(hf_dir)], "holds config.json already", capsys)
    assert_refused(["from_hf", str(hf_dir), str(model_dir)], "holds encoder_bpe_40000.json already", capsys)
    (tmp_path / "file").write_text("")
    assert_refused(["to_hf", str(model_dir), str(tmp_path / "file")], "cannot be written to", capsys)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/settings.json").write_text("{}")
    assert_refused(["to_hf", str(tmp_path / "run"), out], "not the settings of a fine-tuned run", capsys)
    for arguments in (["to_hf"], ["to_tf", "a", "b"], ["to_hf", "a", "b", "c"]):
        refused(convert.main, arguments, capsys)


def test_names_of_arrays_are_in_the_authors_order(tmp_path):
    names = array_names(2)
    assert len(names) == 2 + 2 * 12 and names[2] == "h.0.attn.c_attn.weight" and names[-1] == "h.1.ln_2.bias"
    model, _ = open_model(write_model(tmp_path / "model"))
    ours = [name for name, _ in model.transformer.h.named_parameters()]
    ends = {"w": "weight", "g": "weight", "b": "bias"}
    assert [f"h.{n[:-1]}{ends[n[-1]]}" for n in ours] == names[2:]
