"""Publishes a measured generator: exports and registers it, and what it has earned: its alias, a place on the hub."""

import json
import time
from collections.abc import Sequence

from torch import Tensor

from dmd_api.errors import InfrastructureError
from dmd_trainer.evaluation.gallery import GENERATOR_PICTURE
from dmd_trainer.evaluation.report import Report
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.publishing.export import call_arguments, export_pipeline
from dmd_trainer.publishing.hub_repository import upload
from dmd_trainer.publishing.model_card import METHODS, CardFacts
from dmd_trainer.publishing.registry import RegistryEntry, register_generator, set_alias, tag_version
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.tracking.client import OUTAGE_SECONDS, TrackedRun

REPORT = "report.json"
PUBLISHED_TAG = "dmd.published"
FLUSH_SECONDS = 1.0
"""Between two checks of whether this process has to stop."""


def publish(
    context: StageContext, teacher: Teacher, weights: dict[str, Tensor], timesteps: Sequence[int], report: Report
) -> Report:
    """Exports and registers the generator; if every gate passed, the alias points at it and the hub gets it, if asked.

    Args:
        context: of rank 0.
        teacher: whose architecture and schedule the generator has.
        weights: the generator's.
        timesteps: the indices of the schedule that it is called at.
        report: what was measured.

    Returns:
        The report with the model version, its alias, where it is on the hub, and the MLflow run.
    """
    manifest, run = context.manifest, TrackedRun.of(context.manifest, context.run_key)
    context.progress.update(activity="exporting the generator")
    folder = context.scratch / "pipeline"
    hub = manifest.spec.publish.hugging_face if not report.failed_gates else None
    facts = CardFacts(
        report.name,
        manifest.spec.teacher.uri,
        METHODS[report.method],
        report.manifest_hash,
        f"{report.fid.generator:.4g} (teacher: {report.fid.teacher:.4g}) in {report.features}'s features",
        context.storage.read(GENERATOR_PICTURE),
        hub.repo if hub is not None else None,
    )
    export_pipeline(teacher, weights, timesteps, folder, facts, manifest.spec.method.lora, manifest.spec.export.dtype)
    pipeline_class = json.loads((folder / "model_index.json").read_text())["_class_name"]
    failed = ", ".join(gate.metric for gate in report.failed_gates)
    entry = RegistryEntry(
        manifest.registered_model,
        folder,
        call_arguments(pipeline_class, len(timesteps)),
        _condition_column(teacher),
        report.generator_sha256,
        {
            "dmd.teacher": manifest.spec.teacher.uri,
            "dmd.method": report.method,
            "dmd.fid": f"{report.fid.generator:.6g}",
            "dmd.manifest_hash": report.manifest_hash,
            "dmd.gates": f"failed: {failed}" if failed else "passed",
        },
    )
    context.progress.update(activity="registering the model")
    registered = register_generator(run, entry, context.raise_if_stopped)
    alias = None if failed else manifest.spec.tracking.alias
    if alias is not None:
        set_alias(run.uri, entry.name, alias, registered.model_version, context.raise_if_stopped)
    published = None
    if hub is not None:
        context.progress.update(activity="publishing on the Hugging Face hub")
        message = f"{report.name}, version {registered.model_version} of {entry.name}"
        published = upload(hub, folder, message, context.raise_if_stopped)
        tag_version(run.uri, entry.name, registered.model_version, {PUBLISHED_TAG: published}, context.raise_if_stopped)
    return report.model_copy(
        update={
            "registered_model": entry.name,
            "model_version": registered.model_version,
            "alias": alias,
            "published": published,
            "mlflow_run": registered.run_id,
        }
    )


def finish_run(context: StageContext, report: Report, patience: float = OUTAGE_SECONDS) -> None:
    """Logs the report, marks the MLflow run as finished, and waits until all of it has arrived.

    Raises:
        InfrastructureError: the tracking server stayed away: another attempt logs what is missing.
        InterruptedRunError: this process was told to stop while it waited.
    """
    tracker = context.tracker
    if tracker is None:
        return
    context.progress.update(activity="sending the report to MLflow")
    final = {f"final/{name}": value for name, value in report.figures().items()}
    tracker.log_metrics(final, context.manifest.spec.training.generator_updates)
    tracker.log_artifact(report.model_dump_json(by_alias=True, indent=2).encode(), REPORT)
    # Last: a run that is FINISHED has everything.
    tracker.set_status("FINISHED")
    until = time.monotonic() + patience
    while not tracker.flush(FLUSH_SECONDS):
        context.raise_if_stopped()
        if time.monotonic() > until:
            raise InfrastructureError(
                f"spec.tracking.uri: {tracker.run.uri} does not answer, so that the report and the last records are "
                "not in its run; is it up?"
            )


def _condition_column(teacher: Teacher) -> str | None:
    """The column of the registered model's input that says what an image shows."""
    if teacher.takes_text:
        return "prompt"
    return None if teacher.num_class_embeds is None else "class_label"
