"""`dmdctl run`: the stages of a distillation, one after another, on this machine."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmd_api.defaults import Defaults, resolve_defaults
from dmd_api.errors import BadInputError
from dmd_api.exit_codes import RETRYABLE, ExitCode
from dmd_api.manifest import DMDDistillation, manifest_hash
from dmd_api.parsing import parse_model
from dmd_api.runtime import Progress, StageResult
from dmd_api.spec import Workers
from dmd_api.stages import Stage, stages
from dmd_api.uris import STORAGE_SCHEMES, TRACKING_SCHEMES, parse_uri
from dmd_trainer.evaluation.report import Report
from dmd_trainer.runtime.finished import read_result, write_result
from dmd_trainer.runtime.storage import Storage, open_storage
from dmdctl.console import Console, one_line, warning
from dmdctl.display import Display, make_display
from dmdctl.json_lines import JsonLines
from dmdctl.local.local_runner import Interrupts, LocalRun
from dmdctl.local.shrink import shrink
from dmdctl.local.summary import show_summary
from dmdctl.manifest_file import read_manifest
from dmdctl.waiting import waiting

RUNS = Path("dmd-runs")
BACK_OFF_SECONDS = (5.0, 60.0)


def run_manifest(
    file: Path,
    processes: int | None,
    storage: str | None,
    tracking: str | None,
    *,
    shrunken: bool = False,
    as_json: bool = False,
) -> ExitCode:
    """Runs what is not done yet of the manifest's distillation, or a small one like it, and shows what came of it.

    Args:
        file: the manifest.
        processes: on this machine, instead of the manifest's workers.
        storage: where runs go if the manifest does not say.
        tracking: the server if the manifest names none.
        shrunken: rehearses it.
        as_json: shows it as JSON lines.

    Raises:
        ManifestError: the manifest is wrong.
        BadInputError: the same run is going on already, or a default is wrong.
    """
    runs = (RUNS / "shrunken" if shrunken else RUNS).absolute()
    manifest = read_manifest(file)
    console = Console(stderr=as_json)
    if shrunken:
        with waiting(console, "making a small teacher to rehearse with"):
            manifest = shrink(manifest, runs / "inputs" / manifest.metadata.name)
    manifest = with_local_defaults(manifest, storage, tracking, runs)
    run_key = f"{manifest.metadata.name}-{manifest_hash(manifest)}"
    assert manifest.spec.storage is not None
    place = open_storage(manifest.spec.storage.uri, endpoint_url=manifest.spec.storage.endpoint_url).sub(run_key)
    if processes is not None:
        manifest = with_processes(manifest, processes)
    local = runs / run_key
    interrupts = Interrupts()
    run = LocalRun(manifest, run_key, local / "logs", runs / "scratch" / run_key, interrupts)
    lines = JsonLines() if as_json else None
    with only_one(local), lines or make_display(console) as display:
        display.say(one_line((manifest.metadata.name, "bold"), "  ", place.uri))
        failed = _run_stages(run, place, display)
    if failed is not None:
        return _explain(console, run, failed) if lines is None else _explain_as_json(lines, failed)
    report = parse_model(Report, place.read("report.json"), place.uri_of("report.json"))
    if lines is not None:
        code = ExitCode.GATES_FAILED if report.failed_gates else ExitCode.DONE
        lines.result(code, storage=place.uri, report=report.model_dump(mode="json", by_alias=True))
        return code
    show_summary(console, report, place, manifest)
    if shrunken:
        console.aside().print()
        console.print_line(
            "a rehearsal: of a random teacher and a few updates, the figures say nothing", style="yellow"
        )
    return ExitCode.GATES_FAILED if report.failed_gates else ExitCode.DONE


def _run_stages(run: LocalRun, place: Storage, display: Display) -> StageResult | None:
    """Runs the stages that are not done; the result of the one that failed, or None."""
    for stage in stages(run.manifest):
        display.start(stage)
        if read_result(place, stage, run.manifest) is not None:
            display.finish(stage, "done before")
            continue
        outcome = _run_stage(run, stage, display)
        if outcome.error is not None:
            display.fail(stage, outcome.error.reason)
            return outcome
        write_result(place, outcome)
        display.finish(stage, _note(stage, outcome))
    return None


def with_local_defaults(
    manifest: DMDDistillation, storage: str | None, tracking: str | None, runs: Path = RUNS
) -> DMDDistillation:
    """Storage and tracking below `runs` where neither the manifest nor the command names them.

    Raises:
        BadInputError: the command names something that is no URI of a known scheme.
    """
    for option, uri, schemes in (("storage", storage, STORAGE_SCHEMES), ("tracking", tracking, TRACKING_SCHEMES)):
        try:
            if uri is not None:
                parse_uri(uri, schemes)
        except ValueError as error:
            raise BadInputError(f"--{option}: {error}") from error
    runs = runs.absolute()
    uris = {"storage": storage or f"file://{runs}", "tracking": tracking or f"sqlite:///{runs}/mlflow.db"}
    return resolve_defaults(manifest, Defaults.model_validate({name: {"uri": uri} for name, uri in uris.items()}))


def with_processes(manifest: DMDDistillation, processes: int) -> DMDDistillation:
    """The manifest with this many processes on one node.

    Raises:
        BadInputError: the batch cannot be divided among them.
    """
    spec = manifest.spec
    if spec.training.batch_size % (processes * (spec.training.micro_batch_size or 1)):
        raise BadInputError(f"--processes: spec.training.batchSize {spec.training.batch_size} is not a multiple of it")
    workers = Workers(nodes=1, processes_per_node=processes)
    return manifest.model_copy(update={"spec": spec.model_copy(update={"workers": workers})})


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds the run's lock, which the kernel lets go of when this process ends, however it ends.

    Raises:
        BadInputError: another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BadInputError(f"{folder}: this run is going on already in another process; let it end") from error
            yield
    except PermissionError as error:
        raise BadInputError(f"{error.filename}: permission denied; run in a folder that you may write to") from error


def _run_stage(run: LocalRun, stage: Stage, display: Display) -> StageResult:
    """Attempts at a stage until one ends for good: failures that may pass are tried again, up to maxRestarts."""
    attempt = 1 + max((int(p.name.rpartition("-")[2]) for p in run.logs.glob(f"{stage}-*")), default=0)
    failures, wait = 0, BACK_OFF_SECONDS[0]
    while True:
        result = run.run_attempt(stage, attempt, display.show)
        if result.error is None or result.error.exit_code not in RETRYABLE:
            return result
        if run.interrupts.requested() or failures == run.manifest.spec.max_restarts:
            return result
        failures, attempt = failures + 1, attempt + 1
        display.say(warning(f"{stage}: {result.error.message}; attempt {attempt} in {wait:.0f} s"))
        display.show(Progress(stage=stage, attempt=attempt, activity="waiting for the next attempt"))
        until = time.monotonic() + wait
        while time.monotonic() < until and not run.interrupts.requested():
            time.sleep(0.1)
        if run.interrupts.requested():
            return result
        wait = min(2 * wait, BACK_OFF_SECONDS[1])


def _note(stage: Stage, outcome: StageResult) -> str:
    result = outcome.result
    match stage:
        case Stage.PREPARE:
            return f"{result.get('pairs')} pairs"
        case Stage.DISTILL:
            return f"best FID {float(result.get('fid') or 0):.4g} at step {result.get('bestStep')}"
        case Stage.EVALUATE:
            return f"version {result.get('modelVersion')} of {result.get('registeredModel')}"
    return "teacher, storage, tracking and data fit together"


def _explain_as_json(lines: JsonLines, outcome: StageResult) -> ExitCode:
    assert outcome.error is not None
    code = ExitCode(outcome.error.exit_code)
    lines.result(code, stage=str(outcome.stage), reason=outcome.error.reason, message=outcome.error.message)
    return code


def _explain(console: Console, run: LocalRun, outcome: StageResult) -> ExitCode:
    assert outcome.error is not None
    attempts = sorted(run.logs.glob(f"{outcome.stage}-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    colour = "yellow" if outcome.error.exit_code == ExitCode.INTERRUPTED else "red"
    console.print_line((f"{outcome.stage}:", colour), " ", outcome.error.message)
    if outcome.error.exit_code == ExitCode.INTERRUPTED:
        console.aside().print_line("the same command goes on from there")
    elif attempts:
        console.print_line(f"logs: {attempts[-1]}")
    return ExitCode(outcome.error.exit_code)
