"""Write short stories, and facts with questions: a corpus for pre-training and four tasks.

An example of a task is of one of several kinds, which ask for skills of different depth: to know words (of feelings,
and men's and women's names), to tell who did what to whom, to know what a cause leads to, to feel with friends and
against enemies, and to compare two texts in this. No sentence of the corpus judges a story, and no example of a task,
nor its story of four sentences, occurs in it. A simple rule finds the right answer only in a part of the kinds.

    python -m demo.stories tasks --out tasks
    python -m demo.stories corpus --exclude tasks --out corpus.txt

The cloze set of the demo: python -m demo.stories tasks --out tasks && cp tasks/cloze/*.csv demo/data
"""

if __name__ == "__main__":
    import running.starting  # noqa: F401  before what takes time

import argparse
import csv
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from running.command import exit_code

GRAMMAR = Path(__file__).with_name("stories.txt")

# the official names of the Story Cloze Test
CLOZE_FILES = {
    "valid": "cloze_test_val__spring2016 - cloze_test_ALL_val.csv",
    "test": "cloze_test_test__spring2016 - cloze_test_ALL_test.csv",
}
CLOZE_HEADER = "InputStoryid InputSentence1 InputSentence2 InputSentence3 InputSentence4".split()
CLOZE_HEADER += ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding"]

# how many, and the seeds
TASK_SIZES = {"train": 2000, "valid": 400, "test": 1000}
TASK_SEED = 2
CORPUS_SEED = 1
N_DOCUMENTS = 500_000  # of the corpus

# what all documents and tasks have in common
N_STORY = 4  # sentences of a story without its ending
ASKED = "True or false?"
ANSWERS = {True: "True.", False: "False."}

Phrases = dict[str, list[str]]


# --- phrases -> sentences --------------------------------------------------------------------------------------------


def read_grammar(path: Path) -> tuple[Phrases, list[Phrases]]:
    """Return the phrases common to all stories, and those of each topic; the top of the file describes its format."""
    # an indented line continues the one above
    text = re.sub(r"\n +", " ", path.read_text(encoding="utf-8"))

    # lines `key: phrase | phrase`, first the common ones, then those of each topic below its title
    common: Phrases = {}
    topics: list[Phrases] = []
    part = common
    for line in text.splitlines():
        if line.startswith("# "):
            part = {}
            topics.append(part)
        elif line and not line.startswith("%"):
            key, phrases = line.split(": ", 1)
            part[key] = phrases.split(" | ")
    return common, topics


class Teller:
    """The phrases of the grammar and the random numbers that choose among them."""

    def __init__(self, seed: int | str):
        self.rng = Random(seed)
        self.choice = self.rng.choice
        self.phrases, self.topics = read_grammar(GRAMMAR)

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return self.rng.random() < probability

    def phrase(self, key: str) -> str:
        """Return a phrase from a line of the grammar's head."""
        return self.choice(self.phrases[key])


# the pronouns of N, a woman or a man, and of M, who is of the other sex
SHE = {"he": "she", "him": "her", "his": "her", "mhe": "he"}
HE = {"he": "he", "him": "him", "his": "his", "mhe": "she"}


