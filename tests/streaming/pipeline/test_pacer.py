from spoor.streaming.pipeline.pacer import EncodePacer


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def pacer(seconds: float) -> tuple[EncodePacer, Clock]:
    clock = Clock()
    return EncodePacer(seconds, clock=clock), clock


def test_a_user_is_encoded_at_once_and_then_again_when_the_floor_is_over():
    pace, clock = pacer(10)
    assert pace.too_soon(["a", "b"]).tolist() == [False, False]
    pace.encoded(["a"])
    clock.now += 9
    assert pace.too_soon(["a", "b"]).tolist() == [True, False]
    clock.now += 1
    assert pace.too_soon(["a"]).tolist() == [False]


def test_who_waits_is_due_when_the_floor_is_over_and_waits_no_more_once_encoded():
    pace, clock = pacer(10)
    pace.encoded(["a", "b"])
    clock.now += 4
    pace.encoded(["b"])
    pace.wait({"a": 0, "b": 3})
    assert (pace.due(), pace.waiting) == ({}, 2)
    clock.now += 6
    assert pace.due() == {"a": 0}
    pace.encoded(["a"])
    clock.now += 4
    assert (pace.due(), pace.waiting) == ({"b": 3}, 1)


def test_without_a_floor_nobody_waits_and_nothing_is_remembered():
    pace, _ = pacer(0)
    pace.encoded(["a"])
    assert pace.too_soon(["a"]).tolist() == [False]
    assert pace.too_soon([]).tolist() == []


def test_at_the_end_everybody_who_waits_is_due():
    pace, _ = pacer(10)
    pace.encoded(["a"])
    pace.wait({"a": 1})
    pace.end()
    assert pace.due() == {"a": 1}
    pace.encoded(["a"])
    assert pace.due() == {} and not pace.too_soon(["a"]).any()
