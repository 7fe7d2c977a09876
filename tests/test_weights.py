"""Folders opened from Python: a model folder, and the folder of a fine-tuned run, wherever it was moved to."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_data, write_model

import train
import weights
from datasets import read_cloze
from formats.authors import load_openai_pretrained_model
from formats.examples import Example
from formats.files import InputError
from model_pytorch import Config, LMModel
from reading.rows import with_positions
from reading.tasks import ROCSTORIES_TEST
from running.predictions import read_predictions
from running.record import RunRecord
from weights import SavedRun, open_model, open_run

# --- a model folder --------------------------------------------------------------------------------------------------


def test_a_model_folder_is_opened_with_its_weights_and_its_tokenizer(model_dir):
    model, encoder = open_model(model_dir)
    n_vocab = len(encoder.encoder)
    expected = LMModel(Config(n_embd=16, n_head=2, n_layer=2), n_vocab + 64, 64, return_probs=True).eval()
    load_openai_pretrained_model(expected.transformer, path=model_dir)
    assert not model.training and model.transformer.n_ctx == 64
    x = torch.from_numpy(with_positions(np.array(encoder.encode(["the cat was in"], verbose=False)), n_vocab))
    with torch.no_grad():
        probabilities = model(x)
        assert torch.equal(probabilities, expected(x))
        logits = open_model(str(model_dir), return_probs=False)[0](x)
    torch.testing.assert_close(logits[..., :n_vocab].softmax(-1), probabilities[..., :n_vocab])
    assert encoder.decode(encoder.encode(["The cat, was in!"])[0]) == "the cat, was in!"


def test_a_model_folder_is_looked_up_beside_the_scripts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, encoder = open_model("demo/model")
    assert len(model.transformer.embed.weight) == len(encoder.encoder) + model.transformer.n_ctx


def spoil_byte(path: Path) -> None:
    """Set a byte in the middle of a file to one that is in no text."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] = 0xFF
    path.write_bytes(content)


def add_token(path: Path) -> None:
    encoder = json.loads(path.read_text())
    path.write_text(json.dumps(encoder | {"zzz": len(encoder)}))


MODEL_DAMAGES = {
    "no vocabulary": ("encoder_bpe_40000.json", Path.unlink, "encoder_bpe_40000.json is missing"),
    "no merges": ("vocab_40000.bpe", Path.unlink, "vocab_40000.bpe is missing"),
    "no shapes": ("params_shapes.json", Path.unlink, "params_shapes.json is missing"),
    "no shard": ("params_4.npy", Path.unlink, "params_4.npy is missing"),
    "damaged vocabulary": ("encoder_bpe_40000.json", spoil_byte, "encoder_bpe_40000.json cannot be read as JSON"),
    "damaged merges": ("vocab_40000.bpe", spoil_byte, "vocab_40000.bpe cannot be read"),
    "damaged shapes": ("params_shapes.json", spoil_byte, "params_shapes.json cannot be read as JSON"),
    "half a shard": (
        "params_4.npy",
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        "params_4.npy is not a valid array",
    ),
    "vocabulary of another model": ("encoder_bpe_40000.json", add_token, "tokens, the weights are for"),
    "no head count": ("hparams.json", Path.unlink, "a multiple of n_head"),
}


@pytest.mark.parametrize("file, damage, message", MODEL_DAMAGES.values(), ids=MODEL_DAMAGES)
def test_a_damaged_model_folder_is_an_error_that_names_the_file(model_dir, file, damage, message):
    damage(model_dir / file)
    with pytest.raises(InputError, match=message):
        open_model(model_dir)


