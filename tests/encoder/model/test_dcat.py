"""DCAT's passes against the plain transformer over history + candidate, in outputs and in gradients."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spoor.encoder.model.config import MODEL_CONFIGS, ModelConfig
from spoor.encoder.model.dcat import Context, context, context_and_cross, cross, skipped_rows
from spoor.encoder.model.dcat_reference import reference_cross
from spoor.encoder.model.events import Candidates, Events
from spoor.encoder.model.user_encoder import UserEncoder
from spoor.encoder.release.inference import new_model
from tests.releases import vocabulary_of

TINY = MODEL_CONFIGS["tiny"]
ITEMS, ACTIONS, SURFACES = [f"i{k}" for k in range(40)], ["like", "view"], ["home", "search"]
LENGTHS = [7, 0, 1, 13, 8]
USERS = [3, 0, 0, 4, 1, 3, 2, 3, 1, 0]


def untrained(config: ModelConfig = TINY, *, seed: int = 0) -> UserEncoder:
    model = new_model(config, vocabulary_of(ITEMS, ACTIONS, SURFACES))
    model.initialise(seed)
    return model.eval()


class Case:
    """Random events of LENGTHS and candidates of USERS."""

    def __init__(self, lengths: list[int] = LENGTHS, users: list[int] = USERS) -> None:
        generator = torch.Generator().manual_seed(1)
        self.offsets = torch.tensor([0, *lengths]).cumsum(0)

        def draw(high: int, count: int) -> Tensor:
            return torch.randint(0, high + 1, (count,), generator=generator)

        events = int(self.offsets[-1])
        columns = (draw(len(ITEMS), events), draw(len(ACTIONS), events), draw(len(SURFACES), events))
        self.events = Events(*columns, self.offsets)
        self.users = torch.tensor(users)
        self.candidates = Candidates(draw(len(ITEMS), len(users)), draw(len(SURFACES), len(users)), self.users)
        self.gaps = [torch.rand(n, generator=generator) * 12 for n in (events, len(users))]
        self.content = torch.randn(len(users), TINY.item_width, generator=generator)
        self.token = torch.randn(TINY.width, generator=generator)


OPTIONS = {
    "plain": {},
    "learnable token": {"token": True},
    "content": {"content": True},
    "rotate replace": {"window": 8},
    "all at once": {"token": True, "content": True, "window": 8},
    "a window of one": {"window": 1},
}


def options(case: Case, chosen: dict) -> tuple[Tensor | None, Tensor | None, int | None]:
    return (
        case.token.clone().requires_grad_() if chosen.get("token") else None,
        case.content.clone().requires_grad_() if chosen.get("content") else None,
        chosen.get("window"),
    )


@pytest.mark.parametrize("config", [TINY, replace(TINY, time_gaps=True, score="dot")], ids=["tiny", "time gaps"])
@pytest.mark.parametrize("chosen", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("passes", ["two passes", "one pass", "one pass with outputs"])
def test_it_equals_the_transformer_over_history_and_candidate(passes: str, chosen: dict, config: ModelConfig) -> None:
    """In float64, so that what is left over is an error and not rounding."""
    case = Case()
    case.token, case.content = case.token.double(), case.content.double()
    events, candidates = case.events, case.candidates
    if config.time_gaps:
        events = replace(events, log_gaps=case.gaps[0].double())
        candidates = replace(candidates, log_gaps=case.gaps[1].double())
    ours, plain = untrained(config).double(), untrained(config).double()
    token, content, window = options(case, chosen)
    token_ref, content_ref, _ = options(case, chosen)
    asked = replace(candidates, content=content)
    if passes == "two passes":
        out = cross(ours, context(ours, events, token=token), asked, window=window)
    else:
        wanted = passes == "one pass with outputs"
        out, after = context_and_cross(ours, events, asked, token=token, window=window, outputs=wanted)
        if after is not None:
            torch.testing.assert_close(after, plain(events), atol=1e-7, rtol=0)
    asked = replace(candidates, content=content_ref)
    expected = reference_cross(plain, events, asked, token=token_ref, window=window)
    torch.testing.assert_close(out, expected, atol=1e-7, rtol=1e-7)

    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None and not (mine.grad is None and not theirs.grad.any()):
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-7, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    for mine, theirs in ((token, token_ref), (content, content_ref)):
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("outputs", [False, True], ids=["candidates", "and events"])
@pytest.mark.parametrize("chosen", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("events", [0, 1, 13])
@torch.inference_mode()
def test_a_request_of_one_user_equals_the_transformer_too(events: int, chosen: dict, outputs: bool) -> None:
    """At inference it has attention of its own."""
    case = Case([events], [0] * 5)
    token = case.token.double() if chosen.get("token") else None
    content = case.content.double() if chosen.get("content") else None
    crossing = {"token": token, "window": chosen.get("window")}
    model, asked = untrained().double(), (case.events, replace(case.candidates, content=content))
    out, after = context_and_cross(model, *asked, **crossing, outputs=outputs)
    torch.testing.assert_close(out, reference_cross(model, *asked, **crossing), atol=1e-7, rtol=1e-7)
    if after is not None:
        torch.testing.assert_close(after, model(case.events), atol=1e-7, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    readers=st.lists(st.integers(0, 4), min_size=1, max_size=9),
    window=st.none() | st.integers(1, 24),
)
def test_it_does_so_for_any_lengths_candidates_and_window(
    lengths: list[int], readers: list[int], window: int | None
) -> None:
    """In float32, to 1e-5, gradients too."""
    case = Case(lengths, [reader % len(lengths) for reader in readers])
    gradients, outputs = [], []
    for number in range(3):
        model = untrained()
        if number == 0:
            out = reference_cross(model, case.events, case.candidates, window=window)
        elif number == 1:
            out = cross(model, context(model, case.events), case.candidates, window=window)
        else:
            out, _ = context_and_cross(model, case.events, case.candidates, window=window, outputs=False)
        out.square().sum(1).sub(out[:, 0]).sum().backward()
        outputs.append(out)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for out, found in zip(outputs[1:], gradients[1:], strict=True):
        torch.testing.assert_close(out, outputs[0], atol=1e-5, rtol=0)
        for name, grad in found.items():
            expected = gradients[0].get(name, torch.zeros_like(grad))
            torch.testing.assert_close(grad, expected, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_a_candidate_with_an_action_would_be_the_next_event() -> None:
    """The crossing pass is the model itself: with the action put back, its output is that after the next event."""
    model, case = untrained(), Case([9], [0])
    model.actions.weight.data.zero_()  # so that an action adds nothing
    history = context(model, case.events.take(torch.arange(8), torch.tensor([0, 8])))
    out = cross(model, history, Candidates(case.events.items[8:], case.events.surfaces[8:], torch.tensor([0])))
    whole = model(case.events)
    torch.testing.assert_close(out[0], whole[-1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("token", [False, True])
def test_outputs_of_the_events_are_the_models_own(token: bool) -> None:
    model, case = untrained(), Case()
    history = context(model, case.events, token=case.token if token else None)
    assert history.outputs is not None
    torch.testing.assert_close(history.outputs, model(case.events), atol=1e-6, rtol=1e-6)


def test_keys_and_values_are_enough_for_candidates() -> None:
    model, case = untrained(), Case()
    whole = context(model, case.events)
    short = context(model, case.events, outputs=False)
    assert short.outputs is None
    torch.testing.assert_close(cross(model, short, case.candidates), cross(model, whole, case.candidates))


def test_rotate_replace_hides_what_the_candidate_takes_the_place_of() -> None:
    offsets = torch.tensor([0, 0, 3, 10, 18])
    assert skipped_rows(offsets, window=8).tolist() == [0, 0, 0, 1]
    assert skipped_rows(offsets, window=3).tolist() == [0, 1, 5, 6]
    model, case = untrained(), Case([8], [0, 0])
    history = context(model, case.events)
    free = cross(model, history, case.candidates)
    full = cross(model, history, case.candidates, window=8)
    roomy = cross(model, history, case.candidates, window=9)
    assert not torch.allclose(free, full)
    torch.testing.assert_close(free, roomy)


def test_neither_other_candidates_nor_other_users_are_felt() -> None:
    model, case = untrained(), Case()
    together = cross(model, context(model, case.events), case.candidates)
    for number, user in enumerate(case.users.tolist()):
        rows = torch.arange(int(case.offsets[user]), int(case.offsets[user + 1]))
        alone = context(model, case.events.take(rows, torch.tensor([0, len(rows)])))
        asked = replace(case.candidates.take(slice(number, number + 1)), users=torch.tensor([0]))
        one = cross(model, alone, asked)
        torch.testing.assert_close(together[number : number + 1], one, atol=1e-5, rtol=1e-5)


class Exported(nn.Module):
    """Both passes as one program: what a serving process without Spoor's Python would load."""

    def __init__(self, model: UserEncoder, token: Tensor) -> None:
        super().__init__()
        self.model = model
        self.token = nn.Parameter(token)

    def forward(self, items: Tensor, actions: Tensor, surfaces: Tensor, offsets: Tensor) -> list[Tensor]:
        events = Events(items, actions, surfaces, offsets)
        found = context(self.model, events, token=self.token, outputs=False)
        return [*found.keys, *found.values, found.offsets, found.lengths]


