"""Evaluate: measures teacher and generators, exports the best one, registers it, and asks the gates."""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from dmd_api.manifest import manifest_hash
from dmd_trainer.conditions.base import Conditions
from dmd_trainer.diffusion.default_solver import teacher_sampling
from dmd_trainer.diffusion.generator import Generator, generator_timesteps
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.diffusion.solvers import teacher_solver
from dmd_trainer.distributed.collectives import barrier, broadcast_object
from dmd_trainer.evaluation.features import FeatureExtractor, load_features
from dmd_trainer.evaluation.measure import Measured, Sampler, Samples, measure, score
from dmd_trainer.evaluation.pictures import curves_picture, image_grid, png, training_picture
from dmd_trainer.evaluation.reference import reference_features
from dmd_trainer.evaluation.report import Report, ThreeWay, TwoWay, check_gate
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.publishing.export import CardFacts, call_arguments, export_pipeline, generator_network
from dmd_trainer.publishing.registry import GENERATOR_TAG, finish_run, register_generator, set_alias
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.stages.distill import HISTORY, evaluation_samples, grid_samples
from dmd_trainer.stages.inputs import evaluation_conditions, read_teacher, training_conditions
from dmd_trainer.training.best import load_best

REPORT = "report.json"
METHODS = {
    "DMD": "Distribution Matching Distillation (DMD, arXiv 2311.18828)",
    "DMD2": "Distribution Matching Distillation (DMD2, arXiv 2405.14867)",
    "regression": "regression on its ODE pairs",
}
"""What a report calls a method, and the model card."""
TIMED_BATCH, TIMED_ROUNDS = 64, 3
PICTURE_COLUMNS = 16


def run(context: StageContext) -> dict[str, Any]:
    """Leaves `report.json` and pictures in storage and a model version in the registry."""
    spec = context.manifest.spec
    context.progress.update(activity="loading the generator", unit="samples")
    teacher = read_teacher(context)
    conditions = training_conditions(context, teacher)
    best, weights = load_best(context.storage)
    timesteps = generator_timesteps(spec.method, teacher.denoiser.schedule)
    initial = Generator(teacher.denoiser, timesteps)
    network = generator_network(teacher, weights, spec.method.lora).to(context.device)
    generator = Generator(teacher.denoiser.with_network(network, context.autocast), timesteps)
    solver, solver_name = _teacher_sampler(context, teacher, conditions)

    extractor = load_features(
        spec.evaluation.features, context.scratch, context.device, clean=spec.evaluation.resolution is not None
    )
    samples = evaluation_samples(context, teacher, evaluation_conditions(context, teacher))
    context.progress.update(total=3 * samples.count)
    measured = {
        "teacher": _teacher_measured(context, teacher, solver, solver_name, extractor, samples),
        "initial": _measure(context, initial, extractor, samples, "the untrained generator"),
        "generator": _measure(context, generator, extractor, samples, "the distilled generator"),
    }
    if context.rank != 0:
        barrier()
        return {}
    report = _report(context, teacher, measured, (solver, generator), conditions, extractor, best)
    _pictures(context, teacher, conditions, solver, generator, report)
    report = _register(context, teacher, weights, timesteps, report)
    context.storage.write(REPORT, report.model_dump_json(by_alias=True, indent=2).encode())
    if not report.failed_gates:
        _delete_what_is_not_retained(context)
    barrier()
    return {
        "fid": report.fid.generator,
        "modelVersion": report.model_version,
        "registeredModel": report.registered_model,
        "mlflowRun": report.mlflow_run,
        "gatesFailed": ", ".join(f"{g.metric} = {g.value:.4g}" for g in report.failed_gates),
    }


def _teacher_sampler(context: StageContext, teacher: Teacher, conditions: Conditions) -> tuple[Sampler, str]:
    """The sampler that stands for the teacher's quality, and what its features are cached by."""
    spec = context.manifest.spec
    name, steps = teacher_sampling(spec.method, teacher.denoiser.prediction)
    guidance = spec.teacher.guidance_scale
    return teacher_solver(teacher, name, steps, guidance, conditions.negative), f"{name}-{steps}"


def _measure(
    context: StageContext, sampler: Sampler, extractor: FeatureExtractor, samples: Samples, what: str
) -> Measured:
    context.progress.update(activity=f"measuring {what}")

    def advance(count: int) -> None:
        context.progress.advance(count)
        context.raise_if_stopped()

    return measure(sampler, extractor, samples, advance)


