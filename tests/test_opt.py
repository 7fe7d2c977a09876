"""The modified Adam: every setting against the NumPy statement, and what torch expects of an optimiser."""

import copy

import numpy as np
import pytest
import reference
import torch

import opt

SHAPES = {"table": (5, 3), "matrix": (3, 4), "vector": (4,), "scalar_vector": (1,)}
SETTINGS = dict(lr=0.01, warmup=0.2, t_total=10)  # 12 updates: the last two are past the end of the schedule


def make(schedule: str = "warmup_linear", **settings) -> tuple[dict[str, torch.nn.Parameter], opt.OpenAIAdam]:
    rng = np.random.default_rng(0)
    parameters = {name: torch.nn.Parameter(torch.tensor(rng.normal(size=shape))) for name, shape in SHAPES.items()}
    return parameters, opt.OpenAIAdam(parameters.values(), schedule=schedule, **SETTINGS | settings)


def gradients(update: int) -> reference.Parameters:
    rng = np.random.default_rng(100 + update)
    return {name: rng.normal(scale=0.5, size=shape) for name, shape in SHAPES.items()}


def step(parameters: dict[str, torch.nn.Parameter], optimizer: opt.OpenAIAdam, grads: reference.Parameters) -> None:
    for name, parameter in parameters.items():
        parameter.grad = torch.tensor(grads[name]) if name in grads else None
    optimizer.step()


def assert_follows_reference(grads_of, schedule: str = "warmup_linear", **settings) -> None:
    parameters, optimizer = make(schedule, **settings)
    p = {name: parameter.detach().cpu().numpy().copy() for name, parameter in parameters.items()}
    state = reference.START
    for update in range(12):
        step(parameters, optimizer, grads_of(update))
        p, state = reference.adam(p, grads_of(update), state, schedule_name=schedule, **SETTINGS | settings)
        for name, parameter in parameters.items():
            np.testing.assert_allclose(parameter.detach().cpu().numpy(), p[name], rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("warmup", [0, 0.002, 0.35])
@pytest.mark.parametrize("schedule", ["warmup_linear", "warmup_constant", "warmup_cosine"])
def test_updates_equal_the_reference_under_every_schedule(schedule, warmup):
    assert_follows_reference(gradients, schedule, warmup=warmup)


@pytest.mark.parametrize(
    "settings",
    [
        dict(max_grad_norm=1.0),  # clips: the gradients' norm is about 3
        dict(max_grad_norm=1000.0),
        dict(max_grad_norm=0),
        dict(l2=0.1),
        dict(l2=0.1, vector_l2=True),
        dict(l2=0.1, max_grad_norm=1.0, b1=0.8, b2=0.9, e=1e-2),
    ],
    ids=str,
)
def test_updates_equal_the_reference_with_clipping_and_decay(settings):
    assert_follows_reference(gradients, **settings)


def test_a_parameter_without_gradient_is_skipped():
    def some(update: int) -> reference.Parameters:
        return {name: g for name, g in gradients(update).items() if name != "matrix"}

    assert_follows_reference(some, max_grad_norm=1.0, l2=0.1)


def test_groups_have_an_lr_and_a_decay_of_their_own():
    """Against an optimiser of each group alone; with gradients that are not clipped they do not know of each other."""
    parameters, _ = make()
    alone = copy.deepcopy(parameters)
    how = SETTINGS | {"schedule": "warmup_linear", "l2": 0.1}
    groups = [
        {"params": [parameters["vector"], parameters["scalar_vector"]], "name": "vectors"},
        {"params": parameters["table"], "lr": 0.5, "l2": 0.3},
        {"params": [parameters["matrix"]], "lr": 0.02},
    ]
    optimizer = opt.OpenAIAdam(groups, **how)
    others = [
        opt.OpenAIAdam([alone["vector"], alone["scalar_vector"]], **how),
        opt.OpenAIAdam([alone["table"]], **how | {"lr": 0.5, "l2": 0.3}),
        opt.OpenAIAdam([alone["matrix"]], **how | {"lr": 0.02}),
    ]
    assert [group["lr"] for group in optimizer.param_groups[:3]] == [0.01, 0.5, 0.02]
    for update in range(4):
        step(parameters, optimizer, gradients(update))
        for name, parameter in alone.items():
            parameter.grad = torch.tensor(gradients(update)[name])
        for other in others:
            other.step()
    for name in SHAPES:
        torch.testing.assert_close(parameters[name], alone[name], rtol=0, atol=1e-12)
    assert optimizer.param_groups[0]["name"] == "vectors"


@pytest.mark.parametrize("by_scheduler", [False, True])
def test_an_lr_that_the_user_sets_is_the_peak_from_then_on(by_scheduler):
    """Vectors too, which stand in a further group: setting the first one is enough."""
    parameters, optimizer = make("warmup_constant", warmup=0, e=0)
    if by_scheduler:
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1.0 if n < 3 else 10.0)
    moved = []
    for update in range(6):
        if update == 3 and not by_scheduler:
            optimizer.param_groups[0]["lr"] *= 10
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        step(parameters, optimizer, {name: np.ones(shape) for name, shape in SHAPES.items()})
        if by_scheduler:
            scheduler.step()
        moved.append([(before[name] - parameters[name].detach()).mean().item() for name in SHAPES])
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 if update + by_scheduler < 3 else 0.1)
    np.testing.assert_allclose(moved, np.repeat([[0.01]] * 3 + [[0.1]] * 3, 4, axis=1), rtol=1e-6)


