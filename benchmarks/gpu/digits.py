"""The digits distillation on any device, and one update of it as numbers to compare."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from benchmarks.digits import EXAMPLE, make_pairs
from dmd_api.loading import load_manifest
from dmd_trainer.data.pairs import Pairs
from dmd_trainer.dmd.distillation import Distillation
from dmd_trainer.dmd.draws import TrainingData
from dmd_trainer.dmd.losses import l2_regression_loss
from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.runtime.fetch import local_path

URI = "builtin://digits-teacher"


@dataclass(frozen=True)
class Update:
    """What one update did.

    Attributes:
        losses: by name.
        gradient_norms: by network.
        gradients: of the generator, as one vector on the CPU.
        weights: of the generator after it, as one vector on the CPU.
        prediction: the teacher's x0 prediction of fixed samples.
    """

    losses: dict[str, float]
    gradient_norms: dict[str, float]
    gradients: Tensor
    weights: Tensor
    prediction: Tensor


def digits_pairs(folder: Path) -> Pairs:
    """The pairs, made on the CPU below `folder`."""
    return make_pairs(load_teacher(local_path(URI, folder)), folder)


def digits_on(
    device: torch.device, pairs: Pairs, *, weights: str = "fp32", offload: bool = False, **training: Any
) -> Distillation:
    """The example's distillation in one process, with fields of its training and of its teacher changed."""
    manifest = load_manifest(EXAMPLE)
    spec = manifest.spec.model_copy(update={"training": manifest.spec.training.model_copy(update=training)})
    teacher = load_teacher(
        local_path(URI, Path()),
        device=device,
        autocast=torch.bfloat16 if spec.training.precision == "bf16" else None,
        weights=weights,
        offload=offload,
    )
    return Distillation(teacher, spec, TrainingData(teacher.conditions(10), pairs), l2_regression_loss)


def kept(distillation: Distillation) -> dict[str, Any]:
    """The state, on the CPU; later steps leave it alone."""
    return tree_map(lambda x: x.detach().cpu().clone() if isinstance(x, Tensor) else x, distillation.state())


def update_from(distillation: Distillation, state: dict[str, Any], step: int) -> Update:
    """The update that comes after `step` steps from `state`."""
    distillation.load_state(copy.deepcopy(state), step)
    report = distillation.step()
    teacher, schedule = distillation.teacher.denoiser, distillation.teacher.denoiser.schedule
    index = torch.arange(8, device=distillation.device) * (len(schedule) // 8)
    x = torch.randn(8, *distillation.teacher.sample_shape, generator=torch.Generator().manual_seed(0))
    labels = {"class_labels": torch.arange(8, device=distillation.device)}
    with torch.no_grad():
        prediction = teacher(x.to(distillation.device), schedule.at(index), labels)
    parameters = distillation.generator_network.parameters
    return Update(
        losses=report.losses,
        gradient_norms=report.gradient_norms,
        gradients=_flat([p.grad for p in parameters if p.grad is not None]),
        weights=_flat(parameters),
        prediction=prediction.cpu().double(),
    )


def differences(found: Update, wanted: Update) -> dict[str, float]:
    """Relative differences, of losses and norms the largest; below 0.01 these count as 0.01."""
    losses = {k: _scalar(found.losses[k], v) for k, v in wanted.losses.items()}
    # A difference of two predictions that are nearly equal at first: narrow weights' rounding is as large.
    matching = losses.pop("distribution_matching")
    norms = [_scalar(found.gradient_norms[k], v) for k, v in wanted.gradient_norms.items()]
    return {
        "losses": max(losses.values()),
        "matchingLoss": matching,
        "gradientNorms": max(norms),
        "gradients": _relative(found.gradients, wanted.gradients),
        "weights": _relative(found.weights, wanted.weights),
        "x0": _relative(found.prediction, wanted.prediction),
    }


def _scalar(found: float, wanted: float) -> float:
    return abs(found - wanted) / max(abs(wanted), 1e-2) if math.isfinite(found) else math.inf


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))


def _flat(tensors: list[Any]) -> Tensor:
    return torch.cat([t.detach().cpu().double().reshape(-1) for t in tensors])
