"""A real browser: Debian's Chromium without a window, driven by Selenium."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from tests.cluster.binaries import install_debian_packages

PACKAGES = {"chromium": "chromium", "chromium-driver": "chromedriver"}
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # it runs as root here, and opens what the tests serve
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1000,760",
)


@contextmanager
def browser() -> Iterator[Chrome]:
    """A browser that remembers what it asked for; its driver looks for nothing on the network."""
    if os.geteuid() and not all(shutil.which(program) for program in PACKAGES.values()):
        pytest.skip("chromium and chromedriver are missing, and installing them needs root")
    install_debian_packages(PACKAGES)
    options = ChromeOptions()
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def requested(driver: Chrome) -> list[str]:
    """The URLs of all requests since the last call, those with their content in them left out."""
    events: list[dict[str, Any]] = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith("data:")]