class Cast:
    """Two people of opposite sex, N and M, and a thing: what can be said of them.

    Args:
        words: slot of the grammar -> word: N, M, thing; he, him, his for N; mhe for M.
    """

    def __init__(self, teller: Teller, words: dict[str, str]):
        self.teller = teller
        self.words = words

    @classmethod
    def draw(cls, teller: Teller) -> "Cast":
        """Return random people, the first of either sex with the same probability."""
        she = teller.phrase("she")
        he = teller.phrase("he")
        thing = teller.phrase("thing")
        cast = cls(teller, {"N": she, "M": he, "thing": thing, **SHE})
        return cast if teller.chance(0.5) else cast.exchanged()

    def exchanged(self) -> "Cast":
        """Return the same people in each other's role."""
        pronouns = SHE if self.words["he"] == "he" else HE
        words = self.words | pronouns
        words["N"] = self.words["M"]
        words["M"] = self.words["N"]
        return Cast(self.teller, words)

    def say(self, *phrases: str) -> str:
        """Return one of some phrases as a sentence."""

        def chosen(braces: re.Match) -> str:
            return self.teller.choice(braces[1].split("|")).strip()

        # a phrase, then a choice for each {x | y} of it, then a word for each $slot
        text = self.teller.choice(phrases)
        text = re.sub(r"\{([^{}]*)\}", chosen, text)
        text = re.sub(r"\$(\w+)", lambda slot: self.words[slot[1]], text)
        return text[0].upper() + text[1:]

    def common(self, key: str) -> str:
        """Return a sentence from a line of the grammar's head."""
        return self.say(*self.teller.phrases[key])

    def scene(self) -> str:
        """Return a description."""
        return self.common("scene")

    def gift(self) -> str:
        """Return that $N gave $M a thing."""
        return self.common("give")

    def event(self, is_good: bool) -> str:
        """Return what happens to $N."""
        return self.common("good_event" if is_good else "bad_event")

    def attitude(self, is_friend: bool) -> str:
        """Return what $M is to $N."""
        return self.common("friend" if is_friend else "enemy")

    def feeling(self, is_good: bool, who: str = "$N") -> str:
        """Return how somebody feels."""
        if is_good:
            word, opposite, extreme = "good", "bad", "positive"
        else:
            word, opposite, extreme = "bad", "good", "negative"

        # in one of four forms: "very positive", what is done, "not" with the opposite word, a word
        (form,) = self.teller.rng.choices(["very", "act", "not", "is"], [0.15, 0.2, 0.1, 0.55])
        if form == "very":
            told = f"felt very {extreme}"
        elif form == "act":
            told = self.teller.phrase(f"{word}_act")
        elif form == "not":
            told = f"was not {self.teller.phrase(opposite)}"
        else:
            degree = self.teller.choice(["", "", "so ", "very "])
            told = f"was {degree}{self.teller.phrase(word)}"
        return self.say(f"{who} {told}.")

    def how_felt(self, is_good: bool) -> list[str]:
        """Return the question how $N felt, and an answer."""
        if self.teller.chance(0.5):
            answer = "Very positive." if is_good else "Very negative."
        else:
            answer = self.feeling(is_good)
        return [self.say("How did $N feel?"), answer]


class Story(Cast):
    """A story of these people.

    Args:
        topic: its phrases.
        ends_well: for N.
        is_friend: M of N.
    """

    def __init__(self, cast: Cast, topic: Phrases, ends_well: bool, is_friend: bool):
        super().__init__(cast.teller, cast.words)
        self.topic = topic
        self.ends_well = ends_well
        self.is_friend = is_friend
        self.is_m_glad = ends_well == is_friend  # about the end

    @classmethod
    def draw(cls, teller: Teller, ends_well: bool | None = None) -> "Story":
        """Return a random story; `ends_well`: None: at random."""
        if ends_well is None:
            ends_well = teller.chance(0.5)
        cast = Cast.draw(teller)
        topic = teller.choice(teller.topics)
        is_friend = teller.chance(0.5)
        return cls(cast, topic, ends_well, is_friend)

    def begin(self) -> str:
        return self.say(*self.topic["begin"])

    def cause(self, ends_well: bool) -> str:
        """Return what leads to a good or a bad end; its subject is a pronoun."""
        return self.say(*self.topic["a" if ends_well else "b"])

    def cause_by_name(self, ends_well: bool) -> str:
        """Return the same with the name as its subject."""
        phrases = self.topic["a" if ends_well else "b"]
        return self.say(*(phrase.replace("$he ", "$N ", 1) for phrase in phrases))

    def end(self, ends_well: bool) -> str:
        return self.say(*self.topic["a5" if ends_well else "b5"])

    def context(self, with_attitude: bool = False, with_end: bool = False) -> list[str]:
        """Return four sentences with the cause; what is neither attitude nor end is a description."""
        begin = self.begin()
        second = self.attitude(self.is_friend) if with_attitude else self.scene()
        cause = self.cause(self.ends_well)
        fourth = self.end(self.ends_well) if with_end else self.scene()
        return [begin, second, cause, fourth]


# --- the corpus: documents as lists of sentences ---------------------------------------------------------------------


