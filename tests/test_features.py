"""Hidden states and attention weights: equal to the network's own, and where they stand in the user's text."""

import pytest
import torch

import train
from features import Features, attention_weights, features, hidden_states, pooled_features, read_row
from formats.files import InputError
from scoring import pack
from weights import open_model, open_run

TEXT = "The cat was IN the hat, don’t!"
WORDS = ["The", "cat", "was", "IN", "the", "hat", ",", "do", "n’t", "!"]


@pytest.fixture
def opened(model_dir):
    model, encoder = open_model(model_dir, return_probs=False)
    with torch.no_grad():
        for name, p in model.named_parameters():  # so that attention is far from uniform
            p.fill_(1) if name.endswith(".g") else p.mul_(25)
    return model, encoder


@pytest.fixture
def run(tmp_path, monkeypatch, model_dir, data_dir):
    monkeypatch.chdir(tmp_path)
    flags = f"--data_dir {data_dir} --model_dir {model_dir} --n_valid 10 --n_batch 4 --n_iter 1 --desc tuned"
    assert train.main(flags.split()) == 0
    return open_run("save/tuned")


# --- rows ------------------------------------------------------------------------------------------------------------


def test_tokens_and_words_of_a_text(opened):
    row = read_row(*opened, TEXT)
    assert row.ids == opened[1].encode([TEXT], verbose=False)[0]
    assert [word.text.lower() for word in row.words] == [word.lower() for word in WORDS]
    for unit in (*row.tokens, *row.words):
        assert unit.source == 0 and TEXT[slice(*unit.span)]
    assert all(TEXT[slice(*word.span)] == word.text for word in row.words)
    for word, tokens in zip(row.words, row.tokens_of_words, strict=True):
        last = row.tokens[tokens[-1]]
        assert last.span[1] == word.span[1] and last.text.endswith("</w>")
    assert [i for tokens in row.tokens_of_words for i in tokens] == list(range(len(row.ids)))


def test_a_fine_tuned_run_reads_special_tokens_which_are_words_of_their_own(run):
    row = read_row(run.model, run.encoder, ("the cat", "in Red"))
    assert [(word.text, word.source) for word in row.words] == [
        ("_start_", None),
        *(("the", 0), ("cat", 0)),
        ("_delimiter_", None),
        *(("in", 1), ("Red", 1)),
        ("_classify_", None),
    ]
    assert row.words[5].span == (3, 6)
    n_vocab = run.encoder.n_vocab
    assert [i for i in row.ids if i >= n_vocab] == [n_vocab, n_vocab + 1, n_vocab + 2]
    one = read_row(run.model, run.encoder, "the cat")
    assert [word.text for word in one.words] == ["_start_", "the", "cat", "_classify_"]


@pytest.mark.parametrize(
    "text, message", [("", "holds no tokens"), (" \n", "holds no tokens"), ("x " * 65, "65 tokens")]
)
def test_texts_without_tokens_and_too_long_ones_are_refused(opened, text, message):
    for n_context in (None, 64):
        with pytest.raises(InputError, match=message):
            features(*opened, ["the cat", text], per="word", n_context=n_context)


@pytest.mark.parametrize(
    "text, options, message",
    [
        (("the cat", "the hat"), {}, "2 texts: only a fine-tuned network"),
        (TEXT, {"layer": 3}, "layer 3: the network has 0"),
        (TEXT, {"layer": -4}, "layer -4: the network has 0"),
        (TEXT, {"layer": "last"}, "layer last: the network has 0"),
        (TEXT, {"pool": "first"}, "pool 'first' is not 'last' or 'mean'"),
        (TEXT, {"per": "sentence"}, "per is 'token' or 'word'"),
        (TEXT, {"n_context": 2}, "per is 'token' or 'word'"),
        (("a", "b"), {"per": "word", "n_context": 5}, "a fixed context is of one text"),
    ],
)
def test_what_there_is_not_is_refused(opened, text, options, message):
    with pytest.raises(ValueError, match=message):
        features(*opened, [text], **options)


# --- hidden states ---------------------------------------------------------------------------------------------------


def layers_of(model, ids: list[int]) -> list[torch.Tensor]:
    """Return the embeddings and what each block gives out (T, C), block by block."""
    packing = pack(model.transformer, [[ids]])
    with torch.no_grad():
        found = [model.transformer.embed(packing.tokens).sum(-2)]
        for block in model.transformer.h:
            found.append(block(found[-1], packing))
    return found


