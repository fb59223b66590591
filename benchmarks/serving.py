"""What serving costs: a request beside the bare pipeline call, and a keystroke until its picture in a browser."""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import torch
import uvicorn
from selenium.webdriver import Keys
from selenium.webdriver.common.by import By
from tests.browser import browser

from dmd_trainer.families.teacher import load_teacher
from dmd_trainer.publishing.export import export_pipeline
from dmd_trainer.publishing.model_card import CardFacts
from dmd_trainer.runtime.fetch import ASSETS
from dmdctl.model.generator import Generator, find_generator
from dmdctl.serving.app import Server, make_app
from dmdctl.serving.samplers import GeneratorSampler
from dmdctl.verbosity import quiet_libraries

ROUNDS, KEYSTROKES = 40, 60
TIMES, MORE_MS = 1.2, 30
PICTURE_MS = 300
PROMPT = "smiling face with sunglasses"
FACTS = CardFacts("benchmark", "builtin://emoji-teacher", "DMD", "none", "not measured")


def run() -> dict[str, Any]:
    """Both, with the emoji's network; its weights do not matter, the teacher's own serve."""
    torch.set_num_threads(2)
    quiet_libraries()
    teacher = load_teacher(ASSETS / "emoji-teacher")
    with tempfile.TemporaryDirectory() as folder:
        export_pipeline(teacher, teacher.denoiser.network.state_dict(), [999], Path(folder), FACTS)
        generator = Generator(find_generator(folder, None))
        with _serving(Server(GeneratorSampler(generator))) as url:
            return _requests(url, generator) | _keystrokes(url)


def _requests(url: str, generator: Generator) -> dict[str, Any]:
    """A request and the bare call, which take turns."""
    session = requests.Session()
    asked = {"prompt": PROMPT, "seed": 1}
    turns: dict[str, Callable[[], object]] = {
        "bareMs": lambda: generator.draw([1], prompts=[PROMPT]),
        "requestMs": lambda: session.post(f"{url}/v1/images", json=asked, timeout=60).raise_for_status(),
    }
    times: dict[str, list[float]] = {name: [] for name in turns}
    for round_ in range(ROUNDS + 3):
        for name, turn in turns.items():
            began = time.perf_counter()
            turn()
            if round_ >= 3:
                times[name].append(1000 * (time.perf_counter() - began))
    found = {name: statistics.median(values) for name, values in times.items()}
    limit = max(TIMES * found["bareMs"], found["bareMs"] + MORE_MS)
    print(f"bare call  {found['bareMs']:6.1f} ms")
    print(f"request    {found['requestMs']:6.1f} ms      at most {limit:.1f}")
    return found | {"requestLimitMs": limit, "ratio": found["requestMs"] / found["bareMs"]}


def _keystrokes(url: str) -> dict[str, Any]:
    """From a key that is pressed to the picture that is in the page, by the browser's own clock."""
    times: list[float] = []
    with browser() as driver:
        driver.get(url)
        box = driver.find_element(By.NAME, "prompt")
        box.send_keys(Keys.CONTROL, "a")
        driver.execute_script(WATCH)
        for number in range(KEYSTROKES + 3):
            driver.execute_script("window.took = null")
            box.send_keys("abcdefghij "[number % 11])
            while (took := driver.execute_script("return window.took")) is None:
                time.sleep(0.01)
            if number >= 3:
                times.append(took)
    p95 = statistics.quantiles(times, n=20)[-1]
    print(f"keystroke to picture  {statistics.median(times):.0f} ms, p95 {p95:.0f} ms      at most {PICTURE_MS}")
    return {"pictureMs": statistics.median(times), "pictureP95Ms": p95, "pictureLimitMs": PICTURE_MS}


WATCH = """
window.took = null
document.querySelector('[name=prompt]').addEventListener('input', () => { window.pressed = performance.now() })
new MutationObserver(() => {
  const image = document.querySelector('#generator img')
  if (image) image.decode().then(() => { window.took ??= performance.now() - window.pressed })
}).observe(document.getElementById('generator'), {childList: true})
"""


@contextmanager
def _serving(server: Server) -> Iterator[str]:
    running = uvicorn.Server(uvicorn.Config(make_app(server), port=0, log_level="warning"))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        while not running.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()
