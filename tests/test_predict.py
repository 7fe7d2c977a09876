"""The command predict.py: a saved run on new examples, from files and from standard input."""

import csv
import io
import json
import shutil
import sys
from pathlib import Path

import official
import pytest
from launch import ROOT

import predict
import train
from formats.examples import Example
from formats.files import InputError
from reading.tasks import ROCSTORIES_TEST
from weights import open_run

ROWS = {
    "classification": [{"text": f"the {w} was in", "label": w} for w in ("cat", "red", "hat") * 14],
    "entailment": [
        {"premise": f"the {a}", "hypothesis": f"in {b}", "label": "same" if a == b else "other"}
        for a in ("cat", "red", "hat", "rat")
        for b in ("cat", "red", "hat", "rat", "cat", "red", "hat", "rat", "in", "an")
    ],
    "similarity": [
        {"text_a": f"the {a}", "text_b": f"in {b}", "label": i % 5 / 2}
        for i, (a, b) in enumerate(zip("cat red hat rat in".split() * 8, "cat red hat in".split() * 10, strict=True))
    ],
    "multiple_choice": [
        {"context": f"the {w}", "choices": ["red", "hat", "cat", "an"][: 2 + i % 3], "label": 1 + i % 2}
        for i, w in enumerate(("cat", "red", "hat", "rat") * 10)
    ],
}


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def trained(tmp_path, monkeypatch, model_dir):
    """Fine-tune on own data of a form in an empty folder; the run is named after the form."""
    monkeypatch.chdir(tmp_path)

    def run(form: str) -> None:
        folder = tmp_path / form
        folder.mkdir()
        for name in ("train", "test"):
            write_jsonl(folder / f"{name}.jsonl", ROWS[form])
        flags = ["--dataset", "own", "--task", form, "--data_dir", str(folder), "--desc", form, "--submit"]
        assert train.main([*flags, "--model_dir", str(model_dir), "--n_iter", "1", "--lr", "1e-2"]) == 0

    return run


def command(*flags, text: str | bytes | None = None, monkeypatch=None) -> int:
    if text is not None:
        content = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    return predict.main([str(flag) for flag in flags])


