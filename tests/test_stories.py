"""The demo's stories: the same on every machine, of the grammar only, and with labels that only the stories tell."""

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest

from demo import stories

DEMO = Path(__file__).parents[1] / "demo"
SPLITS = ("train", "valid", "test")


def run(folder: Path, *arguments: str, hash_seed: str = "0") -> None:
    subprocess.run(
        [sys.executable, "-m", "demo.stories", *arguments],
        cwd=folder,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(DEMO.parent)},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tasks of the default size and a small corpus beside them."""
    folder = tmp_path_factory.mktemp("demo")
    run(folder, "tasks")
    run(folder, "corpus", "--n_documents", "3000", "--exclude", "tasks")
    return folder


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?]) ", text)


def rows(folder: Path, name: str, split: str) -> list[tuple[str, str, list[list[str]]]]:
    """Return the kind, the label and the texts, in sentences, of each example in a file; a cloze has one in valid."""
    path = folder / "tasks" / name
    if not (path / f"{split}.kinds").exists():
        return []
    kinds = (path / f"{split}.kinds").read_text(encoding="utf-8").splitlines()
    with open(path / (stories.CLOZE_FILES[split] if name == "cloze" else f"{split}.csv"), newline="") as file:
        _, *lines = csv.reader(file)
    if name == "cloze":
        lines = [[" ".join(line[1:5]), *line[5:]] for line in lines]
    return [
        (kind, label, [sentences(text) for text in texts]) for kind, (*texts, label) in zip(kinds, lines, strict=True)
    ]


def all_rows(folder: Path, name: str) -> list[tuple[str, str, list[list[str]]]]:
    return [row for split in SPLITS for row in rows(folder, name, split)]


# --- files -----------------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    run(tmp_path, "tasks", hash_seed="77")
    run(tmp_path, "corpus", "--n_documents", "3000", "--exclude", "tasks", hash_seed="78")
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert len(paths) == 1 + 2 * (3 * 3 + 2)  # the corpus; examples and kinds, by split
    assert all((tmp_path / path).read_bytes() == (folder / path).read_bytes() for path in paths)


def test_committed_cloze_set_is_the_default_one(folder: Path) -> None:
    assert {path.name for path in (DEMO / "data").glob("*.*")} == {*stories.CLOZE_FILES.values()}
    for name in stories.CLOZE_FILES.values():
        assert (DEMO / "data" / name).read_bytes() == (folder / "tasks/cloze" / name).read_bytes()
        with open(DEMO / "data" / name, newline="") as file:
            header, *lines = csv.reader(file)
        assert header[0] == "InputStoryid" and header[-1] == "AnswerRightEnding" and len(header) == 8
        assert len({line[0] for line in lines}) == len(lines)
        assert all(line[5] != line[6] and all(line) for line in lines)


def test_another_seed_gives_other_stories(folder: Path) -> None:
    known = set((folder / "corpus.txt").read_text().splitlines())
    assert len(known & set(islice(stories.documents(9, set()), 300))) < 10
    sizes = {"test": 40}
    assert stories.make_examples("cloze", 2, sizes) != stories.make_examples("cloze", 3, sizes)


# --- sentences -------------------------------------------------------------------------------------------------------

PHRASES, TOPICS = stories.read_grammar(stories.GRAMMAR)
HER, HIM = PHRASES["she"], PHRASES["he"]
NAME = rf"\b(?:{'|'.join(HER + HIM)})\b"


def nameless(sentence: str) -> str:
    """Return a sentence in lower case, with the same word in place of all names, and another for all things."""
    return re.sub(rf"\b({'|'.join(PHRASES['thing'])})\b", "thing", re.sub(NAME, "x", sentence).lower())


def plain(sentence: str) -> str:
    """Return a nameless sentence without what tells men from women."""
    return re.sub(r"\b(him|his|her)\b", "his", re.sub(r"\b(he|she)\b", "he", nameless(sentence)))


def expand(phrase: str) -> set[str]:
    """Return the plain sentences of a phrase of the grammar."""
    parts = [part.split("|") for part in re.split(r"[{}]", phrase)]
    slots = {"N": "x", "M": "x", "thing": "thing", "mhe": "he"}
    told = ("".join(chosen) for chosen in product(*parts))
    return {plain(re.sub(r"\$(\w+)", lambda slot: slots.get(slot[1], slot[1]), text)) for text in told}


def meanings() -> dict[str, tuple[str, bool | None]]:
    """Return the plain sentences of the grammar -> what they tell, and whether it is good; without questions."""
    told = {}

    def add(what: str, good: bool | None, phrases: list[str]) -> None:
        for text in set().union(*map(expand, phrases)):
            assert told.setdefault(text, (what, good)) == (what, good), text

    for topic in TOPICS:
        assert set(topic) == {"begin", "a", "b", "a5", "b5"}
        add("begin", None, topic["begin"])
        for good, cause, end in ((True, "a", "a5"), (False, "b", "b5")):
            add("cause", good, [*topic[cause], *(phrase.replace("$he ", "$N ", 1) for phrase in topic[cause])])
            add("end", good, topic[end])
    for what, good, key in (("event", True, "good_event"), ("event", False, "bad_event"), ("scene", None, "scene")):
        add(what, good, PHRASES[key])
    add("attitude", True, PHRASES["friend"])
    add("attitude", False, PHRASES["enemy"])
    add("gift", None, PHRASES["give"])
    add("walk", None, [f"{who} went {{{'|'.join(PHRASES['walk_to'])}}}." for who in ("$N", "$he")])
    for good, word in ((True, "good"), (False, "bad")):
        for who in ("$N", "$he"):
            add("feeling", good, [f"{who} was {{|so |very }}{{{'|'.join(PHRASES[word])}}}."])
            add("feeling", not good, [f"{who} was not {{{'|'.join(PHRASES[word])}}}."])
            add("feeling", good, [f"{who} {{{'|'.join(PHRASES[f'{word}_act'])}}}."])
            add("feeling", good, [f"{who} felt very {'positive' if good else 'negative'}."])
    return told


MEANINGS = meanings()
ASKED = {"true or false?", "true.", "false.", "how did x feel?", "very positive.", "very negative.", "x."}
ASKED |= {"who gave it?", "who got it?", *(f"who was {word}?" for word in PHRASES["good"] + PHRASES["bad"])}
REPORTED = {"they felt alike.", "they did not feel alike.", "now x has the thing."}


def test_the_corpus_holds_only_sentences_of_the_grammar(folder: Path) -> None:
    """So none that judges a story."""
    known, found = MEANINGS.keys() | ASKED | REPORTED, Counter()
    for line in (folder / "corpus.txt").read_text().splitlines():
        found.update(map(plain, sentences(line)))
    assert not found.keys() - known
    assert len(found.keys() & MEANINGS.keys()) > len(MEANINGS) / 2 and found.keys() >= REPORTED
    assert plain("Nobody was surprised.") not in known and plain("Anna was surprised.") not in known


def test_sentences_are_well_formed(folder: Path) -> None:
    for line in (folder / "corpus.txt").read_text().splitlines():
        assert not re.search(r"[{}|$%]|  | [.,?!]|\b[Aa] [aeiou]", line), line
        assert all(sentence[0].isupper() and sentence[-1] in ".?" for sentence in sentences(line)), line


@pytest.mark.parametrize("name", stories.MADE_TASKS)
def test_tasks_hold_only_sentences_of_the_grammar(folder: Path, name: str) -> None:
    known = MEANINGS.keys() | {"true or false?", "how did x feel?"}
    for kind, _, texts in all_rows(folder, name):
        assert {plain(sentence) for text in texts for sentence in text} <= known, (kind, texts)


# --- what is held out ------------------------------------------------------------------------------------------------


def test_no_example_and_no_story_of_one_is_in_the_corpus(folder: Path) -> None:
    answers = {"True or false?", "True.", "False."}
    told = [
        [s for s in sentences(line) if s not in answers] for line in (folder / "corpus.txt").read_text().split("\n")
    ]
    parts = {tuple(s[i : i + n]) for s in told for n in range(1, 8) for i in range(len(s) - n + 1)}
    held_out = set()
    for name in stories.MADE_TASKS:
        for _, _, texts in all_rows(folder, name):
            texts = [[s for s in text if s not in answers] for text in texts]
            held_out |= {tuple(text[:4]) for text in texts if len(text) >= 4}  # the story
            if name != "cloze":
                held_out |= {tuple(sum(order, [])) for order in (texts, texts[::-1])}
    assert len(held_out) > 10_000 and not held_out & parts
    assert held_out <= stories.sentences_to_exclude(folder / "tasks")


def test_corpus_leaves_out_what_it_is_told_to() -> None:
    everything = list(islice(stories.documents(1, set()), 300))
    example = tuple(sentences(everything[0])[:3])
    left = list(islice(stories.documents(1, {example}), 200))
    assert everything[0] not in left
    assert left == [text for text in everything if " ".join(example) not in text][:200]


# --- the four tasks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", stories.MADE_TASKS)
def test_kinds_and_labels_are_balanced_and_no_example_occurs_twice(folder: Path, name: str) -> None:
    sizes = {"valid": 2400, "test": 1000} if name == "cloze" else {"train": 2000, "valid": 400, "test": 1000}
    for split, n in sizes.items():
        counts = Counter((kind, label) for kind, label, _ in rows(folder, name, split))
        assert sum(counts.values()) == n and len(counts) == 2 * len(stories.MADE_TASKS[name].kinds)
        assert {kind for kind, _ in counts} == set(stories.MADE_TASKS[name].kinds)
        assert max(counts.values()) - min(counts.values()) <= 1, counts
    texts = [str(sorted(texts) if name == "similarity" else texts) for _, _, texts in all_rows(folder, name)]
    assert len(texts) == 3400 and len(set(texts)) > 3300  # two texts may come in the other order
    if name != "similarity":
        assert len(set(texts)) == 3400


def gift(sentence: str) -> tuple[str, ...]:
    """Return who gave what to whom."""
    if " gave " in sentence:
        return re.fullmatch(r"(\w+) gave (\w+) a (\w+)\.", sentence).groups()
    to, thing, by = re.fullmatch(r"(\w+) got a (\w+) from (\w+)\.", sentence).groups()
    return by, to, thing


def agree(told: list[str]) -> bool:
    """Return whether an even number of some sentences tells something bad."""
    found = [MEANINGS[plain(sentence)] for sentence in told if plain(sentence) in MEANINGS]
    return sum(good is False for _, good in found) % 2 == 0


def expected_label(name: str, kind: str, texts: list[list[str]]) -> bool:
    """Return the label that follows from the sentences of an example; of a cloze: whether the first ending is right."""
    told = [sentence for text in texts for sentence in text]
    if name == "cloze":
        context, first, second = texts
        if kind == "he or she":
            (who,) = set(re.findall(NAME, " ".join(context)))
            return first[0].startswith("She ") == (who in HER) != second[0].startswith("She ")
        if MEANINGS[plain(context[-1])][0] == "end":
            assert agree(context[-2:])  # cause and end
            context = context[:-1]
        right, wrong = agree(context + first), agree(context + second)
        assert right != wrong
        return right
    if gifts := [gift(sentence) for sentence in told if MEANINGS.get(plain(sentence), "?")[0] == "gift"]:
        return gifts[0] == gifts[1]
    return agree(told)


@pytest.mark.parametrize("name", stories.MADE_TASKS)
def test_labels_follow_from_what_is_told(folder: Path, name: str) -> None:
    right = {"cloze": "1", "classification": "positive", "entailment": "entailment", "similarity": "same"}[name]
    for kind, label, texts in all_rows(folder, name):
        assert expected_label(name, kind, texts) == (label == right), (kind, label, texts)


# --- what gives no answer away ---------------------------------------------------------------------------------------


def judged(folder: Path, name: str) -> list[tuple[str, bool]]:
    """Return texts that tell nothing by themselves, without names and degrees, and whether they were right.

    In the kinds GLAD one text decides, and only the other one tells nothing.
    """
    found = []
    for kind, label, texts in all_rows(folder, name):
        if name == "cloze":
            found += [(texts[i][0], label == str(i)) for i in (1, 2)]
        elif name == "classification" and kind in ("attitude", "friend"):
            found += [(sentence, label == "positive") for sentence in texts[0][:-1]]
        elif name == "entailment":
            found += [(texts[1][1], label == "entailment")]
        elif name == "similarity":
            silent = [text for text in texts if kind not in stories.GLAD or len(text) == 1]
            found += [(" ".join(text), label == "same") for text in silent]
    return [(re.sub("was (so|very) ", "was ", nameless(text)), right) for text, right in found]


@pytest.mark.parametrize("name", stories.MADE_TASKS)
def test_a_sentence_is_right_as_often_as_wrong(folder: Path, name: str) -> None:
    found = judged(folder, name)
    counts = Counter(text for text, _ in found)
    fractions = {
        text: np.mean([right for other, right in found if other == text]) for text, n in counts.items() if n >= 40
    }
    assert len(fractions) > 8
    assert all(0.25 < fraction < 0.75 for fraction in fractions.values()), fractions


@pytest.mark.parametrize("name", stories.MADE_TASKS)
def test_length_gives_no_answer_away(folder: Path, name: str) -> None:
    examples = all_rows(folder, name)
    if name == "cloze":
        difference = [len(texts[1][0]) - len(texts[2][0]) for _, _, texts in examples]
    else:
        lengths = np.array([sum(len(sentence) for text in texts for sentence in text) for _, _, texts in examples])
        difference = lengths - np.median(lengths)
    first = examples[0][1]
    is_first = np.array([label == first for _, label, _ in examples])
    longer = np.sign(difference)
    assert abs(np.mean(longer[is_first]) - np.mean(longer[~is_first])) < 0.12


# --- make demo -------------------------------------------------------------------------------------------------------


def test_the_stories_of_make_demo_are_of_the_grammar_and_in_no_file() -> None:
    text = (DEMO.parent / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    story = json.loads(re.search(r"^DEMO_STORY = (.*)$", text, re.MULTILINE)[1])
    (prompt,) = re.findall(r'^DEMO_GENERATE = .*--prompt "(.*?)"', text, re.MULTILINE)
    told = sentences(story["context"])
    assert {plain(sentence) for sentence in told + story["choices"] + sentences(prompt)} <= MEANINGS.keys()
    assert agree([*told, story["choices"][1]]) and not agree([*told, story["choices"][0]])  # the second is right
    for name in stories.CLOZE_FILES.values():
        with open(DEMO / "data" / name, newline="") as file:
            contexts = [" ".join(line[1:5]) for line in csv.reader(file)]
        assert len(contexts) > 1000 and not any(story["context"] == text or prompt in text for text in contexts)
