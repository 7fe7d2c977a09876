"""The paper in miniature on tiny data: every run once, the tables, the figure."""

import contextlib
import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import write_lines

import reproduce
from demo import paper
from formats.files import InputError

# --- all runs --------------------------------------------------------------------------------------------------------

WORDS = "the cat was in a red hat and sang".split()
SIZES = "--n_layer=1 --n_embd=8 --n_head=2 --n_ctx=32 --n_merges=20 --n_batch=4 --lr_warmup=1 --n_iter=1 --log_every=5"


def accuracies(path: Path) -> dict[tuple, float]:
    results = json.loads(path.read_text())
    return {(run["task"], run["variant"], run["seed"]): run["figures"]["test"] for run in results["runs"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write tiny data to a work folder and set the experiments to them."""
    folder, rng = tmp_path_factory.mktemp("paper"), random.Random(0)
    work = folder / "work"

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=4))

    for name in ("classification", "choice"):
        (data := work / "tasks" / name).mkdir(parents=True)
        for split, n in (("train", 16), ("valid", 6), ("test", 8)):
            examples = [{"text": text(), "label": "ab"[i % 2]} for i in range(n)]
            if name == "choice":
                examples = [{"context": text(), "choices": [text(), text()], "label": 1 + i % 2} for i in range(n)]
            write_lines(data / f"{split}.jsonl", examples)
    (work / "corpus.txt").write_text("".join(f"{text()} {text()}.\n" for _ in range(150)))
    tasks = {
        "classes": ["--dataset=own", "--task=classification", "--data_dir={work}/tasks/classification"],
        "choices": ["--dataset=own", "--task=multiple_choice", "--data_dir={work}/tasks/choice"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "TASKS", tasks)
        patch.setattr(paper, "PROBES", {"choice:own:{work}/tasks/choice": ("choices", 50.0)})
        patch.setattr(paper, "N_LAYER", 1)
        patch.setattr(paper, "PRE_TRAINING", SIZES.split())
        patch.setattr(paper, "FINE_TUNING", ["--n_iter=1", "--n_batch=8", "--lr=1e-3"])
        patch.setattr(paper, "README", folder / "README.md")
        (folder / "README.md").write_text("before\n<!-- paper:begin -->\nold\n<!-- paper:end -->\nafter\n")
        yield folder


def command(folder: Path, results: Path, workers: int = 1) -> list[str]:
    folders = ["--work", str(folder / "work"), "--results", str(results), "--figure", str(folder / "figure.png")]
    return [*folders, "--seeds", "1", "--workers", str(workers)]


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Path, str, dict[tuple, float], str]:
    """Stop the command after three runs and start it again.

    Return the file of results, what was printed before the stop, the results then, and what was printed after it.
    """
    path, whole, printed = folder / "results.json", reproduce.write_json, []

    def write_and_stop(path: Path, results: dict, indent: int) -> None:
        whole(path, results, indent)
        if len(results["runs"]) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(reproduce, "write_json", write_and_stop)
        assert paper.main(command(folder, path)) == 130
        printed.append(out.getvalue())
    assert not (folder / "figure.png").exists()
    kept = accuracies(path)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert paper.main(command(folder, path)) == 0
        printed.append(out.getvalue())
    return path, printed[0], kept, printed[1]


def test_a_stopped_paper_goes_on_and_repeats_no_run(finished):
    path, first, kept, second = finished
    assert re.search(r"pre-training, LSTM: \d+ updates, held-out perplexity \d", first)
    assert "run 1 of 10" in first and "run 3 of 10" not in first
    assert len(kept) == 3
    assert "updates" not in second
    ends = [line.split(":")[0] for line in second.splitlines() if line.startswith("run ")]
    assert ends == [f"run {i} of 10" for i in range(4, 11)]
    found = accuracies(path)
    assert kept.items() <= found.items() and len(found) == 10


def test_figure_and_tables_are_made(finished, folder):
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    filled_in = (folder / "README.md").read_text()
    assert "| LSTM with auxiliary LM | " in filled_in and "| 0 blocks | " in filled_in
    log = json.loads(finished[0].read_text())["pre_training"]["LSTM"]["log"]
    assert log[-1].keys() == {"n_epochs", "n_updates", "tr_ppl", "va_ppl", "choice_own"}


def without_runs(finished, path: Path, **more) -> Path:
    path.write_text(json.dumps(json.loads(finished[0].read_text()) | {"runs": []} | more))
    return path


@pytest.mark.slow
def test_the_number_of_workers_changes_no_result(finished, folder, tmp_path):
    path = without_runs(finished, tmp_path / "results.json")
    assert paper.main(command(folder, path, workers=2)) == 0
    assert accuracies(path) == accuracies(finished[0])


@pytest.mark.slow
def test_a_failing_run_is_reported_and_the_others_are_kept(finished, folder, tmp_path, monkeypatch, capsys):
    path = without_runs(finished, tmp_path / "results.json")
    monkeypatch.setattr(paper, "TABLE", paper.TABLE | {"without auxiliary LM": ["--lm_coef=none"]})
    assert paper.main(command(folder, path)) == 2
    error = capsys.readouterr().err
    assert "runs failed" in error and "without auxiliary LM, seed 1 failed" in error and "'none'" in error
    assert {name for _, name, _ in accuracies(path)} == set(paper.variants()) - {"without auxiliary LM"}


@pytest.mark.parametrize("name", ["corpus", "fine_tuning", "task_files", "weights of the LSTM"])
def test_results_made_with_something_else_are_refused(finished, folder, tmp_path, capsys, name):
    other = json.loads(finished[0].read_text())["made_with"] | {name: ["another"]}
    path = without_runs(finished, tmp_path / "results.json", made_with=other)
    before = path.read_bytes()
    assert paper.main(command(folder, path)) == 2
    expected = f"results.json was made with another {name.replace('_', ' ')}: name another file or remove it"
    assert expected in capsys.readouterr().err
    assert path.read_bytes() == before


def test_another_file_is_refused(folder, tmp_path, capsys):
    (tmp_path / "results.json").write_text("[]")
    assert paper.main(command(folder, tmp_path / "results.json")) == 2
    assert "does not hold results of this command" in capsys.readouterr().err


# --- the report ------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> paper.Results:
    monkeypatch.setattr(paper, "TASKS", {"A": [], "B": []})
    monkeypatch.setattr(paper, "N_LAYER", 1)
    monkeypatch.setattr(paper, "PROBES", {"choice:own:x": ("A", 25.0)})
    runs = [
        {
            "task": task,
            "variant": variant,
            "seed": seed,
            "figures": {"test": {"all": {"acc": 50.0 + i + 10 * seed + (task == "B")}}},
        }
        for i, variant in enumerate(paper.variants())
        for seed in (1, 2)
        for task in "AB"
    ]
    log = [{"n_updates": n, "va_ppl": 9.0 - n, "choice_own": 25.0 + 25 * n} for n in (0, 1, 2)]
    results = paper.Results(tmp_path / "results.json")
    results.pre_training["transformer"] = {"log": log}
    results.baselines.update({task: {"always the most frequent label": 50.0} for task in "AB"})
    results.runs.extend(runs)
    return results


def test_tables(results):
    results.baselines["B"]["length"] = 49.0
    lines = paper.accuracy_table(results, list(paper.TABLE), "fine-tuning").splitlines()
    assert lines[0] == "| fine-tuning: test accuracy in %, mean ± s.d. of 2 seeds | A | B | average |"
    assert lines[2] == f"| {paper.FULL} | 65.0 ± 7.1 | 66.0 ± 7.1 | 65.5 ± 7.1 |"
    assert lines[-2] == "| always the most frequent label | 50.0 | 50.0 | 50.0 |" and len(lines) == 8
    assert lines[-1] == "| length | - | 49.0 | - |"
    assert paper.accuracy_table(results, list(paper.TABLE), "fine-tuning", 1).splitlines() == lines[:-1]
    del results.runs[2:]
    lines = paper.accuracy_table(results, list(paper.transfer_names().values()), "transferred", 0).splitlines()
    assert lines[0] == "| transferred: test accuracy in % of 1 seed | A | B | average |"
    assert lines[2:] == [
        f"| {paper.NOT_PRE_TRAINED} | - | - | - |",
        "| 0 blocks | - | - | - |",
        f"| {paper.FULL} | 60.0 | 61.0 | 60.5 |",
    ]


@pytest.mark.pictures
def test_panels(results, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(paper.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    paper.draw_panels(results, tmp_path / "figure.png")
    left, right = drawn[0].axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["none", "0", "1"]
    by_blocks, not_pre_trained = (container.lines[0] for container in left.containers[:2])
    assert by_blocks.get_ydata().tolist() == [69.0, 65.0] and not_pre_trained.get_ydata().tolist() == [67.0]
    assert right.lines[0].get_ydata().tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    assert right.lines[0].get_xdata().tolist() == [0, 1, 2] and len(right.lines) == 2


def test_a_text_is_filled_in_between_the_marks(tmp_path):
    path = tmp_path / "x.md"
    path.write_text("a\n<!-- paper:begin -->\nold\n<!-- paper:end -->\nb\n")
    for _ in range(2):
        paper.fill_in(path, "new")
        assert path.read_text() == "a\n<!-- paper:begin -->\nnew\n<!-- paper:end -->\nb\n"
    path.write_text(text := "a\n<!-- paper:end -->\n<!-- paper:begin -->\n")
    with pytest.raises(
        InputError, match="x.md has no lines <!-- paper:begin --> and <!-- paper:end -->, in this order"
    ):
        paper.fill_in(path, "new")
    assert path.read_text() == text


def test_report_needs_only_the_file_of_results(results, tmp_path, monkeypatch, capsys):
    results.save()
    monkeypatch.setattr(paper, "README", tmp_path / "README.md")
    paper.README.write_text("<!-- paper:begin -->\n<!-- paper:end -->")
    flags = ["--report", "--results", str(tmp_path / "results.json"), "--figure", str(tmp_path / "new/figure.png")]
    assert paper.main(flags) == 0
    assert f"| {paper.FULL} | 65.0 ± 7.1 |" in capsys.readouterr().out
    assert "transformer 7.000" in paper.README.read_text()
    assert (tmp_path / "new/figure.png").read_bytes().startswith(b"\x89PNG")
    assert paper.main([*flags, "--results", str(tmp_path / "none.json")]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_the_page_on_the_demo_has_room_for_the_tables():
    text = (paper.FOLDER / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- paper:begin -->\n") == text.count("\n<!-- paper:end -->") == 1
