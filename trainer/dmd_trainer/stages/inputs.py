"""The inputs of several stages: the teacher, its conditions, and real images."""

from functools import lru_cache, partial
from pathlib import Path

import torch

from dmd_api.errors import BadInputError
from dmd_api.spec import Prompts
from dmd_trainer.conditions.base import Conditions
from dmd_trainer.conditions.embeddings import PromptConditions, PromptEmbeddings
from dmd_trainer.conditions.prompts import read_prompts
from dmd_trainer.data.real_images import RealImages, open_real_images
from dmd_trainer.dmd.initial_weights import InitialWeights
from dmd_trainer.dmd.regression import regression_loss
from dmd_trainer.dmd.step import RegressionLoss
from dmd_trainer.families.initial_weights import read_initial_weights
from dmd_trainer.families.teacher import WEIGHTS, Teacher, load_teacher
from dmd_trainer.families.text_encoder import TextEncoder
from dmd_trainer.runtime.context import StageContext
from dmd_trainer.runtime.fetch import local_path


def read_teacher(context: StageContext, device: torch.device | None = None) -> Teacher:
    """The manifest's teacher, on this process's device, or on the meta device without weights.

    Raises:
        BadInputError: it is missing, or no teacher.
    """
    wanted = context.manifest.spec.teacher
    with context.progress.doing("fetching the teacher"):
        folder = local_path(wanted.uri, context.scratch, headers_only=device is not None)
    return load_teacher(
        folder,
        device=context.device if device is None else device,
        autocast=context.autocast,
        weights=wanted.weights,
        offload=wanted.offload,
    )


def training_conditions(context: StageContext, teacher: Teacher) -> Conditions:
    """The conditions that training draws from.

    Raises:
        BadInputError: the teacher takes other conditions, or there are no prompts.
    """
    data = context.manifest.spec.data
    if data.prompts is not None:
        return _prompt_conditions(context, teacher, data.prompts, "spec.data.prompts", one_by_one=False)
    return teacher.conditions(data.class_labels.count if data.class_labels else None)


def evaluation_conditions(context: StageContext, teacher: Teacher) -> Conditions:
    """The conditions that measured images are made for: with prompts, each in its turn."""
    spec = context.manifest.spec
    prompts = spec.evaluation.prompts or spec.data.prompts
    if prompts is not None:
        field = "spec.data.prompts" if spec.evaluation.prompts is None else "spec.evaluation.prompts"
        return _prompt_conditions(context, teacher, prompts, field, one_by_one=True)
    return training_conditions(context, teacher)


def real_images(context: StageContext, teacher: Teacher) -> RealImages:
    """The real images of the GAN term; with their own captions where they have some and the teacher takes text.

    Raises:
        BadInputError: there are none, of a kind not known here, or they do not fit the teacher.
    """
    embed = partial(_embedded, context, teacher) if teacher.takes_text else None
    images = context.manifest.spec.data.images
    with context.progress.doing("opening the real images"):
        return open_real_images(images, teacher, context.scratch, context.shared_storage, embed)


def compare_with_pairs(context: StageContext, teacher: Teacher) -> RegressionLoss:
    """The loss between the generator's images and the pairs'.

    Raises:
        BadInputError: LPIPS's weights are missing, or not VGG16's.
    """
    regression = context.manifest.spec.method.regression
    features = None if regression is None else regression.features
    with context.progress.doing("loading the networks of the regression's loss"):
        weights = None if features is None else local_path(features.uri, context.scratch)
        return regression_loss(regression, weights, context.device, teacher.autoencoder)


def initial_weights(context: StageContext, device: torch.device | None = None) -> InitialWeights:
    """The weights that `spec.method.initFrom` names, on the CPU, or on the meta device their names and shapes.

    Raises:
        BadInputError: there are none.
    """
    named = context.manifest.spec.method.init_from
    if named is None:
        return InitialWeights()
    with context.progress.doing("reading the weights to start from"):
        return InitialWeights(
            read_initial_weights(named.generator, "generator", context.scratch, device),
            read_initial_weights(named.fake_score, "fakeScore", context.scratch, device),
        )


def _prompt_conditions(
    context: StageContext, teacher: Teacher, prompts: Prompts, field: str, *, one_by_one: bool
) -> PromptConditions:
    if not teacher.takes_text:
        raise BadInputError(f"{field}: the teacher takes no text; leave prompts out, or give classLabels")
    with context.progress.doing("reading the prompts"):
        texts = read_prompts(prompts, context.scratch, field)
    return _embedded(context, teacher, texts, one_by_one=one_by_one)


def _embedded(
    context: StageContext, teacher: Teacher, prompts: list[str], *, one_by_one: bool = False
) -> PromptConditions:
    weights = context.manifest.spec.teacher.weights
    # The encoders are loaded only where embeddings are missing, and in no less than 16 bits: they run once a prompt.
    dtype = torch.float32 if context.device.type == "cpu" else WEIGHTS[weights]
    embeddings = PromptEmbeddings(
        prompts,
        teacher.digest,
        context.shared_storage,
        context.scratch,
        partial(_load_text_encoder, context, teacher.directory, dtype),
    )
    return PromptConditions(embeddings=embeddings, added=teacher.added_conditions, one_by_one=one_by_one)


def _load_text_encoder(context: StageContext, directory: Path, dtype: torch.dtype) -> TextEncoder:
    with context.progress.doing("loading the text encoders"):
        return _text_encoder(directory, context.device, dtype)


@lru_cache(maxsize=1)
def _text_encoder(directory: Path, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    """The teacher's: one for all prompts, and for the captions of each shard of images."""
    return TextEncoder(directory, device, dtype)