def test_further_keywords_are_ignored():
    parameters, _ = make(momentum=0.9, name="adam")
    assert parameters.keys() == SHAPES.keys()


def test_clipping_uses_one_norm_over_all_parameters():
    parameters, optimizer = make(max_grad_norm=1.0, e=1e3)  # a large e makes the step proportional to the gradient
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    grads = gradients(0)
    step(parameters, optimizer, grads)
    ratios = [
        (before[name] - parameter.detach()).norm() / np.linalg.norm(grads[name])
        for name, parameter in parameters.items()
    ]
    np.testing.assert_allclose(ratios, float(ratios[0]), rtol=1e-3)


@pytest.mark.parametrize(
    "schedule, warmup, values",
    [
        ("warmup_linear", 0.25, [0, 0.75, 0]),
        ("warmup_constant", 0.25, [0, 1, 1]),
        ("warmup_cosine", 0.25, [0, 1, 0]),
        ("warmup_linear", 0, [1, 0.75, 0]),
        ("warmup_constant", 0, [1, 1, 1]),
        ("warmup_cosine", 0, [1, 0.5 + 0.5**1.5, 0]),
    ],
)
def test_schedules_at_start_quarter_and_end(schedule, warmup, values):
    np.testing.assert_allclose([opt.SCHEDULES[schedule](x, warmup) for x in (0, 0.25, 1)], values, atol=1e-12)


def test_the_first_update_uses_the_schedule_at_one_and_not_at_zero():
    parameters, optimizer = make(warmup=1.0, schedule="warmup_constant")
    before = parameters["vector"].detach().clone()
    step(parameters, optimizer, {"vector": np.ones(4)})
    moved = before - parameters["vector"].detach()
    np.testing.assert_allclose(moved, SETTINGS["lr"] / SETTINGS["t_total"], rtol=1e-6)


def test_a_saved_state_continues_identically():
    settings = dict(max_grad_norm=1.0, l2=0.1)
    parameters, optimizer = make(**settings)
    for update in range(3):
        step(parameters, optimizer, gradients(update))
    resumed, resumed_optimizer = make(**settings)
    for name, parameter in resumed.items():
        parameter.data.copy_(parameters[name].data)
    resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # a file shares no memory
    for update in range(3, 6):
        step(parameters, optimizer, gradients(update))
        step(resumed, resumed_optimizer, gradients(update))
    assert all(torch.equal(parameters[name], resumed[name]) for name in parameters)


def test_an_unknown_schedule_is_refused_by_name():
    with pytest.raises(ValueError, match="warmup_square"):
        make("warmup_square")


@pytest.mark.parametrize("max_grad_norm", [0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e200], ids=str)
@pytest.mark.parametrize("n_before", [0, 2])
def test_a_gradient_without_finite_norm_is_refused_and_changes_nothing(bad, max_grad_norm, n_before):
    parameters, optimizer = make(max_grad_norm=max_grad_norm, l2=0.1)
    for update in range(n_before):
        step(parameters, optimizer, gradients(update))
    values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    state = copy.deepcopy(optimizer.state_dict())
    grads = gradients(n_before)
    grads["matrix"][1, 2] = bad
    with pytest.raises(FloatingPointError, match="norm of the gradients is (nan|inf)"):
        step(parameters, optimizer, grads)
    assert all(torch.equal(parameter, values[name]) for name, parameter in parameters.items())
    after = optimizer.state_dict()
    assert after["param_groups"] == state["param_groups"] and after["state"].keys() == state["state"].keys()
    for i, tensors in state["state"].items():
        assert all(torch.equal(after["state"][i][name], value) for name, value in tensors.items())
    for name, parameter in parameters.items():  # the gradients too: not clipped by what is no number
        np.testing.assert_array_equal(parameter.grad, grads[name])


def test_what_is_allocated_is_what_the_first_update_makes():
    (parameters, preallocated), (others, optimizer) = make(l2=0.1), make(l2=0.1)
    preallocated.preallocate()
    assert all(parameter.grad is None for parameter in parameters.values())
    made = [{name: value.data_ptr() for name, value in preallocated.state[p].items()} for p in parameters.values()]
    step(parameters, preallocated, gradients(0))
    step(others, optimizer, gradients(0))
    for name in SHAPES:
        assert torch.equal(parameters[name], others[name])
    ours, torchs = (o.state_dict()["state"] for o in (preallocated, optimizer))
    assert [list(state) for state in ours.values()] == [list(state) for state in torchs.values()]
    for i, state in ours.items():
        for name, value in state.items():
            assert value.dtype == torchs[i][name].dtype and torch.equal(value, torchs[i][name])
            assert value.data_ptr() == made[i][name]  # used, not made anew
