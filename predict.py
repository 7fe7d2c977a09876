"""Predict with a saved run: `python predict.py --desc DESC --input FILE --output FILE`.

Input is a .csv, .tsv or .jsonl file with the fields of the run's form, or a file of its data set. Without --input it is
standard input: a JSON object per line, or for classification a plain text per line. Output is a JSON object per line,
with the label and the probability of every label; to a .tsv file it is `index<TAB>prediction`, as from train.py.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from formats.examples import FIELDS, SUFFIXES, Bad, Example, check_own, json_example, own_examples, parse_columns
from formats.files import InputError, replacing
from reading.tasks import TASKS
from running.command import exit_code
from running.processes import keep_freed_memory
from running.settings import COUNT, parse, setting
from weights import Prediction, SavedRun, open_run


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags."""

    desc: str = setting("rocstories", "name of the run, as given to train.py")
    save_dir: str = setting("save/", "folder that holds the run's folder")
    input: str = setting("-", "file of examples; -: standard input")
    output: str = setting("-", "file to write, as a table if it ends in .tsv, else as JSON lines; -: standard output")
    columns: str | None = setting(None, "your column names, such as text=review; default: those of the run")
    n_batch: int = setting(32, "examples computed at a time; no effect on the labels", COUNT)
    skip_bad: bool = setting(False, "leave out lines that cannot be read, and count them")


def read_examples(settings: Settings, run: SavedRun) -> Iterator[Example | Bad]:
    """Yield the examples of the input. Raises InputError for a file that cannot be read at all."""
    form = run.settings["form"]
    columns = parse_columns(settings.columns or run.settings.get("columns"))
    if settings.input == "-":
        return (read_line(line, i, form, columns) for i, line in enumerate(sys.stdin, 1) if line.strip())
    path = Path(settings.input)
    task = TASKS.get(run.settings["dataset"])
    for source in task.test + task.valid if task else ():
        if Path(source.files[0]).name == path.name:  # a file of the data set the run was trained on
            return source.read(path.parents[len(Path(source.files[0]).parts) - 1])
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"{path} is neither {', '.join(SUFFIXES)} nor a file of {run.settings['dataset']}. Convert it."
        )
    return own_examples(path.parent, path.name, form, columns, labelled=False)


def read_line(line: str, number: int, form: str, columns: dict[str, str]) -> Example | Bad:
    """Return the example in a line of standard input."""
    where, line = f"standard input, line {number}", line.rstrip("\n")
    texts = tuple(columns.get(name, name) for name in FIELDS[form])
    if form == "classification" and not line.lstrip().startswith("{"):
        return Example((line,), None, where)
    choices = columns.get("choices", "choices") if form in ("multiple_choice", "reading") else None
    return check_own(json_example(line, where, texts, None, choices), form, labelled=False)


def as_text(i: int, prediction: Prediction, is_table: bool) -> str:
    """Return a line of the output."""
    if is_table:
        return f"{i}\t{prediction.label}\n"
    values = {label: round(p, 6) for label, p in prediction.probabilities.items()}
    return json.dumps({"label": prediction.label, "probabilities": values}, ensure_ascii=False) + "\n"


def run(settings: Settings) -> None:
    """Predict the input. Raises InputError for what the user can fix; no output file is written then."""
    keep_freed_memory()
    saved, bad = open_run(Path(settings.save_dir) / settings.desc), []

    def texts() -> Iterator[tuple[str, ...]]:
        for example in read_examples(settings, saved):
            if isinstance(example, Bad):
                if not settings.skip_bad:
                    raise InputError(f"{example.where}: {example.why} (--skip_bad goes on without such lines)")
                bad.append(example.where)
            else:
                yield example.texts

    is_table = settings.output.endswith(".tsv")
    out = nullcontext(sys.stdout.buffer) if settings.output == "-" else replacing(Path(settings.output))
    with out as file, tqdm(unit=" examples", ncols=80, leave=False, file=sys.stderr) as bar:
        file.write(b"index\tprediction\n" * is_table)
        for i, prediction in enumerate(saved.stream(texts(), settings.n_batch)):
            file.write(as_text(i, prediction, is_table).encode())
            bar.update()
            n_done = i + 1
        if not bar.n:
            raise InputError(f"{settings.input} holds no examples.")
        file.flush()
    if bad:
        print(f"predict.py: {len(bad)} lines left out, the first: {bad[0]}; {n_done} predicted", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    settings = parse(Settings, "Predict with a saved run.", argv)
    return exit_code("predict.py", partial(run, settings), "no output file is written")


if __name__ == "__main__":
    sys.exit(main())
