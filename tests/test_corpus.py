"""Raw text: the merges learned from it, and its tokens in a file that survives interruption and damage."""

from pathlib import Path

import pytest
from test_pretrain import write_corpus
from tokenizers import Tokenizer, models, pre_tokenizers

import corpus
from corpus import learn_vocabulary, read_lines, tokenize
from text_utils import TextEncoder, split_words
from utils import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(Path("corpus.txt"))


def learn(n_merges: int) -> TextEncoder:
    paths = Path("encoder_bpe_40000.json"), Path("vocab_40000.bpe")
    learn_vocabulary(Path("corpus.txt"), n_merges, *paths)
    return TextEncoder(*paths)


# --- merges and tokens -----------------------------------------------------------------------------------------------


def test_our_encoder_gives_the_ids_of_the_library_that_learnt_the_merges():
    encoder = learn(20)
    merges = [tuple(line.split()) for line in Path("vocab_40000.bpe").read_text().split("\n")[1:-1]]
    library = Tokenizer(models.BPE(encoder.encoder, merges, end_of_word_suffix="</w>", unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert len(merges) == 20
    for line in Path("corpus.txt").read_text().splitlines():
        words = " ".join(split_words(encoder.nlp, line))
        assert encoder.encode([line], verbose=False)[0] == library.encode(words).ids


def test_what_is_encoded_decodes_to_the_same_words():
    encoder = learn(20)
    for line in Path("corpus.txt").read_text().splitlines():
        text = "".join(encoder.decoder[i] for i in encoder.encode([line], verbose=False)[0]).replace("</w>", " ")
        assert text.split() == split_words(encoder.nlp, line)
        assert encoder.decode(encoder.encode([line], verbose=False)[0]) == text.rstrip()


def test_the_vocabulary_is_laid_out_as_the_authors_and_learnt_alike_each_time():
    encoder = learn(20)
    first = [Path(name).read_bytes() for name in ("encoder_bpe_40000.json", "vocab_40000.bpe")]
    assert encoder.decoder[0] == "<unk>" and encoder.decoder[len(encoder.decoder) - 1] == "\n</w>"
    learn(20)
    assert first == [Path(name).read_bytes() for name in ("encoder_bpe_40000.json", "vocab_40000.bpe")]


def test_tokens_run_on_across_lines_each_ended_by_the_newline():
    encoder = learn(10)
    Path("corpus.txt").write_text("the cat\n\n  \na mat")
    tokens = tokenize(Path("corpus.txt"), encoder, "v", Path("."))
    cat, mat = encoder.encode(["the cat", "a mat"], verbose=False)
    newline = encoder.encoder["\n</w>"]
    assert tokens.tolist() == [*cat, newline, *mat, newline]


def test_a_token_file_cut_short_in_the_making_is_gone_on_with(monkeypatch):
    encoder = learn(10)
    whole = tokenize(Path("corpus.txt"), encoder, "v", Path(".")).tolist()
    for name in ("tokens.bin", "tokens.json"):
        Path(name).unlink()
    monkeypatch.setattr(corpus, "LINES_PER_STEP", 7)
    encode, lines_seen = encoder.encode, []

    def encode_some(lines, verbose):
        if len(lines_seen) >= 21:
            raise KeyboardInterrupt
        lines_seen.extend(lines)
        return encode(lines, verbose)

    monkeypatch.setattr(encoder, "encode", encode_some)
    with pytest.raises(KeyboardInterrupt):
        tokenize(Path("corpus.txt"), encoder, "v", Path("."))
    with open("tokens.bin.part", "ab") as file:
        file.write(b"half a row")  # written, but not yet recorded
    monkeypatch.setattr(encoder, "encode", lambda lines, verbose: lines_seen.extend(lines) or encode(lines, verbose))
    assert tokenize(Path("corpus.txt"), encoder, "v", Path(".")).tolist() == whole
    assert lines_seen == Path("corpus.txt").read_text().splitlines(keepends=True)  # each line once


def test_a_damaged_token_file_is_named_and_made_again(capsys):
    encoder = learn(10)
    whole = tokenize(Path("corpus.txt"), encoder, "v", Path(".")).tolist()
    content = bytearray(Path("tokens.bin").read_bytes())
    content[5] ^= 1
    Path("tokens.bin").write_bytes(content)
    assert tokenize(Path("corpus.txt"), encoder, "v", Path(".")).tolist() == whole
    assert "tokens.bin is damaged" in capsys.readouterr().out


# --- text files ------------------------------------------------------------------------------------------------------


def test_lines_are_read_without_a_byte_order_mark():
    Path("corpus.txt").write_bytes("\ufeffthe cat\r\na \ufeffmat".encode())
    assert list(read_lines(Path("corpus.txt"))) == ["the cat\r\n", "a \ufeffmat"]


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "corpus.txt cannot be read .No such file or directory.. --corpus names a text file"),
        (b"the cat\ncaf\xe9\n", "corpus.txt, line 2: not UTF-8. Convert the file"),
        (b" \n\n", "corpus.txt holds no words. --corpus names a text file to learn from"),
    ],
    ids=["missing", "Latin-1", "no words"],
)
def test_a_text_to_learn_from_that_is_bad_is_named_and_no_vocabulary_is_written(content, message):
    Path("corpus.txt").unlink()
    if content is not None:
        Path("corpus.txt").write_bytes(content)
    with pytest.raises(InputError, match=f"^{message}"):
        learn(10)
    assert not list(Path(".").glob("*bpe*"))
