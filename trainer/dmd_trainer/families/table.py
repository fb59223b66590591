"""The families that are known, and how a teacher's own is found."""

from dmd_trainer.families.ddpm import DDPM
from dmd_trainer.families.edm import EDM
from dmd_trainer.families.family import Config, Family
from dmd_trainer.families.sd3 import SD3
from dmd_trainer.families.sdxl import SDXL
from dmd_trainer.families.stable_diffusion import StableDiffusion

FAMILIES: tuple[Family, ...] = (SDXL(), StableDiffusion(), SD3(), EDM(), DDPM())
"""All families; the first that matches a teacher is its own, so that special ones come before general ones."""

NETWORKS = tuple(dict.fromkeys(name for family in FAMILIES for name in family.networks))
"""The classes of denoising networks that some family knows, by name."""

TEXT_PIPELINES = {name: family for family in FAMILIES for name in family.pipelines}
"""The families that encode text, by the class of their pipeline."""

EXPORTED = {name: family for family in FAMILIES for name in family.exports}
"""The families that export generators, by the class of the pipeline."""

PUBLISHED = {name: family for family in FAMILIES for name in family.published}
"""The families of published checkpoints, by the checkpoints' names below `published/`."""


def find_family(network: Config, scheduler: Config) -> Family | None:
    """The family of a teacher with these configurations; None where no family knows its network."""
    return next((family for family in FAMILIES if family.matches(network, scheduler)), None)
