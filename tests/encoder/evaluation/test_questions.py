"""What is asked: every event with the role that has a past, from all of that past."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spoor.activity.history import EVENT_DTYPE, Histories
from spoor.encoder.evaluation import questions
from spoor.encoder.evaluation.questions import Inputs, asked_rows, question_chunks
from spoor.encoder.model.vocabulary import Vocabulary

ITEMS = 9


def histories_of(lengths: list[int], seed: int = 0) -> Histories:
    rng = np.random.default_rng(seed)
    users = []
    for length in lengths:
        events = np.zeros(length, EVENT_DTYPE)
        events["timestamp"] = np.arange(length) * 10 + 5
        events["item"] = rng.integers(1, ITEMS + 1, length)
        users.append(events)
    return Histories.of(users)


def vocabulary() -> Vocabulary:
    """Knows all items but the last."""
    known = np.arange(1, ITEMS, dtype=np.uint64)
    return Vocabulary(known, np.zeros(1, np.uint16), np.zeros(1, np.uint16), tuple(map(str, known)))


@given(
    lengths=st.lists(st.integers(0, 7), max_size=9),
    most_questions=st.integers(1, 6),
    most_events=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_chunks_hold_every_question_once_whatever_their_size(
    lengths: list[int], most_questions: int, most_events: int, seed: int
) -> None:
    histories = histories_of(lengths, seed)
    roles = np.random.default_rng(seed).integers(0, 3, len(histories.values)).astype(np.uint8)
    expected = [
        (user + 4, histories[user]["item"][:place].tolist(), int(histories[user]["item"][place] % ITEMS), place)
        for user in range(len(lengths))
        for place in range(1, lengths[user])
        if roles[histories.offsets[user] + place] == 2
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions, "_MOST_QUESTIONS", most_questions)
        patch.setattr(questions, "_MOST_EVENTS", most_events)
        chunks = list(question_chunks(histories, roles, vocabulary(), role=2, first_user=4))
    found = []
    for chunk in chunks:
        assert 1 <= chunk.inputs.count <= most_questions
        assert chunk.inputs.count == 1 or len(chunk.inputs.items) <= most_events
        assert chunk.inputs.items.tolist() == (chunk.inputs.histories.values["item"] % ITEMS).tolist()
        for row in range(chunk.inputs.count):
            events = chunk.inputs.histories[row]["item"].tolist()
            found.append((int(chunk.users[row]), events, int(chunk.targets[row]), int(chunk.times[row] - 5) // 10))
    assert found == expected


def test_a_first_event_is_no_question() -> None:
    histories = histories_of([0, 1, 2, 0])
    assert asked_rows(histories.offsets, np.full(3, 2, np.uint8), role=2).tolist() == [2]


def test_newest_cuts_each_input_from_its_end() -> None:
    histories = histories_of([3, 1, 5])
    inputs = Inputs(histories, histories.values["item"].astype(np.int64)).newest(2)
    assert inputs.offsets.tolist() == [0, 2, 3, 5]
    assert inputs.items.tolist() == histories.values["item"][[1, 2, 3, 7, 8]].tolist()
