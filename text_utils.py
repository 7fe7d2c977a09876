"""Text -> tokens as in the authors' text_utils.py (commit a69b5c4): standardise, split into words, merge byte pairs.

And back: `TextEncoder.decode` makes readable text of tokens, `words_with_spans` says where each stands in a text.
"""

import heapq
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from formats.files import InputError, read_json, refuse_special

if TYPE_CHECKING:  # spaCy and ftfy take a second to import: they are imported where a text is split
    from spacy.language import Language
    from spacy.tokens import Doc

# A part of the key of cached ids (reading/encoding.py). Raise it with any change after which some text has other ids.
VERSION = 2

CACHED_WORDS = 2**18  # different words that a process remembers

REPLACEMENTS = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})
# TF's pattern (text_utils.py:30) is not a raw string: its backslash alternative never matches one (FIDELITY 4)
PUNCTUATION_RUNS = re.compile(r"""([-~!";?+,)(/*\[\]}{|_])\1*""")
# What white space surrounds; of more than 1,000 characters, each 1,000 of it: else a word of n characters takes spaCy's
# rules n^2 steps (FIDELITY 153)
WORD = re.compile(r"\S{1,1000}")
# An ampersand that was escaped again and again: ftfy takes one escape away at a time, n^2 steps (FIDELITY 153)
NESTED = re.compile(r"&(?:amp;){250,}")
PLAIN = re.compile(r"[\n\t -%'-~]*")  # texts that ftfy leaves as they are: ASCII without "&" and control characters


def repair(text: str) -> str:
    """Return the text as ftfy repairs it: wrongly decoded characters, curly quotes, HTML entities and the like."""
    if PLAIN.fullmatch(text):
        return text
    import ftfy

    return ftfy.fix_text(NESTED.sub("&amp;", text))


def text_standardize(text: str) -> str:
    """Return the text with plain dashes, dots and apostrophes, spaces around runs of punctuation, and single spaces.

    Words of more than 1,000 characters are cut: see WORD.
    """
    text = text.translate(REPLACEMENTS)
    text = PUNCTUATION_RUNS.sub(r" \g<0> ", text)
    lines = (" ".join(_pieces_of(line)) for line in text.split("\n"))
    return " \n ".join(line for line in lines if line)


def _pieces_of(line: str) -> list[str]:
    """Return the words of a line, cut as WORD says."""
    return line.split() if len(line) <= 1000 else WORD.findall(line)


def split_words(text: str) -> list[str]:
    """Repair a text, standardise it and return its words in lower case."""
    words = []
    for _, part in split_parts(text_standardize(repair(text))):
        words += [word.text.lower() for word in part]
    return words


# A standardised text is split a part at a time, of at least so many characters.
PART = 10_000
# Where a part may end: before a newline, or a word that begins with one of these. No rule of spaCy's that is about
# several tokens has such a character at the start of its second or a later one, so none reaches over that space. The
# space after a newline belongs to its token.
BOUNDARY = re.compile(r"(?<!\n) (?=[\naghijmqtuvwyzABEGHIJLMNQRTUVWYZ,!?])")


def split_parts(text: str) -> Iterator[tuple[int, "Doc"]]:
    """Yield the parts of a standardised text: where each starts, and spaCy's words in it. Memory is bounded."""
    start = 0
    while start < len(text):
        boundary = BOUNDARY.search(text, start + PART)
        end = len(text) if boundary is None else boundary.start()
        nlp = _english()
        yield start, nlp.tokenizer(text[start:end])
        start = end + 1

        # spaCy remembers every word that it has seen
        if len(nlp.vocab.strings) > CACHED_WORDS:
            _english.cache_clear()


@cache
def _english() -> "Language":
    """Return spaCy's rule tokenizer for English, loaded once a process; there is no model to download."""
    import spacy

    nlp = spacy.blank("en")
    rules = nlp.tokenizer
    # The same rules, without looking for them where they cannot match. All of a prefix's begin with ^.
    rules.prefix_search = re.compile(rules.prefix_search.__self__.pattern).match
    rules.suffix_search = partial(_search_at_the_end, re.compile(rules.suffix_search.__self__.pattern))
    return nlp


def _search_at_the_end(suffixes: re.Pattern, text: str) -> re.Match | None:
    """Find the longest of spaCy's suffixes: a run of dots, or at most 8 characters."""
    return suffixes.search(text, max(0, len(text.rstrip(".")) - 8))


# --- where the words stand in the user's own text --------------------------------------------------------------------

Span = tuple[int, int]  # start and end of characters in the text as it was given
LINE = re.compile(r"[^\n\r\u2028\u2029]+")  # as ftfy separates lines


