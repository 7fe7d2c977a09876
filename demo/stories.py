"""Write five-sentence stories with a cause and an effect: a corpus for pre-training, a cloze set and four tasks.

Each schema of schemas.txt branches: something in sentences 2 to 4 decides how the story must end. The wrong
ending of a cloze example is a right ending of another branch, told with the same people and things. Every ending is
therefore right as often as wrong, and neither the ending by itself, nor its length, nor its position gives the answer.

    python demo/stories.py cloze --out demo/data
    python demo/stories.py corpus --exclude demo/data --out corpus.txt
    python demo/stories.py tasks --exclude demo/data --out tasks
"""

import argparse
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice, permutations
from pathlib import Path
from random import Random

SCHEMAS = Path(__file__).with_name("schemas.txt")
CLOZE_FILES = {
    "valid": "cloze_test_val__spring2016 - cloze_test_ALL_val.csv",
    "test": "cloze_test_test__spring2016 - cloze_test_ALL_test.csv",
}
HEADER = [
    "InputStoryid",
    "InputSentence1",
    "InputSentence2",
    "InputSentence3",
    "InputSentence4",
    "RandomFifthSentenceQuiz1",
    "RandomFifthSentenceQuiz2",
    "AnswerRightEnding",
]

HER = "Alice Anna Clara Ella Emma Eva Grace Helen Ida Jane Kate Laura Lily Maria Mary Nina Nora Paula Rosa Sara".split()
HIM = "Adam Ben Bob Carl Dan David Eric Frank Fred George Henry Jack Jim John Leo Mark Max Paul Peter Tom".split()
SHE_WORDS = {"he": "she", "him": "her", "his": "her", "himself": "herself"}
HE_WORDS = {word: word for word in SHE_WORDS}

COMMENTS = {"a": "and things looked good", "b": "and things looked bad"}  # branch a ends well, branch b badly
REMARKS = {True: "Nobody was surprised.", False: "Everybody was surprised."}  # does the ending fit?

N_CORPUS, CORPUS = 80000, {"seed": 1, "comments": 0.4, "remarks": 0.5}  # what the demo's model was pre-trained on


@dataclass(frozen=True)
class Schema:
    name: str
    slots: dict[str, str]  # "plant" -> "rose | fern"
    lines: dict[str, str]  # "3" -> phrasings for every branch, "a3" -> phrasings for branch a

    def branches(self) -> list[str]:
        return sorted({key[0] for key in self.lines if len(key) == 2})


@dataclass(frozen=True)
class Story:
    context: tuple[str, ...]  # four sentences
    right: str
    wrong: str


def parse_schemas(text: str) -> list[Schema]:
    """Return the schemas of a grammar file; the top of that file describes its format."""
    common: dict[str, str] = {}
    schemas: list[Schema] = []
    for line in re.sub(r"\n +", " ", text).splitlines():
        if line.startswith("# "):
            schemas.append(Schema(line[2:], dict(common), {}))
        elif line and not line.startswith("%"):
            key, phrasings = line.split(": ", 1)
            is_sentence = re.fullmatch("[a-z]?[1-5]", key) is not None
            target = common if not schemas else schemas[-1].lines if is_sentence else schemas[-1].slots
            if key in target:
                place = f"schema {schemas[-1].name!r}" if schemas else "the head"
                raise ValueError(f"{place} has a second line {key!r}: join the two with |, or rename the slot")
            target[key] = phrasings
    return schemas


def choose(template: str, rng: Random) -> str:
    """Replace every {a | b} of a template by a random one of its alternatives, the innermost braces first."""
    text = "{" + template + "}"
    while "{" in text:
        text = re.sub(r"\{([^{}]*)\}", lambda braces: rng.choice(braces[1].split("|")).strip(), text)
    return text


def cast(rng: Random) -> dict[str, str]:
    """Choose the two people of a story at random, and the pronouns that go with them."""
    she, he = rng.choice(HER), rng.choice(HIM)
    first, first_words, second, second_words = rng.choice(
        [(she, SHE_WORDS, he, HE_WORDS), (he, HE_WORDS, she, SHE_WORDS)]
    )
    return {"N": first, "M": second, **first_words, **{"m" + word: form for word, form in second_words.items()}}


