"""Text -> tokens as in the authors' text_utils.py (commit a69b5c4): standardise, split into words, merge byte pairs."""

import os
import re
from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from utils import InputError, read_json

if TYPE_CHECKING:  # spaCy and ftfy take a second to import: they are imported where a text is split
    from spacy.language import Language

REPLACEMENTS = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})
# TF's pattern (text_utils.py:30) is not a raw string: its backslash alternative never matches one (FIDELITY 4)
PUNCTUATION_RUNS = re.compile(r"""(-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|/+|\*+|\[+|\]+|\}+|\{+|\|+|_+)""")


def text_standardize(text: str) -> str:
    """Return the text with plain dashes, dots and apostrophes, spaces around runs of punctuation, and single spaces."""
    text = text.translate(REPLACEMENTS)
    text = PUNCTUATION_RUNS.sub(r" \1 ", text)
    text = re.sub(r"\s*\n\s*", " \n ", text)
    return re.sub(r"[^\S\n]+", " ", text).strip()


def word_splitter() -> "Language":
    """Return spaCy's rule tokenizer for English; there is no model to download."""
    import spacy

    return spacy.blank("en")


def split_words(nlp: "Language", text: str) -> list[str]:
    """Repair a text (ftfy), standardise it and return its words in lower case, split by spaCy's tokenizer `nlp`."""
    import ftfy

    return [word.text.lower() for word in nlp.make_doc(text_standardize(ftfy.fix_text(text)))]


class TextEncoder:
    """The authors' tokenizer: spaCy's rules for English words, then byte-pair merges inside each word.

    Args:
        encoder_path: JSON file, token -> id.
        bpe_path: text file, a version line and then one merge a line, in the order they were learned.

    Attributes:
        encoder: token -> id.
        decoder: id -> token.

    Raises:
        InputError: a file is missing or damaged, or the two belong to different vocabularies.
    """

    def __init__(self, encoder_path: str | os.PathLike, bpe_path: str | os.PathLike):
        self.encoder = _read_encoder(Path(encoder_path))
        self.decoder = {i: token for token, i in self.encoder.items()}
        merges = _read_merges(Path(bpe_path))
        unknown = next((merge for merge in merges if "".join(merge) not in self.encoder), None)
        if unknown:
            raise InputError(
                f"{bpe_path}: the merge {' '.join(unknown)!r} makes a token that {encoder_path} lacks. "
                "Take both files from one vocabulary."
            )
        self.bpe_ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.cache: dict[str, list[int]] = {}  # word -> ids

    @cached_property
    def nlp(self) -> "Language":
        return word_splitter()

    def bpe(self, word: str) -> str:
        """Return the tokens of a word, separated by spaces, the last with `</w>` at its end."""
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            rank, pair = min((self.bpe_ranks.get(p, float("inf")), p) for p in pairwise(parts))
            if rank == float("inf"):
                break
            merged, i = [], 0
            while i < len(parts):  # every occurrence of the pair, from the left
                if tuple(parts[i : i + 2]) == pair:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        text = " ".join(parts)
        return "\n</w>" if text == "\n  </w>" else text  # spaCy's newline word holds its space: text_utils.py:87

    def encode(self, texts: list[str], verbose: bool = True) -> list[list[int]]:
        """Return the token ids of each text, 0 for one the vocabulary lacks; `verbose` shows a progress bar."""
        rows = []
        for text in tqdm(texts, desc="tokenizing", unit=" texts", ncols=80, leave=False, disable=not verbose):
            rows.append([i for word in split_words(self.nlp, text) for i in self._word_ids(word)])
        return rows

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids: lower-case words and marks, separated by spaces."""
        return "".join(self.decoder[int(i)] for i in ids).replace("</w>", " ").rstrip(" ")

    def _word_ids(self, word: str) -> list[int]:
        if word not in self.cache:
            self.cache[word] = [self.encoder.get(token, 0) for token in self.bpe(word).split(" ")]
        return self.cache[word]


def _read_encoder(path: Path) -> dict[str, int]:
    encoder = read_json(path)
    ids = list(encoder.values()) if isinstance(encoder, dict) else []
    if not ids or not all(isinstance(i, int) for i in ids) or sorted(ids) != list(range(len(ids))):
        raise InputError(
            f"{path}: not a vocabulary: a JSON object of n tokens with the ids 0 .. n - 1. Fetch it again."
        )
    return encoder


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[1:]  # the first line is a comment
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing: a vocabulary needs its merges beside it. See 'Weights and data' in README.md."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}). Fetch it again.") from None
    merges = []
    for number, line in enumerate(lines, 2):
        if line:
            merges.append(tuple(line.split()))
            if len(merges[-1]) != 2:
                raise InputError(f"{path}, line {number}: a merge is two tokens, this is {line!r}. Fetch it again.")
    if not merges:
        raise InputError(f"{path} holds no merges. Fetch it again.")
    return merges
