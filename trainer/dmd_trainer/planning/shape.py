"""The settings of a manifest that decide a training step's activations."""

from dataclasses import dataclass

from dmd_api.manifest import DMDDistillation
from dmd_api.spec import Lora


@dataclass(frozen=True)
class StepShape:
    """The settings that decide a step's activations.

    Attributes:
        micro_batch: samples that pass the networks at once.
        guided: the teacher sees each sample with and without its condition.
        pairs: the generator passes as many noises of ODE pairs, too.
        lpips: and they are compared by LPIPS, decoded where there is a VAE.
        gan: a head on the fake score's bottleneck tells real and generated samples apart.
        classified_apart: generated samples at another noise than they are denoised at.
        matching: there is a fake score to match distributions with; otherwise the regression on pairs is all.
        bf16: the networks run under autocast.
        teacher_bf16: the teacher does, since its weights are of 16 or 8 bits.
        gathered: weights are gathered in the dtype of the computation (FSDP), so that no casts of them are kept.
        checkpointing: activations are computed again in the backward pass.
        lora: the generator's adapters, None to train all of it.
        gpu: follows the GPU's autocast, which normalises in float32, unlike the CPU's.
    """

    micro_batch: int
    guided: bool = False
    pairs: bool = False
    lpips: bool = False
    gan: bool = False
    classified_apart: bool = False
    matching: bool = True
    bf16: bool = False
    teacher_bf16: bool = False
    gathered: bool = False
    checkpointing: bool = False
    lora: Lora | None = None
    gpu: bool = True


def step_shape(manifest: DMDDistillation, *, gpu: bool = True) -> StepShape:
    """Reads the settings that decide the activations."""
    spec = manifest.spec
    training, method = spec.training, spec.method
    share = training.batch_size // manifest.world_size
    return StepShape(
        micro_batch=training.micro_batch_size or share,
        guided=spec.teacher.guidance_scale != 1,
        pairs=method.regression is not None,
        lpips=method.regression is not None and method.regression.loss == "LPIPS",
        gan=method.gan is not None,
        classified_apart=method.gan is not None and method.gan.max_timestep is not None,
        matching=method.fake_score_updates > 0,
        bf16=training.precision == "bf16",
        teacher_bf16=spec.teacher.weights != "fp32",
        gathered=training.sharding == "FSDP" and manifest.world_size > 1,
        checkpointing=training.activation_checkpointing,
        lora=method.lora,
        gpu=gpu,
    )
