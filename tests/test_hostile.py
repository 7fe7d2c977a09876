"""Hostile files and places for every command: each is one line and exit code 2, and what stood there stays."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import write_data, write_model
from helpers import refused

import analysis
import convert
import generate
import predict
import pretrain
import train
import verify

pytestmark = pytest.mark.slow

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A folder with a model, data, a text and an analysed run."""
    folder = tmp_path_factory.mktemp("original")
    write_model(folder / "model")
    write_data(folder / "data")
    rows = [{"text": f"the {word} was in", "label": word} for word in ("cat", "red", "hat") * 14]
    (folder / "own").mkdir()
    for name in ("train", "test"):
        (folder / f"own/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "text.txt").write_text("the cat was in the hat and the red cat\n" * 40)
    earlier = os.getcwd()
    os.chdir(folder)
    try:
        flags = "--dataset own --task classification --data_dir own --desc own --n_iter 1 --submit --analysis"
        assert train.main(flags.split()) == 0
        os.mkdir("kept")
        Path("kept/file").write_text("kept")
    finally:
        os.chdir(earlier)
    return folder


@pytest.fixture
def world(original, tmp_path, monkeypatch) -> Path:
    """A copy of it, which is the current folder."""
    shutil.copytree(original, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return Path(".")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files in a folder; caches of encoded texts are left out."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "encoded_" not in str(path)]
    return {str(path): path.read_bytes() for path in files}


def assert_refused(command: tuple, capsys) -> None:
    """Run a command, which is to end with code 2 and one line, and to change no file."""
    main, flags = command
    before = contents(Path("."))
    assert len(refused(main, flags.split("|"), capsys)) < 1000
    after = contents(Path("."))
    assert {name: after.get(name) for name in before} == before
    assert not [name for name in after if name.endswith(".part")]


# --- damages of any file ---------------------------------------------------------------------------------------------


def become_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def become_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def become_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/null")


def become_loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def writes(content: bytes | str) -> Damage:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


ANY = {"a folder": become_folder, "a pipe": become_pipe, "a device": become_device, "a loop": become_loop}
JSON = ANY | {
    "empty": writes(""),
    "brackets": writes("[" * 100_000),
    "objects": writes('{"a":' * 100_000),
    "no text": writes(b"\xff\xfe\x00\x80"),
    "a list": writes("[1, 2]"),
    "a number": writes("7"),
    "digits": writes("1" * 10_000),
    "null": writes("null"),
    "a word": writes('"model"'),
}

# --- a model folder --------------------------------------------------------------------------------------------------


def shapes(*changes: tuple) -> Damage:
    """Return a damage: other numbers in the shapes."""

    def damage(path: Path) -> None:
        values = json.loads(path.read_text())
        for at, value in changes:
            values[at[0]][at[1]] = value
        path.write_text(json.dumps(values))

    return damage


def with_positions(value) -> Damage:
    return shapes(((0, 0), value))


def with_blocks(path: Path) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values[:2] + values[2:14] * 3000))


SHAPES = JSON | {
    "10^12 positions": with_positions(10**12),
    "10^30 tokens": shapes(((1, 0), 10**30)),
    "negative": with_positions(-64),
    "no positions": with_positions(0),
    "a fraction": with_positions(64.5),
    "a whole fraction": with_positions(64.0),
    "true": with_positions(True),
    "text": with_positions("64"),
    "infinite": with_positions(float("inf")),
    "blocks": with_blocks,
}
HPARAMS = JSON | {
    "no heads": writes('{"n_head": 0}'),
    "heads": writes('{"n_head": -2}'),
    "half heads": writes('{"n_head": 2.0}'),
    "many heads": writes('{"n_head": 1000000000000}'),
    "activation": writes('{"n_head": 2, "afn": ["gelu"]}'),
}


def header(text: str) -> Damage:
    """Return a damage: an array with such a header."""
    content = text.encode() + b"\n"
    return writes(b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content + b"\x00" * 64)


def of_shape(shape: str, kind: str = "'<f4'") -> Damage:
    return header(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}")


def become_archive(path: Path) -> None:
    content = io.BytesIO()
    np.savez(content, a=np.zeros(3, np.float32))
    path.write_bytes(content.getvalue())


def become_objects(path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, np.array([{}, []], object), allow_pickle=True)


def become_empty_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w"):
        pass