def true_or_false(statement: str, is_true: bool) -> list[str]:
    """Return the question whether a statement is true, and its answer."""
    return [ASKED, statement, ANSWERS[is_true]]


def story_document(teller: Teller) -> list[str]:
    """A story of some of: beginning, attitude, cause, description, end, feeling; then a question or two."""
    t = Story.draw(teller)
    # the story
    told = [t.begin()]
    has_attitude = teller.chance(0.5)
    if has_attitude:
        told.append(t.attitude(t.is_friend))
    told.append(t.cause(t.ends_well))
    if teller.chance(0.6):
        told.append(t.scene())
    if teller.chance(0.75):
        told.append(t.end(t.ends_well))
    if teller.chance(0.3):
        who = teller.choice(["$he", "$N"])
        told.append(t.say(f"{who} went {teller.phrase('walk_to')}."))

    # how one of them felt
    if has_attitude and teller.chance(0.7):
        told.append(t.feeling(t.is_m_glad, teller.choice(["$M", "$mhe"])))
    else:
        told.append(t.feeling(t.ends_well, teller.choice(["$N", "$he"])))

    # the questions
    for _ in range(teller.choice([1, 1, 2])):
        is_true = teller.chance(0.5)
        claimed_end = t.ends_well == is_true
        asked = teller.rng.random()
        # how $N felt, in two ways
        if asked < 0.2:
            told += true_or_false(t.feeling(claimed_end), is_true)
        elif asked < 0.3:
            told += t.how_felt(t.ends_well)
        # how $M felt, which only the attitude tells
        elif asked < 0.55 and has_attitude:
            told += true_or_false(t.feeling(t.is_m_glad == is_true, "$M"), is_true)
        # how it ended, and why
        elif asked < 0.8:
            told += true_or_false(t.end(claimed_end), is_true)
        else:
            told += true_or_false(t.cause_by_name(claimed_end), is_true)
    return told


def one_event(teller: Teller) -> list[str]:
    """What happened to somebody, perhaps how it felt, and a question or two about the feeling."""
    # what happened
    cast = Cast.draw(teller)
    is_good = teller.chance(0.5)
    told = [cast.event(is_good)]
    if teller.chance(0.4):
        told.append(cast.feeling(is_good, teller.choice(["$he", "$he", "$N"])))

    # the questions
    for _ in range(teller.choice([1, 2])):
        is_true = teller.chance(0.5)
        told += true_or_false(cast.feeling(is_good == is_true), is_true)
    return told


def two_events(teller: Teller) -> list[str]:
    """What happened to two people, or how they felt; whether they felt alike; a question or two."""
    # what happened
    first = Cast.draw(teller)
    second = first.exchanged()
    second.words["thing"] = teller.phrase("thing")
    felt = [(first, teller.chance(0.5)), (second, teller.chance(0.5))]
    told = []
    for cast, is_good in felt:
        told.append(cast.event(is_good) if teller.chance(0.7) else cast.feeling(is_good))

    # what follows
    alike = felt[0][1] == felt[1][1]
    then = teller.rng.random()
    if then < 0.4:
        told.append("They felt alike." if alike else "They did not feel alike.")
    elif then < 0.8:
        cast, is_good = teller.choice(felt)
        told.append(cast.feeling(is_good))

    # the questions
    for _ in range(teller.choice([1, 2])):
        cast, is_good = teller.choice(felt)
        is_true = teller.chance(0.5)
        asked = teller.rng.random()
        # "who" has an answer only if they did not feel alike
        if asked < 0.2 and not alike:
            feeling = teller.phrase("good" if is_good else "bad")
            told += [f"Who was {feeling}?", f"{cast.words['N']}."]
        elif asked < 0.5:
            told += cast.how_felt(is_good)
        else:
            told += true_or_false(cast.feeling(is_good == is_true), is_true)
    return told


