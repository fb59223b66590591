"""The page of `dmdctl serve` in a real browser: it draws while one types, and asks nobody else for anything."""

import base64
import re
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By

from dmdctl.model.generator import Generator
from dmdctl.serving.app import Server
from dmdctl.serving.samplers import GeneratorSampler, TeacherSampler, TeacherSettings
from tests.awkward import AWKWARD
from tests.browser import browser, requested
from tests.cli.serving.conftest import Served, Slow, serving
from tests.operator.live import eventually


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def beside_its_teacher(text_generator: Generator, text_teacher: Path) -> Iterator[Served]:
    teacher = TeacherSampler(text_teacher, TeacherSettings(guidance=2.0), text_generator)
    with serving(Server(GeneratorSampler(text_generator), teacher)) as served:
        yield served


def pictures(driver: Chrome, part: str) -> list[str]:
    """The sources of the pictures in a part of the page, read at once: parts are replaced as answers arrive."""
    found: list[str] = driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(image => image.src)", f"#{part} img"
    )
    return found


def text_of(driver: Chrome, part: str) -> str:
    return str(driver.execute_script("return document.getElementById(arguments[0]).innerText", part))


def pixels(source: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))))


def field(driver: Chrome, name: str, value: str) -> None:
    element = driver.find_element(By.NAME, name)
    element.send_keys(Keys.CONTROL, "a")
    element.send_keys(value or Keys.DELETE)


def test_the_picture_changes_while_one_types(driver: Chrome, beside_its_teacher: Served) -> None:
    requested(driver)
    driver.get(f"{beside_its_teacher.url}/?prompt=red")
    (before,) = eventually(lambda: pictures(driver, "generator"), "a picture", 30)
    driver.find_element(By.NAME, "prompt").send_keys(Keys.END, " apple")

    def changed() -> list[str] | None:
        link = driver.execute_script(LINK)  # first: what is read after it is at least as new
        return pictures(driver, "generator") if "apple" in link else None

    (after,) = eventually(changed, "another picture", 30)
    assert after != before
    generator = beside_its_teacher.generator
    np.testing.assert_array_equal(pixels(after), np.asarray(generator.draw([0], prompts=["red apple"])[0]))
    assert re.search(r"1 network evaluation, \d+ ms", text_of(driver, "generator"))
    eventually(lambda: pictures(driver, "teacher"), "the teacher's picture", 60)
    assert re.search(r"100 network evaluations, \d+ ms", text_of(driver, "teacher"))

    field(driver, "count", "4")
    four = eventually(lambda: len(pictures(driver, "generator")) == 4 and pictures(driver, "generator"), "four", 30)
    assert len(set(four)) == 4
    assert np.abs(pixels(four[0]).astype(int) - pixels(after).astype(int)).max() <= 1

    urls = requested(driver)
    assert len(urls) > 5
    assert not [url for url in urls if not url.startswith(f"{beside_its_teacher.url}/")]
    # htmx reports that stale requests were given up; of what the policy forbids, browsers report everything.
    assert not [entry for entry in driver.get_log("browser") if "htmx:" not in entry["message"]]


LINK = "return (document.querySelector('#generator a[download]') || {href: ''}).href"


def test_the_picture_that_is_downloaded_is_the_one_that_is_shown(driver: Chrome, classes: Served) -> None:
    driver.get(f"{classes.url}/?class_label=7&seed=41")
    (shown,) = eventually(lambda: pictures(driver, "generator"), "a picture", 30)
    link = str(driver.execute_script(LINK))
    assert link.startswith(f"{classes.url}/v1/images.png?")
    content = classes.get(link.removeprefix(classes.url)).content
    np.testing.assert_array_equal(pixels(shown), np.asarray(Image.open(BytesIO(content))))


def test_what_is_out_of_range_is_said_on_the_page(driver: Chrome, classes: Served) -> None:
    driver.get(f"{classes.url}/")
    eventually(lambda: pictures(driver, "generator"), "a picture", 30)
    field(driver, "class_label", "12")
    eventually(lambda: "class_label: 12 is out of range; it may be 0 to 9" in text_of(driver, "generator"), "it", 30)
    field(driver, "class_label", "")
    eventually(lambda: pictures(driver, "generator"), "a picture again", 30)


def test_stale_keystrokes_are_not_drawn(driver: Chrome, slow: tuple[Served, Slow]) -> None:
    served, sampler = slow
    driver.get(f"{served.url}/")
    assert sampler.began.wait(30)
    seed = driver.find_element(By.NAME, "seed")
    for number in range(1, 6):
        field(driver, "seed", str(number))
        assert seed.get_attribute("value") == str(number)
        sent = f"seed={number}&"
        eventually(lambda sent=sent: any(sent in url for url in requested(driver)), f"{sent} is asked for", 30)
    sampler.may_draw.set()
    eventually(lambda: "seed 5" in text_of(driver, "generator"), "the last seed's picture", 30)
    assert [task.seeds for task in sampler.drawn] == [[0], [5]]


def test_the_generator_never_waits_for_the_teacher(
    driver: Chrome, text_generator: Generator, text_teacher: Path
) -> None:
    """The teacher is held in the middle of its solver; its picture is given up when the prompt changes."""
    teacher = TeacherSampler(text_teacher, TeacherSettings(), text_generator)
    in_the_middle, may_end, calls = threading.Event(), threading.Event(), []

    def hold(*_: Any) -> None:
        calls.append(None)
        if len(calls) == 10:
            in_the_middle.set()
            assert may_end.wait(60)

    teacher._teacher.denoiser.network.register_forward_pre_hook(hold)
    with serving(Server(GeneratorSampler(text_generator), teacher)) as served:
        try:
            driver.get(f"{served.url}/?prompt=ghost")
            assert in_the_middle.wait(60)
            driver.find_element(By.NAME, "prompt").send_keys(Keys.END, "s")
            eventually(lambda: "prompt=ghosts" in driver.execute_script(LINK), "the generator's picture", 30)
            assert not pictures(driver, "teacher")
        finally:
            may_end.set()
        eventually(lambda: pictures(driver, "teacher"), "the teacher's picture", 60)
        assert 10 < len(calls) < 100, "the first picture was given up"
        assert served.counted("dmd_serve_images_total", sampler="teacher") == 1


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_text_of_others_is_text(driver: Chrome, beside_its_teacher: Served, text: str) -> None:
    driver.get(f"{beside_its_teacher.url}/?prompt={quote(text, errors='ignore')}&seed={quote(text, errors='ignore')}")
    assert not driver.find_elements(By.CSS_SELECTOR, "body script, body img[onerror]")
    eventually(lambda: text_of(driver, "generator"), "an answer", 30)
    assert not driver.find_elements(By.CSS_SELECTOR, "body script, body img[onerror]")