def answers(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("form", ROWS)
def test_predictions_are_those_of_train(trained, form):
    trained(form)
    test = f"{form}/test.jsonl"
    assert command("--desc", form, "--input", test, "--output", "out.tsv") == 0
    assert Path("out.tsv").read_bytes() == Path("submission/own.tsv").read_bytes()
    for n_batch in (1, 7, 32):
        assert command("--desc", form, "--input", test, "--output", f"{n_batch}.jsonl", "--n_batch", n_batch) == 0
    one, seven, many = (answers(Path(f"{n}.jsonl")) for n in (1, 7, 32))
    expected = [line.split("\t")[1] for line in Path("out.tsv").read_text().splitlines()[1:]]
    assert [a["label"] for a in one] == [a["label"] for a in seven] == [a["label"] for a in many] == expected
    for a, b in zip(one, many, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=2e-6)
        assert sum(a["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    if form == "multiple_choice":
        assert {len(a["probabilities"]) for a in one} == {2, 3, 4}


def test_predictions_do_not_depend_on_the_order(trained):
    trained("entailment")
    lines = Path("entailment/test.jsonl").read_text().splitlines()
    Path("back.jsonl").write_text("\n".join(reversed(lines)))
    for name in ("entailment/test", "back"):
        assert command("--desc", "entailment", "--input", f"{name}.jsonl", "--output", f"{Path(name).name}.out") == 0
    forth, back = answers(Path("test.out")), answers(Path("back.out"))
    for a, b in zip(forth, reversed(back), strict=True):
        assert a["label"] == b["label"] and a["probabilities"] == pytest.approx(b["probabilities"], abs=2e-6)


def test_a_file_of_the_data_set_is_read_as_such_where_the_flag_says_so(tmp_path, monkeypatch, model_dir, data_dir):
    monkeypatch.chdir(tmp_path)
    flags = ["--data_dir", str(data_dir), "--model_dir", str(model_dir), "--n_valid", "10", "--n_batch", "4"]
    assert train.main([*flags, "--n_iter", "1", "--submit"]) == 0
    assert command("--official", "--input", data_dir / ROCSTORIES_TEST, "--output", "out.tsv") == 0
    # the hand-in counts endings from 0, as the authors do; predictions from 1, as the files do
    handed_in = [line.split("\t") for line in Path("submission/ROCStories.tsv").read_text().splitlines()[1:]]
    expected = [f"{i}\t{int(ending) + 1}" for i, ending in handed_in]
    assert Path("out.tsv").read_text().splitlines() == ["index\tprediction", *expected]


def test_all_of_a_file_that_a_list_divides_is_read_and_a_link_has_its_own_name(tmp_path):
    lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t1\t2\tthe cat\tthe hat", "0\t3\t4\tthe hat\tred"]
    (tmp_path / "msr_paraphrase_train.txt").write_text("\n".join(lines))
    (tmp_path / "mrpc_dev_ids.tsv").write_text("1\t2\n")
    examples = predict.read_official(tmp_path / "msr_paraphrase_train.txt", "mrpc")
    assert [example.texts for example in examples] == [("the cat", "the hat"), ("the hat", "red")]
    (tmp_path / "blob").write_text("index\tsentence\n0\tthe cat\n")
    (tmp_path / "test.tsv").symlink_to(tmp_path / "blob")
    assert [example.texts for example in predict.read_official(tmp_path / "test.tsv", "sst2")] == [("the cat",)]


@pytest.mark.parametrize("dataset", ["race", "mnli", "rocstories"])
def test_a_path_of_a_data_set_is_taken_as_a_whole(tmp_path, monkeypatch, dataset):
    for files in getattr(official, dataset)(tmp_path).values():
        for file in files:
            monkeypatch.chdir(file.path.parent)
            for path in (file.path, Path(file.path.name)):  # dev/middle is not test/middle, also when named from dev
                examples = list(predict.read_official(path, dataset))
                good = [example.texts for example in examples if isinstance(example, Example)]
                assert good == [texts for texts, _ in file.examples if any(texts)]
                assert len(examples) - len(good) == len(file.bad)
    with pytest.raises(InputError, match="other.tsv is not a file of cola: train.tsv, dev.tsv, test.tsv"):
        predict.read_official(tmp_path / "other.tsv", "cola")
    with pytest.raises(ValueError, match="official is for a file of the data set"):
        predict.PredictFlags(official=True)
    with pytest.raises(InputError, match="own data"):
        predict.read_official(tmp_path / "test.tsv", "own")


def test_a_file_of_ones_own_may_have_the_name_of_the_data_sets(trained, monkeypatch):
    trained("classification")
    settings = json.loads(Path("save/classification/settings.json").read_text())
    Path("save/classification/settings.json").write_text(json.dumps(settings | {"dataset": "sst2"}))
    Path("test.tsv").write_text("text\nthe cat\nthe hat\n")
    monkeypatch.setenv("TQDM_DISABLE", "1")  # a bar that is off counts nothing
    assert command("--desc", "classification", "--input", "test.tsv", "--output", "out.tsv") == 0
    assert len(Path("out.tsv").read_text().splitlines()) == 3


def test_a_run_alone_suffices_also_when_moved(trained, tmp_path, model_dir, monkeypatch, capfd):
    trained("classification")
    shutil.move("save/classification", "elsewhere/moved")
    shutil.rmtree(model_dir)
    shutil.rmtree(tmp_path / "save")
    flags = ["--save_dir", "elsewhere", "--desc", "moved"]
    capfd.readouterr()
    assert command(*flags, text='the cat was in\n{"text": "the red was in"}\n', monkeypatch=monkeypatch) == 0
    printed = capfd.readouterr()
    first, second = (json.loads(line) for line in printed.out.splitlines())
    assert printed.err == ""  # no bar, which a terminal shows among the answers
    assert set(first["probabilities"]) == set(second["probabilities"]) == {"cat", "hat", "red"}
    expected = open_run("elsewhere/moved").predict(["the cat was in"])[0]
    assert first["label"] == expected.label
    assert first["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)


def test_standard_input_is_read_as_files_are(trained, monkeypatch, capsys):
    trained("classification")
    flags = ["--desc", "classification"]
    lines = ["the cat was in", "", '{"text": "the hat, in"}', " "]
    expected = [p.label for p in open_run("save/classification").predict([lines[0], "the hat, in"])]
    text = "\n".join(lines)
    for encoding in ("utf-8-sig", "utf-16", "utf-8"):
        assert command(*flags, "--output", "out.csv", text=text.encode(encoding), monkeypatch=monkeypatch) == 0
        rows = list(csv.reader(io.StringIO(Path("out.csv").read_text())))
        assert rows == [["index", "prediction"], ["0", expected[0]], ["1", ""], ["2", expected[1]], ["3", ""]]
    assert command(*flags, "--output", "out.jsonl", text=text, monkeypatch=monkeypatch) == 0
    assert [answer["label"] for answer in answers(Path("out.jsonl"))] == [expected[0], None, expected[1], None]

    for content, why in (("caf\xe9".encode("latin-1"), "If it is Latin-1"), (b"\xff\xfea", "not UTF-16")):
        capsys.readouterr()
        assert command(*flags, text=content, monkeypatch=monkeypatch) == 2
        assert f"standard input, line 1: {why}" in capsys.readouterr().err.replace("not UTF-8 (byte 3). ", "")


def test_an_output_in_csv_quotes_where_it_must():
    assert predict.as_row(".csv", 1, 'a, "b"') == '1,"a, ""b"""\n'
    assert predict.as_row(".tsv", 1, 'a, "b"') == '1\ta, "b"\n'


def test_an_example_too_long_is_named_with_its_line(trained, capsys):
    trained("multiple_choice")
    records = [*ROWS["multiple_choice"][:2], {"context": "the cat", "choices": ["red", "red " * 80]}]
    write_jsonl(Path("long.jsonl"), records)
    capsys.readouterr()
    assert command("--desc", "multiple_choice", "--input", "long.jsonl") == 2
    assert "long.jsonl, line 3: " in capsys.readouterr().err


def test_tables_and_renamed_columns_are_read(trained):
    trained("entailment")
    with open("new.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "a", "b"], [1, "the cat, in", 'in "cat"'], [2, "the\nred", "hat"]])
    assert command("--desc", "entailment", "--input", "new.csv", "--output", "no.jsonl") == 2
    columns = "premise=a,hypothesis=b"
    assert command("--desc", "entailment", "--input", "new.csv", "--output", "out.jsonl", "--columns", columns) == 0
    texts = [("the cat, in", 'in "cat"'), ("the\nred", "hat")]
    assert [a["label"] for a in answers(Path("out.jsonl"))] == [
        p.label for p in open_run("save/entailment").predict(texts)
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nonsense", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"premise": "x"}', "no field 'hypothesis'"),
        ('{"premise": "x", "hypothesis": ""}', "an empty text"),
        ('{"premise": "x", "hypothesis": [3]}', "should be a text"),
    ],
)
def test_a_bad_line_is_named_or_skipped(trained, capsys, line, why):
    trained("entailment")
    good = Path("entailment/test.jsonl").read_text().splitlines()[:3]
    Path("bad.jsonl").write_text("\n".join([good[0], line, *good[1:]]) + "\n")
    Path("out.jsonl").write_text("precious")
    capsys.readouterr()
    assert command("--desc", "entailment", "--input", "bad.jsonl", "--output", "out.jsonl") == 2
    (error,) = [text for text in capsys.readouterr().err.splitlines() if "error" in text]
    assert error.rpartition("\r")[2].startswith("predict.py: error: bad.jsonl, line 2: ") and why in error
    assert Path("out.jsonl").read_text() == "precious"
    assert command("--desc", "entailment", "--input", "bad.jsonl", "--output", "out.jsonl", "--skip_bad") == 0
    assert len(answers(Path("out.jsonl"))) == 3
    assert "1 lines left out, the first: bad.jsonl, line 2; 3 predicted" in capsys.readouterr().err


def test_an_answer_has_the_id_or_the_index_of_its_example(trained):
    trained("classification")
    flags = ["--desc", "classification", "--output", "out.csv", "--input"]
    lines = [json.dumps({"text": f"the {word} was in"}) for word in ("cat", "red", "hat")]

    # blank lines are no examples, in any kind of file; what is left out counts
    Path("new.jsonl").write_text(f"\n{lines[0]}\n\nnonsense\n{lines[1]}\n \n{lines[2]}\n")
    Path("new.csv").write_text("text\n\nthe cat was in\n\n,\nthe red was in\n\nthe hat was in\n")
    for name in ("new.jsonl", "new.csv"):
        assert command(*flags, name, "--skip_bad") == 0
        assert [row[0] for row in csv.reader(io.StringIO(Path("out.csv").read_text()))] == ["index", "0", "2", "3"]

    # ids, under their own name or another
    records = [json.loads(line) | {"id": f"a {i}", "key": i} for i, line in enumerate(lines)]
    write_jsonl(Path("new.jsonl"), records)
    assert command(*flags, "new.jsonl") == 0
    assert [row[0] for row in csv.reader(io.StringIO(Path("out.csv").read_text()))] == ["id", "a 0", "a 1", "a 2"]
    assert command(*flags[:3], "out.jsonl", "--input", "new.jsonl", "--columns", "id=key") == 0
    assert [answer["id"] for answer in answers(Path("out.jsonl"))] == ["0", "1", "2"]


def test_many_unknown_tokens_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write_jsonl(Path("data/train.jsonl"), ROWS["classification"])
    flags = ["--dataset", "own", "--task", "classification", "--data_dir", "data", "--desc", "classification"]
    model = ["--model_dir", str(ROOT / "demo/model"), "--n_transfer", "-1", "--n_embd", "9"]
    assert train.main([*flags, *model, "--n_iter", "1"]) == 0
    capsys.readouterr()
    for text, is_said in (("Ben was sad", False), ("\u0411\u0435\u043d was sad", True)):
        write_jsonl(Path("new.jsonl"), [{"text": text}])
        assert command("--desc", "classification", "--input", "new.jsonl", "--output", "out.jsonl") == 0
        assert ("of the tokens are not in the vocabulary" in capsys.readouterr().err) == is_said


def test_what_a_user_can_fix_is_one_line(trained, capsys, tmp_path):
    trained("classification")
    (tmp_path / "empty.jsonl").write_text("")
    capsys.readouterr()
    for flags in (
        ["--desc", "unknown"],
        ["--desc", "classification", "--input", "missing.jsonl"],
        ["--desc", "classification", "--input", "missing.doc"],
        ["--desc", "classification", "--input", "empty.jsonl"],
    ):
        assert command(*flags) == 2
        (error,) = [text for text in capsys.readouterr().err.split("\n") if "error" in text]
        assert "predict.py: error: " in error
