"""Defaults of a cluster or a laptop for all of its runs: storage, tracking, certificate authorities and images."""

from pydantic import Field

from dmd_api.manifest import DMDDistillation
from dmd_api.spec import CABundle, Images, Model, SecretReference, Storage, TrackingUri


class TrackingDefaults(Model):
    """The MLflow server of manifests that name none."""

    uri: TrackingUri | None = Field(None, description="MLflow's tracking server.")
    credentials_secret_ref: SecretReference | None = Field(
        None, description="Secret, in each run's namespace, with the server's credentials."
    )


class Defaults(Model):
    """Values for fields that a manifest leaves out."""

    storage: Storage | None = Field(None, description="Storage of the runs.")
    tracking: TrackingDefaults = Field(default_factory=TrackingDefaults, description="Tracking of the runs.")
    ca_bundle: CABundle | None = Field(None, description="Certificate authorities that the runs' pods trust.")
    images: Images = Field(default_factory=Images, description="Images of the runs' containers.")


def resolve_defaults(manifest: DMDDistillation, defaults: Defaults) -> DMDDistillation:
    """The manifest with storage, tracking, certificate authorities and images filled in where it names none.

    Credentials belong to their server: a default's are never sent to a server that the manifest names.
    """
    spec = manifest.spec
    tracking = spec.tracking
    if tracking.uri is None:
        reference = tracking.credentials_secret_ref or defaults.tracking.credentials_secret_ref
        tracking = tracking.model_copy(update={"uri": defaults.tracking.uri, "credentials_secret_ref": reference})
    update = {
        "storage": spec.storage or defaults.storage,
        "tracking": tracking,
        "ca_bundle": spec.ca_bundle or defaults.ca_bundle,
        "images": spec.images if spec.images.trainer is not None else defaults.images,
    }
    return manifest.model_copy(update={"spec": spec.model_copy(update=update)})
