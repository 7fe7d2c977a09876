"""What the product must compute, stated once more in NumPy float64: shares no code with it, and no torch.

Parameters are a dict by the checkpoint's names. Each layer returns its value and `back`, which turns the gradient of
the value into the gradient of the layer's input and adds the parameters' gradients to a dict.
Shape letters: B examples, K choices, N = B * K rows, T tokens, C features, H heads, D = C / H, V rows of the table.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

TABLE = "transformer.embed.weight"

Parameters = dict[str, np.ndarray]
Layer = tuple[np.ndarray, Callable[[np.ndarray, Parameters], np.ndarray]]


# ---- the transformer ----


def linear(p: Parameters, name: str, x: np.ndarray) -> Layer:
    def back(dy: np.ndarray, grads: Parameters) -> np.ndarray:
        grads[name + ".w"] += np.einsum("nti,nto->io", x, dy)
        grads[name + ".b"] += dy.sum((0, 1))
        return dy @ p[name + ".w"].T

    return x @ p[name + ".w"] + p[name + ".b"], back


def layer_norm(p: Parameters, name: str, x: np.ndarray) -> Layer:
    centred = x - x.mean(-1, keepdims=True)
    std = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    unit = centred / std

    def back(dy: np.ndarray, grads: Parameters) -> np.ndarray:
        grads[name + ".g"] += (dy * unit).sum((0, 1))
        grads[name + ".b"] += dy.sum((0, 1))
        d = dy * p[name + ".g"]
        return (d - d.mean(-1, keepdims=True) - unit * (d * unit).mean(-1, keepdims=True)) / std

    return unit * p[name + ".g"] + p[name + ".b"], back


def gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s = np.sqrt(2 / np.pi)
    t = np.tanh(s * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * s * (1 + 3 * 0.044715 * x**2)


def relu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(x, 0), (x > 0).astype(float)


def swish(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s = 1 / (1 + np.exp(-x))
    return x * s, s + x * s * (1 - s)


ACTIVATIONS = {"gelu": gelu, "relu": relu, "swish": swish}  # name -> value and slope


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def attention(p: Parameters, name: str, x: np.ndarray, n_head: int) -> Layer:
    N, T, C = x.shape
    scale = np.sqrt(C // n_head)
    fused, back_fused = linear(p, name + ".c_attn", x)
    q, k, v = fused.reshape(N, T, 3, n_head, -1).transpose(2, 0, 3, 1, 4)  # each (N, H, T, D)
    seen = np.tril(np.ones((T, T), bool))
    weights = softmax(np.where(seen, q @ k.swapaxes(-1, -2) / scale, -1e9))
    merged = (weights @ v).transpose(0, 2, 1, 3).reshape(N, T, C)
    y, back_proj = linear(p, name + ".c_proj", merged)

    def back(dy: np.ndarray, grads: Parameters) -> np.ndarray:
        d = back_proj(dy, grads).reshape(N, T, n_head, -1).transpose(0, 2, 1, 3)
        dweights = d @ v.swapaxes(-1, -2)
        dscores = weights * (dweights - (dweights * weights).sum(-1, keepdims=True)) / scale
        dqkv = np.stack([dscores @ k, dscores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ d])
        return back_fused(dqkv.transpose(1, 3, 0, 2, 4).reshape(N, T, 3 * C), grads)

    return y, back


def block(p: Parameters, name: str, x: np.ndarray, n_head: int, afn: str) -> Layer:
    a, back_attention = attention(p, name + ".attn", x, n_head)
    n, back_ln_1 = layer_norm(p, name + ".ln_1", x + a)
    fc, back_fc = linear(p, name + ".mlp.c_fc", n)
    active, slope = ACTIVATIONS[afn](fc)
    f, back_proj = linear(p, name + ".mlp.c_proj", active)
    y, back_ln_2 = layer_norm(p, name + ".ln_2", n + f)

    def back(dy: np.ndarray, grads: Parameters) -> np.ndarray:
        d = back_ln_2(dy, grads)
        d = d + back_fc(back_proj(d, grads) * slope, grads)
        d = back_ln_1(d, grads)
        return d + back_attention(d, grads)

    return y, back


def transformer(p: Parameters, x: np.ndarray, n_head: int, afn: str) -> Layer:
    """Return the hidden states (N, T, C) of x, any leading axes and then (T, 2)."""
    x = x.reshape(-1, *x.shape[-2:])
    h = p[TABLE][x[..., 0]] + p[TABLE][x[..., 1]]
    backs = []
    while f"transformer.h.{len(backs)}.ln_1.g" in p:
        h, back_block = block(p, f"transformer.h.{len(backs)}", h, n_head, afn)
        backs.append(back_block)

    def back(dh: np.ndarray, grads: Parameters) -> np.ndarray:
        for back_block in reversed(backs):
            dh = back_block(dh, grads)
        grads[TABLE] += 0.0  # np.add.at needs the array
        np.add.at(grads[TABLE], x[..., 0], dh)
        np.add.at(grads[TABLE], x[..., 1], dh)
        return dh

    return h, back


# ---- the heads and the losses ----


def lm_logits(p: Parameters, h: np.ndarray) -> np.ndarray:
    return h @ p[TABLE].T


def classify_states(h: np.ndarray, x: np.ndarray, clf_token: int) -> np.ndarray:
    """Return the hidden state (N, C) at each row's first classify token."""
    first = (x.reshape(-1, *x.shape[-2:])[..., 0] == clf_token).argmax(-1)
    return h[np.arange(len(h)), first]


