"""Evaluate: measures teacher and generators, exports the best one, registers it, and asks the gates."""

from typing import Any

from dmd_trainer.distributed.collectives import barrier
from dmd_trainer.evaluation.comparison import Comparison
from dmd_trainer.evaluation.evaluator import Evaluator
from dmd_trainer.evaluation.gallery import leave_pictures
from dmd_trainer.evaluation.grid import Grid
from dmd_trainer.publishing.export import generator_network
from dmd_trainer.publishing.publish import REPORT, finish_run, publish
from dmd_trainer.publishing.retention import delete_what_is_not_retained
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.stages.inputs import evaluation_conditions, read_teacher, training_conditions
from dmd_trainer.training.best import load_best
from dmd_trainer.training.history import read_history


def run(context: StageContext) -> dict[str, Any]:
    """Leaves `report.json` and pictures in storage and a model version in the registry."""
    context.progress.update(activity="loading the generator", unit="samples")
    teacher = read_teacher(context)
    conditions = training_conditions(context, teacher)
    best, weights = load_best(context.storage)
    network = generator_network(teacher, weights, context.manifest.spec.method.lora).to(context.device)
    evaluator = Evaluator(context, teacher, evaluation_conditions(context, teacher))
    comparison = Comparison(evaluator, conditions, network)
    context.progress.update(total=3 * evaluator.samples.count)
    measured = comparison.measure()
    if context.rank != 0:
        barrier()
        return {}
    report = comparison.report(measured, best)
    history = read_history(context.storage)
    grid = Grid(context, teacher, conditions)
    leave_pictures(context, grid, comparison, report, history.losses, history.evaluations)
    report = publish(context, teacher, weights, comparison.timesteps, report)
    finish_run(context, report)
    context.storage.write(REPORT, report.model_dump_json(by_alias=True, indent=2).encode())
    if not report.failed_gates:
        delete_what_is_not_retained(context)
    barrier()
    return {
        "fid": report.fid.generator,
        "modelVersion": report.model_version,
        "registeredModel": report.registered_model,
        "published": report.published,
        "mlflowRun": report.mlflow_run,
        "gatesFailed": ", ".join(f"{g.metric} = {g.value:.4g}" for g in report.failed_gates),
    }
