"""What needs a GPU, `make test-gpu`: golden values, bf16, optimiser, dropout, resume, nccl and the benchmark there."""

import json
import signal
from functools import partial
from pathlib import Path

import pytest
import test_golden
import test_kernels
import test_opt
import test_resume
import test_training
import torch
import torch.distributed as dist
from conftest import write_data, write_model
from launch import Processes
from test_training import read_log, train_flags

import bench
import loss
import train
from running.processes import autocast, pick_precision
from speed import kernels

DEVICE = torch.device("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


@pytest.fixture(autouse=True)
def no_tf32():
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a model and examples; 32 are trained on, 9 validated, 13 tested."""
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model")
    write_data(folder / "data", n_valid=41, n_test=13)
    return folder


# --- values ----------------------------------------------------------------------------------------------------------


class ProductHere(test_golden.Product):
    """The product in float32 on the device."""

    device = DEVICE


@test_golden.every_file
def test_golden_logits_and_losses(path):
    test_golden.test_logits_and_losses_at_tensorflows_parameters(ProductHere, path)


@test_golden.every_file
def test_golden_training(path):
    test_golden.test_twelve_updates_of_training(ProductHere, path)


@test_golden.every_file
def test_bf16_is_near_fp32(path):
    golden = test_golden.Golden(path)
    ours, costs, gradients = ProductHere(golden), {}, {}
    ours.set_parameters(golden.parameters("init"))
    ours.model.eval()
    batch = ours.tensors(*golden.batch(0))
    for precision in ("fp32", "bf16"):
        with autocast(precision, DEVICE):
            task, lm = loss.compute_losses(ours.model, *batch, ours.lm_coef)
        cost = task.mean() if lm is None else task.mean() + lm.mean()
        ours.model.zero_grad()
        cost.backward()
        costs[precision] = torch.cat([task] if lm is None else [task, lm]).detach()
        gradients[precision] = torch.cat([p.grad.flatten() for p in ours.model.parameters() if p.grad is not None])
    assert costs["bf16"].dtype == torch.float32 and costs["bf16"].device.type == DEVICE.type
    assert not torch.equal(costs["bf16"], costs["fp32"])  # it was in bf16
    torch.testing.assert_close(costs["bf16"], costs["fp32"], rtol=2e-2, atol=0)
    assert (gradients["bf16"] - gradients["fp32"]).norm() < 5e-2 * gradients["fp32"].norm()


def test_bf16_is_the_default():
    assert pick_precision(None, DEVICE) == "bf16"


# --- optimiser and dropout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, dict(max_grad_norm=1.0), dict(l2=0.1, vector_l2=True)], ids=str)
def test_the_fused_optimiser_follows_the_reference(settings):
    with torch.device(DEVICE):  # where tensors are made
        test_opt.assert_follows_reference(test_opt.gradients, **settings)
        parameters, optimizer = test_opt.make(**settings)
    assert optimizer.param_groups[0]["fused"] and {p.device.type for p in parameters.values()} == {DEVICE.type}


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_its_fraction_and_scales_the_rest(p):
    with torch.device(DEVICE):
        test_kernels.test_drop_out_drops_its_share_and_scales_the_rest(p)


@pytest.mark.parametrize("dtype, rtol", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("masked", [False, True])
def test_dropout_of_attention_drops_its_fraction_and_scales_the_rest(masked, dtype, rtol):
    torch.manual_seed(0)
    p, heads, sequences, n = 0.1, 12, 16, 64
    q = torch.zeros(heads, sequences, n, n, device=DEVICE, dtype=dtype)  # attends to all alike: weights 1 / (i + 1)
    v = torch.eye(n, device=DEVICE, dtype=dtype).repeat(heads, sequences, 1, 1)  # attention over it: the weights
    causal = torch.ones(n, n, device=DEVICE, dtype=torch.bool).tril()
    mask = causal.expand(sequences, n, n) if masked else None
    weights = kernels.attention(q, q, v, mask, kernels.Dropout(p)).float()
    expected = causal / torch.arange(1, n + 1, device=DEVICE)[:, None] / (1 - p)
    kept = weights != 0
    assert not (kept & ~causal).any()
    torch.testing.assert_close(weights, expected * kept, rtol=rtol, atol=0)
    n_weights = heads * sequences * int(causal.sum())
    dropped = 1 - float(kept.sum()) / n_weights
    rounding = 1 / 256  # FlashAttention samples a byte for each weight
    assert dropped == pytest.approx(p, abs=rounding + 5 * (p * (1 - p) / n_weights) ** 0.5)


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_run_goes_on_to_the_same_end_to_the_bit(world, tmp_path, precision):
    flags = "--deterministic", "--precision", precision
    unbroken = test_resume.finish(test_resume.command("train", world, *flags), tmp_path / "unbroken")
    assert f"device   {DEVICE.type}, {precision}," in unbroken.out()
    stop = partial(test_resume.signal_self, signal.SIGTERM)
    action = test_resume.command("train", world, *flags)
    broken = Processes(partial(test_resume.at_call, "training.update", 8, stop, action), tmp_path / "broken")
    assert broken.wait() == [128 + signal.SIGTERM], broken.err()
    assert max(test_resume.checkpoints(broken.folder)) == 8
    resumed = test_resume.finish(test_resume.command("train", world, *flags, "--resume"), broken.folder)
    assert "8 of them done" in resumed.out()
    ours, expected = test_resume.outcome(broken.folder), test_resume.outcome(unbroken.folder)
    assert ours.keys() == expected.keys()
    assert [path for path in ours if ours[path] != expected[path]] == []


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two CUDA devices")
def test_two_processes_train_as_one_does(world, tmp_path):
    assert dist.get_default_backend_for_device(DEVICE) == "nccl"
    logs = []
    for n_processes, n_batch in ((1, 8), (2, 4)):
        flags = *test_training.TWENTY_UPDATES, "--precision", "fp32", "--n_batch", n_batch
        run = Processes(partial(train.main, train_flags(world, *flags)), tmp_path / str(n_processes), n_processes)
        assert run.wait() == [0] * n_processes, run.err()
        assert f"device   {DEVICE.type}:0, fp32," in run.out() and "20 updates of 8 examples" in run.out()
        assert ("2 processes," in run.out()) == (n_processes == 2)
        logs.append(read_log(run.folder)[1:])
    for together, alone in zip(*reversed(logs), strict=True):
        assert together == pytest.approx(alone, abs=1e-4, rel=1e-4)


def test_the_benchmark_writes_its_table_at_batch_64(world, tmp_path, capsys):
    out = tmp_path / "speed"
    flags = ["--model_dir", world / "model", "--data_dir", world / "data", "--what", "train", "--share_context"]
    flags += ["--n_batch", 64, "--precision", "fp32", "bf16", "--updates", 2, "--warm_up", 1, "--out", out]
    assert bench.main(list(map(str, flags))) == 0
    table = out.with_suffix(".md").read_text()
    assert table == capsys.readouterr().out
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["conditions"]["device"].startswith(DEVICE.type)
    assert [row["precision"] for row in report["rows"]] == ["fp32", "fp32", "bf16", "bf16"]
    for row in report["rows"]:
        assert f"| {row['what']} | {row['precision']} | 64 |" in table
        assert row["ms"] > 0 and row["peak_bytes"] > 0
