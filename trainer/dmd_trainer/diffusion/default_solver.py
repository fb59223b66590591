"""The solver that a teacher's own images are drawn with, and the network evaluations it takes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dmd_api.spec import Method
from dmd_trainer.diffusion.prediction import Prediction


class SolverSteps(NamedTuple):
    """A solver by its name in the manifest, and how many steps it takes."""

    name: str
    steps: int


def fitting_solvers(prediction: Prediction) -> tuple[str, ...]:
    """The names of the solvers that fit a teacher's schedule; the first is the default."""
    match prediction:
        case Prediction.EDM:
            return ("Heun",)
        case Prediction.FLOW:
            return ("FlowMatchEuler",)
        case _:
            return ("DDIM", "PNDM", "DPMSolverMultistep")


def default_solver(prediction: Prediction) -> SolverSteps:
    """The solver that stands for a teacher whose manifest names none.

    EDM's teachers are measured with 18 steps of Heun's second-order solver, as their authors do (arXiv 2206.00364,
    table 2). The others' solvers are of first order, and diffusers' pipelines take 50 steps of them by default.
    """
    name = fitting_solvers(prediction)[0]
    return SolverSteps(name, 18 if name == "Heun" else 50)


def teacher_sampling(method: Method, prediction: Prediction) -> SolverSteps:
    """The solver whose images stand for the teacher: the pairs' own where there are pairs, otherwise the default."""
    if method.regression is not None:
        return SolverSteps(method.regression.solver, method.regression.solver_steps)
    return default_solver(prediction)


def evaluations(sampling: SolverSteps, scheduler: Mapping[str, Any]) -> int:
    """How often a solver calls the network for an image, without guidance.

    Args:
        sampling: the solver and its steps.
        scheduler: the teacher's `scheduler_config.json`.
    """
    match sampling.name:
        case "Heun":
            return 2 * sampling.steps - 1
        case "PNDM":  # starts by calling it twice in the first step, or by three Runge-Kutta steps of four calls each
            return sampling.steps + (1 if scheduler.get("skip_prk_steps", False) else 9)
        case _:
            return sampling.steps
