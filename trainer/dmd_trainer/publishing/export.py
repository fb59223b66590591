"""The generator as a stock diffusers pipeline, loadable with no code of ours."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dmd_api.errors import naming
from dmd_api.spec import Lora, Method
from dmd_trainer.families.networks import ship_code
from dmd_trainer.families.parts import check_parts
from dmd_trainer.families.table import EXPORTED
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.publishing.adapters import merged, save_lora
from dmd_trainer.publishing.model_card import CardFacts, model_card
from dmd_trainer.runtime.sources import is_own

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")


@naming("spec.teacher.uri")
def check_exportable(teacher: Teacher, method: Method) -> None:
    """Says before training what could not be exported after it.

    Raises:
        BadInputError: no stock pipeline calls such a network, or a part of the teacher's that the export has is missing
            or does not load.
    """
    if teacher.takes_text:  # others export their network alone
        check_parts(teacher.directory, {teacher.family.part: teacher.denoiser.network})
    teacher.family.check_exportable(teacher.denoiser.prediction, teacher.num_class_embeds, method)


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
) -> None:
    """Writes the pipeline: one call of the network (or a few) turns noise into an image.

    Args:
        teacher: whose architecture and schedule the generator has.
        weights: the generator's state dict.
        timesteps: the indices of the schedule that it is called at, noisiest first.
        folder: where the pipeline goes; what is there is replaced.
        facts: for the model card.
        lora: where adapters were trained: they are multiplied into the weights, and written below `lora/` too.
    """
    network: Any = generator_network(teacher, weights, lora)
    family = teacher.family
    shutil.rmtree(folder, ignore_errors=True)
    pipeline = family.generator_pipeline(teacher, network, timesteps)
    pipeline.save_pretrained(folder, safe_serialization=True)
    if family.carries_code(network):
        ship_code(folder)
    if lora is not None:
        save_lora(pipeline, teacher, lora, dict(weights), folder / "lora")
    for pattern in LICENCES:
        for file in teacher.directory.glob(pattern):
            if file.is_file() and is_own(file, teacher.directory):  # what is published must not be somebody's secret
                shutil.copyfile(file, folder / file.name)
    name = type(pipeline).__name__
    (folder / "README.md").write_text(model_card(teacher, name, family.call_arguments(len(timesteps)), facts))


def call_arguments(pipeline: str, steps: int = 1) -> dict[str, Any]:
    """The arguments with which a pipeline of this class takes the generator's steps."""
    family = EXPORTED.get(pipeline)
    return {"num_inference_steps": steps} if family is None else family.call_arguments(steps)


def exported_steps(folder: Path) -> int:
    """How many steps the generator in a pipeline's folder takes: only the scheduler of several steps says how many."""
    path = folder / "scheduler" / "scheduler_config.json"
    scheduler = json.loads(path.read_text()) if path.exists() else {}
    return int(scheduler["original_inference_steps"]) if scheduler.get("_class_name") == "LCMScheduler" else 1
