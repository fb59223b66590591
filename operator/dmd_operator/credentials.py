"""The Secrets of a stage's container, as variables that name them: the operator reads none."""

from typing import Any

from dmd_api.spec import SecretReference, Spec
from dmd_api.stages import Stage

# What only one of two kinds of credentials has is optional; what is always needed is not, so that the kubelet names a
# Secret or a key that is missing, and starts the pod by itself once it is there.
_STORAGE = {"AWS_ACCESS_KEY_ID": False, "AWS_SECRET_ACCESS_KEY": False, "AWS_SESSION_TOKEN": True}
_TRACKING = {"MLFLOW_TRACKING_USERNAME": True, "MLFLOW_TRACKING_PASSWORD": True, "MLFLOW_TRACKING_TOKEN": True}
_HUGGING_FACE = {"HF_TOKEN": False}


def credentials(spec: Spec, stage: Stage) -> list[dict[str, Any]]:
    """The container's variables for `stage`; preparing speaks to no tracking server and gets none of its secrets.

    Args:
        spec: with its defaults resolved.
        stage: the stage.
    """
    variables = []
    if spec.storage is not None:
        variables += _from_secret(spec.storage.credentials_secret_ref, _STORAGE)
    # A teacher in the registry is fetched through the tracking server by every stage.
    if stage is not Stage.PREPARE or spec.teacher.uri.startswith("models:"):
        variables += _from_secret(spec.tracking.credentials_secret_ref, _TRACKING)
    if spec.hugging_face is not None:
        variables += _from_secret(spec.hugging_face.credentials_secret_ref, _HUGGING_FACE)
    return variables


def _from_secret(reference: SecretReference | None, keys: dict[str, bool]) -> list[dict[str, Any]]:
    if reference is None:
        return []
    return [
        {
            "name": key,
            "valueFrom": {
                "secretKeyRef": {"name": reference.name, "key": key, **({"optional": True} if optional else {})}
            },
        }
        for key, optional in keys.items()
    ]
