"""Rehearses a run's end: a small copy of the teacher is sampled, exported, loaded by diffusers alone and compared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dmd_api.errors import BadInputError, naming, refusing
from dmd_api.spec import Spec
from dmd_trainer.diffusion.default_solver import teacher_sampling
from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.diffusion.generator import Generator, generator_timesteps
from dmd_trainer.diffusion.solvers import teacher_solver
from dmd_trainer.dmd.lora import add_lora
from dmd_trainer.families.loading import META
from dmd_trainer.families.miniature import save_miniature
from dmd_trainer.families.pipelines import SAVE_AGAIN, absent_parts, read_index
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.families.text_encoder import TextEncoder
from dmd_trainer.publishing.export import export_pipeline
from dmd_trainer.publishing.model_card import CardFacts

FIELD = "spec.teacher.uri"
PROMPT = "a red apple"
SOLVER_STEPS = 2
"""The fewest that use every part of a solver."""
TOLERANCE = 2 / 255
"""Of a pixel in [0, 1], in float32; narrower formats round each of a network's layers."""
EPSILONS = 64
"""Roundings of a narrow format that a pixel may differ by."""
REMEDY = "docs/teachers.md says which teachers are understood"


class SampleConditions(NamedTuple):
    """The condition of one sample, each [1, ...], and the one that guidance leads away from."""

    condition: Condition
    negative: Condition | None


def sample_conditions(teacher: Teacher, spec: Spec, device: torch.device) -> SampleConditions:
    """The conditions of the first sample by the teacher's own text encoders, or of the first class.

    Args:
        teacher: whose conditions they are.
        spec: says how many classes there are.
        device: on the meta device they have shapes only.

    Raises:
        BadInputError: the encoders cannot be loaded, or the teacher has another number of classes.
    """
    if teacher.takes_text:
        with refusing(f"{FIELD}: {teacher.directory}: its text encoders cannot encode a prompt", SAVE_AGAIN):
            encoder = TextEncoder(teacher.directory, device)
            found = SampleConditions(encoder.encode([PROMPT]), encoder.negative())
    else:
        labels = spec.data.class_labels
        conditions = teacher.conditions(None if labels is None else labels.count)
        found = SampleConditions(conditions.embed(conditions.in_turn(1), device), conditions.negative)

    def whole(condition: Condition) -> dict[str, torch.Tensor]:
        return {key: value.to(device) for key, value in {**condition, **teacher.added_conditions}.items()}

    return SampleConditions(whole(found.condition), None if found.negative is None else whole(found.negative))


