"""How the code is laid out: which file may import which, what an import loads, public names."""

import argparse
import ast
import dataclasses
import importlib
import inspect
import json
import re
import subprocess
import sys

import pytest
from helpers import ROOT

import model_pytorch
from reading.tasks import TASKS

ROOMS = ("speed", "formats", "reading", "running", "bench", "demo")
FILES = {path.stem: path for path in sorted(ROOT.glob("*.py"))}
FILES |= {
    f"{room}.{path.stem}": path
    for room in ROOMS
    for path in sorted((ROOT / room).glob("*.py"))
    if path.stem != "__init__"
}

# A file imports from its own room and from the lines above its own. `utils` and `datasets` hand names on to users:
# packages in most users' notebooks have these names, so that no file of ours asks for them.
LAYERS = [
    "formats speed",
    "text_utils",
    "reading opt",
    "port",
    "model_pytorch",
    "loss",
    "running",
    "weights generation scoring analysis",
    "zero_shot features",
    "train pretrain predict generate convert verify lm_eval_adapter",
    "finetuning reproduce",
    "bench demo",
    "utils datasets",
]
COMMANDS = set("train pretrain predict generate convert verify reproduce analysis lm_eval_adapter".split())

# --- imports ---------------------------------------------------------------------------------------------------------


def imports(source: str, within_functions: bool = True) -> set[str]:
    """Return the modules that a source imports, at its top and, unless told otherwise, within functions."""
    found, tree = set(), ast.parse(source)
    for node in ast.walk(tree) if within_functions else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} if module in ROOMS else {module}
    return found


def arrows() -> dict[str, set[str]]:
    """Return for each of our modules those of ours that it imports."""
    return {name: imports(path.read_text(encoding="utf-8")) & FILES.keys() for name, path in FILES.items()}


def reach(name: str, within_functions: bool = True) -> set[str]:
    """Return a module of ours and all of ours that it imports, also through others."""
    reached, new = {name}, {name}
    while new:
        imported = set().union(
            *(imports(FILES[module].read_text(encoding="utf-8"), within_functions) for module in new)
        )
        new = (imported & FILES.keys()) - reached
        reached |= new
    return reached


def test_every_import_goes_to_the_own_room_or_a_line_above():
    line = {part: n for n, parts in enumerate(LAYERS) for part in parts.split()}
    found = []
    for name, others in arrows().items():
        own = name.split(".")[0]
        for part in {other.split(".")[0] for other in others}:
            if line[part] >= line[own] and (part != own or own not in ROOMS):
                found.append(f"{name} imports {part}")
    assert found == []


def test_no_imports_go_round_in_a_circle():
    left = arrows()
    assert sum(map(len, left.values())) > 50
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def test_imports_are_found_wherever_they_stand():
    source = "import a.b\nfrom c.d import e\ndef f():\n    import g, h\n    from reading import rows\n"
    assert imports(source) == {"a.b", "c.d", "g", "h", "reading.rows"}
    assert imports(source, within_functions=False) == {"a.b", "c.d"}


def test_the_root_is_calm():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    entries = {name.split("/")[0] for name in listed.stdout.splitlines() if not name.startswith(".")}
    assert len(entries) <= 40
    assert len([name for name in entries if name.endswith(".py")]) <= 22


def test_every_room_says_in_a_line_what_it_is_for():
    for room in ROOMS:
        assert re.fullmatch(r'""".+\."""\n', (ROOT / room / "__init__.py").read_text(encoding="utf-8")), room


def test_the_model_and_the_files_below_it_import_no_package_but_torch_and_numpy():
    reached = reach("model_pytorch", within_functions=False)
    expected = {"port", "speed.device", "speed.kernels", "speed.packing", "formats.authors", "formats.config"}
    expected |= {"formats.files", "formats.folders", "formats.hugging_face"}
    assert reached == {"model_pytorch", *expected}
    imported = set().union(*(imports(FILES[name].read_text(encoding="utf-8"), False) for name in reached))
    packages = {name.split(".")[0] for name in imported}  # torch may itself load others, such as tqdm
    assert packages - sys.stdlib_module_names - set(ROOMS) - FILES.keys() == {"torch", "numpy"}


