"""Who works on a run: one process at a time, and those that died do not stay in the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aloftrag import claims
from aloftrag.errors import RunError

ELSEWHERE = {"host": "other", "pid": 1, "machine": ["another boot", "pid:[1]"], "process_started": "1", "is_working": True}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(claims, "_LOOK_SECONDS_FOR_A_TURN", 0.02)
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(claims, "STALE_SECONDS", 2.0)


def write(path: Path, claim: dict[str, object], seconds_ago: float = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(claim))
    written = time.time() - seconds_ago
    os.utime(path, (written, written))


def test_one_works_and_the_next_one_is_refused_until_it_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "run" / ".claims"
    with claims.hold(folder):
        assert claims.working(folder) == 1
        with pytest.raises(RunError, match=rf"{tmp_path}/run: another process .* process {os.getpid()} on "), claims.hold(folder):
            pytest.fail("two work")
        assert claims.working(folder) == 1
    assert claims.working(folder) == 0
    with claims.hold(folder):
        pass


@pytest.mark.parametrize("content", [json.dumps(ELSEWHERE), ""], ids=["silent", "of a machine that lost its power"])
def test_a_claim_that_is_never_renewed_is_waited_for_and_then_nobodys(tmp_path: Path, content: str) -> None:
    (tmp_path / "-silent.json").write_text(content)
    said: list[str] = []
    began = time.monotonic()
    with claims.hold(tmp_path, say=said.append):
        assert time.monotonic() - began > 2
        assert not (tmp_path / "-silent.json").exists()
    assert said == [f"waiting to see whether {'process 1 on other' if content else 'a process'} is alive"]


def test_however_long_a_process_of_this_machine_did_not_show_itself_it_lives(tmp_path: Path) -> None:
    with claims.hold(tmp_path / "run" / ".claims"):
        (claim,) = (tmp_path / "run" / ".claims").glob("*.json")
        write(claim, json.loads(claim.read_text()), seconds_ago=1000)
        with pytest.raises(RunError, match="another process"), claims.hold(tmp_path / "run" / ".claims"):
            pytest.fail("two work")


def test_a_claim_that_is_older_than_the_others_does_not_count_as_working(tmp_path: Path) -> None:
    with claims.hold(tmp_path):
        write(tmp_path / "-ghost.json", ELSEWHERE, seconds_ago=1000)
        assert claims.working(tmp_path) == 1


def test_two_that_come_at_the_same_moment_are_not_both_refused(tmp_path: Path) -> None:
    for attempt in range(20):
        worked, refused = [], []
        ready = threading.Barrier(2)

        def work(number: int, folder: Path, worked: list[int], refused: list[int], ready: threading.Barrier) -> None:
            ready.wait()
            try:
                with claims.hold(folder):
                    worked.append(number)
                    time.sleep(0.2)
            except RunError:
                refused.append(number)

        for thread in [threading.Thread(target=work, args=(n, tmp_path / str(attempt), worked, refused, ready)) for n in range(2)]:
            thread.start()
        while len(worked) + len(refused) < 2:
            time.sleep(0.01)
        assert len(worked) == 1, attempt


def test_who_waits_for_a_turn_outlives_a_storage_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, failed = claims._read, []

    def fails(path: Path) -> object:
        if len(failed) < 5:
            failed.append(path)
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(claims, "_read", fails)
    write(tmp_path / "-other.json", ELSEWHERE)
    with claims.hold(tmp_path, at_most=2, wait=True, say=lambda line: None):
        assert len(failed) == 5
    failed.clear()
    with pytest.raises(OSError, match="Input/output"), claims.hold(tmp_path):
        pytest.fail("it works beside others")


def test_who_was_about_to_work_when_the_storage_failed_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two looks the second one fails, when it has said already that it works; the other one comes at that moment."""
    read, looked, done = claims._read, [], []

    def work(order: str) -> None:
        with claims.hold(tmp_path, order=order, wait=True, say=lambda line: None):
            done.append(order)

    first_in_order = threading.Thread(target=work, args=("0",), daemon=True)

    def fails(path: Path) -> object:
        looked.append(path)
        if len(looked) == 2:
            first_in_order.start()
            while not list(tmp_path.glob("0-*.json")):
                time.sleep(0.01)
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(claims, "_read", fails)
    write(tmp_path / "9-waits.json", {**ELSEWHERE, "is_working": False})
    second_in_order = threading.Thread(target=work, args=("1",), daemon=True)
    second_in_order.start()
    second_in_order.join(20)
    first_in_order.join(20)
    assert done == ["0", "1"]


