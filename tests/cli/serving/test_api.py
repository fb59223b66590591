"""The API of `dmdctl serve`: pictures as diffusers draws them, in batches, within limits."""

import base64
import http.client
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from dmdctl.model.generator import Generator, find_generator
from dmdctl.serving.app import Limits, Server
from dmdctl.serving.samplers import GeneratorSampler
from dmdctl.serving.wanted import MAX_SEED
from tests.cli.serving.conftest import Served, Slow, serving
from tests.operator.live import eventually

TOKEN = "0123456789abcdef-ümlaut"


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(content))).astype(int)


def drawn(answer: dict[str, Any]) -> list[np.ndarray]:
    return [pixels(base64.b64decode(image["png"])) for image in answer["images"]]


def test_pictures_are_those_of_the_pipeline_alone(text: Served) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(text.generator.found.folder)
    pipeline.set_progress_bar_config(disable=True)
    answer = text.post(prompt="red apple", seed=7).json()
    noise = torch.Generator("cpu").manual_seed(7)
    expected = pipeline("red apple", num_inference_steps=1, guidance_scale=0.0, generator=noise).images[0]
    np.testing.assert_array_equal(drawn(answer)[0], np.asarray(expected))
    assert answer["evaluations"] == 1
    assert answer["milliseconds"] > 0
    downloaded = text.get("/v1/images.png", params={"prompt": "red apple", "seed": 7})
    np.testing.assert_array_equal(pixels(downloaded.content), np.asarray(expected))
    assert downloaded.headers["Content-Disposition"] == 'attachment; filename="seed-7.png"'


def test_several_seeds_are_several_pictures_and_a_grid(classes: Served) -> None:
    answer = classes.post(class_label=3, seed=5, count=3).json()
    assert [image["seed"] for image in answer["images"]] == [5, 6, 7]
    alone = [drawn(classes.post(class_label=3, seed=seed).json())[0] for seed in (5, 6, 7)]
    assert max(np.abs(a - b).max() for a, b in zip(alone, drawn(answer), strict=True)) <= 1
    assert (alone[0] != alone[1]).any()
    grid = pixels(classes.get("/v1/images.png", params={"class_label": 3, "seed": 5, "count": 3}).content)
    assert grid.shape[1] > 3 * grid.shape[0] / 2


def test_without_a_label_each_picture_is_the_next_class(classes: Served) -> None:
    answer = drawn(classes.post(seed=5, count=11).json())
    expected = drawn(classes.post(class_label=9, seed=14).json())[0]
    assert np.abs(answer[9] - expected).max() <= 1


REFUSED = [
    ({"seed": -1}, "seed", f"-1 is out of range; it may be 0 to {MAX_SEED}"),
    ({"seed": MAX_SEED, "count": 2}, "seed", f"out of range; it may be 0 to {MAX_SEED - 1}"),
    ({"seed": 1.5}, "seed", "valid integer"),
    ({"count": 17}, "count", "17 is out of range; it may be 1 to 16"),
    ({"steps": 2}, "steps", "2 is out of range; it may be 1"),
    ({"sed": 1}, "sed", "is not known; there are prompt, class_label, seed, count, steps"),
]


@pytest.mark.parametrize(
    ("wanted", "field", "message"),
    [*REFUSED, ({"class_label": 10}, "class_label", "0 to 9"), ({"prompt": "x"}, "prompt", "does not draw from text")],
)
def test_what_cannot_be_drawn_is_refused_with_its_range(
    classes: Served, wanted: dict[str, Any], field: str, message: str
) -> None:
    for answer in (classes.post(**wanted), classes.get("/v1/images.png", params=wanted)):
        assert answer.status_code == 400
        (error,) = answer.json()["errors"]
        assert error["field"] == field
        assert message in error["message"]


@pytest.mark.parametrize(
    ("wanted", "field", "message"),
    [
        ({}, "prompt", "missing; this generator draws from text of 1 to 1000 characters"),
        ({"prompt": " "}, "prompt", "missing"),
        ({"prompt": "x" * 1001}, "prompt", "has 1001 characters; it may have 1 to 1000"),
        ({"prompt": "x", "class_label": 1}, "class_label", "no classes"),
        ({"prompt": 3}, "prompt", "valid string"),
    ],
)
def test_prompts_are_needed_and_bounded(text: Served, wanted: dict[str, Any], field: str, message: str) -> None:
    answer = text.post(**wanted)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == field
    assert message in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize("body", [b'{"prompt": "\\ud800"}', b'{"prompt": "x"', b"[]", b"\xff"])
