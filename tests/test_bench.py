"""The scripts of bench/ run where only torch and a few packages are, and count their work right."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from launch import ROOT, forks

from bench import common, corpus, generation, gpu, predict, pretrain, update
from bench.common import Case

SCRIPTS = [update, predict, pretrain, generation]
TINY = dict(n_batch=2, n_ctx=77, n_turns=1, threads=1, n_layer=1, n_embd=8, n_head=2, n_vocab=20)
BARE = """
from importlib.machinery import PathFinder

MISSING = {"spacy", "ftfy", "pandas", "matplotlib", "scipy", "sklearn", "tokenizers", "transformers"}
found = PathFinder.find_spec


def find_spec(cls, name, *more):
    return None if name.split(".")[0] in MISSING else found(name, *more)


PathFinder.find_spec = classmethod(find_spec)
"""


def run_bare(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python where only torch and a few packages are."""
    (folder / "sitecustomize.py").write_text(BARE)
    environment = os.environ | {"PYTHONPATH": str(folder)}
    run = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run


def test_a_turn_of_each_script_needs_no_packages_for_text(tmp_path):
    turns = [f"import bench.gpu; from bench import {', '.join(script.__name__[6:] for script in SCRIPTS)}"]
    turns.append(f"case = bench.common.Case(**{TINY})")
    turns += [f"{script.__name__[6:]}.CONTENDERS['ours'](case)[0](0)" for script in SCRIPTS]
    run_bare(tmp_path, "-c", "\n".join(turns))


@pytest.mark.slow
def test_update_runs_without_packages_for_text_and_says_that_transformers_is_missing(tmp_path):
    out = tmp_path / "update.json"
    flags = [f"--{name}={value}" for name, value in TINY.items()]
    run = run_bare(tmp_path, "-m", "bench.update", *flags, "--out", str(out))
    assert run.stdout.endswith("transformers is not installed: ours alone\n")
    report = json.loads(out.read_text())
    assert report["conditions"].keys() >= {"machine", "torch", "commit", "command", "n_threads"}
    for row in report["rows"]:
        assert row["n_vocab"] == 20 and row["ms"] > 0 and row["peak_gib"] > 0.05 and row["of_matrix_rate"] > 0
        assert f"| update | {row['by']} | fp32 | 2 |" in run.stdout
    assert [row["by"] for row in report["rows"]] == ["ours", "ours, context shared", common.MATRIX]


def test_flags_take_several_values_and_every_combination_is_measured(tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "rows.json")
    monkeypatch.setattr(sys, "argv", ["update", "--n_batch", "8", "64", "--precision", "fp32", "bf16", "--out", out])
    common.command("Doc.", lambda case: [{"n_batch": case.n_batch, "precision": case.precision}], update.DEFAULTS)
    rows = [(8, "fp32"), (8, "bf16"), (64, "fp32"), (64, "bf16")]
    assert [tuple(row.values()) for row in json.loads((tmp_path / "rows.json").read_text())["rows"]] == rows
    assert "| - | - | bf16 | 64 | - |" in capsys.readouterr().out


def test_bf16_without_units_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(common, "bf16_slowdown", lambda device: 85.0)
    (row,) = common.measure("update", {"ours": pytest.fail}, Case(**TINY, precision="bf16"))
    assert row["error"] == "no bf16 units: not measured"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_contender_does_the_work_of_a_turn(script, precision):
    case = Case(**TINY, precision=precision)
    contenders = script.CONTENDERS
    n_tokens = set()
    for name in contenders.keys() - {common.MATRIX}:
        if name != common.PEER or common.HAS_PEER:
            step, work = contenders[name](case)
            step(0)
            n_tokens.add(work(0)[0])
    assert len(n_tokens) == 1 and n_tokens.pop() > 0


