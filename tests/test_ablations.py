"""The ablations' script, on a network of two blocks."""

import json
from pathlib import Path

import ablations


def test_every_ablation_runs_once_and_is_reported(tmp_path, monkeypatch, capsys, model_dir, data_dir):
    monkeypatch.chdir(tmp_path)
    folders = ["--model_dir", str(model_dir), "--data_dir", str(data_dir)]
    command = ["ablations.py", *folders, "--seeds", "1", "--", "--n_iter=1", "--n_batch=10", "--n_valid=10"]
    monkeypatch.setattr("sys.argv", command)
    ablations.main()
    results = [json.loads(line) for line in Path("ablations.jsonl").read_text().splitlines()]
    assert [row["name"] for row in results] == [
        "full",
        "no pre-training",
        "no auxiliary LM",
        "0 of 2 blocks transferred",
        "1 of 2 blocks transferred",
    ]
    assert all(0 <= row["test"] <= 100 for row in results)
    assert Path("ablations.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    ablations.main()  # all runs are done
    table = capsys.readouterr().out
    assert "seed 1" not in table and f"| full | {results[0]['test']:.1f} ± nan % | 1 |" in table