def tell(template: str, slots: dict[str, str], rng: Random) -> str:
    """Turn a template into one sentence."""
    text = choose(template, rng)
    while "$" in text:  # a filler may contain other slots
        text = re.sub(r"\$(\w+)", lambda slot: slots[slot[1]], text)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text[0].upper() + text[1:])


def fill(schema: Schema, people: dict[str, str], rng: Random) -> dict[str, str]:
    """Return the slots of a story about these people: those of the people, and a filler for each of the schema's."""
    return people | {name: choose(fillers, rng) for name, fillers in schema.slots.items()}


def tell_context(schema: Schema, branch: str, slots: dict[str, str], rng: Random) -> tuple[str, ...]:
    """Return the first four sentences."""
    return tuple(tell(schema.lines.get(branch + n) or schema.lines[n], slots, rng) for n in "1234")


def draw(schema: Schema, branch: str, other: str, rng: Random) -> Story:
    """Return a story of one branch; its wrong ending is the one that another branch would have had."""
    slots = fill(schema, cast(rng), rng)
    context = tell_context(schema, branch, slots, rng)
    return Story(context, *(tell(schema.lines[b + "5"], slots, rng) for b in (branch, other)))


def corpus(
    schemas: list[Schema], seed: int, exclude: set[tuple[str, ...]], comments: float, remarks: float
) -> Iterator[str]:
    """Yield distinct stories, infinitely many, none with a context in `exclude`.

    A fraction `comments` of the sentences 2 to 4 ends with a comment on where the story is going. A fraction `remarks`
    of the stories ends with people's reaction to the ending; a third of these have the ending of another branch, and
    the reaction is surprise.
    """
    rng = Random(seed)
    told: set[str] = set()
    while True:
        schema = rng.choice(schemas)
        branch, other = rng.sample(schema.branches(), 2)
        story = draw(schema, branch, other, rng)
        first, *rest = story.context
        comment = COMMENTS[branch]
        rest = [f"{sentence[:-1]}, {comment}." if rng.random() < comments else sentence for sentence in rest]
        ending = story.right
        if rng.random() < remarks:
            fits = rng.random() < 2 / 3
            ending = f"{story.right if fits else story.wrong} {REMARKS[fits]}"
        text = " ".join((first, *rest, ending))
        if story.context not in exclude and text not in told:
            told.add(text)
            yield text


def cloze(schemas: list[Schema], seed: int) -> Iterator[Story]:
    """Yield cloze stories, infinitely many, no context twice; schemas and pairs of branches occur equally often."""
    rng = Random(seed)
    pairs = {}
    for schema in schemas:
        deck = list(permutations(schema.branches(), 2))
        rng.shuffle(deck)
        pairs[schema.name] = cycle(deck)
    told: set[tuple[str, ...]] = set()
    while True:
        for schema in rng.sample(schemas, len(schemas)):
            story = draw(schema, *next(pairs[schema.name]), rng)
            if story.context not in told:
                told.add(story.context)
                yield story


def write_cloze(path: Path, stories: list[Story], rng: Random) -> None:
    """Write stories in the layout of the Story Cloze Test, the right ending first in half of them."""
    answers = [1 + row % 2 for row in range(len(stories))]
    rng.shuffle(answers)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for story, answer in zip(stories, answers, strict=True):
            endings = [story.right, story.wrong] if answer == 1 else [story.wrong, story.right]
            writer.writerow([f"{rng.getrandbits(64):016x}", *story.context, *endings, answer])


def read_contexts(folder: Path) -> set[tuple[str, ...]]:
    """Return the contexts, four sentences each, of a cloze set."""
    contexts = set()
    for name in CLOZE_FILES.values():
        with open(folder / name, encoding="utf-8", newline="") as file:
            contexts |= {tuple(row[1:5]) for row in list(csv.reader(file))[1:]}
    return contexts


