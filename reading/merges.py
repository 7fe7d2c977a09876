"""Counts of words -> the byte-pair merges inside them, as the authors' two files.

An example with "low" twice and "lower" once. At first a token is a character; the last one of a word tells that it is:

    l o w</w>  (2)    l o w e r</w>  (1)

The pair that is found most is `l o`, 3 times: the first merge. It becomes a token in both words:

    lo w</w>  (2)     lo w e r</w>  (1)

Now `lo w</w>` is found twice, and every other pair once: the second merge is `lo w</w>`, which makes the token
`low</w>`.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from formats.files import replacing, write_json

Pair = tuple[int, int]  # ids of neighbouring tokens
Heap = list[tuple[int, Pair, list[int]]]  # count, negative so that the largest is first; pair; words with it


def learn_vocabulary(counts: Mapping[str, int], n_merges: int, encoder_path: Path, bpe_path: Path) -> None:
    """Learn byte-pair merges inside words, given how often each occurs, and write them as the authors' two files.

    Ids are in their order: the unknown token, characters, characters that end a word, merges, the newline.
    """
    parts: Counter[str] = Counter()
    for word, n in counts.items():
        for part in word.split():  # a newline holds none
            parts[part] += n

    # every character, within a word and at its end, and what merges make of them
    characters = sorted(set("".join(parts)))
    last_characters = [character + "</w>" for character in characters]
    alphabet = ["<unk>", *characters, *last_characters]
    tokens, merges = learn_merges(parts, alphabet, n_merges)
    tokens.append("\n</w>")

    # the two files
    write_json(encoder_path, {token: i for i, token in enumerate(tokens)})
    lines = ["#version: 0.2"]
    lines += [f"{left} {right}" for left, right in merges]
    with replacing(bpe_path) as file:
        file.write("".join(line + "\n" for line in lines).encode())


def learn_merges(
    counts: Mapping[str, int], alphabet: list[str], n_merges: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the alphabet with the tokens that merges make, and the merges: always of the pair that is found most.

    They are those of the tokenizers library, which counts pairs in 32 bits only: ties go to the pair of lower ids, a
    merge that makes a token a second time is kept but not counted in `n_merges`, and the count of a merged pair stays.
    """
    tokens = list(alphabet)
    ids = {token: i for i, token in enumerate(alphabet)}
    words = []
    for word in counts:
        symbols = [*word[:-1], word[-1] + "</w>"]
        words.append([ids[symbol] for symbol in symbols])
    repeats = list(counts.values())

    # how often each pair is found, and in which words
    n_found: Counter[Pair] = Counter()
    words_of: defaultdict[Pair, list[int]] = defaultdict(list)
    for i, word in enumerate(words):
        for pair in pairwise(word):
            n_found[pair] += repeats[i]
            words_of[pair].append(i)

    merges: list[tuple[str, str]] = []
    heap: Heap = []
    while len(tokens) < len(alphabet) + n_merges:
        # pairs that the newest token has made, at first all
        for pair, where in words_of.items():
            if n_found[pair] > 0:
                heapq.heappush(heap, (-n_found[pair], pair, where))

        # the one that is found most
        found = take_most_frequent(heap, n_found)
        if found is None:
            break
        (left, right), where = found

        # it becomes a token
        merges.append((tokens[left], tokens[right]))
        token = tokens[left] + tokens[right]
        if token not in ids:
            ids[token] = len(tokens)
            tokens.append(token)

        # in all words that hold it, where it makes new pairs
        words_of.clear()
        for i in dict.fromkeys(where):  # a word is there once for each time that it holds the pair
            for lost, made in merge(words[i], left, right, ids[token]):
                n_found[lost] -= repeats[i]
                n_found[made] += repeats[i]
                words_of[made].append(i)
    return tokens, merges


def take_most_frequent(heap: Heap, n_found: Mapping[Pair, int]) -> tuple[Pair, list[int]] | None:
    """Take the pair that is found most off the heap, with the words that may hold it; None if none is found still."""
    while heap:
        negative, pair, where = heap[0]
        if -negative == n_found[pair]:
            heapq.heappop(heap)
            return (pair, where) if negative < 0 else None

        # merges have taken occurrences away since the count came onto the heap
        heapq.heapreplace(heap, (-n_found[pair], pair, where))
    return None


def merge(word: list[int], left: int, right: int, new: int) -> Iterator[tuple[Pair, Pair]]:
    """Put a token in place of a pair in a word, from the left; yield each pair that is lost and the one made instead.

    With 8 for the pair 1 2, the word [5 1 2 6] becomes [5 8 6]; yielded are (5 1), (5 8) and (2 6), (8 6).
    """
    at = 0
    while left in word[at:-1]:
        at = word.index(left, at)
        if word[at + 1] == right:
            if at > 0:
                before = word[at - 1]
                yield (before, left), (before, new)
            word[at : at + 2] = [new]
            if at + 1 < len(word):
                after = word[at + 1]
                yield (right, after), (new, after)
        at += 1
