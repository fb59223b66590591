"""The operator's settings: `DMD_OPERATOR_*`, which the chart's values become."""

from datetime import timedelta
from typing import Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from dmd_api.defaults import Defaults
from dmd_operator.run import Settings


class OperatorSettings(BaseSettings):
    """Choices of the operator's owner; structured values are JSON."""

    model_config = SettingsConfigDict(env_prefix="DMD_OPERATOR_", frozen=True, extra="forbid")

    namespaces: tuple[str, ...] = Field((), description="Namespaces to watch; none: all of them.")
    defaults: Defaults = Field(default_factory=Defaults, description="What manifests may leave out.")
    lease_name: str = Field("dmd-operator", description="The Lease that replicas elect their leader by.")
    lease_namespace: str | None = Field(None, description="Its namespace; none: there is one replica and no election.")
    identity: str | None = Field(None, description="This replica's name in the Lease. Default: the host's name.")
    take_over_seconds: float = Field(
        300, gt=0, description="How long another installation's run may need something before this one takes it over."
    )
    lease_seconds: int = Field(15, ge=3, description="How long a leader that went silent is waited for.")
    port: int = Field(8080, ge=0, le=65535, description="Where /healthz, /readyz and /metrics are served.")
    stall_minutes: float = Field(30, gt=0, description="A step that does not move for this long is a stall.")
    progress_seconds: float = Field(5, gt=0, description="How often a running attempt is asked for its progress.")
    figures_seconds: float = Field(
        30, gt=0, description="How often a status is written in which nothing but a run's moving figures has changed."
    )
    progress_timeout_seconds: float = Field(2, gt=0, description="How long its answer is waited for.")
    concurrent_requests: int = Field(32, ge=1, description="Requests to the API server at the same time.")
    progress_from: tuple[dict[str, Any], ...] | None = Field(
        None,
        description="Who may reach the trainers' progress port, as peers of a NetworkPolicy that keeps all others out; "
        "none: no run gets a policy.",
    )
    debug: bool = Field(False, description="Log every look at every run.")

    @property
    def installation(self) -> str | None:
        """The name that runs know this installation by; None without an election."""
        return f"{self.lease_namespace}/{self.lease_name}" if self.lease_namespace is not None else None

    def for_decisions(self) -> Settings:
        """The settings that decisions are made by."""
        return Settings(
            stall_timeout=timedelta(minutes=self.stall_minutes),
            progress_every=timedelta(seconds=self.progress_seconds),
            write_every=timedelta(seconds=self.figures_seconds),
        )
