"""Time and memory of learning merges and of tokenizing: python tests/corpus_speed.py --megabytes 100 --workers 1 2

The text is generated: 50,000 words with the frequencies 1 / rank, some marks and capitals, a paragraph a line.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

MEASURE = """
import json, resource, sys, time
from pathlib import Path
from reading import corpus
step, n_workers, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
(folder / "shards").mkdir(exist_ok=True)
vocabulary, times = (folder / "encoder.json", folder / "merges.bpe"), [time.monotonic()]
if step == "words":
    work = corpus.Work(folder / "shards")
    shards, _ = corpus._make(work, [folder / "corpus.txt"], n_workers, None)
    times.append(time.monotonic())
    corpus.learn_vocabulary(corpus.total(work, shards), 1000, *vocabulary)
else:
    corpus.prepare([folder / "corpus.txt"], vocabulary, 0, folder, n_workers)
    times.append(time.monotonic())
times.append(time.monotonic())
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
seconds = [times[1] - times[0], times[-1] - times[1], sum(u.ru_utime + u.ru_stime for u in used)]
print(json.dumps([*seconds, *(u.ru_maxrss / 1024 for u in used)]))
"""


def write_text(path: Path, n_bytes: int) -> None:
    """Write generated text of about so many bytes."""
    rng = np.random.default_rng(0)
    syllables = [c + v + e for c in "bdfghklmnprstw" for v in "aeiou" for e in ("", "n", "r", "s", "th")]
    words = ["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(50_000)]
    words = [word + mark for word, mark in zip(words, rng.choice(["", "", "", "", ",", "."], len(words)), strict=True)]
    probabilities = 1 / np.arange(1, len(words) + 1)
    cumulative = np.cumsum(probabilities / probabilities.sum())
    with open(path, "w") as file:
        while file.tell() < n_bytes:
            ids = np.searchsorted(cumulative[:-1], rng.random(100_000))
            for paragraph in ids.reshape(-1, 80):
                file.write(" ".join([words[i] for i in paragraph]).capitalize() + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    for megabytes in args.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "corpus.txt"
            write_text(path, megabytes * 10**6)
            for n_workers in args.workers:
                for step in ("words", "tokens"):
                    command = [sys.executable, "-c", MEASURE, step, str(n_workers), folder]
                    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
                    seconds, merging, of_cpu, own, of_worker = json.loads(run.stdout)
                    print(
                        f"{megabytes} MB, {n_workers} workers, {step}: {path.stat().st_size / seconds / 1e6:.2f} MB/s, "
                        f"{of_cpu:.0f} s of CPU, learning merges {merging:.1f} s; peak memory {own:.0f} MiB, largest "
                        f"worker {of_worker:.0f} MiB",
                        flush=True,
                    )
                (Path(folder) / "tokens.bin").unlink()


if __name__ == "__main__":
    main()
