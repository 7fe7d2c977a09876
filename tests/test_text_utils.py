"""Text -> tokens: each rule by itself on a vocabulary made by hand, and the merges against a brute-force version."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import text_utils
from formats.files import InputError
from text_utils import BOUNDARY, PLAIN, TextEncoder, get_pairs, repair, split_parts, text_standardize

SLOW_SEEDS = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6)]
CHARACTERS = [*"abcdefghijklmnopqrstuvwxyzö.-'\\"]
MERGES = [("a", "a"), ("aa", "a</w>"), ("b", "a"), ("a", "b"), ("ab", "ab</w>"), ("a", "b</w>"), ("a", "c</w>")]


def make(folder: Path, tokens: list[str], merges: list[tuple[str, str]]) -> TextEncoder:
    tokens = list(dict.fromkeys([*tokens, *map("".join, merges)]))
    (folder / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.bpe").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]), encoding="utf-8")
    return TextEncoder(folder / "encoder.json", str(folder / "merges.bpe"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> TextEncoder:
    tokens = ["<unk>", *CHARACTERS, *(c + "</w>" for c in CHARACTERS), "\n</w>"]
    return make(tmp_path_factory.mktemp("vocabulary"), tokens, MERGES)


def tokens_of(encoder: TextEncoder, text: str) -> list[str]:
    return [encoder.decoder[i] for i in encoder.encode([text], verbose=False)[0]]


# --- standardise -----------------------------------------------------------------------------------------------------

RULES = {
    "em dash": ("a—b", "a - b"),
    "en dash": ("a–b", "a - b"),
    "horizontal bar": ("a―b", "a - b"),
    "dashes of any sort are one run": ("a—–―-b", "a ---- b"),
    "ellipsis": ("a…b", "a...b"),
    "acute accent": ("it´s", "it's"),
    "runs of different marks are apart": ('a?!,"b', 'a ? ! , " b'),
    "a mark at either end": ("(a)", "( a )"),
    "no second space": ("a , b", "a , b"),
    "other marks stay": ("a.b:c'd&e%f$g#h@i<j>k=l^m`n", "a.b:c'd&e%f$g#h@i<j>k=l^m`n"),
    "one backslash stays": ("a\\b", "a\\b"),
    "two backslashes stay": ("a\\\\b", "a\\\\b"),
    "newlines and the white space around them": ("a \t\n\r\n \u00a0b", "a \n b"),
    "a lone carriage return is a space": ("a\rb", "a b"),
    "other white space": ("a \t\u00a0\u3000b", "a b"),
    "strip": (" \n a b\t\n", "a b"),
    "nothing": ("", ""),
    "only white space": (" \n\t", ""),
}


@pytest.mark.parametrize("text, expected", RULES.values(), ids=RULES)
def test_each_rule_of_standardising(text, expected):
    assert text_standardize(text) == expected


@pytest.mark.parametrize("mark", '-~!";?+,)(/*[]}{|_')
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_run_of_one_mark_is_set_apart_as_a_whole(mark, n):
    assert text_standardize(f"a{mark * n}b") == f"a {mark * n} b"


# --- merges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word, expected",
    [
        ("a", "a</w>"),
        ("aa", "a a</w>"),  # the last letter is another symbol: a</w>
        ("aaa", "aaa</w>"),
        ("aaaa", "aa a a</w>"),  # from the left, occurrences do not overlap
        ("aaaaa", "aa aaa</w>"),
        ("abab", "a ba b</w>"),  # b a comes before a b and a b</w>
        ("abcabc", "ab c ab c</w>"),  # every occurrence of a pair at once
        ("bac", "ba c</w>"),  # b a comes before a c</w>
        ("xyz", "x y z</w>"),
        ("\n", "\n</w>"),
        ("\n ", "\n</w>"),
    ],
    ids=repr,
)
def test_merges_of_a_word(encoder, word, expected):
    assert encoder.bpe(word) == expected


def test_pairs_are_those_of_neighbouring_symbols():
    assert get_pairs(("a", "b", "a", "b", "c</w>")) == {("a", "b"), ("b", "a"), ("b", "c</w>")}
    assert get_pairs("ab") == {("a", "b")} and get_pairs(["a"]) == set()


def merge_by_substitution(word: str, merges: list[tuple[str, str]]) -> str:
    """Join everywhere the first pair of the list that occurs, until none does."""
    text = " ".join(word) + "</w>"
    while True:
        for first, second in merges:
            pattern = rf"(?<!\S){re.escape(first)} {re.escape(second)}(?!\S)"
            merged = re.sub(pattern, lambda found: found[0].replace(" ", ""), text)
            if merged != text:
                break
        else:
            return text
        text = merged


@pytest.mark.parametrize("seed", [0, 1, *SLOW_SEEDS])
def test_merges_equal_a_brute_force_statement(seed, tmp_path):
    rng = random.Random(seed)
    symbols = [*"abc", *(c + "</w>" for c in "abc")]
    merges = set()
    while len(merges) < 30:
        first = rng.choice([symbol for symbol in symbols if not symbol.endswith("</w>")])
        merges.add((first, second := rng.choice(symbols)))
        symbols.append(first + second)
    merges = rng.sample(sorted(merges), len(merges))  # in any order: ranks are independent of lengths
    encoder = make(tmp_path, symbols, merges)
    for _ in range(300):
        word = "".join(rng.choices("abcd", [9, 5, 3, 1], k=rng.randint(1, 14)))
        assert encoder.bpe(word) == merge_by_substitution(word, merges), word


# --- encode ----------------------------------------------------------------------------------------------------------


MARKS = list("ab c'-~!\";?+,)(/*[]}{|_\\.\n\t\r\v\f\x1c\x85\u2028\xa0\u3000—–―…´ \n <>&;\x7f\x1b")


@pytest.mark.parametrize("seed", [0, 1, *SLOW_SEEDS])
def test_standardising_equals_the_authors_four_steps(seed):
    rng = random.Random(seed)
    runs = r"""(-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|\/+|\*+|\[+|\]+|\}+|\{+|\|+|_+)"""
    for _ in range(5000):
        text = "".join(rng.choices(MARKS, k=rng.randint(0, 14)))
        expected = text
        for mark, plain in (("—", "-"), ("–", "-"), ("―", "-"), ("…", "..."), ("´", "'")):
            expected = expected.replace(mark, plain)
        expected = re.sub(runs, r" \1 ", expected)
        expected = re.sub(r"\s*\n\s*", " \n ", expected)
        assert text_standardize(text) == re.sub(r"[^\S\n]+", " ", expected).strip(), repr(text)


def test_plain_texts_need_no_repair():
    import ftfy

    rng, n_plain = random.Random(0), 0
    for i in range(20000):
        characters = MARKS if i % 2 else [chr(c) for c in range(256)]
        text = "".join(rng.choices(characters, k=rng.randint(0, 8)))
        if PLAIN.fullmatch(text):
            n_plain += 1
            assert ftfy.fix_text(text) == text, repr(text)
    assert n_plain > 1000
    assert all(PLAIN.fullmatch(chr(c)) for c in range(32, 127) if chr(c) != "&")
    assert not any(PLAIN.fullmatch(f"a{c}b") for c in "&\r\x00\x1b\x7f\x85é\ufeff")


def test_text_is_repaired_before_anything_else(encoder):
    assert tokens_of(encoder, "schÃ¶n") == tokens_of(encoder, "schön") == ["s", "c", "h", "ö", "n</w>"]


def test_words_are_split_by_rules_and_then_made_lower_case(encoder):
    assert tokens_of(encoder, "Mr. X.") == ["m", "r", ".</w>", "x", ".</w>"]  # "mr." in lower case would be split
    assert tokens_of(encoder, "don't") == ["d", "o</w>", "n", "'", "t</w>"]
    assert tokens_of(encoder, "DON'T") == ["d", "o", "n", "'", "t</w>"]  # spaCy's rules know it only in lower case
    assert tokens_of(encoder, "a\\b") == ["a", "\\", "b</w>"]


def test_a_newline_is_one_token(encoder):
    assert tokens_of(encoder, "\nx \n\n y\n") == ["x</w>", "\n</w>", "y</w>"]


def test_a_piece_that_the_vocabulary_lacks_is_0(encoder):
    assert encoder.encode(["x€y"], verbose=False) == [[encoder.encoder["x"], 0, encoder.encoder["y</w>"]]]
    assert encoder.encode(["€"], verbose=False) == [[0]]


def test_no_text_gives_no_tokens(encoder):
    assert encoder.encode(["", " \n"], verbose=False) == [[], []]
    assert encoder.encode([], verbose=False) == []


def test_the_decoder_is_the_encoder_the_other_way_round(encoder):
    assert {token: i for i, token in encoder.decoder.items()} == encoder.encoder
    assert sorted(encoder.decoder) == list(range(len(encoder.encoder)))
    assert "".join(tokens_of(encoder, "A baa abab")).replace("</w>", " ") == "a baa abab "


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Mr. X. don't", "Mr. x. don't"),  # in lower case mr. would be split
        ("I'm I´m", "i'm i'm"),
        ("a € xy€b. €", "a ◻ xy◻ b. ◻"),  # unknown: what it was cannot be told
    ],
    ids=repr,
)
def test_ids_are_decoded_to_text_in_lower_case(encoder, text, expected):
    ids = encoder.encode([text], verbose=False)[0]
    assert encoder.decode(ids) == expected
    assert encoder.decode(np.array(ids, np.int32)) == expected
    assert encoder.decode(iter(torch.tensor(ids, dtype=torch.int64))) == expected


def test_special_tokens_that_a_user_adds_change_nothing(encoder):
    ours = make(encoder.files[0].parent, list(encoder.encoder), MERGES)
    for name in ("_start_", "_delimiter_", "_classify_"):
        ours.encoder[name] = len(ours.encoder)
    text = "a _start_ baa"
    assert ours.n_vocab == encoder.n_vocab == len(encoder.encoder) == len(ours.encoder) - 3
    assert ours.encode([text], verbose=False) == encoder.encode([text], verbose=False)
    assert ours.decode([1, 2]) == encoder.decode([1, 2])


def test_what_was_encoded_before_has_no_effect(encoder, tmp_path):
    texts = ["abab aaa abab", "aaa\naaa abab", "Abab ABAB ab€b ab€b", "aaa"]
    separate = [make(tmp_path, list(encoder.encoder), MERGES).encode([text], verbose=False)[0] for text in texts]
    assert encoder.encode(texts) == separate
    assert encoder.encode(texts[::-1], verbose=False) == separate[::-1]
    fresh = make(tmp_path, list(encoder.encoder), MERGES)
    first = fresh.encode(texts, verbose=False)
    for ids in first:
        ids.clear()  # the lists belong to the caller, not to the cache
    assert fresh.encode(texts, verbose=False) == separate


def test_a_bad_merge_is_named_with_its_own_line(tmp_path):
    (tmp_path / "e.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "m.bpe").write_text("#v\n\n\na b\nx\n")
    with pytest.raises(InputError, match="line 5: .* 'x'"):
        TextEncoder(tmp_path / "e.json", tmp_path / "m.bpe")


# --- long texts ------------------------------------------------------------------------------------------------------

LONG = {
    "letters": "ab",
    "brackets": "(",
    "curly quotes": "“",
    "dots": ".",
    "an ellipsis": "…",
    "terminal escapes": "\x1b[",
    "white space": " \t",
    "faces": ":D",
    "words": "the cat (sat. ",
}


@pytest.mark.parametrize("pattern", LONG.values(), ids=LONG)
def test_a_long_text_of_one_pattern_is_encoded_in_time_that_grows_with_its_length(pattern, encoder):
    text = pattern * (50_000 // len(pattern))
    (ids,) = encoder.encode([text], verbose=False)
    assert bool(ids) == bool(text.strip())
    assert ids[:100] == encoder.encode([text[:900]], verbose=False)[0][:100]
    assert len(encoder.decode(ids)) >= len(ids) / 2


def test_more_than_a_million_characters_are_no_limit(encoder):
    text = "aaa " * 260_000
    assert encoder.encode([text], verbose=False) == [[encoder.encoder["aaa</w>"]] * 260_000]


def test_an_ampersand_that_was_escaped_many_times_is_repaired_as_ftfy_does():
    import ftfy

    for end in ("", "lt;", "quot; Ã©"):
        text = "salt &" + "amp;" * 300 + end + " pepper"
        assert repair(text) == ftfy.fix_text(text)


def test_a_word_of_more_than_a_thousand_characters_is_cut_after_each_thousand(encoder):
    letters = "".join(random.Random(0).choices("abcdef", k=2500))
    parts = [letters[:1000], letters[1000:2000], letters[2000:]]
    assert text_standardize(f"x {letters} y") == f"x {' '.join(parts)} y"
    assert text_standardize(letters[:1000]) == letters[:1000]
    words = encoder.words_with_spans(f"x {letters}")
    assert [word.text for word in words] == ["x", *parts]
    assert [word.span for word in words] == [(0, 1), (2, 1002), (1002, 2002), (2002, 2502)]


@pytest.mark.parametrize("seed", [0, 1, *SLOW_SEEDS])
def test_a_text_is_split_by_parts_as_spacys_tokenizer_splits_it_whole(seed, monkeypatch):
    import spacy

    monkeypatch.setattr(text_utils, "PART", 5)
    nlp, rng = spacy.blank("en"), random.Random(seed)
    words = [
        *nlp.tokenizer.rules,
        *MARKS,
        "cat",
        "10km",
        "5",
        "...",
        "http://a.bc/d?e=f",
        "x@y.de",
        "a-b",
        "USA.",
        "é.",
    ]
    for _ in range(1000):
        separators = rng.choices(["", " ", " ", "\n", ".", " . ", "("], k=20)
        text = "".join(rng.choice(words) + separator for separator in separators[: rng.randint(1, 20)])
        standard = text_standardize(text)
        expected = [(word.text, word.idx) for word in nlp.tokenizer(standard)]
        found = [(word.text, start + word.idx) for start, part in split_parts(standard) for word in part]
        assert found == expected, repr(standard)


def test_what_the_splitter_takes_for_granted_of_spacys_rules():
    import spacy
    from spacy.tokenizer import Tokenizer

    rules = spacy.blank("en")
    # no rule about several tokens reaches over a boundary
    affixes = {name: getattr(rules.tokenizer, name) for name in ("prefix_search", "suffix_search", "infix_finditer")}
    plain = Tokenizer(rules.vocab, url_match=rules.tokenizer.url_match, **affixes)
    for rule in rules.tokenizer.rules:
        for token in list(plain(rule))[1:]:
            assert not BOUNDARY.match(" " + token.text), rule
    # suffixes are short, except for a run of dots
    long = [suffix for suffix in rules.Defaults.suffixes if re._parser.parse(suffix).getwidth()[1] > 8]
    assert long == [r"\.\.+"]


@pytest.mark.parametrize("seed", [0, 1, *SLOW_SEEDS])
def test_merges_of_a_long_word_are_those_of_a_short_one(seed, tmp_path):
    rng = random.Random(seed)
    symbols, merges = [*"abc", *(c + "</w>" for c in "abc")], set()
    while len(merges) < 40:
        first = rng.choice([symbol for symbol in symbols if not symbol.endswith("</w>")])
        second = rng.choice(symbols)
        merges.add((first, second))
        symbols.append(first + second)
    encoder = make(tmp_path, symbols, rng.sample(sorted(merges), len(merges)))
    for _ in range(300):
        parts = rng.choices("abcd", [9, 5, 3, 1], k=rng.randint(1, 150))
        assert encoder._merged_long(list(parts)) == encoder._merged(list(parts)), parts


def test_the_words_that_are_remembered_are_bounded(encoder, tmp_path, monkeypatch):
    texts = [" ".join(f"a{'b' * i} c{'d' * j}" for i in range(9)) for j in range(2)]
    expected = encoder.encode(texts, verbose=False)
    monkeypatch.setattr(text_utils, "CACHED_WORDS", 5)
    ours = make(tmp_path, list(encoder.encoder), MERGES)
    for text, ids in zip(texts, expected, strict=True):
        assert ours.encode([text], verbose=False) == [ids]
        ours.decode(ids)
        assert len(ours.cache) <= 5 and len(ours.spellings) <= 5
        assert text_utils._english.cache_info().currsize == 0  # spaCy's own words are forgotten too
