"""The generator as a stock diffusers pipeline, loadable with no code of ours."""

import inspect
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UNet2DModel,
)
from torch import Tensor, nn

from dmd_api.errors import BadInputError
from dmd_api.spec import Lora, Method
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.diffusion.schedules import Schedule
from dmd_trainer.families.networks import ship_code
from dmd_trainer.families.networks.song_unet import SongUNet
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.families.text_encoder import PIPELINES
from dmd_trainer.publishing.adapters import merged, save_lora
from dmd_trainer.publishing.model_card import CardFacts, model_card

CONSISTENCY_TIME_SCALE = 250.0
"""`CMStochasticIterativeScheduler` tells the network 250 ln(sigma)."""
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")


def check_exportable(teacher: Teacher, method: Method) -> None:
    """Says before training what could not be exported after it.

    Raises:
        BadInputError: no stock pipeline calls such a network.
    """
    steps = method.generator_steps
    if teacher.takes_text:
        if steps > 1 and teacher.denoiser.prediction == Prediction.FLOW:
            raise BadInputError(
                "spec.method.generatorSteps: diffusers has no sampler that adds fresh noise between the steps of a "
                "flow-matching generator; leave it at 1"
            )
        return
    if steps > 1:
        raise BadInputError(
            "spec.method.generatorSteps: diffusers has no pipeline that calls a UNet2DModel at these noise levels; "
            "leave it at 1 for a pixel teacher"
        )
    if teacher.denoiser.prediction != Prediction.EDM and teacher.num_class_embeds is not None:
        raise BadInputError(
            "spec.teacher.uri: diffusers has no pipeline for a class-conditional UNet2DModel with a "
            "variance-preserving schedule, so its generator could not be loaded without our code; use an EDM teacher, "
            "or an unconditional one"
        )
    if teacher.denoiser.prediction == Prediction.FLOW:
        raise BadInputError("spec.teacher.uri: diffusers has no flow-matching pipeline for a UNet2DModel")


def generator_network(teacher: Teacher, weights: Mapping[str, Tensor], lora: Lora | None) -> nn.Module:
    """The generator's plain network on the CPU, low-rank adapters multiplied into it."""
    if lora is not None:
        return merged(teacher.trainable_network(), lora, dict(weights)).requires_grad_(False)
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
    schedule = teacher.denoiser.schedule
    shutil.rmtree(folder, ignore_errors=True)
    if teacher.takes_text:
        pipeline: Any = _text_pipeline(teacher, network, timesteps)
    elif schedule.sigma_data is not None:
        pipeline = _edm_pipeline(network, schedule, timesteps[0])
    else:
        pipeline = DDIMPipeline(network, _ddim(teacher, schedule, timesteps[0]))
    pipeline.save_pretrained(folder, safe_serialization=True)
    if isinstance(network, SongUNet):
        ship_code(folder)
    if lora is not None:
        part = "unet" if hasattr(pipeline, "unet") else "transformer"
        save_lora(pipeline, part, teacher.trainable_network(), lora, dict(weights), folder / "lora")
    for pattern in LICENCES:
        for file in teacher.directory.glob(pattern):
            shutil.copy(file, folder / file.name)
    name = type(pipeline).__name__
    (folder / "README.md").write_text(model_card(teacher, name, call_arguments(name, len(timesteps)), facts))


def call_arguments(pipeline: str, steps: int = 1) -> dict[str, Any]:
    """The arguments with which a pipeline of this class takes the generator's steps."""
    arguments: dict[str, Any] = {"num_inference_steps": steps}
    if pipeline == "DDIMPipeline":
        return arguments | {"eta": 0.0}
    if pipeline in PIPELINES:
        # The generator has learnt what guidance does: a second, unconditional call would only undo it.
        return arguments | {"guidance_scale": 0.0}
    return arguments


def exported_steps(folder: Path) -> int:
    """How many steps the generator in a pipeline's folder takes: only the scheduler of several steps says how many."""
    path = folder / "scheduler" / "scheduler_config.json"
    scheduler = json.loads(path.read_text()) if path.exists() else {}
    return int(scheduler["original_inference_steps"]) if scheduler.get("_class_name") == "LCMScheduler" else 1


