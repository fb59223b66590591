"""The generator as a stock diffusers pipeline, loadable with no code of ours."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmd_api.errors import naming
from dmd_api.parsing import read_json_object
from dmd_api.spec import Lora, Method
from dmd_trainer.diffusion.generator import generator_timesteps
from dmd_trainer.families.loading import check_loading
from dmd_trainer.families.networks import ship_code
from dmd_trainer.families.parts import check_parts
from dmd_trainer.families.table import EXPORTED
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.publishing.adapters import merged, save_lora
from dmd_trainer.publishing.licence import copy_licence
from dmd_trainer.publishing.model_card import PICTURE, Call, CardFacts, model_card


@naming("spec.teacher.uri")
def check_exportable(teacher: Teacher, method: Method) -> None:
    """Says before training what could not be exported after it.

    Raises:
        BadInputError: no stock pipeline calls such a network, or a part of the teacher's that the export has is missing
            or does not load.
    """
    family, schedule = teacher.family, teacher.denoiser.schedule
    check_parts(teacher.directory, family)
    if teacher.takes_text:  # others export their network alone
        check_loading(teacher.directory, {family.part: teacher.denoiser.network})
    family.check_exportable(teacher.denoiser.prediction, teacher.num_class_embeds, method)
    family.generator_scheduler(schedule, generator_timesteps(method, schedule))


def generator_network(teacher: Teacher, weights: Mapping[str, Tensor], lora: Lora | None) -> nn.Module:
    """The generator's plain network on the CPU, low-rank adapters multiplied into it."""
    if lora is not None:
        return merged(teacher, lora, dict(weights)).requires_grad_(False)
    network = teacher.trainable_network().cpu().requires_grad_(False)
    network.load_state_dict(dict(weights))
    return network


def export_pipeline(
    teacher: Teacher,
    weights: Mapping[str, Tensor],
    timesteps: Sequence[int],
    folder: Path,
    facts: CardFacts,
    lora: Lora | None = None,
    dtype: str = "float32",
) -> None:
    """Writes the pipeline: one call of the network (or a few) turns noise into an image.

    Args:
        teacher: whose architecture and schedule the generator has.
        weights: the generator's state dict.
        timesteps: the indices of the schedule that it is called at, noisiest first.
        folder: where the pipeline goes; what is there is replaced.
        facts: for the model card.
        lora: where adapters were trained: they are multiplied into the weights, and written below `lora/` too.
        dtype: what all weights are written in, as torch calls it.
    """
    network: Any = generator_network(teacher, weights, lora)
    family = teacher.family
    shutil.rmtree(folder, ignore_errors=True)
    scheduler = family.generator_scheduler(teacher.denoiser.schedule, timesteps)
    pipeline = family.generator_pipeline(teacher, network, scheduler)
    # Some of the teacher's parts are loaded in the format of their files: without one for all, they do not fit.
    pipeline.to(dtype=getattr(torch, dtype))
    pipeline.save_pretrained(folder, safe_serialization=True)
    if family.carries_code(network):
        ship_code(folder)
    if lora is not None:
        save_lora(pipeline, teacher, lora, dict(weights), folder / "lora", getattr(torch, dtype))
    copy_licence(teacher.directory, folder)
    if facts.picture is not None:
        (folder / PICTURE).write_bytes(facts.picture)
    call = Call(type(pipeline).__name__, dtype, family.call_arguments(len(timesteps)))
    (folder / "README.md").write_text(model_card(teacher, call, facts), "utf-8")


def call_arguments(pipeline: str, steps: int = 1) -> dict[str, Any]:
    """The arguments with which a pipeline of this class takes the generator's steps."""
    family = EXPORTED.get(pipeline)
    return {"num_inference_steps": steps} if family is None else family.call_arguments(steps)


def exported_steps(folder: Path) -> int:
    """How many steps the generator in a pipeline's folder takes: only the scheduler of several steps says how many."""
    path = folder / "scheduler" / "scheduler_config.json"
    scheduler = read_json_object(path) if path.exists() else {}
    return int(scheduler["original_inference_steps"]) if scheduler.get("_class_name") == "LCMScheduler" else 1
