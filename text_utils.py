"""Text -> tokens as in the authors' text_utils.py (commit a69b5c4): standardise, split into words, merge byte pairs."""

import os
import re
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from formats.files import InputError, read_json

if TYPE_CHECKING:  # spaCy and ftfy take a second to import: they are imported where a text is split
    from spacy.language import Language

REPLACEMENTS = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})
# TF's pattern (text_utils.py:30) is not a raw string: its backslash alternative never matches one (FIDELITY 4)
PUNCTUATION_RUNS = re.compile(r"""([-~!";?+,)(/*\[\]}{|_])\1*""")
PLAIN = re.compile(r"[\n\t -%'-~]*")  # texts that ftfy leaves as they are: ASCII without "&" and control characters


def text_standardize(text: str) -> str:
    """Return the text with plain dashes, dots and apostrophes, spaces around runs of punctuation, and single spaces."""
    text = PUNCTUATION_RUNS.sub(r" \g<0> ", text.translate(REPLACEMENTS))
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return " \n ".join(line for line in lines if line)


def word_splitter() -> "Language":
    """Return spaCy's rule tokenizer for English; there is no model to download."""
    import spacy

    return spacy.blank("en")


def split_words(nlp: "Language", text: str) -> list[str]:
    """Repair a text (ftfy), standardise it and return its words in lower case, split by spaCy's tokenizer `nlp`."""
    if not PLAIN.fullmatch(text):
        import ftfy

        text = ftfy.fix_text(text)
    return [word.text.lower() for word in nlp.make_doc(text_standardize(text))]


# --- where the words stand in the user's own text --------------------------------------------------------------------

Span = tuple[int, int]  # start and end of characters in the text as it was given


def join_spans(spans: Iterable[Span | None]) -> Span | None:
    """Return the span from the first start to the last end, or None where one is None or there is none."""
    spans = list(spans)
    return (min(a for a, _ in spans), max(b for _, b in spans)) if spans and None not in spans else None


class Word(NamedTuple):
    """A word, or mark, or newline, as the encoder splits a text; from TextEncoder.words_with_spans."""

    text: str  # in lower case, after the repair
    ids: list[int]
    spans: list[Span | None]  # of each token in the text as it was given; None: see character_spans

    @property
    def span(self) -> Span | None:
        return join_spans(self.spans)


def character_spans(text: str) -> tuple[str, list[Span | None]]:
    """Return the repaired and standardised text, and the span in `text` that each of its characters comes from.

    A span is None for a space that is not in `text`, and where ftfy's repair of the span by itself would be another
    one: what it then comes from cannot be told.
    """
    repaired, sources = _repair(text)
    # standardising adds and removes white space only, after the replacements: other characters keep their order
    found: list[Span | None] = []
    start, end = len(repaired) - len(repaired.lstrip()), len(repaired.rstrip())
    for run in re.finditer(r"\S|\s*\n\s*", repaired[start:end]):
        at = range(start + run.start(), start + run.end())
        if run[0].isspace():  # newlines and the white space around them: one newline
            found.append(join_spans(sources[i] for i in at if repaired[i] == "\n"))
        else:
            found += [sources[at[0]]] * len(run[0].translate(REPLACEMENTS))
    standard, spans = text_standardize(repaired), iter(found)
    return standard, [None if c.isspace() and c != "\n" else next(spans) for c in standard]


def _repair(text: str) -> tuple[str, list[Span | None]]:
    """Return ftfy's repair of a text and the span in `text` that each of its characters comes from."""
    import ftfy

    repaired = ftfy.fix_text(text)
    lines, options = re.findall(r"[^\n]*\n|[^\n]+", text), {}
    fixed = []
    for line in lines:  # as ftfy does: no more HTML entities after the first line with "<"
        options = {"unescape_html": False} if "<" in line else options
        fixed.append(ftfy.fix_text(line, **options))
    if "".join(fixed) != repaired:  # lines of more than a million characters are cut there
        lines, fixed, options = [text], [repaired], {}
    spans: list[Span | None] = []
    start = 0
    for line, new in zip(lines, fixed, strict=True):
        for (a, b), (c, d) in _differences(line, new):
            pieces = [(a + i, a + i + 1) for i in range(b - a)] if b - a == d - c else []
            if line[a:b] == new[c:d]:
                found = pieces
            elif pieces and all(ftfy.fix_text(line[i:j]) == new[c + i - a] for i, j in pieces):
                found = pieces
            else:
                found = [(a, b) if ftfy.fix_text(line[a:b]) == new[c:d] else None] * (d - c)
            spans += [span and (start + span[0], start + span[1]) for span in found]
        start += len(line)
    return repaired, spans


