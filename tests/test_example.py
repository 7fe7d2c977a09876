"""example.ipynb runs from top to bottom, and the outputs that it is stored with are whole and clean."""

import csv
import json
import os

import matplotlib
import pytest
from helpers import ROOT

PATH = ROOT / "example.ipynb"


@pytest.fixture(scope="module")
def cells() -> list[dict]:
    return [cell for cell in json.loads(PATH.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_every_cell_runs(cells, monkeypatch):
    monkeypatch.chdir(ROOT)
    matplotlib.use("Agg")
    names = {}
    for n, cell in enumerate(cells, 1):
        exec(compile("".join(cell["source"]), f"{PATH.name}, cell {n}", "exec"), names)
    plt = names["plt"]
    assert len(plt.get_fignums()) == 4 and all(plt.figure(n).axes for n in plt.get_fignums())
    plt.close("all")

    probabilities = names["prediction"].probabilities  # of the last story: she gave it water
    assert probabilities[2] > 0.5
    worse = names["story"].format("She forgot to water it.")
    assert names["run"].predict([(worse, *names["endings"])])[0].label == 1
    assert names["points"].shape == (180, 2)
    assert float(names["probabilities"].sum()) > 0.9


def test_the_new_story_is_in_no_file(cells):
    (source,) = ("".join(cell["source"]) for cell in cells if "endings = [" in "".join(cell["source"]))
    names = {}
    exec(source.split("for sentence")[0], names)
    begin, end = names["story"].split(" {} ")
    for path in (ROOT / "demo/data").glob("*.csv"):
        with open(path, encoding="utf-8", newline="") as file:
            contexts = [" ".join(line[1:5]) for line in csv.reader(file)]
        assert len(contexts) > 1000
        assert not any(context.startswith(begin) and context.endswith(end) for context in contexts), path


def test_stored_outputs_are_of_one_clean_run(cells):
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert all(output.get("name") != "stderr" and output["output_type"] != "error" for output in outputs)
    texts = "".join("".join(output.get("text", "")) for output in outputs)
    assert len(texts) > 1000 and "\nwarning " not in texts
    assert f"{os.sep}home" not in texts and f"{os.sep}tmp" not in texts and f"{os.sep}root" not in texts
    assert PATH.stat().st_size < 200_000
