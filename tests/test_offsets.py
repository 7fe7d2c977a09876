"""Where tokens stand in the user's own text: each span holds its token, whatever the repair of the text changed."""

import json
import random
import time
from pathlib import Path

import ftfy
import pytest

from datasets import read_cloze
from formats.folders import BPE_FILE, ENCODER_FILE
from text_utils import TextEncoder, character_spans, text_standardize

DEMO_MODEL = Path(__file__).parents[1] / "demo/model"
TEXTS = [case["text"] for case in json.loads((Path(__file__).parent / "golden/tokens.json").read_text("utf-8"))]
CHARACTERS = sorted({c for text in TEXTS for c in text_standardize(ftfy.fix_text(text)).lower()} - set(" \n"))
CHARACTERS = sorted({*CHARACTERS, *"abcdefghijklmnopqrstuvwxyzé!'\"-.,<>&"})
MERGES = ["t h", "th e</w>", "e r", "o u", "l e", "in g</w>", "- -", "s h", "i n"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> TextEncoder:
    folder = tmp_path_factory.mktemp("vocabulary")
    tokens = ["<unk>", *CHARACTERS, *(c + "</w>" for c in CHARACTERS), *(m.replace(" ", "") for m in MERGES), "\n</w>"]
    (folder / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.bpe").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return TextEncoder(folder / "encoder.json", folder / "merges.bpe")


def vocabulary(folder: Path, made={}) -> TextEncoder:  # noqa: B006  one for all texts
    if folder not in made:
        made[folder] = TextEncoder(folder / ENCODER_FILE, folder / BPE_FILE)
    return made[folder]


def check(encoder: TextEncoder, text: str) -> int:
    """Assert that ids are those of encode and that each span holds its token; return how many are unmapped."""
    ids, spans = encoder.encode_with_spans(text)
    assert ids == encoder.encode([text], verbose=False)[0]
    assert len(spans) == len(ids)
    before = (0, 0)
    for i, span in zip(ids, spans, strict=True):
        if span is None:
            continue
        assert 0 <= span[0] < span[1] <= len(text)
        assert span >= before and span[1] >= before[1]  # in the order of the text
        before = span
        part, token = text[slice(*span)], encoder.decoder[i].removesuffix("</w>")
        if token == "\n":
            assert "\n" in ftfy.fix_text(part)
        elif i:  # 0 stands for anything that the vocabulary lacks
            assert token in "".join(text_standardize(ftfy.fix_text(part)).lower().split()), (text, part, token)
    return spans.count(None)


def check_decoding(encoder: TextEncoder, text: str) -> None:
    """Assert that the text of a text's ids is encoded to these ids."""
    (ids,) = encoder.encode([text], verbose=False)
    again = encoder.decode(ids)
    assert encoder.encode([again], verbose=False) == [ids], again


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_each_span_holds_its_token(encoder, text):
    assert check(encoder, text) == 0


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_text_of_ids_is_encoded_to_the_same_ids(text):
    if text == "10km 5'10\"":
        pytest.skip("no other text is encoded to a word of an apostrophe between two unknown tokens")
    check_decoding(vocabulary(DEMO_MODEL), text)  # lacks most characters of these texts


def test_both_hold_with_the_real_vocabulary(real_model_dir):
    for text in TEXTS:
        assert check(vocabulary(real_model_dir), text) == 0
        check_decoding(vocabulary(real_model_dir), text)


def test_both_hold_for_1000_texts_of_the_real_data(real_model_dir, real_data_dir):
    for path in sorted(real_data_dir.glob("*.csv")):
        stories, first, second, _ = read_cloze(path)
        for texts in zip(stories[:167], first, second, strict=False):
            for text in texts:
                assert check(vocabulary(real_model_dir), text) == 0
                check_decoding(vocabulary(real_model_dir), text)


# --- by hand ---------------------------------------------------------------------------------------------------------


def parts(encoder: TextEncoder, text: str) -> list[str | None]:
    return [span and text[slice(*span)] for word in encoder.words_with_spans(text) for span in [word.span]]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The  cat,\tDon't!", ["The", "cat", ",", "Do", "n't", "!"]),
        ("a…b", ["a", "…", "b"]),  # of the standardised a...b
        ("x \n\n y\n", ["x", "\n\n", "y"]),
        ("x \r\n\n y", ["x", "\r\n\n", "y"]),
        ("\n x \n", ["x"]),
        ("x\u2028y\rx", ["x", "\u2028", "y", "\r", "x"]),
        ("“Hi”—she", ["“", "Hi", "”", "—", "she"]),  # repaired one character for one
        ("ＬＯＵＤ ﬁne", ["ＬＯＵＤ", "ﬁne"]),
        ("schÃ¶n â€œHiâ€\x9d x", ["schÃ¶n", *["â€œHiâ€\x9d"] * 3, "x"]),  # else the whole word
        ("A &lt;b&gt; b", ["A", *["&lt;b&gt;"] * 3, "b"]),
        ("cafe\u0301 x\x07y", ["cafe\u0301", "x\x07y"]),
        ("\ufeffThe end", ["\ufeffThe", "end"]),
        ("x Ã\xa0la x\nx", [None, None, None, "\n", "x"]),  # two words become one: no word of the line
        ("the Ã\xa0 la", [None, None, None]),  # Ã is repaired otherwise by itself
        ("x\n\x07\ny", [None, None, None]),  # a line is repaired away: no word of the text
        ("İx", ["İx"]),
        ("", []),
        (" \n", []),
    ],
    ids=repr,
)
def test_the_span_of_each_word(encoder, text, expected):
    assert parts(encoder, text) == expected
    check(encoder, text)


def test_the_spans_of_tokens(encoder):
    one_each = [(i, i + 1) for i in range(4, 9)]
    assert encoder.encode_with_spans("Mother’s\nTHE")[1] == [(0, 1), (1, 2), (2, 4), *one_each, (9, 12)]
    assert encoder.encode_with_spans("ＬＯＵＤ")[1] == [(0, 1), (1, 3), (3, 4)]  # width changed letter by letter
    assert encoder.encode_with_spans("schÃ¶n")[1] == [(0, 6)] * 5


def test_an_html_entity_is_repaired_up_to_the_first_tag_only(encoder):
    text = "&lt; x\n<b>\n&lt; y"
    assert parts(encoder, text)[:2] == ["&lt;", "x"]
    assert character_spans(text)[0] == text_standardize(ftfy.fix_text(text)) == "< x \n <b> \n &lt ; y"
    check(encoder, text)


@pytest.mark.parametrize("seed", range(5))
def test_texts_at_random(encoder, seed):
    rng = random.Random(seed)
    stock = [
        *"aé.,-!?'\"…—´“’\n\r\t \u00a0\u3000\u2028\u200b\x07<&ﬁＬİΣ",
        "Ã©",
        "â€œ",
        "&amp;",
        "don't ",
        "the ",
        "e\u0301",
    ]
    for _ in range(100):
        check(encoder, "".join(rng.choices(stock, k=rng.randint(1, 30))))


@pytest.mark.parametrize("between", [" ", "\n", " " * 50], ids=repr)
def test_a_long_text_takes_no_more_than_seconds(encoder, between):
    rng = random.Random(0)
    text = between.join(rng.choices("the cat sat on a mat and saw one red bird don’t".split(), k=20000))
    started = time.process_time()
    standard, spans = character_spans(text)
    assert time.process_time() - started < 20
    pairs = [(character, text[slice(*span)]) for character, span in zip(standard, spans, strict=True) if span]
    assert all(part in (character, "’") for character, part in pairs) and len(pairs) > 50000
