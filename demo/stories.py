"""Write short stories, and facts with questions: a corpus for pre-training and four tasks.

An example of a task is of one of several kinds, which ask for skills of different depth: to know words (of feelings,
and men's and women's names), to tell who did what to whom, to know what a cause leads to, to feel with friends and
against enemies, and to compare two texts in this. No sentence of the corpus judges a story, and no example of a task,
nor its story of four sentences, occurs in it. A simple rule finds the right answer only in a part of the kinds.

    python -m demo.stories tasks --out tasks
    python -m demo.stories corpus --exclude tasks --out corpus.txt

The cloze set of the demo: python -m demo.stories tasks --out tasks && cp tasks/cloze/*.csv demo/data
"""

import argparse
import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

GRAMMAR = Path(__file__).with_name("stories.txt")
CLOZE_FILES = {
    "valid": "cloze_test_val__spring2016 - cloze_test_ALL_val.csv",
    "test": "cloze_test_test__spring2016 - cloze_test_ALL_test.csv",
}
CLOZE_HEADER = "InputStoryid InputSentence1 InputSentence2 InputSentence3 InputSentence4".split()
CLOZE_HEADER += ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding"]
SHE = {"he": "she", "him": "her", "his": "her", "mhe": "he"}
HE = {"he": "he", "him": "him", "his": "his", "mhe": "she"}

People = dict[str, str]  # slot -> word: two people of opposite sex, N and M, their pronouns, and a thing
Phrases = dict[str, list[str]]

N_STORY = 4  # sentences of a story without its ending
ASKED, ANSWERS = "True or false?", {True: "True.", False: "False."}


def read_grammar(path: Path) -> tuple[Phrases, list[Phrases]]:
    """Return the phrases common to all stories, and those of each topic; the top of the file describes its format."""
    lines = re.sub(r"\n +", " ", path.read_text(encoding="utf-8")).splitlines()
    parts: list[Phrases] = [{}]
    for line in lines:
        if line.startswith("# "):
            parts.append({})
        elif line and not line.startswith("%"):
            key, phrases = line.split(": ", 1)
            parts[-1][key] = phrases.split(" | ")
    return parts[0], parts[1:]


class Teller:
    """Draws people and sentences."""

    def __init__(self, seed: int | str, grammar: Path = GRAMMAR):
        self.rng = Random(seed)
        self.phrases, self.topics = read_grammar(grammar)

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return self.rng.random() < probability

    def people(self) -> People:
        """Return two people of opposite sex, the first of either with the same probability."""
        she, he = (self.rng.choice(self.phrases[key]) for key in ("she", "he"))
        people = {"N": she, "M": he, **SHE, "thing": self.thing()}
        return people if self.chance(0.5) else self.exchanged(people)

    def exchanged(self, people: People) -> People:
        """Return the same people in each other's role."""
        return people | {"N": people["M"], "M": people["N"]} | (SHE if people["he"] == "he" else HE)

    def thing(self) -> str:
        return self.rng.choice(self.phrases["thing"])

    def say(self, people: People, *phrases: str) -> str:
        """Return one of some phrases as a sentence."""
        text = self.rng.choice(phrases)
        text = re.sub(r"\{([^{}]*)\}", lambda braces: self.rng.choice(braces[1].split("|")).strip(), text)
        text = re.sub(r"\$(\w+)", lambda slot: people[slot[1]], text)
        return text[0].upper() + text[1:]

    def common(self, people: People, key: str) -> str:
        """Return a sentence from a line of the grammar's head."""
        return self.say(people, *self.phrases[key])

    def event(self, people: People, is_good: bool) -> str:
        """Return what happens to $N."""
        return self.common(people, "good_event" if is_good else "bad_event")

    def attitude(self, people: People, is_friend: bool) -> str:
        """Return a sentence on what $M is to $N."""
        return self.common(people, "friend" if is_friend else "enemy")

    def feeling(self, people: People, is_good: bool, who: str = "$N") -> str:
        """Return how somebody feels."""
        word, opposite, act = ("good", "bad", "good_act") if is_good else ("bad", "good", "bad_act")
        form = self.rng.choices(["very", "act", "not", "is"], [0.15, 0.2, 0.1, 0.55])[0]
        if form == "very":
            return self.say(people, f"{who} felt very {'positive' if is_good else 'negative'}.")
        if form == "act":
            return self.say(people, f"{who} {self.rng.choice(self.phrases[act])}.")
        if form == "not":
            return self.say(people, f"{who} was not {self.rng.choice(self.phrases[opposite])}.")
        degree = self.rng.choice(["", "", "so ", "very "])
        return self.say(people, f"{who} was {degree}{self.rng.choice(self.phrases[word])}.")


