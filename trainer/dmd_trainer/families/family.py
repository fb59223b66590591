"""The interface of a family of teachers; a new one is a file beside this one and a line in `table.py`.

Families are known without torch and diffusers, which `dmdctl plan` may not have: methods that need them import them.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from dmd_api.errors import BadInputError
from dmd_api.spec import Method
from dmd_trainer.diffusion.prediction import Prediction, prediction_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from dmd_trainer.diffusion.denoiser import Condition
    from dmd_trainer.diffusion.schedules import Schedule
    from dmd_trainer.families.teacher import Teacher

Config = Mapping[str, Any]
"""A configuration as diffusers writes it into a pipeline's folder."""

WIDTH = 16
"""Channels of a shrunken network's narrowest level by default, and of shrunken text encoders."""
GROUPS = 4
"""Groups of a shrunken network's normalisations."""
HEAD_WIDTH = 8
"""Channels of a shrunken network's attention heads."""


class Tap(NamedTuple):
    """The place in a network whose features a discriminator reads.

    Attributes:
        encoder: the network as far as that: called as the network is, with the features as its output. Its modules are
            the network's own.
        bottleneck: the module of the network whose output the features are.
        channels: of the features.
        size: their height and width.
    """

    encoder: "nn.Module"
    bottleneck: "nn.Module"
    channels: int
    size: tuple[int, int]


