"""What needs a GPU but no text, in `make gpu`: golden values, bf16, the optimiser, dropout, resuming, nccl."""

import os
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import test_golden
import test_kernels
import test_opt
import torch
import torch.distributed as dist
from launch import Processes
from torch import Tensor

import loss
from bench import update
from bench.common import Case
from model_pytorch import Config, DoubleHeadModel
from opt import OpenAIAdam
from running.checkpoint import read_checkpoint
from running.processes import Ranks, Stopped, autocast, join_ranks, make_deterministic, pick_precision
from running.training import Plan, Run
from speed import kernels
from speed.packing import Packing

DEVICE = torch.device("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


@pytest.fixture(autouse=True)
def no_tf32():
    torch.set_float32_matmul_precision("highest")


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


def test_an_update_never_waits_for_the_gpu():
    step, _ = update.ours(Case(4, "bf16", n_ctx=77, n_layer=2, n_embd=128, n_head=2, n_vocab=100))
    step(0)  # what is set up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- whole runs ------------------------------------------------------------------------------------------------------

N_VOCAB = 50
WITHOUT_DROPOUT = {"embd_pdrop": 0, "attn_pdrop": 0, "resid_pdrop": 0, "clf_pdrop": 0}


def fine_tune(
    folder: Path, n_batch: int, precision: str, resume: bool = False, stop_after: int | None = None, **dropout
) -> int:
    """Make 8 updates of 4 examples as train.py does, of random ids; a SIGTERM comes after stop_after of them."""
    settings = SimpleNamespace(desc="run", save_dir=folder / "save", log_dir=folder / "log", precision=precision)
    settings.resume, settings.checkpoint_every, settings.tensorboard = resume, 3, False
    for path in (settings.save_dir / "run", settings.log_dir):
        path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    examples = [
        [[*rng.integers(N_VOCAB, size=n).tolist(), N_VOCAB] for n in rng.integers(1, 12, size=2)] for _ in range(32)
    ]

    with join_ranks() as ranks:
        torch.manual_seed(0)
        cfg = Config(n_embd=64, n_head=2, n_layer=2, **dropout)
        model = DoubleHeadModel(cfg, N_VOCAB, "multiple_choice", N_VOCAB + 17, 16).to(ranks.device)
        optimizer = OpenAIAdam(model.parameters(), 1e-3, "warmup_linear", 0.1, 8, l2=0.01, max_grad_norm=1)
        run = Run(settings, Plan(32, n_batch, 1, ranks.size, 1), model, optimizer, {"t_total": 8}, ranks)
        losses = run.wrap(loss.PackedLosses(model, 0.5))
        with run:
            for of_update in run.updates([np.arange(32)]):
                optimizer.zero_grad()
                for part in run.parts(of_update):
                    packing = Packing.of_rows([examples[i] for i in part], N_VOCAB + 1).to(ranks.device)
                    with run.autocast:
                        task, lm = losses(packing, torch.zeros(len(part), dtype=torch.long, device=ranks.device))
                        cost = task.mean() + 0.5 * lm.mean()
                    cost.backward()
                cost = ranks.mean(cost.detach())
                norm = optimizer.step(cost=cost)
                run.count(cost, norm)
                if run.n_updates == stop_after:
                    os.kill(os.getpid(), signal.SIGTERM)
    return 0


def newest_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict]:
    return read_checkpoint(folder / "save/run", Ranks(device=torch.device("cpu")))


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_run_goes_on_to_the_same_end_to_the_bit(deterministic, tmp_path, precision):
    fine_tune(tmp_path / "unbroken", 4, precision)
    with pytest.raises(Stopped):
        fine_tune(tmp_path / "broken", 4, precision, stop_after=5)
    assert newest_checkpoint(tmp_path / "broken")[1]["updates"] == 5
    fine_tune(tmp_path / "broken", 4, precision, resume=True)
    (ours, our_state), (expected, state) = map(newest_checkpoint, (tmp_path / "broken", tmp_path / "unbroken"))
    assert our_state == state and state["updates"] == 8 and len(state["costs"]) == 8
    assert ours.keys() == expected.keys() and "random.accelerator" in ours
    assert [name for name, value in expected.items() if not torch.equal(ours[name], value)] == []


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds fewer than two CUDA devices")
def test_two_processes_train_as_one_does(tmp_path):
    assert dist.get_default_backend_for_device(DEVICE) == "nccl"
    costs = []
    for n_processes, n_batch in ((1, 4), (2, 2)):
        folder = tmp_path / str(n_processes)
        run = Processes(partial(fine_tune, folder, n_batch, "fp32", **WITHOUT_DROPOUT), folder, n_processes)
        assert run.wait() == [0] * n_processes, run.err()
        costs.append(newest_checkpoint(folder)[1]["costs"])
    assert len(costs[0]) == 8 and costs[1] == pytest.approx(costs[0], abs=1e-4, rel=1e-4)
