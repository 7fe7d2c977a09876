"""The adapter for lm-evaluation-harness: what it answers, by itself and as the harness shows it."""

import csv
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT

import convert
import lm_eval_adapter
from formats.files import InputError
from generation import generate_text
from lm_eval_adapter import Adapter
from scoring import score

NOT_INSTALLED = "lm_eval is not installed: `make test-lm-eval`"
STORY = "Anna had a big exam. She went over each chapter twice."


@pytest.fixture(scope="module")
def adapter() -> Adapter:
    return Adapter(str(ROOT / "demo/model"), batch_size=3)


def requests(*arguments: tuple) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=args) for args in arguments]


def answers(adapter: Adapter, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    """Return what the adapter says of continuations of contexts."""
    return adapter.loglikelihood(requests(*pairs))


def logs_of(adapter: Adapter, text: str) -> list[float]:
    """Return the log-probability of each token but the first, by --score's own function."""
    return score(adapter.model, adapter.encoder, text).log_probabilities[1:].tolist()


# --- what it answers -------------------------------------------------------------------------------------------------


def test_the_log_probability_of_a_continuation_is_that_of_its_tokens_in_the_whole_text(adapter):
    context, endings = STORY, [" She knew every answer.", " It rained.", " In the end, she was glad."]
    found = answers(adapter, *((context, ending) for ending in endings))
    n_context = len(adapter.encoder.encode([context], verbose=False)[0])
    expected = [sum(logs_of(adapter, context + ending)[n_context - 1 :]) for ending in endings]
    assert [log for log, _ in found] == pytest.approx(expected, abs=1e-4)


def test_context_and_continuation_are_encoded_together(adapter):
    (log, _), (apart, _) = answers(adapter, ("Anna did", "n't know."), ("Anna did", " n't know."))
    assert adapter.encode("Anna did", "n't know.")[0] == adapter.encoder.encode(["Anna didn't know."], verbose=False)[0]
    assert log == apart  # the encoder splits n't off again
    ids, n = adapter.encode("Anna was so gla", "d.")  # the last word of the context becomes another one
    assert ids == adapter.encoder.encode(["Anna was so glad."], verbose=False)[0]
    assert n == len(ids) - 3


def test_without_context_a_newline_stands_before_the_text(adapter):
    ids, n = adapter.encode("", STORY)
    assert adapter.encoder.decoder[ids[0]] == "\n</w>" and n == len(ids) - 1
    ((log, _),) = answers(adapter, ("", STORY))
    (rolling,) = adapter.loglikelihood_rolling(requests((STORY,)))
    assert log == pytest.approx(rolling, abs=1e-4)
    assert log < sum(logs_of(adapter, STORY)) < 0  # which does not score the first token


def test_a_continuation_is_the_most_probable_one_if_greedy_generation_gives_it(adapter):
    (greedy,) = generate_text(adapter.model, adapter.encoder, STORY, 8, temperature=0)
    (_, is_best), (_, other_is) = answers(adapter, (STORY, " " + greedy), (STORY, f" {greedy} cake cake"))
    assert is_best and not other_is


def plain_logs(adapter: Adapter, ids: list[int], n: int) -> float:
    """Return the log-probability of the last n ids, each from the states of the whole row without the last id."""
    table = adapter.transformer.embed.weight
    x = torch.tensor([[[id, len(table) - adapter.n_ctx + t] for t, id in enumerate(ids[:-1])]])
    with torch.no_grad():
        logs = (adapter.transformer(x)[0] @ table[: adapter.n_words].T).log_softmax(1)
    return logs[torch.arange(len(ids) - 1), ids[1:]][-n:].sum().item()


def test_of_a_long_context_the_last_n_ctx_tokens_are_read(adapter):
    long = " ".join([STORY] * 20)
    ending = " She was glad."
    ids, n = adapter.encode(long, ending)
    (log, _), (unlike, _) = answers(adapter, (long, ending), ("Bob gave Ida a hat.", ending))
    assert log == pytest.approx(plain_logs(adapter, ids[-adapter.n_ctx - 1 :], n), abs=1e-4)
    assert log != pytest.approx(plain_logs(adapter, ids[-adapter.n_ctx :], n), abs=1e-4)
    assert log != pytest.approx(unlike, abs=0.1)


def test_a_continuation_without_tokens_or_with_too_many_is_refused(adapter):
    longest = adapter.encoder.decode(adapter.encode("", " ".join([STORY] * 20))[0][1 : adapter.n_ctx + 1])
    assert adapter.encode("", longest)[1] == adapter.n_ctx
    assert len(answers(adapter, ("", longest))) == 1
    for ending in ("", " ", longest + " She was glad."):
        with pytest.raises(InputError, match=f"the model takes 1 to {adapter.n_ctx}: .*Leave it out"):
            answers(adapter, ("", ending))


@pytest.mark.parametrize("batch_size", ["auto", "0", None, 1])
def test_no_requests_have_no_answers(batch_size):
    adapter = Adapter(str(ROOT / "demo/model"), batch_size=batch_size)
    assert adapter.loglikelihood([]) == adapter.loglikelihood_rolling([]) == adapter.generate_until([]) == []
    assert adapter.n_batch == (1 if batch_size == 1 else 8)


@pytest.mark.parametrize("n_tokens", [5, 96, 97, 200, 288])
def test_a_text_of_any_length_is_scored_in_the_windows_of_the_harness(adapter, n_tokens):
    ids = adapter.encode("", " ".join([STORY] * 24))[0][: n_tokens + 1]
    text = adapter.encoder.decode(ids[1:])
    assert adapter.encode("", text)[0] == ids
    (rolling,) = adapter.loglikelihood_rolling(requests((text,)))

    # its windows: what is read, and what is scored
    tokens, n_ctx, expected = ids[1:], adapter.n_ctx, 0.0
    for done in range(0, n_tokens, n_ctx):
        scored = tokens[done : done + n_ctx]
        before = [ids[0]] if done == 0 else tokens[: done + len(scored)][-n_ctx - 1 : -len(scored)]
        expected += plain_logs(adapter, before + scored, len(scored))
    assert rolling == pytest.approx(expected, abs=1e-3)


def test_what_a_task_says_of_sampling_is_obeyed(adapter, monkeypatch):
    calls = []

    def call(model, encoder, ids, n_tokens, **how) -> list[str]:
        calls.append((n_tokens, how))
        return [""]

    monkeypatch.setattr(lm_eval_adapter, "generate_text", call)
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    adapter.generate_until(requests(*((STORY, {name: 7}) for name in names), (STORY, {"max_length": 20}), (STORY, {})))
    n_context = len(adapter.encode(STORY)[0])
    assert [n for n, _ in calls] == [7, 7, 7, 7, 20 - n_context, 256]
    assert all(how == {"stops": [], "temperature": 0} for _, how in calls)
    calls.clear()
    how = {"top_k": 5, "top_p": 0.9, "repetition_penalty": 1.2}
    asked = [{"do_sample": True}, {"temperature": 0.5}, {"do_sample": False, "temperature": 0.5}]
    adapter.generate_until(requests(*((STORY, how | more) for more in asked)))
    temperatures = [{}, {"temperature": 0.5}, {"temperature": 0}]
    assert [found for _, found in calls] == [{"stops": []} | how | temperature for temperature in temperatures]


FORKING = """
import multiprocessing, sys, time
from running.command import exit_code

def work(started):
    started.set()
    time.sleep(60)

def main():
    context = multiprocessing.get_context("fork")
    started = context.Event()
    worker = context.Process(target=work, args=(started,))
    worker.start()
    started.wait()  # a signal that comes sooner is lost in the fork
    worker.terminate()
    worker.join()
    print(worker.exitcode)

sys.exit(exit_code("program", main, "stopped"))
"""


def test_a_worker_that_a_library_ends_prints_nothing():
    done = subprocess.run([sys.executable, "-c", FORKING], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{-signal.SIGTERM}\n", "")


def test_text_is_generated_greedily_up_to_a_stop(adapter):
    whole = generate_text(adapter.model, adapter.encoder, STORY, 12, temperature=0)[0]
    word = whole.split()[3]
    asked = [
        (STORY, {"until": [], "max_gen_toks": 12}),
        (STORY, {"until": word.upper(), "max_gen_toks": 12}),
        (STORY, {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False, "temperature": 1.0}),
        (" ".join([STORY] * 20), {"max_gen_toks": 4}),
        ("", {"max_gen_toks": 4}),
    ]
    found = adapter.generate_until(requests(*asked))
    assert found[0] == found[2] == whole
    assert found[1] == whole[: whole.index(word)]
    assert found[3] and found[4]


# --- in the harness --------------------------------------------------------------------------------------------------

# name -> type of output, metric, how it is averaged, whether higher is better, and what else the task says
TASKS = {
    "own_choice": ("multiple_choice", "acc", "mean", True, 'doc_to_choice: "{{choices}}"\ndoc_to_target: right'),
    "own_continuation": (
        "generate_until",
        "exact_match",
        "mean",
        True,
        'doc_to_target: "{{next}}"\ngeneration_kwargs: {until: ["."], max_gen_toks: 20}',
    ),
    "own_perplexity": (
        "loglikelihood_rolling",
        "word_perplexity",
        "weighted_perplexity",
        False,
        'doc_to_target: "{{story}}"',
    ),
}


def write_tasks(folder: Path) -> None:
    """Write the tasks, on own.jsonl in the same folder."""
    for name, (output, metric, average, is_better, more) in TASKS.items():
        text = "" if output == "loglikelihood_rolling" else "{{story}}"
        lines = [f"task: {name}", f"output_type: {output}", f'doc_to_text: "{text}"', more]
        lines += ["dataset_path: json", f"dataset_kwargs: {{data_files: {folder}/own.jsonl}}", "test_split: train"]
        lines += [f"metric_list: [{{metric: {metric}, aggregation: {average}, higher_is_better: {is_better}}}]"]
        (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")


def harness(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "lm_eval_adapter.py"), "--model", "gpt1", *arguments]
    offline = dict(HF_DATASETS_OFFLINE="1", HF_HUB_OFFLINE="1", HF_HOME=str(folder / "cache"), OMP_NUM_THREADS="1")
    return subprocess.run(command, cwd=ROOT, env=os.environ | offline, capture_output=True, text=True)


def test_the_harness_runs_tasks_of_our_own(adapter, tmp_path):
    pytest.importorskip("lm_eval", reason=NOT_INSTALLED)
    stories = [STORY, "Adam wanted to cross the lake in a boat. He stuffed the holes with paper."]
    choices = [["the cake the.", "She was glad."], ["He sank.", "sank sank sank."]]
    following = [generate_text(adapter.model, adapter.encoder, s, 20, temperature=0, stops=["."])[0] for s in stories]
    records = zip(stories, choices, (1, 0), [following[0], "something else"], strict=True)
    keys = ("story", "choices", "right", "next")
    lines = [json.dumps(dict(zip(keys, record, strict=True))) for record in records]
    (tmp_path / "own.jsonl").write_text("\n".join(lines) + "\n")
    write_tasks(tmp_path)
    chosen = ["--tasks", ",".join(TASKS), "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    done = harness(tmp_path, "--model_args", f"model_dir={ROOT}/demo/model", *chosen, "--batch_size", "2")
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").glob("*/results_*.json")
    results = json.loads(path.read_text())["results"]

    logs = [answers(adapter, *((s, " " + c) for c in pair)) for s, pair in zip(stories, choices, strict=True)]
    n_right = sum(pair[right] == max(pair) for pair, right in zip(logs, (1, 0), strict=True))
    assert results["own_choice"]["acc,none"] == n_right / 2
    assert results["own_continuation"]["exact_match,none"] == 0.5
    total = sum(adapter.loglikelihood_rolling(requests(*((s,) for s in stories))))
    perplexity = math.exp(-total / len(" ".join(stories).split()))
    assert results["own_perplexity"]["word_perplexity,none"] == pytest.approx(perplexity, rel=1e-4)

    wrong = harness(tmp_path, "--model_args", "model_dir=nowhere", *chosen)
    assert wrong.returncode == 2 and "nowhere" in wrong.stderr.splitlines()[-1]
    assert "Traceback" not in wrong.stderr


def test_the_answers_are_those_of_the_harness_on_the_converted_model(adapter, tmp_path):
    huggingface = pytest.importorskip("lm_eval.models.huggingface", exc_type=ImportError, reason=NOT_INSTALLED)
    assert convert.main(["to_hf", str(ROOT / "demo/model"), str(tmp_path / "hf")]) == 0
    newline = adapter.encoder.encoder["\n</w>"]
    theirs = huggingface.HFLM(pretrained=str(tmp_path / "hf"), device="cpu", dtype="float32", prefix_token_id=newline)

    # words without apostrophes, which the two tokenizers read in the same way: within the window, and far beyond it
    (path,) = (ROOT / "demo/data").glob("*_val_*.csv")
    with open(path, newline="") as file:
        words = " ".join(" ".join(row[1:5]) for row in list(csv.reader(file))[1:100]).replace("'", "").split()
    for n in (20, 95, 96, 97, 300, 700):
        text = " ".join(words[:n])
        expected = theirs.loglikelihood_rolling(requests((text,)), disable_tqdm=True)
        assert adapter.loglikelihood_rolling(requests((text,))) == pytest.approx(expected, rel=1e-5)
        pair = requests((text, " " + " ".join(words[n : n + 4])))
        ((log, was_greedy),) = theirs.loglikelihood(pair, disable_tqdm=True)
        assert adapter.loglikelihood(pair) == [(pytest.approx(log, rel=1e-5), was_greedy)]


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_without_the_harness_one_line_says_what_to_install(tmp_path):
    done = harness(tmp_path, "--tasks", "x")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "lm_eval_adapter.py: error: lm_eval is missing (No module named 'lm_eval'). "
        "Run pip install -r requirements-lm-eval.txt."
    ]