def _equal_words(old: list[str], new: list[str]) -> list[tuple[int, int]]:
    """Return pairs of indices of words that belong together and are equal, in their order."""
    import ftfy

    if len(old) == len(new):
        pairs = list(zip(old, new, strict=True))
        if all(ftfy.fix_text(a) == b for a, b in set(pairs) if a != b):  # the usual case, and fast for any length
            return [(i, i) for i, (a, b) in enumerate(pairs) if a == b]
    blocks = SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    return [(a + i, b + i) for a, b, n in blocks for i in range(n)]


def _differences(old: str, new: str) -> Iterator[tuple[Span, Span]]:
    """Yield spans of two texts that belong together, equal or not, in their order and without gaps in the new one."""
    if old == new:
        yield (0, len(old)), (0, len(new))
        return
    old_words, new_words = ([(*m.span(), m[0]) for m in re.finditer(r"\S+", text)] for text in (old, new))
    pairs = _equal_words([w[2] for w in old_words], [w[2] for w in new_words])
    i = j = 0
    ends = (len(old), len(old), ""), (len(new), len(new), "")
    for (a, b, _), (c, d, _) in [*((old_words[k], new_words[m]) for k, m in pairs), ends]:
        between = SequenceMatcher(None, old[i:a], new[j:c], autojunk=False)  # compared by characters
        yield from (((i + k, i + m), (j + p, j + q)) for _, k, m, p, q in between.get_opcodes())
        yield (a, b), (c, d)
        i, j = b, d


# --- from words back to readable text --------------------------------------------------------------------------------

ATTACHED = re.compile(r"[.,:;?!)\]}%]+|/+|''|n't|'(s|m|d|ll|re|ve)")  # to the word before
OPENING = re.compile(r"[(\[{$#]+|/+|``")  # the next word is attached to these
SPLIT_BY_RULE = {("gon", "na"), ("wan", "na"), ("got", "ta")}  # one word, which spaCy's rules take apart
# What an unknown token stood for cannot be told. This sign is encoded as unknown again: the authors' vocabulary lacks
# it (but has U+FFFD), and spaCy's rules split no word at it.
UNKNOWN = "\N{WHITE MEDIUM SQUARE}"


class WordJoiner:
    """Words one by one -> each with the space that belongs before it, as a reader expects.

    Marks, n't, 's and the like are attached to the word before; of quotes every other one opens, and a new line begins
    with none open. So the words it 's " fine " , she said become: it's "fine", she said
    """

    def __init__(self):
        self.before = "\n"  # the word before
        self.is_attaching = True  # nothing comes between the word before and the next one
        self.open_quotes: set[str] = set()

    def __call__(self, word: str) -> str:
        closes = word in self.open_quotes or (word == "'" and self.before.endswith("s"))
        # no mark is split off again from the sign for unknown, nor dots from dots
        stays_apart = self.before.endswith(UNKNOWN) or (self.before.endswith(".") and word.startswith("."))
        follows = ATTACHED.fullmatch(word) and not stays_apart
        is_attached = self.is_attaching or closes or word == "\n" or follows
        is_attached = is_attached or (self.before, word) in SPLIT_BY_RULE
        self.is_attaching = word == "\n" or bool(OPENING.fullmatch(word))
        if word == "\n":
            self.open_quotes = set()
        elif closes:
            self.open_quotes.discard(word)
        elif word in ('"', "'"):
            self.open_quotes.add(word)
            self.is_attaching = True
        self.before = word
        return word if is_attached else " " + word


