"""The generator as a stock diffusers pipeline, loadable with no code of ours."""

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_trainer.denoiser import Prediction
from dmd_trainer.schedules import Schedule
from dmd_trainer.teachers import Teacher

CONSISTENCY_TIME_SCALE = 250.0
"""`CMStochasticIterativeScheduler` tells the network 250 ln(sigma)."""
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")


@dataclass(frozen=True)
class CardFacts:
    """What the model card says.

    Attributes:
        name: the run's.
        teacher: the teacher's URI.
        method: DMD or DMD2.
        manifest_hash: of the run.
        fid: the generator's and its teacher's, as text.
    """

    name: str
    teacher: str
    method: str
    manifest_hash: str
    fid: str


def check_exportable(teacher: Teacher) -> None:
    """Says before training what could not be exported after it.

    Raises:
        BadInputError: no stock pipeline calls such a network.
    """
    if teacher.denoiser.prediction != Prediction.EDM and teacher.num_class_embeds is not None:
        raise BadInputError(
            "spec.teacher.uri: diffusers has no pipeline for a class-conditional UNet2DModel with a "
            "variance-preserving schedule, so its generator could not be loaded without our code; use an EDM teacher, "
            "or an unconditional one"
        )
    if teacher.denoiser.prediction == Prediction.FLOW:
        raise BadInputError("spec.teacher.uri: diffusers has no flow-matching pipeline for a UNet2DModel")


def export_pipeline(
    teacher: Teacher, weights: Mapping[str, Tensor], timestep: int, folder: Path, facts: CardFacts
) -> None:
    """Writes the pipeline: one call of the network turns noise into an image.

    Args:
        teacher: whose architecture and schedule the generator has.
        weights: the generator's state dict.
        timestep: the index of the schedule that it is called at.
        folder: where the pipeline goes; what is there is replaced.
        facts: for the model card.
    """
    check_exportable(teacher)
    network = copy.deepcopy(teacher.denoiser.network).cpu()
    network.load_state_dict(dict(weights))
    schedule = teacher.denoiser.schedule
    shutil.rmtree(folder, ignore_errors=True)
    if schedule.sigma_data is not None:
        sigma = float(schedule.sigmas[timestep])
        if schedule.time_scale != CONSISTENCY_TIME_SCALE:
            _fold_time(network, schedule.time_scale * torch.tensor(sigma).log())
        # sigma_min = 0 makes the scheduler's boundary condition EDM's own c_skip and c_out.
        scheduler = CMStochasticIterativeScheduler(
            num_train_timesteps=2, sigma_min=0.0, sigma_max=sigma, sigma_data=schedule.sigma_data
        )
        pipeline: Any = ConsistencyModelPipeline(network, scheduler)
    else:
        pipeline = DDIMPipeline(network, _ddim(teacher, schedule, timestep))
    pipeline.save_pretrained(folder, safe_serialization=True)
    for pattern in LICENCES:
        for file in teacher.directory.glob(pattern):
            shutil.copy(file, folder / file.name)
    (folder / "README.md").write_text(_card(teacher, type(pipeline).__name__, facts))


def call_arguments(pipeline: str) -> dict[str, Any]:
    """How a pipeline of this class is called to take one step."""
    return {"num_inference_steps": 1} | ({"eta": 0.0} if pipeline == "DDIMPipeline" else {})


def _ddim(teacher: Teacher, schedule: Schedule, timestep: int) -> DDIMScheduler:
    """DDIM whose only step starts at `timestep` and ends at the image, unclipped: x_0 as the network predicts it."""
    config = json.loads((teacher.directory / "scheduler" / "scheduler_config.json").read_text())
    products = (schedule.alphas[: timestep + 1] ** 2).cpu()
    betas = 1 - products / torch.cat([products.new_ones(1), products[:-1]])
    return DDIMScheduler(
        num_train_timesteps=timestep + 1,
        trained_betas=betas.tolist(),
        prediction_type=config.get("prediction_type", "epsilon"),
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
    )


@torch.no_grad()
def _fold_time(network: UNet2DModel, time: Tensor) -> None:
    """Makes the time embedding that of `time`, whatever the scheduler says: the generator knows one noise level."""
    projected = network.time_proj(time.reshape(1).float())
    first = network.time_embedding.linear_1
    first.bias += (projected.to(first.weight) @ first.weight.T)[0]
    first.weight.zero_()


def _card(teacher: Teacher, pipeline: str, facts: CardFacts) -> str:
    licence = _teacher_licence(teacher.directory)
    arguments = ", ".join(f"{key}={value}" for key, value in call_arguments(pipeline).items())
    labels = ", class_labels=3" if teacher.num_class_embeds is not None else ""
    return f"""---
license: {licence}
library_name: diffusers
tags: [one-step, distilled, dmd]
---
# {facts.name}

A one-step generator, distilled from `{facts.teacher}` with {facts.method} (Distribution Matching Distillation,
arXiv 2311.18828) by dmd-operator. One network evaluation makes an image.

```python
from diffusers import {pipeline}

pipeline = {pipeline}.from_pretrained("THIS_FOLDER")
image = pipeline({arguments}{labels}).images[0]
```

- FID: {facts.fid}
- Manifest: {facts.manifest_hash}
- Licence: the teacher's, {licence}.
"""


def _teacher_licence(directory: Path) -> str:
    card = directory / "README.md"
    if card.exists():
        for line in card.read_text().splitlines():
            if line.startswith("license:"):
                return line.removeprefix("license:").strip()
    return "other"