def task_logits(p: Parameters, h: np.ndarray, x: np.ndarray, clf_token: int, head: str) -> np.ndarray:
    """Return (B, K) for 'multiple_choice', (B, n_class) for 'classification', (B, 1) for 'similarity'."""
    states = classify_states(h, x, clf_token)
    if head == "similarity":
        states = states.reshape(-1, 2, states.shape[-1]).sum(1)
    logits = states @ p["task_head.linear.weight"].T + p["task_head.linear.bias"]
    return logits.reshape(x.shape[:2]) if head == "multiple_choice" else logits


def lm_losses(p: Parameters, h: np.ndarray, x: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Return each row's mean cross entropy (N,) over its real next tokens."""
    target, real = x[..., 0].reshape(h.shape[:2])[:, 1:], m.reshape(h.shape[:2])[:, 1:]
    logp = log_softmax(lm_logits(p, h[:, :-1]))
    return (-np.take_along_axis(logp, target[..., None], -1)[..., 0] * real).sum(1) / real.sum(1)


def task_losses(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the cross entropy (B,): y of labels (B,), of weights (B, n_class), or in [0, 1] for one logit."""
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], 1)
        y = np.stack([1 - y, y], 1)
    weights = np.eye(logits.shape[1])[y] if y.ndim == 1 else y
    return -(weights * log_softmax(logits)).sum(1)


def gradients(
    p: Parameters, x: np.ndarray, m: np.ndarray, y: np.ndarray, clf_token: int, n_head: int, afn: str, lm_coef: float
) -> Parameters:
    """Return the gradients of mean task loss + lm_coef * mean LM loss, multiple choice."""
    h, back = transformer(p, x, n_head, afn)
    N, T, C = h.shape
    grads = defaultdict(float)

    real = m.reshape(N, T)[:, 1:]
    dlm = softmax(lm_logits(p, h[:, :-1])) - np.eye(len(p[TABLE]))[x[..., 0].reshape(N, T)[:, 1:]]
    dlm *= (lm_coef / N * real / real.sum(1, keepdims=True))[..., None]
    grads[TABLE] += np.einsum("ntv,ntc->vc", dlm, h[:, :-1])
    dh = np.zeros_like(h)
    dh[:, :-1] = dlm @ p[TABLE]

    logits = task_logits(p, h, x, clf_token, "multiple_choice")
    dtask = ((softmax(logits) - np.eye(logits.shape[1])[y]) / len(y)).reshape(N, 1)
    grads["task_head.linear.weight"] += dtask.T @ classify_states(h, x, clf_token)
    grads["task_head.linear.bias"] += dtask.sum(0)
    first = (x[..., 0].reshape(N, T) == clf_token).argmax(1)
    dh[np.arange(N), first] += dtask * p["task_head.linear.weight"]

    back(dh, grads)
    return dict(grads)


# ---- the optimiser ----


def schedule(name: str, x: float, warmup: float) -> float:
    if x <= warmup and warmup > 0:
        rise = x / warmup
    else:
        rise = 1.0
    if name == "warmup_linear":
        return rise * (1 - x)
    if name == "warmup_cosine" and x > warmup:
        return 0.5 * (1 + np.cos(np.pi * x))
    return rise


def adam(
    p: Parameters,
    grads: Parameters,
    state: tuple[int, Parameters, Parameters],
    *,
    lr: float,
    schedule_name: str,
    warmup: float,
    t_total: int,
    b1: float = 0.9,
    b2: float = 0.999,
    e: float = 1e-8,
    l2: float = 0,
    vector_l2: bool = False,
    max_grad_norm: float = -1,
) -> tuple[Parameters, tuple[int, Parameters, Parameters]]:
    """Return the parameters and the state (t, m, v) after one update; the first state is START."""
    t, m, v = state[0] + 1, {}, {}
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    clip = max_grad_norm / max(norm, max_grad_norm) if max_grad_norm > 0 else 1.0
    rate = lr * schedule(schedule_name, min(t / t_total, 1.0), warmup) * np.sqrt(1 - b2**t) / (1 - b1**t)
    after = dict(p)
    for name, g in grads.items():
        m[name] = b1 * state[1].get(name, 0) + (1 - b1) * clip * g
        v[name] = b2 * state[2].get(name, 0) + (1 - b2) * (clip * g) ** 2
        decay = l2 if vector_l2 or g.ndim >= 2 else 0
        after[name] = p[name] - rate * (m[name] / (np.sqrt(v[name]) + e) + decay * p[name])
    return after, (t, m, v)


START = (0, {}, {})


# ---- problems for the tests ----


def batch(seed: int, n_vocab: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Make x (*shape, 2) and m of shape (..., T): start, tokens, delimiter, tokens, classify, padding.

    The special ids follow the vocabulary and the positions follow them: classify is n_vocab + 2.
    """
    rng = np.random.default_rng(seed)
    T = shape[-1]
    ids, m = np.zeros(shape, int), np.zeros(shape)
    for row in np.ndindex(*shape[:-1]):
        n = rng.integers(T // 2, T + 1)
        ids[row][:n] = rng.integers(n_vocab, size=n)
        ids[row][[0, n // 2, n - 1]] = n_vocab + np.arange(3)
        m[row][:n] = 1
    return np.stack([ids, np.broadcast_to(n_vocab + 3 + np.arange(T), shape)], -1), m


def set_parameters(model, values: dict[str, ArrayLike]) -> None:
    """Write all parameters of a torch model on the CPU; a missing or an extra name is an error."""
    parameters = dict(model.named_parameters())
    assert parameters.keys() == values.keys()
    for name, parameter in parameters.items():
        target = parameter.detach().numpy()  # shares the parameter's memory
        assert target.shape == values[name].shape, name
        target[...] = values[name]


def get_parameters(model) -> Parameters:
    return {name: parameter.detach().numpy().astype(float) for name, parameter in model.named_parameters()}


def randomise(model, seed: int) -> Parameters:
    """Set every parameter of a torch model, biases too, to something that matters; return the values."""
    rng = np.random.default_rng(seed)
    values = {
        name: rng.normal(float(name.endswith(".g")), 0.3, tuple(parameter.shape))
        for name, parameter in model.named_parameters()
    }
    set_parameters(model, values)
    return values
