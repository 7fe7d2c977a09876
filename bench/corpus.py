"""From a corpus to tokens, ours and transformers' tokenizer: `python -m bench.corpus --megabytes 10 100 --workers 1 2`.

The text is 50,000 made-up words with the frequencies 1 / rank, a paragraph a line. This script needs spaCy.
"""

if __name__ == "__main__":
    import running.starting  # noqa: F401  before what takes time

import os
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench import common
from reading.corpus import prepare

N_MERGES = 1000
COLUMNS = {
    "MB": "{megabytes}",
    "workers": "{workers}",
    "what": "{what}",
    "by": "{by}",
    "s": "{seconds:.1f}",
    "MB/s": "{mb_per_s:.2f}",
    "peak memory so far, MiB": "{own_mib:.0f}",
    "of the largest worker": "{worker_mib:.0f}",
}


@dataclass(frozen=True)
class CorpusCase:
    """What is measured."""

    megabytes: float = 10
    workers: int = 1


def write_text(path: Path, n_bytes: int) -> None:
    """Write made-up text of about so many bytes."""
    # words of one to four syllables, a third of them with a mark behind
    rng = np.random.default_rng(0)
    syllables = [c + v + e for c in "bdfghklmnprstw" for v in "aeiou" for e in ("", "n", "r", "s", "th")]
    marks = rng.choice(["", "", "", "", ",", "."], 50_000)
    words = []
    for mark in marks:
        n_syllables = rng.integers(1, 5)
        words.append("".join(rng.choice(syllables, n_syllables)) + mark)

    # the frequency of a word is one over its rank
    ranks = np.arange(1, len(words) + 1)
    cumulative = np.cumsum(1 / ranks)

    # paragraphs of 80 words
    with open(path, "w") as file:
        while file.tell() < n_bytes:
            drawn = cumulative[-1] * rng.random((100, 80))
            for paragraph in np.searchsorted(cumulative, drawn):
                text = " ".join([words[i] for i in paragraph])
                file.write(text.capitalize() + "\n")


def their_tokenizer(vocabulary: tuple[Path, Path]):
    """Return transformers' tokenizer of the same vocabulary."""
    from transformers import OpenAIGPTTokenizer

    ids, merges = map(str, vocabulary)
    return OpenAIGPTTokenizer(vocab=ids, merges=merges)


def measure(case: CorpusCase) -> list[dict]:
    """Time ours with learning the vocabulary and without, and transformers' tokenizer in this process."""
    # theirs takes all cores or one
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if case.workers > 1 else "false"
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "corpus.txt"
        write_text(text, int(case.megabytes * 10**6))
        vocabulary = (folder / "encoder.json", folder / "merges.bpe")  # the first of the three makes it
        for what, by in (("vocabulary and tokens", "ours"), ("tokens", "ours"), ("tokens", common.PEER)):
            if by == common.PEER and not common.HAS_PEER:
                continue

            # the time
            start = time.monotonic()
            if by == common.PEER:
                their_tokenizer(vocabulary)(text.read_text().splitlines())
            else:
                (folder / what).mkdir()
                prepare([text], vocabulary, N_MERGES, folder / what, case.workers)
            seconds = time.monotonic() - start

            # the memory; it never falls
            row = {"what": what, "by": by, "seconds": seconds, "mb_per_s": text.stat().st_size / seconds / 1e6}
            row["own_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            row["worker_mib"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            rows.append(asdict(case) | row)
    return rows


if __name__ == "__main__":
    sys.exit(common.main("corpus", __doc__, measure, CorpusCase(), columns=COLUMNS))
