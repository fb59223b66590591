"""Generators that are served for real, on a loopback port, in this process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn

from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.publishing.export import CardFacts, export_pipeline
from dmdctl.model.generator import Generator, find_generator
from dmdctl.serving.app import Limits, Server, make_app
from dmdctl.serving.samplers import GeneratorSampler
from dmdctl.serving.wanted import Task
from dmdctl.verbosity import quiet_libraries
from tests.operator.live import eventually
from tests.trainer.text_teachers import make_sd

FACTS = CardFacts("served", "file:///t", "DMD2", "abc", "1")


@dataclass
class Served:
    """A server that answers at `url`."""

    url: str
    server: Server
    generator: Generator

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(f"{self.url}{path}", timeout=60, **options)

    def post(self, **wanted: Any) -> requests.Response:
        return requests.post(f"{self.url}/v1/images", json=wanted, timeout=60)

    def counted(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.server.metrics.registry.get_sample_value(name, labels) or 0.0


class Slow:
    """A sampler that draws when it is told to, and remembers what."""

    def __init__(self, sampler: GeneratorSampler) -> None:
        self.generator, self._sampler = sampler.generator, sampler
        self.may_draw, self.began = threading.Event(), threading.Event()
        self.drawn: list[Task] = []

    def draw(self, task: Task, gone: threading.Event) -> Any:
        self.began.set()
        assert self.may_draw.wait(60)
        self.drawn.append(task)
        return self._sampler.draw(task, gone)


@contextmanager
def serving(server: Server, **options: Any) -> Iterator[Served]:
    """Serves on a free port as long as the context lasts."""
    running = uvicorn.Server(uvicorn.Config(make_app(server, **options), port=0, log_level="warning"))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        eventually(lambda: running.started, "the server answers", 30)
        port = running.servers[0].sockets[0].getsockname()[1]
        yield Served(f"http://127.0.0.1:{port}", server, server.sampler.generator)
    finally:
        running.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def text_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained text-to-image teacher."""
    return make_sd(tmp_path_factory.mktemp("teacher") / "sd")


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, list[int]], Path]:
    """Exports a teacher's own network as a generator."""

    def exported(teacher: Path, timesteps: list[int]) -> Path:
        folder = tmp_path_factory.mktemp("generator") / "pipeline"
        loaded = load_teacher(teacher)
        export_pipeline(loaded, loaded.denoiser.network.state_dict(), timesteps, folder, FACTS)
        return folder

    return exported


@pytest.fixture(scope="session")
def text_generator(text_teacher: Path, export: Callable[[Path, list[int]], Path]) -> Generator:
    quiet_libraries()
    return Generator(find_generator(str(export(text_teacher, [999])), None))


@pytest.fixture(scope="session")
def class_generator(tiny_teacher: Path, export: Callable[[Path, list[int]], Path]) -> Generator:
    quiet_libraries()
    return Generator(find_generator(str(export(tiny_teacher, [17])), None))


@pytest.fixture(scope="session")
def text(text_generator: Generator) -> Iterator[Served]:
    """Draws prompts."""
    with serving(Server(GeneratorSampler(text_generator))) as served:
        yield served


@pytest.fixture(scope="session")
def classes(class_generator: Generator) -> Iterator[Served]:
    """Draws ten classes."""
    with serving(Server(GeneratorSampler(class_generator), limits=Limits(batch_size=16, waiting=20))) as served:
        yield served


@pytest.fixture
def slow(class_generator: Generator) -> Iterator[tuple[Served, Slow]]:
    """A server of classes that draws when it is told to."""
    sampler = Slow(GeneratorSampler(class_generator))
    with serving(Server(sampler, limits=Limits(batch_size=4, waiting=20))) as served:  # type: ignore[arg-type]
        try:
            yield served, sampler
        finally:
            sampler.may_draw.set()
