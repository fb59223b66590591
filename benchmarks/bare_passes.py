"""What a training step is measured against: the bare passes it cannot avoid, and data that costs nothing to read."""

from typing import Any

import torch
from torch import Tensor

from dmd_trainer.diffusion.denoiser import Condition
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.families.teacher import Teacher

ROWS = 4


def bare_passes(distillation: Distillation) -> None:
    """The forward and backward passes of the step that comes next, and nothing else: no draws, losses or updates."""
    d, step, device = distillation, distillation.step_count, distillation.device
    batch, teacher = d.local_batch, distillation.teacher
    x = torch.randn(batch, *teacher.sample_shape, device=device)
    labels = {"class_labels": torch.zeros(batch, dtype=torch.int64)} if teacher.num_class_embeds else {}
    conditions = d.draws.data.conditions
    drawn = conditions.in_turn(batch) if teacher.takes_text else labels
    condition = conditions.embed(drawn, x.device)
    level = teacher.denoiser.schedule.at(torch.full((batch,), len(teacher.denoiser.schedule) // 2, device=device))

    def classify(images: Tensor) -> Tensor:
        (logits,) = d.mu_fake.call_network(images, level, condition, denoise=False, classify=True)
        return logits.mean()

    indices = range(batch)
    number = d.draws.generator_step(step, 0, indices)
    d.fake_score_network.requires_grad(False)
    with torch.no_grad():
        x_in = d.generator.input(x, condition, number)
    if d.draws.data.pairs is not None:
        both = {key: torch.cat([value, value]) for key, value in condition.items()}
        images = d.generator.step(torch.cat([x_in, x_in]), both, number.repeat(2))
    else:
        images = d.generator.step(x_in, condition, number)
    with torch.no_grad():
        d.models.mu_real(x, level, condition)
        d.mu_fake(x, level, condition)
    loss = images.square().mean()
    if d.method.gan is not None:
        loss = loss + classify(images[:batch])
    loss.backward()
    d.fake_score_network.requires_grad(True)
    for update in range(d.method.fake_score_updates):
        if update:
            number = d.draws.generator_step(step, update, indices)
            with torch.no_grad():
                d.generator.step(d.generator.input(x, condition, number), condition, number)
        if d.method.gan is None:
            loss = d.mu_fake(x, level, condition).square().mean()
        else:
            denoised, logits = d.mu_fake.call_network(x, level, condition, classify=True)
            loss = denoised.square().mean() + logits.mean() + classify(x)  # real images
        loss.backward()


class Rows:
    """Pairs, as the step reads them; always the same."""

    def __init__(self, teacher: Teacher) -> None:
        self.shape, self.takes_text = teacher.sample_shape, teacher.takes_text

    def __len__(self) -> int:
        return ROWS

    def at(self, indices: Tensor) -> tuple[Tensor, ...] | Any:
        noise = torch.zeros(len(indices), *self.shape)
        return noise, noise, self.drawn(len(indices))

    def drawn(self, count: int) -> Condition:
        return {"prompt" if self.takes_text else "class_labels": torch.zeros(count, dtype=torch.int64)}


class RealRows(Rows):
    """Real images, as the GAN term reads them."""

    def at(self, indices: Tensor) -> Any:
        images, _, _ = super().at(indices)
        return images, {} if self.takes_text else self.drawn(len(indices))

    def prefetch(self, indices: Tensor) -> None:
        """Everything is in memory."""
