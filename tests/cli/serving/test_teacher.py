"""A teacher beside its generator: diffusers' own pictures of the generator's noise, between the generator's."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from dmd_api.errors import BadInputError
from dmdctl.model.generator import Generator
from dmdctl.serving.batching import GoneError
from dmdctl.serving.samplers import TeacherSampler, TeacherSettings
from dmdctl.serving.wanted import Wanted, task_for
from tests.operator.live import eventually


def test_its_pictures_are_its_own_pipelines(text_generator: Generator, text_teacher: Path) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    teacher = TeacherSampler(text_teacher, TeacherSettings(guidance=3.0), text_generator)
    task = task_for(Wanted(prompt="ghost", seed=4, count=2), text_generator)
    images, evaluations = teacher.draw(task, threading.Event())
    pipeline = StableDiffusionPipeline.from_pretrained(text_teacher, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in (4, 5)]
    expected = pipeline(["ghost"] * 2, num_inference_steps=50, guidance_scale=3.0, generator=noise).images
    for own, other in zip(images, expected, strict=True):
        assert np.abs(np.asarray(own).astype(int) - np.asarray(other)).max() <= 2
    assert evaluations == 100


def test_classes_are_the_generators(class_generator: Generator, tiny_teacher: Path) -> None:
    teacher = TeacherSampler(tiny_teacher, TeacherSettings(), class_generator)
    images, evaluations = teacher.draw(task_for(Wanted(seed=1, count=10), class_generator), threading.Event())
    assert evaluations == 35
    alone, _ = teacher.draw(task_for(Wanted(seed=4, class_label=3), class_generator), threading.Event())
    assert np.abs(np.asarray(images[3]).astype(int) - np.asarray(alone[0])).max() <= 1


def test_it_waits_for_the_generator_and_gives_up(class_generator: Generator, tiny_teacher: Path) -> None:
    teacher = TeacherSampler(tiny_teacher, TeacherSettings(), class_generator)
    calls: list[None] = []
    teacher._teacher.denoiser.network.register_forward_pre_hook(lambda *_: calls.append(None))
    gone = threading.Event()
    ended: list[BaseException] = []

    def draw() -> None:
        try:
            teacher.draw(task_for(Wanted(), class_generator), gone)
        except GoneError as error:
            ended.append(error)

    teacher.pause(True)
    thread = threading.Thread(target=draw)
    thread.start()
    assert not calls
    gone.set()
    thread.join(30)
    assert (len(calls), len(ended)) == (0, 1)
    teacher.pause(False)
    teacher.draw(task_for(Wanted(), class_generator), threading.Event())
    eventually(lambda: len(calls) == 35, "all evaluations", 10)


def test_another_generators_teacher_is_refused(
    text_generator: Generator, class_generator: Generator, tiny_teacher: Path
) -> None:
    with pytest.raises(BadInputError, match="is not this generator's"):
        TeacherSampler(tiny_teacher, TeacherSettings(), text_generator)
    with pytest.raises(BadInputError, match="no condition for 'none'"):
        TeacherSampler(tiny_teacher, TeacherSettings(guidance=2.0), class_generator)
