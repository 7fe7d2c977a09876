"""Generation: the cache changes no token, what is sampled from what, where samples end, and readable text."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from conftest import write_model
from helpers import ROOT
from test_model_pytorch import CFG, CLASSIFY, N_VOCAB, T, V, make
from test_packing import assert_all_close
from torch import Tensor

import generation
from formats.files import InputError
from generation import (
    Transcript,
    encode_prompt,
    generate,
    generate_batch,
    generate_text,
    generate_texts,
    new_caches,
    sample,
    stream_text,
)
from model_pytorch import DoubleHeadModel, LMModel
from reading.rows import special_tokens
from reading.tasks import ROCSTORIES_TEST
from scoring import score_ids
from speed.kernels import attention, plain_attention
from text_utils import TextEncoder
from weights import open_model


@pytest.fixture(scope="module")
def demo() -> tuple[LMModel, TextEncoder]:
    return open_model(ROOT / "demo/model")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[LMModel, TextEncoder]:
    """The model of conftest, with weights that do not make it repeat one token."""
    model, encoder = open_model(write_model(tmp_path_factory.mktemp("tiny") / "model"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1) if name.endswith(".g") else parameter.mul_(5)
        words, positions = model.transformer.embed.weight.split([len(encoder.encoder), model.transformer.n_ctx])
        words.mul_(4), positions.mul_(20)
    return model, encoder


def double_head() -> DoubleHeadModel:
    """A small model with its three special tokens, of random weights."""
    return make()[0].eval()


def tokens_of(steps) -> list[list[int | None]]:
    """Return the tokens of each sample."""
    return [list(of_sample) for of_sample in zip(*steps, strict=True)]


@torch.no_grad()
def without_cache(
    model: LMModel, prompt: list[int], n_tokens: int, n_allowed: int, n_samples: int = 1, penalty: float = 1.0, **how
) -> list[list[int]]:
    """Generate with all tokens of the window computed again for each next one."""
    table, n_ctx = model.transformer.embed.weight, model.transformer.n_ctx
    rows, windows = [[*prompt] for _ in range(n_samples)], [[*prompt] for _ in range(n_samples)]
    for _ in range(n_tokens):
        x = torch.tensor([[[i, len(table) - n_ctx + t] for t, i in enumerate(window)] for window in windows])
        logits = (model.transformer(x)[:, -1] @ table.T)[:, :n_allowed]
        for row, of_row in zip(rows, logits, strict=True):
            for i in set(row):
                of_row[i] = of_row[i] / penalty if of_row[i] > 0 else of_row[i] * penalty
        for row, window, token in zip(rows, windows, sample(logits, **how).tolist(), strict=True):
            row.append(token)
            window.append(token)
            if len(window) > n_ctx:
                del window[: -(n_ctx // 2)]
    return [row[len(prompt) :] for row in rows]


# --- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, n_prompt, n_tokens",
    [pytest.param("demo", 8, 200, marks=pytest.mark.slow), ("demo", 8, 80), ("tiny", 8, 200), ("tiny", 64, 40)],
)
def test_greedy_tokens_are_those_without_a_cache(request, name, n_prompt, n_tokens):
    model, encoder = request.getfixturevalue(name)
    assert model.transformer.embed.weight.dtype == torch.float32
    prompt = np.random.default_rng(0).integers(1, encoder.n_vocab, n_prompt)
    found = tokens_of(generate(model, prompt, n_tokens, temperature=0))
    assert found == without_cache(model, prompt.tolist(), n_tokens, encoder.n_vocab, temperature=0)
    assert len({*found[0]}) > 10
    assert (n_prompt + n_tokens > model.transformer.n_ctx) == (n_tokens != 80)  # it is refilled, several times for 200


@pytest.mark.parametrize("how", [{}, dict(temperature=0.7, top_k=5), dict(top_p=0.8), dict(temperature=0, penalty=1.5)])
def test_samples_are_those_without_a_cache(tiny, how):
    model, encoder = tiny
    prompt, n_vocab = [5, 3, 7], encoder.n_vocab
    expected = without_cache(model, prompt, 100, n_vocab, 4, generator=torch.Generator().manual_seed(3), **how)
    ours = {"repetition_penalty" if name == "penalty" else name: value for name, value in how.items()}
    generator = torch.Generator().manual_seed(3)
    found = tokens_of(generate(model, prompt, 100, n_samples=4, generator=generator, **ours))
    assert found == expected
    assert len(set(map(tuple, found))) == (1 if how.get("temperature") == 0 else 4)


@pytest.mark.parametrize("sizes", [[T], [4, 5], [1] * T, [3, 1, 4, 1], [5, 1, 3]], ids=str)
@torch.no_grad()
def test_states_computed_in_parts_are_those_computed_at_once(sizes):
    transformer = double_head().transformer
    x = torch.randint(N_VOCAB, (3, T, 2), generator=torch.Generator().manual_seed(0))
    x[..., 1] = V - T + torch.arange(T)
    caches = new_caches(transformer, 3, T)
    parts = [transformer(part, caches=caches) for part in x.split(sizes, 1)]
    torch.testing.assert_close(torch.cat(parts, 1), transformer(x), rtol=0, atol=1e-12)
    assert [cache.n_used for cache in caches] == [T] * CFG.n_layer


@pytest.mark.parametrize("n_queries", [1, 2, 6, 7])
def test_fewer_queries_than_keys_are_the_last_slots(n_queries):
    rng = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 7, 4, dtype=torch.double, generator=rng)
    scores = (q @ k.mT / 2).masked_fill(~torch.ones(7, 7).tril().bool(), -math.inf)
    expected = (scores.softmax(-1) @ v)[:, :, -n_queries:]
    last = q[:, :, -n_queries:]
    keeps_all = torch.nn.Dropout(1e-12)  # in training: written out on a CPU
    found = [plain_attention(last, k, v, None, 0.0), attention(last, k, v, None, keeps_all)]
    assert_all_close(found, [expected] * 2, 1e-9)


def test_each_token_is_computed_once_and_the_prompt_once_for_all_samples(tiny):
    model, n_ctx = tiny[0], tiny[0].transformer.n_ctx
    counts = []
    hook = model.transformer.h[-1].mlp.c_fc.register_forward_hook(lambda _m, inputs, _o: counts.append(len(inputs[0])))
    try:
        list(generate(model, [1] * 10, n_ctx, n_samples=3))
    finally:
        hook.remove()
    refilled = n_ctx - 10 + 1  # the step at which n_ctx + 1 tokens are known
    one_each = [3] * (n_ctx - 1)
    assert counts == [10, *one_each[: refilled - 1], 3 * n_ctx // 2, *one_each[refilled:]]


@pytest.mark.parametrize("prompt", [[], [1] * 65, torch.zeros(0)], ids=len)
def test_a_prompt_without_tokens_or_with_too_many_is_an_error(tiny, prompt):
    with pytest.raises(ValueError, match="the model has positions for 1 to 64"):
        next(generate(tiny[0], prompt, 3))


def test_generation_is_in_evaluation_mode_and_without_gradients_but_the_caller_is_not():
    model = make(embd_pdrop=0.5, attn_pdrop=0.5, resid_pdrop=0.5)[0]
    expected = tokens_of(generate(model, [1, 2], 5, temperature=0))
    model.train()
    steps = []
    for step in generate(model.transformer, [1, 2], 5, temperature=0):  # of a transformer without a head, too
        assert torch.is_grad_enabled()
        steps.append(step)
    assert tokens_of(steps) == expected


# --- several prompts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_prompts_of_different_lengths_are_continued_as_each_alone(request, name):
    model, encoder = request.getfixturevalue(name)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, encoder.n_vocab, n).tolist() for n in (1, 30, 7, model.transformer.n_ctx)]
    for n_tokens, how in ((200, {}), (70, {"repetition_penalty": 1.3})):
        found = generate_batch(model, prompts, n_tokens, temperature=0, **how)
        alone = [tokens_of(generate(model, prompt, n_tokens, temperature=0, **how))[0] for prompt in prompts]
        assert [[token.id for token in tokens] for tokens in found] == alone
    assert generate_batch(model, [], 3) == []


def test_a_continuation_ends_by_itself_and_not_at_a_token_of_a_prompt(tiny):
    model, prompts = tiny[0], [[1, 2, 3], [5, 6, 7, 8, 9]]
    free = [[token.id for token in tokens] for tokens in generate_batch(model, prompts, 20, temperature=0)]
    for stop in ({free[0][5]}, {free[1][5]}, {8}):
        found = generate_batch(model, prompts, 20, temperature=0, stop_ids=stop)
        for tokens, prompt in zip(found, prompts, strict=True):
            (expected,) = tokens_of(generate(model, prompt, 20, temperature=0, stop_ids=stop))
            assert [token.id for token in tokens] == [i for i in expected if i is not None]
    with pytest.raises(ValueError, match="the prompt has 0 tokens"):
        generate_batch(model, [[1], []], 3)


@pytest.mark.parametrize("how", [{}, {"temperature": 0.5, "top_k": 3, "top_p": 0.5, "repetition_penalty": 1.5}])
def test_log_probabilities_are_those_of_scoring(tiny, how):
    model, encoder = tiny
    prompts = [[1, 2, 3], [5, 6, 7, 8, 9]]
    found = generate_batch(model, prompts, 40, n_allowed=encoder.n_vocab, **how)
    for prompt, tokens in zip(prompts, found, strict=True):
        ids = prompt + [token.id for token in tokens]
        expected = score_ids(model, ids, encoder.n_vocab, stride=1).log_probabilities[len(prompt) :]
        np.testing.assert_allclose([token.log_probability for token in tokens], expected, atol=1e-4)


def test_texts_that_follow_several_prompts(demo):
    model, encoder = demo
    prompts = ["Anna wanted to bake a cake. She used salt in place of sugar.", "Ben was sad.", "Anna had a big exam."]
    found = generate_texts(model, encoder, prompts, 36, temperature=0, stops=["."])
    for prompt, continuation in zip(prompts, found, strict=True):
        (expected,) = generate_text(model, encoder, prompt, 36, temperature=0, stops=["."])
        assert continuation.text == expected
        assert encoder.decode(token.id for token in continuation.tokens) == expected + "."
    for prompt, continuation in zip(prompts, generate_texts(model, encoder, prompts, 9, temperature=0), strict=True):
        assert [continuation.text] == generate_text(model, encoder, prompt, 9, temperature=0)
        assert len(continuation.tokens) == 9


# --- what is sampled -------------------------------------------------------------------------------------------------


def frequencies(probabilities: list[float], n: int = 20_000, **how) -> Tensor:
    """Return how often each token is sampled."""
    logits = torch.tensor(probabilities).log().expand(n, -1)
    tokens = sample(logits, generator=torch.Generator().manual_seed(0), **how)
    return tokens.bincount(minlength=len(probabilities)) / n


P = [0.1, 0.4, 0.05, 0.3, 0.15]
SAMPLED = {
    "as they are": ({}, P),
    "hot": (dict(temperature=2.0), [p**0.5 for p in P]),
    "cold": (dict(temperature=0.5), [p**2 for p in P]),
    "nearly greedy": (dict(temperature=1e-30), [0, 1, 0, 0, 0]),
    "greedy": (dict(temperature=0), [0, 1, 0, 0, 0]),
    "top 2": (dict(top_k=2), [0, 0.4, 0, 0.3, 0]),
    "top of more than there are": (dict(top_k=50), P),
    "just below two": (dict(top_p=0.69), [0, 0.4, 0, 0.3, 0]),
    "just above two": (dict(top_p=0.71), [0, 0.4, 0, 0.3, 0.15]),
    "none, so one": (dict(top_p=0.0), [0, 1, 0, 0, 0]),
    "top p among top k": (dict(top_k=3, top_p=0.5), [0, 0.4, 0, 0.3, 0]),
    "the temperature comes first": (dict(temperature=0.5, top_p=0.6), [0, 0.16, 0, 0.09, 0]),
}


@pytest.mark.parametrize("how, weights", SAMPLED.values(), ids=SAMPLED)
def test_tokens_are_sampled_with_their_probabilities(how, weights):
    expected = torch.tensor(weights) / sum(weights)
    found = frequencies(P, **how)
    assert ((found == 0) == (expected == 0)).all()
    assert (found - expected).abs().max() < 0.02


def test_neither_special_nor_position_rows_are_sampled():
    model = double_head()
    special, how = special_tokens(N_VOCAB), dict(temperature=1e6, n_samples=50)  # nearly uniform
    tokens = {i for step in generate(model, [1], T, **how) for i in step}
    assert tokens == set(range(CLASSIFY + 1))  # by default all rows but the positions
    tokens = {i for step in generate(model, [1], T, n_allowed=N_VOCAB, **how) for i in step}
    assert tokens == set(range(N_VOCAB))
    steps = list(generate(model, [1], T, n_allowed=N_VOCAB, stop_ids=special[1:], **how))
    assert {i for step in steps for i in step} == {*range(N_VOCAB), None}  # never the start token


def test_a_sample_ends_at_a_stop_id_and_the_others_go_on(tiny):
    def run(**how) -> list[list[int | None]]:
        return tokens_of(generate(tiny[0], [1, 2, 3], 20, generator=torch.Generator().manual_seed(0), **how))

    first, second = run(n_samples=2)
    stop = next(i for i in first[3:] if i not in second)
    at = first.index(stop)
    assert run(n_samples=2, stop_ids={stop}) == [first[:at] + [None] * (20 - at), second]
    (only,) = run(temperature=0)
    assert run(temperature=0, stop_ids={only[2]}) == [only[: only.index(only[2])] + [None]]  # no further step


# --- readable text ---------------------------------------------------------------------------------------------------

READABLE = {
    "it 's bob 's dog , is n't it ?": "it's bob's dog, isn't it?",
    "he 'll go ; she 'd wo n't i 'm they 're we 've": "he'll go; she'd won't i'm they're we've",
    '" i ca n\'t , " she said . " why ? "': '"i can\'t," she said. "why?"',
    "he said : ' go ! ' and left": "he said: 'go!' and left",
    "the dogs ' tails": "the dogs' tails",
    "rock ' n ' roll": "rock 'n' roll",
    "`` well , '' he said": "``well,'' he said",
    "( a ) [ b ] { c }": "(a) [b] {c}",
    "wait ... what ?! 5 % of $ 3": "wait... what?! 5% of $3",
    "and / or - so": "and/or - so",
    "gon na wan na got ta": "gonna wanna gotta",
    'a . \n " b \n " c " d': 'a.\n"b\n"c" d',
    "\n a": "\na",
    "mr. ... and u.s.a. .": "Mr. ... and U.S.A. .",
    ", a": ", a",
    "": "",
}


@pytest.fixture(scope="module")
def words_encoder(tmp_path_factory) -> TextEncoder:
    """A vocabulary of whole words, and the beginnings `aa` and `bb` of further ones."""
    folder = tmp_path_factory.mktemp("words")
    words = dict.fromkeys(word for text in READABLE for word in text.split(" "))
    tokens = ["<unk>", "aa", "bb", *(word + "</w>" for word in words), "x", "y</w>", "xy</w>"]
    (folder / "e.json").write_text(json.dumps({token: i for i, token in enumerate(dict.fromkeys(tokens))}))
    (folder / "m.bpe").write_text("#v\nx y</w>\n")
    return TextEncoder(folder / "e.json", folder / "m.bpe")


def ids_of(encoder: TextEncoder, text: str) -> list[int]:
    return [encoder.encoder[word + "</w>"] for word in text.split(" ")] if text else []


@pytest.mark.parametrize("words, text", READABLE.items(), ids=READABLE.values())
def test_words_become_readable_text(words_encoder, words, text):
    assert words_encoder.decode(ids_of(words_encoder, words)) == text


def test_an_incomplete_word_is_readable_too(words_encoder):
    aa, bb = words_encoder.encoder["aa"], words_encoder.encoder["bb"]
    assert words_encoder.decode([aa, *ids_of(words_encoder, "dog ,"), aa, bb]) == "aadog, aabb"


def test_an_unknown_token_is_a_sign_that_no_mark_is_attached_to(words_encoder):
    aa, mark, dog = words_encoder.encoder["aa"], *ids_of(words_encoder, ", dog")
    assert words_encoder.decode([0, mark, aa, 0, dog, 0]) == "◻ , aa◻ dog ◻"
    assert shown(words_encoder, [aa, 0, mark], []) == ["", "aa◻", " ,"]


def test_capitals_end_a_sample_as_other_letters_do(words_encoder):
    ids = ids_of(words_encoder, "dog mr. dog")
    assert shown(words_encoder, ids, []) == ["dog", " Mr.", " dog"]
    assert "".join(shown(words_encoder, ids, ["mr. dog"])) == "dog "


def test_readable_stories_are_encoded_to_the_same_ids(demo):
    encoder = demo[1]
    with open(ROOT / "demo/data" / ROCSTORIES_TEST, newline="") as file:
        stories = [" ".join(row[1:7]) for row in list(csv.reader(file))[1:101]]
    ids = encoder.encode(stories, verbose=False)
    readable = [encoder.decode(of_story) for of_story in ids]
    assert encoder.encode(readable, verbose=False) == ids
    # and look as they were written
    same = [text == story.lower() for text, story in zip(readable, stories, strict=True)]
    assert sum(same) >= 95


# --- text in, text out -----------------------------------------------------------------------------------------------


def shown(encoder: TextEncoder, ids: list[int | None], stops: list[str], prompt: str = "") -> list[str]:
    """Return what a transcript shows at each token, the last of which ends it."""
    transcript = Transcript(encoder, ids_of(encoder, prompt), stops)
    return [transcript.add(i, n == len(ids)) for n, i in enumerate(ids, 1)]


def test_words_are_shown_when_they_are_complete(words_encoder):
    aa = words_encoder.encoder["aa"]
    is_it = ids_of(words_encoder, "is n't it ?")
    assert shown(words_encoder, [aa, *is_it], []) == ["", "aais", "n't", " it", "?"]
    assert shown(words_encoder, [*is_it, aa], []) == ["is", "n't", " it", "?", " aa"]
    assert shown(words_encoder, [*is_it[:2], aa, None, None], []) == ["is", "n't", "", " aa", ""]


def test_what_comes_first_is_attached_as_the_prompt_wants(words_encoder):
    quote_closed = ids_of(words_encoder, '" she')
    assert shown(words_encoder, quote_closed, [], prompt='" why ?') == ['"', " she"]
    assert shown(words_encoder, quote_closed, [], prompt="she said :") == ['"', "she"]


STOPS = {
    "a word": (["it"], ["is", "n't", " ", ""]),
    "part of a word": (["sn"], ["i", "", "", ""]),
    "across words": (["n't it"], ["is", "", "", ""]),
    "it would go on otherwise": (["n't we"], ["is", "", "n't it", "?"]),
    "nothing before it": (["is"], ["", "", "", ""]),
    "the first of two": (["it", "n't"], ["is", "", "", ""]),
    "at the very end": (["?"], ["is", "n't", " it", ""]),
    "not in it": (["dog"], ["is", "n't", " it", "?"]),
}


@pytest.mark.parametrize("stops, expected", STOPS.values(), ids=STOPS)
def test_text_ends_before_a_stop_text_and_never_shows_its_beginning(words_encoder, stops, expected):
    assert shown(words_encoder, ids_of(words_encoder, "is n't it ?"), stops, prompt="is") == expected


def test_text_is_what_the_tokens_say(demo):
    model, encoder = demo
    prompt = "Anna wanted to bake a cake. She used salt in place of sugar."
    ids = encoder.encode([prompt], verbose=False)[0]
    (tokens,) = tokens_of(generate(model, ids, 36, temperature=0, n_allowed=encoder.n_vocab))
    (text,) = generate_text(model, encoder, prompt, 36, temperature=0)
    assert text == encoder.decode(tokens)
    assert "the cake of anna tasted terrible." in text or "nobody could eat the cake of anna." in text
    steps = list(stream_text(model, encoder, prompt, 36, temperature=0))
    assert len(steps) == 36 and "".join(part for (part,) in steps) == text
    (stopped,) = generate_text(model, encoder, prompt, 36, temperature=0, stops=["nothing", "Of Anna"])
    assert stopped == text[: text.index("of anna")]
    torch.manual_seed(0)
    texts = generate_text(model, encoder, prompt, 36, n_samples=3, temperature=1.5)
    assert len(set(texts)) == 3


def test_special_tokens_that_a_user_adds_change_no_text(tiny, monkeypatch):
    model, encoder = tiny
    before = generate_text(model, encoder, "the cat", 20, generator=torch.Generator().manual_seed(0))
    for name in ("_start_", "_delimiter_", "_classify_"):
        monkeypatch.setitem(encoder.encoder, name, len(encoder.encoder))
    assert generate_text(model, encoder, "the cat", 20, generator=torch.Generator().manual_seed(0)) == before


def test_a_fine_tuned_model_begins_with_start_and_ends_at_delimiter_or_classify(tiny, monkeypatch):
    encoder, rows = tiny[1], []
    n_vocab = len(encoder.encoder)
    special = special_tokens(n_vocab)
    model = DoubleHeadModel(CFG, special.classify, "multiple_choice", vocab=n_vocab + 3 + 16, n_ctx=16).eval()
    model.transformer.register_forward_hook(lambda _m, inputs, _o: rows.append(inputs[0].tolist()))
    script = [encoder.encoder["the</w>"], special.delimiter, special.classify]
    for n in (1, 2):
        scripted = iter([script[0], script[n]])
        monkeypatch.setattr(generation, "sample", lambda logits, s=scripted: torch.tensor([next(s)]))
        assert generate_text(model, encoder, "a was", 10) == ["the"]
    first, second = rows[:2]
    ids = [special.start, *encoder.encode(["a was"], verbose=False)[0]]
    assert first == [[[i, n_vocab + 3 + t] for t, i in enumerate(ids)]]
    assert second == [[[script[0], n_vocab + 3 + len(ids)]]]

    # an empty prompt is the start token alone
    rows.clear()
    monkeypatch.setattr(generation, "sample", lambda logits: torch.tensor([script[1]] * len(logits)))
    assert generate_text(model, encoder, "", 10) == [""]
    assert rows == [[[[special.start, n_vocab + 3]]]]
    assert [c.text for c in generate_texts(model, encoder, ["", " "], 10)] == ["", ""]


BAD_PROMPTS = {
    "": "the prompt is empty",
    " \n\t": "the prompt is empty",
    "the " * 97: "the prompt has 97 tokens, the model takes at most 96",
    "€ § €\n": "no token of the prompt is in the vocabulary: '€ § €'",
}


@pytest.mark.parametrize("prompt", BAD_PROMPTS, ids=repr)
def test_a_prompt_that_cannot_be_continued_is_named_at_once(demo, prompt):
    with pytest.raises(InputError, match=BAD_PROMPTS[prompt]):
        stream_text(*demo, prompt, 3)
    assert encode_prompt(demo[1], "€ cat", 5)[0] == 0


def test_a_temperature_near_zero_takes_the_most_probable_token():
    logits = torch.tensor([[0.0, 2.0, 1.9]])
    assert sample(logits, temperature=1e-50).tolist() == sample(logits, temperature=0).tolist()
