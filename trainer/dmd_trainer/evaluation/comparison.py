"""The teacher, the untrained generator and the distilled one, compared: from their samplers to the report."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dmd_api.manifest import manifest_hash
from dmd_trainer.conditions.base import Conditions
from dmd_trainer.diffusion.default_solver import teacher_sampling
from dmd_trainer.diffusion.generator import Generator, generator_timesteps
from dmd_trainer.diffusion.solvers import teacher_solver
from dmd_trainer.evaluation.cost import sampling_cost
from dmd_trainer.evaluation.evaluator import Evaluator
from dmd_trainer.evaluation.measure import Measured, Sampler, score
from dmd_trainer.evaluation.report import Report, ThreeWay, TwoWay, check_gate


class Comparison:
    """Measures and times the three samplers of a run.

    Args:
        evaluator: measures them.
        conditions: what training draws its conditions from; timed images are made for them.
        network: the distilled generator's, on the device.
    """

    def __init__(self, evaluator: Evaluator, conditions: Conditions, network: nn.Module) -> None:
        context, teacher = evaluator.context, evaluator.teacher
        self._evaluator, self._conditions = evaluator, conditions
        self.timesteps = generator_timesteps(context.manifest.spec.method, teacher.denoiser.schedule)
        self.teacher, self._teacher_name = self._teacher_sampler()
        self.initial = Generator(teacher.denoiser, self.timesteps)
        self.generator = Generator(teacher.denoiser.with_network(network, context.autocast), self.timesteps)

    def measure(self) -> dict[str, Measured]:
        """Measures all three, on all ranks together.

        Raises:
            InterruptedRunError: this process was told to stop.
        """
        return {
            "teacher": self._evaluator.measure_teacher(self.teacher, self._teacher_name),
            "initial": self._evaluator.measure(self.initial, "the untrained generator"),
            "generator": self._evaluator.measure(self.generator, "the distilled generator"),
        }

    def report(self, measured: Mapping[str, Measured], best: Mapping[str, Any]) -> Report:
        """Scores what was measured, times teacher and generator, and holds the scores against the gates; on rank 0.

        Args:
            measured: what `measure` returned.
            best: the index of the best generator, as `load_best` returns it.
        """
        context, teacher = self._evaluator.context, self._evaluator.teacher
        spec = context.manifest.spec
        context.progress.update(activity="comparing with real images")
        real = self._evaluator.real_features()
        scores = {who: score(found, real, spec.evaluation.metrics) for who, found in measured.items()}

        def three_way(metric: str) -> ThreeWay | None:
            values = {who: found[metric] for who, found in scores.items() if metric in found}
            return ThreeWay(**values) if len(values) == len(scores) else None

        context.progress.update(activity="timing teacher and generator")
        of_teacher = sampling_cost(context, teacher, self._conditions, self.teacher)
        of_generator = sampling_cost(context, teacher, self._conditions, self.generator)
        fid = three_way("FID")
        assert fid is not None
        return Report(
            name=context.manifest.metadata.name,
            method=spec.method.name if spec.method.fake_score_updates else "regression",
            manifest_hash=manifest_hash(context.manifest),
            seed=spec.training.seed,
            samples=spec.evaluation.samples,
            features=self._evaluator.extractor.name,
            fid=fid,
            precision=three_way("Precision"),
            recall=three_way("Recall"),
            coverage=three_way("Coverage"),
            accuracy=three_way("Accuracy"),
            clip_score=three_way("CLIPScore"),
            network_evaluations=TwoWay(teacher=of_teacher.evaluations, generator=of_generator.evaluations),
            seconds_per_image=TwoWay(teacher=of_teacher.seconds, generator=of_generator.seconds),
            device=torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else "cpu",
            gates=[check_gate(gate, scores["generator"][gate.metric]) for gate in spec.gates],
            best_step=best["step"],
            generator_sha256=best["sha256"],
        )

    def _teacher_sampler(self) -> tuple[Sampler, str]:
        """The sampler that stands for the teacher's quality, the pairs' own where there are pairs, and its name."""
        teacher, spec = self._evaluator.teacher, self._evaluator.context.manifest.spec
        name, steps = teacher_sampling(spec.method, teacher.denoiser.prediction)
        solver = teacher_solver(teacher.denoiser, name, steps, spec.teacher.guidance_scale, self._conditions.negative)
        return solver, f"{name}-{steps}"
