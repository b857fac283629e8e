"""The replay of a load: who attaches when, and what happens when programs are down. No wall clock."""

from __future__ import annotations

from twin.emulation.client import ProgramDownError
from twin.emulation.replay import Replay, steps
from twin.load import Activity, Flow, Load


class Recorder:
    """A user plane that writes down what it is asked; ``down`` makes it refuse."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.down = False

    def _take(self, *call: object) -> None:
        if self.down:
            raise ProgramDownError("phones: no answer")
        self.calls.append(call)

    def attach(self, ue: str) -> None:
        self._take("attach", ue)

    def detach(self, ue: str) -> None:
        self._take("detach", ue)

    def start(self, flow: Flow, rate: float) -> None:
        self._take("start", flow.name, rate)

    def set_rate(self, flow: Flow, rate: float) -> None:
        self._take("rate", flow.name, rate)

    def stop(self, flow: Flow) -> None:
        self._take("stop", flow.name)


def flow(name: str, ue: str, *activities: tuple[float, float, float]) -> Flow:
    return Flow(
        name=name, ue=ue, slice="embb", app="video", service="stream", direction="dl", packet_bytes=1400,
        activities=tuple(Activity(*activity) for activity in activities),
    )  # fmt: skip


def played(load: Load, plane: Recorder) -> Replay:
    replay = Replay(load, plane, always_attached=(), ues=("phones.1", "phones.2"), clock=lambda: 1e9)
    replay.start()
    replay._thread.join()
    return replay


def idle(plane: Recorder, clock=lambda: 1e9) -> Replay:  # type: ignore[no-untyped-def]
    """A replay that knows the slice but plays only what the test tells it to."""
    later = flow("later", "phones.1", (1e12, 2e12, 1))
    return Replay(
        Load(flows=(later,), duration_s=2e12), plane, always_attached=(), ues=("phones.1", "phones.2"), clock=clock
    )


def test_touching_activities_change_the_rate_without_a_stop() -> None:
    one = flow("f", "phones.1", (1, 2, 10), (2, 3, 20), (5, 6, 30))
    assert [(step.time_s, step.rate) for step in steps(Load(flows=(one,), duration_s=10))] == [
        (1, 10), (2, 20), (3, 0), (5, 30), (6, 0),
    ]  # fmt: skip


def test_a_ue_attaches_before_its_first_flow_and_detaches_after_its_last() -> None:
    plane = Recorder()
    load = Load(flows=(flow("a", "phones.1", (1, 4, 10)), flow("b", "phones.1", (2, 6, 5))), duration_s=10)
    played(load, plane)
    assert plane.calls == [
        ("attach", "phones.1"), ("start", "a", 10), ("start", "b", 5), ("stop", "a"), ("stop", "b"),
        ("detach", "phones.1"),
    ]  # fmt: skip


def test_an_attach_that_failed_is_tried_again_and_a_lost_session_too() -> None:
    plane = Recorder()
    plane.down = True
    replay = played(Load(flows=(flow("a", "phones.1", (1, 2, 10)),), duration_s=10), plane)
    assert plane.calls == []
    plane.down = False
    replay._play(steps(Load(flows=(flow("c", "phones.2", (1, 2, 10)),), duration_s=10))[0])
    replay.reconcile({"phones.2": False})
    assert plane.calls == [("attach", "phones.2"), ("start", "c", 10), ("attach", "phones.2")]


def test_a_demand_factor_acts_on_running_and_on_later_flows() -> None:
    plane = Recorder()
    replay = idle(plane)
    first, second = flow("a", "phones.1", (1, 9, 10)), flow("b", "phones.2", (1, 9, 10))
    replay._play(steps(Load(flows=(first,), duration_s=10))[0])
    replay.set_factor("embb", 3.0)
    replay._play(steps(Load(flows=(second,), duration_s=10))[0])
    assert plane.calls[-3:] == [("rate", "a", 30.0), ("attach", "phones.2"), ("start", "b", 30.0)]


def test_active_ues_are_a_mean_over_time() -> None:
    now_s = [0.0]
    replay = idle(Recorder(), clock=lambda: now_s[0])
    replay.active_ues()
    start, stop = steps(Load(flows=(flow("a", "phones.1", (1, 9, 10)),), duration_s=10))
    replay._play(start)
    replay._count()
    now_s[0] = 3.0
    replay._play(stop)
    replay._count()
    now_s[0] = 4.0
    assert replay.active_ues() == {"embb": 0.75}


def test_a_barred_ue_detaches_and_a_revived_container_starts_what_should_run() -> None:
    plane = Recorder()
    replay = idle(plane)
    replay._play(steps(Load(flows=(flow("a", "phones.1", (1, 9, 10)),), duration_s=10))[0])
    replay.bar("phones.1", True)
    assert plane.calls[-1] == ("detach", "phones.1")
    replay.bar("phones.1", False)
    replay.forget("phones")
    replay.revive("phones")
    assert plane.calls[-3:] == [("attach", "phones.1"), ("attach", "phones.1"), ("start", "a", 10.0)]