ARRAY = ANY | {
    "empty": writes(""),
    "no array": writes(b"\x00" * 200),
    "an archive": become_archive,
    "an empty archive": become_empty_archive,
    "objects": become_objects,
    "an absurd shape": of_shape("(1000000000000000000000,)"),
    "a large shape": of_shape("(1000000000000,)"),
    "a negative shape": of_shape("(-5,)"),
    "a fraction": of_shape("(2.5,)"),
    "no shape": of_shape("()"),
    "an empty shape": of_shape("(0,)"),
    "a word": of_shape("'many'"),
    "other bytes": of_shape("(16,)", "'>f4'"),
    "dates": of_shape("(8,)", "'<M8[s]'"),
    "fields": of_shape("(8,)", "[('a', '<f4'), ('b', '<f4')]"),
    "a type of nothing": of_shape("(8,)", "'|V0'"),
    "brackets": header("(" * 5000),
    "half a header": header("{'descr': "),
}
MODEL = {"params_shapes.json": SHAPES, "hparams.json": HPARAMS, "params_3.npy": ARRAY}
MODEL |= {"encoder_bpe_40000.json": {name: JSON[name] for name in (*ANY, "empty", "no text")}, "vocab_40000.bpe": ANY}
OF_A_MODEL = {
    "train": (train.main, "--data_dir|data|--n_valid|10|--n_iter|1"),
    "convert": (convert.main, "to_hf|model|out"),
    "generate": (generate.main, "--model_dir|model|--prompt|the|--n_tokens|2"),
    "pretrain": (pretrain.main, "--corpus|text.txt|--model_dir|new|--init_from|model|--lr_warmup|0|--n_iter|1"),
    "verify": (verify.main, "--model_dir|model"),
}


def cases(commands: dict[str, tuple], damages_of: dict[str, dict[str, Damage]]) -> list:
    """Return each command with each damage of each file."""
    return [
        pytest.param(command, file, damage, id=f"{command}-{file}-{name}")
        for command in commands
        for file, damages in damages_of.items()
        for name, damage in damages.items()
    ]


@pytest.mark.parametrize("command, file, damage", cases(OF_A_MODEL, MODEL))
def test_a_hostile_file_in_a_model_folder_is_refused(world, capsys, command, file, damage):
    damage(world / "model" / file)
    assert_refused(OF_A_MODEL[command], capsys)


# --- a run -----------------------------------------------------------------------------------------------------------


