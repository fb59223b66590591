"""A stranger's process: loads pipelines, calls them and keeps their images, and cannot import this project.

Its argument is a JSON file of jobs: {"folder", "out", "call"}, and optionally "lora": a file of adapters to load,
"latents" or "seeds", "trust", "load": more arguments of from_pretrained, "card": run the README's example instead.
"""

import json
import os
import re
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any


class _Guard(MetaPathFinder):
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        assert not name.startswith(("dmd_", "dmdctl", "tests")), f"a stranger has no {name}"


sys.meta_path.insert(0, _Guard())

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402


def run(job: dict[str, Any]) -> None:
    folder, out = job["folder"], Path(job["out"])
    if job.get("card"):
        (example,) = re.findall(r"```python\n(.*?)```", Path(folder, "README.md").read_text(), re.DOTALL)
        out.mkdir()
        os.chdir(out)
        exec(example.replace("THIS_FOLDER", folder), {})
        return
    options = {**job.get("load", {}), "trust_remote_code": job.get("trust", False)}
    if "torch_dtype" in options:
        options["torch_dtype"] = getattr(torch, options["torch_dtype"])
    pipeline = DiffusionPipeline.from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    if "lora" in job:
        path = Path(job["lora"])
        pipeline.load_lora_weights(path.parent, weight_name=path.name) if path.suffix else pipeline.load_lora_weights(
            path
        )
    call = dict(job["call"])
    if "latents" in job:
        call["latents"] = torch.from_numpy(np.load(job["latents"])).to(pipeline.dtype)
    if "seeds" in job:
        call["generator"] = [torch.Generator().manual_seed(seed) for seed in job["seeds"]]
    np.save(out, pipeline(output_type="np", **call).images)


for each in json.loads(Path(sys.argv[1]).read_text()):
    run(each)