def _text_pipeline(teacher: Teacher, network: nn.Module, timesteps: Sequence[int]) -> Any:
    """The teacher's own pipeline, encoders, VAE and safety checker as they are, around the generator."""
    index = json.loads((teacher.directory / "model_index.json").read_text())
    part = "transformer" if index["_class_name"] == "StableDiffusion3Pipeline" else "unet"
    pipeline_class = getattr(diffusers, index["_class_name"])
    # Parts that the teacher was saved without must be said to be absent (SD3 without T5).
    given = {name: None for name, value in index.items() if isinstance(value, list) and value[0] is None}
    pipeline = pipeline_class.from_pretrained(teacher.directory, use_safetensors=True, **given, **{part: network})
    schedule = teacher.denoiser.schedule
    if teacher.denoiser.prediction == Prediction.FLOW:
        if timesteps[0] == len(schedule) - 1:
            # Its one step starts at sigma = 1, whatever the shift.
            pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
            return pipeline
        raise BadInputError(
            "spec.method.generatorTimestep: flow-matching generators are called at the noisiest; leave it out"
        )
    if len(timesteps) == 1:
        pipeline.scheduler = _ddim(teacher, schedule, timesteps[0])
        return pipeline
    config = {**pipeline.scheduler.config, "clip_sample": False, "set_alpha_to_one": True}
    pipeline.scheduler = LCMScheduler(
        **{k: v for k, v in config.items() if k in inspect.signature(LCMScheduler).parameters and k not in LCM},
        num_train_timesteps=timesteps[0] + 1,
        trained_betas=_betas(schedule, timesteps[0]),
        original_inference_steps=len(timesteps),
        # Consistency models blend the input in at small times; the generator's image is taken as it is.
        timestep_scaling=1e6,
    )
    return pipeline


LCM = ("num_train_timesteps", "trained_betas", "original_inference_steps", "timestep_scaling")


def _edm_pipeline(network: Any, schedule: Schedule, timestep: int) -> ConsistencyModelPipeline:
    """EDM's scalings are the scheduler's boundary condition where sigma_min is 0."""
    first = float(schedule.sigmas[timestep])
    if isinstance(network, SongUNet):
        network.register_to_config(time_scale=schedule.time_scale / CONSISTENCY_TIME_SCALE)
    elif schedule.time_scale != CONSISTENCY_TIME_SCALE:
        _fold_time(network, schedule.time_scale * torch.tensor(first).log())
    scheduler = CMStochasticIterativeScheduler(
        num_train_timesteps=2, sigma_min=0.0, sigma_max=first, sigma_data=schedule.sigma_data
    )
    return ConsistencyModelPipeline(network, scheduler)


def _ddim(teacher: Teacher, schedule: Schedule, timestep: int) -> DDIMScheduler:
    """DDIM whose only step starts at `timestep` and ends at the image, unclipped: x_0 as the network predicts it."""
    config = json.loads((teacher.directory / "scheduler" / "scheduler_config.json").read_text())
    return DDIMScheduler(
        num_train_timesteps=timestep + 1,
        trained_betas=_betas(schedule, timestep),
        prediction_type=config.get("prediction_type", "epsilon"),
        timestep_spacing="trailing",
        steps_offset=1,  # of no consequence to trailing steps, but pipelines of text warn of any other
        set_alpha_to_one=True,
        clip_sample=False,
    )


def _betas(schedule: Schedule, timestep: int) -> list[float]:
    """The betas of a schedule that ends at `timestep`."""
    products = (schedule.alphas[: timestep + 1] ** 2).cpu()
    betas: list[float] = (1 - products / torch.cat([products.new_ones(1), products[:-1]])).tolist()
    return betas


@torch.no_grad()
def _fold_time(network: UNet2DModel, time: Tensor) -> None:
    """Makes the time embedding that of `time`, whatever the scheduler says: the generator knows one noise level."""
    projected = network.time_proj(time.reshape(1).float())
    first = network.time_embedding.linear_1
    first.bias += (projected.to(first.weight) @ first.weight.T)[0]
    first.weight.zero_()