class Family(ABC):
    """What differs from one family of teachers to another.

    Attributes:
        networks: the classes of the denoising network, by name.
        pipelines: the classes of the pipelines that text is encoded by, by name; none for teachers of pixels.
        exports: the classes of the pipelines that generators are exported as, by name.
        part: the network's folder in a pipeline, and its name there.
        published: the published checkpoints whose configurations are below `published/`: by their name there, a part
            of the names that they go by.
        encoders: the classes of a shrunken pipeline's text encoders, by name.
        absent: parts that a shrunken pipeline is complete without.
        adapted_layers: the layers that low-rank adapters are added to, by the ends of their names.
        predictions: what its pipelines let a network predict.
        understood: the fields of a network's configuration that change how it is called, with the values that are
            understood; the network itself is diffusers' own and reads all others.
    """

    networks: ClassVar[tuple[str, ...]]
    pipelines: ClassVar[tuple[str, ...]] = ()
    exports: ClassVar[tuple[str, ...]]
    part: ClassVar[str] = "unet"
    published: ClassVar[Mapping[str, str]] = {}
    encoders: ClassVar[tuple[str, ...]] = ()
    absent: ClassVar[tuple[str, ...]] = ()
    adapted_layers: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    predictions: ClassVar[tuple[Prediction, ...]] = (Prediction.EPSILON, Prediction.V, Prediction.SAMPLE)
    understood: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @property
    def takes_text(self) -> bool:
        """Whether its networks are conditioned on prompts, and denoise latents."""
        return bool(self.pipelines)

    def matches(self, network: Config, scheduler: Config) -> bool:
        """Whether a teacher with these configurations is one of the family's."""
        return network.get("_class_name") in self.networks

    def network_class(self, network: Config) -> Any:
        """The class of the network of a configuration."""
        import diffusers

        return getattr(diffusers, network["_class_name"])

    def blocks(self, network: Any) -> "list[nn.Module]":
        """The parts of a network that are gathered one at a time where it is sharded: a U-Net's levels."""
        return [
            *network.down_blocks,
            *([network.mid_block] if network.mid_block is not None else []),
            *network.up_blocks,
        ]

    def tap(self, network: Any) -> Tap | None:
        """Where a discriminator reads: a U-Net's bottleneck; None where a network has no such place."""
        if network.mid_block is None:
            return None
        size, widths = network.config.sample_size, network.config.block_out_channels
        height, width = (size, size) if isinstance(size, int) else size
        halved = 2 ** (len(widths) - 1)  # from level to level
        size = (-(-int(height) // halved), -(-int(width) // halved))
        return Tap(_encoder(network), network.mid_block, int(widths[-1]), size)

    def check_configurations(self, network: Config, scheduler: Config) -> None:
        """Refuses what the family's pipelines do not do, or do in a way that is not known here.

        Raises:
            BadInputError: the schedule is another family's, or a field of the network's is not understood.
        """
        prediction = prediction_of(scheduler)
        if prediction not in self.predictions:
            raise BadInputError(
                f"scheduler/scheduler_config.json: no pipeline of diffusers that is supported calls a "
                f"{network['_class_name']} with a {scheduler.get('_class_name')} ({prediction}); use a teacher whose "
                f"network predicts {' or '.join(self.predictions)}"
            )
        for field, values in self.understood.items():
            if network.get(field) not in values:
                raise BadInputError(
                    f"{self.part}/config.json: {field} {network.get(field)!r} is not supported, only "
                    f"{' or '.join(map(str, values))}; use another teacher"
                )

    def pipeline_scheduler(self, scheduler: Config) -> Config:
        """The scheduler's configuration as a pipeline leaves it.

        Raises:
            BadInputError: the pipeline does with it what no teacher was trained for.
        """
        return scheduler

    def latent_statistics(self, vae: Config) -> "tuple[Sequence[float], Sequence[float]]":
        """The mean and the standard deviation of a VAE's latents, [1] or [C], as the pipeline's decoding reads them."""
        return [0.0], [1.0]

    @abstractmethod
    def empty_conditions(self, network: Config, batch: int) -> "dict[str, Tensor]":
        """Zeros of the shapes of a network's condition, each [batch, ...]."""

    def added_conditions(self, network: Any, image_size: tuple[int, int]) -> "Condition":
        """The arguments of a network besides text, for images of (height, width) pixels, each [1, ...]."""
        return {}

    @abstractmethod
    def shrink(self, network: Config, width: int) -> dict[str, Any]:
        """A configuration with as many levels of the same kinds, `width` channels in the narrowest."""

    def encode(self, pipeline: Any, prompts: list[str], device: "torch.device") -> "dict[str, Tensor]":
        """The condition of each prompt, [B, ...], as the pipeline's own call would make it."""
        raise TypeError(f"{type(self).__name__} takes no text")

    def encode_negative(self, pipeline: Any, device: "torch.device") -> "dict[str, Tensor]":
        """The condition that guidance leads away from, [1, ...]: the empty prompt's."""
        return self.encode(pipeline, [""], device)

    def encoder_stand_ins(self, directory: Any) -> dict[str, Any]:
        """What a pipeline that is loaded for its text encoders alone is given in the place of other parts."""
        return {}

    @abstractmethod
    def check_exportable(self, prediction: Prediction, classes: int | None, method: Method) -> None:
        """Tells before training what could not be exported after it.

        Args:
            prediction: the teacher's.
            classes: how many labels it embeds; None for none.
            method: the manifest's.

        Raises:
            BadInputError: no stock pipeline calls such a network.
        """

    @abstractmethod
    def generator_scheduler(self, schedule: "Schedule", timesteps: Sequence[int]) -> Any:
        """A stock scheduler that calls a generator at its own noise levels.

        Args:
            schedule: the teacher's.
            timesteps: its indices that the generator is called at, noisiest first.

        Raises:
            BadInputError: no scheduler calls it there.
        """

    @abstractmethod
    def generator_pipeline(self, teacher: "Teacher", network: Any, scheduler: Any) -> Any:
        """A stock diffusers pipeline that draws with the generator's network.

        Args:
            teacher: whose schedule and other parts it has.
            network: the generator's, on the CPU.
            scheduler: of `generator_scheduler`.
        """

    def carries_code(self, network: Any) -> bool:
        """Whether a network is none of diffusers', so that its file is exported with its weights."""
        return False

    def call_arguments(self, steps: int) -> dict[str, Any]:
        """How the pipeline is called to take the generator's steps."""
        return {"num_inference_steps": steps}


def _encoder(unet: Any) -> "nn.Module":
    """A U-Net that ends with its bottleneck: a second object over the same modules, without those of the way up.

    Leaving a forward pass half-way, by an exception from a hook, would leave what FSDP gathered for it gathered, and
    break the graph that torch.compile traces.
    """
    from torch import nn

    encoder = copy.copy(unet)
    after = {name: nn.Identity() for name in ("conv_norm_out", "conv_act", "conv_out")}
    encoder._modules = {**unet._modules, "up_blocks": nn.ModuleList(), **after}
    return encoder


def refuse_steps(method: Method) -> None:
    """For pixels, whose stock pipelines call a network once, or at noise levels of their own.

    Raises:
        BadInputError: the generator takes several steps.
    """
    if method.generator_steps > 1:
        raise BadInputError(
            "spec.method.generatorSteps: diffusers has no pipeline that calls a UNet2DModel at these noise levels; "
            "leave it at 1 for a pixel teacher"
        )