class ExportedCrossing(nn.Module):
    def __init__(self, model: UserEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, parts: list[Tensor], items: Tensor, surfaces: Tensor, candidate_user: Tensor) -> Tensor:
        layers = self.model.config.layers
        found = Context(tuple(parts[:layers]), tuple(parts[layers : 2 * layers]), parts[-2], parts[-1], None)
        return cross(self.model, found, Candidates(items, surfaces, candidate_user), window=8)


def tensors(of: Events | Candidates) -> tuple[Tensor, ...]:
    return tuple(value for field in fields(of) if (value := getattr(of, field.name)) is not None)


def test_both_passes_can_be_exported_and_agree() -> None:
    model, case, other = untrained(), Case(), Case([3, 21, 2], [1, 1, 0])
    events, candidates = (torch.export.Dim(name, min=2, max=4096) for name in ("n", "c"))
    users = torch.export.Dim("u", min=3, max=4096)  # offsets of two users or more: a size of 1 is a program of its own
    first = Exported(model, case.token)
    program = torch.export.export(
        first, tensors(case.events), dynamic_shapes=({0: events}, {0: events}, {0: events}, {0: users})
    )
    parts = first(*tensors(case.events))
    second = ExportedCrossing(model)
    rows, more = torch.export.Dim.AUTO, {0: candidates}
    crossing = torch.export.export(
        second,
        (parts, *tensors(case.candidates)),
        dynamic_shapes=([{0: rows} for _ in parts], more, more, more),
    )
    for some in (case, other):
        found = program.module()(*tensors(some.events))
        for mine, theirs in zip(found, first(*tensors(some.events)), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        scores = crossing.module()(found, *tensors(some.candidates))
        torch.testing.assert_close(scores, second(found, *tensors(some.candidates)), atol=1e-5, rtol=1e-5)


class ExportedInOnePass(nn.Module):
    def __init__(self, model: UserEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, events: tuple[Tensor, ...], candidates: tuple[Tensor, ...]) -> Tensor:
        return context_and_cross(self.model, Events(*events), Candidates(*candidates), window=8)[0]


def test_one_pass_can_be_exported_and_agrees() -> None:
    """For any number of events, users and candidates."""
    whole, case, other = ExportedInOnePass(untrained()), Case(), Case([3, 21, 2], [1, 1, 0])
    events, candidates = (torch.export.Dim(name, min=2, max=4096) for name in ("n", "c"))
    users = torch.export.Dim("u", min=3, max=4096)
    program = torch.export.export(
        whole,
        (tensors(case.events), tensors(case.candidates)),
        dynamic_shapes=((*[{0: events}] * 3, {0: users}), ({0: candidates},) * 3),
    )
    for some in (case, other):
        inputs = (tensors(some.events), tensors(some.candidates))
        torch.testing.assert_close(program.module()(*inputs), whole(*inputs), atol=1e-5, rtol=1e-5)