# --- four tasks of one's own data ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beginning:
    """A story that has not ended yet."""

    schema: Schema
    branch: str  # a or b
    slots: dict[str, str]
    text: str  # four sentences

    def ending(self, outcome: str, feeling: str, rng: Random) -> str:
        """Return an ending, in which what happens is of one branch and what is felt about it perhaps of the other.

        It is never "so all went well", which would fit every schema.
        """
        happens = re.sub(r", and \$(good|bad)\. \| \$(fine|poor)\.$", "", self.schema.lines[outcome + "5"])
        return tell(f"{happens}, and {FEELINGS[feeling]}.", self.slots, rng)


FEELINGS = {"a": "$good", "b": "$bad"}
OTHER = {"a": "b", "b": "a"}


def classification(story: Beginning, label: str, rng: Random) -> dict:
    """A whole story: does it end well or badly? Which of the two follows from the story's branch."""
    ending = story.ending(story.branch, story.branch, rng)
    return {"text": f"{story.text} {ending}", "label": {"a": "well", "b": "badly"}[story.branch]}


def entailment(story: Beginning, label: str, rng: Random) -> dict:
    """A beginning and an ending: the right one, or that of the other branch."""
    branch = story.branch if label == "entailment" else OTHER[story.branch]
    return {"premise": story.text, "hypothesis": story.ending(branch, branch, rng), "label": label}


def similarity(story: Beginning, label: str, rng: Random) -> dict:
    """The beginning and the ending of stories about the same people and things: could both be of one story?"""
    branch = story.branch if label == "same story" else OTHER[story.branch]
    texts = [story.text, story.ending(branch, branch, rng)]
    rng.shuffle(texts)
    return {"text_a": texts[0], "text_b": texts[1], "label": label}


def multiple_choice(story: Beginning, label: str, rng: Random) -> dict:
    """A beginning and four endings: what happens and what is felt about it are both right in only one of them."""
    choices = [
        story.ending(outcome, feeling, rng)
        for outcome in "ab"
        for feeling in "ab"
        if (outcome, feeling) != (story.branch, story.branch)
    ]
    rng.shuffle(choices)
    choices.insert(int(label) - 1, story.ending(story.branch, story.branch, rng))
    return {"context": story.text, "choices": choices, "label": int(label)}


OWN_TASKS = {  # name -> how an example is made, its labels, the suffix of its files
    "classification": (classification, ("well", "badly"), ".csv"),
    "entailment": (entailment, ("entailment", "contradiction"), ".tsv"),
    "similarity": (similarity, ("same story", "another story"), ".csv"),
    "multiple_choice": (multiple_choice, ("1", "2", "3", "4"), ".jsonl"),
}


def own_examples(
    name: str, schemas: list[Schema], seed: int, exclude: set[tuple[str, ...]], sizes: dict[str, int]
) -> dict[str, list[dict]]:
    """Return the examples of a task by split; no beginning occurs twice, nor any that is in `exclude`.

    In each split labels occur equally often, and with each label the branches, up to one example; schemas take turns.
    """
    make, labels, _ = OWN_TASKS[name]
    rng = Random(f"{name} {seed}")
    told = set(exclude)

    def tell_new(schema: Schema, branch: str) -> Beginning:
        while True:
            slots = fill(schema, cast(rng), rng)
            context = tell_context(schema, branch, slots, rng)
            if context not in told:
                told.add(context)
                return Beginning(schema, branch, slots, " ".join(context))

    splits = {}
    for split, n in sizes.items():
        deck = [(label, branch) for branch in "ab" for label in labels]
        examples = []
        while len(examples) < n:
            for schema in rng.sample(schemas, len(schemas)):
                label, branch = deck[len(examples) % len(deck)]
                examples.append(make(tell_new(schema, branch), label, rng))
        splits[split] = examples[:n]
        rng.shuffle(splits[split])
    return splits