@dataclass(frozen=True)
class Story:
    """What a story is about."""

    people: People
    topic: Phrases
    ends_well: bool  # for $N
    is_friend: bool  # $M of $N

    @classmethod
    def draw(cls, teller: Teller, ends_well: bool | None = None) -> "Story":
        """Return a random story; `ends_well`: None: at random."""
        ends_well = teller.chance(0.5) if ends_well is None else ends_well
        return cls(teller.people(), teller.rng.choice(teller.topics), ends_well, teller.chance(0.5))

    @property
    def is_m_glad(self) -> bool:
        """Whether $M is glad about the end."""
        return self.ends_well == self.is_friend

    def begin(self, teller: Teller) -> str:
        return teller.say(self.people, *self.topic["begin"])

    def cause(self, teller: Teller, ends_well: bool, pronoun: bool = True) -> str:
        """Return what leads to a good or a bad end; its subject is a pronoun or the name."""
        phrases = self.topic["a" if ends_well else "b"]
        return teller.say(self.people, *(phrases if pronoun else [p.replace("$he ", "$N ", 1) for p in phrases]))

    def end(self, teller: Teller, ends_well: bool) -> str:
        return teller.say(self.people, *self.topic["a5" if ends_well else "b5"])

    def context(self, teller: Teller, attitude: bool = False, end: bool = False) -> list[str]:
        """Return four sentences with the cause; a description is second unless `attitude`, and last unless `end`."""
        return [
            self.begin(teller),
            teller.attitude(self.people, self.is_friend) if attitude else teller.common(self.people, "scene"),
            self.cause(teller, self.ends_well),
            self.end(teller, self.ends_well) if end else teller.common(self.people, "scene"),
        ]


# --- the corpus: documents as lists of sentences ---------------------------------------------------------------------


def check(statement: str, is_true: bool) -> list[str]:
    """Return the question whether a statement is true, and its answer."""
    return [ASKED, statement, ANSWERS[is_true]]


def how_felt(teller: Teller, people: People, is_good: bool) -> list[str]:
    """Return the question how $N felt, and an answer."""
    answer = f"Very {'positive' if is_good else 'negative'}." if teller.chance(0.5) else teller.feeling(people, is_good)
    return [teller.say(people, "How did $N feel?"), answer]


def story(teller: Teller) -> list[str]:
    """A story of some of: beginning, attitude, cause, description, end, feeling; then a question or two."""
    t = Story.draw(teller)
    told = [t.begin(teller)]
    has_attitude = teller.chance(0.5)
    if has_attitude:
        told.append(teller.attitude(t.people, t.is_friend))
    told.append(t.cause(teller, t.ends_well))
    if teller.chance(0.6):
        told.append(teller.common(t.people, "scene"))
    if teller.chance(0.75):
        told.append(t.end(teller, t.ends_well))
    if teller.chance(0.3):
        who = teller.rng.choice(["$he", "$N"])
        told.append(teller.say(t.people, f"{who} went {teller.rng.choice(teller.phrases['walk_to'])}."))
    if has_attitude and teller.chance(0.7):
        told.append(teller.feeling(t.people, t.is_m_glad, teller.rng.choice(["$M", "$mhe"])))
    else:
        told.append(teller.feeling(t.people, t.ends_well, teller.rng.choice(["$N", "$he"])))
    for _ in range(teller.rng.choice([1, 1, 2])):
        is_true = teller.chance(0.5)
        asked = teller.rng.random()
        if asked < 0.2:
            told += check(teller.feeling(t.people, t.ends_well == is_true), is_true)
        elif asked < 0.3:
            told += how_felt(teller, t.people, t.ends_well)
        elif asked < 0.55 and has_attitude:
            told += check(teller.feeling(t.people, t.is_m_glad == is_true, "$M"), is_true)
        elif asked < 0.8:
            told += check(t.end(teller, t.ends_well == is_true), is_true)
        else:
            told += check(t.cause(teller, t.ends_well == is_true, pronoun=False), is_true)
    return told