def check_fit(teacher: Teacher, condition: Condition) -> None:
    """Calls network and VAE for their shapes alone.

    Args:
        teacher: on the meta device.
        condition: of one sample, there too.

    Raises:
        BadInputError: the parts do not fit each other.
    """
    with refusing(
        f"{FIELD}: {teacher.directory}: its parts do not fit each other",
        "save the pipeline again from parts that were trained together",
    ):
        noise = torch.zeros(1, *teacher.sample_shape, device=META)
        level = teacher.denoiser.schedule.at(torch.tensor([len(teacher.denoiser.schedule) // 2]))
        image = teacher.autoencoder.decode(teacher.denoiser(noise, level, condition))
        if tuple(image.shape[1:]) != teacher.image_shape:
            raise ValueError(f"images are {tuple(image.shape[1:])} and not {teacher.image_shape}")


def sample_once(teacher: Teacher, spec: Spec, given: SampleConditions, noise: torch.Tensor) -> None:
    """Some steps of the teacher's solver, and the untrained generator's call, both decoded.

    Args:
        teacher: with weights.
        spec: the manifest's.
        given: the conditions of each sample.
        noise: [B, C, H, W], on the teacher's device.

    Raises:
        BadInputError: they make NaN or infinity, or the solver does not fit the teacher.
    """
    name, steps = teacher_sampling(spec.method, teacher.denoiser.prediction)
    solver = teacher_solver(
        teacher.denoiser, name, min(steps, SOLVER_STEPS), spec.teacher.guidance_scale, given.negative
    )
    generator = Generator(teacher.denoiser, generator_timesteps(spec.method, teacher.denoiser.schedule))
    with torch.no_grad():
        for what, sampler in ((f"its {name} solver", solver), ("a call of the untrained generator", generator)):
            sample = sampler(noise, given.condition)
            if not torch.isfinite(sample).all():
                raise BadInputError(
                    f"{FIELD}: {what} makes NaN; its weights or settings are damaged, or overflow in "
                    "spec.training.precision or spec.teacher.weights: use fp32"
                )
            if not torch.isfinite(teacher.autoencoder.decode(sample)).all():
                raise BadInputError(
                    f"{FIELD}: vae/ decodes to NaN; its weights or settings are damaged, or overflow in 16 bits: set "
                    "force_upcast in its config.json"
                )


@naming(FIELD)
def rehearse_end(teacher: Teacher, spec: Spec, folder: Path) -> None:
    """Samples, exports, loads and calls a small copy of the teacher as the run will the teacher itself.

    Args:
        teacher: loaded, if only on the meta device.
        spec: the manifest's.
        folder: for the copy and its export.

    Raises:
        BadInputError: a step fails, or a stranger's pipeline draws other pixels than the trainer.
    """
    with refusing(f"{FIELD}: {teacher.directory}: a small copy of its parts cannot be made", REMEDY):
        save_miniature(teacher.directory, teacher.family, folder / "teacher")
    small = load_teacher(folder / "teacher")
    given = sample_conditions(small, spec, torch.device("cpu"))
    timesteps = generator_timesteps(spec.method, small.denoiser.schedule)
    noise = torch.randn(1, *small.sample_shape, generator=_noise())
    with refusing(f"{FIELD}: {teacher.directory}: a small copy of it cannot be sampled", REMEDY):
        sample_once(small, spec, given, noise)
        own = _own_pixels(small, timesteps, given.condition)
    with refusing(f"{FIELD}: {teacher.directory}: a generator like it cannot be exported and called", REMEDY):
        weights = small.denoiser.network.state_dict()
        if spec.method.lora is not None:
            adapted = small.trainable_network()
            add_lora(adapted, spec.method.lora, small.family.adapted_layers)
            weights = adapted.state_dict()
        facts = CardFacts("rehearsal", spec.teacher.uri, "none", "none", "none")
        export_pipeline(small, weights, timesteps, folder / "generator", facts, spec.method.lora, spec.export.dtype)
        foreign, dtype = _foreign_pixels(small, folder / "generator", len(timesteps))
    worst = float(np.abs(own - foreign).max())
    if not worst <= max(TOLERANCE, EPSILONS * torch.finfo(dtype).eps if dtype.itemsize < 4 else 0):
        raise BadInputError(
            f"{FIELD}: {teacher.directory}: diffusers draws other pixels with the exported generator than the trainer "
            f"(up to {worst * 255:.0f} of 255); a setting of its scheduler or VAE is not understood: {REMEDY}"
        )


def _noise() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(0)


def _own_pixels(teacher: Teacher, timesteps: tuple[int, ...], condition: Condition) -> np.ndarray:
    """The untrained generator's picture [H, W, C] in [0, 1], all of its noise from one stream, as pipelines draw it."""
    random = _noise()
    noise = torch.randn(1, *teacher.sample_shape, generator=random)
    generator = Generator(
        teacher.denoiser, timesteps, lambda first, _: torch.randn(first.shape, generator=random).to(first)
    )
    with torch.no_grad():
        image = teacher.autoencoder.decode(generator(noise, condition))[0]
    return (image / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()


def _foreign_pixels(teacher: Teacher, folder: Path, steps: int) -> tuple[np.ndarray, torch.dtype]:
    """The exported pipeline's picture [H, W, C] in [0, 1] of the same noise, by diffusers alone, and its dtype."""
    from diffusers import DiffusionPipeline

    from dmd_trainer.publishing.pyfunc import weights_dtype  # imports mlflow, which later stages' workers do without

    family = teacher.family
    own_code = family.carries_code(teacher.denoiser.network)
    pipeline: Any = DiffusionPipeline.from_pretrained(
        folder, torch_dtype=weights_dtype(folder), trust_remote_code=own_code, **absent_parts(read_index(folder))
    )
    pipeline.set_progress_bar_config(disable=True)
    arguments: Mapping[str, Any] = {"prompt": PROMPT} if teacher.takes_text else {"batch_size": 1}
    if teacher.num_class_embeds is not None:
        arguments = {**arguments, "class_labels": [0]}
    images = pipeline(**arguments, **family.call_arguments(steps), generator=_noise(), output_type="np").images
    return np.asarray(images[0], np.float32), getattr(pipeline, family.part).dtype
