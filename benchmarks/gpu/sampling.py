"""Images of SD 1.5's shape in one step, and in fifty guided ones: how many a second, and how long one takes."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, PNDMScheduler
from torch import Tensor
from torch._dynamo import config as dynamo

from benchmarks.gpu.recipes import materialise, shrunken
from benchmarks.gpu.report import Report, print_table
from dmd_trainer.families.architecture import Architecture, known_architecture

BATCHES = (1, 8, 32)
DECODED = 8
"""Images that the VAE decodes at once."""
STEPS, GUIDANCE = 50, 7.5
ROUNDS, SHORT_ROUNDS = 3, 10
PUBLISHED = {"imagesASecond": 20, "oneStepMilliseconds": 90, "teacherMilliseconds": 2590}
"""arXiv 2311.18828, abstract and table 3; here the text encoder is missing and the weights are random."""


def run(report: Report) -> None:
    """Measures every case that there is time for."""
    architecture = known_architecture("sd15")
    architecture = shrunken(architecture) if report.miniature else architecture
    half = torch.float16 if report.device.type == "cuda" else torch.float32
    unet: Any = materialise(architecture.build_network(), report.device, half)
    vae: Any = materialise(architecture.build_decoder(), report.device, half)
    batches = (1, 2) if report.miniature else BATCHES
    report.content["published"] = PUBLISHED
    rows: list[dict[str, Any]] = []
    sampler = _Sampler(unet, vae, architecture, report.device, half)

    def measure(name: str, action: Callable[[], Tensor], batch: int, seconds: float, rounds: int) -> None:
        with report.case(name, seconds) as found:
            if "skipped" not in found:
                _rounds(action, batch, 1 if report.miniature else rounds, report, found)
                rows.append({"case": name, **{k: v for k, v in found.items() if isinstance(v, float)}})

    for batch in batches:
        measure(f"one step, batch {batch}", lambda batch=batch: sampler.one_step(batch), batch, 3, SHORT_ROUNDS)
    for name, scheduler, batch, seconds in (
        ("PNDM", PNDMScheduler, 1, 10.0),
        ("DDIM", DDIMScheduler, 1, 10.0),
        ("DDIM", DDIMScheduler, 8, 15.0),
    ):
        made = scheduler.from_config(architecture.scheduler)
        count = min(batch, batches[-1])
        steps = 2 if report.miniature else STEPS
        measure(
            f"{STEPS} guided steps, {name}, batch {batch}",
            lambda made=made, count=count, steps=steps: sampler.guided(made, count, steps),
            count,
            seconds,
            1 if batch > 1 else 2,
        )
    if report.device.type == "cpu":
        report.skip("compiled by blocks", "on a GPU only: compiling takes minutes of a CPU")
    else:
        with report.case("compiling", 25.0) as found:
            if "skipped" not in found:
                dynamo.cache_size_limit = 128
                unet.compile_repeated_blocks(dynamic=False)
                sampler.one_step(1)
        for batch in (1, 8):
            measure(
                f"one step, compiled by blocks, batch {batch}",
                lambda batch=batch: sampler.one_step(batch),
                batch,
                12 if batch > 1 else 5,
                SHORT_ROUNDS,
            )
    report.skip("compiled as a whole", "takes more than a minute")
    print_table(rows)
    print("  published: 20 images/s; 90 ms in one step, 2590 ms of the teacher (with the text encoder)")


class _Sampler:
    """One-step and guided sampling as diffusers' pipeline does it, without the text encoder."""

    def __init__(
        self, unet: Any, vae: Any, architecture: Architecture, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.unet, self.vae, self.architecture, self.device, self.dtype = unet, vae, architecture, device, dtype
        # Signal and noise at index 999 of SD's schedule.
        products = DDIMScheduler.from_config(architecture.scheduler).alphas_cumprod
        self.alpha, self.sigma = float(products[-1].sqrt()), float((1 - products[-1]).sqrt())

    def _inputs(self, batch: int, copies: int = 1) -> tuple[Tensor, Tensor]:
        noise = torch.randn(batch, *self.architecture.sample_shape, device=self.device, dtype=self.dtype)
        text = self.architecture.conditions(batch * copies)["encoder_hidden_states"]
        return noise, text.to(self.device, self.dtype)

    @torch.inference_mode()
    def one_step(self, batch: int) -> Tensor:
        """Images by one call of the network."""
        noise, text = self._inputs(batch)
        time_ = torch.full((batch,), 999, device=self.device)
        output = self.unet(noise, timestep=time_, encoder_hidden_states=text, return_dict=False)[0]
        return self._decode((noise - self.sigma * output) / self.alpha)

    @torch.inference_mode()
    def guided(self, scheduler: Any, batch: int, steps: int) -> Tensor:
        """Images by a scheduler's steps, both conditions in one batch."""
        latents, text = self._inputs(batch, 2)
        scheduler.set_timesteps(steps, device=self.device)
        latents = latents * scheduler.init_noise_sigma
        for moment in scheduler.timesteps:
            doubled = scheduler.scale_model_input(torch.cat([latents, latents]), moment)
            output = self.unet(doubled, timestep=moment, encoder_hidden_states=text, return_dict=False)[0]
            without, within = output.chunk(2)
            output = without + GUIDANCE * (within - without)
            latents = scheduler.step(output, moment, latents, return_dict=False)[0]
        return self._decode(latents)

    def _decode(self, latents: Tensor) -> Tensor:
        scaled = latents / self.vae.config.scaling_factor
        return torch.cat([self.vae.decode(part, return_dict=False)[0] for part in scaled.split(DECODED)])


def _rounds(action: Callable[[], Tensor], batch: int, rounds: int, report: Report, found: dict[str, Any]) -> None:
    action()
    times = []
    for _ in range(rounds):
        _finish(report.device)
        started = time.perf_counter()
        action()
        _finish(report.device)
        times.append(time.perf_counter() - started)
        if report.left < times[-1]:
            break
    seconds = statistics.median(times)
    found |= {"milliseconds": 1000 * seconds, "imagesASecond": batch / seconds, "rounds": len(times)}


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
