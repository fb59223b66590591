"""The server: the API, the page and its parts, /healthz and /metrics"""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from dmd_trainer.evaluation.pictures import as_tensor, image_grid, png
from dmdctl.serving.batching import BusyError, Drawn, GoneError, Queue
from dmdctl.serving.following import follow
from dmdctl.serving.guard import Guard
from dmdctl.serving.metrics import Metrics
from dmdctl.serving.samplers import GeneratorSampler, TeacherSampler
from dmdctl.serving.wanted import MAX_COUNT, MAX_PROMPT, MAX_SEED, RefusedError, Task, Wanted, task_for

PAGE = Path(__file__).with_name("page")
GRID_COLUMNS = 4
CLIENT_CLOSED_REQUEST = 499
"""The status that proxies log for a client that went before its answer; nobody reads it."""

Asked = Annotated[Wanted, Query()]


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        batch_size: at most so many pictures are drawn at once.
        waiting: at most so many pictures wait.
    """

    batch_size: int = 16
    waiting: int = 64


class Server:
    """What is served, and the queues in which it waits.

    Args:
        sampler: the generator's.
        teacher: beside it, if it is at hand.
        limits: of the queues.
        tracking: the registry whose alias is followed.
        follow_seconds: between two looks at the alias; 0: it is not followed.
    """

    def __init__(
        self,
        sampler: GeneratorSampler,
        teacher: TeacherSampler | None = None,
        limits: Limits | None = None,
        tracking: str | None = None,
        follow_seconds: float = 0,
    ) -> None:
        self.teacher, self._limits = teacher, limits or Limits()
        self._tracking, self._follow_seconds = tracking, follow_seconds
        self.metrics = Metrics()
        self.take_over(sampler)
        pause = teacher.pause if teacher is not None else lambda _: None
        waiting, batch_size = self._limits.waiting, self._limits.batch_size
        self._generator_queue = Queue("generator", batch_size, waiting, self.metrics, pause)
        self._teacher_queue = Queue("teacher", batch_size, waiting, self.metrics)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_alive(self) -> bool:
        """Whether everything that runs in the background still does."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def take_over(self, sampler: GeneratorSampler) -> None:
        """Serves another version from now on; what waits for the old one is drawn by the old one."""
        self.sampler = sampler
        found = sampler.generator.found
        self.metrics.model.clear()
        self.metrics.model.labels(found.title, found.version or "").set(1)

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Draws what is asked for, as long as the context lasts."""
        self._tasks = [asyncio.create_task(queue.run()) for queue in (self._generator_queue, self._teacher_queue)]
        if self._follow_seconds and self.sampler.generator.found.version is not None:
            following = follow(lambda: self.sampler, self.take_over, self._tracking, self._follow_seconds, self.metrics)
            self._tasks.append(asyncio.create_task(following))
        yield
        for task in self._tasks:
            task.cancel()

    async def draw(self, wanted: Wanted, request: Request) -> tuple[Task, Drawn, GeneratorSampler]:
        """The generator's pictures, and which generator's they are.

        Raises:
            RefusedError: the request cannot be answered.
            BusyError: too much waits.
            GoneError: nobody waits for the pictures any more.
        """
        sampler = self.sampler
        task = task_for(wanted, sampler.generator)
        await request.body()  # until it is read, a client that goes is not noticed
        return task, await self._generator_queue.draw(sampler, task, request.is_disconnected), sampler

    async def draw_teacher(self, wanted: Wanted, request: Request) -> tuple[Task, Drawn]:
        """The teacher's pictures for the same noise; errors as `draw`."""
        if self.teacher is None:
            raise RefusedError("teacher", "is not at hand here; start the server with --teacher URI")
        task = task_for(wanted, self.sampler.generator)
        await request.body()
        return task, await self._teacher_queue.draw(self.teacher, task, request.is_disconnected)

    def describe(self) -> dict[str, Any]:
        """What is served, and what may be asked for."""
        generator = self.sampler.generator
        asked: dict[str, Any] = {
            "seed": {"min": 0, "max": MAX_SEED},
            "count": {"min": 1, "max": MAX_COUNT},
            "steps": {"min": generator.steps[0], "max": generator.steps[-1], "default": generator.steps[-1]},
        }
        if generator.takes_text:
            asked["prompt"] = {"minLength": 1, "maxLength": MAX_PROMPT}
        if generator.classes is not None:
            asked["class_label"] = {"min": 0, "max": generator.classes - 1}
        return {
            "model": generator.found.title,
            "version": generator.found.version,
            "teacher": self.teacher is not None,
            "fields": asked,
        }