# --- the tokenizer ---------------------------------------------------------------------------------------------------


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
        self.files = Path(encoder_path), Path(bpe_path)  # that it was read from
        self.encoder = _read_encoder(self.files[0])
        self.decoder = {i: token for token, i in self.encoder.items()}
        merges = _read_merges(self.files[1])
        unknown = next((merge for merge in merges if "".join(merge) not in self.encoder), None)
        if unknown:
            raise InputError(
                f"{bpe_path}: the merge {' '.join(unknown)!r} makes a token that {encoder_path} lacks. "
                "Take both files from one vocabulary."
            )
        self.bpe_ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.cache: dict[str, list[int]] = {}  # word -> ids
        self.ends: dict[str, list[int]] = {}  # word -> where its tokens end in it
        self.splits: dict[tuple[str, ...], bool] = {}  # a text and words -> whether it is split into these
        self.n_vocab = len(self.encoder)  # of the files: users add special tokens to `encoder`

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

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span | None]]:
        """Return the token ids of a text, as encode does, and the span of each token in it: text[start:end].

        Where ftfy has repaired the text, a span is that of the characters as they were, and None where these cannot be
        told.
        """
        words = self.words_with_spans(text)
        return [i for word in words for i in word.ids], [span for word in words for span in word.spans]

    def words_with_spans(self, text: str) -> list[Word]:
        """Return the words of a text with their token ids and the span of each token in it."""
        standard, spans = character_spans(text)
        words = []
        for word in self.nlp.make_doc(standard):
            lower = word.text.lower()
            # a letter may be longer in lower case
            sources = [spans[word.idx + i] for i, c in enumerate(word.text) for _ in c.lower()]
            ends = self._token_ends(lower)
            of_tokens = [join_spans(sources[a:b]) for a, b in pairwise([0, *ends])]
            words.append(Word(lower.rstrip(" "), [*self._word_ids(lower)], of_tokens))
        return words

    def _token_ends(self, word: str) -> list[int]:
        """Return where each token of a word ends in it; the newline token does before the word's space."""
        if word not in self.ends:
            lengths = (len(token) for token in self.bpe(word).removesuffix("</w>").split(" "))
            self.ends[word] = list(accumulate(lengths))
        return self.ends[word]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids: words as `words` returns them, and marks, separated by spaces.

        Encoding it gives the ids of an encoded text again; only within a word with an unknown token it may not.
        """
        words, attached = self.words(ids), set()
        for i in range(len(words)):  # to the words before, where only so it is split off again: i 'm -> i'm
            n = next((n for n in range(min(i, 2) + 1) if self._is_split_into(words[i - n : i + 1])), 0)
            attached |= {*range(i - n + 1, i + 1)}
        return "".join(" " * (i not in attached) + word for i, word in enumerate(words))[1:].rstrip(" ")

    def words(self, ids: Iterable[int]) -> list[str]:
        """Return the words of token ids, as `spelled` returns them; the last one may be incomplete."""
        words = "".join(self.text_of(int(i)) for i in ids).split("</w>")
        return [self.spelled(word) for word in (words if words[-1] else words[:-1])]

    def readable(self, ids: Iterable[int]) -> str:
        """Return the text of token ids as `words` returns it, with marks attached to words: it's "fine", she said."""
        return "".join(map(WordJoiner(), self.words(ids)))

    def text_of(self, token: int) -> str:
        """Return a token as the vocabulary has it, and UNKNOWN, the end of a word, for the unknown one."""
        return UNKNOWN + "</w>" if self.decoder[token] == "<unk>" else self.decoder[token]

    def spelled(self, word: str) -> str:
        """Return a word in lower case, or with the capitals without which spaCy's rules split it: Mr., U.S.A."""
        forms = (word, word.capitalize(), word.upper())
        return next((form for form in forms if self._is_split_into([form])), word)

    def _is_split_into(self, words: list[str]) -> bool:
        """Return whether words without spaces between them are split into these words again."""
        text, lower = "".join(words), [word.lower() for word in words]
        if (text, *lower) not in self.splits:
            self.splits[text, *lower] = split_words(self.nlp, text) == lower
        return self.splits[text, *lower]

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
