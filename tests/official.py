"""Files of every data set in its official layout, with its quirks; no text in them is from the real data."""

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

from conftest import HEADER

from reading.tasks import ROCSTORIES_TEST, ROCSTORIES_VALID

N = 24  # good lines of each file, and more where it has quirks
QUIRKS = (
    '"the cat was in',  # a quote that never closes
    'a red ""mat"" and an" hat',
    "NA",
    "None",
    "null",
    "nan",
    " the hat was red ",  # white space at both ends
    '"',
    "zoë’s café — n° 5 \\t",
    "",
)
Example = tuple[tuple[str, ...], str | None]  # texts and label


class File:
    """The lines of an official file, and what a reader must find there."""

    def __init__(self, path: Path, header: str | None = None, end: str = "\n", bom: bool = False):
        self.path, self.end, self.bom = path, end, bom
        self.lines: list[str | bytes] = [] if header is None else [header]
        self.examples: list[Example] = []
        self.bad: list[str] = []  # file and line of those that cannot be read

    def add(self, line: str, texts: tuple[str, ...], label: str | None = None) -> None:
        self.lines.append(line)
        self.examples.append((texts, label))

    def add_bad(self, line: str | bytes, n_texts: int = 0) -> None:
        """Add a line that cannot be read; n_texts is more than 0 where predictions are numbered by line."""
        self.lines.append(line)
        self.bad.append(f"{self.path.name}, line {len(self.lines)}")
        if n_texts:
            self.examples.append((("",) * n_texts, None))

    def write(self) -> "File":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = b"".join((x if isinstance(x, bytes) else x.encode()) + self.end.encode() for x in self.lines)
        self.path.write_bytes(b"\xef\xbb\xbf" * self.bom + content)
        return self


Files = dict[str, list[File]]  # train, valid, test -> a file for each source of the record


def tail(path: Path) -> str:
    """Return the last two names of a path: a seed that is the same wherever the files are written."""
    return "/".join(path.parts[-2:])


def sentences(seed: object, n: int) -> list[str]:
    rng = random.Random(str(seed))
    return [" ".join(rng.choices("the a cat red hat mat was in and an".split(), k=rng.randint(2, 5))) for _ in range(n)]


def texts(seed: object) -> list[str]:
    return [*QUIRKS, *sentences(seed, N - len(QUIRKS))]


def pairs(seed: object) -> list[tuple[str, str]]:
    """Return pairs in which each quirk is once the first text and once the second, the one that may end the line."""
    return [*zip(texts(seed), sentences((seed, "b"), N), strict=True), *zip(sentences(seed, N), QUIRKS, strict=False)]


def classification(path: Path, line: str, labels: tuple[str, ...] = ("0", "1"), **more) -> File:
    """Return a file of lines as `line` has them, with the fields i, text and label."""
    file = File(path, **more)
    for i, text in enumerate(texts(tail(path))):
        label = labels[i % len(labels)] if "{label}" in line else None
        file.add(line.format(i=i, text=text, label=label), (text,), label)
    return file


def of_pairs(path: Path, line: str, labels: tuple[str, ...] = ("0", "1"), **more) -> File:
    """Return a file of lines as `line` has them, with the fields i, a, b and label."""
    file = File(path, **more)
    for i, (a, b) in enumerate(pairs(tail(path))):
        label = labels[i % len(labels)] if "{label}" in line else None
        file.add(line.format(i=i, a=a, b=b, label=label), (a, b), label)
    return file


def finish(files: Files) -> Files:
    for file in (file for split in files.values() for file in split):
        file.write()
    return files


# --- GLUE ------------------------------------------------------------------------------------------------------------


def cola(root: Path) -> Files:
    folder = root / "CoLA"
    files = {
        "train": [classification(folder / "train.tsv", "ab12\t{label}\t*\t{text}")],
        "valid": [classification(folder / "dev.tsv", "ab12\t{label}\t\t{text}", bom=True)],
        "test": [classification(folder / "test.tsv", "{i}\t{text}", header="index\tsentence", end="\r\n")],
    }
    (train,), (valid,), (test,) = files.values()
    train.add_bad("ab12\t1")
    train.add_bad("ab12\t2\t\tthe cat")  # no such label
    train.add_bad(b"ab12\t1\t\tthe caf\xe9")
    valid.lines.insert(0, "ab12")  # the first line of a file without header
    valid.bad.append("dev.tsv, line 1")
    test.add_bad(f"{N}", n_texts=1)
    test.add(f"{N + 1}\tthe cat", ("the cat",))
    return finish(files)


