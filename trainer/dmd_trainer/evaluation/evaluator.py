"""Measures samplers as the manifest asks: with its feature network, on its number of images, against its real ones."""

import hashlib
import json
from collections.abc import Callable

from safetensors.torch import load, save
from torch import Tensor

from dmd_trainer.conditions.base import Conditions
from dmd_trainer.distributed.collectives import barrier, broadcast_json
from dmd_trainer.evaluation.clip_score import wanted_clip_score
from dmd_trainer.evaluation.features import load_features
from dmd_trainer.evaluation.measure import Measured, Sampler, Samples, measure, score
from dmd_trainer.evaluation.reference import reference_features
from dmd_trainer.families.teacher import Teacher
from dmd_trainer.runtime.context import StageContext


class Evaluator:
    """Measures samplers of one run, on all ranks together and always at the same noise.

    Args:
        context: the stage's.
        teacher: whose images and latents the samplers make.
        conditions: what the measured images are made for.
    """

    def __init__(self, context: StageContext, teacher: Teacher, conditions: Conditions) -> None:
        spec, wanted = context.manifest.spec, context.manifest.spec.evaluation
        self.context, self.teacher = context, teacher
        with context.progress.doing("loading the networks of the evaluation"):
            self.extractor = load_features(
                wanted.features, context.scratch, context.device, clean=wanted.resolution is not None
            )
            clip = wanted_clip_score(wanted, context.scratch, context.device)
        self.samples = Samples(
            wanted.samples,
            spec.training.seed,
            wanted.batch_size,
            teacher.sample_shape,
            conditions,
            context.device,
            teacher.autoencoder,
            wanted.resolution,
            clip,
        )

    def real_features(self) -> Tensor:
        """The features [N, D] of the real images; asked for by rank 0 alone."""
        context, wanted = self.context, self.context.manifest.spec.evaluation
        with context.progress.doing("measuring the real images"):
            return reference_features(
                wanted.reference,
                self.extractor,
                self.teacher.image_shape[1:],
                context.shared_storage,
                context.scratch,
                context.device,
                wanted.resolution,
            )

    def training_scores(self) -> Callable[[Sampler], dict[str, float]]:
        """Returns what measures a generator while it trains: FID, and accuracy where the manifest asks for it."""
        real = self.real_features() if self.context.rank == 0 else None
        # Only cheap metrics here: manifold distances are for the end.
        wanted = {"Accuracy"} & set(self.context.manifest.spec.evaluation.metrics)

        def scores(sampler: Sampler) -> dict[str, float]:
            measured = measure(sampler, self.extractor, self.samples)
            return broadcast_json(score(measured, real, wanted) if real is not None else {})

        return scores

    def measure(self, sampler: Sampler, what: str) -> Measured:
        """Measures a sampler, which is called `what`, and shows how far it is.

        Raises:
            InterruptedRunError: this process was told to stop.
        """
        self.context.progress.update(activity=f"measuring {what}")

        def advance(count: int) -> None:
            self.context.progress.advance(count)
            self.context.raise_if_stopped()

        return measure(sampler, self.extractor, self.samples, advance)

    def measure_teacher(self, solver: Sampler, solver_name: str) -> Measured:
        """Measures the teacher, whose images do not depend on the run: cached by what they depend on."""
        cache, samples, spec = self.context.shared_storage, self.samples, self.context.manifest.spec
        identity = {
            "teacher": self.teacher.digest,
            "solver": solver_name,
            "guidance": spec.teacher.guidance_scale,
            "samples": samples.count,
            "batch": samples.batch_size,
            "seed": samples.seed,
            "conditions": samples.conditions.identity,
            "extractor": self.extractor.digest,
            "resolution": samples.resolution,
            "clip": samples.clip and samples.clip.digest,
            "precision": spec.training.precision,
            "weights": spec.teacher.weights,
        }
        key = f"cache/teacher-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.safetensors"
        if broadcast_json(cache.exists(key)):
            tensors = load(cache.read(key))
            self.context.progress.advance(samples.count)
            return Measured(tensors["features"], tensors.get("correct"), tensors.get("clip_scores"))
        measured = self.measure(solver, "the teacher")
        if self.context.rank == 0:
            cache.write(key, save({name: value for name, value in vars(measured).items() if value is not None}))
        barrier()
        return measured
