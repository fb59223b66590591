"""`dmdctl logs` on a real API server, the test being the operator and the node that has the logs."""

import itertools
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmd_api.exit_codes import ExitCode
from tests.cli.fake_node import FakeNode, fake_node, make_pod, set_state
from tests.cli.resources import Command, Resource, environment, stamp
from tests.cli.test_cli import DMDCTL
from tests.cluster.control_plane import ControlPlane

_names = (f"logged-{number}" for number in itertools.count())


@pytest.fixture
def node(plane: ControlPlane) -> Iterator[FakeNode]:
    with fake_node(plane) as node:
        yield node


@pytest.fixture
def run(plane: ControlPlane) -> Iterator[Resource]:
    made = Resource(plane, next(_names))
    made.write(phase="Distilling", stage="distill", attempt=1, startTime=stamp())
    yield made
    plane.kubectl("delete", "dmd", made.name)
    selector = f"dmd-operator.io/distillation={made.name}"
    plane.kubectl("delete", "pod", "--selector", selector, "--force", "--grace-period=0")


def logs(run: Resource, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(DMDCTL), "logs", run.name, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=environment(run.api.kubeconfig),
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def started(plane: ControlPlane, run: Resource, stage: str, attempt: int, index: int) -> str:
    pod = make_pod(plane, run.name, stage, attempt, index)
    set_state(plane, pod, running={})
    return pod


def test_all_workers_of_the_latest_attempt_in_the_order_of_time(
    plane: ControlPlane, node: FakeNode, run: Resource, tmp_path: Path
) -> None:
    noon = time.time() - 3600
    old = started(plane, run, "prepare", 1, 0)
    node.write(old, "a pair", at=noon - 60)
    for index, texts in ((0, ("a", "c [red]x[/red]")), (1, ("b", "d"))):
        pod = started(plane, run, "distill", 1, index)
        for offset, text in enumerate(texts):
            node.write(pod, text, at=noon + 2 * offset + index)
    waiting = make_pod(plane, run.name, "distill", 1, 2)
    set_state(plane, waiting, waiting={"reason": "ErrImagePull", "message": "not found"})
    started(plane, run, "distill", 1, 3)  # the node has lost its log

    done = logs(run, folder=tmp_path)
    assert done.returncode == ExitCode.DONE, done.stderr
    assert done.stdout.splitlines() == [
        "[distill-1/0] a",
        "[distill-1/1] b",
        "[distill-1/0] c [red]x[/red]",
        "[distill-1/1] d",
    ]
    assert "[distill-1/2] has not started (ErrImagePull: not found)" in done.stderr
    assert "[distill-1/3] no log: " in done.stderr

    assert logs(run, "--tail", "1", folder=tmp_path).stdout.splitlines() == [
        "[distill-1/0] c [red]x[/red]",
        "[distill-1/1] d",
    ]
    assert logs(run, "--stage", "prepare", folder=tmp_path).stdout == "[prepare-1/0] a pair\n"
    missing = logs(run, "--stage", "distill", "--attempt", "7", folder=tmp_path)
    assert missing.returncode == ExitCode.BAD_INPUT
    assert f"{run.name}: has no pods of distill, attempt 7; there are those of prepare-1, distill-1" in missing.stderr


def test_following_goes_on_through_restarts_and_attempts_until_the_run_is_over(
    plane: ControlPlane, node: FakeNode, run: Resource, tmp_path: Path
) -> None:
    first, second = (started(plane, run, "distill", 1, index) for index in range(2))
    node.write(first, "old 0")
    node.write(second, "old 1")
    command = Command(plane.kubeconfig, "logs", run.name, "--follow", folder=tmp_path)
    try:
        command.wait_for("[distill-1/1] old 1")
        node.write(first, "live 0")
        command.wait_for("[distill-1/0] live 0")
        plane.restart_api_server(pause=2)
        node.write(second, "written while nobody listened")
        command.wait_for("[distill-1/1] written while nobody listened")
        for pod in (first, second):
            node.write(pod, "interrupted")
            node.end(pod)
            set_state(plane, pod, terminated={"exitCode": 130})
        run.write(endedAttempt=1)
        run.write(attempt=2)
        third = started(plane, run, "distill", 2, 0)
        node.write(third, "resumed")
        command.wait_for("[distill-2/0] resumed")
        node.write(third, "done")
        node.end(third)
        set_state(plane, third, terminated={"exitCode": 0})
        run.write(phase="Complete", completionTime=stamp())
        assert command.end() == ExitCode.DONE
    finally:
        command.kill()
    lines = [line for line in command.output.splitlines() if line.startswith("[")]
    assert sorted(lines) == sorted(
        [
            "[distill-1/0] old 0",
            "[distill-1/1] old 1",
            "[distill-1/0] live 0",
            "[distill-1/1] written while nobody listened",
            "[distill-1/0] interrupted",
            "[distill-1/1] interrupted",
            "[distill-2/0] resumed",
            "[distill-2/0] done",
        ]
    ), command.output


def test_following_one_attempt_ends_with_it(plane: ControlPlane, node: FakeNode, run: Resource, tmp_path: Path) -> None:
    command = Command(plane.kubeconfig, "logs", run.name, "-f", "--stage", "distill", "--attempt", "1", folder=tmp_path)
    try:
        pod = started(plane, run, "distill", 1, 0)
        node.write(pod, "hello")
        command.wait_for("[distill-1/0] hello")
        node.end(pod)
        set_state(plane, pod, terminated={"exitCode": 130})
        run.write(endedAttempt=1)
        assert command.end() == ExitCode.DONE
    finally:
        command.kill()


def test_ctrl_c_and_a_reader_that_leaves(plane: ControlPlane, node: FakeNode, run: Resource, tmp_path: Path) -> None:
    pod = started(plane, run, "distill", 1, 0)
    node.write(pod, *(f"line {number}" for number in range(20_000)))
    command = Command(plane.kubeconfig, "logs", run.name, "-f", "--tail", "1", folder=tmp_path)
    try:
        command.wait_for("line 19999")
        command.interrupt()
        assert command.end() == ExitCode.INTERRUPTED
    finally:
        command.kill()
    piped = subprocess.run(
        f"{DMDCTL} logs {run.name} | head -n 1",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
        env=environment(plane.kubeconfig),
    )
    assert piped.stdout == "[distill-1/0] line 0\n"
    assert piped.stderr == ""


def test_a_run_without_pods(plane: ControlPlane, run: Resource, tmp_path: Path) -> None:
    done = logs(run, folder=tmp_path)
    assert done.returncode == ExitCode.BAD_INPUT
    assert f"{run.name}: has no pods" in done.stderr
    run.write(phase="Complete", completionTime=stamp())
    assert logs(run, "--follow", folder=tmp_path).returncode == ExitCode.BAD_INPUT
