"""The network evaluations of a run, from its manifest and its teacher's noise schedule."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from dmd_api.manifest import DMDDistillation
from dmd_api.spec import Spec
from dmd_api.stages import Stage
from dmd_trainer.diffusion.default_solver import evaluations, teacher_sampling
from dmd_trainer.diffusion.prediction import Prediction, prediction_of


@dataclass(frozen=True)
class Work:
    """Network evaluations of a run, each of one sample, by stage.

    Attributes:
        forward: without gradients.
        backward: forward and backward passes.
        classified: as far as the GAN's head, without gradients.
        classified_backward: and with them.
        decoded: latents that the VAE decodes without gradients.
        decoded_backward: latents that gradients pass the VAE's decoder for.
    """

    forward: dict[Stage, float]
    backward: dict[Stage, float]
    classified: dict[Stage, float]
    classified_backward: dict[Stage, float]
    decoded: dict[Stage, float]
    decoded_backward: dict[Stage, float]


class StepWork(NamedTuple):
    """Network evaluations for one sample of a training step's batch.

    Attributes:
        forward: without gradients; where the generator has several steps, on average over those that are drawn.
        backward: forward and backward passes.
        classified: as far as the GAN's head, without gradients.
        classified_backward: and with them.
    """

    forward: float
    backward: float
    classified: float = 0.0
    classified_backward: float = 0.0


def count_work(manifest: DMDDistillation, scheduler: Mapping[str, Any] | None = None) -> Work:
    """Counts the evaluations of all stages.

    Args:
        manifest: says what is run.
        scheduler: the teacher's `scheduler_config.json`, whose default solver draws its images where the manifest has
            no pairs; None where it is not known, and a variance-preserving one is assumed.
    """
    spec = manifest.spec
    training, method, evaluation = spec.training, spec.method, spec.evaluation
    regression = method.regression
    sampling = teacher_sampling(method, prediction_of(scheduler) if scheduler else Prediction.EPSILON)
    solution = _guided(spec) * evaluations(sampling, scheduler or {})
    updates = training.generator_updates * training.batch_size
    measured = (training.generator_updates // evaluation.every + 2) * evaluation.samples
    step = count_step(spec)
    compared = updates if regression is not None and regression.loss == "LPIPS" else 0
    return Work(
        forward={
            Stage.PREPARE: float(solution * regression.pairs) if regression else 0.0,
            Stage.DISTILL: updates * step.forward + float(measured * method.generator_steps),
            Stage.EVALUATE: float(evaluation.samples * (solution + 2 * method.generator_steps)),
        },
        backward={Stage.DISTILL: float(updates * step.backward)},
        classified={Stage.DISTILL: updates * step.classified},
        classified_backward={Stage.DISTILL: updates * step.classified_backward},
        decoded={Stage.DISTILL: float(compared + measured), Stage.EVALUATE: 2.0 * evaluation.samples},
        decoded_backward={Stage.DISTILL: float(compared)},
    )


def count_step(spec: Spec) -> StepWork:
    """Counts one step: the generator's update, and the fake score's that follow it."""
    method = spec.method
    regression = method.regression is not None
    if not method.fake_score_updates:  # by the regression alone
        return StepWork(0.0, float(regression))
    # Backward simulation: each sample's own step among n is reached by those before it, (n - 1) / 2 on average.
    simulated = (method.generator_steps - 1) / 2
    # Teacher and fake score at x_t, and the generator for each further fake-score update.
    forward = simulated + _guided(spec) + 1 + (method.fake_score_updates - 1) * (1 + simulated)
    if method.guidance_noise is not None:  # the teacher at its noise too
        forward += 1
    # The GAN head's passes: one in the generator's update, and one of real images in each of the fake score's, where
    # generated ones are classified as they are denoised, unless the head's noise is bounded.
    each = 0 if method.gan is None else 1 if method.gan.max_timestep is None else 2
    classified = each and 1 + each * method.fake_score_updates
    ratio = method.divergence != "ReverseKL"
    return StepWork(forward, float(1 + regression + method.fake_score_updates), float(ratio), float(classified))


def _guided(spec: Spec) -> int:
    """Evaluations for one of the guided teacher's: with and without the condition."""
    return 2 if spec.teacher.guidance_scale != 1 else 1
