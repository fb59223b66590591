"""Sampler against sampler: one-step generators and their teachers, alone and from the prompt to the picture."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from dmd_trainer.diffusion.generator import Generator
from dmd_trainer.diffusion.solvers import Solver, teacher_solver
from dmd_trainer.evaluation.timing import Throughput, measure_throughput
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.publishing.export import call_arguments, export_pipeline
from dmd_trainer.publishing.model_card import CardFacts
from dmd_trainer.runtime.fetch import ASSETS, local_path

BATCH, STEPS, ROUNDS = 64, 18, 9
EVALUATIONS = 2 * STEPS - 1
LIMIT = 0.9 * EVALUATIONS
TEXT_STEPS, GUIDANCE = 50, 3.0
TEXT_BATCHES = (1, 64)
PARTS = ("sampler", "whole")
"""Of a pipeline: the network's calls alone, and with text encoder, VAE and pictures."""
FACTS = CardFacts("benchmark", "builtin://emoji-teacher", "DMD", "none", "not measured")


def run() -> dict[str, Any]:
    """How many times faster the generators are; their weights do not matter, the teachers' own serve."""
    torch.set_num_threads(1)
    return _digits() | {"textToImage": _emoji()}


@torch.inference_mode()
def _digits() -> dict[str, Any]:
    """The digits teacher's solver and one call of its network, which take turns."""
    teacher = load_teacher(local_path("builtin://digits-teacher", Path()))
    noise = torch.randn(BATCH, *teacher.sample_shape)
    condition = {"class_labels": torch.randint(0, 10, (BATCH,))}
    generator = Generator(teacher.denoiser, (len(teacher.denoiser.schedule) - 1,))
    samplers: dict[str, Solver] = {"teacher": teacher_solver(teacher.denoiser, "Heun", STEPS), "generator": generator}
    times: dict[str, list[float]] = {name: [] for name in samplers}
    for round_ in range(ROUNDS + 1):
        for name, sampler in samplers.items():
            repeats = 1 if name == "teacher" else EVALUATIONS  # as long as the teacher, for as steady a clock
            started = time.perf_counter()
            for _ in range(repeats):
                sampler(noise, condition)
            if round_:
                times[name].append((time.perf_counter() - started) / repeats)
    seconds = {name: statistics.median(found) for name, found in times.items()}
    speedup = seconds["teacher"] / seconds["generator"]
    print(f"teacher    {1000 * seconds['teacher'] / BATCH:8.3f} ms an image, {EVALUATIONS} network evaluations")
    print(f"generator  {1000 * seconds['generator'] / BATCH:8.3f} ms an image, 1 network evaluation")
    print(f"speed-up   {speedup:8.1f}       at least {LIMIT:.1f} (0.9 x {EVALUATIONS})")
    return {"secondsPerImage": {k: v / BATCH for k, v in seconds.items()}, "speedup": speedup, "limit": LIMIT}


def _emoji() -> dict[str, Any]:
    """The emoji teacher's pipeline in 50 guided steps beside the one that is exported of a generator."""
    teacher = load_teacher(ASSETS / "emoji-teacher")
    weights = teacher.denoiser.network.state_dict()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        export_pipeline(teacher, weights, [len(teacher.denoiser.schedule) - 1], Path(folder), FACTS)
        pipelines = {
            "teacher": (teacher.directory, {"num_inference_steps": TEXT_STEPS, "guidance_scale": GUIDANCE}),
            "generator": (Path(folder), call_arguments("StableDiffusionPipeline")),
        }
        loaded = {name: StableDiffusionPipeline.from_pretrained(path) for name, (path, _) in pipelines.items()}
    for pipeline in loaded.values():
        pipeline.set_progress_bar_config(disable=True)
    print(f"{'text to image':22} sampler, ms  whole, ms   images/s")
    for batch in TEXT_BATCHES:
        found: dict[str, Throughput] = {}
        for name, (_, arguments) in pipelines.items():
            found[name] = measure_throughput(loaded[name], arguments, batch)
            sampler_ms, whole_ms = (1000 * getattr(found[name], part) for part in PARTS)
            speed = found[name].images_per_second
            print(f"{name:10} batch {batch:<4}  {sampler_ms:11.1f}{whole_ms:11.1f}{speed:11.1f}", flush=True)
        sampler, whole = (getattr(found["teacher"], part) / getattr(found["generator"], part) for part in PARTS)
        print(f"speed-up   batch {batch:<4}  {sampler:11.1f}{whole:11.1f}")
        results[f"batch{batch}"] = {"samplerSpeedup": sampler, "wholeSpeedup": whole} | {
            f"{name}Milliseconds": {part: 1000 * getattr(of, part) for part in PARTS} for name, of in found.items()
        }
    return results