@pytest.mark.parametrize("name", ["empty", "no such folder"])
@pytest.mark.parametrize("opened", [open_model, open_run])
def test_a_folder_without_a_model_or_a_run_is_named(tmp_path, opened, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{name}.*is missing"):
        opened(tmp_path / name)


# --- the folder of a run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with the outcome of a small run; the model folder it began from is gone."""
    folder, patch = tmp_path_factory.mktemp("trained"), pytest.MonkeyPatch()
    for shard in write_model(folder / "model").glob("params_?.npy"):
        np.save(shard, 20 * np.load(shard))  # so that the examples' probabilities differ
    write_data(folder / "data", n_test=40)
    with patch.context() as p:
        p.chdir(folder)
        flags = "--data_dir data --model_dir model --n_valid 10 --n_batch 1 --n_iter 1 --lr 1e-3 --submit".split()
        assert train.main(flags) == 0
    shutil.rmtree(folder / "model")
    return folder


@pytest.fixture
def run_dir(trained, tmp_path) -> Path:
    """A copy of the run's folder, elsewhere."""
    return shutil.copytree(trained / "save/rocstories", tmp_path / "moved")


def test_examples(trained: Path) -> list[tuple[str, str, str]]:
    stories, first, second, _ = read_cloze(trained / "data" / ROCSTORIES_TEST)
    return list(zip(stories, first, second, strict=True))


test_examples.__test__ = False


@pytest.mark.parametrize("n_batch", [1, 7, 32])
def test_an_opened_run_predicts_what_the_run_has_predicted(trained, run_dir, n_batch):
    found = open_run(run_dir).predict(test_examples(trained), n_batch)
    written = read_predictions(trained / "log/rocstories.predictions.jsonl")
    written = [example for example in written if example.split == "test"]
    labels = [prediction.label for prediction in found]
    assert len(labels) == 40 and set(labels) == {"1", "2"}
    assert labels == [example.prediction for example in written]
    lines = (trained / "submission/ROCStories.tsv").read_text().splitlines()[1:]
    assert [str(int(label) - 1) for label in labels] == [line.split("\t")[1] for line in lines]  # as handed in
    expected = torch.tensor([example.probabilities for example in written])
    probabilities = torch.tensor([list(prediction.probabilities.values()) for prediction in found])
    torch.testing.assert_close(probabilities, expected, atol=1e-6, rtol=0)
    assert expected.std(0).min() > 1e-4  # the examples differ by far more than rounding
    for prediction in found:
        assert list(prediction.probabilities) == ["1", "2"]
        assert max(prediction.probabilities, key=prediction.probabilities.get) == prediction.label


def test_an_opened_run_knows_its_settings_and_is_ready_to_use(run_dir):
    run = open_run(str(run_dir))
    assert isinstance(run, SavedRun) and not run.model.training
    assert run.record == RunRecord.read(run_dir)
    assert run.record.to_json() == json.loads((run_dir / "settings.json").read_text()) | {"integer_labels": False}
    assert (run.record.form, run.record.labels) == ("multiple_choice", ["1", "2"])
    assert (run.record.cut, run.record.scores, run.record.n_ctx_allowed) == ("halves", None, 64)
    assert run.predict([]) == []


def test_texts_longer_than_any_in_training_are_cut(run_dir):
    run = open_run(run_dir)
    long = "the cat was in red " * 50
    for example in ((long, "red", "cat"), ("red", long, "cat"), (long, long, long)):
        (prediction,) = run.predict([example])
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert run.predict([(long, "red", "cat")]) == run.predict([(long * 2, "red", "cat")])  # the end is cut


@pytest.mark.parametrize("example, n", [("one text", 1), (("a", "b"), 2), ((), 0)])
@pytest.mark.parametrize("n_before", [1, weights.CHUNK + 2])
def test_an_example_with_another_number_of_texts_is_named_by_its_number_among_all(run_dir, example, n, n_before):
    expected = f"example {n_before} has {n} texts; a multiple_choice example takes 1 and two choices or more"
    with pytest.raises(ValueError, match=expected):
        open_run(run_dir).predict([("a", "b", "c")] * n_before + [example], n_batch=512)


def test_examples_of_more_choices_than_in_training_are_predicted(run_dir):
    run = open_run(run_dir)
    two, four = ("the cat", "red", "in"), ("the cat was", "red", "in", "was", "the the")
    found = run.predict([two, four, two])
    assert list(found[1].probabilities) == ["1", "2", "3", "4"]  # by their numbers
    (alone,) = run.predict([two])
    for prediction in found:
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.get)
    for prediction in (found[0], found[2]):  # as when they are alone
        assert prediction.label == alone.label
        assert prediction.probabilities == pytest.approx(alone.probabilities, abs=1e-6)


def test_a_stream_gives_what_predict_does_reading_no_further_than_it_must(trained, run_dir, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK", 8)
    run, examples, n_read = open_run(run_dir), test_examples(trained), []
    expected = run.predict(examples)
    stream = run.stream(n_read.append(i) or Example(texts, None, "") for i, texts in enumerate(examples))
    assert next(stream).label == expected[0].label and len(n_read) == 8
    assert [prediction.label for prediction in stream] == [prediction.label for prediction in expected[1:]]
    assert len(n_read) == 40


def test_choices_that_do_not_fit_without_their_context_are_named(run_dir):
    run = open_run(run_dir)
    run = dataclasses.replace(run, record=dataclasses.replace(run.record, cut="longest"))
    with pytest.raises(InputError, match="example 1: 303 tokens without its context; .*'the cat red red"):
        run.predict([("the cat", "red", "in"), ("the cat", "red " * 100, "in")])
    (prediction,) = run.predict([("the cat " * 100, "red", "in")])
    assert set(prediction.probabilities) == {"1", "2"}


def test_a_saved_copy_is_the_run(trained, run_dir, tmp_path):
    run = open_run(run_dir)
    run.save(tmp_path / "copies/of the run")
    kept = {"settings.json", "encoder_bpe_40000.json", "vocab_40000.bpe", "best_params", "best_params.sha256"}
    assert {path.name for path in (tmp_path / "copies/of the run").iterdir()} == kept  # no checkpoints
    shutil.rmtree(run_dir)
    examples = test_examples(trained)
    assert open_run(tmp_path / "copies/of the run").predict(examples) == run.predict(examples)


@pytest.mark.parametrize("name", ["settings.json", "encoder_bpe_40000.json"])
def test_a_copy_does_not_replace_another_run_or_model(run_dir, tmp_path, name):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).write_text("precious")
    run = open_run(run_dir)
    with pytest.raises(InputError, match=f"{name} is of another run or model. Name another folder"):
        run.save(tmp_path / "other")
    assert [path.read_text() for path in (tmp_path / "other").iterdir()] == ["precious"]
    run.save(run_dir)  # itself it may be


