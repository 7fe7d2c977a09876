"""What projects written for the early PyTorch port need: its names, its calls, and the tools that take a module."""

import copy
import importlib
import io
import json
import pickle
from collections.abc import Callable

import joblib
import numpy as np
import pytest
import torch
from conftest import write_data, write_model
from helpers import read_lines
from launch import forks
from torch.export import Dim, export

import loss
from datasets import read_cloze, rocstories
from features import attention_weights, features, pooled_features
from finetuning import fit
from formats.files import InputError
from generation import generate_text
from lm_eval_adapter import Adapter
from model_pytorch import DEFAULT_CONFIG, DoubleHeadModel, LMModel, dotdict, load_openai_pretrained_model
from reading.rows import transform_roc
from reading.splits import Limits, describe, read_splits
from reading.tasks import ROCSTORIES_TEST, TASKS
from scoring import score
from text_utils import TextEncoder
from weights import open_model
from zero_shot import zero_shot

# --- names -----------------------------------------------------------------------------------------------------------

IMPORTS = """
from analysis import rocstories as rocstories_analysis
from datasets import _rocstories, rocstories, seed
from generate import append_batch
from loss import ClassificationLossCompute, MultipleChoiceLossCompute
from model_pytorch import ACT_FNS, DEFAULT_CONFIG, Attention, Block, ClfHead, Conv1D, DoubleHeadModel, LayerNorm
from model_pytorch import LMHead, LMModel, MLP, TransformerModel, dotdict, gelu, load_openai_pretrained_model, swish
from opt import OpenAIAdam, SCHEDULES, warmup_constant, warmup_cosine, warmup_linear
from text_utils import TextEncoder, get_pairs, text_standardize
from train import transform_roc
from utils import ResultLogger, encode_dataset, flatten, iter_data, make_path, np_softmax, remove_none
from utils import stsb_label_encoding
"""


def test_the_names_of_the_port_are_where_it_has_them():
    names = {}
    exec(IMPORTS, names)
    assert names["seed"] == 3535999445
    assert names["get_pairs"]("abab") == {("a", "b"), ("b", "a")}
    x = torch.linspace(-3, 3, 7)
    functions = {"gelu": names["gelu"], "swish": names["swish"], "relu": torch.relu}
    assert names["ACT_FNS"].keys() == functions.keys()
    for name, function in functions.items():
        assert torch.equal(names["ACT_FNS"][name](x), function(x))
    torch.testing.assert_close(names["swish"](x), x * torch.sigmoid(x))


def test_a_dotdict_has_its_items_as_attributes_and_none_for_others():
    cfg = dotdict({"n_embd": 16, "afn": "gelu"})
    assert (cfg.n_embd, cfg["afn"], cfg.n_head, cfg.get("n_head", 2)) == (16, "gelu", None, 2)
    cfg.n_head = 4
    assert cfg["n_head"] == 4
    del cfg.afn
    assert "afn" not in cfg
    for other in (copy.deepcopy(cfg), pickle.loads(pickle.dumps(cfg)), dotdict(cfg)):
        assert type(other) is dotdict and other == {"n_embd": 16, "n_head": 4}


def test_settings_of_the_network_are_items_too():
    values = dict(DEFAULT_CONFIG)
    assert values["n_embd"] == DEFAULT_CONFIG["n_embd"] == 768 and len(values) == 8
    cfg = dotdict(values | {"n_embd": 8, "n_head": 2, "n_layer": 1})
    assert LMModel(cfg, vocab=20, n_ctx=5)(batch(5, 20, 5)).shape == (2, 5, 20)
    with pytest.raises(KeyError, match="n_embed"):
        DEFAULT_CONFIG["n_embed"]


def test_columns_of_the_story_cloze_test(data_dir):
    names = importlib.import_module("datasets")
    path = data_dir / ROCSTORIES_TEST
    *columns, labels = names._rocstories(str(path))
    *expected, numbers = read_cloze(path)
    assert columns == expected and labels == list(numbers) and type(labels) is list
    (*train, _), (*valid, _), test = rocstories(data_dir, n_train=30, n_valid=10)
    assert [len(column) for column in (train[0], valid[0], test[0])] == [30, 10, 12]
    assert (len(train), len(valid), len(test)) == (3, 3, 3)


def test_transform_roc_without_sizes_says_what_is_missing():
    with pytest.raises(TypeError, match="needs n_vocab, n_ctx and max_len as arguments, as it sees no names"):
        transform_roc([[1]], [[2]], [[3]])


