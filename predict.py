"""Predict with a saved run: `python predict.py --desc DESC --input FILE --output FILE`.

Input is a .csv, .tsv or .jsonl file with the fields of the run's form, or with --official a file of its data set.
Without --input it is standard input: a JSON object per line, or for classification a plain text per line. Output is a
JSON object per line, with the label and the probability of every label; to a .csv or .tsv file it is a table of index
and prediction. Labels are those of the official files. An example has its id, if the data has one, in the place of its
index, which counts from 0; with --skip_bad also what is left out counts. A blank line of standard input has a line
without a label; in a file it is no example, as pandas and most readers have it.
"""

if __name__ == "__main__":
    import sys

    sys.path.insert(0, __file__.removesuffix("predict.py"))  # Python does it too, unless PYTHONSAFEPATH is set
    from running.starting import answer_at_once

    answer_at_once("PredictFlags")  # before torch is loaded, which takes seconds

import csv
import io
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from tqdm import tqdm

from formats.examples import Bad, Example
from formats.files import InputError, refuse_folders, refuse_inputs, replacing, text_lines
from formats.own import FIELDS, SUFFIXES, OwnData, json_record, own_example, own_examples, parse_columns
from reading.encoding import MANY_UNKNOWN, READ_AS_ONE
from reading.tasks import LAYOUTS, TASKS
from running.command import exit_code
from running.processes import keep_freed_memory
from running.settings import PredictFlags, parse
from weights import Prediction, SavedRun, open_run

# --- input -----------------------------------------------------------------------------------------------------------


def given_input(settings: PredictFlags) -> str | int:
    """Return the file of the input; for standard input its descriptor."""
    return 0 if settings.input == "-" else settings.input


def read_input(settings: PredictFlags, run: SavedRun) -> Iterator[Example | Bad]:
    """Return the examples of the input. Raises InputError for a file that cannot be read at all."""
    # the fields of the run's form, in columns as named now or for the training; new data may be without ids
    columns = parse_columns(settings.columns or run.record.columns)
    if settings.columns is None:
        columns.pop("id", None)
    own = OwnData(run.record.form, columns, settings.encoding)

    # from standard input, an official file or one of the user's own
    if settings.input == "-":
        return read_standard_input(own)
    path = Path(settings.input)
    if settings.official:
        return read_official(path, run.record.dataset)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} is none of {', '.join(SUFFIXES)}. Convert it; for a file of the data set: --official")
    return own_examples(path.parent, path.name, own, labelled=None)


def read_standard_input(own: OwnData) -> Iterator[Example | Bad]:
    """Yield the example of each line: JSON, or for one text a plain text; one without texts for a blank line."""
    for number, line, why in text_lines(sys.stdin.buffer):
        line = line.rstrip("\r\n")
        where = f"standard input, line {number}"
        if why:
            yield Bad(where, why)
            continue
        if not line.strip():
            yield Example((), None, where)
            continue
        # a plain text, or JSON
        if FIELDS[own.form] == ("text",) and not line.lstrip().startswith("{"):
            yield Example((line,), None, where)
            continue
        yield own_example(json_record(line, where), where, own, labelled=None)


def read_official(path: Path, dataset: str) -> Iterator[Example | Bad]:
    """Return the examples in a file or folder of a data set. Raises InputError for one that it does not have."""
    if dataset not in TASKS:
        raise InputError(f"the run is of {dataset} data, which has no official files. Leave --official out.")
    sources = []
    for layout in (TASKS[dataset], *LAYOUTS.get(dataset, ())):
        # a source with a list is a part of a file
        sources += [source for source in layout.sources() if len(source.files) == 1]

    # a name is such as test.tsv, dev/middle, ../diagnostic/diagnostic.tsv, below one of the folders above the file;
    # it is not that of the file that a link leads to
    whole = Path(os.path.abspath(path))
    for source in sources:
        for folder in whole.parents:
            if os.path.abspath(folder / source.files[0]) == str(whole):
                return source.read(folder)
    names = dict.fromkeys(source.files[0] for source in sources)
    raise InputError(f"{path} is not a file of {dataset}: {', '.join(names)}. Name one of them.")


