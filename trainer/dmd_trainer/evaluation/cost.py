"""The cost of an image: network evaluations, counted, and seconds, measured."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from dmd_trainer.conditions.base import Conditions
from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.evaluation.measure import Sampler
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.runtime.context import StageContext

BATCH, ROUNDS = 64, 3


@dataclass(frozen=True)
class Cost:
    """The cost of one image.

    Attributes:
        evaluations: of the network.
        seconds: the median of the timed rounds.
    """

    evaluations: float
    seconds: float


@torch.inference_mode()
def sampling_cost(context: StageContext, teacher: Teacher, conditions: Conditions, sampler: Sampler) -> Cost:
    """The cost of an image in a batch that fits the device.

    Args:
        context: the stage's.
        teacher: whose network is counted where the sampler is no generator.
        conditions: what the images are made for.
        sampler: the teacher's solver, or a generator.

    Raises:
        InterruptedRunError: this process was told to stop.
    """
    batch = min(BATCH, context.manifest.spec.evaluation.batch_size)
    random = KeyedRandom(context.manifest.spec.training.seed, "timing", 0, range(batch))
    condition = conditions.embed(conditions.draw(random), context.device)
    noise = random.normal(teacher.sample_shape).to(context.device)
    network = sampler.denoiser.network if isinstance(sampler, Generator) else teacher.denoiser.network
    evaluated = 0

    def count(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        nonlocal evaluated
        evaluated += len(arguments[0])

    handle = network.register_forward_pre_hook(count)
    sampler(noise, condition)
    handle.remove()
    times = []
    for _ in range(ROUNDS):
        context.raise_if_stopped()
        _synchronize(context.device)
        started = time.perf_counter()
        sampler(noise, condition)
        _synchronize(context.device)
        times.append(time.perf_counter() - started)
    return Cost(evaluated / batch, statistics.median(times) / batch)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