def _teacher_measured(
    context: StageContext,
    teacher: Teacher,
    solver: Sampler,
    solver_name: str,
    extractor: FeatureExtractor,
    samples: Samples,
) -> Measured:
    """The teacher's images do not depend on the run: their features are cached by what they depend on."""
    identity = {
        "teacher": teacher.digest,
        "solver": solver_name,
        "guidance": context.manifest.spec.teacher.guidance_scale,
        "samples": samples.count,
        "batch": samples.batch_size,
        "seed": samples.seed,
        "conditions": samples.conditions.identity,
        "extractor": extractor.digest,
        "resolution": samples.resolution,
        "clip": samples.clip and samples.clip.digest,
        "precision": context.manifest.spec.training.precision,
        "weights": context.manifest.spec.teacher.weights,
    }
    key = f"cache/teacher-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.safetensors"
    cache = context.shared_storage
    if broadcast_object(cache.exists(key)):
        tensors = load(cache.read(key))
        context.progress.advance(samples.count)
        return Measured(tensors["features"], tensors.get("correct"), tensors.get("clip_scores"))
    measured = _measure(context, solver, extractor, samples, "the teacher")
    if context.rank == 0:
        kept = {name: value for name, value in vars(measured).items() if value is not None}
        cache.write(key, save(kept))
    barrier()
    return measured


def _report(
    context: StageContext,
    teacher: Teacher,
    measured: dict[str, Measured],
    samplers: tuple[Sampler, Generator],
    conditions: Conditions,
    extractor: FeatureExtractor,
    best: dict[str, Any],
) -> Report:
    spec = context.manifest.spec
    context.progress.update(activity="comparing with real images")
    real = reference_features(
        spec.evaluation.reference,
        extractor,
        teacher.image_shape[1:],
        context.shared_storage,
        context.scratch,
        context.device,
        spec.evaluation.resolution,
    )
    scores = {who: score(found, real, spec.evaluation.metrics) for who, found in measured.items()}

    def three_way(metric: str) -> ThreeWay | None:
        values = {who: found[metric] for who, found in scores.items() if metric in found}
        return ThreeWay(**values) if len(values) == len(scores) else None

    context.progress.update(activity="timing teacher and generator")
    evaluations, seconds = zip(
        *(_cost(context, sampler, _network_of(sampler, teacher), teacher, conditions) for sampler in samplers),
        strict=True,
    )
    fid = three_way("FID")
    assert fid is not None
    return Report(
        name=context.manifest.metadata.name,
        method=spec.method.name if spec.method.fake_score_updates else "regression",
        manifest_hash=manifest_hash(context.manifest),
        seed=spec.training.seed,
        samples=spec.evaluation.samples,
        features=extractor.name,
        fid=fid,
        precision=three_way("Precision"),
        recall=three_way("Recall"),
        coverage=three_way("Coverage"),
        accuracy=three_way("Accuracy"),
        clip_score=three_way("CLIPScore"),
        network_evaluations=TwoWay(teacher=evaluations[0], generator=evaluations[1]),
        seconds_per_image=TwoWay(teacher=seconds[0], generator=seconds[1]),
        device=torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else "cpu",
        gates=[check_gate(gate, scores["generator"][gate.metric]) for gate in spec.gates],
        best_step=best["step"],
        generator_sha256=best["sha256"],
    )


def _network_of(sampler: Sampler, teacher: Teacher) -> nn.Module:
    return sampler.denoiser.network if isinstance(sampler, Generator) else teacher.denoiser.network


@torch.inference_mode()
def _cost(
    context: StageContext, sampler: Sampler, network: nn.Module, teacher: Teacher, conditions: Conditions
) -> tuple[float, float]:
    """Network evaluations an image, counted, and seconds an image: the median of the timed rounds."""
    batch = min(TIMED_BATCH, context.manifest.spec.evaluation.batch_size)  # which fits the device
    random = KeyedRandom(context.manifest.spec.training.seed, "timing", 0, range(batch))
    condition = conditions.embed(conditions.draw(random), context.device)
    noise = random.normal(teacher.sample_shape).to(context.device)
    evaluated = 0

    def count(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal evaluated
        evaluated += len(arguments[0])

    handle = network.register_forward_pre_hook(count)
    sampler(noise, condition)
    handle.remove()
    times = []
    for _ in range(TIMED_ROUNDS):
        context.raise_if_stopped()
        _synchronize(context)
        started = time.perf_counter()
        sampler(noise, condition)
        _synchronize(context)
        times.append(time.perf_counter() - started)
    return evaluated / batch, statistics.median(times) / batch


def _synchronize(context: StageContext) -> None:
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)


def _pictures(
    context: StageContext,
    teacher: Teacher,
    conditions: Conditions,
    solver: Sampler,
    generator: Generator,
    report: Report,
) -> None:
    """Grids of both, the picture of the training, and its curves: to storage and to the tracker."""
    context.progress.update(activity="drawing pictures")
    history = json.loads(context.storage.read(HISTORY))
    of_teacher = grid_samples(context, teacher, conditions, solver)
    grids: dict[str, Callable[[], Any]] = {
        "samples/teacher.png": lambda: image_grid(of_teacher),
        "samples/generator.png": lambda: image_grid(grid_samples(context, teacher, conditions, generator)),
        "samples/training.png": lambda: _training_picture(context, of_teacher[:PICTURE_COLUMNS], report),
        "samples/curves.png": lambda: curves_picture(history["losses"], history["evaluations"], report.fid.teacher),
    }
    for key, draw in grids.items():
        content = png(draw())
        context.storage.write(key, content)
        if context.tracker is not None:
            context.tracker.log_artifact(content, f"pictures/{Path(key).name}")