def test_states_of_every_layer_are_the_networks_own(opened):
    model, encoder = opened
    texts = [TEXT, "red", "the cat was in"]
    for text in texts:
        expected = layers_of(model, read_row(model, encoder, text).ids)
        for layer in (0, 1, 2, -1, -2, -3, "all"):
            found = hidden_states(model, [read_row(model, encoder, each).ids for each in texts], layer, n_batch=2)
            of_layer = torch.stack(expected) if layer == "all" else expected[layer]
            torch.testing.assert_close(found[texts.index(text)], of_layer, atol=1e-5, rtol=0)
    for n_context, pool in ((None, "last"), (None, "mean"), (2, "mean")):
        options = {"per": "word", "n_context": n_context, "pool": pool}
        (found,) = features(model, encoder, [TEXT], "all", **options)
        assert found.states.shape == (3, len(found.units), 16)
        for layer in range(3):
            (one,) = features(model, encoder, [TEXT], layer, **options)
            torch.testing.assert_close(found.states[layer], one.states, atol=1e-5, rtol=0)
    vectors = pooled_features(model, encoder, texts, "all")
    torch.testing.assert_close(vectors[:, 1], pooled_features(model, encoder, texts, 1))
    (found,) = features(model.train(), encoder, [TEXT])  # without dropout, and without gradients
    assert isinstance(found, Features) and not found.states.requires_grad
    torch.testing.assert_close(found.states, layers_of(model, read_row(model, encoder, TEXT).ids)[-1])


def test_special_tokens_that_a_user_adds_change_nothing(opened, run):
    """As of the early port: encoder.encoder["_start_"] = len(encoder.encoder)."""

    def found() -> list[torch.Tensor]:
        pair = [("the cat", "in red")]
        return [
            features(*opened, [TEXT])[0].states,
            features(run.model, run.encoder, pair)[0].states,
            features(run.model, run.encoder, ["the cat"], per="word", n_context=1)[0].states,
            attention_weights(run.model, run.encoder, *pair).weights,
        ]

    expected = found()
    for encoder in (opened[1], run.encoder):
        for name in ("_start_", "_delimiter_", "_classify_"):
            encoder.encoder[name] = len(encoder.encoder)
    assert all(map(torch.equal, found(), expected))


@pytest.mark.parametrize("n_context", [None, 0, 2])
def test_there_is_a_state_for_each_word_that_is_given(opened, n_context):
    model, encoder = opened
    given = ["The", "mother-in-law", "don’t", "U.S.A.", "was", "red?!", "é", "in 2 parts"]
    found, means = (
        features(model, encoder, [given], per="word", n_context=n_context, pool=pool)[0] for pool in ("last", "mean")
    )
    assert [(unit.text, unit.source) for unit in found.units] == [(word, 0) for word in given]
    assert [unit.span for unit in found.units] == [(0, len(word)) for word in given]
    ids = encoder.encode(given, verbose=False)
    for i in range(len(given)):
        before = ids[: i + 1] if n_context is None else ids[max(0, i - n_context) : i + 1]
        (states,) = hidden_states(model, [sum(before, [])])
        torch.testing.assert_close(found.states[i], states[-1], atol=1e-5, rtol=0)
        torch.testing.assert_close(means.states[i], states[-len(ids[i]) :].mean(0), atol=1e-5, rtol=0)
    plain = "The mother-in-law don’t U.S.A. was red?! é"  # the words do not depend on each other
    assert read_row(model, encoder, plain.split()).ids == read_row(model, encoder, plain).ids
    with pytest.raises(InputError, match="the word ' ', number 2, holds no tokens"):
        features(model, encoder, [["the", " "]], n_context=n_context, per="word")


def test_words_that_are_given_to_a_fine_tuned_run(run):
    one, two = features(run.model, run.encoder, [["don't", "in"], (["the", "cat"], "in red")], per="word")
    assert [unit.text for unit in one.units] == ["_start_", "don't", "in", "_classify_"]
    (as_text,) = features(run.model, run.encoder, [("the cat", "in red")], per="word")
    assert torch.equal(two.states, as_text.states)
    with pytest.raises(ValueError, match="a list is of words, which hold no spaces"):
        features(run.model, run.encoder, [["the cat", "in red"]])


def test_the_state_of_a_word_is_that_of_its_last_token_or_the_mean(opened):
    (tokens,), (words,) = (features(*opened, [TEXT], per=per) for per in ("token", "word"))
    assert [unit.text for unit in words.units] == [TEXT[slice(*unit.span)] for unit in words.units]
    ends = [i for i, unit in enumerate(tokens.units) if unit.text.endswith("</w>")]
    assert torch.equal(words.states, tokens.states[ends])
    (means,) = features(*opened, [TEXT], per="word", pool="mean")
    for start, end, state in zip([0, *(i + 1 for i in ends)], ends, means.states, strict=False):
        torch.testing.assert_close(state, tokens.states[start : end + 1].mean(0))


def test_a_fixed_context_is_so_many_words_and_no_more(opened):
    model, encoder = opened
    words = read_row(model, encoder, TEXT).words
    for n in (0, 2, 100):
        (found,) = features(model, encoder, [TEXT], per="word", n_context=n)
        assert found.units == words
        for i in range(len(words)):
            part = TEXT[words[max(0, i - n)].span[0] : words[i].span[1]]
            alone = hidden_states(model, [read_row(model, encoder, part).ids])[0][-1]
            torch.testing.assert_close(found.states[i], alone, atol=1e-5, rtol=0)
    long = "red cat in " * 40  # more than the network has positions for
    (found,) = features(model, encoder, [long], per="word", n_context=3)
    assert len(found.units) == 120
    torch.testing.assert_close(found.states[5], found.states[119], atol=1e-5, rtol=0)


