"""Lines a second of SavedRun.predict and of transformers' text-classification pipeline, with networks of one size.

    python tests/predict_speed.py --run save/DESC --lines FILE

DESC is a fine-tuned classification, FILE holds a text a line. The two take turns on the same lines; the first turn is
not counted. Needs requirements-bench.txt.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from weights import SavedRun, open_run  # noqa: E402


def make_pipeline(run: SavedRun, n_batch: int):
    """Return transformers' pipeline with random weights of the run's sizes and the run's vocabulary."""
    from transformers import OpenAIGPTConfig, OpenAIGPTForSequenceClassification, OpenAIGPTTokenizer, pipeline

    encoder_path, bpe_path = (str(run.folder / name) for name in ("encoder_bpe_40000.json", "vocab_40000.bpe"))
    tokenizer = OpenAIGPTTokenizer(vocab_file=encoder_path, merges_file=bpe_path)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    sizes = {name: run.settings[name] for name in ("n_embd", "n_head", "n_layer")}
    config = OpenAIGPTConfig(
        vocab_size=len(tokenizer),
        n_positions=512,
        num_labels=len(run.settings["labels"]),
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    model = OpenAIGPTForSequenceClassification(config).eval()
    return pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=n_batch, device="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of a fine-tuned run")
    parser.add_argument("--lines", required=True, help="file with a text a line")
    parser.add_argument("--n_lines", type=int, default=5000, help="lines to predict")
    parser.add_argument("--n_batch", type=int, default=32, help="texts computed at a time")
    parser.add_argument("--n_turn", type=int, default=500, help="lines of a turn")
    args = parser.parse_args()
    run = open_run(args.run)
    theirs = make_pipeline(run, args.n_batch)
    lines = Path(args.lines).read_text(encoding="utf-8").splitlines()[: args.n_lines]
    rates = {"ours": [], "transformers": []}
    for start in range(0, len(lines), args.n_turn):
        turn = lines[start : start + args.n_turn]
        for name, predict in (("ours", lambda t: run.predict(t, args.n_batch)), ("transformers", theirs)):
            began = time.perf_counter()
            assert len(predict(turn)) == len(turn)
            rates[name].append(len(turn) / (time.perf_counter() - began))
    ours, other = rates["ours"][1:], rates["transformers"][1:]
    ratio = statistics.median(a / b for a, b in zip(ours, other, strict=True))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; medians of {len(ours)} turns:")
    print(f"ours {statistics.median(ours):.0f} lines/s, transformers {statistics.median(other):.0f}; ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