def one_event(teller: Teller) -> list[str]:
    """What happened to somebody, perhaps how it felt, and a question or two about the feeling."""
    people, is_good = teller.people(), teller.chance(0.5)
    told = [teller.event(people, is_good)]
    if teller.chance(0.4):
        told.append(teller.feeling(people, is_good, teller.rng.choice(["$he", "$he", "$N"])))
    for _ in range(teller.rng.choice([1, 2])):
        is_true = teller.chance(0.5)
        told += check(teller.feeling(people, is_good == is_true), is_true)
    return told


def two_events(teller: Teller) -> list[str]:
    """What happened to two people, or how they felt; whether they felt alike; a question or two."""
    first, second = (people := teller.people()), teller.exchanged(people) | {"thing": teller.thing()}
    felt = [(first, teller.chance(0.5)), (second, teller.chance(0.5))]
    told = [teller.event(*of) if teller.chance(0.7) else teller.feeling(*of) for of in felt]
    alike = felt[0][1] == felt[1][1]
    then = teller.rng.random()
    if then < 0.4:
        told.append("They felt alike." if alike else "They did not feel alike.")
    elif then < 0.8:
        told.append(teller.feeling(*teller.rng.choice(felt)))
    for _ in range(teller.rng.choice([1, 2])):
        (who, is_good), is_true = teller.rng.choice(felt), teller.chance(0.5)
        asked = teller.rng.random()
        if asked < 0.2 and not alike:
            told += [f"Who was {teller.rng.choice(teller.phrases['good' if is_good else 'bad'])}?", f"{who['N']}."]
        elif asked < 0.5:
            told += how_felt(teller, who, is_good)
        else:
            told += check(teller.feeling(who, is_good == is_true), is_true)
    return told


def other_view(teller: Teller) -> list[str]:
    """What happened to somebody, how a friend or an enemy felt about it; a question about either."""
    people, is_good, is_friend = teller.people(), teller.chance(0.5), teller.chance(0.5)
    told = [teller.attitude(people, is_friend)]
    has_event = teller.chance(0.7)
    if has_event:
        told.append(teller.event(people, is_good))
    told.append(teller.feeling(people, is_good == is_friend, teller.rng.choice(["$M", "$mhe"])))
    if not has_event or teller.chance(0.3):
        return told + how_felt(teller, people, is_good)
    is_true = teller.chance(0.5)
    return told + check(teller.feeling(people, (is_good == is_friend) == is_true, "$M"), is_true)


def gift(teller: Teller) -> list[str]:
    """Who gave a thing to whom; three questions, or facts that follow from it."""
    people = teller.people()
    told = [teller.common(people, "give")]
    for _ in range(3):
        asked = teller.rng.random()
        if asked < 0.15:
            told += ["Who got it?", f"{people['M']}."]
        elif asked < 0.3:
            told += ["Who gave it?", f"{people['N']}."]
        elif asked < 0.35:
            told.append(teller.say(people, "Now $M has the $thing."))
        else:
            is_true = teller.chance(0.5)
            told += check(teller.common(people if is_true else teller.exchanged(people), "give"), is_true)
    return told


DOCUMENTS = {story: 0.4, one_event: 0.1, two_events: 0.2, other_view: 0.13, gift: 0.17}  # -> share of the corpus


def corpus(seed: int, exclude: set[tuple[str, ...]]) -> Iterator[str]:
    """Yield documents, infinitely many, that hold no example of `exclude`, sentence after sentence."""
    teller, lengths = Teller(seed), {len(example) for example in exclude}
    while True:
        told = teller.rng.choices(list(DOCUMENTS), list(DOCUMENTS.values()))[0](teller)
        plain = [sentence for sentence in told if sentence not in (ASKED, *ANSWERS.values())]
        parts = (tuple(plain[i : i + n]) for n in lengths for i in range(len(plain) - n + 1))
        if not any(part in exclude for part in parts):
            yield " ".join(told)


# --- the tasks: an example is its texts, each a list of sentences ----------------------------------------------------


def cloze(teller: Teller, kind: str, is_right: bool) -> list[list[str]]:
    """Return four sentences, then a right ending and a wrong one; `is_right` is not used."""
    t = Story.draw(teller)
    if kind == "he or she":  # no other pronoun tells which
        context = [t.begin(teller), *(teller.common(t.people, "scene") for _ in range(3))]
        walk = teller.rng.choice(teller.phrases["walk_to"])
        return [context, *([teller.say({"he": t.people[he]}, f"$he went {walk}.")] for he in ("he", "mhe"))]

    def ending(right: bool) -> str:
        if kind == "cause":
            return t.end(teller, t.ends_well == right)
        if kind == "attitude":
            return teller.feeling(t.people, t.is_m_glad == right, "$M")
        return teller.feeling(t.people, t.ends_well == right, "$he")

    context = t.context(teller, attitude=kind == "attitude", end=kind != "cause")
    return [context, [ending(True)], [ending(False)]]


