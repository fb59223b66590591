"""Rules over several fields, each once: in CEL for the API server, in Python, and one message."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from dmd_api.spec import Spec


@dataclass(frozen=True)
class Rule:
    """A rule over the whole `spec`.

    Attributes:
        path: the field to name, below `spec`, with dots.
        message: what is wrong and what to do.
        cel: an expression over `self` = spec that is true where the rule is kept.
        holds: the same in Python.
    """

    path: str
    message: str
    cel: str
    holds: Callable[[Spec], bool]


def _world(spec: Spec) -> int:
    return spec.workers.nodes * spec.workers.processes_per_node


_VERSION_ALIAS = "^(?i:latest|v[0-9]+)$"
_UNNAMEABLE = r"@#?%\x22\x27\x5c\x60\x00-\x1f\x7f"
_MODEL_NAME = rf"^[^ .{_UNNAMEABLE}][^{_UNNAMEABLE}]*$"
_WORLD = "(self.workers.nodes * self.workers.processesPerNode)"

RULES: tuple[Rule, ...] = (
    Rule(
        "training.batchSize",
        "must be a multiple of workers.nodes x workers.processesPerNode; change one of them",
        f"self.training.batchSize % {_WORLD} == 0",
        lambda s: s.training.batch_size % _world(s) == 0,
    ),
    Rule(
        "training.microBatchSize",
        "must divide each process's share, training.batchSize / (workers.nodes x workers.processesPerNode)",
        "!has(self.training.microBatchSize) || "
        f"self.training.batchSize % ({_WORLD} * self.training.microBatchSize) == 0",
        lambda s: (
            s.training.micro_batch_size is None
            or s.training.batch_size % (_world(s) * s.training.micro_batch_size) == 0
        ),
    ),
    Rule(
        "method.regression",
        "DMD regresses on ODE pairs; give method.regression.pairs, or set method.name to DMD2",
        "self.method.name != 'DMD' || has(self.method.regression)",
        lambda s: s.method.name != "DMD" or s.method.regression is not None,
    ),
    Rule(
        "method.gan",
        "the GAN term belongs to DMD2; set method.name to DMD2 or leave method.gan out",
        "!has(self.method.gan) || self.method.name == 'DMD2'",
        lambda s: s.method.gan is None or s.method.name == "DMD2",
    ),
    Rule(
        "data.images",
        "DMD2's GAN term reads real images; give data.images.uri, or leave method.gan out",
        "!has(self.method.gan) || has(self.data.images)",
        lambda s: s.method.gan is None or s.data.images is not None,
    ),
    Rule(
        "method.divergence",
        "the GAN term's head must have learnt the ratio at every noise level; give method.gan without maxTimestep, or "
        "set method.divergence to ReverseKL",
        "self.method.divergence == 'ReverseKL' || (has(self.method.gan) && !has(self.method.gan.maxTimestep))",
        lambda s: (
            s.method.divergence == "ReverseKL" or (s.method.gan is not None and s.method.gan.max_timestep is None)
        ),
    ),
    Rule(
        "method.matchingNoise",
        "minTimestep may not be more than maxTimestep",
        "!has(self.method.matchingNoise) || "
        "self.method.matchingNoise.minTimestep <= self.method.matchingNoise.maxTimestep",
        lambda s: (
            s.method.matching_noise is None
            or s.method.matching_noise.min_timestep <= s.method.matching_noise.max_timestep
        ),
    ),
    Rule(
        "method.matchingNoise",
        "the regression alone matches no distributions; leave method.matchingNoise out",
        "!has(self.method.matchingNoise) || !has(self.method.fakeScoreUpdates) || self.method.fakeScoreUpdates > 0",
        lambda s: s.method.matching_noise is None or s.method.fake_score_updates > 0,
    ),
    Rule(
        "method.guidanceNoise",
        "only guidance has it; set teacher.guidanceScale, or leave method.guidanceNoise out",
        "!has(self.method.guidanceNoise) || self.teacher.guidanceScale != 1.0",
        lambda s: s.method.guidance_noise is None or s.teacher.guidance_scale != 1,
    ),
    Rule(
        "method.guidanceNoise",
        "minTimestep may not be more than maxTimestep",
        "!has(self.method.guidanceNoise) || "
        "self.method.guidanceNoise.minTimestep <= self.method.guidanceNoise.maxTimestep",
        lambda s: (
            s.method.guidance_noise is None
            or s.method.guidance_noise.min_timestep <= s.method.guidance_noise.max_timestep
        ),
    ),
    Rule(
        "method.generatorSteps",
        "several steps belong to DMD2; set method.name to DMD2 or leave it at 1",
        "self.method.generatorSteps == 1 || self.method.name == 'DMD2'",
        lambda s: s.method.generator_steps == 1 or s.method.name == "DMD2",
    ),
    Rule(
        "method.regression",
        "pairs are for generators of one step; leave method.regression out, or set method.generatorSteps to 1",
        "!has(self.method.regression) || self.method.generatorSteps == 1",
        lambda s: s.method.regression is None or s.method.generator_steps == 1,
    ),
    Rule(
        "method.fakeScoreUpdates",
        "0 leaves the regression alone; set method.name to DMD, method.regression.weight above 0, and leave "
        "method.initFrom.fakeScore out",
        "!has(self.method.fakeScoreUpdates) || self.method.fakeScoreUpdates > 0 || "
        "(self.method.name == 'DMD' && has(self.method.regression) && "
        "self.method.regression.weight > 0.0 && "
        "!(has(self.method.initFrom) && has(self.method.initFrom.fakeScore)))",
        lambda s: (
            s.method.fake_score_updates > 0
            or (
                s.method.name == "DMD"
                and s.method.regression is not None
                and s.method.regression.weight > 0
                and (s.method.init_from is None or s.method.init_from.fake_score is None)
            )
        ),
    ),
    Rule(
        "method.regression.features",
        "LPIPS needs its backbone's weights; give method.regression.features.uri, or set loss to L2",
        "!has(self.method.regression) || self.method.regression.loss != 'LPIPS' || "
        "has(self.method.regression.features)",
        lambda s: (
            s.method.regression is None
            or s.method.regression.loss != "LPIPS"
            or s.method.regression.features is not None
        ),
    ),
    Rule(
        "data",
        "prompts and classLabels exclude each other; keep the one that the teacher was trained with",
        "!(has(self.data.prompts) && has(self.data.classLabels))",
        lambda s: s.data.prompts is None or s.data.class_labels is None,
    ),
    Rule(
        "method.lora",
        "low-rank adapters are for text-to-image teachers; give data.prompts, or leave method.lora out",
        "!has(self.method.lora) || has(self.data.prompts)",
        lambda s: s.method.lora is None or s.data.prompts is not None,
    ),
    Rule(
        "evaluation.metrics",
        "CLIPScore compares images with prompts; give evaluation.clip.uri and data.prompts, or leave CLIPScore out",
        "!self.evaluation.metrics.exists(m, m == 'CLIPScore') || (has(self.evaluation.clip) && has(self.data.prompts))",
        lambda s: (
            "CLIPScore" not in s.evaluation.metrics or (s.evaluation.clip is not None and s.data.prompts is not None)
        ),
    ),
    Rule(
        "evaluation.prompts",
        "only text-to-image teachers are measured on prompts; give data.prompts, or leave evaluation.prompts out",
        "!has(self.evaluation.prompts) || has(self.data.prompts)",
        lambda s: s.evaluation.prompts is None or s.data.prompts is not None,
    ),
    Rule(
        "training.warmupSteps",
        "must be less than training.generatorUpdates",
        "self.training.warmupSteps < self.training.generatorUpdates",
        lambda s: s.training.warmup_steps < s.training.generator_updates,
    ),
    Rule(
        "evaluation.metrics",
        "Accuracy compares class labels; give data.classLabels.count, or leave Accuracy out",
        "!self.evaluation.metrics.exists(m, m == 'Accuracy') || has(self.data.classLabels)",
        lambda s: "Accuracy" not in s.evaluation.metrics or s.data.class_labels is not None,
    ),
    Rule(
        "gates",
        "each gate's metric must be FID or one of evaluation.metrics; add it there",
        "self.gates.all(g, g.metric == 'FID' || self.evaluation.metrics.exists(m, m == g.metric))",
        lambda s: all(g.metric == "FID" or g.metric in s.evaluation.metrics for g in s.gates),
    ),
    Rule(
        "gates",
        "each gate needs max or min, and max may not be less than min",
        "self.gates.all(g, (has(g.max) || has(g.min)) && (!has(g.max) || !has(g.min) || g.max >= g.min))",
        lambda s: all(
            (g.max is not None or g.min is not None) and (g.max is None or g.min is None or g.max >= g.min)
            for g in s.gates
        ),
    ),
    Rule(
        "tracking.alias",
        "latest, v1, v2 and so on are MLflow's own words for versions; choose another alias",
        f"!self.tracking.alias.matches('{_VERSION_ALIAS}')",
        lambda s: re.fullmatch(_VERSION_ALIAS, s.tracking.alias) is None,
    ),
    Rule(
        "tracking.registeredModel",
        "MLflow's filters and models:/ URIs take no name with quotes, backslashes, @ # ? % or line ends, nor one that "
        "begins with a dot or a space; choose another name",
        f"!has(self.tracking.registeredModel) || self.tracking.registeredModel.matches(r'{_MODEL_NAME}')",
        lambda s: (
            s.tracking.registered_model is None or re.fullmatch(_MODEL_NAME, s.tracking.registered_model) is not None
        ),
    ),
    Rule(
        "publish.huggingFace.repo",
        "a repository's name on the hub has no .git at its end; leave it out",
        "!has(self.publish.huggingFace) || !self.publish.huggingFace.repo.endsWith('.git')",
        lambda s: s.publish.hugging_face is None or not s.publish.hugging_face.repo.endswith(".git"),
    ),
    Rule(
        "evaluation.reference",
        "gates compare with real images; give evaluation.reference.uri, or leave the gates out",
        "size(self.gates) == 0 || has(self.evaluation.reference)",
        lambda s: not s.gates or s.evaluation.reference is not None,
    ),
)

LONGEST_SUFFIX = len("-evaluate-999-9999")
"""The stage, the attempt and the index that the operator appends to the resource's name for an attempt's pods."""
LONGEST_NAME = 63 - LONGEST_SUFFIX
NAME_PATTERN = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
NAME_RULE = Rule(
    "metadata.name",
    f"must have at most {LONGEST_NAME} characters, lower-case letters, digits and '-' between them, so that its pods' "
    "names are DNS labels; choose another one",
    f"size(self.metadata.name) <= {LONGEST_NAME} && self.metadata.name.matches('{NAME_PATTERN}')",
    lambda s: True,
)
"""The one rule about the name: the API server keeps it at the root, where `self` is the whole resource."""


def check(name: str, spec: Spec) -> None:
    """Checks all rules.

    Args:
        name: the resource's.
        spec: the resource's.

    Raises:
        ValidationError: with one problem for every rule that is broken.
    """
    broken = [(f"spec.{rule.path}", rule.message) for rule in RULES if not rule.holds(spec)]
    if len(name) > LONGEST_NAME:
        broken.append((NAME_RULE.path, NAME_RULE.message))
    if broken:
        raise ValidationError.from_exception_data(
            "DMDDistillation",
            [
                InitErrorDetails(
                    type=PydanticCustomError("rule", "{message}", {"message": message, "path": path}),
                    loc=tuple(path.split(".")),
                    input=None,
                )
                for path, message in broken
            ],
        )
