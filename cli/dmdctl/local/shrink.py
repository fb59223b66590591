"""`dmdctl run --shrink`: makes a manifest's distillation small enough to be rehearsed on this machine.

The method stays as it is; what it is done to is replaced. The teacher becomes a tiny random one of its architecture,
data and feature networks become what ships with the trainer, and every number that makes a run long becomes small.
"""

from pathlib import Path
from typing import Any

from dmd_api.errors import BadInputError
from dmd_api.loading import parse_manifest
from dmd_api.manifest import DMDDistillation
from dmd_api.uris import parse_uri
from dmdctl.verbosity import quiet_libraries

UPDATES, EVERY = 2, 1
FAKE_SCORE_UPDATES = 2
MICRO_BATCH = 2
PAIRS, SOLVER_STEPS = 8, 3
SAMPLES, BATCH = 16, 8
RESOLUTION = 32
"""The size at which text-to-image teachers' images and the builtin pictures are compared."""
EMOJI, CLIP = {"uri": "builtin://emoji"}, {"uri": "builtin://emoji-clip"}


def shrink(manifest: DMDDistillation, folder: Path) -> DMDDistillation:
    """The manifest to rehearse, and below `folder` what it names: the same every time.

    Raises:
        BadInputError: the teacher's architecture is not known.
    """
    content = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    spec: dict[str, Any] = content["spec"]
    content["metadata"] = {"name": f"{manifest.metadata.name[:54]}-shrunken"}
    if parse_uri(manifest.spec.teacher.uri).scheme != "builtin":  # those are small, and come with all they need
        _replace_inputs(manifest, spec, folder)
    for start in spec["method"].get("initFrom", {}).values():
        start["uri"] = spec["teacher"]["uri"]  # an earlier run's weights are elsewhere, or were not made yet
    _shorten(manifest, spec)
    for field in ("gates", "storage", "huggingFace", "images", "pairWorkers", "publish"):
        spec.pop(field, None)
    spec["tracking"] = {"experiment": spec["tracking"]["experiment"], "registeredModel": manifest.registered_model}
    return parse_manifest(content)


def _replace_inputs(manifest: DMDDistillation, spec: dict[str, Any], folder: Path) -> None:
    """Writes the small teacher, and names it and what ships with the trainer instead of what is elsewhere."""
    from dmd_trainer.families.shrinking import save_labelled_images, save_random_vgg, save_shrunken_teacher
    from dmd_trainer.planning.teacher import ANNOTATION, architecture_of

    quiet_libraries()
    architecture = architecture_of(manifest)
    if architecture is None:
        raise BadInputError(
            f"--shrink: the architecture of {manifest.spec.teacher.uri} is not known; name it in "
            f"metadata.annotations: {ANNOTATION}"
        )
    teacher = (folder / "teacher").absolute()
    save_shrunken_teacher(architecture, teacher)
    spec["teacher"]["uri"] = teacher.as_uri()
    data, method, evaluation = spec["data"], spec["method"], spec["evaluation"]
    if "prompts" in data:
        data["prompts"] = EMOJI
        evaluation["resolution"] = RESOLUTION
    if "images" in data:
        data["images"] = EMOJI
        if manifest.spec.data.class_labels is not None:
            labelled = (folder / "images.parquet").absolute()
            save_labelled_images(labelled, manifest.spec.data.class_labels.count)
            data["images"] = {"uri": labelled.as_uri()}
    if "features" in method.get("regression", {}):
        weights = (folder / "vgg16.safetensors").absolute()
        save_random_vgg(weights)
        method["regression"]["features"] = {"uri": weights.as_uri()}
    evaluation |= {"reference": EMOJI, "features": CLIP}
    if "prompts" in evaluation:
        evaluation["prompts"] = EMOJI
    if "clip" in evaluation:
        evaluation["clip"] = CLIP


def _shorten(manifest: DMDDistillation, spec: dict[str, Any]) -> None:
    """Few updates, pairs, samples and processes: two where they shard, and accumulation where the manifest has it."""
    training = spec["training"]
    processes = 2 if manifest.spec.training.sharding == "FSDP" else 1
    micro = manifest.spec.training.micro_batch_size
    accumulates = micro is not None and micro * manifest.world_size < manifest.spec.training.batch_size
    training |= {
        "generatorUpdates": UPDATES,
        "batchSize": processes * MICRO_BATCH * (2 if accumulates else 1),
        "warmupSteps": min(1, manifest.spec.training.warmup_steps),
        "checkpointEvery": EVERY,
        "sampleEvery": UPDATES,
    }
    if micro is not None:
        training["microBatchSize"] = MICRO_BATCH
    method = spec["method"]
    method["fakeScoreUpdates"] = min(FAKE_SCORE_UPDATES, manifest.spec.method.fake_score_updates)
    if "regression" in method:
        regression = method["regression"]
        regression |= {"pairs": PAIRS, "solverSteps": min(SOLVER_STEPS, regression["solverSteps"])}
    spec["evaluation"] |= {"samples": SAMPLES, "every": EVERY, "batchSize": BATCH}
    spec["workers"] = {"nodes": 1, "processesPerNode": processes}