def change_settings(*without: str, **changes):
    """Return a damage: settings without some values, and with others."""

    def damage(path: Path) -> None:
        settings = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in settings.items() if name not in without}))

    return damage


NO_SETTINGS = "settings.json is not the settings of a fine-tuned run"
OTHERS = "settings.json and best_params are not of one run"
RUN_DAMAGES = {
    "no settings": ("settings.json", Path.unlink, "settings.json is missing"),
    "no parameters": ("best_params", Path.unlink, "best_params is not the file"),
    "no digest": ("best_params.sha256", Path.unlink, "best_params is not the file"),
    "no vocabulary": ("encoder_bpe_40000.json", Path.unlink, "encoder_bpe_40000.json is missing"),
    "no merges": ("vocab_40000.bpe", Path.unlink, "vocab_40000.bpe is missing"),
    "damaged settings": ("settings.json", spoil_byte, "settings.json cannot be read as JSON"),
    "damaged parameters": ("best_params", spoil_byte, "best_params is not the file"),
    "half the parameters": (
        "best_params",
        lambda path: path.write_bytes(path.read_bytes()[:500]),
        "best_params is not the file",
    ),
    "damaged digest": ("best_params.sha256", spoil_byte, "best_params is not the file"),
    "damaged vocabulary": ("encoder_bpe_40000.json", spoil_byte, "encoder_bpe_40000.json is not the vocabulary"),
    "another vocabulary": ("encoder_bpe_40000.json", add_token, "encoder_bpe_40000.json is not the vocabulary"),
    "other merges": ("vocab_40000.bpe", lambda p: p.write_text("#\nt h\n"), "vocab_40000.bpe is not the vocabulary"),
    "settings of pretrain.py": ("settings.json", change_settings("form", "labels"), f"{NO_SETTINGS} .form is missing"),
    "settings without sizes": ("settings.json", change_settings("n_embd"), NO_SETTINGS),
    "settings without digests": ("settings.json", change_settings("vocabulary"), NO_SETTINGS),
    "settings with one digest": ("settings.json", change_settings(vocabulary=["0"]), NO_SETTINGS),
    "settings of another form": ("settings.json", change_settings(form="poetry"), NO_SETTINGS),
    "settings of another cut": ("settings.json", change_settings(cut="middle"), NO_SETTINGS),
    "settings without outputs": ("settings.json", change_settings("n_out"), NO_SETTINGS),
    "settings that are a list": ("settings.json", lambda path: path.write_text("[]"), NO_SETTINGS),
    "words for numbers": ("settings.json", change_settings(n_vocab="many"), f"{NO_SETTINGS} .n_vocab is 'many'"),
    "other sizes": ("settings.json", change_settings(n_embd=32), OTHERS),
    "a wrong form": ("settings.json", change_settings(form="classification"), OTHERS),
    "fewer blocks": ("settings.json", change_settings(n_layer=1), OTHERS),
    "exchanged labels": ("settings.json", change_settings(labels=["2", "1"]), OTHERS),
    "other heads": ("settings.json", change_settings(n_head=4), OTHERS),
    "another cut": ("settings.json", change_settings(cut="longest"), OTHERS),
    "no activation": ("settings.json", change_settings(afn="tanh"), OTHERS),
}


@pytest.mark.parametrize("file, damage, message", RUN_DAMAGES.values(), ids=RUN_DAMAGES)
def test_a_damaged_run_is_an_error_that_names_the_file(run_dir, file, damage, message):
    damage(run_dir / file)
    with pytest.raises(InputError, match=message):
        open_run(run_dir)


def test_a_model_folder_is_no_run(model_dir):
    with pytest.raises(InputError, match="settings.json is missing. Name the folder of a run"):
        open_run(model_dir)
