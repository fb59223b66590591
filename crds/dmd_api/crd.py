"""The CustomResourceDefinition, derived from the pydantic models.

Pydantic's own JSON schema is not structural: references are resolved here, `null` alternatives become optional fields,
and unknown fields are left to the API server, which prunes or refuses them. Every list, map and string is bounded,
which bounds the cost of the rules.
"""

from typing import Any

from dmd_api.manifest import KIND, DMDDistillation
from dmd_api.rules import NAME_RULE, RULES
from dmd_api.spec import Spec
from dmd_api.status import MOST_CONDITIONS

GROUP, VERSION, PLURAL = "dmd-operator.io", "v1alpha1", "dmddistillations"
LONGEST_STRING = 4096
LONGEST_LIST = 64
DROPPED = ("title", "additionalProperties", "discriminator")

IMMUTABLE = (
    "is immutable: make a new DMDDistillation (suspend, maxRestarts, activeDeadlineSeconds, ttlSecondsAfterFinished, "
    "gates and tracking.alias may change)"
)
FROZEN = (
    "teacher",
    "data",
    "method",
    "training",
    "evaluation",
    "workers",
    "pairWorkers",
    "images",
    "metadata",
    "publish",
)
FROZEN_OPTIONAL = ("storage", "huggingFace", "caBundle", "serviceAccountName")
COLUMNS = (
    ("Phase", "string", ".status.phase", 0),
    ("Step", "integer", ".status.step", 0),
    ("Progress", "string", ".status.progress", 0),
    ("ETA", "string", ".status.eta", 0),
    ("FID", "number", ".status.fid", 0),
    ("Attempt", "integer", ".status.attempt", 1),
    ("Activity", "string", ".status.activity", 1),
    ("Healthy", "string", '.status.conditions[?(@.type=="Healthy")].reason', 1),
    ("Message", "string", '.status.conditions[?(@.type=="Healthy")].message', 1),
    ("Version", "string", ".status.modelVersion", 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)


def crd() -> dict[str, Any]:
    """The CRD as it is written to `crds/`."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["dmd"],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "priority": priority}
                        for name, kind, path, priority in COLUMNS
                    ],
                    "schema": {"openAPIV3Schema": _root()},
                }
            ],
        },
    }


def spec_schema() -> dict[str, Any]:
    """The structural schema of `spec`, with its rules."""
    schema = Spec.model_json_schema(by_alias=True, mode="validation")
    spec = _structural(schema, schema.get("$defs", {}))
    spec["x-kubernetes-validations"] = (
        [{"rule": rule.cel, "message": f"{rule.path}: {rule.message}", "fieldPath": f".{rule.path}"} for rule in RULES]
        + [
            {"rule": f"self.{name} == oldSelf.{name}", "message": f"{name} {IMMUTABLE}", "fieldPath": f".{name}"}
            for name in FROZEN
        ]
        + [
            {
                "rule": f"has(self.{name}) == has(oldSelf.{name}) && "
                f"(!has(self.{name}) || self.{name} == oldSelf.{name})",
                "message": f"{name} {IMMUTABLE}",
                "fieldPath": f".{name}",
            }
            for name in FROZEN_OPTIONAL
        ]
        + [
            {
                "rule": f"has(self.tracking.{name}) == has(oldSelf.tracking.{name}) && "
                f"(!has(self.tracking.{name}) || self.tracking.{name} == oldSelf.tracking.{name})",
                "message": f"tracking.{name} {IMMUTABLE}",
                "fieldPath": f".tracking.{name}",
            }
            for name in ("uri", "experiment", "registeredModel", "credentialsSecretRef")
        ]
    )
    return spec


def _root() -> dict[str, Any]:
    return {
        "type": "object",
        "description": (DMDDistillation.__doc__ or "").strip(),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec_schema(),
            "status": _status(),
        },
        "x-kubernetes-validations": [
            {
                "rule": NAME_RULE.cel,
                "message": f"{NAME_RULE.path}: {NAME_RULE.message}",
            }
        ],
    }


def _structural(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Returns one node of pydantic's schema as a structural one."""
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    if "anyOf" in node:
        alternatives = [choice for choice in node["anyOf"] if choice.get("type") != "null"]
        assert len(alternatives) == 1, "the API has no unions"
        inner = _structural(alternatives[0], definitions)
        outer = {key: value for key, value in node.items() if key not in ("anyOf", "default")}
        return {**inner, **{key: value for key, value in outer.items() if key not in DROPPED}}
    result = {key: value for key, value in node.items() if key not in (*DROPPED, "$defs")}
    if result.get("default", ...) is None:
        del result["default"]
    if "const" in result:
        result["enum"] = [result.pop("const")]
    if "prefixItems" in result:
        items = result.pop("prefixItems")
        result["items"] = items[0]
    if "exclusiveMinimum" in result:
        result["minimum"], result["exclusiveMinimum"] = result["exclusiveMinimum"], True
    if "exclusiveMaximum" in result:
        result["maximum"], result["exclusiveMaximum"] = result["exclusiveMaximum"], True
    match result.get("type"):
        case "object" if "properties" in result:
            result["properties"] = _properties(result["properties"], result.get("required", []), definitions)
        case "object" if isinstance(node.get("additionalProperties"), dict):
            result["additionalProperties"] = _structural(node["additionalProperties"], definitions)
            result.setdefault("default", {})
        case "array":
            result["items"] = _structural(result["items"], definitions)
            result.setdefault("maxItems", LONGEST_LIST)
        case "string" if "enum" not in result:
            result.setdefault("maxLength", LONGEST_STRING)
        case "integer":
            result.setdefault("format", "int64")
    return result


def _properties(raw: dict[str, Any], required: list[str], definitions: dict[str, Any]) -> dict[str, Any]:
    """An object's fields, with defaults for objects (`{}`) and lists (`[]`) that may be left out.

    With `{}` an object's fields get their own defaults, and rules can read them without asking whether they are there.
    """
    properties = {}
    for name, node in raw.items():
        child = properties[name] = _structural(node, definitions)
        absent = "anyOf" in node
        if name in required or absent or "default" in child:
            continue
        if child.get("type") == "array":
            child["default"] = []
        elif child.get("type") == "object" and "properties" in child and not child.get("required"):
            child["default"] = {}
    return properties


def _status() -> dict[str, Any]:
    """The schema of what the operator writes: observations, and never wishes."""
    text = {"type": "string", "maxLength": LONGEST_STRING}
    whole = {"type": "integer", "format": "int64"}
    number = {"type": "number"}
    time = {"type": "string", "format": "date-time"}
    condition = {
        "type": "object",
        "required": ["type", "status", "lastTransitionTime", "reason", "message"],
        "properties": {
            "type": {"type": "string", "maxLength": 316},
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "observedGeneration": whole,
            "lastTransitionTime": time,
            "reason": {"type": "string", "maxLength": 1024},
            "message": {"type": "string", "maxLength": 32768},
        },
    }
    return {
        "type": "object",
        "description": "The observed state of the run.",
        "properties": {
            "observedGeneration": whole,
            "phase": {**text, "description": "The stage that the run is in, or how it ended."},
            "activity": {**text, "description": "Rank 0's activity, in a word or two."},
            "step": {**whole, "description": "The stage's progress, counted in unit."},
            "total": {**whole, "description": "The step at which the stage ends."},
            "unit": {**text, "description": "The unit of step and total."},
            "checkpointStep": {**whole, "description": "The generator update that the next attempt resumes from."},
            "progress": {**text, "description": "The stage's progress in per cent."},
            "eta": {**text, "description": "Estimated time to the stage's end."},
            "losses": {
                "type": "object",
                "maxProperties": 16,
                "additionalProperties": {**number, "nullable": True},
                "description": "The latest losses by name; null: not finite.",
            },
            "warnings": {
                "type": "array",
                "maxItems": 16,
                "items": {**text, "maxLength": 1024},
                "description": "Problems of the training now: symptom, likely cause, field to change.",
            },
            "imagesPerSecond": number,
            "fid": {**number, "description": "The latest Frechet distance of the generator's EMA."},
            "bestFid": {**number, "description": "The lowest so far: that generator is exported."},
            "bestStep": {**whole, "description": "The generator update at which it was measured."},
            "stage": {**text, "description": "The first stage that is not done."},
            "attempt": {**whole, "description": "The number of the newest attempt at the stage."},
            "endedAttempt": {**whole, "description": "The newest attempt whose end was handled."},
            "nextAttemptTime": {**time, "description": "The earliest time of the next attempt."},
            "retries": {**whole, "description": "Failed attempts in a row; the back-off grows with them."},
            "disruptions": {**whole, "description": "Disruptions in a row without progress between them."},
            "failures": {**whole, "description": "Failed attempts that count against maxRestarts."},
            "lastProgressTime": {**time, "description": "The time at which the step last moved."},
            "startTime": time,
            "activeSince": {**time, "description": "The time since which the run is not suspended."},
            "activeSeconds": {**number, "description": "Seconds that it was active before that."},
            "completionTime": time,
            "mlflowRun": text,
            "mlflowRunUrl": {**text, "description": "The run's page in MLflow."},
            "modelVersion": {**text, "description": "The version in the model registry."},
            "modelUri": {**text, "description": "The model, as MLflow's clients name it."},
            "operator": {**text, "description": "The installation that looks after it: its Lease, as NAMESPACE/NAME."},
            "published": {**text, "description": "The generator on the Hugging Face hub: hf://OWNER/NAME@COMMIT."},
            "resolved": {
                "type": "object",
                "description": "The operator's defaults as they were when the run started.",
                "x-kubernetes-preserve-unknown-fields": True,
            },
            "conditions": {
                "type": "array",
                "maxItems": MOST_CONDITIONS,
                "items": condition,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        },
    }
