"""The training loop: steps, and between them evaluation, samples, health, checkpoints and progress."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from dmd_api.errors import InterruptedRunError, TrainingCollapsedError, TrainingDivergedError
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.dmd.distillation import Distillation, StepReport
from dmd_trainer.evaluation.grid import Grid
from dmd_trainer.health.probe import HealthProbe
from dmd_trainer.health.rules import Health
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.training.best import BestGenerator
from dmd_trainer.training.cadence import Cadence
from dmd_trainer.training.checkpoints import Checkpointer
from dmd_trainer.training.history import History

Evaluate = Callable[[Generator], dict[str, float]]
"""Measures a generator together with all ranks: metrics by their names in the manifest, "FID" among them."""


@dataclass(frozen=True)
class Instruments:
    """Instruments that look at the generator while it trains, and change nothing of the training.

    Attributes:
        evaluate: measures its quality.
        grid: draws its images.
        probe: measures its health.
    """

    evaluate: Evaluate
    grid: Grid
    probe: HealthProbe


class TrainingLoop:
    """Trains to the manifest's last update, from the newest intact checkpoint on.

    Args:
        context: the stage's.
        distillation: what is trained.
        checkpointer: saves and loads its state.
        instruments: what looks at it.

    Attributes:
        best: the best generator so far.
        history: what was measured on the way.
    """

    def __init__(
        self, context: StageContext, distillation: Distillation, checkpointer: Checkpointer, instruments: Instruments
    ) -> None:
        self._context, self._distillation = context, distillation
        self._checkpointer, self._instruments = checkpointer, instruments
        spec = context.manifest.spec
        self._cadence = Cadence.of(spec)
        self._health = Health(spec)
        self._stop_on_collapse = spec.training.stop_on_collapse
        self._paused = 0.0
        self.best, self.history = self._resume()
        self._first_step = distillation.step_count

    def run(self) -> None:
        """Trains to the end.

        Raises:
            InterruptedRunError: a rank was told to stop; a checkpoint of the last whole step is in storage.
            TrainingDivergedError: see `Distillation.step`; the checkpoints from before it are kept.
            TrainingCollapsedError: the run is collapsing, and `training.stopOnCollapse` is set; likewise.
        """
        distillation, progress, total = self._distillation, self._context.progress, self._cadence.total
        self._start_health()
        progress.update(activity="training", unit="generator updates", total=total, step=self._first_step)
        progress.update(warnings=self._health.warnings)
        started = time.perf_counter()
        while True:
            self._do_what_is_due()
            if self._cadence.finished(distillation.step_count):
                self._checkpointer.wait()
                return
            report = self._step()
            seconds_per_step = (time.perf_counter() - started - self._paused) / (
                distillation.step_count - self._first_step
            )
            progress.update(
                eta_seconds=seconds_per_step * (total - distillation.step_count),
                checkpoint_step=self._checkpointer.newest_step,
            )
            if report.stop:
                self._save()
                self._checkpointer.wait()
                raise InterruptedRunError(
                    f"interrupted at step {distillation.step_count} of {total}; a checkpoint is kept, "
                    "the next run goes on"
                )

    def _resume(self) -> tuple[BestGenerator, History]:
        context, distillation = self._context, self._distillation
        context.progress.update(activity="looking for a checkpoint")
        best = BestGenerator(context.storage, writes=context.rank == 0)
        state = distillation.state()
        manifest = self._checkpointer.load_newest(state)
        if manifest is None:
            return best, History()
        distillation.load_state(state, manifest["step"])
        context.progress.message(f"going on from step {manifest['step']} of {self._cadence.total}")
        history = History(**manifest["extra"]["history"])
        if history.evaluations:
            context.progress.update(fid=history.evaluations[-1]["FID"], best_fid=best.fid, best_step=best.step)
        return best, history

    def _start_health(self) -> None:
        """Judges what earlier attempts measured, or the start."""
        distillation = self._distillation
        if not self.history.health:
            start = self._instruments.probe.measure(distillation.generator, distillation.mu_fake)
            self.history.health.append({"step": distillation.step_count, **start})
        for measures in self.history.health:
            self._health.feed(measures)

    def _do_what_is_due(self) -> None:
        """Evaluates, draws and saves; every rank takes part, since a sharded generator is gathered by all of them."""
        step, due = self._distillation.step_count, self._cadence
        if due.evaluates(step) and not self.history.evaluated(step):
            self._evaluate(step)
        if due.samples(step):
            images = self._instruments.grid.draw(self._distillation.ema_generator)
            if self._context.rank == 0:
                self._instruments.grid.keep(images, step)
        # A run that will not be let collapse keeps the checkpoints from before it went wrong.
        worth_keeping = step > self._first_step and not (self._stop_on_collapse and self._health.endangered)
        if due.saves(step) and (worth_keeping or due.finished(step)):
            self._save()

    def _evaluate(self, step: int) -> None:
        started, progress = time.perf_counter(), self._context.progress
        progress.update(activity=f"evaluating step {step}")
        scores = self._instruments.evaluate(self._distillation.ema_generator)
        self.history.evaluations.append({"step": step, **scores})
        self.best.offer(step, scores["FID"], self._distillation.ema_weights)
        progress.update(fid=scores["FID"], best_fid=self.best.fid, best_step=self.best.step)
        if self._context.tracker is not None:
            metrics = {f"evaluation/{name}": value for name, value in scores.items()}
            self._context.tracker.log_metrics(metrics, step)
        progress.update(activity="training")
        self._paused += time.perf_counter() - started

    def _save(self) -> None:
        distillation = self._distillation
        self._checkpointer.save(distillation.state(), distillation.step_count, {"history": self.history.values()})
        if self._context.tracker is not None:
            self._context.tracker.keep_unsent()

    def _step(self) -> StepReport:
        """Trains by one update, shows it, and measures health where that is due."""
        distillation = self._distillation
        started = time.perf_counter()
        compiles = self._context.manifest.spec.training.compile and distillation.step_count == self._first_step
        try:
            with self._context.progress.doing("compiling the networks") if compiles else nullcontext():
                report = distillation.step(stop_requested=self._context.should_stop())
        except TrainingDivergedError:
            self._checkpointer.wait()
            raise
        self._show(report, time.perf_counter() - started)
        if self._cadence.logs(distillation.step_count):
            self._check_health(report)
        if self._stop_on_collapse and self._health.collapsing:
            self._checkpointer.wait()
            raise TrainingCollapsedError(self._why_it_stopped())
        return report

    def _show(self, report: StepReport, seconds: float) -> None:
        context, step = self._context, self._distillation.step_count
        images_per_second = context.manifest.spec.training.batch_size / seconds
        context.progress.update(step=step, losses=report.losses, images_per_second=images_per_second)
        if context.tracker is not None:
            context.progress.update(mlflow_run=context.tracker.run_id, mlflow_run_url=context.tracker.run_url)
        if not self._cadence.logs(step):
            return
        self.history.losses.append({"step": step, **report.losses})
        if context.tracker is not None:
            metrics: dict[str, float] = {f"loss/{name}": value for name, value in report.losses.items()}
            metrics |= {f"gradient_norm/{name}": value for name, value in report.gradient_norms.items()}
            metrics |= {f"learning_rate/{name}": value for name, value in report.learning_rates.items()}
            metrics |= {f"seconds/{name}": value for name, value in report.seconds.items()}
            metrics |= {"seconds/step": seconds, "images_per_second": images_per_second}
            context.tracker.log_metrics(metrics, step)

    def _check_health(self, report: StepReport) -> None:
        """Measures, judges, and shows what is found; every rank sees the same."""
        context, distillation, health = self._context, self._distillation, self._health
        step = distillation.step_count
        measures = self._instruments.probe.measure(distillation.generator, distillation.mu_fake)
        of_step = {f"{name}_gradient_norm": norm for name, norm in report.gradient_norms.items()}
        if (loss := report.losses.get("gan_discriminator")) is not None:
            of_step["discriminator_loss"] = loss
        self.history.health.append({"step": step, **measures, **of_step})
        news = health.feed(self.history.health[-1])
        context.progress.update(health={**measures, **of_step}, warnings=health.warnings)
        if context.rank == 0:
            for warning in news:
                context.progress.message(f"step {step}: {warning}")
        if context.tracker is not None:
            metrics = {f"health/{name}": value for name, value in measures.items()}
            context.tracker.log_metrics({**metrics, "health/warnings": len(health.warnings)}, step)

    def _why_it_stopped(self) -> str:
        step, checkpoint = self._distillation.step_count, self._checkpointer.newest_step
        kept = "no checkpoint had been made" if checkpoint is None else f"the checkpoint of step {checkpoint} is kept"
        found = "; also: ".join(self._health.warnings)
        return f"step {step}: the training is collapsing: {found}; {kept}, and the best generator"