def write_own(path: Path, examples: list[dict]) -> None:
    """Write examples as a .csv, .tsv or .jsonl file of one's own data."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(example) + "\n" for example in examples)
        elif path.suffix == ".tsv":
            file.writelines("\t".join(fields) + "\n" for fields in (examples[0], *(e.values() for e in examples)))
        else:
            writer = csv.DictWriter(file, list(examples[0]))
            writer.writeheader()
            writer.writerows(examples)


def write_tasks(
    folder: Path, schemas: list[Schema], seed: int, exclude: set[tuple[str, ...]], sizes: dict[str, int]
) -> None:
    """Write a folder for each task, with a file for each split."""
    for name, (_, _, suffix) in OWN_TASKS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, examples in own_examples(name, schemas, seed, exclude, sizes).items():
            write_own(folder / name / (split + suffix), examples)


def contexts_of(texts: Iterator[str]) -> set[tuple[str, ...]]:
    """Return the contexts of the stories of a corpus, without the comments in it."""
    comments = re.compile("|".join(f", {comment}(?=[.])" for comment in COMMENTS.values()))
    return {tuple(re.split(r"(?<=[.?!]) ", comments.sub("", text))[:4]) for text in texts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=Path, default=SCHEMAS, help="file of schemas; default: the demo's")
    commands = parser.add_subparsers(dest="command", required=True)
    show_default = argparse.ArgumentDefaultsHelpFormatter

    command = commands.add_parser("corpus", help="stories for pre-training, one a line", formatter_class=show_default)
    command.add_argument("--n_stories", type=int, default=N_CORPUS, help="lines to write")
    command.add_argument("--seed", type=int, default=CORPUS["seed"], help="seed of the stories")
    command.add_argument(
        "--comments", type=float, default=CORPUS["comments"], help="fraction of sentences with a comment"
    )
    command.add_argument(
        "--remarks",
        type=float,
        default=CORPUS["remarks"],
        help="fraction of stories with a reaction to their ending",
    )
    command.add_argument("--exclude", type=Path, default=None, help="folder of a cloze set to keep out of the corpus")
    command.add_argument("--out", type=Path, default=Path("corpus.txt"), help="file to write")

    command = commands.add_parser("cloze", help="validation and test examples", formatter_class=show_default)
    command.add_argument("--n_valid", type=int, default=1871, help="validation examples, which fine-tuning trains on")
    command.add_argument("--n_test", type=int, default=1000, help="test examples")
    command.add_argument("--seed", type=int, default=2, help="seed of the stories")
    command.add_argument("--out", type=Path, default=Path("demo/data"), help="folder to write the two files to")

    command = commands.add_parser("tasks", help="own data of four forms, for train.py", formatter_class=show_default)
    command.add_argument("--n_train", type=int, default=1500, help="training examples of each task")
    command.add_argument("--n_valid", type=int, default=300, help="validation examples of each task")
    command.add_argument("--n_test", type=int, default=500, help="test examples of each task")
    command.add_argument("--seed", type=int, default=3, help="seed of the stories")
    command.add_argument(
        "--exclude", type=Path, default=Path("demo/data"), help="folder of a cloze set to keep out of the tasks"
    )
    command.add_argument("--out", type=Path, default=Path("tasks"), help="folder to write a folder for each task to")
    args = parser.parse_args()

    schemas = parse_schemas(args.schemas.read_text(encoding="utf-8"))
    if args.command == "corpus":
        exclude = read_contexts(args.exclude) if args.exclude else set()
        texts = corpus(schemas, args.seed, exclude, args.comments, args.remarks)
        with open(args.out, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(text + "\n" for text in islice(texts, args.n_stories))
    elif args.command == "tasks":
        exclude = read_contexts(args.exclude)
        pre_training = corpus(schemas, **CORPUS, exclude=exclude)
        exclude |= contexts_of(islice(pre_training, N_CORPUS))
        sizes = {"train": args.n_train, "valid": args.n_valid, "test": args.n_test}
        write_tasks(args.out, schemas, args.seed, exclude, sizes)
    else:
        args.out.mkdir(parents=True, exist_ok=True)
        stories = cloze(schemas, args.seed)
        rng = Random(args.seed)  # a separate stream: the stories do not depend on their number
        write_cloze(args.out / CLOZE_FILES["valid"], list(islice(stories, args.n_valid)), rng)
        write_cloze(args.out / CLOZE_FILES["test"], list(islice(stories, args.n_test)), rng)


if __name__ == "__main__":
    main()
