"""The measurements: what is counted and what is run. How fast it was is no matter of a test."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import bench
from datasets import TASKS
from finetuning import Prepared, Settings, build_model, network
from inference import predict
from model_pytorch import Config
from processes import Ranks
from splits import Splits


def folders(model_dir: Path, data_dir: Path) -> list[str]:
    return ["--model_dir", str(model_dir), "--data_dir", str(data_dir)]


def prepared_for(args, n_ctx: int | None = None) -> Prepared:
    stories, n_vocab = bench.read_stories(Path(args.model_dir), Path(args.data_dir))
    cfg, _ = network(Settings(model_dir=args.model_dir), n_vocab)
    if args.shapes == "race":
        rows = bench.race_rows(n_vocab, 4)
    else:
        rows = bench.repeated_rows(stories[0], n_ctx, 40) if n_ctx else stories[0]
    splits = Splits(TASKS["rocstories"], rows, rows, rows)
    return Prepared(splits, cfg, n_vocab, splits.n_ctx())


def test_work_equals_a_count_by_hand():
    cfg = Config(n_embd=2, n_head=1, n_layer=3)
    x, m = np.zeros((1, 2, 4, 2), int), np.zeros((1, 2, 4), int)
    x[0, :, :, 0] = [[7, 1, 2, 0], [7, 3, 0, 0]]
    m[0] = [[1, 1, 1, 0], [1, 1, 0, 0]]
    # 5 tokens; 1 + 2 + 3 and 1 + 2 pairs; 3 next tokens; 10 rows of the table
    forward = 3 * (5 * 2 * 12 * 2**2 + 9 * 2 * 2 * 2)
    assert bench.count_work(x, m, cfg, 10, training=False, share_context=False) == forward == 1656
    assert bench.count_work(x, m, cfg, 10, training=True, share_context=False) == 3 * (forward + 3 * 2 * 10 * 2) == 5328
    # the first token once: 4 tokens, 1 + (2 + 3) + 2 pairs
    forward = 3 * (4 * 2 * 12 * 2**2 + 8 * 2 * 2 * 2)
    assert bench.count_work(x, m, cfg, 10, training=False, share_context=True) == forward
    assert bench.count_work(x, m, cfg, 10, training=True, share_context=True) == 3 * (forward + 3 * 2 * 10 * 2)


@pytest.mark.parametrize("what", ["train", "predict"])
@pytest.mark.parametrize("share_context", [False, True])
def test_work_is_what_torch_counts(model_dir, data_dir, what, share_context):
    args = bench.parse_args([*folders(model_dir, data_dir), "--share_context", "--what", what])
    prepared = dataclasses.replace(prepared_for(args, n_ctx=8), cfg=Config(n_embd=96, n_head=2, n_layer=2))
    jobs = {job.settings.share_context: job for job in bench.make_jobs(args, "fp32", 4, prepared)}
    job = jobs[share_context]
    step, which = bench.make_step(job, Ranks()), job.examples(0)
    with FlopCounterMode(display=False) as counter:
        step(which)
    x, m, _ = prepared.splits.train.batch(which)
    n_table = prepared.n_vocab + 3 + 8
    counted = bench.count_work(x.numpy(), m.numpy(), prepared.cfg, n_table, what == "train", share_context)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.04)  # torch counts attention to later tokens too


@pytest.mark.parametrize("library", [None, "transformers"])
@pytest.mark.filterwarnings("default")
def test_an_update_of_pre_training_is_counted_and_made(model_dir, data_dir, library):
    if library and not importlib.util.find_spec(library):
        pytest.skip("requirements-bench.txt is not installed")
    against = ["--against", library] if library else []
    flags = ["--what", "pretrain", "--accumulate", "2", "--checkpoint_activations", *against]
    args = bench.parse_args([*folders(model_dir, data_dir), *flags])
    assert args.n_ctx == [512] and args.n_batch == [4]
    stories, n_vocab = bench.read_stories(model_dir, data_dir)
    rows = bench.sequences_of(stories[0], 48, 12)
    assert rows.ids.shape == (12, 48) and rows.ids[0, :3].tolist() == stories[0].encoded.texts(0)[0][:3]
    cfg = Config(n_embd=96, n_head=2, n_layer=2)
    prepared = Prepared(Splits(TASKS["rocstories"], rows, rows, rows), cfg, n_vocab, 48)
    job = bench.make_jobs(args, "fp32", 3, prepared)[-1]
    assert (job.library or "").startswith(library or "")
    step, which = bench.make_step(job, Ranks()), job.examples(0)
    assert which.tolist() == list(range(6))
    with FlopCounterMode(display=False) as counter:
        step(which)
    if library is None:
        x, m, _ = rows.batch(which)
        forward = bench.count_work(x.numpy(), m.numpy(), cfg, job.n_table(), False, False)
        counted = bench.count_work(x.numpy(), m.numpy(), cfg, job.n_table(), True, False) + forward
        # torch counts attention to later tokens too, and here the blocks twice
        assert counted == pytest.approx(counter.get_total_flops(), rel=0.06)


def test_a_run_of_pre_training_has_a_table_of_its_own(tmp_path, capsys, model_dir, data_dir):
    flags = "--what pretrain --n_ctx 32 --n_batch 2 --updates 1 --warm_up 0 --threads 1".split()
    assert bench.main([*folders(model_dir, data_dir), *flags, "--out", str(tmp_path / "speed")]) == 0
    table = capsys.readouterr().out
    assert "| sequences/s |" in table and "| pretrain | fp32 | 2 | 32 |" in table
    (row,) = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert row["tokens_per_s"] == pytest.approx(64 / row["seconds"][0])
    assert row["of_matrix_rate"] > 0 and row["peak_bytes"] > 0


def test_predicting_is_that_of_train(model_dir, data_dir):
    prepared = prepared_for(bench.parse_args(folders(model_dir, data_dir)))
    torch.manual_seed(0)
    model, _ = build_model(prepared, -1, "")
    x, m, _ = prepared.splits.train.batch(np.arange(6))
    expected = predict(model, prepared.splits.train.first(6), 6, Ranks(), "rows")
    for share_context in (False, True):
        logits = bench.predict_batch(model, x, m, share_context, torch.device("cpu"))
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_repeated_rows_have_exactly_the_length_asked_for(model_dir, data_dir):
    args = bench.parse_args(folders(model_dir, data_dir))
    for n_ctx in (6, 7, 50):
        rows = prepared_for(args, n_ctx).splits.train
        x, m, _ = rows.batch(np.arange(len(rows)))
        assert x.shape[2] == n_ctx and m.all()
        assert (x[:, :, -1, 0] == x[0, 0, -1, 0]).all()  # the classify token is last


def test_every_kind_of_row_runs(model_dir, data_dir):
    flags = ["--accumulate", "2", "--checkpoint_activations", "--share_context", "--what", "train", "predict"]
    names = []
    for shapes in ("stories", "race"):
        args = bench.parse_args([*folders(model_dir, data_dir), *flags, "--shapes", shapes])
        for job in bench.make_jobs(args, "bf16", 2, prepared_for(args)):
            bench.make_step(job, Ranks())(job.examples(0))
            names.append((job.name, len(job.examples(0)), job.settings.checkpoint_activations))
    expected = [("train", 4), ("train, context shared", 4), ("predict", 2), ("predict, context shared", 2)]
    assert names == 2 * [(*name, True) for name in expected]


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="requirements-bench.txt is not installed")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("what", ["train", "predict"])
def test_the_other_library_runs(model_dir, data_dir, what):
    args = bench.parse_args([*folders(model_dir, data_dir), "--against", "transformers", "--what", what])
    job = bench.make_jobs(args, "fp32", 2, prepared_for(args))[-1]
    assert job.library.startswith("transformers ")
    bench.make_step(job, Ranks())(job.examples(0))


def test_a_run_writes_table_figures_and_picture(tmp_path, capsys, model_dir, data_dir):
    out = tmp_path / "new" / "speed"
    flags = ["--what", "train", "--ranks", "--n_batch", "2", "--updates", "1", "--warm_up", "0", "--threads", "2"]
    assert bench.main([*folders(model_dir, data_dir), *flags, "--out", str(out)]) == 0
    table = (tmp_path / "new" / "speed.md").read_text()
    assert table == capsys.readouterr().out
    assert "| train | fp32 | 2 |" in table and "| train, 2 processes of 1 threads | fp32 | 2 |" in table
    assert (tmp_path / "new" / "speed.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((tmp_path / "new" / "speed.json").read_text())
    assert {"machine", "torch", "python", "n_threads", "date"} <= set(report["conditions"])
    (matrix_rate,) = report["matrix_rates"]["fp32"]
    one, two = report["rows"]
    for row in (one, two):
        assert len(row["seconds"]) == 1 and row["ms"] == 1e3 * row["seconds"][0]
        assert row["flops"] > 0 and row["of_matrix_rate"] == pytest.approx(row["flops"] / matrix_rate)
        assert row["stories_per_s"] == pytest.approx(2 / row["seconds"][0])
    assert two["peak_bytes"] > 1.5 * one["peak_bytes"]


def test_a_failure_is_told_and_the_others_go_on(tmp_path):
    good = {"what": "train", "precision": "fp32", "n_batch": "8", "n_ctx": 64, "stories_per_s": 1.5, "ms": 2000.0}
    good |= {"tokens_per_s": 1234.0, "peak_bytes": 2**30, "flops": 5e11, "of_matrix_rate": 0.25}
    bad = {"what": "train", "precision": "fp32", "n_batch": "8", "n_ctx": 128, "error": "out of memory"}
    report = {"conditions": {"machine": "abacus"}, "matrix_rates": {"fp32": [1e12, 2e12, 1.5e12]}, "rows": [good, bad]}
    lines = bench.markdown(report).splitlines()
    assert lines[0] == "machine: abacus; matrix rate: fp32 1.500 TFLOP/s (best turn 2.000)"
    assert lines[4] == "| train | fp32 | 8 | 64 | 1.50 | 1,234 | 2,000 | 1.00 | 0.500 | 25% |"
    assert lines[5].startswith("| train | fp32 | 8 | 128 | out of memory |")
    assert lines[5].count("|") == lines[4].count("|")
    bench.draw([good, good | {"n_ctx": 256}], tmp_path / "growth.png")  # several lengths: curves
    assert (tmp_path / "growth.png").exists()


def test_what_a_user_can_mend_is_one_line(tmp_path, monkeypatch, capsys, model_dir, data_dir):
    out = ["--out", str(tmp_path / "speed")]
    assert bench.main(["--model_dir", "nowhere", "--data_dir", str(data_dir), *out]) == 2
    assert bench.main(["--model_dir", str(model_dir), "--data_dir", "nowhere", *out]) == 2
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert bench.main([*folders(model_dir, data_dir), "--against", "transformers", *out]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all(line.startswith("bench.py: error: ") for line in errors)
    assert "pip install -r requirements-bench.txt" in errors[2]
    assert list(tmp_path.glob("speed*")) == []


@pytest.mark.parametrize(
    "flags",
    [
        ["--ranks", "--n_batch", "3"],
        ["--shapes", "race", "--growth"],
        ["--n_ctx", "5"],
        ["--precision", "fp8"],
        ["--what", "pretrain", "train"],
        ["--what", "pretrain", "--shapes", "race"],
        ["--what", "pretrain", "--ranks"],
    ],
)
def test_a_wrong_flag_is_refused(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.parse_args(flags)


def test_growth_fills_in_what_other_flags_leave_open():
    args = bench.parse_args(["--growth", "--n_batch", "2"])
    assert args.n_ctx == [64, 128, 256, 512] and args.n_batch == [2]
    assert bench.parse_args(["--growth"]).n_batch == [8, 1, 64]
    assert bench.parse_args(["--shapes", "race"]).what == ["predict"]
