"""Every data set, in its official layout: read, encoded, trained, predicted, handed in."""

import re
from pathlib import Path

import numpy as np
import official
import pytest
from helpers import read_lines
from official import GLUE, OTHERS, Files, N

import train
from reading.encoding import SplitFiles
from reading.splits import Limits, Splits, describe_example, read_splits
from reading.tasks import TASKS, Task, find_task
from running.predictions import read_predictions
from text_utils import TextEncoder

WRITERS = GLUE | OTHERS
LAYOUTS = WRITERS | {
    "mrpc, of Microsoft, with ids": official.mrpc_of_microsoft,
    "mrpc, of Microsoft, without ids": lambda root: official.mrpc_of_microsoft(root, with_ids=False),
}
N_PAIRS = N + len(official.QUIRKS)
FOLDERS = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
    "snli": "snli_1.0",
    "scitail": "tsv_format",
    "race": "RACE",
    "rocstories": "rocstories",
    "rocstories_2018": "rocstories",
}
BINARY, MNLI, NLI = ("0", "1"), ("entailment", "neutral", "contradiction"), ("entailment", "not_entailment")
HAND_IN = {  # file -> words and number of predictions
    "cola": {"CoLA.tsv": (BINARY, N + 2)},
    "sst2": {"SST-2.tsv": (BINARY, N)},
    "mrpc": {"MRPC.tsv": (BINARY, N_PAIRS + 1)},
    "stsb": {"STS-B.tsv": (None, N_PAIRS)},
    "qqp": {"QQP.tsv": (BINARY, N_PAIRS + 2)},
    "mnli": {"MNLI-m.tsv": (MNLI, N_PAIRS), "MNLI-mm.tsv": (MNLI, N_PAIRS + 1), "AX.tsv": (MNLI, N_PAIRS + 1)},
    "qnli": {"QNLI.tsv": (NLI, N_PAIRS + 1)},
    "rte": {"RTE.tsv": (NLI, N_PAIRS + 1)},
    "wnli": {"WNLI.tsv": (BINARY, N_PAIRS + 1)},
    "snli": {"SNLI.tsv": (MNLI, N_PAIRS)},
    "scitail": {"SciTail.tsv": (("entails", "neutral"), N_PAIRS)},
    "race": {"RACE-middle.tsv": (tuple("ABCD"), 22), "RACE-high.tsv": (tuple("ABCD"), 22)},
    "rocstories": {"ROCStories.tsv": (BINARY, N)},
    "rocstories_2018": {"ROCStories-2018.tsv": (BINARY, N)},
}

PUBLISHED = {  # numbers of examples of the official files, of which ours are other numbers
    "cola": "8,551 1,043 1,063",
    "sst2": "67,349 872 1,821",
    "mrpc": "3,668 408 1,725",
    "stsb": "5,749 1,500 1,379",
    "qqp": "363,846 40,430 390,965",
    "mnli": "392,702 9,815 9,832 9,796 9,847 1,104",
    "qnli": "104,743 5,463 5,463",
    "rte": "2,490 277 3,000",
    "wnli": "635 71 146",
    "snli": "549,367 9,842 9,824",
    "scitail": "23,596 1,304 2,126",
    "race": "25,421 62,445 1,436 3,451 1,436 3,498",
    "rocstories": "",
    "rocstories_2018": "1,571",
}


def read(task: Task, folder: Path) -> dict[str, list[tuple[list, list[str]]]]:
    """Return split -> for each source its examples, and what is wrong with the other lines."""
    found = {}
    for split in ("train", "valid", "test"):
        found[split] = []
        for source in getattr(task, split):
            bad = []
            files = SplitFiles([source], folder, task.labels)
            found[split].append(([(e.texts, e.label) for e in files.examples(source, bad)], bad))
    return found


def encode(task: Task, folder: Path, model_dir: Path, **more) -> tuple[Splits, TextEncoder]:
    encoder = TextEncoder(model_dir / "encoder_bpe_40000.json", model_dir / "vocab_40000.bpe")
    return read_splits(task, folder, encoder, Limits(**{"n_valid": 8, "seed": 0, "n_ctx": 64} | more)), encoder