def make_app(server: Server, token: str | None = None, hosts: tuple[str, ...] | None = None) -> FastAPI:
    """The application.

    Args:
        server: what it serves.
        token: see `Guard`.
        hosts: see `Guard`.
    """
    # FastAPI's pages about an API load their scripts from elsewhere.
    app = FastAPI(title="dmdctl serve", docs_url=None, redoc_url=None, lifespan=server.running)
    _add_api(app, server)
    _add_page(app, server)
    _add_errors(app)
    app.add_middleware(Guard, token=token, hosts=hosts, metrics=server.metrics)
    return app


def _add_api(app: FastAPI, server: Server) -> None:
    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> Response:
        alive = server.is_alive
        return PlainTextResponse("ok\n" if alive else "a task has ended\n", 200 if alive else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(generate_latest(server.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        return server.describe()

    @app.post("/v1/images")
    async def images(wanted: Wanted, request: Request) -> dict[str, Any]:
        task, drawn, sampler = await server.draw(wanted, request)
        found = sampler.generator.found
        pictures = zip(task.seeds, drawn.images, strict=True)
        return {
            "model": found.title,
            "version": found.version,
            "evaluations": drawn.evaluations,
            "milliseconds": round(drawn.milliseconds, 1),
            "images": [{"seed": seed, "png": _base64(image)} for seed, image in pictures],
        }

    @app.get("/v1/images.png", response_class=Response)
    async def picture(wanted: Asked, request: Request) -> Response:
        task, drawn, _ = await server.draw(wanted, request)
        name = f"seed-{task.seeds[0]}" + (f"-to-{task.seeds[-1]}" if len(task) > 1 else "")
        headers = {"Content-Disposition": f'attachment; filename="{name}.png"'}
        return Response(_file(drawn.images), media_type="image/png", headers=headers)


def _add_page(app: FastAPI, server: Server) -> None:
    templates = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined)

    def render(name: str, status: int = 200, **content: Any) -> Response:
        return HTMLResponse(templates.get_template(name).render(content), status)

    def pictures(who: str, wanted: Wanted, task: Task, drawn: Drawn, version: str | None) -> Response:
        query = wanted.model_dump(exclude_none=True)
        one = [urlencode({**query, "seed": seed, "count": 1}) for seed in task.seeds]
        if task.labels is not None:
            one = [
                urlencode({**query, "seed": seed, "count": 1, "class_label": label})
                for seed, label in zip(task.seeds, task.labels, strict=True)
            ]
        return render(
            "pictures.html",
            who=who,
            pictures=list(zip(task.seeds, map(_base64, drawn.images), one, strict=True)),
            drawn=drawn,
            version=version,
            query=urlencode(query),
            teacher=server.teacher is not None,
        )

    async def refusing(draw: Callable[[], Awaitable[Response]]) -> Response:
        """A part of the page says in words what is wrong."""
        try:
            return await draw()
        except RefusedError as error:
            return render("refusal.html", 400, message=str(error))
        except BusyError as error:
            return render("refusal.html", 503, message=str(error))

    @app.get("/", response_class=HTMLResponse)
    async def page(request: Request) -> Response:
        known = server.describe()
        return render("page.html", **known, asked=request.query_params)

    @app.get("/page/generator", response_class=HTMLResponse)
    async def generator(wanted: Asked, request: Request) -> Response:
        async def draw() -> Response:
            task, drawn, sampler = await server.draw(wanted, request)
            return pictures("generator", wanted, task, drawn, sampler.generator.found.version)

        return await refusing(draw)

    @app.get("/page/teacher", response_class=HTMLResponse)
    async def teacher(wanted: Asked, request: Request) -> Response:
        async def draw() -> Response:
            task, drawn = await server.draw_teacher(wanted, request)
            return pictures("teacher", wanted, task, drawn, None)

        return await refusing(draw)

    app.mount("/page", StaticFiles(directory=PAGE), "page")


def _add_errors(app: FastAPI) -> None:
    def answer(status: int, field: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
        return JSONResponse({"errors": [{"field": field, "message": message}]}, status, headers)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return answer(400, error.field, error.message)

    @app.exception_handler(BusyError)
    async def busy(_: Request, error: BusyError) -> Response:
        return answer(503, "", str(error), {"Retry-After": str(error.seconds)})

    @app.exception_handler(GoneError)
    async def gone(_: Request, __: GoneError) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        return answer(error.status_code, "", error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        fields = ", ".join(Wanted.model_fields)
        found = []
        for one in error.errors():
            field = ".".join(str(part) for part in one["loc"][1:])
            unknown = one["type"] == "extra_forbidden"
            found.append({"field": field, "message": f"is not known; there are {fields}" if unknown else one["msg"]})
        return JSONResponse({"errors": found}, 400)


def _file(images: Any) -> bytes:
    """A picture as it is, or several as a grid."""
    return _png(images[0]) if len(images) == 1 else png(image_grid(as_tensor(images), GRID_COLUMNS))


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _base64(image: Image.Image) -> str:
    return base64.b64encode(_png(image)).decode()