class Word(NamedTuple):
    """A word, or mark, or newline, as the encoder splits a text; from TextEncoder.words_with_spans."""

    text: str  # in lower case, after the repair
    ids: list[int]
    spans: list[Span | None]  # of each token in the text as it was given; None: see character_spans

    @property
    def span(self) -> Span | None:
        return join_spans(self.spans)


def join_spans(spans: Sequence[Span | None]) -> Span | None:
    """Return the span from the first start to the last end, or None where one of them is None."""
    if None in spans:
        return None
    return spans[0][0], spans[-1][1]


def character_spans(text: str) -> tuple[str, list[Span | None]]:
    """Return the repaired and standardised text, and the span in `text` that each of its characters comes from.

    A character has its own span where ftfy leaves a word (what white space surrounds) as it is, or repairs it one
    character for one; else that of the whole word: &lt;b&gt; for <b>. All of a line is None where its words are not
    repaired one by one, all of a text where its lines are not. A newline has the white space between two lines, a space
    None.
    """
    repaired = repair(text)
    standard = text_standardize(repaired)
    old_lines = [line for line in LINE.finditer(text) if not line[0].isspace()]
    new_lines = [line for line in repaired.split("\n") if line.strip()]
    if len(old_lines) != len(new_lines):
        return standard, [None] * len(standard)

    # the span of each character that is not a space, and of each newline: standardising keeps their order
    found: list[Span | None] = []
    end_before = 0
    for old, new in zip(old_lines, new_lines, strict=True):
        if found:
            found.append((end_before, old.start()))
        characters = "".join(new.split())
        for character, span in zip(characters, _spans_in_line(old, new), strict=True):
            found += [span] * len(character.translate(REPLACEMENTS))  # three for the dots of an ellipsis
        end_before = old.end()

    # and of the standardised text
    spans = iter(found)
    return standard, [None if character == " " else next(spans) for character in standard]


def _spans_in_line(old: re.Match, new: str) -> list[Span | None]:
    """Return the span of each character of a line's words after its repair."""
    old_words = list(WORD.finditer(old.string, *old.span()))
    new_words = WORD.findall(new)
    unknown = [None] * sum(map(len, new_words))
    if len(old_words) != len(new_words):
        return unknown

    # of each word: character for character, as a whole, or not at all
    spans: list[Span | None] = []
    for old_word, new_word in zip(old_words, new_words, strict=True):
        start, end = old_word.span()
        is_as_long = end - start == len(new_word)
        pairs = zip(old_word[0], new_word, strict=False)
        if is_as_long and all(a == b or repair(a) == b for a, b in pairs):
            spans += [(i, i + 1) for i in range(start, end)]
        elif repair(old_word[0]) == new_word:
            spans += [(start, end)] * len(new_word)
        else:
            return unknown
    return spans


# --- from tokens back to readable text -------------------------------------------------------------------------------

ATTACHED = re.compile(r"[.,:;?!)\]}%]+|/+|''|n't|'(s|m|d|ll|re|ve)")  # to the word before
OPENING = re.compile(r"[(\[{$#]+|/+|``")  # the next word is attached to these
SPLIT_BY_RULE = {("gon", "na"), ("wan", "na"), ("got", "ta")}  # one word, which spaCy's rules take apart
# What an unknown token stood for cannot be told. This sign is encoded as unknown again: the authors' vocabulary lacks
# it (but has U+FFFD), and spaCy's rules split no word at it.
UNKNOWN = "\N{WHITE MEDIUM SQUARE}"


class Detokenizer:
    """Token ids one by one -> words as they are completed, each with the space that belongs before it.

    So the words it 's " fine " , she said become: it's "fine", she said
    """

    def __init__(self, encoder: "TextEncoder"):
        self.encoder = encoder
        self.parts: list[str] = []  # of the next word, as far as its tokens have come
        self.before = "\n"  # the word before: a text begins as a line does
        self.open_quotes: set[str] = set()

    def add(self, token: int) -> str:
        """Return the text of the word that a token completes; "" if it completes none."""
        text = self.encoder.decoder[token]
        if text == "<unk>":
            text = UNKNOWN + "</w>"
        self.parts.append(text)
        return self.finish() if text.endswith("</w>") else ""

    def finish(self) -> str:
        """Return the text of the word so far, complete or not."""
        if not self.parts:
            return ""
        word = self.encoder.spelled("".join(self.parts).removesuffix("</w>"))
        space = "" if self._is_attached(word) else " "

        # every other quotation mark opens, and a new line begins with none open
        if word == "\n":
            self.open_quotes.clear()
        elif self._closes(word):
            self.open_quotes.discard(word)
        elif word in ('"', "'"):
            self.open_quotes.add(word)
        self.before = word
        self.parts.clear()
        return space + word

    def _closes(self, word: str) -> bool:
        return word in self.open_quotes or (word == "'" and self.before.endswith("s"))

    def _is_attached(self, word: str) -> bool:
        """Return whether no space stands before a word, by the first of these rules that is about it."""
        # lines, and what stands in quotes and brackets, have no space at their ends
        if "\n" in (self.before, word):
            return True
        if self.before in self.open_quotes or self._closes(word):
            return True
        if OPENING.fullmatch(self.before) or (self.before, word) in SPLIT_BY_RULE:
            return True
        # the encoder would split off no mark from the sign for unknown, and no dots from dots
        if self.before.endswith(UNKNOWN):
            return False
        if self.before.endswith(".") and word.startswith("."):
            return False
        return ATTACHED.fullmatch(word) is not None