def good_examples(
    examples: Iterable[Example | Bad], skip_bad: bool, bad: list[str], names: deque[str | int]
) -> Iterator[Example]:
    """Yield the examples, and add the id or the index of each to `names`.

    A line that cannot be read goes into `bad`, or without skip_bad ends it all.
    """
    for i, example in enumerate(examples):
        if isinstance(example, Example):
            names.append(i if example.id is None else example.id)
            yield example
        elif skip_bad:
            bad.append(example.where)
        else:
            raise InputError(f"{example.where}: {example.why} (--skip_bad goes on without such lines)")


# --- output ----------------------------------------------------------------------------------------------------------


def as_json(prediction: Prediction, name: str | int) -> str:
    """Return a prediction as a line of JSON, with the id of its example if that is its name."""
    values = {label: round(p, 6) for label, p in prediction.probabilities.items()}
    fields = {}
    # an example without an id is known by its line
    if isinstance(name, str):
        fields["id"] = name
    fields["label"] = prediction.label or None  # none for a blank line
    fields["probabilities"] = values
    return json.dumps(fields, ensure_ascii=False) + "\n"


def as_row(suffix: str, *fields: int | str) -> str:
    """Return a row of a table: quoted in .csv, not quoted in .tsv."""
    if suffix == ".tsv":
        return "\t".join(map(str, fields)) + "\n"
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow(fields)
    return row.getvalue()


def predict_input(settings: PredictFlags) -> None:
    """Predict the input. Raises InputError for what the user can fix; no output file is written then."""
    keep_freed_memory()
    # the output is no file that is read
    folder = settings.run_folder()
    if settings.output != "-":
        refuse_folders([Path(settings.output)])
        refuse_inputs(Path(settings.output), [given_input(settings), *folder.glob("*")])

    # the run, and the examples that it predicts; they are read as they are needed
    run = open_run(folder)
    bad = []
    names = deque()  # of the examples that are read and not predicted yet
    examples = good_examples(read_input(settings, run), settings.skip_bad, bad, names)

    # where the predictions go
    suffix = Path(settings.output).suffix
    is_table = suffix in (".csv", ".tsv")
    if settings.output == "-":
        output = nullcontext(sys.stdout.buffer)
    else:
        output = replacing(Path(settings.output))

    # a line for each of them
    n_done = 0
    n_tokens = 0
    n_unknown = 0
    with output as file:
        predictions = run.stream(examples, settings.n_batch)
        # on a terminal a bar and answers would share a line
        no_bar = settings.output == "-"
        for prediction in tqdm(predictions, unit=" examples", ncols=80, leave=False, file=sys.stderr, disable=no_bar):
            name = names.popleft()
            if is_table and n_done == 0:
                head = as_row(suffix, "id" if isinstance(name, str) else "index", "prediction")
                file.write(head.encode())
            line = as_row(suffix, name, prediction.label) if is_table else as_json(prediction, name)
            file.write(line.encode())
            n_done += 1
            n_tokens += prediction.n_tokens
            n_unknown += prediction.n_unknown
        if n_done == 0:
            name = "standard input" if settings.input == "-" else settings.input
            raise InputError(f"{name} holds no examples.")
        file.flush()

    # what the user should know
    if n_unknown > MANY_UNKNOWN * n_tokens:
        share = n_unknown / n_tokens
        print(f"predict.py: {share:.2%} of the tokens are not in the vocabulary: {READ_AS_ONE}", file=sys.stderr)
    if bad:
        print(f"predict.py: {len(bad)} lines left out, the first: {bad[0]}; {n_done} predicted", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    settings = parse(PredictFlags, argv)
    return exit_code("predict.py", partial(predict_input, settings), "no output file is written")


if __name__ == "__main__":
    sys.exit(main())
