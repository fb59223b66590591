"""Follows a registered model's alias: a version that it moves to is loaded beside the old one, and then takes over"""

import asyncio
import logging
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmd_api.errors import DMDError
from dmdctl.model.generator import Generator, find_generator, pinned
from dmdctl.serving.metrics import Metrics
from dmdctl.serving.samplers import GeneratorSampler
from dmdctl.serving.wanted import Wanted, task_for

log = logging.getLogger("dmdctl.serve")


def load(model: str, tracking: str | None) -> GeneratorSampler:
    """Finds and loads a generator, and draws once, so that nobody waits for what the first call prepares.

    Raises:
        BadInputError: there is none, or it cannot draw.
        InfrastructureError: the hub does not answer.
    """
    with tempfile.TemporaryDirectory() as downloads:  # versions come and go, and all weights are in memory
        sampler = GeneratorSampler(Generator(find_generator(model, tracking, Path(downloads))))
    prompt = "a red apple" if sampler.generator.takes_text else None
    sampler.draw(task_for(Wanted(prompt=prompt), sampler.generator), threading.Event())
    return sampler


async def follow(
    current: Callable[[], GeneratorSampler],
    take_over: Callable[[GeneratorSampler], Any],
    tracking: str | None,
    seconds: float,
    metrics: Metrics,
) -> None:
    """Looks at the alias until it is cancelled; while the registry or a version is unusable, the old one stays.

    Args:
        current: what is served.
        take_over: is given what is to be served from now on.
        tracking: the registry.
        seconds: between two looks.
        metrics: what is counted.
    """
    while True:
        await asyncio.sleep(seconds)
        found = current().generator.found
        try:
            version = (await asyncio.to_thread(pinned, found.model, tracking)).rpartition("/")[2]
            if version == found.version:
                metrics.reloads.labels("unchanged").inc()
                continue
            log.info("%s is version %s now; loading it", found.model, version)
            take_over(await asyncio.to_thread(load, found.model, tracking))
            metrics.reloads.labels("loaded").inc()
            log.info("%s: version %s is served", found.model, version)
        except DMDError as error:
            metrics.reloads.labels("failed").inc()
            log.warning("version %s stays: %s", found.version, error.message)
        except Exception:  # a version that its libraries cannot load keeps nobody from the old one
            metrics.reloads.labels("failed").inc()
            log.exception("version %s stays: the new one cannot be loaded", found.version)