# --- the tokenizer ---------------------------------------------------------------------------------------------------


class Pieces(NamedTuple):
    """The tokens of one word."""

    ids: list[int]
    tokens: list[str]


def get_pairs(word: Iterable[str]) -> set[tuple[str, str]]:
    """Return the pairs of neighbouring symbols of a word."""
    return set(pairwise(word))


class TextEncoder:
    """The authors' tokenizer: spaCy's rules for English words, then byte-pair merges inside each word.

    Args:
        encoder_path: JSON file, token -> id.
        bpe_path: text file, a version line and then one merge a line, in the order they were learned.

    Attributes:
        encoder: token -> id.
        decoder: id -> token.
        files: the two files.
        n_vocab: number of tokens in the file, whatever is added to `encoder` later.

    Raises:
        InputError: a file is missing or damaged, or the two belong to different vocabularies.
    """

    def __init__(self, encoder_path: str | os.PathLike, bpe_path: str | os.PathLike):
        # the tokens
        self.files = (Path(encoder_path), Path(bpe_path))
        self.encoder = _read_encoder(self.files[0])
        self.decoder = {i: token for token, i in self.encoder.items()}
        self.n_vocab = len(self.encoder)
        unknown = self.encoder.get("<unk>", 0)
        if unknown != 0:
            raise InputError(
                f"{encoder_path}: <unk> has the id {unknown}, and here 0. Give it that one, in the weights too."
            )

        # the merges, each of which makes a token
        merges = _read_merges(self.files[1])
        for merge in merges:
            if "".join(merge) not in self.encoder:
                shown = " ".join(merge)
                raise InputError(
                    f"{bpe_path}: the merge {shown!r} makes a token that {encoder_path} lacks. "
                    "Take both files from one vocabulary."
                )
        self.bpe_ranks = {merge: rank for rank, merge in enumerate(merges)}

        # what is remembered of words
        self.cache: dict[str, Pieces] = {}  # of words met so far
        self.spellings: dict[str, str] = {}  # see `spelled`

    def bpe(self, word: str) -> str:
        """Return the tokens of a word, separated by spaces, the last with `</w>` at its end."""
        # at first each character is a token; the last one tells that it is
        parts = [*word[:-1], word[-1] + "</w>"]
        parts = self._merged_long(parts) if len(parts) > 100 else self._merged(parts)
        text = " ".join(parts)
        return "\n</w>" if text == "\n  </w>" else text  # spaCy's newline word holds its space: text_utils.py:87

    def _merged(self, parts: list[str]) -> list[str]:
        """Return the symbols of a word after all merges: the first learned first, each wherever it occurs."""
        while len(parts) > 1:
            known = get_pairs(parts) & self.bpe_ranks.keys()
            if not known:
                break
            pair = min(known, key=self.bpe_ranks.__getitem__)
            # every occurrence of the pair, from the left
            merged = []
            i = 0
            while i < len(parts):
                if tuple(parts[i : i + 2]) == pair:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return parts

    def _merged_long(self, parts: list[str]) -> list[str]:
        """Return what _merged does, in a time of n log n instead of n^2 for n symbols.

        A pair stands where its left symbol does. A heap has the ranks and places of all pairs; an entry is out of date
        once another merge has taken one of its symbols. A symbol that another has taken in is "".
        """
        after = list(range(1, len(parts) + 1))  # the place of the next symbol
        before = list(range(-1, len(parts) - 1))
        heap: list[tuple[int, int]] = []

        def add(left: int) -> None:
            if left >= 0 and after[left] < len(parts):
                rank = self.bpe_ranks.get((parts[left], parts[after[left]]))
                if rank is not None:
                    heapq.heappush(heap, (rank, left))

        for i in range(len(parts)):
            add(i)
        while heap:
            # every occurrence of the pair learned first, from the left
            merged = []
            rank = heap[0][0]
            while heap and heap[0][0] == rank:
                i = heapq.heappop(heap)[1]
                right = after[i]
                if right == len(parts) or self.bpe_ranks.get((parts[i], parts[right])) != rank:
                    continue
                parts[i] += parts[right]
                parts[right] = ""
                after[i] = after[right]
                if after[i] < len(parts):
                    before[after[i]] = i
                merged.append(i)
            # only then the pairs that this has made
            for i in merged:
                add(before[i])
                add(i)
        return [part for part in parts if part]

    def encode(self, texts: list[str], verbose: bool = True) -> list[list[int]]:
        """Return the token ids of each text, 0 for one the vocabulary lacks; `verbose` shows a progress bar."""
        found = []
        for text in tqdm(texts, desc="tokenizing", unit=" texts", ncols=80, leave=False, disable=not verbose):
            ids = []
            for word in split_words(text):
                ids += self._pieces(word).ids
            found.append(ids)
        return found

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span | None]]:
        """Return the token ids of a text, as encode does, and the span of each token in it: text[start:end].

        In a word that ftfy has repaired it may be that of the whole word, or None: see character_spans.
        """
        ids = []
        spans = []
        for word in self.words_with_spans(text):
            ids += word.ids
            spans += word.spans
        return ids, spans

    def words_with_spans(self, text: str) -> list[Word]:
        """Return the words of a text with their token ids and the span of each token in it."""
        # the words, and where each stands in the standardised text
        standard, spans = character_spans(text)
        split = []
        for start, part in split_parts(standard):
            split += [(word.text, start + word.idx) for word in part]

        # of each its tokens, and where they stand in the text as it was given
        words = []
        for word, where in split:
            # of each letter in lower case, where it may be longer
            sources = []
            for i, character in enumerate(word, where):
                sources += [spans[i]] * len(character.lower())

            # each token takes the spans of its letters
            lower = word.lower()
            ids, tokens = self._pieces(lower)
            of_tokens = []
            start = 0
            for token in tokens:
                end = start + len(token.removesuffix("</w>"))
                of_tokens.append(join_spans(sources[start:end]))
                start = end
            words.append(Word(lower.rstrip(" "), list(ids), of_tokens))
        return words

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, in lower case, with marks attached to words: it's "fine", she said.

        Encoding it gives the ids of an encoded text again; only within a word with an unknown token it may not.
        """
        words = Detokenizer(self)
        parts = [words.add(int(i)) for i in ids]
        return "".join(parts) + words.finish()

    def spelled(self, word: str) -> str:
        """Return a word in lower case, or with the capitals without which spaCy's rules split it: Mr., U.S.A."""
        if word not in self.spellings:
            _make_room(self.spellings)
            self.spellings[word] = word
            for form in (word, word.capitalize(), word.upper()):
                if split_words(form) == [word]:
                    self.spellings[word] = form
                    break
        return self.spellings[word]

    def _pieces(self, word: str) -> Pieces:
        if word not in self.cache:
            _make_room(self.cache)
            tokens = self.bpe(word).split(" ")
            self.cache[word] = Pieces([self.encoder.get(token, 0) for token in tokens], tokens)
        return self.cache[word]


