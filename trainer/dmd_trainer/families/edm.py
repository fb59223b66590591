"""Pixel teachers with EDM's preconditioning (arXiv 2206.00364), ADM's U-Net or EDM's own; consistency models too."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dmd_api.errors import BadInputError
from dmd_api.spec import Method
from dmd_trainer.diffusion.prediction import Prediction
from dmd_trainer.families.ddpm import DDPM, PIXELS, shrink_levels
from dmd_trainer.families.family import Config, refuse_steps

if TYPE_CHECKING:
    from torch import Tensor

    from dmd_trainer.diffusion.schedules import Schedule
    from dmd_trainer.families.teacher import Teacher

CONSISTENCY_TIME_SCALE = 250.0
"""`CMStochasticIterativeScheduler` tells the network 250 ln(sigma)."""


class EDM(DDPM):
    """Pixels, whose networks are U-Nets as DDPM's, or EDM's for CIFAR-10, which is not one of diffusers'."""

    networks: ClassVar[tuple[str, ...]] = ("UNet2DModel", "SongUNet")
    exports: ClassVar[tuple[str, ...]] = ("ConsistencyModelPipeline",)
    published: ClassVar[Mapping[str, str]] = {
        "adm-imagenet64": "edm-imagenet-64x64",
        "edm-cifar10": "edm-cifar10-32x32",
    }

    predictions: ClassVar[tuple[Prediction, ...]] = (Prediction.EDM,)

    def matches(self, network: Config, scheduler: Config) -> bool:
        edm = str(scheduler.get("_class_name", "")).startswith(("EDM", "CMStochastic"))
        return super().matches(network, scheduler) and (edm or network["_class_name"] == "SongUNet")

    def network_class(self, network: Config) -> Any:
        if network["_class_name"] == "SongUNet":
            from dmd_trainer.families.networks.song_unet import SongUNet

            return SongUNet
        return super().network_class(network)

    def shrink(self, network: Config, width: int) -> dict[str, Any]:
        if network["_class_name"] != "SongUNet":
            return super().shrink(network, width)
        widths = {"model_channels": width, "time_embedding_channels": width, "embedding_channels": width}
        return shrink_levels(network, width, PIXELS) | widths

    def check_exportable(self, prediction: Prediction, classes: int | None, method: Method) -> None:
        refuse_steps(method)

    def check_configurations(self, network: Config, scheduler: Config) -> None:
        super().check_configurations(network, scheduler)
        # diffusers' network divides its output by the time that it is told, which a consistency pipeline scales.
        if network["_class_name"] != "SongUNet" and network.get("time_embedding_type", "positional") != "positional":
            raise BadInputError(
                f"unet/config.json: time_embedding_type {network['time_embedding_type']!r} of a UNet2DModel with EDM's "
                "schedule is not supported, only positional; use another teacher"
            )

    def generator_scheduler(self, schedule: "Schedule", timesteps: Sequence[int]) -> Any:
        """EDM's scalings are this scheduler's boundary condition where sigma_min is 0."""
        from diffusers import CMStochasticIterativeScheduler

        return CMStochasticIterativeScheduler(
            num_train_timesteps=2,
            sigma_min=0.0,
            sigma_max=float(schedule.sigmas[timesteps[0]]),
            sigma_data=schedule.sigma_data,
        )

    def generator_pipeline(self, teacher: "Teacher", network: Any, scheduler: Any) -> Any:
        import torch
        from diffusers import ConsistencyModelPipeline

        schedule = teacher.denoiser.schedule
        if self.carries_code(network):
            network.register_to_config(time_scale=schedule.time_scale / CONSISTENCY_TIME_SCALE)
        elif schedule.time_scale != CONSISTENCY_TIME_SCALE:
            _fold_time(network, schedule.time_scale * torch.tensor(scheduler.config.sigma_max).log())
        return ConsistencyModelPipeline(network, scheduler)

    def carries_code(self, network: Any) -> bool:
        from dmd_trainer.families.networks.song_unet import SongUNet

        return isinstance(network, SongUNet)

    def call_arguments(self, steps: int) -> dict[str, Any]:
        return {"num_inference_steps": steps}


def _fold_time(network: Any, time: "Tensor") -> None:
    """Makes the time embedding that of `time`, whatever the scheduler says: the generator knows one noise level."""
    import torch

    with torch.no_grad():
        projected = network.time_proj(time.reshape(1).float())
        first = network.time_embedding.linear_1
        first.bias += (projected.to(first.weight) @ first.weight.T)[0]
        first.weight.zero_()