def test_what_is_no_request_is_refused(text: Served, body: bytes) -> None:
    import requests

    answer = requests.post(f"{text.url}/v1/images", data=body, headers={"Content-Type": "application/json"}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["errors"]


def test_a_large_request_is_refused(text: Served) -> None:
    assert text.post(prompt="x" * 100_000).status_code == 413


def test_a_generator_of_several_steps_takes_fewer(
    text_teacher: Path, export: Callable[[Path, list[int]], Path]
) -> None:
    generator = Generator(find_generator(str(export(text_teacher, [999, 749, 499, 249])), None))
    with serving(Server(GeneratorSampler(generator))) as served:
        assert served.get("/v1/model").json()["fields"]["steps"] == {"min": 1, "max": 4, "default": 4}
        answers = {steps: served.post(prompt="x", steps=steps).json() for steps in (1, 3, 4)}
        assert {steps: answer["evaluations"] for steps, answer in answers.items()} == {1: 1, 3: 3, 4: 4}
        np.testing.assert_array_equal(drawn(served.post(prompt="x").json())[0], drawn(answers[4])[0])
        assert "it may be 1 to 4" in served.post(prompt="x", steps=5).text


def wait_for(served: Served, images: int) -> None:
    eventually(
        lambda: served.counted("dmd_serve_waiting_images", sampler="generator") == images, f"{images} pictures wait", 30
    )


def test_what_waits_is_drawn_together(slow: tuple[Served, Slow], class_generator: Generator) -> None:
    served, sampler = slow
    with ThreadPoolExecutor(7) as pool:
        first = pool.submit(served.post, class_label=0, seed=0)
        assert sampler.began.wait(30)
        others = [pool.submit(served.post, class_label=label, seed=label) for label in range(1, 7)]
        wait_for(served, 6)
        sampler.may_draw.set()
        answers = [future.result().json() for future in (first, *others)]
    assert [len(task) for task in sampler.drawn] == [1, 4, 2]
    for label, answer in enumerate(answers):
        alone = np.asarray(class_generator.draw([label], [label])[0]).astype(int)
        # Libraries choose their kernels by the size of a batch, whose sums differ by rounding.
        assert np.abs(drawn(answer)[0] - alone).max() <= 1


def test_batches_of_one_are_bit_equal(text_generator: Generator) -> None:
    alone = np.asarray(text_generator.draw([3], prompts=["ghost"])[0])
    with serving(Server(GeneratorSampler(text_generator), limits=Limits(batch_size=1))) as served:
        np.testing.assert_array_equal(drawn(served.post(prompt="ghost", seed=1, count=4).json())[2], alone)


def test_more_than_may_wait_is_answered_with_503(slow: tuple[Served, Slow]) -> None:
    served, sampler = slow
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(served.post)]
        assert sampler.began.wait(30)
        futures.append(pool.submit(served.post, count=16))
        wait_for(served, 16)
        refused = served.post(count=5)
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        futures.append(pool.submit(served.post, count=4))
        wait_for(served, 20)
        sampler.may_draw.set()
        assert [future.result().status_code for future in futures] == [200, 200, 200]


def test_nothing_is_drawn_for_clients_that_have_gone(slow: tuple[Served, Slow]) -> None:
    served, sampler = slow
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(served.post, seed=1)
        assert sampler.began.wait(30)
        leaving = http.client.HTTPConnection(urlsplit(served.url).netloc)
        leaving.request("GET", "/v1/images.png?seed=2")
        wait_for(served, 1)
        leaving.close()
        last = pool.submit(served.post, seed=3)
        wait_for(served, 2)
        sampler.may_draw.set()
        assert first.result().status_code == last.result().status_code == 200
    assert [task.seeds for task in sampler.drawn] == [[1], [3]]
    assert served.counted("dmd_serve_dropped_total", sampler="generator") == 1


def test_an_error_while_drawing_ends_one_request_and_not_the_server(
    class_generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Server(GeneratorSampler(class_generator))) as served:
        with monkeypatch.context() as patch:
            patch.setattr(Generator, "draw", lambda *_: 1 / 0)
            assert served.post().status_code == 500
        assert served.post().status_code == 200
        assert served.get("/healthz").status_code == 200


def test_metrics_are_prometheus_own_format(text: Served) -> None:
    text.post(prompt="x", count=2)
    found = {family.name: family for family in text_string_to_metric_families(text.get("/metrics").text)}
    (model,) = found["dmd_serve_model"].samples
    assert model.labels == {"model": "pipeline", "version": ""}
    assert any(sample.labels == {"code": "200"} and sample.value for sample in found["dmd_serve_requests"].samples)
    assert "x" not in {value for family in found.values() for one in family.samples for value in one.labels.values()}


def test_a_token_is_asked_for(class_generator: Generator) -> None:
    with serving(Server(GeneratorSampler(class_generator)), token=TOKEN) as served:
        assert served.get("/healthz").status_code == 200
        for path in ("/", "/metrics", "/v1/model", "/page/page.css", "/page/generator", "/openapi.json"):
            for headers in (
                {},
                {"Authorization": "Bearer x"},
                {"Authorization": "Basic !"},
                {"Authorization": TOKEN.encode()},
            ):
                answer = served.get(path, headers=headers)
                assert answer.status_code == 401, (path, headers)
                assert answer.headers["WWW-Authenticate"].startswith("Basic")
            assert served.get(path, headers={"Authorization": f"Bearer {TOKEN}".encode()}).status_code == 200, path
            assert served.get(path, auth=("anyone", TOKEN.encode())).status_code == 200, path


def test_only_its_own_names_are_answered(class_generator: Generator) -> None:
    """A page elsewhere may make its name point here; with its name in Host it reads nothing."""
    with serving(Server(GeneratorSampler(class_generator)), hosts=("127.0.0.1", "::1", "localhost")) as served:
        for host in ("127.0.0.1:99", "localhost", "[::1]:8000", "LOCALHOST:1"):
            assert served.get("/", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[::2]", ""):
            assert served.get("/", headers={"Host": host}).status_code in (400, 421), host


def test_the_background_is_watched(class_generator: Generator) -> None:
    server = Server(GeneratorSampler(class_generator))
    with serving(server) as served:
        server._tasks[0].get_loop().call_soon_threadsafe(server._tasks[0].cancel)
        eventually(lambda: served.get("/healthz").status_code == 503, "it says that it does not draw", 10)