def test_a_claim_that_is_renewed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.1):
            write(tmp_path / "-living.json", ELSEWHERE)

    write(tmp_path / "-living.json", ELSEWHERE)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunError, match="process 1 on other"), claims.hold(tmp_path):
            pytest.fail("two work")
    finally:
        ended.set()
        thread.join()
    assert (tmp_path / "-living.json").exists()


def test_a_killed_process_of_this_machine_is_known_to_be_dead_at_once(tmp_path: Path) -> None:
    code = f"import pathlib, time\nfrom aloftrag import claims\nwith claims.hold(pathlib.Path({str(tmp_path)!r})): time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code])
    while claims.working(tmp_path) == 0:
        time.sleep(0.02)
    with pytest.raises(RunError, match=f"process {process.pid} on"), claims.hold(tmp_path):
        pytest.fail("two work")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert claims.working(tmp_path) == 0
    said: list[str] = []
    with claims.hold(tmp_path, say=said.append):
        assert said == []


def in_threads(count: int, work: Callable[[int], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_no_more_than_so_many_work_at_once_and_all_get_their_turn(tmp_path: Path) -> None:
    at_work, most, done, lock = set[int](), [0], [], threading.Lock()

    def work(number: int) -> None:
        with claims.hold(tmp_path, at_most=3, order=f"{number:05d}", wait=True, say=lambda line: None):
            with lock:
                at_work.add(number)
                most[0] = max(most[0], len(at_work))
            time.sleep(0.2)
            with lock:
                at_work.remove(number)
                done.append(number)

    for thread in in_threads(10, work):
        thread.join()
    assert most[0] == 3
    assert sorted(done) == list(range(10))


def test_turns_go_by_order(tmp_path: Path) -> None:
    done: list[int] = []

    def work(number: int) -> None:
        with claims.hold(tmp_path, order=f"{5 - number:05d}", wait=True, say=lambda line: None):
            done.append(5 - number)

    with claims.hold(tmp_path, order="x"):
        threads = in_threads(5, work)
        while len(list(tmp_path.glob("*.json"))) < 6:
            time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert done == [1, 2, 3, 4, 5]


def test_a_process_whose_place_was_taken_stops(tmp_path: Path) -> None:
    def work() -> None:
        with claims.hold(tmp_path):
            (claim,) = tmp_path.glob("*.json")
            claim.unlink()
            time.sleep(5)
            pytest.fail("it went on")

    with pytest.raises(RunError, match="another process took over"):
        work()


def test_a_process_that_hung_while_it_showed_itself_and_was_replaced_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its claim is written at last, beside that of the one that took it for dead."""
    write_json, hung = claims.artifacts.write_json, threading.Event()

    def hangs(path: Path, data: object) -> None:
        if not hung.is_set():
            hung.set()
            path.unlink()
            write(tmp_path / "-other.json", ELSEWHERE)
            time.sleep(2.5)
        write_json(path, data)

    def work() -> None:
        with claims.hold(tmp_path):
            monkeypatch.setattr(claims.artifacts, "write_json", hangs)
            time.sleep(8)
            pytest.fail("it went on")

    with pytest.raises(RunError, match="another process took over"):
        work()
    assert (tmp_path / "-other.json").exists()


def test_nobody_is_taken_for_dead_because_the_storage_was_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away, ended, began = threading.Event(), threading.Event(), threading.Event()
    read = claims._read

    def fails(path: Path) -> object:
        if away.is_set():
            raise OSError(5, "Input/output error")
        return read(path)

    def beat() -> None:
        while not ended.wait(0.4):  # who waits looks first
            if not away.is_set():
                write(tmp_path / "-other.json", ELSEWHERE)

    def wait() -> None:
        with claims.hold(tmp_path, order="x", wait=True, say=lambda line: None):
            began.set()

    monkeypatch.setattr(claims, "_read", fails)
    write(tmp_path / "-other.json", ELSEWHERE)
    threads = [threading.Thread(target=work) for work in (beat, wait)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    away.set()
    time.sleep(2.5)
    away.clear()
    assert not began.wait(1.5)
    ended.set()
    assert began.wait(5)  # now the other one is dead
    for thread in threads:
        thread.join()


def test_ctrl_c_is_no_lost_place(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claims.hold(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
