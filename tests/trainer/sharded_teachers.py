"""Run by torchrun: a sharded teacher predicts as a whole one, whatever its weights are kept in."""

import sys
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist

from dmd_api.spec import Training
from dmd_trainer.distributed.sharding import shard
from dmd_trainer.families.teacher import load_teacher


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for precision, weights in product(("fp32", "bf16"), ("fp32", "bf16", "fp8")):
        compare(Path(folder), precision, weights)
    dist.destroy_process_group()


def compare(folder: Path, precision: str, weights: str) -> None:
    training = Training.model_validate(
        {"batchSize": 2, "generatorUpdates": 2, "learningRate": 1e-3, "sharding": "FSDP", "precision": precision}
    )
    autocast = torch.bfloat16 if precision == "bf16" else None
    whole, sharded = (load_teacher(folder, autocast=autocast, weights=weights) for _ in range(2))
    assert shard(sharded.denoiser.network, training, sharded.family.blocks(sharded.denoiser.network))
    level = whole.denoiser.schedule.at(torch.tensor([500, 500]))
    text = torch.randn(2, 16, whole.denoiser.network.config.cross_attention_dim)
    for _ in range(3):  # what is gathered is given back, and gathered again
        noise = torch.randn(2, *whole.sample_shape)
        with torch.no_grad():
            expected, found = (t.denoiser(noise, level, {"encoder_hidden_states": text}) for t in (whole, sharded))
        assert torch.equal(found, expected), (precision, weights, (found - expected).abs().max())


if __name__ == "__main__":
    main(*sys.argv[1:])