def sst2(root: Path) -> Files:
    folder, header = root / "SST-2", "sentence\tlabel"
    files = {
        "train": [classification(folder / "train.tsv", "{text} \t{label}", header=header, bom=True)],
        "valid": [classification(folder / "dev.tsv", "{text} \t{label}", header=header)],
        "test": [classification(folder / "test.tsv", "{i}\t{text} ", header="index\tsentence")],
    }
    for (file,) in files.values():
        file.examples = [((text + " ",), label) for (text,), label in file.examples]
    files["train"][0].add_bad("the cat\t")
    files["valid"][0].add_bad("the cat")
    return finish(files)


MRPC_HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"


def mrpc(root: Path) -> Files:
    folder, line = root / "MRPC", "{label}\t7{i}\t8{i}\t{a}\t{b}"
    header = MRPC_HEADER.replace("Quality", "index")
    files = {
        "train": [of_pairs(folder / "train.tsv", line, header=MRPC_HEADER, bom=True)],
        "valid": [of_pairs(folder / "dev.tsv", line, header=MRPC_HEADER)],
        "test": [of_pairs(folder / "test.tsv", "{i}\t7{i}\t8{i}\t{a}\t{b}", header=header)],
    }
    files["train"][0].add_bad("1\t7\t8\tthe cat")
    files["test"][0].add_bad("34\t7\t8", n_texts=2)
    return finish(files)


def mrpc_of_microsoft(root: Path, with_ids: bool = True) -> Files:
    """Microsoft's two files; with_ids: and the list of the pairs of dev, here every third."""
    folder, more = root / "MRPC", {"header": MRPC_HEADER, "end": "\r\n", "bom": True}
    line = "{label}\t7{i}\t8{i}\t{a}\t{b}"
    both = of_pairs(folder / "msr_paraphrase_train.txt", line, labels=("1", "1", "0", "0"), **more)
    for i in range(34, 70):
        both.add(f"{i % 2}\t7{i}\t8{i}\tthe cat {i}\tthe hat", (f"the cat {i}", "the hat"), str(i % 2))
    both.add_bad("1\t7\t8\tthe cat")
    files = {"train": [both], "test": [of_pairs(folder / "msr_paraphrase_test.txt", line, **more)]}
    finish(files)
    if with_ids:
        valid = File(both.path)
        valid.examples, valid.bad = both.examples[::3], both.bad
        ids = [f"7{i}\t8{i}\n" for i in range(0, 70, 3)]
        # ids of two different pairs are no pair
        (folder / "mrpc_dev_ids.tsv").write_text("".join([*ids, "71\t82\n"]))
        both.examples = [example for i, example in enumerate(both.examples) if i % 3]
        files["valid"] = [valid]
    return files


def stsb(root: Path) -> Files:
    folder, line = root / "STS-B", "{i}\tnews\tfile\t2015\t0{i}\tnone\tnone\t{a}\t{b}"
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
    scores, with_score = ("5.000", "3.600", "0.000", "2.5", "4"), {"header": f"{header}\tscore"}
    files = {
        "train": [of_pairs(folder / "train.tsv", line + "\t{label}", scores, **with_score)],
        "valid": [of_pairs(folder / "dev.tsv", line + "\t{label}", scores, **with_score)],
        "test": [of_pairs(folder / "test.tsv", line, header=header)],
    }
    files["train"][0].add_bad("1\tnews\tfile\t2015\t01\tnone\tnone\tthe cat\tthe hat\t")
    files["train"][0].add_bad("2\tnews\tfile\t2015\t01\tnone\tnone\tthe cat\tthe hat\tn/a")
    files["valid"][0].add_bad("1\tnews\tfile\t2015\t01\tnone\tnone\tthe cat\tthe hat")
    return finish(files)


