"""Predict with a saved run: `python predict.py --desc DESC --input FILE --output FILE`.

Input is a .csv, .tsv or .jsonl file with the fields of the run's form, or with --official a file of its data set.
Without --input it is standard input: a JSON object per line, or for classification a plain text per line. Output is a
JSON object per line, with the label and the probability of every label; to a .tsv file it is `index<TAB>prediction`.
Labels are those of the official files.
"""

if __name__ == "__main__":
    import running.starting  # noqa: F401  before what takes time

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from formats.examples import (
    CHOICE_FORMS,
    FIELDS,
    SUFFIXES,
    Bad,
    Example,
    check_own,
    json_example,
    own_examples,
    parse_columns,
)
from formats.files import InputError, refuse_folders, refuse_inputs, replacing
from reading.tasks import LAYOUTS, TASKS
from running.command import exit_code
from running.processes import keep_freed_memory
from running.settings import COUNT, Flags, columns_of_fields, parse, setting
from weights import Prediction, SavedRun, open_run


@dataclass(frozen=True, kw_only=True)
class PredictFlags(Flags):
    """The flags."""

    desc: str = setting("rocstories", "name of the run, as given to train.py")
    save_dir: str = setting("save/", "folder that holds the run's folder")
    input: str = setting("-", "file of examples; -: standard input")
    official: bool = setting(False, "--input is a file of the run's data set, or RACE/test/high and the like")
    output: str = setting("-", "file to write, as a table if it ends in .tsv, else as JSON lines; -: standard output")
    columns: str | None = setting(
        None, "your column names, such as text=review; default: those of the run", columns_of_fields
    )
    n_batch: int = setting(32, "examples computed at a time; no effect on the labels", COUNT)
    skip_bad: bool = setting(False, "leave out lines that cannot be read, and count them")


# --- input -----------------------------------------------------------------------------------------------------------


def given_input(settings: PredictFlags) -> str | int:
    """Return the file of the input; for standard input its descriptor."""
    return 0 if settings.input == "-" else settings.input


def read_input(settings: PredictFlags, run: SavedRun) -> Iterator[Example | Bad]:
    """Return the examples of the input. Raises InputError for a file that cannot be read at all."""
    # the fields of the run's form, in columns as named now or for the training
    form = run.record.form
    columns = parse_columns(settings.columns or run.record.columns)

    if settings.input == "-":
        return read_standard_input(form, columns)
    path = Path(settings.input)
    if settings.official:
        return read_official(path, run.record.dataset)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} is none of {', '.join(SUFFIXES)}. Convert it; for a file of the data set: --official")
    return own_examples(path.parent, path.name, form, columns, labelled=False)


def read_standard_input(form: str, columns: dict[str, str]) -> Iterator[Example | Bad]:
    """Yield the example of each line that is not empty: JSON, or for classification a plain text."""
    names = tuple(columns.get(name, name) for name in FIELDS[form])
    choices = None
    if form in CHOICE_FORMS:
        choices = columns.get("choices", "choices")

    for number, line in enumerate(sys.stdin, 1):
        if not line.strip():
            continue
        line = line.rstrip("\n")
        where = f"standard input, line {number}"
        if form == "classification" and not line.lstrip().startswith("{"):
            yield Example((line,), None, where)
        else:
            yield check_own(json_example(line, where, names, None, choices), form, labelled=False)


def read_official(path: Path, dataset: str) -> Iterator[Example | Bad]:
    """Return the examples in a file or folder of a data set. Raises InputError for one that it does not have."""
    if dataset not in TASKS:
        raise InputError(f"the run is of {dataset} data, which has no official files. Leave --official out.")
    sources = []
    for layout in (TASKS[dataset], *LAYOUTS.get(dataset, ())):
        sources += layout.sources()

    # a name is such as test.tsv, dev/middle, ../diagnostic/diagnostic.tsv, below one of the folders above the file
    whole = path.resolve()
    for source in sources:
        for folder in whole.parents:
            if (folder / source.files[0]).resolve() == whole:
                return source.read(folder)
    names = dict.fromkeys(source.files[0] for source in sources)
    raise InputError(f"{path} is not a file of {dataset}: {', '.join(names)}. Name one of them.")


def good_texts(examples: Iterable[Example | Bad], skip_bad: bool, bad: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield the texts of the examples. A line that cannot be read goes into `bad`, or without skip_bad ends it all."""
    for example in examples:
        if isinstance(example, Example):
            yield example.texts
        elif skip_bad:
            bad.append(example.where)
        else:
            raise InputError(f"{example.where}: {example.why} (--skip_bad goes on without such lines)")


# --- output ----------------------------------------------------------------------------------------------------------


def as_json(prediction: Prediction) -> str:
    """Return a prediction as a line of JSON."""
    values = {label: round(p, 6) for label, p in prediction.probabilities.items()}
    return json.dumps({"label": prediction.label, "probabilities": values}, ensure_ascii=False) + "\n"


def predict_input(settings: PredictFlags) -> None:
    """Predict the input. Raises InputError for what the user can fix; no output file is written then."""
    # the run, and the texts that it predicts; they are read as they are needed
    keep_freed_memory()
    folder = Path(settings.save_dir) / settings.desc
    if settings.output != "-":
        refuse_folders([Path(settings.output)])
        refuse_inputs(Path(settings.output), [given_input(settings), *folder.glob("*")])
    run = open_run(folder)
    bad = []
    texts = good_texts(read_input(settings, run), settings.skip_bad, bad)

    # a line for each of them
    n_done = 0
    is_table = settings.output.endswith(".tsv")
    if settings.output == "-":
        output = nullcontext(sys.stdout.buffer)
    else:
        output = replacing(Path(settings.output))
    with output as file:
        if is_table:
            file.write(b"index\tprediction\n")
        predictions = run.stream(texts, settings.n_batch)
        for prediction in tqdm(predictions, unit=" examples", ncols=80, leave=False, file=sys.stderr):
            line = f"{n_done}\t{prediction.label}\n" if is_table else as_json(prediction)
            file.write(line.encode())
            n_done += 1
        if n_done == 0:
            raise InputError(f"{settings.input} holds no examples.")
        file.flush()
    if bad:
        print(f"predict.py: {len(bad)} lines left out, the first: {bad[0]}; {n_done} predicted", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    settings = parse(PredictFlags, "Predict with a saved run.", argv)
    return exit_code("predict.py", partial(predict_input, settings), "no output file is written")


if __name__ == "__main__":
    sys.exit(main())
