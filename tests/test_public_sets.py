"""24 common public sets in the layout of their files, each read with the flags that datasets.py names.

The layouts are theirs, the texts are ours: 20 rows of each.
"""

import csv
import io
import json
import re
from pathlib import Path

import pytest

import datasets
import train
from finetuning import FineTuningFlags
from reading.splits import Limits, Splits, read_splits
from reading.tasks import find_task
from text_utils import TextEncoder

WORDS = ("cat", "red", "hat", "rat")
ROWS = range(20)


def text(i: int, more: str = "") -> str:
    return f"the {WORDS[i % 4]} was in {i}{more}"


def table(names: str | None, row, separator: str = ",", quoting: int = csv.QUOTE_MINIMAL, quote: str = '"') -> str:
    """Return a table of 20 rows, row(i) each, as a spreadsheet or a program writes it."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, quoting=quoting, quotechar=quote, lineterminator="\n")
    if names is not None:
        writer.writerow(names.split(","))
    writer.writerows(row(i) for i in ROWS)
    return file.getvalue()


def lines(row) -> str:
    """Return 20 JSON objects, a line each."""
    return "".join(json.dumps(row(i)) + "\n" for i in ROWS)


def arc(i: int) -> dict:
    letters = "ABCD" if i % 2 else "1234"  # both are there
    choices = [{"text": f"{WORDS[k]} {i}", "label": letters[k]} for k in range(4)]
    return {"id": f"q{i}", "question": {"stem": text(i), "choices": choices}, "answerKey": letters[i % 4]}


def csqa(i: int) -> dict:
    choices = [{"label": "ABCDE"[k], "text": f"{k} hats"} for k in range(5)]
    question = {"question_concept": "hat", "choices": choices, "stem": text(i)}
    return {"answerKey": "ABCDE"[i % 5], "id": f"{i}a", "question": question}


def copa(i: int) -> dict:
    choices = {"choice1": text(i), "choice2": text(i + 1)}
    return {"premise": text(i), **choices, "question": "cause", "label": i % 2, "idx": i}


SWAG = "number,video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label"
TWEETS = "tweet_id,airline_sentiment,airline_sentiment_confidence,negativereason,airline,name,text,tweet_coord"
QUOTE_ALL, RAW = csv.QUOTE_ALL, csv.QUOTE_NONE
LATIN = "é"  # a byte that is no UTF-8 in Latin-1

# name in datasets.py -> file name, content, first example: its texts and label
SETS = {
    "SMS spam (UCI)": (
        "train.tsv",
        "".join(f'{"ham" if i % 2 else "spam"}\t"{text(i)}\n' for i in ROWS),
        ['"' + text(0), "spam"],
    ),
    "SMS spam (Kaggle)": (
        "train.csv",
        table("v1,v2,,,", lambda i: ["ham" if i % 2 else "spam", text(i, f", {LATIN}"), "", "", ""]).encode("latin-1"),
        [text(0, f", {LATIN}"), "spam"],
    ),
    "UCI sentences": ("train.txt", "".join(f'{text(i)}, "so.  \t{i % 2}\n' for i in ROWS), [text(0, ', "so.  '), "0"]),
    "GermEval 2018": (
        "train.txt",
        "".join(f'@a "{text(i)}; |LBR|\t{"OTHER" if i % 2 else "OFFENSE"}\tABUSE\n' for i in ROWS),
        ['@a "' + text(0, "; |LBR|"), "OFFENSE"],
    ),
    "AG news": (
        "train.csv",
        table(None, lambda i: [1 + i % 4, text(i), text(i, ', "so"')], quoting=QUOTE_ALL),
        [text(0, ', "so"'), "1"],
    ),
    "SICK": (
        "train.txt",
        table(
            "pair_ID,sentence_A,sentence_B,relatedness_score,entailment_judgment",
            lambda i: [i, text(i), text(i + 1), i / 4, ["NEUTRAL", "ENTAILMENT"][i % 2]],
            "\t",
        ),
        [text(0), text(1), "NEUTRAL"],
    ),
    "amazon reviews": (
        "train.csv",
        table(None, lambda i: [1 + i % 2, WORDS[i % 4], text(i, ', "so"')], quoting=QUOTE_ALL),
        [text(0, ', "so"'), "1"],
    ),
    "yelp reviews": (
        "train.csv",
        table(None, lambda i: [1 + i % 5, text(i, ", \\n")], quoting=QUOTE_ALL),
        [text(0, ", \\n"), "1"],
    ),
    "emotion": ("train.txt", "".join(f"{text(i)};{['joy', 'fear'][i % 2]}\n" for i in ROWS), [text(0), "joy"]),
    "10kGNAD": (
        "train.csv",
        table(None, lambda i: [["Web", "Etat"][i % 2], text(i, '; "it\'s"')], ";", quote="'"),
        [text(0, '; "it\'s"'), "Web"],
    ),
    "TREC": (
        "train.csv",
        table("text,coarse_label,fine_label", lambda i: [text(i, " ?"), i % 6, i % 20]),
        [text(0, " ?"), "0"],
    ),
    "IMDB": (
        "train.csv",
        table("review,sentiment", lambda i: [text(i, ' <br /><br />"so", it'), ["positive", "negative"][i % 2]]),
        [text(0, ' <br /><br />"so", it'), "positive"],
    ),
    "COPA": ("train.jsonl", lines(copa), [text(0), text(0), text(1), "1"]),
    "XCOPA": ("train.jsonl", lines(lambda i: copa(i) | {"changed": False}), [text(0), text(0), text(1), "1"]),
    "SWAG": (
        "train.csv",
        table(SWAG, lambda i: [i, "v", i, text(i), text(i), "the", "gold", *[f"{w} {i}" for w in WORDS], i % 4]),
        [text(0), *[f"{w} 0" for w in WORDS], "1"],
    ),
    "ARC": ("train.jsonl", lines(arc), [text(0), *[f"{w} 0" for w in WORDS], "1"]),
    "CommonsenseQA": ("train.jsonl", lines(csqa), [text(0), *[f"{k} hats" for k in range(5)], "1"]),
    "BoolQ": (
        "train.jsonl",
        lines(lambda i: {"question": text(i), "title": "t", "answer": i % 2 == 0, "passage": text(i + 1)}),
        [text(1), text(0), "True"],
    ),
    "CB": (
        "train.jsonl",
        lines(lambda i: {"premise": text(i), "hypothesis": text(1), "label": ["neutral", "no"][i % 2], "idx": i}),
        [text(0), text(1), "neutral"],
    ),
    "WiC": (
        "train.jsonl",
        lines(lambda i: {"word": "cat", "sentence1": text(i), "sentence2": text(1), "idx": i, "label": i % 2 == 1}),
        [text(0), text(1), "False"],
    ),
    "financial phrasebank": (
        "train.txt",
        "".join(f'{text(i)} , " {LATIN} .{", so" * (i % 3)}@{["neutral", "positive"][i % 2]}\n' for i in ROWS).encode(
            "latin-1"
        ),
        [text(0, f' , " {LATIN} .'), "neutral"],
    ),
    "airline tweets": (
        "train.csv",
        table(
            TWEETS, lambda i: [i, ["negative", "neutral"][i % 2], 1.0, "", "A", "b", text(i, "\n@a, so"), "[4.7, 1]"]
        ),
        [text(0, "\n@a, so"), "negative"],
    ),
    "disaster tweets": (
        "train.csv",
        table("id,keyword,location,text,target", lambda i: [i, "", "", text(i), i % 2]),
        [text(0), "0"],
    ),
    "banking77": (
        "train.csv",
        table("text,category", lambda i: [text(i, ", so\n"), ["card_arrival", "lost"][i % 2]]),
        [text(0, ", so\n"), "card_arrival"],
    ),
    "MRPC": (
        "train.tsv",
        table(
            "Quality,#1 ID,#2 ID,#1 String,#2 String",
            lambda i: [i % 2, i, i, f'"{text(i)} ,', text(1)],
            "\t",
            RAW,
            quote=None,
        ),
        ['"' + text(0, " ,"), text(1), "0"],
    ),
}
# the table, a set a line
TABLE = re.sub(r"\n {6}", " ", datasets.__doc__)


def flags_of(name: str) -> list[str]:
    """Return the flags that datasets.py names for a set."""
    (found,) = re.findall(rf"^    {re.escape(name)} {{2,}}(--.+)$", TABLE, re.MULTILINE)
    return found.split()


def read(name: str, folder: Path, model_dir: Path) -> Splits:
    """Return the splits of a set whose files stand in a folder, read with these flags."""
    file, content, _ = SETS[name]
    folder.mkdir()
    for name_of_file in [file] if name != "MRPC" else [file, "dev.tsv", "test.tsv"]:
        (folder / name_of_file).write_bytes(content if isinstance(content, bytes) else content.encode())
    words = flags_of(name)
    settings = {word[2:]: value for word, value in zip(words[::2], words[1::2], strict=True)}
    dataset = settings.pop("dataset", "own")
    flags = FineTuningFlags(dataset=dataset, data_dir=str(folder), model_dir=str(model_dir), **settings)
    encoder = TextEncoder(flags.encoder_path, flags.bpe_path)
    return read_splits(find_task(flags.dataset, folder, **flags.own()), folder, encoder, Limits(4, 1, 64))


def test_the_table_names_these_sets():
    named = re.findall(r"^    (\S.+?) {2,}--", TABLE, re.MULTILINE)
    assert named == list(SETS) and len({name.split(" (")[0] for name in named}) == 24


@pytest.mark.parametrize("name", SETS)
def test_a_public_set_is_read_with_one_command(tmp_path, model_dir, name):
    splits = read(name, tmp_path / "set", model_dir)
    assert len(splits.train.encoded) == 20 and (not splits.notes or name == "MRPC")  # which has more in truth
    *texts, label = SETS[name][2]
    encoded = splits.train.encoded
    assert (*encoded.example(0).texts, encoded.example(0).label) == (*texts, label)


@pytest.mark.parametrize("name", ["ARC", "10kGNAD"])
def test_a_public_set_is_trained_on(tmp_path, monkeypatch, model_dir, name):
    monkeypatch.chdir(tmp_path)
    read(name, tmp_path / "set", model_dir)
    flags = ["--data_dir", "set", "--model_dir", str(model_dir), "--n_iter", "1"]
    assert train.main(["--dataset", "own", *flags, *flags_of(name)]) == 0