def classification(teller: Teller, kind: str, is_well: bool) -> list[list[str]]:
    """Return a text that ends with the question how somebody felt."""
    t = Story.draw(teller, is_well)
    if kind == "word":
        told = [t.begin(teller), teller.common(t.people, "scene"), teller.feeling(t.people, is_well, "$he")]
    elif kind == "cause":
        told = t.context(teller)
    elif kind == "friend":
        event = teller.event(t.people, is_well == t.is_friend)
        told = [teller.attitude(t.people, t.is_friend), event]
    else:
        told = [teller.attitude(t.people, t.is_friend), teller.feeling(t.people, t.is_m_glad, "$M")]
    return [[*told, teller.say(t.people, f"How did {'$M' if kind == 'friend' else '$N'} feel?")]]


# kinds in which the second text always tells a good feeling, so that the first one decides -> that text
GLAD: dict[str, Callable[[Teller, Story], list[str]]] = {
    "glad: event": lambda teller, t: [teller.common(t.people, "scene"), teller.event(t.people, t.ends_well)],
    "glad: cause": lambda teller, t: [t.begin(teller), t.cause(teller, t.ends_well)],
}


def entailment(teller: Teller, kind: str, follows: bool) -> list[list[str]]:
    """Return a premise, and a hypothesis that follows from it or contradicts it, after "True or false?"."""
    t = Story.draw(teller, follows if kind in GLAD else None)
    if kind in GLAD:
        return [GLAD[kind](teller, t), [ASKED, teller.feeling(t.people, True)]]
    if kind == "who":
        hypothesis = teller.common(t.people if follows else teller.exchanged(t.people), "give")
        return [[teller.common(t.people, "give"), teller.common(t.people, "scene")], [ASKED, hypothesis]]
    if kind == "cause":
        return [t.context(teller), [ASKED, t.end(teller, t.ends_well == follows)]]
    event = teller.event(t.people, t.ends_well)
    if kind == "word":
        return [[teller.common(t.people, "scene"), event], [ASKED, teller.feeling(t.people, t.ends_well == follows)]]
    feeling = teller.feeling(t.people, t.is_m_glad == follows, "$M")
    return [[teller.attitude(t.people, t.is_friend), event], [ASKED, feeling]]


def similarity(teller: Teller, kind: str, same: bool) -> list[list[str]]:
    """Return two texts, in either order: the same gift, or people to whom good or bad things happened alike."""
    t, other = Story.draw(teller, same if kind in GLAD else None), Story.draw(teller)
    is_good = t.ends_well == same  # for the other one
    if kind in GLAD:
        texts = [GLAD[kind](teller, t), [teller.feeling(other.people, True)]]
    elif kind == "who":
        again = t.people if same else teller.exchanged(t.people)
        texts = [[teller.common(t.people, "give")], [teller.common(again, "give")]]
    elif kind == "word":
        texts = [[teller.feeling(t.people, t.ends_well)], [teller.feeling(other.people, is_good)]]
    elif kind == "event":
        texts = [[teller.event(t.people, t.ends_well)], [teller.event(other.people, is_good)]]
    else:
        texts = [[t.begin(teller), t.cause(teller, t.ends_well)], [other.end(teller, is_good)]]
    teller.rng.shuffle(texts)
    return texts


@dataclass(frozen=True)
class Task:
    make: Callable[[Teller, str, bool], list[list[str]]]
    kinds: tuple[str, ...]
    columns: tuple[str, ...]  # of the texts in a file; none: a cloze set
    labels: tuple[str, str] = ("no", "yes")


TASKS = {
    "cloze": Task(cloze, ("he or she", "word", "cause", "attitude"), ()),
    "classification": Task(
        classification, ("word", "cause", "attitude", "friend"), ("text",), ("negative", "positive")
    ),
    "entailment": Task(
        entailment,
        (*GLAD, "word", "who", "cause", "attitude"),
        ("premise", "hypothesis"),
        ("contradiction", "entailment"),
    ),
    "similarity": Task(
        similarity, (*GLAD, "word", "who", "event", "cause"), ("text_a", "text_b"), ("different", "same")
    ),
}

Examples = list[tuple[str, bool, list[list[str]]]]  # kind, label, texts


