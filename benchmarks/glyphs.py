"""What the glyph task's measure can tell: its floor, and what its teacher leaves to be desired.

The floor is the FID of real images against other real ones. A sampler that draws exactly from the data scores this and
no less; what is well above it is the sampler's own doing.
"""

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.one_step import SAMPLES, sampled
from benchmarks.one_step.pairs import TeacherPairs, make_pairs, pair_cost
from benchmarks.one_step.tasks import Task, glyphs_task, in_range
from benchmarks.one_step.teacher import teacher_samplers
from benchmarks.one_step.training import train
from dmd_trainer.data.formats.glyphs import SETS
from dmd_trainer.data.glyphs import draw_glyphs
from dmd_trainer.diffusion.denoiser import Denoiser
from dmd_trainer.diffusion.schedules import NoiseLevel, add_noise, middle_indices, per_sample
from dmd_trainer.dmd.losses import denoising_loss
from dmd_trainer.evaluation.features import ClassifierFeatures
from dmd_trainer.evaluation.metrics import frechet_distance

COUNTS = (2_000, 10_000, 50_000)
BATCH = 500
EVALUATIONS = {"Teacher, Euler": (18,), "Teacher, Heun": (35, 79)}
"""Those of the teacher's samplers whose FIDs are reported."""
STEPS, LEARNT_FROM, LOOKED_AT = 18, 5_000, 1_000
"""Heun's steps of ODE images; how many a network learns from, and others that it is compared with the teacher on."""
UPDATES, LEARNING_RATE, SEED = 1_000, 3e-4, 1_000
BANDS = ((0.0, 0.1), (0.1, 1.0), (1.0, 10.0), (10.0, 100.0))
"""Noise scales sigma, from and up to."""


def run() -> dict[str, Any]:
    """The floor; the teacher's FIDs, residual and nearest neighbours."""
    task = glyphs_task()
    result = floor()
    print(result, flush=True)
    fids = {}
    for name, samplers in teacher_samplers(task).items():
        for evaluations in EVALUATIONS[name]:
            found = sampled(task, name, evaluations, samplers[evaluations], 0, SAMPLES["glyphs"])
            print(f"{name}, {evaluations} evaluations: FID {found['fid']:.4f}", flush=True)
            fids[f"{name}, {evaluations} evaluations"] = found
    evaluations = pair_cost(STEPS) * (LEARNT_FROM + LOOKED_AT)
    pairs = make_pairs(task.teacher, evaluations, SEED, task.classes, STEPS)
    result |= {"teacher": fids, "residual": residual(task, pairs), "nearest": nearest(task, pairs)}
    print(result["residual"], result["nearest"], flush=True)
    return result


@torch.no_grad()
def floor() -> dict[str, Any]:
    """The floor for several numbers of samples, each against the 50,000 images that are held out."""
    extractor = ClassifierFeatures("glyphs-classifier")
    first, count = SETS["builtin://glyphs-held-out"]
    started, spent = time.process_time(), 0.0

    def features(start: int, images: int) -> Tensor:
        nonlocal spent
        found = []
        for begin in range(start, start + images, BATCH):
            before = time.process_time()
            drawn, _ = draw_glyphs(range(begin, min(begin + BATCH, start + images)))
            spent += time.process_time() - before
            found.append(extractor.extract(drawn)[0])
        return torch.cat(found)

    reference = features(first, count)
    others = features(first + count, max(COUNTS))
    return {
        "reference": count,
        "floor": {str(images): round(frechet_distance(reference, others[:images]), 5) for images in COUNTS},
        "millisecondsToDrawOne": round(1000 * spent / (count + max(COUNTS)), 3),
        "processorSeconds": round(time.process_time() - started, 1),
    }


def residual(task: Task, pairs: TeacherPairs) -> dict[str, float]:
    """How far the teacher's score is from that of its own ODE images, which distribution matching pulls by.

    A fake score of images that are exactly the teacher's should be the teacher. What a copy that learns from the
    teacher's images finds to improve is the residual: mean|D_copy - D_teacher| / mean|x - D_teacher| on images that it
    did not learn from, as health's `score_difference`, over all levels that matching draws and by band of sigma.
    """
    teacher, draws = task.teacher.denoiser, torch.Generator().manual_seed(SEED)
    learnt = torch.arange(LEARNT_FROM)

    def loss(student: Denoiser) -> Tensor:
        _, images, condition = pairs.at(learnt[torch.randint(len(learnt), (64,), generator=draws)])
        index = torch.randint(len(teacher.schedule), (64,), generator=draws)
        noise = torch.randn(images.shape, generator=draws)
        return denoising_loss(student, images, noise, teacher.schedule.at(index), condition)

    copy = train(teacher, loss, UPDATES, LEARNING_RATE)
    _, images, condition = pairs.at(torch.arange(LEARNT_FROM, LEARNT_FROM + LOOKED_AT))
    low, high = middle_indices(len(teacher.schedule))
    index = torch.randint(low, high, (LOOKED_AT,), generator=draws)
    level = teacher.schedule.at(index)
    moved, distance, gained = _apart(teacher, copy, images, level, condition, draws)
    found = {"all": float(moved.mean() / distance.mean()), "lossGained": float(gained.mean())}
    for bottom, top in BANDS:
        inside = (level.sigma >= bottom) & (level.sigma < top)
        found[f"sigma {bottom:g} to {top:g}"] = float(moved[inside].mean() / distance[inside].mean())
    return found


@torch.no_grad()
def _apart(
    teacher: Denoiser, copy: Denoiser, images: Tensor, level: NoiseLevel, condition: Any, draws: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Each sample's |D_copy - D_teacher|, |x - D_teacher| and by how much the copy's denoising loss is lower: [N]."""
    x_t = add_noise(images, torch.randn(images.shape, generator=draws), level)
    theirs, ours = teacher(x_t, level, condition), copy(x_t, level, condition)
    scale = per_sample(teacher.scalings(level).out, images)
    losses = [((found - images) / scale).square().flatten(1).mean(1) for found in (theirs, ours)]
    moved, distance = ((found - theirs).abs().flatten(1).mean(1) for found in (ours, images))
    return moved, distance, losses[0] - losses[1]


def nearest(task: Task, pairs: TeacherPairs) -> dict[str, float]:
    """How near the teacher's images are to ones it was trained on, beside how near real images are: nothing by heart.

    The root mean square distance of pixels in [-1, 1] to the nearest of the task's training images, its median and
    hundredth over images of the teacher and as many that were held out.
    """
    _, images, _ = pairs.at(torch.arange(LOOKED_AT))
    trained = in_range(task.images).flatten(1)
    found = {}
    for name, of in (("teacher", images), ("heldOut", in_range(task.reference()[:LOOKED_AT]))):
        distances = torch.cat([torch.cdist(part.flatten(1), trained).amin(1) for part in of.split(100)])
        of_pixels = distances / trained.shape[1] ** 0.5
        found |= {f"{name}Median": float(of_pixels.median()), f"{name}Hundredth": float(of_pixels.quantile(0.01))}
    return found
