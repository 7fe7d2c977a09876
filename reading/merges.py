"""Counts of words -> the byte-pair merges inside them, as the authors' two files."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from formats.files import replacing, write_json


def learn_vocabulary(counts: Mapping[str, int], n_merges: int, encoder_path: Path, bpe_path: Path) -> None:
    """Learn byte-pair merges inside words, given how often each occurs, and write them as the authors' two files.

    Ids are in their order: the unknown token, characters, characters that end a word, merges, the newline.
    """
    parts = Counter()
    for word, n in counts.items():
        for part in word.split():  # a newline holds none
            parts[part] += n
    characters = sorted(set("".join(parts)))
    alphabet = ["<unk>", *characters, *(c + "</w>" for c in characters)]
    tokens, merges = learn_merges(parts, alphabet, n_merges)
    tokens.append("\n</w>")
    write_json(encoder_path, {token: i for i, token in enumerate(tokens)})
    with replacing(bpe_path) as file:
        file.write("\n".join(["#version: 0.2", *map(" ".join, merges), ""]).encode())


def learn_merges(counts: Mapping[str, int], alphabet: list[str], n_merges: int) -> tuple[list[str], list[tuple]]:
    """Return the alphabet with the tokens that merges make, and the merges: always of the pair that is found most.

    They are those of the tokenizers library, which counts pairs in 32 bits only: ties go to the pair of lower ids, a
    merge that makes a token a second time is kept but not counted in `n_merges`, and the count of a merged pair stays.
    """
    tokens, ids = list(alphabet), {token: i for i, token in enumerate(alphabet)}
    words = [[*(ids[c] for c in word[:-1]), ids[word[-1] + "</w>"]] for word in counts]
    repeats = list(counts.values())
    n_found: Counter[tuple[int, int]] = Counter()  # pair -> how often it is found
    new_in = defaultdict(list)  # pair -> the words in which the newest token has made it
    for i, word in enumerate(words):
        for pair in pairwise(word):
            n_found[pair] += repeats[i]
            new_in[pair].append(i)
    merges, heap = [], []
    while len(tokens) < len(alphabet) + n_merges:
        for pair, where in new_in.items():
            if n_found[pair] > 0:
                heapq.heappush(heap, (-n_found[pair], pair, where))
        new_in.clear()
        while heap and -heap[0][0] != n_found[heap[0][1]]:  # the count has changed since
            _, pair, where = heap[0]
            heapq.heapreplace(heap, (-n_found[pair], pair, where))
        if not heap or heap[0][0] >= 0:
            break
        _, (left, right), where = heapq.heappop(heap)
        merges.append((tokens[left], tokens[right]))
        token = tokens[left] + tokens[right]
        if token not in ids:
            ids[token] = len(tokens)
            tokens.append(token)
        new = ids[token]
        for i in where:
            word, n, at = words[i], repeats[i], 0
            while left in word[at:-1]:
                at = word.index(left, at)
                if word[at + 1] == right:
                    if at > 0:
                        n_found[word[at - 1], left] -= n
                        n_found[word[at - 1], new] += n
                        new_in[word[at - 1], new].append(i)
                    word[at : at + 2] = [new]
                    if at + 1 < len(word):
                        n_found[right, word[at + 1]] -= n
                        n_found[new, word[at + 1]] += n
                        new_in[new, word[at + 1]].append(i)
                at += 1
    return tokens, merges