def other_view(teller: Teller) -> list[str]:
    """What happened to somebody, how a friend or an enemy felt about it; a question about either."""
    cast = Cast.draw(teller)
    is_good = teller.chance(0.5)
    is_friend = teller.chance(0.5)
    is_m_glad = is_good == is_friend

    # what happened, and how $M felt about it
    told = [cast.attitude(is_friend)]
    has_event = teller.chance(0.7)
    if has_event:
        told.append(cast.event(is_good))
    told.append(cast.feeling(is_m_glad, teller.choice(["$M", "$mhe"])))

    # a question; where nothing is told of $N, it follows from the feeling of $M
    if not has_event or teller.chance(0.3):
        return told + cast.how_felt(is_good)
    is_true = teller.chance(0.5)
    return told + true_or_false(cast.feeling(is_m_glad == is_true, "$M"), is_true)


def gift_document(teller: Teller) -> list[str]:
    """Who gave a thing to whom; three questions, or facts that follow from it."""
    cast = Cast.draw(teller)
    told = [cast.gift()]

    # the questions and facts; where roles are exchanged, a statement is false
    for _ in range(3):
        asked = teller.rng.random()
        if asked < 0.15:
            told += ["Who got it?", f"{cast.words['M']}."]
        elif asked < 0.3:
            told += ["Who gave it?", f"{cast.words['N']}."]
        elif asked < 0.35:
            told.append(cast.say("Now $M has the $thing."))
        else:
            is_true = teller.chance(0.5)
            claimed = cast if is_true else cast.exchanged()
            told += true_or_false(claimed.gift(), is_true)
    return told


# -> share of the corpus
DOCUMENTS = {story_document: 0.4, one_event: 0.1, two_events: 0.2, other_view: 0.13, gift_document: 0.17}


def documents(seed: int, exclude: set[tuple[str, ...]]) -> Iterator[str]:
    """Yield documents, infinitely many, that hold no example of `exclude`, sentence after sentence."""
    teller = Teller(seed)
    lengths = {len(example) for example in exclude}
    while True:
        # a document of some sort
        (write,) = teller.rng.choices(list(DOCUMENTS), list(DOCUMENTS.values()))
        told = write(teller)

        # left out if it holds an example; questions do not count
        plain = [sentence for sentence in told if sentence not in (ASKED, *ANSWERS.values())]
        parts = set()
        for n in lengths:
            for i in range(len(plain) - n + 1):
                parts.add(tuple(plain[i : i + n]))
        if not parts & exclude:
            yield " ".join(told)


# --- the tasks: an example is its texts, each a list of sentences ----------------------------------------------------

Texts = list[list[str]]


def cloze_texts(teller: Teller, kind: str, _label: bool) -> Texts:
    """Return four sentences, then a right ending and a wrong one."""
    t = Story.draw(teller)
    if kind == "he or she":
        context = [t.begin(), t.scene(), t.scene(), t.scene()]  # no other pronoun tells which
        walk = teller.phrase("walk_to")
        return [context, [t.say(f"$he went {walk}.")], [t.say(f"$mhe went {walk}.")]]

    # the other kinds: the context holds what the endings follow from
    context = t.context(with_attitude=kind == "attitude", with_end=kind != "cause")
    endings = []
    for is_right in (True, False):
        if kind == "cause":
            ending = t.end(t.ends_well == is_right)
        elif kind == "attitude":
            ending = t.feeling(t.is_m_glad == is_right, "$M")
        else:
            ending = t.feeling(t.ends_well == is_right, "$he")
        endings.append([ending])
    return [context, *endings]


def classification_texts(teller: Teller, kind: str, is_well: bool) -> Texts:
    """Return a text that ends with the question how somebody felt."""
    t = Story.draw(teller, is_well)
    asked = "$N"
    if kind == "word":
        told = [t.begin(), t.scene(), t.feeling(is_well, "$he")]  # the feeling itself
    elif kind == "cause":
        told = t.context()  # what it follows from
    elif kind == "friend":
        event = t.event(is_well == t.is_friend)
        told = [t.attitude(t.is_friend), event]
        asked = "$M"
    else:
        told = [t.attitude(t.is_friend), t.feeling(t.is_m_glad, "$M")]  # that of a friend or an enemy
    return [[*told, t.say(f"How did {asked} feel?")]]


# kinds in which the second text always tells a good feeling, so that the first one decides
GLAD = ("glad: event", "glad: cause")