def test_the_loader_takes_the_further_arguments_of_the_port(model_dir):
    cfg = dotdict(dict(DEFAULT_CONFIG) | {"n_embd": 16, "n_head": 2, "n_layer": 2})
    n_vocab = TextEncoder(model_dir / "encoder_bpe_40000.json", model_dir / "vocab_40000.bpe").n_vocab
    model = LMModel(cfg, n_vocab + 3 + 20, 20)
    how = {"n_ctx": 20, "n_special": 3, "n_transfer": 12, "path": str(model_dir), "path_names": "./"}
    assert load_openai_pretrained_model(model.transformer, n_embd=16, **how) == 2
    before = model.transformer.embed.weight.clone()
    with pytest.raises(InputError, match="the weights have n_embd 16, the call says 768"):
        load_openai_pretrained_model(model.transformer, n_embd=768, **how)
    assert torch.equal(model.transformer.embed.weight, before)


# --- losses ----------------------------------------------------------------------------------------------------------


def plain_losses(x, m, y, clf_logits, lm_logits) -> tuple[list[float], list[float]]:
    """Return the losses of the task and of the language model of each row, one prediction at a time."""
    task = [-row.log_softmax(-1)[int(label)].item() for row, label in zip(clf_logits, y, strict=True)]
    lm = []
    for ids, mask, logits in zip(x[..., 0].flatten(0, -2), m.flatten(0, -2), lm_logits, strict=True):
        of_tokens = [-logits[t].log_softmax(-1)[ids[t + 1]].item() for t in range(len(ids) - 1) if mask[t + 1]]
        lm.append(sum(of_tokens) / max(1, len(of_tokens)))
    return task, lm


@pytest.mark.parametrize("name, shape", [("MultipleChoice", (3, 2, 5)), ("Classification", (3, 5))])
def test_losses_of_a_batch_are_the_ports_sums(name, shape):
    torch.manual_seed(0)
    x = torch.randint(0, 11, (*shape, 2))
    m = torch.ones(shape)
    m[0, ..., 3:] = 0
    m[1, ..., 1:] = 0  # no next token
    y = torch.tensor([0, 1, 1])
    clf_logits = torch.randn(3, 2, requires_grad=True)
    lm_logits = torch.randn(m[..., 0].numel(), 4, 11, requires_grad=True)
    criterion = torch.nn.CrossEntropyLoss(reduction="none")
    compute = getattr(loss, f"{name}LossCompute")

    # the losses alone
    task, lm = plain_losses(x, m, y, clf_logits, lm_logits)
    ours = compute(criterion, criterion, 0.5)
    found = ours(x, y, m, clf_logits, lm_logits.flatten(0, 1), only_return_losses=True)
    np.testing.assert_allclose(found[0].detach(), task, rtol=1e-5)
    np.testing.assert_allclose(found[1].detach(), lm, rtol=1e-5)
    np.testing.assert_allclose(ours(x, y, m, clf_logits, only_return_losses=True).detach(), task, rtol=1e-5)
    assert clf_logits.grad is None

    # backward of the sums, and the update
    before = clf_logits.detach().clone()
    assert ours(x, y, m, clf_logits, lm_logits.flatten(0, 1)) == pytest.approx(sum(task) + 0.5 * sum(lm))
    gradient = clf_logits.softmax(-1).detach() - torch.nn.functional.one_hot(y, 2)
    torch.testing.assert_close(clf_logits.grad, gradient)
    assert torch.equal(clf_logits, before)
    clf_logits.grad = None
    optimizer = torch.optim.SGD([clf_logits], lr=0.1)
    for lm_coef, logits in ((0, lm_logits.flatten(0, 1)), (0.5, None)):
        start = clf_logits.detach().clone()
        task, _ = plain_losses(x, m, y, start, lm_logits)
        assert compute(criterion, criterion, lm_coef, opt=optimizer)(x, y, m, clf_logits, logits) == pytest.approx(
            sum(task)
        )
        gradient = start.softmax(-1) - torch.nn.functional.one_hot(y, 2)
        torch.testing.assert_close(clf_logits.detach(), start - 0.1 * gradient)
        assert clf_logits.grad is None


# --- whole scripts in the port's style -------------------------------------------------------------------------------