@pytest.fixture
def command(tmp_path, monkeypatch, model_dir):
    """Run train.py in an empty folder on the small model, with further flags."""
    monkeypatch.chdir(tmp_path)
    flags = ["--model_dir", str(model_dir), "--n_valid", "8", "--n_batch", "8", "--n_iter", "1"]
    return lambda *more: train.main([*flags, *map(str, more)])


# --- read ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_text_and_label_is_as_the_file_has_it(tmp_path, name):
    written = LAYOUTS[name](tmp_path)
    data_dir = tmp_path / "rocstories" if name.startswith("rocstories") else tmp_path
    task = find_task(name.split(",")[0], data_dir)
    found = read(task, task.find(data_dir))
    assert {split for split in found if found[split]} == set(written)
    for split, files in written.items():
        assert len(files) == len(found[split])
        for file, (examples, bad) in zip(files, found[split], strict=True):
            assert examples == file.examples and len(examples) >= 20
            for where, line in zip(file.bad, bad, strict=True):
                assert re.fullmatch(rf"(\S*/)?{re.escape(where)}: \w.+", line)


def first_texts(root: Path, name: str, split: str, part: int = 0, n: int = 12) -> list[tuple[str, ...]]:
    return [texts for texts, _ in read(TASKS[name], TASKS[name].find(root))[split][part][0][:n]]


QUIRKS = ['"the cat was in', 'a red ""mat"" and an" hat', "NA", "None", "null", "nan", " the hat was red ", '"']
QUIRKS += ["zoë’s café — n° 5 \\t", ""]


