import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import process
from scripts.errors import LabError
from scripts.hpa.generator import NS, Burst, CpuMeter, Hit, Load, Schedule, parse
from scripts.hpa.profile import Stage
from tests.unit.conftest import Until

# As `vegeta encode -to csv` (v12.13.0) printed them: an answer, a refusal of the app, no listener, no answer in time.
RECORDED = """\
1795569844452428938,200,7758364,0,0,,,,0,GET,http://127.0.0.1:18999/work,Q29udGVudC1MZW5ndGg6IDE2DQo=
1795569844602100341,503,6284089,0,0,503 Service Unavailable,,,3,GET,http://127.0.0.1:18999/work,Q29udGVudA==
1795570646264747819,0,574388,0,0,"Get ""http://127.0.0.1:18998/work"": dial tcp 0.0.0.0:0->127.0.0.1:18998: connect: connection refused",,,0,GET,http://127.0.0.1:18998/work,
1795570651646933602,0,1039216646,0,0,"Get ""http://127.0.0.1:18997/work"": context deadline exceeded (Client.Timeout exceeded while awaiting headers)",,,1,GET,http://127.0.0.1:18997/work,
"""


def test_results_are_read_as_vegeta_prints_them() -> None:
    found = list(parse(RECORDED.splitlines(keepends=True)))
    assert found[0] == Hit(0, 1795569844452428938, 7758364, 200, "")
    assert [(h.sequence, h.code) for h in found] == [(0, 200), (3, 503), (0, 0), (1, 0)]
    assert found[1].error == "503 Service Unavailable"
    assert found[2].error.endswith("connection refused")
    assert "deadline exceeded" in found[3].error


def hit(sequence: int, sent_s: float, latency_s: float = 0.01, code: int = 200) -> Hit:
    return Hit(sequence, int(sent_s * NS), int(latency_s * NS), code, "")


def test_a_request_that_is_sent_late_counts_from_when_it_was_due() -> None:
    schedule = Schedule(10)
    # The third is half a second late and the fourth catches up: a stall of the generator, not of the service.
    hits = [hit(0, 100.1), hit(1, 100.2), hit(2, 100.8), hit(3, 100.8), hit(4, 100.8)]
    for one in hits:
        schedule.learn(one)
    found = [schedule.answer(one) for one in hits]
    assert [a.due for a in found] == pytest.approx([100.1, 100.2, 100.3, 100.4, 100.5])
    assert [a.latency_s for a in found] == pytest.approx([0.01, 0.01, 0.51, 0.41, 0.31])
    assert [a.answered for a in found] == pytest.approx([h.sent_ns / NS + 0.01 for h in hits])


def test_the_schedule_is_the_one_that_fits_the_request_with_the_least_delay() -> None:
    schedule = Schedule(10)
    schedule.learn(hit(0, 100.4))  # late itself
    assert schedule.answer(hit(0, 100.4)).due == pytest.approx(100.4)
    schedule.learn(hit(1, 100.2))
    assert schedule.answer(hit(0, 100.4)).due == pytest.approx(100.1)
    assert schedule.due_by(100.35, started=0) == 3
    assert Schedule(10).due_by(100.35, started=100.0) == 3


# A vegeta that sends on time, answers after 10 ms, and at SIGINT stops sending and ends well.
FAKE = """#!{python} -IS
import signal, sys, time
options = dict(a.lstrip("-").partition("=")[::2] for a in sys.argv[2:] if "=" in a)
if sys.argv[1] == "encode":
    for line in sys.stdin:
        sys.stdout.write(line); sys.stdout.flush()
    sys.exit(0)
if {broken!r}:
    sys.exit({broken!r})
stop = []
signal.signal(signal.SIGINT, lambda *_: stop.append(1))
rate, seconds = int(options["rate"]), float(options["duration"][:-1])
began = time.time()
for n in range(int(rate * seconds)):
    time.sleep(max(0, began + (n + 1) / rate - time.time()))
    if stop:
        break
    code = 200 if n % 10 != 9 else 503
    print(f"{{int(time.time() * 1e9)}},{{code}},10000000,0,0,,,,{{n}},GET,u,", flush=True)
"""


@pytest.fixture
def vegeta(tmp_path: Path) -> Callable[..., Path]:
    def make(broken: str = "") -> Path:
        path = tmp_path / "vegeta"
        path.write_text(FAKE.format(python=os.path.realpath("/proc/self/exe"), broken=broken))
        path.chmod(0o755)
        return path

    return make


def test_stages_run_one_after_the_other_and_every_request_is_counted(
    vegeta: Callable[..., Path], tmp_path: Path
) -> None:
    load = Load(vegeta(), tmp_path / "targets", [Stage(0, 0.5, 20), Stage(0.5, 0.5, 40)])
    assert load.is_sending
    assert load.wanted_rate(load.began + 0.1) == 20
    assert load.wanted_rate(load.began + 0.6) == 40
    assert load.wanted_rate(load.began + 5) == 0
    load.finish()
    assert not load.is_running and not load.is_sending
    found = load.answers()
    assert len(found) == load.answered() == load.due(time.time()) == 30
    assert load.failed() == 3 == sum(1 for a in found if not a.ok)
    assert load.answers(since=found[-1].answered - 0.2) != found
    assert load.pids == ()


def test_a_stopped_load_sends_nothing_more_and_counts_what_was_sent(
    vegeta: Callable[..., Path], tmp_path: Path, until: Until
) -> None:
    load = Load(vegeta(), tmp_path / "targets", [Stage(0, 30, 50), Stage(30, 30, 50)])
    until(lambda: load.answered() >= 5)
    assert len(load.pids) == 2
    load.stop()
    assert not load.is_sending
    started = time.monotonic()
    load.finish()
    assert time.monotonic() - started < 10
    assert 5 <= load.answered() < 200
    assert load.due(time.time() + 60) <= load.answered() + 5, "what was not sent is not due"


def test_a_generator_that_fails_is_an_error_with_what_it_said(vegeta: Callable[..., Path], tmp_path: Path) -> None:
    load = Load(vegeta(broken="vegeta: out of order"), tmp_path / "targets", [Stage(0, 0.2, 10)])
    with pytest.raises(LabError, match="exit code 1: vegeta: out of order"):
        load.finish()


def test_output_that_is_no_result_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "vegeta"
    path.write_text('#!/bin/sh\n[ "$1" = encode ] && exec cat\necho "not,a,result"\n')
    path.chmod(0o755)
    burst = Burst(path, tmp_path / "targets", Stage(0, 0.1, 10))
    with pytest.raises(LabError, match="can't be read"):
        burst.finish()


def test_no_program_is_one_clear_error_and_leaves_nothing_running(tmp_path: Path) -> None:
    with pytest.raises(process.CommandError, match="could not be started"):
        process.start_pipeline(["sleep", "60"], [tmp_path / "nothing"])


def test_the_generators_cpu_is_that_of_its_processes_and_of_this_one() -> None:
    meter = CpuMeter()
    busy = time.process_time()
    while time.process_time() - busy < 0.05:
        sum(range(1000))
    assert meter.cores(()) > 0
    assert meter.cores_so_far([os.getpid()]) > 0
    assert meter.cores([2**22 + 1]) >= 0  # a process that has ended counts nothing
