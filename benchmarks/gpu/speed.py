"""Steps against bare passes, what settings change, and how long the GPU waits in a step."""

import contextlib
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch._dynamo import config as dynamo
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.bare_passes import bare_passes
from benchmarks.gpu.recipes import Recipe, build
from benchmarks.gpu.report import Report, print_table
from dmd_trainer.diffusion.randomness import KeyedRandom
from dmd_trainer.dmd.distillation import Distillation

ROUNDS = 3
CASE_SECONDS = 14.0
"""After which no further round is begun."""
DMD = Recipe("distill-sd15", "sd15", micro_batch=16)
CASES = {
    "SD 1.5, DMD, batch 16": DMD,
    "SDXL, DMD2 with GAN, LoRA, batch 2": Recipe("distill-sdxl-dmd2-lora", "sdxl", fake_score_updates=2),
    "SD 1.5, DMD2 with GAN, batch 16": Recipe("distill-sd15-dmd2-phase2", "sd15", micro_batch=16, fake_score_updates=2),
}
FP32 = (("precision", "fp32"),)
SMALL = 4
SETTINGS: dict[str, tuple[Recipe, str]] = {
    "channels-last": (Recipe("distill-sd15", "sd15", 16, training=(("channels_last", True),)), ""),
    "cudnn.benchmark": (DMD, "benchmark"),
    "float32, batch 4": (Recipe("distill-sd15", "sd15", SMALL, training=FP32), ""),
    "float32 with TF32, batch 4": (Recipe("distill-sd15", "sd15", SMALL, training=FP32), "tf32"),
    "compiled by blocks": (DMD, "compile"),
}
NEEDED = {"compiled by blocks": 35.0}
ANNOTATIONS = {"normal": "keyed draws", "integers": "keyed draws"}


def run(report: Report) -> None:
    """Measures every case that there is time for."""
    rows: list[dict[str, Any]] = []
    for name, recipe in CASES.items():
        with report.case(name, 10.0) as found:
            if "skipped" not in found:
                distillation = _build(recipe, report)
                _time_both(distillation, report, found)
                if recipe is DMD:
                    found["idle"] = _idle(distillation, report)
                del distillation
                rows.append({"case": name, **{k: v for k, v in found.items() if isinstance(v, float)}})
    for name, (recipe, switch) in SETTINGS.items():
        if switch == "compile" and report.device.type == "cpu":
            report.skip(name, "on a GPU only: compiling takes minutes of a CPU")
            continue
        with report.case(name, NEEDED.get(name, 10.0)) as found:
            if "skipped" not in found:
                with _switched(switch):
                    distillation = _build(recipe, report)
                    if switch == "compile":
                        _compile(distillation)
                    seconds = _time(distillation.step, report)
                    found["warmUpSeconds"] = seconds
                    times = [_time(distillation.step, report) for _ in range(1 if report.miniature else ROUNDS)]
                    found["stepSeconds"] = statistics.median(times)
                    found["stepsASecond"] = 1 / found["stepSeconds"]
                    del distillation
                rows.append({"case": name, **{k: v for k, v in found.items() if isinstance(v, float)}})
    print_table(rows)


def _build(recipe: Recipe, report: Report) -> Distillation:
    return build(recipe.manifest(report.miniature), recipe.networks(report.miniature), report.device)


def _time_both(distillation: Distillation, report: Report, found: dict[str, Any]) -> None:
    """Medians of steps and of bare passes, which take turns."""
    started = time.perf_counter()
    distillation.step()
    bare_passes(distillation)
    times: dict[str, list[float]] = {"step": [], "bare": []}
    for _ in range(1 if report.miniature else ROUNDS):
        times["bare"].append(_time(lambda: bare_passes(distillation), report))
        times["step"].append(_time(distillation.step, report))
        if time.perf_counter() - started > CASE_SECONDS:
            break
    ratio = statistics.median(step / bare for step, bare in zip(times["step"], times["bare"], strict=True))
    step, bare = (statistics.median(times[name]) for name in ("step", "bare"))
    found |= {"stepSeconds": step, "bareSeconds": bare, "ratio": ratio, "stepsASecond": 1 / step}
    found["rounds"] = len(times["step"])


def _time(action: Callable[[], Any], report: Report) -> float:
    cuda = report.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    action()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