TRAIN = """
import os
import numpy as np
import torch
from torch import nn
from sklearn.utils import shuffle
from analysis import rocstories as rocstories_analysis
from datasets import rocstories
from loss import MultipleChoiceLossCompute
from model_pytorch import DEFAULT_CONFIG, DoubleHeadModel, dotdict, load_openai_pretrained_model
from opt import OpenAIAdam
from text_utils import TextEncoder
from train import transform_roc
from utils import ResultLogger, encode_dataset, iter_data, make_path

args = dotdict(dict(DEFAULT_CONFIG))
args.update(n_embd=16, n_head=2, n_layer=2, n_iter=2, n_batch=4, lr=1e-3, lr_warmup=0.1, lm_coef=0.5, l2=0.01)
np.random.seed(0)
torch.manual_seed(0)
logger = ResultLogger(path="log/rocstories.jsonl", **args)
text_encoder = TextEncoder("model/encoder_bpe_40000.json", "model/vocab_40000.bpe")
encoder = text_encoder.encoder
n_vocab = len(encoder)
(trX1, trX2, trX3, trY), (vaX1, vaX2, vaX3, vaY), (teX1, teX2, teX3) = encode_dataset(
    *rocstories("data", n_valid=8), encoder=text_encoder
)
for name in ("_start_", "_delimiter_", "_classify_"):
    encoder[name] = len(encoder)
n_special, max_len = 3, 29
columns = [c for split in ((trX1, trX2, trX3), (vaX1, vaX2, vaX3), (teX1, teX2, teX3)) for c in zip(*split)]
n_ctx = min(64, max(len(a[:max_len]) + max(len(b[:max_len]), len(c[:max_len])) for a, b, c in columns) + 3)
trX, trM = transform_roc(trX1, trX2, trX3, n_vocab, n_ctx, max_len)
vaX, vaM = transform_roc(vaX1, vaX2, vaX3, n_vocab, n_ctx, max_len)
teX, teM = transform_roc(teX1, teX2, teX3, n_vocab, n_ctx, max_len)

dh_model = DoubleHeadModel(args, encoder["_classify_"], "multiple_choice", n_vocab + n_special + n_ctx, n_ctx)
criterion = nn.CrossEntropyLoss(reduction="none")
model_opt = OpenAIAdam(
    dh_model.parameters(), lr=args.lr, schedule="warmup_linear", warmup=args.lr_warmup,
    t_total=len(trY) // args.n_batch * args.n_iter, b1=0.9, b2=0.999, e=1e-8, l2=args.l2, vector_l2=False,
    max_grad_norm=1, ignored=None,
)
compute_loss_fct = MultipleChoiceLossCompute(criterion, criterion, args.lm_coef, model_opt)
load_openai_pretrained_model(
    dh_model.transformer, n_ctx=n_ctx, n_special=n_special, n_embd=args.n_embd, path="./model/", path_names="./"
)
dh_model = nn.DataParallel(dh_model)

def tensors(x, m, y):
    return torch.tensor(x, dtype=torch.long), torch.tensor(y, dtype=torch.long), torch.tensor(m)

def evaluate(x, m, y):
    dh_model.eval()
    logits, losses = [], []
    with torch.no_grad():
        for xmb, mmb, ymb in iter_data(x, m, y, n_batch=args.n_batch):
            X, Y, M = tensors(xmb, mmb, ymb)
            _, clf_logits = dh_model(X)
            losses.append(compute_loss_fct(X, Y, M, clf_logits, only_return_losses=True).sum().item())
            logits.append(clf_logits.numpy())
    return np.concatenate(logits), sum(losses) / len(y)

for epoch in range(args.n_iter):
    for xmb, mmb, ymb in iter_data(*shuffle(trX, trM, trY, random_state=0), n_batch=args.n_batch, truncate=True):
        dh_model.train()
        X, Y, M = tensors(xmb, mmb, ymb)
        lm_logits, clf_logits = dh_model(X)
        compute_loss_fct(X, Y, M, clf_logits, lm_logits)
    logits, cost = evaluate(vaX, vaM, vaY)
    logger.log(n_epochs=epoch + 1, va_cost=cost, va_acc=100 * (logits.argmax(1) == vaY).mean())
torch.save(dh_model.state_dict(), make_path("save/rocstories/best_params"))
dh_model.load_state_dict(torch.load("save/rocstories/best_params"))
logits, _ = evaluate(teX, teM, np.zeros(len(teX)))
with open(make_path("submission/ROCStories.tsv"), "w") as f:
    f.write("index\\tprediction\\n")
    for i, prediction in enumerate(logits.argmax(1)):
        f.write("{}\\t{}\\n".format(i, prediction))
rocstories_analysis("data", "submission/ROCStories.tsv", "log/rocstories.jsonl")
"""