def _make_room(cache: dict) -> None:
    """Empty a cache of words that is full: the frequent ones are soon there again."""
    if len(cache) >= CACHED_WORDS:
        cache.clear()


def _read_encoder(path: Path) -> dict[str, int]:
    encoder = read_json(path)
    ids = list(encoder.values()) if isinstance(encoder, dict) else []
    are_numbers = len(ids) > 0 and all(isinstance(i, int) for i in ids)
    if not are_numbers or sorted(ids) != list(range(len(ids))):
        raise InputError(
            f"{path}: not a vocabulary: a JSON object of n tokens with the ids 0 .. n - 1. Fetch it again."
        )
    return encoder


def _read_merges(path: Path) -> list[tuple[str, str]]:
    refuse_special(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[1:]  # the first line is a comment
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing: a vocabulary needs its merges beside it. See 'The paper's result' in README.md."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}). Fetch it again.") from None

    # a merge a line
    merges = []
    for number, line in enumerate(lines, 2):
        if not line:
            continue
        merge = tuple(line.split())
        if len(merge) != 2:
            raise InputError(f"{path}, line {number}: a merge is two tokens, this is {line!r}. Fetch it again.")
        merges.append(merge)
    if not merges:
        raise InputError(f"{path} holds no merges. Fetch it again.")
    return merges
