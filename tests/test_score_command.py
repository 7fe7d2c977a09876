"""The command generate.py with --score and --zero_shot: what it writes, and bad input."""

from pathlib import Path

import pytest
from helpers import refused

import generate
from scoring import score_file
from weights import open_model


@pytest.fixture
def text(tmp_path) -> Path:
    (path := tmp_path / "text.txt").write_text("the cat was in\nthe red hat\n")
    return path


def test_the_table_goes_to_standard_output_and_the_perplexity_to_standard_error(text, model_dir, capsys):
    opened = open_model(model_dir, return_probs=False)
    chosen = [
        ([], {}),
        (["--all_rows", "--stride", "4"], {"all_rows": True, "stride": 4}),
        (["--by_line", "--all_rows"], {"all_rows": True, "by_line": True}),
    ]
    for flags, options in chosen:
        assert generate.main(["--model_dir", str(model_dir), "--score", str(text), *flags]) == 0
        out, err = capsys.readouterr()
        header, *rows = out.splitlines()
        assert header.startswith("line\tstart\tend\tword\t") and len(rows) == (7 if "by_line" in options else 9)
        found = score_file(*opened, text, **options)
        assert f"perplexity {found.per_token():.4f} per token, {found.per_word():.4f} per word" in err
        n_entries = len(opened[0].transformer.embed.weight) if flags else opened[1].n_vocab
        assert f"over {n_entries} entries of the embedding matrix" in err


def test_a_data_set_is_answered_without_training(data_dir, model_dir, capsys):
    flags = ["--model_dir", str(model_dir), "--zero_shot", "choice", "--data_dir", str(data_dir)]
    refused(generate.main, [*flags, "--dataset", "own"], capsys)  # own data need their form
    # 40 examples are fewer than the authors' 374 for validation
    assert "holding out 374 of its 40 examples" in refused(generate.main, flags, capsys)
    assert generate.main([*flags, "--n_valid", "10"]) == 0
    assert "ROCStories, train, 30 examples, zero-shot choice: Accuracy" in capsys.readouterr().out
    (own := data_dir / "own").mkdir()
    for name in ("train", "valid"):
        (own / f"{name}.csv").write_text("text,label\n" + "the cat,0\na hat,1\n" * 3)
    flags = ["--model_dir", str(model_dir), "--dataset", "own", "--task", "classification", "--data_dir", str(own)]
    assert generate.main([*flags, "--zero_shot", "acceptability"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[1] for line in lines] == [" train", " valid"]
    error = refused(generate.main, [*flags, "--zero_shot", "choice"], capsys)
    assert "choice takes a multiple choice; Own data is classification" in error


@pytest.mark.parametrize(
    "content, flags, message",
    [
        (b"", [], "nothing to score"),
        (b"caf\xe9 the", [], "line 1: not UTF-8"),
        (b"the cat", ["--stride", "65"], "the stride is 65"),
        (None, [], "is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(content, flags, message, tmp_path, model_dir, capsys):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    assert message in refused(generate.main, ["--model_dir", model_dir, "--score", path, *flags], capsys)


def test_flags_that_exclude_each_other(text, capsys):
    both = ["--score", text, "--zero_shot", "choice"]
    assert "score and zero_shot exclude each other" in refused(generate.main, both, capsys)
    assert "by_line is of --score" in refused(generate.main, ["--prompt", "x", "--by_line"], capsys)