HEAVY = {"matplotlib", "pandas", "scipy", "spacy", "sklearn", "ftfy", "transformers", "tokenizers"}


@pytest.fixture(scope="module")
def loaded() -> list[set[str]]:
    """The top-level modules of a fresh interpreter after three imports: torch, the model, the library.

    While the model is imported there is no package but torch and numpy.
    """
    blocked = sorted(HEAVY | {"tqdm", "safetensors"})
    library = sorted(FILES.keys() - COMMANDS - {name for name in FILES if name.startswith(("bench", "demo"))})
    statements = [
        "import json, sys, torch, numpy",
        f"missing = set({blocked}) - sys.modules.keys(); sys.modules |= dict.fromkeys(missing); import model_pytorch",
        f"for name in missing: del sys.modules[name]\nimport {', '.join(library)}",
    ]
    report = "print(json.dumps(sorted({name.split('.')[0] for name, module in sys.modules.items() if module})))"
    script = "\n".join(f"{statement}\n{report}" for statement in statements)
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [set(json.loads(line)) for line in run.stdout.splitlines()]


def test_importing_the_model_needs_and_loads_no_package_but_torch_and_numpy(loaded):
    before, after, _ = loaded
    assert "torch" in before and "model_pytorch" in after
    assert after - before - sys.stdlib_module_names - FILES.keys() - set(ROOMS) == set()


def test_importing_the_library_loads_no_package_for_texts_tables_or_pictures(loaded):
    assert {"model_pytorch", "finetuning"} <= loaded[2]
    assert loaded[2] & HEAVY == set()


# --- data and network know nothing of each other ----------------------------------------------------------------------

READERS = ["formats.examples", "reading.tasks", "datasets", "reading.encoding"]
NETWORK = ["model_pytorch", "speed.device", "speed.kernels", "speed.packing", "loss", "opt", "running.training"]


def names_in(source: str, words: set[str]) -> set[str]:
    """Return which of these words, in whatever case, a source holds: in its code, comments or strings."""
    found = re.findall(rf"(?<!\w)({'|'.join(map(re.escape, words))})(?!\w)", source, re.IGNORECASE)
    return {word.lower() for word in found}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_reads_data_does_not_name_the_network(name):
    source = FILES[name].read_text(encoding="utf-8")
    assert names_in(source, {"torch", "model_pytorch"}) == set()
    assert not reach(name) & set(NETWORK)  # nor imports it through another file


@pytest.mark.parametrize("name", NETWORK)
def test_a_file_of_the_network_does_not_name_a_data_set(name):
    words = {word for key, task in TASKS.items() for word in (key, task.title)}
    assert len(words) > 20
    assert names_in(FILES[name].read_text(encoding="utf-8"), words) == set()


def test_a_name_is_found_as_a_word_in_whatever_case():
    source = 'import torch.nn\nx = "SST-2"  # of Race, not traced, not qnli_v2\n'
    assert names_in(source, {"torch", "sst-2", "race", "qnli", "loss"}) == {"torch", "sst-2", "race"}


# --- public names ----------------------------------------------------------------------------------------------------

