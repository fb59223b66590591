"""`report.json`: the figures and gates of a finished distillation."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from dmd_api.spec import Gate

METRICS = ("fid", "precision", "recall", "coverage", "accuracy", "clip_score")


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class ThreeWay(_Model):
    """A metric of the teacher, of the untrained one-step generator, and of the distilled one."""

    teacher: float
    initial: float
    generator: float


class TwoWay(_Model):
    """A figure of the teacher and of the distilled generator."""

    teacher: float
    generator: float


class GateResult(_Model):
    """A gate, what was measured, and whether it is kept."""

    metric: str
    max: float | None = None
    min: float | None = None
    value: float
    passed: bool


class Report(_Model):
    """The whole report; a metric that the manifest does not ask for is null."""

    name: str
    method: str
    manifest_hash: str
    seed: int
    samples: int
    features: str
    fid: ThreeWay
    precision: ThreeWay | None = None
    recall: ThreeWay | None = None
    coverage: ThreeWay | None = None
    accuracy: ThreeWay | None = None
    clip_score: ThreeWay | None = None
    network_evaluations: TwoWay
    seconds_per_image: TwoWay
    device: str
    gates: list[GateResult]
    best_step: int
    generator_sha256: str
    registered_model: str | None = None
    model_version: str | None = None
    alias: str | None = None
    published: str | None = None
    mlflow_run: str | None = None

    @property
    def failed_gates(self) -> list[GateResult]:
        """The gates that are not kept."""
        return [gate for gate in self.gates if not gate.passed]

    def figures(self) -> dict[str, float]:
        """The metrics of all three: `fid_teacher`, `fid_initial`, `fid_generator`, `precision_teacher`, ..."""
        found = {metric: getattr(self, metric) for metric in METRICS}
        return {
            f"{metric}_{who}": value
            for metric, values in found.items()
            if values is not None
            for who, value in values.model_dump().items()
        }


def check_gate(gate: Gate, value: float) -> GateResult:
    """Holds a measured value against a gate."""
    passed = (gate.max is None or value <= gate.max) and (gate.min is None or value >= gate.min)
    return GateResult(metric=gate.metric, max=gate.max, min=gate.min, value=value, passed=passed)
