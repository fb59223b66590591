"""Manifests: good ones are read, each kind of bad one is refused with a line for people."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmd_api.exit_codes import ExitCode
from dmd_api.loading import ManifestError, load_manifest, parse_manifest
from dmd_api.manifest import manifest_hash
from tests.api.values import NO_REPOSITORY
from tests.conftest import MANIFEST

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


def changed(path: str, value: object) -> dict[str, Any]:
    """The tests' manifest with one field set (or, with ..., taken out)."""
    content = copy.deepcopy(MANIFEST)
    node = content
    *parents, last = path.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return content


def problems(content: object) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(content)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    lines = str(caught.value).splitlines()
    assert len(lines) == len(caught.value.problems)
    return lines


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_good(path: Path) -> None:
    assert load_manifest(path).metadata.name == path.stem


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("spec.training.batchsize", 8, "spec.training.batchsize: is not a field of the API; did you mean batchSize?"),
        (
            "spec.method.regression.wieght",
            1,
            "spec.method.regression.wieght: is not a field of the API; did you mean weight?",
        ),
        ("spec.training.batchSize", "many", "spec.training.batchSize: should be a valid integer"),
        ("spec.training.learningRate", -1, "spec.training.learningRate: should be greater than 0, but is -1"),
        ("spec.training.seed", 2**64, "spec.training.seed: should be less than or equal to"),
        ("spec.training.batchSize", ..., "spec.training.batchSize: is required and missing"),
        ("spec.method.name", "DMD3", "spec.method.name: is 'DMD3'; must be DMD or DMD2 (did you mean DMD"),
        ("spec.teacher.uri", "hg://a/b", "spec.teacher.uri: 'hg://a/b': the scheme hg:// is not known here"),
        ("spec.teacher.uri", "files://a/b", "did you mean file://?"),
        ("spec.teacher.uri", "a/b", "spec.teacher.uri: 'a/b' has no scheme"),
        ("spec.teacher.uri", "hf://", "names nothing behind its scheme"),
        ("kind", "Distillation", "kind: is 'Distillation'; must be DMDDistillation"),
        ("metadata.name", "Not_A_Name", "metadata.name: string should match pattern"),
    ],
)
def test_a_bad_field_is_named_with_its_remedy(path: str, value: object, line: str) -> None:
    (found,) = problems(changed(path, value))
    assert line in found


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("spec.workers", {"nodes": 3}, "spec.training.batchSize: must be a multiple of workers.nodes"),
        ("spec.training.microBatchSize", 3, "spec.training.microBatchSize: must divide each process's share"),
        ("spec.method.regression", ..., "spec.method.regression: DMD regresses on ODE pairs"),
        ("spec.method.gan", {}, "spec.method.gan: the GAN term belongs to DMD2"),
        ("spec.method", {"name": "DMD2", "gan": {}}, "spec.data.images: DMD2's GAN term reads real images"),
        (
            "spec.method",
            {"name": "DMD2", "divergence": "ForwardKL"},
            "spec.method.divergence: the GAN term's head must have learnt the ratio",
        ),
        (
            "spec.method.guidanceNoise",
            {"minTimestep": 1, "maxTimestep": 2},
            "spec.method.guidanceNoise: only guidance has it",
        ),
        ("spec.method.generatorSteps", 4, "spec.method.generatorSteps: several steps belong to DMD2"),
        (
            "spec.method",
            {"name": "DMD2", "fakeScoreUpdates": 0},
            "spec.method.fakeScoreUpdates: 0 leaves the regression",
        ),
        ("spec.method.regression.loss", "LPIPS", "spec.method.regression.features: LPIPS needs its backbone's weights"),
        ("spec.data.prompts", {"uri": "s3://a/b"}, "spec.data: prompts and classLabels exclude each other"),
        ("spec.training.warmupSteps", 12, "spec.training.warmupSteps: must be less than training.generatorUpdates"),
        ("spec.gates", [{"metric": "Coverage", "min": 0.5}], "spec.gates: each gate's metric must be FID or one of"),
        ("spec.gates", [{"metric": "FID"}], "spec.gates: each gate needs max or min"),
        ("spec.gates", [{"metric": "FID", "max": 1, "min": 2}], "spec.gates: each gate needs max or min"),
        *(("spec.tracking.alias", alias, "spec.tracking.alias: latest, v1") for alias in ("latest", "LATEST", "V12")),
        *(
            ("spec.tracking.registeredModel", name, "spec.tracking.registeredModel: MLflow's filters and models:/")
            for name in ("it's", 'a"b', "a`b", "a\\b", "..", " a", "a@b", "a#b", "a?b", "a\n")
        ),
        *(("spec.publish", {"huggingFace": {"repo": name}}, "spec.publish.huggingFace.repo") for name in NO_REPOSITORY),
        ("metadata.name", "n" * 47, "metadata.name: must have at most"),
    ],
)
def test_contradictory_fields_are_refused(path: str, value: object, line: str) -> None:
    assert any(found.startswith(line) for found in problems(changed(path, value)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.tracking.alias", "v1-candidate"),
        ("spec.tracking.alias", "latest-good"),
        ("spec.tracking.registeredModel", "catalog.schema.model (prod) é"),
        ("spec.publish", {"huggingFace": {"repo": "some-team/glyphs_1.0-onestep"}}),
    ],
)
def test_names_that_others_take_are_taken(path: str, value: object) -> None:
    parse_manifest(changed(path, value))


