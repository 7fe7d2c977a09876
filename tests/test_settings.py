"""Flags are the fields of dataclasses; values that would go wrong later are refused at once."""

import argparse
import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, refused

import pretrain
import train
from formats.files import InputError
from model_pytorch import DEFAULT_CONFIG
from running import settings
from running.settings import FineTuningFlags, PreTrainingFlags, number, run_name

PRETRAIN = ["--corpus", "corpus.txt", "--model_dir", "new"]
COMMANDS = pytest.mark.parametrize("command, flags", [(train, []), (pretrain, PRETRAIN)], ids=["train", "pretrain"])


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Run in an empty folder, which must stay so."""
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@COMMANDS
@pytest.mark.parametrize("name", ["..", ".", "a/b", "", "/", "../run", "a\\b", "two\nlines", "a:b", "a?", "a*"])
def test_a_name_that_is_no_file_name_is_refused(capsys, command, flags, name):
    assert f"argument --desc: {name!r} becomes a file name" in refused(command.main, [*flags, "--desc", name], capsys)


@pytest.mark.parametrize("name", ["rocstories", "lr_1e-3", "run.2", "...", "-", "Zoë", "two words"])
def test_other_names_are_accepted(name):
    assert run_name(name) == name
    assert FineTuningFlags(desc=name).desc == name


@COMMANDS
@pytest.mark.parametrize(
    "flag, value",
    [("--max_grad_norm", "nan"), ("--max_grad_norm", "inf"), ("--max_grad_norm", "-inf"), ("--lr", "inf")]
    + [("--lr", "nan"), ("--l2", "inf"), ("--l2", "nan"), ("--e", "nan"), ("--b1", "nan"), ("--embd_pdrop", "nan")]
    + [("--lr", "1e999")],
)
def test_a_number_that_is_not_finite_is_refused(capsys, command, flags, flag, value):
    message = refused(command.main, [*flags, f"{flag}={value}"], capsys)
    assert message.endswith(f"argument {flag}: {value} is not a finite number")


@COMMANDS
@pytest.mark.parametrize(
    "flag, value, message",
    [
        ("--lr", "-1", "-1 is not 0 or more"),
        ("--l2", "-0.1", "-0.1 is not 0 or more"),
        ("--b1", "1", "1 is not from 0 to below 1"),
        ("--clf_pdrop", "1.5", "1.5 is not from 0 to below 1"),
        ("--seed", "-1", "-1 is not from 0 to 4294967295"),
        ("--n_batch", "0", "0 is not 1 or more"),
        ("--n_batch", "100000000000000000000", "100000000000000000000 is more than 9223372036854775807"),
        ("--accumulate", "-2", "-2 is not 1 or more"),
        ("--n_iter", "1.5", "'1.5' is not a whole number"),
        ("--n_batch", "inf", "'inf' is not a whole number"),
        ("--lr", "fast", "'fast' is not a number"),
    ],
)
def test_a_number_out_of_its_limits_is_refused(capsys, command, flags, flag, value, message):
    assert refused(command.main, [*flags, f"{flag}={value}"], capsys).endswith(f"argument {flag}: {message}")


@pytest.mark.parametrize("text", ["0", "-1", "2.5"])
def test_any_finite_norm_is_accepted(text):
    given = settings.parse(FineTuningFlags, [f"--max_grad_norm={text}"])
    assert given.max_grad_norm == float(text)


def test_a_parser_of_numbers_takes_its_limits():
    parse = number(float, 0, 1)
    assert (parse("0"), parse("1"), parse("0.25")) == (0, 1, 0.25)
    for text in ("-1e-9", "1.0001", "nan"):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            parse(text)
    assert number(int, 1)("1" + "0" * 18) == 10**18


@COMMANDS
def test_the_flags_are_the_fields_with_their_defaults_and_each_has_a_help_text(capsys, command, flags):
    fields = {train: FineTuningFlags, pretrain: PreTrainingFlags}[command]
    assert settings.parse(fields, flags) == fields(**dict(corpus="corpus.txt", model_dir="new") if flags else {})
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(fields):
        assert f"--{field.name}" in text and field.metadata["help"]


@COMMANDS
def test_help_begins_with_what_everybody_names_and_has_a_group_for_what_commands_share(capsys, command, flags):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    _, *groups = re.split(r"^(?=\S.*:$)", capsys.readouterr().out, flags=re.MULTILINE)
    names = {group.split(":\n")[0]: re.findall(r"^  --(\w+)", group, re.MULTILINE) for group in groups}
    first = ["dataset", "data_dir", "model_dir", "desc", "submit", "analysis"]
    if command is pretrain:
        first = ["corpus", "field", "model_dir", "init_from", "desc"]
    assert names["options"][: len(first)] == first
    assert "n_embd" in names["network"] and "b1" in names["optimizer"]
    assert "log_dir" in names["where a run writes; memory, speed and long runs"]


NO_RUN = [
    (
        "Predict",
        ["--desc", "feelings"],
        "save/feelings/settings.json is missing. Run train.py with that --desc first, ",
    ),
    ("Generate", ["--run", "gone", "--prompt", "a"], "gone/settings.json is missing. Name the folder of a run, "),
    ("Analysis", ["--desc", "gone"], "log/gone.jsonl is missing. Run train.py with that --desc and --submit first, "),
    ("Convert", ["to_hf", str(ROOT / "demo/data"), "new"], f"{ROOT}/demo/data holds no model and no run. Name the "),
]


@pytest.mark.parametrize("command, argv, message", NO_RUN, ids=[command for command, _, _ in NO_RUN])
def test_what_is_missing_of_a_run_is_told_with_how_to_get_it(command, argv, message):
    flags = settings.parse(getattr(settings, f"{command}Flags"), argv)
    with pytest.raises(InputError, match=re.escape(message)):
        flags.refuse_missing()


def test_settings_do_not_change_once_made():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FineTuningFlags().lr = 1.0


def test_paths_that_are_left_out_follow_from_the_model_folder():
    given = FineTuningFlags(model_dir="m", bpe_path="other.bpe")
    assert (given.encoder_path, given.bpe_path, given.desc) == ("m/encoder_bpe_40000.json", "other.bpe", "rocstories")


def test_settings_that_contradict_each_other_are_refused(capsys):
    assert "analysis reads the predictions that submit writes" in refused(train.main, ["--analysis"], capsys)
    message = refused(pretrain.main, [*PRETRAIN, "--n_embd", "10", "--n_head", "4"], capsys)
    assert "n_embd 10 is not a multiple of n_head 4" in message


def test_sizes_that_are_left_out_are_those_given():
    sizes = dataclasses.replace(DEFAULT_CONFIG, n_embd=24, n_head=3, n_layer=5)
    cfg = FineTuningFlags(n_layer=2, afn="relu", resid_pdrop=0.3).config(sizes)
    assert cfg == dataclasses.replace(sizes, n_layer=2, afn="relu", resid_pdrop=0.3)
    assert FineTuningFlags().config() == DEFAULT_CONFIG


@pytest.mark.parametrize(
    "name, value",
    [("n_iter", 0), ("n_batch", 2.5), ("lr", "x"), ("precision", "fp64"), ("dataset", "unknown"), ("submit", "yes")]
    + [("lr", math.nan), ("desc", "a/b"), ("columns", "text")],
)
def test_a_value_is_checked_in_python_as_on_the_command_line(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        FineTuningFlags(**{name: value})


def test_values_of_numpy_and_paths_are_taken(tmp_path):
    given = FineTuningFlags(n_iter=np.int64(2), lr=np.float32(0.5), log_dir=tmp_path)
    assert (given.n_iter, given.lr, given.log_dir) == (2, 0.5, str(tmp_path))


def test_folders_are_looked_up_beside_the_scripts():
    assert FineTuningFlags(model_dir="demo/model").model_dir == str(Path(train.__file__).parent / "demo/model")
    assert FineTuningFlags(model_dir="no/such").model_dir == "no/such"


def test_a_resumed_run_may_change_what_has_no_effect_on_its_numbers():
    free = set()
    for chosen in (PreTrainingFlags(corpus="FILE", model_dir="DIR"), FineTuningFlags()):
        kept = chosen.fixed_on_resume()
        free |= {field.name for field in dataclasses.fields(chosen)} - kept.keys()
        assert {"seed", "lr", "n_batch", "precision", "deterministic", "desc"} <= kept.keys()
        assert not any(isinstance(value, float) and not math.isfinite(value) for value in kept.values())
    assert free == set(
        """log_dir save_dir submission_dir checkpoint_every resume tensorboard submit analysis workers tokenize_only
        probe probe_examples""".split()
    )
