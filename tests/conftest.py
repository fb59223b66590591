"""What all tests share: small models made here, and a manifest that trains one of them in seconds."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.cluster.fixtures import api, cluster

__all__ = ["api", "cluster"]

TINY_CHANNELS = (8, 16)
WITHOUT_KUBERNETES = {
    Path(__file__).parent / name
    for name in (
        "trainer",
        "benchmarks",
        "cli/serving",
        "install",
        "docs/test_site.py",
        "docs/test_commands.py",
        "cli/test_shrink.py",
        "cli/test_plan.py",
        "cli/test_run.py",
    )
}
"""Whose imports take longest, and where nothing asks for a cluster."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spares a run of tests that need Kubernetes the imports of those that never do."""
    kubernetes_alone = config.getoption("markexpr") in {"nodes", "cluster", "cluster and not nodes"}
    return True if kubernetes_alone and collection_path in WITHOUT_KUBERNETES else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what asks for a cluster, and what for its nodes: `make test` runs these apart, one after the other."""
    for item in items:
        if isinstance(item, pytest.Function) and {"api", "cluster"} & set(item.fixturenames):
            if WITHOUT_KUBERNETES & {item.path, *item.path.parents}:
                raise pytest.UsageError(f"{item.nodeid} asks for a cluster: take its file out of WITHOUT_KUBERNETES")
            item.add_marker(pytest.mark.cluster)
            if "cluster" in item.fixturenames:
                item.add_marker(pytest.mark.nodes)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Forgets the tracking server that MLflow, when told of one, leaves in the environment for later processes."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests run beside each other: one thread each."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained class-conditional EDM teacher of 8x8 images, in diffusers format."""
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline

    folder = tmp_path_factory.mktemp("teachers") / "edm"
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=18, sigma_data=0.75)
    ConsistencyModelPipeline(tiny_unet(num_class_embeds=10), scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained unconditional DDPM teacher of 8x8 images, in diffusers format."""
    from diffusers import DDPMPipeline, DDPMScheduler

    folder = tmp_path_factory.mktemp("teachers") / "ddpm"
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(folder)
    return folder


def tiny_unet(**options: Any) -> Any:
    """A UNet2DModel of a few thousand parameters, the same at every call."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=TINY_CHANNELS,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        add_attention=False,
        norm_num_groups=4,
        **options,
    ).eval()


MANIFEST = yaml.safe_load("""
apiVersion: dmd-operator.io/v1alpha1
kind: DMDDistillation
metadata: {name: tiny}
spec:
  teacher: {uri: builtin://digits-teacher}
  data: {classLabels: {count: 10}}
  method: {name: DMD, regression: {pairs: 24, solver: Heun, solverSteps: 3, loss: L2, weight: 0.25}}
  training: {generatorUpdates: 12, batchSize: 8, learningRate: 0.001, emaDecay: 0.9, checkpointEvery: 3,
             sampleEvery: 6, seed: 1}
  evaluation: {metrics: [FID, Recall, Accuracy], samples: 100, every: 6, batchSize: 50,
               reference: {uri: 'builtin://digits'}, features: {uri: 'builtin://digits-classifier'}}
  tracking: {experiment: tests, registeredModel: tiny}
""")


@pytest.fixture
def manifest_dict(tiny_teacher: Path) -> dict[str, Any]:
    """A manifest, as parsed YAML, that distils the tiny teacher in a dozen steps."""
    content = copy.deepcopy(MANIFEST)
    content["spec"]["teacher"]["uri"] = tiny_teacher.as_uri()
    return content