@contextlib.contextmanager
def _switched(switch: str) -> Iterator[None]:
    tf32 = switch == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = switch == "benchmark"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False


def _compile(distillation: Distillation) -> None:
    # Blocks of several shapes share their code: the default of eight variants would be used up.
    dynamo.cache_size_limit = 128
    distillation.generator_network.module.compile_repeated_blocks(dynamic=False)  # type: ignore[operator]
    assert distillation.fake_score_network is not None
    network: Any = distillation.fake_score_network.module
    network.network.compile_repeated_blocks(dynamic=False)
    teacher: Any = distillation.teacher.denoiser.network
    teacher.compile_repeated_blocks(dynamic=False)


def _idle(distillation: Distillation, report: Report) -> dict[str, Any]:
    """The share of a step in which no kernel runs, with what the CPU does meanwhile."""
    cuda = report.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with tempfile.TemporaryDirectory() as folder, _annotated():
        with profile(activities=activities) as profiler:
            distillation.step()
            if cuda:
                torch.cuda.synchronize()
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return idle_share(events)


def idle_share(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a Chrome trace: the share of the time between first and last kernel in which none runs, with its causes.

    Returns:
        `share`; `milliseconds`; and `causes`, milliseconds by what the CPU's threads do in the gaps, largest first.
    """
    whole = [e for e in events if e.get("ph") == "X" and "dur" in e]
    device = sorted(
        (e["ts"], e["ts"] + e["dur"]) for e in whole if e.get("cat") in {"kernel", "gpu_memcpy", "gpu_memset"}
    )
    if not device:
        return {"share": None, "milliseconds": None, "causes": {}}
    gaps: list[tuple[float, float]] = []
    end = device[0][1]
    for start, stop in device:
        if start > end:
            gaps.append((end, start))
        end = max(end, stop)
    span, idle = end - device[0][0], sum(b - a for a, b in gaps)

    causes: Counter[str] = Counter()
    threads: dict[Any, list[dict[str, Any]]] = {}
    for event in whole:
        if event.get("cat") in {"cpu_op", "cuda_runtime", "cuda_driver", "user_annotation"}:
            threads.setdefault((event.get("pid"), event.get("tid")), []).append(event)
    for own in threads.values():
        # Segments and gaps are both in the order of time.
        position = 0
        for start, stop, name in _innermost(own):
            while position < len(gaps) and gaps[position][1] <= start:
                position += 1
            at = position
            while at < len(gaps) and gaps[at][0] < stop:
                causes[name] += max(0.0, min(stop, gaps[at][1]) - max(start, gaps[at][0]))
                at += 1
    known = sum(causes.values())
    causes["Python, between operations"] += max(0.0, idle - known)
    largest = {name: round(time / 1000, 3) for name, time in causes.most_common(12) if time}
    return {"share": idle / span if span else 0.0, "milliseconds": idle / 1000, "causes": largest}


def _innermost(events: list[dict[str, Any]]) -> list[tuple[float, float, str]]:
    """A thread's time as segments, each named by the innermost event; ours name all that is inside."""
    segments: list[tuple[float, float, str]] = []
    stack: list[tuple[float, str]] = []  # ends and names
    now = 0.0

    def advance(until: float) -> None:
        nonlocal now
        while stack and stack[-1][0] <= until:
            end, name = stack.pop()
            if end > now:
                segments.append((now, end, name))
                now = end
        if stack and until > now:
            segments.append((now, until, stack[-1][1]))
        now = max(now, until)

    ours = set(ANNOTATIONS.values())
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        advance(event["ts"])
        name = stack[-1][1] if stack and stack[-1][1] in ours else str(event["name"])
        stack.append((event["ts"] + event["dur"], name))
    advance(float("inf"))
    return segments


@contextlib.contextmanager
def _annotated() -> Iterator[None]:
    """Names keyed draws in the trace."""
    plain = {name: getattr(KeyedRandom, name) for name in ANNOTATIONS}

    def named(method: Callable[..., Any], label: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with record_function(label):
                return method(*arguments)

        return call

    for name, label in ANNOTATIONS.items():
        setattr(KeyedRandom, name, named(plain[name], label))
    try:
        yield
    finally:
        for name, method in plain.items():
            setattr(KeyedRandom, name, method)
