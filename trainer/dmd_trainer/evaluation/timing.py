"""Times a pipeline: its sampler alone, and from the prompt to the picture."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

PROMPT = "a photograph of an astronaut riding a horse"


@dataclass(frozen=True)
class Throughput:
    """The time that a batch takes.

    Attributes:
        batch_size: how many images at once.
        sampler: seconds of the network's calls and the scheduler's steps.
        whole: seconds of all of the pipeline: text encoder, sampler, VAE, pictures.
    """

    batch_size: int
    sampler: float
    whole: float

    @property
    def images_per_second(self) -> float:
        """Of the whole pipeline."""
        return self.batch_size / self.whole


@torch.inference_mode()
def measure_throughput(pipeline: Any, arguments: dict[str, Any], batch_size: int, rounds: int = 5) -> Throughput:
    """Times a pipeline's batches: the medians of `rounds`, taken in turns after one that warms up.

    Args:
        pipeline: of diffusers, on its device and in its dtype.
        arguments: for its call, besides prompts or a batch size.
        batch_size: how many images at once.
        rounds: how many batches are timed.
    """
    if "tokenizer" in pipeline.components:
        prompts = [PROMPT] * batch_size
        whole = {**arguments, "prompt": prompts, "output_type": "pil"}
        sampler = {**arguments, **_embeddings(pipeline, arguments, prompts), "output_type": "latent"}
    else:
        whole = {**arguments, "batch_size": batch_size, "output_type": "pil"}
        sampler = {**whole, "output_type": "pt"}
    turns = [(_time(lambda: pipeline(**sampler)), _time(lambda: pipeline(**whole))) for _ in range(rounds + 1)]
    alone, together = zip(*turns[1:], strict=True)
    return Throughput(batch_size, statistics.median(alone), statistics.median(together))


def _embeddings(pipeline: Any, arguments: dict[str, Any], prompts: list[str]) -> dict[str, Any]:
    """The prompts' embeddings under the names that the pipeline takes them by."""
    guided = arguments.get("guidance_scale", 0.0) > 1
    # Pipelines with several text encoders ask for the others' prompts too; None is the same prompt.
    others = {f"prompt_{number}": None for number in (2, 3) if f"text_encoder_{number}" in pipeline.components}
    found = pipeline.encode_prompt(
        prompt=prompts,
        **others,
        device=pipeline.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=guided,
    )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return {name: value for name, value in zip(names, found, strict=False) if guided or "negative" not in name}


def _time(action: Callable[[], object]) -> float:
    _finish_work()
    started = time.perf_counter()
    action()
    _finish_work()
    return time.perf_counter() - started


def _finish_work() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