SIGNATURES = {
    "model_pytorch": [
        "TransformerModel(cfg, vocab=40990, n_ctx=512)",
        "LMHead(model, cfg, trunc_and_reshape=True)",
        "ClfHead(clf_token, cfg, n_class)",
        "MultipleChoiceHead(clf_token, cfg)",
        "SimilarityHead(clf_token, cfg)",
        "LMModel(cfg, vocab=40990, n_ctx=512, return_probs=False)",
        "DoubleHeadModel(cfg, clf_token, task_head_type, vocab=40990, n_ctx=512)",
        "load_openai_pretrained_model(model, n_ctx=-1, n_special=-1, n_transfer=12, path='./model/')",
    ],
    "opt": [
        "OpenAIAdam(params, lr, schedule, warmup, t_total, b1=0.9, b2=0.999, e=1e-08, l2=0, vector_l2=False, "
        "max_grad_norm=-1)",
    ],
    "loss": ["compute_losses(model, x, m, y, lm_coef)"],
    "text_utils": ["TextEncoder(encoder_path, bpe_path)", "text_standardize(text)"],
    "utils": [
        "encode_dataset(*splits, encoder)",
        "iter_data(*arrays, n_batch=128, truncate=False, verbose=False)",
        "ResultLogger(path, *args, **kwargs)",
    ],
    "datasets": ["rocstories(data_dir, n_valid=374)"],
    "weights": ["open_model(folder)", "open_run(folder)"],
    "finetuning": ["fit(examples, labels, task='classification')"],
    "generation": ["generate_text(model, encoder, prompt, n_tokens)"],
    "scoring": ["score(model, encoder, text)"],
    "features": ["features(model, encoder, texts)", "attention_weights(model, encoder, example)"],
    "zero_shot": ["zero_shot(model, encoder, splits, heuristic)"],
    "train": ["transform_roc(stories, first, second, n_vocab=None, n_ctx=None, max_len=None)", "main(argv=None)"],
}


@pytest.mark.parametrize("module", SIGNATURES)
def test_public_names_are_where_they_were_with_their_arguments(module):
    for expected in SIGNATURES[module]:
        name = expected.split("(")[0]
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters.values()
        plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
        n_expected = len(inspect.signature(eval(f"lambda {expected[len(name) + 1 : -1]}: 0")).parameters)
        for further in plain[n_expected:]:  # more may follow that a caller may leave out
            assert further.default is not further.empty or further.kind is further.VAR_KEYWORD, name
        shown = str(inspect.Signature(plain[:n_expected]))
        assert f"{name}{shown}" == expected


def test_other_public_attributes():
    sizes = ["n_embd", "n_head", "n_layer", "embd_pdrop", "attn_pdrop", "resid_pdrop", "clf_pdrop", "afn"]
    assert [field.name for field in dataclasses.fields(model_pytorch.DEFAULT_CONFIG)] == sizes
    with pytest.raises(dataclasses.FrozenInstanceError):
        model_pytorch.DEFAULT_CONFIG.n_embd = 1
    schedules = {"warmup_linear", "warmup_constant", "warmup_cosine"}
    assert schedules <= importlib.import_module("opt").SCHEDULES.keys()

    small = dataclasses.replace(model_pytorch.DEFAULT_CONFIG, n_embd=4, n_head=2, n_layer=1)
    cfg = argparse.Namespace(**dataclasses.asdict(small))  # anything with these attributes is accepted
    model = model_pytorch.DoubleHeadModel(cfg, 5, "multiple_choice", vocab=10, n_ctx=4)
    names = {name for name, _ in model.transformer.named_parameters()}
    block = ["attn.c_attn.w", "attn.c_attn.b", "attn.c_proj.w", "attn.c_proj.b", "ln_1.g", "ln_1.b"]
    block += ["mlp.c_fc.w", "mlp.c_fc.b", "mlp.c_proj.w", "mlp.c_proj.b", "ln_2.g", "ln_2.b"]
    assert names == {"embed.weight", *(f"h.0.{name}" for name in block)}
    assert hasattr(model, "lm_head") and hasattr(model.task_head, "linear")
    for head in (model_pytorch.ClfHead(5, cfg, 3), model_pytorch.SimilarityHead(5, cfg)):
        assert hasattr(head, "linear")


def test_flags_of_the_specification_exist():
    flags = {field.name for field in dataclasses.fields(importlib.import_module("running.settings").FineTuningFlags)}
    assert flags >= set(
        """dataset desc data_dir log_dir save_dir submission_dir submit analysis seed encoder_path bpe_path model_dir
        n_iter n_batch lr lr_warmup lr_schedule max_grad_norm n_ctx n_embd n_head n_layer embd_pdrop attn_pdrop
        resid_pdrop clf_pdrop afn l2 vector_l2 b1 b2 e lm_coef n_transfer n_valid""".split()
    )
