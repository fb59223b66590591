"""The generator and its teacher as samplers: the same noise for the same seed"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_api.spec import Method
from dmd_trainer.diffusion.default_solver import SolverSteps, default_solver, teacher_sampling
from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.diffusion.solvers import teacher_solver
from dmd_trainer.families.teacher import Teacher, load_teacher
from dmd_trainer.families.text_encoder import TextEncoder
from dmdctl.model.generator import Generator
from dmdctl.serving.batching import GoneError
from dmdctl.serving.wanted import Task

LOOK_SECONDS = 0.05
"""Between two looks at whether somebody still waits for a teacher that is held."""


class GeneratorSampler:
    """Draws with a generator.

    Args:
        generator: loaded.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self._evaluations = _Evaluations(generator.network)

    def draw(self, task: Task, gone: threading.Event) -> tuple[Sequence[Any], int]:
        """Images (PIL), and network evaluations for each; a generator is fast enough not to be given up."""
        self._evaluations.count = 0
        images = self.generator.draw(task.seeds, task.labels, task.prompts, task.steps)
        return images, self._evaluations.count // len(task)


class TeacherSettings(NamedTuple):
    """How a teacher is sampled.

    Attributes:
        guidance: its scale; 1 turns it off.
        method: whose solver is the teacher's; None: the default one.
        classes: how many there are, where the teacher may embed one more that stands for none; None: as many as it
            embeds.
    """

    guidance: float = 1.0
    method: Method | None = None
    classes: int | None = None


class TeacherSampler:
    """Draws with a teacher, and waits between its network evaluations while the generator has something to draw.

    Args:
        folder: the teacher's pipeline.
        settings: of its solver.
        generator: whose noise and labels it is given.

    Raises:
        BadInputError: it cannot be loaded, or draws other pictures than the generator.
    """

    def __init__(self, folder: Path, settings: TeacherSettings, generator: Generator) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._teacher = teacher = load_teacher(folder, device=self._device)
        if teacher.takes_text != generator.takes_text or tuple(teacher.sample_shape) != generator.sample_shape:
            raise BadInputError(
                f"--teacher {folder}: is not this generator's: one draws {_what(teacher.takes_text)} of "
                f"{tuple(teacher.sample_shape)}, the other {_what(generator.takes_text)} of {generator.sample_shape}"
            )
        self._text = TextEncoder(teacher.directory, self._device) if teacher.takes_text else None
        self._solve = teacher_solver(
            teacher.denoiser, *_sampling(settings, teacher), settings.guidance, self._negative(settings)
        )
        self._dtype = generator.dtype
        self._may_go_on = threading.Event()
        self._may_go_on.set()
        self._gone = threading.Event()
        self._evaluations = _Evaluations(teacher.denoiser.network)
        teacher.denoiser.network.register_forward_pre_hook(self._wait_for_the_generator)

    def pause(self, wanted: bool) -> None:
        """Holds the teacher before its next network evaluation, or lets it go on."""
        if wanted:
            self._may_go_on.clear()
        else:
            self._may_go_on.set()

    @torch.no_grad()
    def draw(self, task: Task, gone: threading.Event) -> tuple[Sequence[Any], int]:
        """Images (PIL) for the noise that the generator draws from, and network evaluations for each.

        Raises:
            GoneError: `gone` was set meanwhile.
        """
        self._gone = gone
        shape = (1, *self._teacher.sample_shape)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(s), dtype=self._dtype) for s in task.seeds]
        self._evaluations.count = 0
        solved = self._solve(torch.cat(noise).float().to(self._device), self._condition(task))
        images = (self._teacher.autoencoder.decode(solved) / 2 + 0.5).clamp(0, 1)
        return [_picture(image) for image in images], self._evaluations.count // len(task)

    def _wait_for_the_generator(self, *_: Any) -> None:
        while not self._may_go_on.wait(LOOK_SECONDS) or self._gone.is_set():
            if self._gone.is_set():
                raise GoneError

    def _condition(self, task: Task) -> Condition:
        if self._text is not None:
            return self._whole(self._text.encode(task.prompts or []), len(task))
        return self._whole({} if task.labels is None else {"class_labels": torch.tensor(task.labels)}, len(task))

    def _negative(self, settings: TeacherSettings) -> Condition | None:
        """What guidance leads away from: the empty prompt, or the last label where it stands for no class."""
        if self._text is not None:
            return self._whole(self._text.negative(), 1)
        negative = self._teacher.conditions(settings.classes or self._teacher.num_class_embeds).negative
        return None if negative is None else self._whole(negative, 1)

    def _whole(self, condition: Condition, count: int) -> Condition:
        added = {key: value.expand(count, *value.shape[1:]) for key, value in self._teacher.added_conditions.items()}
        return {key: value.to(self._device) for key, value in {**condition, **added}.items()}


class _Evaluations:
    """Counts for how many samples a network is called."""

    def __init__(self, network: Any) -> None:
        self.count = 0
        network.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, _: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        sample = given[0] if given else named["sample" if "sample" in named else "hidden_states"]
        self.count += len(sample)


def _sampling(settings: TeacherSettings, teacher: Teacher) -> SolverSteps:
    prediction = teacher.denoiser.prediction
    return default_solver(prediction) if settings.method is None else teacher_sampling(settings.method, prediction)


def _picture(image: Tensor) -> Any:
    from torchvision.transforms.functional import to_pil_image

    return to_pil_image(image.cpu())


def _what(takes_text: bool) -> str:
    return "prompts" if takes_text else "classes or anything"