def qqp(root: Path) -> Files:
    folder, header = root / "QQP", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    line = "{i}\t7{i}\t8{i}\t{a}\t{b}\t{label}"
    files = {
        "train": [of_pairs(folder / "train.tsv", line, header=header)],
        "valid": [of_pairs(folder / "dev.tsv", line, header=header)],
        "test": [of_pairs(folder / "test.tsv", "{i}\t{a}\t{b}", header="id\tquestion1\tquestion2")],
    }
    train, test = files["train"][0], files["test"][0]
    train.add_bad("90\t791\t891\tis the cat")  # a newline in a question
    train.add_bad(" in the hat?\tis the hat red?\t1")
    train.add("91\t792\t892\ta cat\ta hat\t1", ("a cat", "a hat"), "1")
    test.add_bad("90\tis the cat in", n_texts=2)
    test.add_bad(b"91\tis the caf\xe9 red?\ta hat", n_texts=2)
    return finish(files)


MNLI = ("entailment", "neutral", "contradiction")


def mnli(root: Path, with_ax: bool = True) -> Files:
    folder = root / "MNLI"
    header = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse"
    header += "\tsentence2_parse\tsentence1\tsentence2"
    line = "{i}\t5{i}\t5{i}e\ttalk\t( a )\t( b )\t(ROOT a)\t(ROOT b)\t{a}\t{b}"
    # what single annotators said is in the column where train has the label
    train = {"line": line + "\tneutral\t{label}", "header": header + "\tlabel1\tgold_label"}
    dev = {"line": line + "\tneutral" * 5 + "\t{label}", "header": f"{header}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5"}
    dev["header"] += "\tgold_label"
    files = {
        "train": [of_pairs(folder / "train.tsv", labels=MNLI, **train)],
        "valid": [of_pairs(folder / f"dev_{part}.tsv", labels=MNLI, **dev) for part in ("matched", "mismatched")],
        "test": [of_pairs(folder / f"test_{part}.tsv", line, header=header) for part in ("matched", "mismatched")],
    }
    if with_ax:
        ax = of_pairs(root / "diagnostic/diagnostic.tsv", "{i}\t{a}\t{b}", header="index\tsentence1\tsentence2")
        ax.add("34\tthe cat\tthe hat", ("the cat", "the hat"))
        files["test"].append(ax)
    files["train"][0].add_bad("9\t5\t5e\ttalk\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tthe cat\tthe hat\tneutral")
    files["test"][1].add_bad("34\t5", n_texts=2)
    return finish(files)


def _glue_pairs(folder: Path, header: str, labels: tuple[str, str], end: str = "\n") -> Files:
    line, labelled = "{i}\t{a}\t{b}", {"labels": labels, "header": header + "\tlabel", "end": end}
    files = {
        "train": [of_pairs(folder / "train.tsv", line + "\t{label}", **labelled)],
        "valid": [of_pairs(folder / "dev.tsv", line + "\t{label}", **labelled)],
        "test": [of_pairs(folder / "test.tsv", line, header=header, end=end)],
    }
    files["train"][0].add_bad("90\tthe cat\tthe hat")
    files["valid"][0].add_bad("90\tthe cat\tthe hat\tperhaps")
    files["test"][0].add_bad("34\tthe cat", n_texts=2)
    return finish(files)


def qnli(root: Path) -> Files:
    return _glue_pairs(root / "QNLI", "index\tquestion\tsentence", ("entailment", "not_entailment"))


def rte(root: Path) -> Files:
    return _glue_pairs(root / "RTE", "index\tsentence1\tsentence2", ("not_entailment", "entailment"), end="\r\n")


def wnli(root: Path) -> Files:
    return _glue_pairs(root / "WNLI", "index\tsentence1\tsentence2", ("0", "1"))


# --- the others ------------------------------------------------------------------------------------------------------


def snli(root: Path) -> Files:
    files = {}
    for split, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
        file = File(root / f"snli_1.0/snli_1.0_{name}.jsonl")
        for i, (a, b) in enumerate(pairs(tail(file.path))):
            label = MNLI[i % 3]
            fields = {"annotator_labels": ["neutral"], "captionID": f"{i}.jpg#4", "gold_label": label}
            fields |= {"pairID": f"{i}.jpg#4r1n", "sentence1": a, "sentence1_binary_parse": "( a )"}
            line = json.dumps(fields | {"sentence2": b + "\n\u2028", "sentence2_parse": "(ROOT b)"}, ensure_ascii=i % 2)
            file.add(line, (a, b + "\n\u2028"), label)
            if i % 10 == 3:
                file.add_bad(json.dumps(fields | {"gold_label": "-", "sentence2": b}))
        file.add_bad('{"gold_label": "neutral", "sentence1": "the cat"}')
        file.add_bad('{"gold_label": "neutral", "sentence1": "the cat", "sente')
        files[split] = [file]
    return finish(files)