GENERATE = """
import torch
from generate import append_batch
from model_pytorch import LMModel, load_openai_pretrained_model, DEFAULT_CONFIG, dotdict
from text_utils import TextEncoder

args = dotdict(dict(DEFAULT_CONFIG), n_embd=16, n_head=2, n_layer=2)
text_encoder = TextEncoder("model/encoder_bpe_40000.json", "model/vocab_40000.bpe")
n_vocab, n_special, n_ctx = len(text_encoder.encoder), 0, 64
lm_model = LMModel(args, n_vocab + n_special + n_ctx, n_ctx, return_probs=True)
load_openai_pretrained_model(lm_model.transformer, n_ctx=n_ctx, n_special=n_special)
lm_model.eval()
tokens = torch.tensor(text_encoder.encode(["the cat was"]))
x = torch.stack([tokens, torch.arange(n_vocab, n_vocab + tokens.size(1)).expand_as(tokens)], -1)
for _ in range(10):
    next_idx = lm_model(x)[:, -1].argmax(-1, keepdim=True)
    x = append_batch(x, next_idx)
print(x[0, :, 0].tolist())
print(x[0, :, 1].tolist())
"""


@pytest.fixture
def run_script(tmp_path, monkeypatch, capsys) -> Callable[[str], list[str]]:
    """Run a script in a folder of its own and return the lines that it prints."""

    def run(script: str) -> list[str]:
        monkeypatch.chdir(tmp_path)
        names = {"__name__": "__main__"}
        exec(compile(script, "script.py", "exec"), names)
        if "logger" in names:  # which ends with the script
            names["logger"].close()
        return capsys.readouterr().out.splitlines()

    return run


def test_a_training_script_in_the_ports_style_runs_unmodified(model_dir, data_dir, tmp_path, run_script):
    lines = run_script(TRAIN)
    settings, *logs = read_lines(tmp_path / "log/rocstories.jsonl")
    assert settings["n_embd"] == 16 and settings["time"] <= logs[0]["time"] <= logs[1]["time"]
    _, *rows = (tmp_path / "submission/ROCStories.tsv").read_text().splitlines()
    predictions = [int(row.split("\t")[1]) for row in rows]
    *_, labels = read_cloze(data_dir / ROCSTORIES_TEST)
    assert lines == [
        f"ROCStories Valid Accuracy: {max(log['va_acc'] for log in logs):.2f}",
        f"ROCStories Test Accuracy:  {100 * np.mean(labels == predictions):.2f}",
    ]


def test_a_generating_script_in_the_ports_style_runs_unmodified(model_dir, run_script):
    ids, positions = map(json.loads, run_script(GENERATE))
    model, encoder = open_model(model_dir)
    n = len(ids) - 10
    assert positions == list(range(encoder.n_vocab, encoder.n_vocab + n + 10))
    assert encoder.decode(ids[n:]) == generate_text(model, encoder, "the cat was", 10, temperature=0)[0]


BAD_FILES = {
    "no log": ("log.jsonl", None, "log.jsonl is not the log of a run"),
    "a log of settings only": ("log.jsonl", '{"seed": 1}\n', "log.jsonl is not the log of a run"),
    "no predictions": ("ROCStories.tsv", None, "ROCStories.tsv is not a table of predictions"),
    "words": ("ROCStories.tsv", "index\tprediction\n0\tyes\n", "ROCStories.tsv is not a table of predictions"),
    "too few": ("ROCStories.tsv", "index\tprediction\n0\t1\n", "has 1 predictions, the test file 12"),
}


