"""How many network evaluations a run is, from its manifest alone."""

from dataclasses import dataclass

from dmd_api.manifest import DMDDistillation
from dmd_api.runtime import Stage


@dataclass(frozen=True)
class Work:
    """Network evaluations of a run, each of one sample, by stage.

    Attributes:
        forward: without gradients.
        backward: forward and backward passes.
        decoded: latents that the VAE decodes without gradients.
        decoded_backward: latents that gradients pass the VAE's decoder for.
    """

    forward: dict[Stage, float]
    backward: dict[Stage, float]
    decoded: dict[Stage, float]
    decoded_backward: dict[Stage, float]


def count_work(manifest: DMDDistillation) -> Work:
    """Counts them."""
    spec = manifest.spec
    training, method, evaluation = spec.training, spec.method, spec.evaluation
    guided = 2 if spec.teacher.guidance_scale != 1 else 1
    regression = method.regression
    solver, steps = (regression.solver, regression.solver_steps) if regression else ("Heun", 18)
    solution = guided * (2 * steps - 1 if solver == "Heun" else steps)
    updates = training.generator_updates * training.batch_size
    measured = (training.generator_updates // evaluation.every + 2) * evaluation.samples
    # Backward simulation: a step among `generatorSteps` is reached by those before it, (n - 1) / 2 on average.
    simulated = (method.generator_steps - 1) / 2
    # Teacher and fake score at x_t, and the generator for each further fake-score update.
    matching = guided + 1 + simulated + (method.fake_score_updates - 1) * (1 + simulated)
    if not method.fake_score_updates:  # by the regression alone
        matching = 0.0
    forward = {
        Stage.PREPARE: float(solution * regression.pairs) if regression else 0.0,
        Stage.DISTILL: updates * matching + float(measured * method.generator_steps),
        Stage.EVALUATE: float(evaluation.samples * (solution + 2 * method.generator_steps)),
    }
    # The GAN head's passes: one in the generator's update, two, real and generated, in each of the fake score's.
    classified = 1 + 2 * method.fake_score_updates if method.gan is not None else 0
    generated = 1 if method.fake_score_updates else 0
    trained = generated + (regression is not None) + method.fake_score_updates + classified
    compared = updates if regression is not None and regression.loss == "LPIPS" else 0
    return Work(
        forward,
        {Stage.DISTILL: float(updates * trained)},
        {Stage.DISTILL: float(compared + measured), Stage.EVALUATE: 2.0 * evaluation.samples},
        {Stage.DISTILL: float(compared)},
    )