def scitail(root: Path) -> Files:
    files = {}
    for split, name in (("train", "train"), ("valid", "dev"), ("test", "test")):
        path = root / f"tsv_format/scitail_1.0_{name}.tsv"
        file = of_pairs(path, "{a}\t{b}\t{label}", ("entails", "neutral"), bom=split == "valid")
        file.add_bad("the cat\tthe hat")
        file.add_bad("the cat\tthe hat\tentailment")
        files[split] = [file]
    return finish(files)


def race(root: Path) -> Files:
    """Write 8 articles with 3 questions for each split and level, in files 1.txt to 12.txt."""
    return {
        split: [_race_level(root / "RACE" / name / level) for level in ("middle", "high")]
        for split, name in (("train", "train"), ("valid", "dev"), ("test", "test"))
    }


def _race_level(folder: Path) -> File:
    folder.mkdir(parents=True)
    found, by_name = File(folder), {}
    for i in (1, 2, 3, 9, 10, 11, 12, 20):
        article = f'  the cat was in hat {i} .\n\nit said "no" .\n' + " ".join(sentences((tail(folder), i), 12)) + " "
        questions = [f"the cat was _ hat {i} .", "who was it?", "  which is NOT red? "]
        options = [sentences((tail(folder), i, k), 3) + [QUIRKS[(i + k) % 9]] for k in range(3)]
        answers = ["ABCD"[(i + k) % 4] for k in range(3)]
        by_name[f"{i}.txt"] = {"answers": answers, "options": options, "questions": questions, "article": article}
        by_name[f"{i}.txt"]["id"] = f"{folder.name}{i}.txt"
    by_name["11.txt"]["answers"][1] = "E"
    by_name["20.txt"]["options"][0].pop()
    for name in ("1.txt", "10.txt", "11.txt", "12.txt", "2.txt", "20.txt", "3.txt", "9.txt"):  # in the order of names
        value = by_name[name]
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8", newline="\n")
        for k, (question, options, answer) in enumerate(
            zip(value["questions"], value["options"], value["answers"], strict=True)
        ):
            if answer == "E" or len(options) == 3:
                found.bad.append(f"{name}, question {k + 1}")
            else:
                found.examples.append(((value["article"], question, *options), str("ABCD".index(answer) + 1)))
    (folder / "91.txt").write_text('{"answers": ["A"], "options": ')
    (folder / "92.txt").write_text('{"answers": ["A"], "options": [["a", "b", "c", "d"]], "article": "the cat"}')
    (folder / "notes.md").write_text("no article")
    found.bad += ["91.txt", "92.txt"]
    return found


def _cloze(path: Path, n: int, labelled: bool = True, end: str = "\r\n") -> File:
    """Return a file of stories: quoted where it has to be, with quotes, commas and newlines in the texts."""
    file = File(path, HEADER if labelled else HEADER.rsplit(",", 1)[0], end=end)
    rng = random.Random(path.name)
    for i in range(n):
        story, endings = [text + "." for text in sentences((path.name, i), 4)], sentences((path.name, i, "end"), 2)
        if i < 3:
            story[i], endings[1] = ('"No," said the cat.', "NA", "It was\nred, and.")[i], ("null", '"', "a, b")[i]
        label = str(rng.randint(1, 2)) if labelled else None
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow([f"id{i}", *story, *endings, *[label] * labelled])
        file.add(line.getvalue(), (" ".join(story), *endings), label)
    return file


def rocstories(root: Path) -> Files:
    folder = root / "rocstories"
    return finish({"train": [_cloze(folder / ROCSTORIES_VALID, 36)], "test": [_cloze(folder / ROCSTORIES_TEST, N)]})


def rocstories_2018(root: Path) -> Files:
    folder = root / "rocstories"
    train = "cloze_test_val__winter2018-cloze_test_ALL_val - 1 - 1.csv"
    test = "cloze_test_test__winter2018-cloze_test_ALL_test - 1.csv"
    stories = {"train": [_cloze(folder / train, 36, end="\n")]}
    return finish(stories | {"test": [_cloze(folder / test, N, labelled=False, end="\n")]})


Writers = dict[str, Callable[[Path], Files]]
GLUE: Writers = {writer.__name__: writer for writer in (cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli)}
OTHERS: Writers = {writer.__name__: writer for writer in (snli, scitail, race, rocstories, rocstories_2018)}