def test_contradictions_that_need_two_changes() -> None:
    content = changed("spec.gates", [{"metric": "FID", "max": 1}])
    del content["spec"]["evaluation"]["reference"]
    (found,) = problems(content)
    assert found.startswith("spec.evaluation.reference: gates compare with real images; give evaluation.reference.uri")
    content = changed("spec.data", {})
    assert problems(content)[0].startswith("spec.evaluation.metrics: Accuracy compares class labels")


def test_several_problems_are_all_told() -> None:
    content = changed("spec.training.batchSize", 0)
    content["spec"]["extra"] = 1
    assert len(problems(content)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a: 1\n---\nb: 2\n", "holds 2 documents"),
        ("a: [1\n", "line 2, column 1: not valid YAML"),
        ("a: 1\na: 2\n", "the key 'a' appears twice"),
        ("- a\n", "is not a mapping"),
        ("just text", "is not a mapping"),
        ("\x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "manifest.yaml"
    file.write_text(text)
    with pytest.raises(ManifestError, match=message):
        load_manifest(file)


def test_missing_unreadable_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such file"):
        load_manifest(tmp_path / "none.yaml")
    with pytest.raises(ManifestError, match="cannot be read"):
        load_manifest(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ManifestError, match="not UTF-8"):
        load_manifest(tmp_path / "binary")


@pytest.mark.parametrize("text", ["1e-5", "1.0e-05", "0.00001", "1E-5", ".00001"])
def test_numbers_are_read_as_kubernetes_reads_them(text: str, tmp_path: Path) -> None:
    content = yaml.safe_dump(MANIFEST).replace("learningRate: 0.001", f"learningRate: {text}")
    (tmp_path / "m.yaml").write_text(content)
    assert load_manifest(tmp_path / "m.yaml").spec.training.learning_rate == 1e-5


def test_the_hash_follows_what_decides_the_result_alone() -> None:
    base = manifest_hash(parse_manifest(MANIFEST))
    for path, value in [
        ("spec.suspend", True),
        ("spec.workers", {"nodes": 2}),
        ("spec.gates", [{"metric": "FID", "max": 1}]),
        ("metadata.labels", {"a": "b"}),
        ("spec.tracking.alias", "other"),
    ]:
        assert manifest_hash(parse_manifest(changed(path, value))) == base
    for path, value in [("spec.training.seed", 2), ("spec.method.regression.weight", 0.5)]:
        assert manifest_hash(parse_manifest(changed(path, value))) != base


@pytest.mark.parametrize(("name", "updates"), [("DMD", 1), ("DMD2", 5)])
def test_the_fake_scores_updates_follow_the_method(name: str, updates: int) -> None:
    given = {**MANIFEST["spec"]["method"], "name": name}
    given.pop("fakeScoreUpdates", None)
    left_out = parse_manifest(changed("spec.method", given))
    assert left_out.spec.method.fake_score_updates == updates
    explicit = parse_manifest(changed("spec.method", {**given, "fakeScoreUpdates": updates}))
    assert manifest_hash(left_out) == manifest_hash(explicit)
    assert parse_manifest(changed("spec.method", {**given, "fakeScoreUpdates": 2})).spec.method.fake_score_updates == 2


def test_younger_fields_with_their_defaults_leave_runs_where_they_are() -> None:
    """The hashes of published recipes, from before these fields were there."""
    hashes = {"distill-cifar10": "01835ebf85aa", "distill-imagenet64-dmd2-no-gan": "2677399edaac"}
    for name, expected in hashes.items():
        assert manifest_hash(load_manifest(EXAMPLES[0].with_name(f"{name}.yaml"))) == expected
    base = manifest_hash(parse_manifest(MANIFEST))
    assert manifest_hash(parse_manifest(changed("spec.method.divergence", "ReverseKL"))) == base
    bounded = changed("spec.method.matchingNoise", {"minTimestep": 1, "maxTimestep": 2})
    assert manifest_hash(parse_manifest(bounded)) != base
    guided = changed("spec.teacher.guidanceScale", 2)
    apart = copy.deepcopy(guided)
    apart["spec"]["method"]["guidanceNoise"] = {"minTimestep": 1, "maxTimestep": 2}
    assert manifest_hash(parse_manifest(apart)) != manifest_hash(parse_manifest(guided))


def test_explicit_defaults_do_not_change_the_hash() -> None:
    assert manifest_hash(parse_manifest(changed("spec.training.betas", [0.9, 0.999]))) == manifest_hash(
        parse_manifest(MANIFEST)
    )
