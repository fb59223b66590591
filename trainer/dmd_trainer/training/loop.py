"""The training loop: steps, and between them evaluation, samples, checkpoints and what is shown of it all."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from safetensors.torch import save
from torch import Tensor

from dmd_api.errors import InterruptedRunError, TrainingCollapsedError, TrainingDivergedError
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.dmd.distillation import Distillation, StepReport
from dmd_trainer.health.probe import HealthProbe
from dmd_trainer.health.rules import Health
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.training.best import BestGenerator
from dmd_trainer.training.checkpoints import Checkpointer

LOG_EVERY = 10
"""Generator updates between two points of the curves of losses and health."""

Evaluate = Callable[[Generator], dict[str, float]]
"""Measures a generator together with all ranks: metrics by their names in the manifest, "FID" among them."""
DrawSamples = Callable[[Generator], Tensor]
"""Images [N, C, H, W] in [-1, 1] of a generator at noise that never changes."""


@dataclass
class History:
    """What the plots are drawn from; it travels in the checkpoints.

    Attributes:
        losses: every `LOG_EVERY` steps: {"step": ..., loss: ...}.
        evaluations: every `evaluation.every` steps: {"step": ..., metric: ...}.
        health: every `LOG_EVERY` steps: {"step": ..., measure: ...}, which the run's health follows from.
    """

    losses: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    health: list[dict[str, float]] = field(default_factory=list)

    def evaluated(self, step: int) -> bool:
        """Whether the evaluation of `step` is in it already."""
        return bool(self.evaluations) and self.evaluations[-1]["step"] == step


def train(
    context: StageContext,
    distillation: Distillation,
    checkpointer: Checkpointer,
    evaluate: Evaluate,
    draw_samples: DrawSamples,
    probe: HealthProbe,
) -> tuple[BestGenerator, History]:
    """Trains to the manifest's last update, from the newest intact checkpoint on.

    Returns:
        The best generator so far, and what was measured on the way.

    Raises:
        InterruptedRunError: a rank was told to stop; a checkpoint of the last whole step is in storage.
        TrainingDivergedError: see `Distillation.step`; the checkpoints from before it are kept.
        TrainingCollapsedError: the run is collapsing, and `training.stopOnCollapse` is set; likewise.
    """
    spec = context.manifest.spec
    training, total = spec.training, spec.training.generator_updates
    best, history = _resume(context, distillation, checkpointer)
    health = Health(spec)
    if not history.health:
        start = probe.measure(distillation.generator, distillation.mu_fake)
        history.health.append({"step": distillation.step_count, **start})
    for measures in history.health:
        health.feed(measures)
    context.progress.update(activity="training", unit="generator updates", total=total, step=distillation.step_count)
    context.progress.update(warnings=health.warnings)
    started, first_step, paused = time.perf_counter(), distillation.step_count, 0.0

    while True:
        step = distillation.step_count
        finished = step == total
        if (finished or step % spec.evaluation.every == 0) and not history.evaluated(step):
            pause = time.perf_counter()
            context.progress.update(activity=f"evaluating step {step}")
            scores = evaluate(distillation.ema_generator)
            history.evaluations.append({"step": step, **scores})
            best.offer(step, scores["FID"], distillation.ema_weights)
            _show_evaluation(context, scores, best, step)
            context.progress.update(activity="training")
            paused += time.perf_counter() - pause
        if finished or step % training.sample_every == 0:
            # All ranks draw: a sharded generator is gathered by all of them.
            images = draw_samples(distillation.ema_generator)
            if context.rank == 0:
                _keep_samples(context, images, step)
        # A run that will not be let collapse keeps the checkpoints from before it went wrong.
        worth_keeping = not (training.stop_on_collapse and health.warnings)
        if finished or (step > first_step and step % training.checkpoint_every == 0 and worth_keeping):
            checkpointer.save(distillation.state(), step, {"history": asdict(history)})
        if finished:
            checkpointer.wait()
            return best, history

        step_started = time.perf_counter()
        try:
            report = distillation.step(stop_requested=context.should_stop())
        except TrainingDivergedError:
            checkpointer.wait()
            raise
        _show_step(context, report, history, distillation.step_count, time.perf_counter() - step_started)
        if distillation.step_count % LOG_EVERY == 0:
            _check_health(context, probe, distillation, report, history, health)
        if training.stop_on_collapse and health.collapsing:
            checkpointer.wait()
            raise TrainingCollapsedError(_why_it_stopped(distillation.step_count, health, checkpointer.newest_step))
        done = distillation.step_count - first_step
        seconds_per_step = (time.perf_counter() - started - paused) / done
        context.progress.update(
            eta_seconds=seconds_per_step * (total - distillation.step_count),
            checkpoint_step=checkpointer.newest_step,
        )

        if report.stop:
            _save(context, distillation, checkpointer, history)
            checkpointer.wait()
            raise InterruptedRunError(
                f"interrupted at step {distillation.step_count} of {total}; a checkpoint is kept, the next run goes on"
            )


def _save(context: StageContext, distillation: Distillation, checkpointer: Checkpointer, history: History) -> None:
    checkpointer.save(distillation.state(), distillation.step_count, {"history": asdict(history)})
    if context.tracker is not None:
        context.tracker.keep_unsent()


def _resume(
    context: StageContext, distillation: Distillation, checkpointer: Checkpointer
) -> tuple[BestGenerator, History]:
    context.progress.update(activity="looking for a checkpoint")
    best = BestGenerator(context.storage, writes=context.rank == 0)
    state = distillation.state()
    manifest = checkpointer.load_newest(state)
    if manifest is None:
        return best, History()
    distillation.load_state(state, manifest["step"])
    total = context.manifest.spec.training.generator_updates
    context.progress.message(f"going on from step {manifest['step']} of {total}")
    history = History(**manifest["extra"]["history"])
    if history.evaluations:
        context.progress.update(fid=history.evaluations[-1]["FID"], best_fid=best.fid, best_step=best.step)
    return best, history


def _show_step(context: StageContext, report: StepReport, history: History, step: int, seconds: float) -> None:
    images_per_second = context.manifest.spec.training.batch_size / seconds
    context.progress.update(step=step, losses=report.losses, images_per_second=images_per_second)
    if context.tracker is not None:
        context.progress.update(mlflow_run=context.tracker.run_id, mlflow_run_url=context.tracker.run_url)
    if step % LOG_EVERY:
        return
    history.losses.append({"step": step, **report.losses})
    if context.tracker is not None:
        metrics: dict[str, float] = {f"loss/{name}": value for name, value in report.losses.items()}
        metrics |= {f"gradient_norm/{name}": value for name, value in report.gradient_norms.items()}
        metrics |= {f"learning_rate/{name}": value for name, value in report.learning_rates.items()}
        metrics |= {f"seconds/{name}": value for name, value in report.seconds.items()}
        metrics |= {"seconds/step": seconds, "images_per_second": images_per_second}
        context.tracker.log_metrics(metrics, step)


def _check_health(
    context: StageContext,
    probe: HealthProbe,
    distillation: Distillation,
    report: StepReport,
    history: History,
    health: Health,
) -> None:
    """Measures, judges, and shows what is found; every rank sees the same."""
    measures = probe.measure(distillation.generator, distillation.mu_fake)
    measures |= {f"{name}_gradient_norm": norm for name, norm in report.gradient_norms.items()}
    history.health.append({"step": distillation.step_count, **measures})
    news = health.feed(history.health[-1])
    context.progress.update(health=measures, warnings=health.warnings)
    if context.rank == 0:
        for warning in news:
            context.progress.message(f"step {distillation.step_count}: {warning}")
    if context.tracker is not None:
        metrics = {f"health/{name}": value for name, value in measures.items() if not name.endswith("_gradient_norm")}
        context.tracker.log_metrics({**metrics, "health/warnings": len(health.warnings)}, distillation.step_count)


def _why_it_stopped(step: int, health: Health, checkpoint: int | None) -> str:
    kept = "no checkpoint had been made" if checkpoint is None else f"the checkpoint of step {checkpoint} is kept"
    found = "; also: ".join(health.warnings)
    return f"step {step}: the training is collapsing: {found}; {kept}, and the best generator"


def _show_evaluation(context: StageContext, scores: dict[str, float], best: BestGenerator, step: int) -> None:
    context.progress.update(fid=scores["FID"], best_fid=best.fid, best_step=best.step)
    if context.tracker is not None:
        context.tracker.log_metrics({f"evaluation/{name}": value for name, value in scores.items()}, step)


def _keep_samples(context: StageContext, images: Tensor, step: int) -> None:
    context.storage.write(f"samples/step-{step:06d}.safetensors", save({"images": images.contiguous()}))
    if context.tracker is not None:
        from dmd_trainer.evaluation.pictures import image_grid

        context.tracker.log_image(image_grid(images), "samples", step)