def examples(name: str, seed: int, sizes: dict[str, int]) -> dict[str, Examples]:
    """Return the examples of a task by split, none twice; kinds, and labels in each, occur equally often."""
    task, teller, told = TASKS[name], Teller(f"{name} {seed}"), set()

    def new(kind: str, label: bool) -> list[list[str]]:
        while True:
            texts = task.make(teller, kind, label)
            if (key := flat(texts)) not in told:
                told.add(key)
                return texts

    splits = {}
    for split, n in sizes.items():
        n_kinds = len(task.kinds)
        deck = [(task.kinds[i % n_kinds], i // n_kinds % 2 == 1) for i in range(n)]
        splits[split] = [(kind, label, new(kind, label)) for kind, label in deck]
        teller.rng.shuffle(splits[split])
    return splits


def flat(texts: Iterable[list[str]]) -> tuple[str, ...]:
    """Return the sentences of some texts in one tuple."""
    return tuple(sentence for text in texts for sentence in text)


def write_examples(folder: Path, split: str, task: Task, rows: Examples, rng: Random) -> None:
    """Write a split of one's own data, or of a cloze set; and its kinds, a line each."""
    header, lines = [*task.columns, "label"], []
    for _, label, texts in rows:
        if task.columns:
            lines.append([*(" ".join(text) for text in texts), task.labels[label]])
        else:
            context, *endings = (text if i == 0 else text[0] for i, text in enumerate(texts))
            lines.append([f"{rng.getrandbits(64):016x}", *context, *(endings if label else endings[::-1]), 2 - label])
    name = f"{split}.csv" if task.columns else CLOZE_FILES[split]
    with open(folder / name, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header if task.columns else CLOZE_HEADER, *lines])
    (folder / f"{split}.kinds").write_text("".join(f"{kind}\n" for kind, *_ in rows), encoding="utf-8")


def write_tasks(folder: Path, seed: int, sizes: dict[str, int]) -> None:
    """Write a folder for each task, with a file for each split; a cloze set has no train, but a larger valid."""
    for name, task in TASKS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        own = sizes if task.columns else {"valid": sizes["train"] + sizes["valid"], "test": sizes["test"]}
        rng = Random(seed)
        for split, rows in examples(name, seed, own).items():
            write_examples(folder / name, split, task, rows, rng)


def read_examples(folder: Path) -> set[tuple[str, ...]]:
    """Return the sentences of each example in folders of tasks, and those of each story of four sentences in it."""
    found = set()
    for path in sorted(folder.glob("*/*.csv")):
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if "label" in row:
                    texts = [text.removeprefix(f"{ASKED} ") for column, text in row.items() if column != "label"]
                    texts = [re.split(r"(?<=[.?]) ", text) for text in texts]
                    found.update((flat(texts), flat(texts[::-1])))
                else:
                    texts = [[row[column] for column in CLOZE_HEADER[1:5]]]  # with any ending
                found.update(tuple(text[:N_STORY]) for text in texts if len(text) >= N_STORY)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    show_default = argparse.ArgumentDefaultsHelpFormatter

    command = commands.add_parser("corpus", help="documents for pre-training, one a line", formatter_class=show_default)
    command.add_argument("--n_documents", type=int, default=500_000, help="lines to write")
    command.add_argument("--seed", type=int, default=1, help="seed of the documents")
    command.add_argument("--exclude", type=Path, default=None, help="folder of tasks to keep out of the corpus")
    command.add_argument("--out", type=Path, default=Path("corpus.txt"), help="file to write")

    command = commands.add_parser("tasks", help="four tasks, for train.py", formatter_class=show_default)
    command.add_argument("--n_train", type=int, default=2000, help="training examples of each task")
    command.add_argument("--n_valid", type=int, default=400, help="validation examples of each task")
    command.add_argument("--n_test", type=int, default=1000, help="test examples of each task")
    command.add_argument("--seed", type=int, default=2, help="seed of the examples")
    command.add_argument("--out", type=Path, default=Path("tasks"), help="folder to write a folder for each task to")
    args = parser.parse_args()

    if args.command == "tasks":
        write_tasks(args.out, args.seed, {"train": args.n_train, "valid": args.n_valid, "test": args.n_test})
        return
    documents = corpus(args.seed, read_examples(args.exclude) if args.exclude else set())
    with open(args.out, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(text + "\n" for text in islice(documents, args.n_documents))


if __name__ == "__main__":
    main()