def settings(**changes) -> Damage:
    def damage(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


NUMBERS = {"zero": 0, "negative": -1, "a fraction": 1.5, "10^12": 10**12, "10^30": 10**30, "text": "2", "a list": [2]}
SETTINGS = dict(JSON)
for size in ("n_embd", "n_head", "n_layer", "n_ctx", "n_vocab"):
    SETTINGS |= {f"{size} {name}": settings(**{size: value}) for name, value in NUMBERS.items()}
SETTINGS |= {
    "labels of numbers": settings(labels=[1, 2, 3]),
    "a label": settings(labels="cat"),
    "no metric": settings(metrics=[]),
    "another metric": settings(metrics=["beauty"]),
    "scores of words": settings(scores=["low", "high"]),
    "NaN": settings(embd_pdrop=float("nan")),
    "a dropout": settings(clf_pdrop=7),
    "columns": settings(columns="text"),
    "outputs": settings(n_out=10**12),
    "a schedule": settings(lr_schedule="hope"),
    "words": settings(vocabulary=[1, 2]),
}
RUN = {"settings.json": SETTINGS, "best_params": ANY, "best_params.sha256": ANY, "vocab_40000.bpe": ANY}
OF_A_RUN = {
    "predict": (predict.main, "--desc|own|--input|own/test.jsonl|--output|out.jsonl"),
    "generate": (generate.main, "--run|save/own|--prompt|the|--n_tokens|2"),
    "convert": (convert.main, "to_hf|save/own|out"),
}


@pytest.mark.parametrize("command, file, damage", cases(OF_A_RUN, RUN))
def test_a_hostile_file_in_a_run_is_refused(world, capsys, command, file, damage):
    damage(world / "save/own" / file)
    assert_refused(OF_A_RUN[command], capsys)


def change_line(number: int, **changes) -> Damage:
    def damage(path: Path) -> None:
        lines = path.read_text().splitlines()
        lines[number] = json.dumps(json.loads(lines[number]) | changes)
        path.write_text("\n".join(lines) + "\n")

    return damage


LOG = JSON | {
    "costs": change_line(1, costs="none"),
    "costs of words": change_line(1, costs=["a"]),
    "a word": change_line(1, va_acc="high"),
    "NaN": change_line(1, va_acc=float("nan")),
    "a list": change_line(1, tr_cost=[1]),
    "updates": change_line(1, n_updates=None),
    "a large number": change_line(1, tr_cost=10**400),
    "another metric": change_line(0, metrics=["beauty"]),
}
PREDICTIONS = JSON | {
    "one probability": change_line(0, probabilities=[1.0]),
    "a probability of 2": change_line(0, probabilities=[2.0, 0.0, 0.0]),
    "NaN": change_line(0, probabilities=[float("nan"), 0.5, 0.5]),
    "probabilities by name": change_line(0, probabilities={"cat": 1.0}),
    "a text": change_line(0, texts="the cat"),
    "a label": change_line(0, label=["cat"]),
    "a number": change_line(0, prediction=1.5),
    "a split": change_line(0, split=3),
}
LOG_CASES = [
    pytest.param(file, damage, id=f"{file}-{name}")
    for file, damages in (("own.jsonl", LOG), ("own.predictions.jsonl", PREDICTIONS))
    for name, damage in damages.items()
]


@pytest.mark.parametrize("file, damage", LOG_CASES)
def test_a_hostile_log_is_refused(world, capsys, file, damage):
    damage(world / "log" / file)
    assert_refused((analysis.main, "--desc|own"), capsys)


# --- places to write to ----------------------------------------------------------------------------------------------

LONG = "x" * 300
OWN = "--dataset|own|--task|classification|--data_dir|own|--desc|own|--n_iter|1|--submit|--analysis"
TEXT = "--corpus|text.txt|--model_dir|new|--lr_warmup|0|--n_iter|1|--n_embd|8|--n_head|2|--n_layer|1|--n_ctx|16"
PREDICT = "--desc|own|--input|own/test.jsonl|--output"
PLACES = {
    **{f"predict {name!r}": (predict.main, f"{PREDICT}|{name}") for name in ("", "/", ".", "kept", "own/test.jsonl")},
    **{f"predict {name!r}": (predict.main, f"{PREDICT}|{name}") for name in ("no/such/file", "kept/file/x", LONG)},
    **{
        f"predict into {name}": (predict.main, f"{PREDICT}|save/own/{name}")
        for name in ("settings.json", "best_params")
    },
    "predict a full disk": (predict.main, f"{PREDICT}|/dev/full"),
    "predict the input by another path": (predict.main, f"{PREDICT}|kept/../own/test.jsonl"),
    "predict a long input": (predict.main, f"--desc|own|--input|{LONG}.jsonl"),
    "predict a long desc": (predict.main, f"--desc|{LONG}"),
    **{
        f"convert to {name[:9]!r}": (convert.main, f"to_hf|model|{name}")
        for name in ("", "/", "kept", "kept/file", LONG)
    },
    "convert to the model": (convert.main, "to_hf|model|model"),
    "convert from a long name": (convert.main, f"to_hf|{LONG}|out"),
    **{f"analysis {name}": (analysis.main, f"--desc|{name}") for name in ("../own", "/etc/x", "..", "a/b", "")},
    "analysis of a long name": (analysis.main, f"--desc|{LONG}"),
    **{f"train {name} is long": (train.main, f"{OWN}|--{name}|{LONG}") for name in ("log_dir", "save_dir", "data_dir")},
    **{f"train {name} is a file": (train.main, f"{OWN}|--{name}|kept/file") for name in ("log_dir", "save_dir")},
    **{
        f"train model {name}": (train.main, f"{OWN}|--model_dir|{name}")
        for name in ("kept/file", "/dev/null", "nowhere")
    },
    "train a long desc": (train.main, f"{OWN}|--desc|{LONG}"),
    "train a long vocabulary": (train.main, f"{OWN}|--encoder_path|{LONG}"),
    "generate a long folder": (generate.main, f"--model_dir|{LONG}|--prompt|the"),
    "verify a long folder": (verify.main, f"--model_dir|{LONG}"),
    "pretrain a long text": (pretrain.main, TEXT.replace("text.txt", LONG)),
    "pretrain a device": (pretrain.main, TEXT.replace("text.txt", "/dev/zero")),
    "pretrain into a file": (pretrain.main, TEXT.replace("|new|", "|kept/file|")),
    "pretrain into a model": (pretrain.main, TEXT.replace("|new|", "|model|")),
}


@pytest.mark.parametrize("command", PLACES.values(), ids=PLACES)
def test_a_hostile_place_is_refused(world, capsys, command):
    assert_refused(command, capsys)


IN_THE_WAY = [("train", f"log/own.{suffix}") for suffix in ("jsonl", "png", "json", "errors.tsv", "predictions.jsonl")]
IN_THE_WAY += [("train", f"save/own/{name}") for name in ("settings.json", "best_params", "vocab_40000.bpe")]
IN_THE_WAY += [("train", "submission/own.tsv")]
IN_THE_WAY += [("pretrain", f"new/{name}") for name in ("params_3.npy", "params_shapes.json", "vocab_40000.bpe")]
IN_THE_WAY += [("pretrain", name) for name in ("log/pretrain.jsonl", "log/pretrain.png", "save/pretrain/tokens.bin")]
COMMANDS = {"train": (train.main, OWN), "pretrain": (pretrain.main, TEXT)}


@pytest.mark.parametrize("command, path", IN_THE_WAY)
def test_a_folder_in_the_way_is_told_before_training(world, capsys, command, path):
    Path(path).unlink(missing_ok=True)
    Path(path).mkdir(parents=True)
    assert_refused(COMMANDS[command], capsys)
    assert not list(world.glob("save/*/checkpoint_*1"))


def test_a_pipe_among_the_texts_is_refused(world, capsys):
    os.mkfifo("pipe")
    assert_refused((pretrain.main, TEXT.replace("text.txt", "pipe")), capsys)


@pytest.mark.parametrize("name", ["encoder_bpe_40000.json", "vocab_40000.bpe"])
def test_one_of_the_two_vocabulary_files_is_not_overwritten(world, capsys, name):
    os.mkdir("new")
    shutil.copy(f"model/{name}", "new")
    assert_refused((pretrain.main, TEXT), capsys)