def test_a_context_that_is_shared_counts_once(monkeypatch):
    # story 5 6 with the endings 7 and 8 9: rows of 6 and 7 tokens, or a prefix of 4 and the rest, 2 and 3
    monkeypatch.setattr(update, "lengths_of", lambda case, turn: np.array([[2, 1, 2]]))
    case = Case(**TINY)
    n_table = 20 + 3 + 77
    of_rows = common.count_operations(case, 13, 21 + 28, 11, n_table)
    of_shared = common.count_operations(case, 9, 10 + (2 * 4 + 3) + (3 * 4 + 6), 8, n_table)
    assert update.count_work(case, False, True, 0) == (13, 3 * of_rows)
    assert update.count_work(case, True, True, 0) == (13, 3 * of_shared)
    assert update.count_work(case, True, False, 0)[1] == common.count_operations(case, 9, 39)


def test_the_lengths_are_those_of_the_real_rows(real_model_dir, real_data_dir, tmp_path):
    from reading.tasks import ROCSTORIES_TEST, ROCSTORIES_VALID
    from text_utils import TextEncoder

    encoder = TextEncoder(str(real_model_dir / "encoder_bpe_40000.json"), str(real_model_dir / "vocab_40000.bpe"))
    expected = []
    for name in (ROCSTORIES_VALID, ROCSTORIES_TEST):
        with open(real_data_dir / name, encoding="utf-8", newline="") as file:
            for fields in list(csv.reader(file))[1:]:
                texts = [" ".join(fields[1:5]), *fields[5:7]]
                expected.append([len(ids) for ids in encoder.encode(texts, verbose=False)])
    assert (np.load(ROOT / "bench/lengths.npy") == expected).all()


def fail(case):
    raise RuntimeError("there is no such network\nhere")


def die(case):
    os._exit(7)


def test_what_fails_is_told_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    contenders = {"one": fail, "another": die, common.MATRIX: common.matrix_products}
    monkeypatch.setattr(update, "measure", lambda case, limit: common.measure("update", contenders, case, limit))
    context = forks()  # branched off, not started anew
    monkeypatch.setattr(common.multiprocessing, "get_context", lambda _: context)
    monkeypatch.setattr(gpu, "PARTS", [(update, Case(**TINY))])
    monkeypatch.setattr(gpu, "TESTS", ["-c", "print('3 passed')"])
    gpu.main(["--out", str(tmp_path / "gpu.json"), "--seconds", "60"])
    out = capsys.readouterr().out
    assert "update, one: RuntimeError: there is no such network\n" in out
    assert "update, another: the process was killed: out of memory?\n" in out
    assert "| update | matrix products | fp32 | 2 |" in out and out.endswith("3 passed\n")
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["conditions"]["tests"] == "3 passed" and len(report["rows"]) == 3


def test_each_target_is_said_to_be_reached_missed_or_not_run():
    rows = []
    for n_batch, ms in ((8, 9.5), (64, 21.0)):
        rows.append({"what": "update", "by": "ours", "precision": "bf16", "n_batch": n_batch, "ms": ms})
    first, second, *others = gpu.verdicts(rows).splitlines()
    assert first == "update, bf16, batch 64: ms at most 20: 21, missed"
    assert second == "update, bf16, batch 8: ms at most 10: 9.5, reached"
    assert len(others) == 3 and all(line.endswith(": not run") for line in others)


def test_tests_that_take_too_long_are_stopped(monkeypatch):
    monkeypatch.setattr(gpu, "TESTS", ["-c", "import time; time.sleep(60)"])
    assert gpu.run_tests(0.5) == "the tests took more than 0 s"


def test_corpus_tokenizes_made_up_text(monkeypatch):
    monkeypatch.setattr(corpus, "N_MERGES", 20)
    rows = corpus.measure(corpus.CorpusCase(megabytes=0.02))
    assert [(row["what"], row["by"]) for row in rows][:2] == [("vocabulary and tokens", "ours"), ("tokens", "ours")]
    assert all(row["mb_per_s"] > 0 and row["own_mib"] > 0 for row in rows)
