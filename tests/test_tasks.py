"""The four tasks of one's own data made from the demo's stories, and the baselines of a task."""

import csv
import json
from collections import Counter
from itertools import islice
from pathlib import Path

import baselines
import pytest
import stories

from readers import Example, own_examples

DEMO = Path(__file__).parents[1] / "demo"
SCHEMAS = stories.parse_schemas(stories.SCHEMAS.read_text(encoding="utf-8"))
SIZES = {"train": 96, "valid": 25, "test": 48}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    stories.write_tasks(folder, SCHEMAS, 3, stories.read_contexts(DEMO / "data"), SIZES)
    return folder


def rows(folder: Path, name: str, split: str) -> list[dict]:
    path = folder / name / (split + stories.OWN_TASKS[name][2])
    with open(path, encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def test_same_seed_gives_the_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    for seed in (3, 4):
        stories.write_tasks(tmp_path / str(seed), SCHEMAS, seed, stories.read_contexts(DEMO / "data"), SIZES)
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert len(paths) == 12 and {path.suffix for path in paths} == {".csv", ".tsv", ".jsonl"}
    for path in paths:
        assert (tmp_path / "3" / path).read_bytes() == (folder / path).read_bytes()
        assert (tmp_path / "4" / path).read_bytes() != (folder / path).read_bytes()


@pytest.mark.parametrize("name", stories.OWN_TASKS)
def test_files_are_own_data_with_balanced_labels(folder: Path, name: str) -> None:
    _, labels, suffix = stories.OWN_TASKS[name]
    for split, n in SIZES.items():
        examples = list(own_examples(folder / name, split + suffix, name, {}, True))
        assert all(isinstance(example, Example) for example in examples) and len(examples) == n
        counts = Counter(example.label for example in examples)
        assert set(counts) == set(labels) and max(counts.values()) - min(counts.values()) <= 1


def beginning(row: dict) -> str:
    """Return the four sentences of an example."""
    text = max((value for value in row.values() if isinstance(value, str)), key=len)
    return " ".join(text.replace('"', "").split(". ")[:4]).rstrip(".")


@pytest.mark.parametrize("name", stories.OWN_TASKS)
def test_no_beginning_twice_and_none_of_the_cloze_set(folder: Path, name: str) -> None:
    found = [beginning(row) for split in SIZES for row in rows(folder, name, split)]
    cloze = {beginning({"text": " ".join(context)}) for context in stories.read_contexts(DEMO / "data")}
    assert len(set(found)) == sum(SIZES.values()) and not cloze & set(found)


def test_what_is_excluded_is_not_told() -> None:
    told = stories.own_examples("multiple_choice", SCHEMAS[:1], 3, set(), {"test": 40})["test"]
    contexts = stories.contexts_of(iter(f"{row['context']} {row['choices'][0]}" for row in told))
    again = stories.own_examples("multiple_choice", SCHEMAS[:1], 3, contexts, {"test": 40})["test"]
    assert not {row["context"] for row in told} & {row["context"] for row in again}


def test_contexts_of_a_corpus_are_those_without_its_comments() -> None:
    texts = list(islice(stories.corpus(SCHEMAS, 1, set(), comments=1.0, remarks=0.5), 50))
    for text, sentences in zip(texts, (next(iter(stories.contexts_of(iter([text])))) for text in texts), strict=True):
        assert len(sentences) == 4 and text.startswith(sentences[0])
        assert all(sentence[:-1] + ", and things looked " in text for sentence in sentences[1:])


LINES = {
    "1": "$N came.",
    "a2": "up.",
    "b2": "down.",
    "3": "x {1|2|3|4|5|6|7|8}.",
    "4": "y {1|2|3|4|5|6|7|8}.",
    "a5": "won, and $good. | $fine.",
    "b5": "lost, and $bad. | $poor.",
}
SIMPLE = stories.Schema("simple", {"good": "glad", "bad": "sad"}, LINES)  # one phrasing for all that decides


def test_labels_are_those_of_the_stories() -> None:
    told = {name: stories.own_examples(name, [SIMPLE], 1, set(), {"test": 48})["test"] for name in stories.OWN_TASKS}
    right = {True: "Won, and glad.", False: "Lost, and sad."}
    for row in told["classification"]:
        assert right["Up." in row["text"]] in row["text"] and ("Up." in row["text"]) == (row["label"] == "well")
    for row in told["entailment"]:
        assert (right["Up." in row["premise"]] == row["hypothesis"]) == (row["label"] == "entailment")
    for row in told["similarity"]:
        story, ending = sorted((row["text_a"], row["text_b"]), key=len, reverse=True)
        assert (right["Up." in story] == ending) == (row["label"] == "same story")
    for row in told["multiple_choice"]:
        assert row["choices"][row["label"] - 1] == right["Up." in row["context"]]
        assert sorted(row["choices"]) == ["Lost, and glad.", "Lost, and sad.", "Won, and glad.", "Won, and sad."]


def test_baselines() -> None:
    examples = [Example((f"{word} a", "a"), label, "") for word, label in (("up", "1"), ("down", "2"), ("up", "1"))]
    assert baselines.majority(examples, examples) == 2 / 3
    assert baselines.bag_of_words(10 * examples, examples) == 1
    choices = [Example(("go", "bad", "good" if i else "fine", "bad"), "2", "") for i in range(4)]
    assert baselines.bag_of_words(choices, choices, 3) == 1