def _training_picture(context: StageContext, of_teacher: Tensor, report: Report) -> Any:
    """The teacher's images [N, C, H, W] on top; below, the generator from start to end, evenly in the steps' log."""
    kept = {
        int(Path(key).stem.removeprefix("step-")): key
        for key in context.storage.list("samples/step-")
        if key.endswith(".safetensors")
    }
    steps = sorted(kept)
    wanted = {steps[0], steps[-1]} | {
        min(steps, key=lambda step: abs(step - steps[-1] / divisor)) for divisor in (16, 8, 4, 2)
    }
    rows = {step: load(context.storage.read(kept[step]))["images"][:PICTURE_COLUMNS] for step in sorted(wanted)}
    teacher_nfe, nfe = report.network_evaluations.teacher, report.network_evaluations.generator
    title = (
        f"{report.name}: teacher ({teacher_nfe:.0f} network evaluations, FID {report.fid.teacher:.3g}) and "
        f"one-step generator ({nfe:.0f}, FID {report.fid.generator:.3g})"
    )
    return training_picture(of_teacher, rows, title)


def _register(
    context: StageContext, teacher: Teacher, weights: dict[str, Tensor], timesteps: Sequence[int], report: Report
) -> Report:
    """Exports, logs, registers, and gives the alias if every gate passed; the report with what came of it."""
    manifest, tracking = context.manifest, context.manifest.spec.tracking
    assert tracking.uri is not None, "whoever starts a stage resolves the defaults"
    context.progress.update(activity="registering the model")
    folder = context.scratch / "pipeline"
    facts = CardFacts(
        report.name,
        manifest.spec.teacher.uri,
        METHODS[report.method],
        report.manifest_hash,
        f"{report.fid.generator:.4g} (teacher: {report.fid.teacher:.4g}) in {report.features}'s features",
    )
    export_pipeline(teacher, weights, timesteps, folder, facts, manifest.spec.method.lora)
    pipeline_class = json.loads((folder / "model_index.json").read_text())["_class_name"]
    model_version = register_generator(
        tracking.uri,
        tracking.experiment,
        manifest.metadata.name,
        context.run_key,
        manifest.registered_model,
        folder,
        call_arguments(pipeline_class, len(timesteps)),
        _condition_kind(teacher),
        {
            GENERATOR_TAG: report.generator_sha256,
            "dmd.teacher": manifest.spec.teacher.uri,
            "dmd.method": report.method,
            "dmd.fid": f"{report.fid.generator:.6g}",
            "dmd.manifest_hash": report.manifest_hash,
            "dmd.gates": "failed: " + ", ".join(g.metric for g in report.failed_gates)
            if report.failed_gates
            else "passed",
        },
    )
    alias = None if report.failed_gates else tracking.alias
    if alias is not None:
        set_alias(tracking.uri, manifest.registered_model, alias, model_version)
    run_id = None
    if context.tracker is not None:
        final = {f"final/{metric}_{who}": value for metric, who, value in _flat(report)}
        context.tracker.log_metrics(final, manifest.spec.training.generator_updates)
        context.tracker.flush(60)
        run_id = context.tracker.run_id
        if run_id is not None:
            finish_run(tracking.uri, run_id)
    report = report.model_copy(
        update={
            "registered_model": manifest.registered_model,
            "model_version": model_version,
            "alias": alias,
            "mlflow_run": run_id,
        }
    )
    if context.tracker is not None:
        context.tracker.log_artifact(report.model_dump_json(by_alias=True, indent=2).encode(), REPORT)
    return report


def _condition_kind(teacher: Teacher) -> str | None:
    """The column of the registered model's input that says what an image shows."""
    if teacher.takes_text:
        return "prompt"
    return None if teacher.num_class_embeds is None else "class_label"


def _delete_what_is_not_retained(context: StageContext) -> None:
    """Only when the run is complete: until then everything may be needed to go on."""
    storage = context.manifest.spec.storage
    assert storage is not None, "whoever starts a stage resolves the defaults"
    for prefix, retained in (("pairs/", storage.retain.pairs), ("checkpoints/", storage.retain.checkpoints)):
        if not retained:
            context.storage.delete(prefix)


def _flat(report: Report) -> list[tuple[str, str, float]]:
    rows = []
    for metric in ("fid", "precision", "recall", "coverage", "accuracy", "clip_score"):
        values = getattr(report, metric)
        if values is not None:
            rows += [(metric, who, value) for who, value in values.model_dump().items()]
    return rows