@pytest.mark.parametrize("file, content, message", BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_cannot_be_analysed_are_named(data_dir, tmp_path, file, content, message):
    analysis = importlib.import_module("analysis")
    files = {
        "log.jsonl": '{"seed": 1}\n{"va_acc": 50.0}\n',
        "ROCStories.tsv": "index\tprediction\n" + "".join(f"{i}\t1\n" for i in range(12)),
        file: content,
    }
    for name, text in files.items():
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        analysis.rocstories(data_dir, tmp_path / "ROCStories.tsv", tmp_path / "log.jsonl")


# --- what a network reads --------------------------------------------------------------------------------------------


def batch(n_tokens: int, n_embeddings: int, n_ctx: int, shape: tuple[int, ...] = (2,)) -> torch.Tensor:
    """Return random token ids with their position ids (..., T, 2)."""
    first = n_embeddings - n_ctx
    ids = torch.randint(0, first, (*shape, n_tokens), generator=torch.Generator().manual_seed(n_tokens))
    return torch.stack([ids, first + torch.arange(n_tokens).expand_as(ids)], -1)


@pytest.fixture
def language_model() -> LMModel:
    torch.manual_seed(0)
    return LMModel(SMALL, vocab=40, n_ctx=12).eval()


@pytest.fixture
def two_heads() -> DoubleHeadModel:
    torch.manual_seed(0)
    return DoubleHeadModel(SMALL, 27, "multiple_choice", vocab=40, n_ctx=12).eval()


SMALL = dotdict(dict(DEFAULT_CONFIG) | {"n_embd": 8, "n_head": 2, "n_layer": 2})


def test_ids_without_positions_are_refused_with_the_line_that_makes_them(language_model, two_heads):
    ids = batch(5, 40, 12)[..., 0]
    message = r"x \(2, 5\) needs two channels, token ids and position ids \(B, T, 2\)"
    for call in (
        lambda: language_model(ids),
        lambda: two_heads(ids),
        lambda: language_model.transformer(ids),
        lambda: loss.compute_losses(two_heads, ids, torch.ones(2, 5), torch.zeros(2), 0.5),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call()
    with pytest.raises(ValueError, match=r"x \(2, 5, 1\) needs two channels"):
        language_model(ids[..., None])

    # the line as it stands in the message
    line = str(caught.value).split("(B, T): x = ")[1].split(", where")[0]
    n_embeddings = len(language_model.transformer.embed.weight)
    names = {"torch": torch, "ids": ids, "n_vocab": n_embeddings - language_model.transformer.n_ctx, "n_special": 0}
    assert torch.equal(eval(line, names), batch(5, 40, 12))


def test_a_third_channel_is_looked_up_and_added_too(language_model):
    x = batch(5, 40, 12)
    types = torch.tensor([25, 25, 26, 26, 26]).expand(2, -1)
    table = language_model.transformer.embed.weight
    rows = []
    handle = language_model.transformer.h[0].register_forward_hook(lambda _, inputs, output: rows.append(inputs[0]))
    language_model(torch.cat([x, types[..., None]], -1))
    handle.remove()
    torch.testing.assert_close(rows[0], (table[x[..., 0]] + table[x[..., 1]] + table[types]).flatten(0, 1))


# --- pickling --------------------------------------------------------------------------------------------------------


def by_torch(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_joblib(value):
    file = io.BytesIO()
    joblib.dump(value, file)
    file.seek(0)
    return joblib.load(file)


def by_pickle(value):
    return pickle.loads(pickle.dumps(value))


def outputs(model, x: torch.Tensor) -> list[torch.Tensor]:
    """Return what a network gives out, as a list."""
    with torch.no_grad():
        found = model(x)
    return [found] if isinstance(found, torch.Tensor) else list(found)


@pytest.mark.parametrize("copied", [by_pickle, by_torch, by_joblib, copy.deepcopy])
def test_a_network_can_be_pickled(language_model, two_heads, copied):
    for model, shape in ((language_model, (2,)), (two_heads, (2, 2))):
        x = batch(5, 40, 12, shape)
        x[..., -1, 0] = 27
        other = copied(model)
        assert other.lm_head.decoder.weight is other.transformer.embed.weight and not other.training
        assert all(map(torch.equal, outputs(model, x), outputs(other, x)))
        other.load_state_dict(model.state_dict())


def test_a_run_can_be_pickled_and_goes_to_another_process(model_dir):
    run = fit(["the cat was", "in red"] * 10, ["a", "b"] * 10, model_dir=model_dir, n_iter=1, n_batch=4)
    texts = ["the cat", "red"]
    expected = run.predict(texts)  # its encoder has split texts, so it holds spaCy's tokenizer
    for copied in (by_pickle, by_torch, by_joblib):
        assert copied(run).predict(texts) == expected
    with forks().Pool(1) as pool:
        assert pool.apply(run.predict, (texts,)) == expected


# --- tracing and export ----------------------------------------------------------------------------------------------


def assert_same(call, model, batches: list[torch.Tensor]) -> None:
    for x in batches:
        for expected, found in zip(outputs(model, x), call(x), strict=True):
            torch.testing.assert_close(torch.as_tensor(found), expected, atol=1e-5, rtol=0)


def inputs_of(name: str) -> list[torch.Tensor]:
    """Return batches of several sizes for one of the two networks; a classify token ends each row."""
    if name == "language_model":
        return [batch(5, 40, 12), batch(9, 40, 12, (3,)), batch(12, 40, 12)]
    batches = [batch(5, 40, 12, (2, 2)), batch(9, 40, 12, (3, 2)), batch(12, 40, 12, (2, 2))]
    for x in batches:
        x[..., -1, 0] = 27
    return batches


def dynamic_sizes(x: torch.Tensor) -> dict[int, Dim]:
    """Return the axes of x that may have another size: examples and tokens."""
    return {0: Dim("B"), x.dim() - 2: Dim("T", min=3)}


NAMES = ["language_model", "two_heads"]


@pytest.mark.filterwarnings("ignore")  # torch's own: that a trace is of one way through the code, and goes
@pytest.mark.parametrize("name", NAMES)
def test_a_traced_network_gives_the_same(request, name):
    model = request.getfixturevalue(name)
    batches = inputs_of(name)
    traced = torch.jit.trace(model, batches[0])
    assert_same(lambda x: outputs(traced, x), model, batches)


@pytest.mark.parametrize("name", [pytest.param("language_model", marks=pytest.mark.slow), "two_heads"])
def test_an_exported_network_takes_any_number_of_tokens(request, name):
    model = request.getfixturevalue(name)
    batches = inputs_of(name)
    exported = export(model, (batches[0],), dynamic_shapes=(dynamic_sizes(batches[0]),)).module()
    assert_same(lambda x: outputs(exported, x), model, batches)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("name, dynamo", [("language_model", True), ("language_model", False), ("two_heads", True)])
def test_a_network_runs_in_onnx(request, name, dynamo, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = request.getfixturevalue(name)
    batches = inputs_of(name)
    path = tmp_path / "model.onnx"
    if dynamo:
        how = {"dynamic_shapes": (dynamic_sizes(batches[0]),), "verbose": False}
    else:
        how = {"input_names": ["x"], "dynamic_axes": {"x": {0: "B", 1: "T"}}}
    torch.onnx.export(model, (batches[0],), path, dynamo=dynamo, **how)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert_same(lambda x: session.run(None, {session.get_inputs()[0].name: x.numpy()}), model, batches)


# --- special tokens that a user adds ---------------------------------------------------------------------------------


def test_special_tokens_that_a_user_adds_change_nothing_in_any_function_that_takes_an_encoder(tmp_path):
    folder = write_model(tmp_path / "model")
    data = write_data(tmp_path / "data")
    texts = ["the cat was in red and the cat was", "in red"] * 10
    run = fit(texts, ["a", "b"] * 10, model_dir=folder, n_iter=1, n_batch=4)
    pre_trained = open_model(folder)
    adapter = Adapter(str(folder))
    text = "the cat was in red"

    def request(*args):
        return [type("Request", (), {"args": args})]

    def found() -> list:
        values = []
        for model, encoder in (pre_trained, (run.model, run.encoder)):
            generator = torch.Generator().manual_seed(0)
            values += [
                generate_text(model, encoder, text, 8, generator=generator),
                features(model, encoder, [text])[0].states.tolist(),
                features(model, encoder, [text], per="word", n_context=1)[0].states.tolist(),
                pooled_features(model, encoder, [text]).tolist(),
                attention_weights(model, encoder, text).weights.tolist(),
                score(model, encoder, text).log_probabilities[1:].tolist(),
                encoder.encode([text], verbose=False),
                encoder.decode(range(20)),
            ]
        task = TASKS["rocstories"]
        splits = read_splits(task, data, pre_trained[1], Limits(10, 0, 64))
        values += [describe(splits, pre_trained[1]), zero_shot(*pre_trained, splits, "choice")]
        values += [run.predict([text]), adapter.loglikelihood(request(text, " the")), adapter.n_words]
        values += [adapter.generate_until(request(text, {"max_gen_toks": 5}))]
        return values

    expected = found()
    for encoder in (pre_trained[1], run.encoder, adapter.encoder):
        for name in ("_start_", "_delimiter_", "_classify_"):
            encoder.encoder[name] = len(encoder.encoder)
    assert found() == expected