def first_of_glad(t: Story, kind: str) -> list[str]:
    """Return the text that decides."""
    if kind == "glad: event":
        return [t.scene(), t.event(t.ends_well)]
    return [t.begin(), t.cause(t.ends_well)]


def entailment_texts(teller: Teller, kind: str, follows: bool) -> Texts:
    """Return a premise, and a hypothesis that follows from it or contradicts it, after "True or false?"."""
    t = Story.draw(teller, follows if kind in GLAD else None)

    # what is given, and what is claimed
    if kind in GLAD:
        premise = first_of_glad(t, kind)
        hypothesis = t.feeling(True)
    elif kind == "who":
        claimed = t if follows else t.exchanged()
        hypothesis = claimed.gift()
        premise = [t.gift(), t.scene()]
    elif kind == "cause":
        premise = t.context()
        hypothesis = t.end(t.ends_well == follows)
    elif kind == "word":
        event = t.event(t.ends_well)
        premise = [t.scene(), event]
        hypothesis = t.feeling(t.ends_well == follows)
    else:
        event = t.event(t.ends_well)
        hypothesis = t.feeling(t.is_m_glad == follows, "$M")
        premise = [t.attitude(t.is_friend), event]
    return [premise, [ASKED, hypothesis]]


def similarity_texts(teller: Teller, kind: str, same: bool) -> Texts:
    """Return two texts, in either order: the same gift, or people to whom good or bad things happened alike."""
    t = Story.draw(teller, same if kind in GLAD else None)
    other = Story.draw(teller)
    is_good = t.ends_well == same  # for the other one

    # the two texts
    if kind in GLAD:
        texts = [first_of_glad(t, kind), [other.feeling(True)]]
    elif kind == "who":
        again = t if same else t.exchanged()
        texts = [[t.gift()], [again.gift()]]
    elif kind == "word":
        texts = [[t.feeling(t.ends_well)], [other.feeling(is_good)]]
    elif kind == "event":
        texts = [[t.event(t.ends_well)], [other.event(is_good)]]
    else:
        texts = [[t.begin(), t.cause(t.ends_well)], [other.end(is_good)]]
    teller.rng.shuffle(texts)
    return texts


@dataclass(frozen=True)
class MadeTask:
    """A task whose examples are made here."""

    texts: Callable[[Teller, str, bool], Texts]  # of a kind and a label
    kinds: tuple[str, ...]
    columns: tuple[str, ...]  # of the texts in a file; none: a cloze set
    labels: tuple[str, str] = ("no", "yes")


MADE_TASKS = {
    "cloze": MadeTask(cloze_texts, ("he or she", "word", "cause", "attitude"), ()),
    "classification": MadeTask(
        classification_texts, ("word", "cause", "attitude", "friend"), ("text",), ("negative", "positive")
    ),
    "entailment": MadeTask(
        entailment_texts,
        (*GLAD, "word", "who", "cause", "attitude"),
        ("premise", "hypothesis"),
        ("contradiction", "entailment"),
    ),
    "similarity": MadeTask(
        similarity_texts, (*GLAD, "word", "who", "event", "cause"), ("text_a", "text_b"), ("different", "same")
    ),
}

MadeExample = tuple[str, bool, Texts]  # kind, label, texts


def make_examples(name: str, seed: int, sizes: dict[str, int]) -> dict[str, list[MadeExample]]:
    """Return the examples of a task by split, none twice; kinds, and labels in each, occur equally often."""
    task = MADE_TASKS[name]
    teller = Teller(f"{name} {seed}")
    known: set[tuple[str, ...]] = set()
    splits = {}
    for split, n in sizes.items():
        examples = []
        for i in range(n):
            # each kind in turn, and each label when the kinds come round again
            turn, place = divmod(i, len(task.kinds))
            kind = task.kinds[place]
            label = turn % 2 == 1

            # a new one
            texts = task.texts(teller, kind, label)
            while flat(texts) in known:
                texts = task.texts(teller, kind, label)
            known.add(flat(texts))
            examples.append((kind, label, texts))
        teller.rng.shuffle(examples)
        splits[split] = examples
    return splits


def flat(texts: Texts) -> tuple[str, ...]:
    """Return the sentences of some texts in one tuple."""
    return tuple(sentence for text in texts for sentence in text)


