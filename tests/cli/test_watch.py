"""`dmdctl watch` on a real API server, the test being the operator."""

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dmd_api.exit_codes import ExitCode
from tests.cli.resources import Command, Resource, ensure_crd, environment, stamp
from tests.cli.test_cli import DMDCTL
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import GivenCluster

_names = (f"watched-{number}" for number in itertools.count())
RUNNING = ("Healthy", "True", "Running", "distill: attempt 1 runs")


@pytest.fixture
def resource(api: ControlPlane | GivenCluster) -> Iterator[Resource]:
    ensure_crd(api)
    made = Resource(api, next(_names))
    yield made
    api.kubectl("delete", "dmd", made.name, "--ignore-not-found")


@pytest.fixture
def watch(resource: Resource, tmp_path: Path) -> Iterator[Command]:
    command = Command(resource.api.kubeconfig, "watch", resource.name, folder=tmp_path)
    yield command
    command.kill()


def once(kubeconfig: Path | str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(DMDCTL), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=environment(kubeconfig),
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def begin(resource: Resource) -> None:
    resource.write(
        ("PreflightPassed", "True", "PreflightPassed", "attempt 1"),
        ("Prepared", "True", "Prepared", "attempt 1"),
        RUNNING,
        phase="Distilling",
        stage="distill",
        attempt=1,
        startTime=stamp(),
        step=100,
        total=1500,
        unit="generator updates",
        progress="6%",
        eta="12m",
    )


def test_a_run_from_its_first_moment_to_its_registration(resource: Resource, watch: Command) -> None:
    watch.wait_for("waiting for an operator")
    resource.write(phase="Preflight", stage="preflight", attempt=1, startTime=stamp())
    watch.wait_for("preflight: starting")
    resource.write(
        ("PreflightPassed", "True", "PreflightPassed", "attempt 1"),
        ("Healthy", "Unknown", "PodsWaiting", "worker 0: Unschedulable: 0/3 nodes are available"),
        phase="Preparing",
        stage="prepare",
    )
    watch.wait_for("preflight: teacher, storage, tracking and data fit together")
    watch.wait_for("waiting: worker 0: Unschedulable: 0/3 nodes are available")
    resource.write(
        ("Healthy", "True", "Running", "prepare: attempt 1 runs"),
        step=4096,
        total=8192,
        unit="pairs",
        imagesPerSecond=33,
    )
    watch.wait_for("prepare: attempt 1 runs")
    resource.write(
        ("Prepared", "True", "Prepared", "attempt 1"),
        RUNNING,
        phase="Distilling",
        stage="distill",
        activity="training",
        step=750,
        total=1500,
        unit="generator updates",
        eta="1h5m",
        losses={"distribution_matching": 0.5, "regression": 0.25},
        imagesPerSecond=1234.5,
        fid=1.5,
        mlflowRun="0123abcd",
        mlflowRunUrl="http://mlflow:5000/#/runs/0123abcd",
    )
    watch.wait_for("pairs: 8192 pairs")
    watch.wait_for("750/1500 generator updates · training · dm 0.5 · reg 0.25 · 1234 img/s · FID 1.5 · 1h05m left")
    resource.write(("Healthy", "False", "Disrupted", "worker 1 lost, node unreachable"), endedAttempt=1)
    resource.tell("Disrupted", "distill: attempt 1 ended: worker 1 lost, node unreachable; it had reached step 750")
    watch.wait_for("! distill: attempt 1 ended: worker 1 lost, node unreachable; it had reached step 750")
    resource.write(("Healthy", "True", "Running", "distill: attempt 2 runs"), attempt=2)
    watch.wait_for("distill: attempt 2 runs")
    resource.write(("Suspended", "True", "Suspended", "spec.suspend is true"), phase="Suspended")
    watch.wait_for("suspended; set spec.suspend to false to resume")
    resource.write(("Suspended", "False", "Resumed", ""), phase="Distilling")
    watch.wait_for("resumed")
    resource.write(
        ("Distilled", "True", "Distilled", "attempt 2"),
        ("Evaluated", "True", "Evaluated", "attempt 1"),
        ("GatesPassed", "True", "GatesPassed", "every gate holds"),
        ("Complete", "True", "Complete", "registered"),
        phase="Complete",
        stage="evaluate",
        completionTime=stamp(),
        modelVersion="7",
        bestFid=0.25,
        bestStep=1400,
    )
    assert watch.end() == ExitCode.DONE, watch.output
    assert "distill: best FID 0.25 at step 1400" in watch.output
    assert "evaluate: version 7" in watch.output
    assert (
        "complete: version 7 of digits-onestep, alias champion, MLflow run http://mlflow:5000/#/runs/0123abcd"
        in watch.output
    )


@pytest.mark.parametrize(
    ("conditions", "code", "text"),
    [
        (
            [
                ("Distilled", "True", "Distilled", "attempt 1"),
                ("Evaluated", "True", "Evaluated", "attempt 1"),
                ("GatesPassed", "False", "GatesFailed", "gates failed: FID = 2"),
                ("Complete", "True", "Complete", "registered without its alias: a gate failed"),
            ],
            ExitCode.GATES_FAILED,
            "gates failed: FID = 2",
        ),
        (
            [("Failed", "True", "TrainingDiverged", "worker 0: the loss is NaN [step 3]")],
            ExitCode.DIVERGED,
            "failed: TrainingDiverged: worker 0: the loss is NaN [step 3]",
        ),
        ([("Failed", "True", "BadInput", "worker 0: no pairs")], ExitCode.BAD_INPUT, "failed: BadInput"),
        (
            [("Failed", "True", "RestartsExhausted", "11 attempts failed")],
            ExitCode.UNEXPECTED,
            "failed: RestartsExhausted: 11 attempts failed",
        ),
    ],
)
def test_a_run_that_ended_before_it_was_watched(
    resource: Resource, conditions: list[tuple[str, str, str, str]], code: ExitCode, text: str, tmp_path: Path
) -> None:
    begin(resource)
    resource.write(*conditions, completionTime=stamp(), modelVersion="2")
    done = once(resource.api.kubeconfig, "watch", resource.name, folder=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert text in done.stdout
    told = once(resource.api.kubeconfig, "watch", resource.name, "--output", "json", folder=tmp_path)
    assert told.returncode == code
    last = json.loads(told.stdout.splitlines()[-1])
    assert (last["event"], last["exitCode"], last["status"]["modelVersion"]) == ("result", code, "2")


def test_an_api_server_that_restarts_is_waited_for(plane: ControlPlane, resource: Resource, watch: Command) -> None:
    begin(resource)
    watch.wait_for("100/1500 generator updates")
    plane.restart_api_server(pause=3)
    watch.wait_for("the API server answers again")
    resource.write(("Healthy", "False", "AttemptFailed", "worker 0: the disk is full"), endedAttempt=1)
    resource.tell("AttemptFailed", "distill: attempt 1 ended: worker 0: the disk is full")
    watch.wait_for("! distill: attempt 1 ended: worker 0: the disk is full")
    resource.write(("Failed", "True", "BadInput", "no"), completionTime=stamp())
    assert watch.end() == ExitCode.BAD_INPUT, watch.output
    assert watch.output.count("the API server does not answer; waiting for it") == 1
    assert watch.output.count("the disk is full") == 1


def test_what_is_wrong_when_the_watch_begins_is_said_once(resource: Resource, tmp_path: Path) -> None:
    begin(resource)
    resource.write(("Healthy", "False", "AttemptFailed", "worker 0: the disk is full"), endedAttempt=1)
    resource.tell("AttemptFailed", "distill: attempt 1 ended: worker 0: the disk is full")
    watch = Command(resource.api.kubeconfig, "watch", resource.name, folder=tmp_path)
    try:
        watch.wait_for("! worker 0: the disk is full")
        watch.interrupt()
        assert watch.end() == ExitCode.INTERRUPTED
        assert f"the run goes on by itself; dmdctl watch {resource.name} shows it again" in watch.output
        assert watch.output.count("the disk is full") == 1
    finally:
        watch.kill()


def test_a_run_that_is_deleted_while_it_is_watched(resource: Resource, watch: Command) -> None:
    begin(resource)
    watch.wait_for("distill: ")
    resource.api.kubectl("delete", "dmd", resource.name)
    assert watch.end() == ExitCode.UNEXPECTED
    assert f"{resource.name}: was deleted" in watch.output


def test_a_name_that_is_not_there_is_told_with_those_like_it(resource: Resource, tmp_path: Path) -> None:
    name = resource.name.replace("watched", "watch")
    for command in ("watch", "logs"):
        done = once(resource.api.kubeconfig, command, name, folder=tmp_path)
        assert done.returncode == ExitCode.BAD_INPUT
        assert f"{name}: no such DMDDistillation in the namespace default; did you mean " in done.stderr
        assert resource.name in done.stderr
        elsewhere = once(resource.api.kubeconfig, command, name, "-n", "kube-system", folder=tmp_path)
        assert "in the namespace kube-system; it has none at all; check -n and --context" in elsewhere.stderr


@pytest.mark.parametrize("command", ["watch", "logs"])
def test_what_may_not_be_read_is_told_with_the_remedy(
    plane: ControlPlane, resource: Resource, command: str, tmp_path: Path
) -> None:
    stranger = plane.component_kubeconfig("stranger", "stranger")
    done = once(stranger, command, resource.name, folder=tmp_path)
    assert done.returncode == ExitCode.BAD_INPUT
    assert 'User "stranger" cannot list resource "dmddistillations"' in done.stderr
    assert "ask for a role" in done.stderr
    assert done.stderr.count("\n") == 1


def test_who_may_read_no_events_watches_without_them(plane: ControlPlane, resource: Resource, tmp_path: Path) -> None:
    for kind, arguments in (
        ("clusterrole", ("dmd-reader", "--verb=get,list,watch", "--resource=dmddistillations.dmd-operator.io")),
        ("clusterrolebinding", ("dmd-reader", "--clusterrole=dmd-reader", "--user=reader")),
    ):
        plane.kubectl("delete", kind, "dmd-reader", "--ignore-not-found")
        plane.kubectl("create", kind, *arguments)
    begin(resource)
    reader = plane.component_kubeconfig("reader", "reader")
    watch = Command(reader, "watch", resource.name, folder=tmp_path)
    try:
        watch.wait_for("going on without events: ")
        watch.wait_for("100/1500 generator updates")
        resource.write(("Healthy", "False", "AttemptFailed", "worker 0: the disk is full"), endedAttempt=1)
        watch.wait_for("! worker 0: the disk is full")
        resource.write(("Failed", "True", "BadInput", "no"), completionTime=stamp())
        assert watch.end() == ExitCode.BAD_INPUT
    finally:
        watch.kill()


@pytest.mark.cluster  # it starts a control plane of its own, whose programs are built before that half of the tests
def test_a_cluster_without_the_crd(tmp_path: Path) -> None:
    empty = ControlPlane(tmp_path / "empty")
    try:
        done = once(empty.start().kubeconfig, "watch", "x", folder=tmp_path)
    finally:
        empty.stop()
    assert done.returncode == ExitCode.BAD_INPUT
    assert "knows no dmddistillations.dmd-operator.io: install the operator with its CRD first" in done.stderr


@pytest.mark.parametrize("command", ["watch", "logs"])
@pytest.mark.parametrize(
    ("content", "arguments", "code", "message"),
    [
        (None, (), ExitCode.BAD_INPUT, "no kubeconfig: "),
        ("clusters: [", (), ExitCode.BAD_INPUT, "cannot be used as a kubeconfig"),
        ("just words", (), ExitCode.BAD_INPUT, "cannot be used as a kubeconfig"),
        ("{}", (), ExitCode.BAD_INPUT, "cannot be used as a kubeconfig"),
        ("good", ("--context", "b"), ExitCode.BAD_INPUT, "--context b: no such context in "),
        ("good", (), ExitCode.INFRASTRUCTURE, "https://127.0.0.1:9: the API server does not answer"),
    ],
)
def test_a_kubeconfig_that_leads_nowhere(
    command: str, content: str | None, arguments: tuple[str, ...], code: ExitCode, message: str, tmp_path: Path
) -> None:
    good = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "a", "cluster": {"server": "https://127.0.0.1:9"}}],
        "users": [{"name": "a", "user": {"token": "t"}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a", "namespace": "research"}}],
        "current-context": "a",
    }
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(yaml.safe_dump(good) if content == "good" else content)
    done = once(path, command, "x", *arguments, folder=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
