"""Where a run comes from, under the names that MLflow's own page looks for: source, version, image, devices, inputs."""

import getpass
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmd_api import __version__
from dmd_api.manifest import DMDDistillation, manifest_hash
from dmd_api.text import neutral


@dataclass(frozen=True)
class Input:
    """A run's input, as MLflow lists it: what it is for and where it is. Nothing of it is read.

    Attributes:
        context: teacher, pairs, prompts, ...
        name: the last part of the URI.
        digest: of the URI and all that the manifest says beside it; not of contents.
        source_type: the URI's scheme.
        uri: where it is.
    """

    context: str
    name: str
    digest: str
    source_type: str
    uri: str

    def as_record(self) -> dict[str, str]:
        """The fields."""
        return asdict(self)


def provenance_tags(manifest: DMDDistillation, device: str, processes: int) -> dict[str, str]:
    """Tags by which runs are compared and traced back.

    Args:
        manifest: the run's.
        device: the name of a worker's.
        processes: how many workers there are.
    """
    tags = {
        "dmd.manifest_hash": manifest_hash(manifest),
        "dmd.teacher": manifest.spec.teacher.uri,
        "dmd.version": __version__,
        "dmd.devices": f"{processes} x {device}",
        "mlflow.source.name": f"DMDDistillation {manifest.metadata.name}",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": _note(manifest),
    }
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        tags["mlflow.source.type"] = "JOB"
        if manifest.spec.images.trainer:
            tags["mlflow.docker.image.uri"] = manifest.spec.images.trainer
    if (commit := _commit()) is not None:
        tags["mlflow.source.git.commit"] = commit
    return tags


def creator_tags() -> dict[str, str]:
    """The tag that MLflow shows as "Created by": the server's user name, else this machine's; none in a cluster.

    A trainer cannot know who created its resource, and the user of its pod is nobody.
    """
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "").strip()
    if not user and "KUBERNETES_SERVICE_HOST" not in os.environ:
        with suppress(ImportError, KeyError, OSError):  # a number without a name
            user = getpass.getuser()
    return {"mlflow.user": neutral(user)} if user else {}


def inputs_of(manifest: DMDDistillation, run_uri: str) -> list[Input]:
    """What a run reads: teacher, pairs, prompts, images, reference.

    Args:
        manifest: the run's.
        run_uri: the folder of the run in its storage, where its pairs are.
    """
    return [_input(context, uri, beside) for context, uri, beside in _places(manifest, run_uri)]


def _places(manifest: DMDDistillation, run_uri: str) -> Iterator[tuple[str, str, Any]]:
    spec = manifest.spec
    yield "teacher", spec.teacher.uri, spec.teacher
    if spec.method.regression is not None:
        yield "pairs", f"{run_uri}/pairs", spec.method.regression
    for context, location in (
        ("prompts", spec.data.prompts),
        ("images", spec.data.images),
        ("reference", spec.evaluation.reference),
        ("evaluation prompts", spec.evaluation.prompts),
    ):
        if location is not None:
            yield context, location.uri, location


def _input(context: str, uri: str, beside: Any) -> Input:
    said = json.dumps([uri, beside.model_dump(mode="json")], sort_keys=True)
    name = uri.rstrip("/").rpartition("/")[2] or uri
    digest = hashlib.sha256(said.encode()).hexdigest()[:8]
    return Input(context, name, digest, uri.partition(":")[0], uri)


def _note(manifest: DMDDistillation) -> str:
    spec = manifest.spec
    steps = spec.method.generator_steps
    return (
        f"`{spec.teacher.uri}` distilled into a generator of {steps} step{'s' if steps > 1 else ''} by "
        f"{spec.method.name}, in {spec.training.generator_updates:,} generator updates of {spec.training.batch_size:,}."
    )


def _commit() -> str | None:
    """The commit of the checkout that this package is run from; None where it was installed."""
    ask = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True).stdout.split("\n")
    except (OSError, subprocess.SubprocessError):
        return None
    # An environment may be inside another project's checkout.
    return answer[1] if Path(answer[0], "trainer", "dmd_trainer").is_dir() else None