# --- files -----------------------------------------------------------------------------------------------------------


def write_tasks(folder: Path) -> None:
    """Write a folder for each task, with a file for each split; a cloze set has no train, but a larger valid."""
    for name, task in MADE_TASKS.items():
        task_folder = folder / name
        task_folder.mkdir(parents=True, exist_ok=True)
        sizes = TASK_SIZES
        if name == "cloze":
            sizes = {"valid": TASK_SIZES["train"] + TASK_SIZES["valid"], "test": TASK_SIZES["test"]}
        ids = Random(TASK_SEED)  # of a cloze set
        for split, examples in make_examples(name, TASK_SEED, sizes).items():
            # the lines of the file
            if name == "cloze":
                path = task_folder / CLOZE_FILES[split]
                lines = [CLOZE_HEADER]
                for _, label, texts in examples:
                    lines.append(cloze_line(label, texts, ids))
            else:
                path = task_folder / f"{split}.csv"
                lines = [[*task.columns, "label"]]
                for _, label, texts in examples:
                    columns = [" ".join(text) for text in texts]
                    lines.append([*columns, task.labels[label]])
            with open(path, "w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(lines)

            # the kind of each example beside it, for tests and analyses
            kinds = "".join(f"{kind}\n" for kind, _, _ in examples)
            (task_folder / f"{split}.kinds").write_text(kinds, encoding="utf-8")


def cloze_line(is_right_first: bool, texts: Texts, ids: Random) -> list[str | int]:
    """Return an example as in the official files: id, four sentences, two endings, the number of the right one."""
    context, (right,), (wrong,) = texts
    story = [f"{ids.getrandbits(64):016x}", *context]
    if is_right_first:
        return [*story, right, wrong, 1]
    return [*story, wrong, right, 2]


def sentences_to_exclude(folder: Path) -> set[tuple[str, ...]]:
    """Return the sentences of each example in folders of tasks, and those of each story of four sentences in it."""
    found: set[tuple[str, ...]] = set()
    for path in sorted(folder.glob("*/*.csv")):
        with open(path, encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                # of a cloze set the story, with any ending
                if line.pop("label", None) is None:
                    story = CLOZE_HEADER[1 : 1 + N_STORY]
                    found.add(tuple(line[column] for column in story))
                    continue

                # of others the sentences of each text, in either order of the texts
                texts = []
                for text in line.values():
                    text = text.removeprefix(f"{ASKED} ")
                    texts.append(re.split(r"(?<=[.?]) ", text))
                found.add(flat(texts))
                found.add(flat(texts[::-1]))
                for text in texts:
                    if len(text) >= N_STORY:
                        found.add(tuple(text[:N_STORY]))
    return found


def write_corpus(path: Path, n_documents: int = N_DOCUMENTS, exclude: Path | None = None) -> None:
    """Write documents, one a line, that hold no example of the tasks in the folder `exclude`."""
    excluded = set() if exclude is None else sentences_to_exclude(exclude)
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for text in islice(documents(CORPUS_SEED, excluded), n_documents):
            file.write(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show_default = argparse.ArgumentDefaultsHelpFormatter

    # to write the corpus
    command = commands.add_parser(
        "corpus", help="documents for pre-training, one a line", formatter_class=show_default, allow_abbrev=False
    )
    command.add_argument("--n_documents", type=int, default=N_DOCUMENTS, help="lines to write")
    command.add_argument("--exclude", type=Path, help="folder of tasks to keep out of the corpus")
    command.add_argument("--out", type=Path, default=Path("corpus.txt"), help="file to write")

    # to write the tasks
    command = commands.add_parser(
        "tasks", help="four tasks, for train.py", formatter_class=show_default, allow_abbrev=False
    )
    command.add_argument("--out", type=Path, default=Path("tasks"), help="folder to write a folder for each task to")
    args = parser.parse_args()

    if args.command == "tasks":
        write_tasks(args.out)
    else:
        write_corpus(args.out, args.n_documents, args.exclude)


if __name__ == "__main__":
    sys.exit(exit_code("stories.py", main, "the files are incomplete"))