def test_a_fixed_context_begins_with_start_in_a_fine_tuned_run(run):
    (found,) = features(run.model, run.encoder, ["the cat"], per="word", n_context=5)
    (whole,) = features(run.model, run.encoder, ["the cat"], per="word")
    torch.testing.assert_close(found.states, whole.states[1:3], atol=1e-5, rtol=0)


def test_pooled_states(opened, run):
    texts = [TEXT, "red", "the cat was in"]
    states = [f.states for f in features(*opened, texts, 1)]
    torch.testing.assert_close(pooled_features(*opened, texts, 1), torch.stack([s.mean(0) for s in states]))
    torch.testing.assert_close(pooled_features(*opened, texts, 1, "last"), torch.stack([s[-1] for s in states]))

    pairs = [("the cat", "in red"), ("an ant", "was")]
    tuned = features(run.model, run.encoder, pairs)
    own = [[u.source is not None for u in f.units] for f in tuned]
    for pool, expected in {
        "mean": [f.states[is_own].mean(0) for f, is_own in zip(tuned, own, strict=True)],
        "last": [f.states[-2] for f in tuned],
        "classify": [f.states[-1] for f in tuned],
    }.items():
        torch.testing.assert_close(pooled_features(run.model, run.encoder, pairs, pool=pool), torch.stack(expected))
    for pool, message in (("classify", "needs a fine-tuned run"), ("max", "is not 'mean'")):
        with pytest.raises(ValueError, match=message):
            pooled_features(*opened, texts, pool=pool)


def test_the_classify_state_is_what_the_task_head_reads(run):
    story, endings = "the cat was in", ["the hat", "red"]
    pooled = pooled_features(run.model, run.encoder, [(story, ending) for ending in endings], pool="classify")
    with torch.no_grad():
        probabilities = run.model.task_head.linear(pooled).squeeze(1).softmax(0)
    (prediction,) = run.predict([(story, *endings)])
    assert list(prediction.probabilities.values()) == pytest.approx(probabilities.tolist(), abs=1e-5)


# --- attention -------------------------------------------------------------------------------------------------------


def test_attention_weights_sum_to_1_and_give_the_blocks_own_attention(opened):
    model, encoder = opened
    found, caught = attention_weights(model, encoder, TEXT), {}
    t = len(found.row.ids)
    assert found.weights.shape == (2, 2, t, t)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(2, 2, t), atol=1e-5, rtol=0)
    assert (found.weights.triu(1) == 0).all() and (found.weights >= 0).all()
    assert found.weights[0, 0, -1].std() > 0.02  # not uniform

    hooks = []
    for i, block in enumerate(model.transformer.h):
        for name, module in (("qkv", block.attn.c_attn), ("out", block.attn)):
            catch = lambda module, inputs, output, key=(name, i): caught.__setitem__(key, output)  # noqa: E731
            hooks.append(module.register_forward_hook(catch))
    with torch.no_grad():
        model.transformer(pack(model.transformer, [[found.row.ids]]))
        for i, block in enumerate(model.transformer.h):
            v = caught["qkv", i].chunk(3, 1)[2].unflatten(1, (2, -1)).transpose(0, 1)  # (H, T, D)
            merged = (found.weights[i] @ v).transpose(0, 1).flatten(1)
            torch.testing.assert_close(block.attn.c_proj(merged), caught["out", i], atol=1e-5, rtol=0)


def test_attention_to_words_sums_over_their_tokens(run):
    found = attention_weights(run.model, run.encoder, ("the cat", "in blue"))
    words, row = found.to_words(), found.row
    assert words.shape == (2, 2, len(row.words)) and row.words[-1].text == "_classify_"
    torch.testing.assert_close(words.sum(-1), torch.ones(2, 2), atol=1e-5, rtol=0)
    for w, tokens in enumerate(row.tokens_of_words):
        torch.testing.assert_close(words[..., w], found.weights[:, :, -1, tokens.start : tokens.stop].sum(-1))
    assert max(map(len, row.tokens_of_words)) > 1
    assert found.to_words(0)[..., 0].eq(1).all()  # the first token attends to itself


def test_hooks_are_removed(opened):
    features(*opened, [TEXT])
    attention_weights(*opened, TEXT)
    with pytest.raises(InputError):
        attention_weights(*opened, "")
    for module in opened[0].modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_hooks_work_on_every_module_that_has_parameters(run):
    called = set()
    for name, module in run.model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: called.add(name))
    row = read_row(run.model, run.encoder, "the cat")
    x = pack(run.model.transformer, [[row.ids]]).tokens[None]
    with torch.no_grad():
        run.model(x)
    own = {name for name, module in run.model.named_modules() if [*module.parameters(recurse=False)]}
    tied = {"transformer.embed", "lm_head.decoder"}  # the embedding matrix, to which dropout is applied as a whole
    assert own <= called and tied | {"transformer.h.1.mlp.c_proj"} <= own
    called.clear()
    run.model.train()(x)
    run.model.eval()
    assert own - called == tied
