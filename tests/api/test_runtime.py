"""The contract between launchers and stages."""

from dmd_api.apps import stage_app
from dmd_api.loading import parse_manifest
from dmd_api.runtime import MANIFEST as MANIFEST_VARIABLE
from dmd_api.runtime import TERMINATION_MESSAGE_BYTES, StageError, StageResult
from dmd_api.stages import Stage
from tests.conftest import MANIFEST


def test_a_termination_message_fits_whatever_the_error_says() -> None:
    for text in ("short", "x" * 10_000, 'é\n"\\' * 5_000):
        result = StageResult(stage=Stage.DISTILL, error=StageError(reason="BadInput", message=text, exit_code=2))
        message = result.to_termination_message()
        assert len(message.encode()) <= TERMINATION_MESSAGE_BYTES
        read = StageResult.model_validate_json(message)
        assert read.error is not None
        assert read.error.exit_code == 2
        assert read.error.message[:3] == text[:3] or "é" in text


def test_a_stage_is_one_app_that_carries_the_whole_manifest() -> None:
    manifest = parse_manifest({**MANIFEST, "spec": {**MANIFEST["spec"], "workers": {"nodes": 2}}})
    app = stage_app(manifest, Stage.DISTILL, run_key="k", attempt=3, rendezvous="h:1", progress_address="h:2")
    (role,) = app.roles
    assert role.args == ["-m", "dmd_trainer", "distill"]
    assert role.num_replicas == 2
    assert parse_manifest(__import__("json").loads(role.env[MANIFEST_VARIABLE])) == manifest
    assert (
        stage_app(manifest, Stage.PREFLIGHT, run_key="k", attempt=1, rendezvous="", progress_address="")
        .roles[0]
        .num_replicas
        == 1
    )
