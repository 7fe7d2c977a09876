"""The authors' sizes: 466 MB of weights. `make test-slow` runs it; it writes as much to the temporary folder."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from formats.folders import FolderSizes

LOAD = """
import resource, sys, torch
from model_pytorch import DEFAULT_CONFIG, TransformerModel, load_openai_pretrained_model
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = TransformerModel(DEFAULT_CONFIG, vocab=40478 + 3 + 77, n_ctx=77)
load_openai_pretrained_model(model, 77, 3, 12, sys.argv[1])
size = sum(p.numel() * p.element_size() for p in model.parameters())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / size, model.h[11].ln_2.b[-1].item())
"""


@pytest.mark.slow
def test_loading_holds_less_than_twice_the_parameters(tmp_path: Path):
    shapes = FolderSizes(n_vocab=40478, n_positions=512, n_embd=768, n_head=12, n_layer=12).shapes()
    assert sum(map(math.prod, shapes)) == 116_534_784
    values = np.random.default_rng(0).standard_normal(116_534_784, dtype=np.float32)
    for i, shard in enumerate(np.array_split(values, 10)):
        np.save(tmp_path / f"params_{i}.npy", shard)
    (tmp_path / "params_shapes.json").write_text(json.dumps(shapes))
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    result = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    times_the_parameters, last = map(float, result.stdout.split())
    assert times_the_parameters < 2
    assert last == values[-1].item()