@pytest.mark.parametrize("name", ["mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "scitail"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_quotes_missing_values_and_empty_fields_are_texts(tmp_path, name, split):
    WRITERS[name](tmp_path)
    texts = first_texts(tmp_path, name, split, n=N_PAIRS)
    assert [a for a, _ in texts[: len(QUIRKS)]] == QUIRKS
    assert [b for _, b in texts[N : N + len(QUIRKS)]] == QUIRKS  # the last one ends the line in the test files of GLUE


def test_the_label_of_mnli_is_found_by_the_name_of_its_column(tmp_path):
    official.mnli(tmp_path)
    for file, column in (("train", 11), ("dev_matched", 15), ("dev_mismatched", 15)):
        assert (tmp_path / f"MNLI/{file}.tsv").read_text().split("\n")[0].split("\t").index("gold_label") == column
    found = read(TASKS["mnli"], tmp_path / "MNLI")
    for examples, _ in (*found["train"], *found["valid"]):
        assert [label for _, label in examples] == [MNLI[i % 3] for i in range(N_PAIRS)]


def test_articles_of_race_are_in_the_order_of_their_names_and_keep_the_blank(tmp_path):
    official.race(tmp_path)
    examples, _ = read(TASKS["race"], tmp_path / "RACE")["test"][1]
    numbers = [int(texts[0].split(" hat ")[1].split()[0]) for texts, _ in examples]
    assert numbers == [1, 1, 1, 10, 10, 10, 11, 11, 12, 12, 12, 2, 2, 2, 20, 20, 3, 3, 3, 9, 9, 9]
    article, question, *options = examples[3][0]
    assert article.startswith('  the cat was in hat 10 .\n\nit said "no" .\n') and question == "the cat was _ hat 10 ."
    assert len(options) == 4 and examples[3][1] == "3"  # C


@pytest.mark.parametrize("name", ["mrpc_dev_ids.tsv", "dev_ids.tsv"])
def test_the_two_halves_of_mrpc_are_told_apart_by_pairs_of_ids(tmp_path, name):
    official.mrpc_of_microsoft(tmp_path)
    (tmp_path / "MRPC/mrpc_dev_ids.tsv").rename(tmp_path / "MRPC" / name)
    found = read(find_task("mrpc", tmp_path), tmp_path / "MRPC")
    ((valid, _),), ((trained, _),) = found["valid"], found["train"]
    assert valid[-2:] == [(("the cat 66", "the hat"), "0"), (("the cat 69", "the hat"), "1")]
    assert (len(trained), len(valid)) == (46, 24)


def test_an_article_is_tokenized_once_and_shown_once(tmp_path, model_dir, monkeypatch):
    official.race(tmp_path)
    seen = []
    encode_texts = TextEncoder.encode

    def counted(self, texts, verbose=True):
        seen.extend(texts)
        return encode_texts(self, texts, verbose)

    monkeypatch.setattr(TextEncoder, "encode", counted)
    splits, encoder = encode(TASKS["race"], tmp_path, model_dir)
    articles = [text for text in seen if text.startswith("  the cat was in hat")]
    assert len(articles) == len(set(articles)) < sum(map(len, splits.all()))
    rows = describe_example(splits, 0, encoder)[1:]
    assert len(rows) == 4 and [" _start_ the cat" in row for row in rows] == [True, False, False, False]
    assert all(row.split()[0] == "_delimiter_" and row.split()[-1] == "_classify_" for row in rows[1:])


def test_mrpc_without_the_list_of_ids_holds_examples_out_by_seed(tmp_path, model_dir):
    official.mrpc_of_microsoft(tmp_path, with_ids=False)
    task = find_task("mrpc", tmp_path)
    held_out = [encode(task, tmp_path, model_dir, seed=seed)[0].valid.which.tolist() for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2] and len(held_out[0]) == 7


def test_glues_files_of_mrpc_are_preferred_to_microsofts(tmp_path):
    official.mrpc_of_microsoft(tmp_path)
    official.mrpc(tmp_path)
    assert find_task("mrpc", tmp_path) is TASKS["mrpc"]


@pytest.mark.parametrize("name", FOLDERS)
def test_data_dir_is_the_folder_or_the_one_above_it(tmp_path, name):
    folder = tmp_path / FOLDERS[name]
    folder.mkdir()
    assert TASKS[name].find(folder) == folder
    if not name.startswith("rocstories"):
        assert TASKS[name].find(tmp_path) == folder


# --- encoded ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cola", "mrpc", "stsb", "mnli", "snli", "race"])
def test_texts_are_encoded_as_the_tokenizer_does_one_by_one(tmp_path, model_dir, name):
    written = WRITERS[name](tmp_path)
    task = TASKS[name]
    splits, encoder = encode(task, tmp_path, model_dir)
    for split, files in written.items():
        rows, expected = getattr(splits, split), [example for file in files for example in file.examples]
        assert len(rows) == len(expected)
        for i, (texts, _) in enumerate(expected):
            assert rows.encoded.texts(i) == [encoder.encode([text], verbose=False)[0] for text in texts]
        if name == "stsb" and split != "test":
            assert rows.labels.tolist() == [float(label) for _, label in expected]
        elif rows.labels is not None:
            assert [task.labels[label] for label in rows.labels] == [label for _, label in expected]
        else:
            assert {label for _, label in expected} == {None}


def test_only_the_article_of_a_long_race_example_is_cut(tmp_path, model_dir):
    official.race(tmp_path)
    splits, encoder = encode(TASKS["race"], tmp_path, model_dir)
    rows = splits.train.rows(0)
    _, question, *options = (
        encoder.encode([text], verbose=False)[0] for text in first_texts(tmp_path, "race", "train")[0]
    )
    start, delimiter, classify = (splits.train.layout.n_vocab + i for i in range(3))
    assert max(map(len, rows)) == 64
    for row, option in zip(rows, options, strict=True):
        end = [*question, delimiter, *option, classify]
        assert row[0] == start and row[-len(end) :] == end
        assert row[: len(row) - len(end)] == rows[0][: len(rows[0]) - len(question) - len(options[0]) - 2]


# --- trained, predicted, handed in -----------------------------------------------------------------------------------


def check_hand_in(desc: str, files: dict[str, tuple[tuple[str, ...] | None, int]]) -> None:
    """Assert that files of predictions say what the probabilities of the test set say, byte by byte."""
    predicted = read_predictions(Path(f"log/{desc}.predictions.jsonl"))
    probabilities = np.array([example.probabilities for example in predicted if example.split == "test"])
    first = 0
    assert sorted(path.name for path in Path("submission").iterdir()) == sorted(files)
    for name, (words, n) in files.items():
        part, first = probabilities[first : first + n], first + n
        assert len(part) == n
        content = Path("submission", name).read_bytes()
        found = re.fullmatch(r"index\tprediction\n((?:\d+\t\S+\n)+)", content.decode())[1].split()
        assert content.decode() == "".join(["index\tprediction\n", *(f"{i}\t{t}\n" for i, t in enumerate(found[1::2]))])
        if words:
            chosen = [words.index(text) for text in found[1::2]]
            np.testing.assert_allclose(part[np.arange(n), chosen], part.max(1), atol=1e-6)
        else:
            assert all(re.fullmatch(r"[0-4]\.\d{3}|5\.000", text) for text in found[1::2])
            np.testing.assert_allclose(np.array(found[1::2], float), part @ np.arange(6), atol=6e-4)
    assert first == len(probabilities)


def bad_lines(written: Files) -> list[tuple[int, str]]:
    """Return for each split that has any: how many lines cannot be read, and the first of them."""
    bad = [[where for file in written.get(split, ()) for where in file.bad] for split in ("train", "valid", "test")]
    return [(len(wheres), wheres[0]) for wheres in bad if wheres]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_run_from_the_official_files_to_the_hand_in(command, tmp_path, capsys, name):
    written = LAYOUTS[name](tmp_path / "data")
    task = name.split(",")[0]
    data_dir = tmp_path / "data" / (FOLDERS[task] if name in ("rte", "rocstories", "rocstories_2018") else "")
    assert command("--dataset", task, "--data_dir", data_dir, "--submit", "--analysis") == 0
    out = capsys.readouterr().out

    settings, *logs = read_lines(f"log/{task}.jsonl")
    metrics = {"cola": ["mcc"], "stsb": ["pearson", "spearman"], "mrpc": ["f1", "acc"], "qqp": ["f1", "acc"]}
    assert logs[-1]["n_updates"] == settings["t_total"] >= 2
    assert set(logs[-1]) >= {"va_cost", *(f"va_{metric}" for metric in metrics.get(task, ["acc"]))}
    files = {"MRPC.tsv": (BINARY, N_PAIRS)} if "Microsoft" in name else HAND_IN[task]
    check_hand_in(task, files)

    # what the files do not hold is said, and nothing else
    notes = [line.removeprefix("note     ") for line in out.splitlines() if line.startswith("note ")]
    assert notes == settings["notes"]
    told = [note for note in notes if "could not be used" in note]
    for note, (n, where) in zip(told, bad_lines(written), strict=True):
        assert re.fullmatch(rf"{n} lines could not be used; the first: \S*{re.escape(where)}: .+\.", note)
    if "Microsoft" not in name:
        counts = [re.search("([0-9,]+) were published", note)[1] for note in notes if "published" in note]
        assert counts == PUBLISHED[task].split()


@pytest.mark.parametrize("level", ["middle", "high"])
def test_one_level_of_race(command, tmp_path, level):
    written = official.race(tmp_path / "data")
    assert command("--dataset", "race", "--race", level, "--data_dir", "data", "--submit", "--analysis") == 0
    check_hand_in("race", {f"RACE-{level}.tsv": HAND_IN["race"][f"RACE-{level}.tsv"]})
    logs = read_lines("log/race.jsonl")
    n_train = len(written["train"][level == "high"].examples)
    assert logs[-1]["n_updates"] == n_train // 8


def test_mnli_without_the_diagnostic_set_has_no_predictions_of_it(command, tmp_path):
    official.mnli(tmp_path / "data", with_ax=False)
    assert command("--dataset", "mnli", "--data_dir", "data/MNLI", "--submit", "--max_examples", 20) == 0
    check_hand_in("mnli", {name: (MNLI, 20) for name in ("MNLI-m.tsv", "MNLI-mm.tsv")})


def test_a_dry_run_takes_some_lines_and_warns_of_no_counts(command, tmp_path, capsys):
    official.qqp(tmp_path / "data")
    assert command("--dataset", "qqp", "--data_dir", "data", "--submit", "--max_examples", 16) == 0
    check_hand_in("qqp", {"QQP.tsv": (BINARY, 16)})
    assert "examples 16 train, 16 valid, 16 test" in (out := capsys.readouterr().out) and "published" not in out


def test_a_missing_file_is_named(command, tmp_path, capsys):
    official.mrpc(tmp_path / "data")
    (tmp_path / "data/MRPC/dev.tsv").unlink()
    assert command("--dataset", "mrpc", "--data_dir", "data") == 2
    assert "data/MRPC/dev.tsv is missing" in capsys.readouterr().err
