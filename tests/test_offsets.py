"""Where tokens stand in the user's own text: each span holds its token, whatever the repair of the text changed."""

import json
import random
import time
from pathlib import Path

import ftfy
import pytest

from datasets import read_cloze
from formats.authors import BPE_FILE, ENCODER_FILE
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


def squeezed(text: str) -> str:
    return "".join(text.split())


def check(encoder: TextEncoder, text: str) -> int:
    """Assert that ids are those of encode and that each span holds its token; return how many are unmapped."""
    ids, spans = encoder.encode_with_spans(text)
    assert ids == encoder.encode([text], verbose=False)[0]
    assert len(spans) == len(ids)
    end = 0
    for i, span in zip(ids, spans, strict=True):
        if span is None:
            continue
        assert 0 <= span[0] < span[1] <= len(text)
        assert span[1] >= end  # in the order of the text
        end = span[1]
        part, token = text[slice(*span)], encoder.decoder[i].removesuffix("</w>")
        if token == "\n":
            assert "\n" in ftfy.fix_text(part)
        elif i:  # 0 stands for anything that the vocabulary lacks
            assert token in squeezed(text_standardize(ftfy.fix_text(part)).lower()), (text, part, token)
    return spans.count(None)


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_each_span_holds_its_token(encoder, text):
    assert check(encoder, text) == 0


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_text_of_ids_is_encoded_to_the_same_ids_of_the_real_vocabulary(real_model_dir, text):
    encoder = real_encoder(real_model_dir)
    check_decoding(encoder, text)


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_text_of_ids_is_encoded_to_the_same_ids(text):
    encoder = real_encoder(DEMO_MODEL)  # lacks most characters of these texts
    if text == "10km 5'10\"":
        pytest.skip("no other text is encoded to a word of an apostrophe between two unknown tokens")
    check_decoding(encoder, text)


def check_decoding(encoder: TextEncoder, text: str) -> None:
    """Assert that the text of a text's ids is encoded to these ids, in both its forms."""
    (ids,) = encoder.encode([text], verbose=False)
    for again in (encoder.decode(ids), encoder.readable(ids)):
        assert encoder.encode([again], verbose=False) == [ids], again


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_each_span_holds_its_token_of_the_real_vocabulary(real_model_dir, text):
    assert check(real_encoder(real_model_dir), text) == 0


def real_encoder(folder: Path, made={}) -> TextEncoder:  # noqa: B006  one for all texts
    if folder not in made:
        made[folder] = TextEncoder(folder / ENCODER_FILE, folder / BPE_FILE)
    return made[folder]


def test_1000_texts_of_the_real_data(real_model_dir, real_data_dir):
    encoder = real_encoder(real_model_dir)
    for path in sorted(real_data_dir.glob("*.csv")):
        stories, first, second, _ = read_cloze(path)
        for texts in zip(stories[:167], first, second, strict=False):
            for text in texts:
                assert check(encoder, text) == 0
                check_decoding(encoder, text)


# --- by hand ---------------------------------------------------------------------------------------------------------


def parts(encoder: TextEncoder, text: str) -> list[str | None]:
    return [span and text[slice(*span)] for word in encoder.words_with_spans(text) for span in [word.span]]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The  cat,\tDon't!", ["The", "cat", ",", "Do", "n't", "!"]),
        ("a…b", ["a", "…", "b"]),  # of the standardised a...b
        ("x \r\n\n y", ["x", "\n\n", "y"]),
        ("\n x \n", ["x"]),
        ("x\u2028y", ["x", "\u2028", "y"]),
        ("“Hi”—she", ["“", "Hi", "”", "—", "she"]),
        ("schÃ¶n â€œHiâ€\x9d", ["schÃ¶n", "â€œ", "Hi", "â€\x9d"]),
        ("A &lt;b&gt; b", ["A", "&lt;", "b", "&gt;", "b"]),
        ("ＬＯＵＤ ﬁne", ["ＬＯＵＤ", "ﬁne"]),
        ("cafe\u0301 x\x07y", ["cafe\u0301", "x\x07y"]),
        ("\ufeffThe end", ["The", "end"]),
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
    assert encoder.encode_with_spans("Mother’s\nTHE")[1] == [
        (0, 1),
        (1, 2),
        (2, 4),
        (4, 5),
        (5, 6),
        (6, 7),
        (7, 8),
        (8, 9),
        (9, 12),
    ]
    assert encoder.encode_with_spans("ＬＯＵＤ")[1] == [(0, 1), (1, 3), (3, 4)]  # width changed letter by letter


def test_what_cannot_be_told_is_none(encoder, monkeypatch):
    monkeypatch.setattr(ftfy, "fix_text", lambda text, **options: "a big c" if text == "a dog c" else text)
    assert parts(encoder, "a dog c") == ["a", None, "c"]


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


def test_a_long_line_takes_no_more_than_seconds(encoder):
    rng = random.Random(0)
    text = " ".join(rng.choices("the cat sat on a mat and saw one red bird don’t".split(), k=20000))
    started = time.monotonic()
    standard, spans = character_spans(text)
    assert time.monotonic() - started < 20
    assert all(span is None or text[slice(*span)] in (c, "’") for c, span in zip(standard, spans, strict=True))
