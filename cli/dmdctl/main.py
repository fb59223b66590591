"""`dmdctl`: distils diffusion models into one-step generators, on this machine and in a cluster."""

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from dmd_api import __version__
from dmd_api.errors import BadInputError, DMDError
from dmd_api.exit_codes import ExitCode
from dmd_api.stages import Stage
from dmdctl.cluster.target import Target
from dmdctl.verbosity import choose

app = typer.Typer(
    help="Turn a diffusion model into a one-step generator with Distribution Matching Distillation.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

convert_app = typer.Typer(help="Make teachers of published checkpoints in other layouts.", no_args_is_help=True)
app.add_typer(convert_app, name="convert")

ManifestFile = Annotated[
    Path,
    typer.Argument(help="The manifest, a YAML file with one DMDDistillation, or - for standard input.", metavar="FILE"),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        help="Where runs go if the manifest does not say: file://, s3://. Default: ./dmd-runs.", metavar="URI"
    ),
]
TrackingOption = Annotated[
    str | None,
    typer.Option(help="MLflow server if the manifest names none. Default: a database in ./dmd-runs.", metavar="URI"),
]
RunName = Annotated[str, typer.Argument(help="The DMDDistillation's name.", metavar="NAME")]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Its namespace. Default: the context's.", metavar="NAMESPACE")
]
ContextOption = Annotated[
    str | None, typer.Option(help="The kubeconfig's context. Default: the current one.", metavar="CONTEXT")
]
KubeconfigOption = Annotated[
    Path | None,
    typer.Option(help="The kubeconfig. Default: $KUBECONFIG, else ~/.kube/config.", metavar="FILE"),
]

OutputOption = Annotated[
    Literal["text", "json"],
    typer.Option("--output", "-o", help="For people, or JSON for other programs.", show_default=True),
]


QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result and errors alone.")]
VerboseOption = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        metavar="",
        show_default=False,
        help="Show logs and libraries' warnings too, on standard error; -vv: in detail.",
    ),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dmdctl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    choose(quiet=quiet, verbose=verbose)


@app.command()
def init(
    example: Annotated[
        str, typer.Argument(help="Which manifest: --list shows all.", metavar="EXAMPLE", show_default=True)
    ] = "digits",
    out: Annotated[
        Path | None, typer.Option(help="The file to write. Default: ./distill-EXAMPLE.yaml.", metavar="FILE")
    ] = None,
    run_it: Annotated[bool, typer.Option("--run", help="Run it at once, as `dmdctl run` would.")] = False,
    list_all: Annotated[bool, typer.Option("--list", help="List the examples instead.")] = False,
) -> None:
    """Write a manifest to start from: an example that runs on a laptop, or the recipe of a published run.

    A file that is there already is never overwritten.

    Example: `dmdctl init digits --run`
    """
    from dmdctl.init import show_examples, show_written, write_example

    if list_all:
        show_examples()
        return
    if run_it:
        _need_trainer("init --run")
    file = write_example(example, out)
    if not run_it:
        show_written(file)
        return
    from dmdctl.local.run import run_manifest

    raise typer.Exit(run_manifest(file, None, None, None))


@app.command()
def run(
    file: ManifestFile,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Train with this many processes on this machine instead of the manifest's workers."),
    ] = None,
    storage: StorageOption = None,
    tracking: TrackingOption = None,
    shrink: Annotated[
        bool,
        typer.Option(
            "--shrink",
            help="Rehearse it: a tiny random teacher of the same architecture, builtin data, a few updates.",
        ),
    ] = False,
    output: OutputOption = "text",
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Run the whole distillation on this machine: preflight, pairs, training, evaluation, registration.

    The same command again goes on where the last one stopped, and does nothing where all is done. Ctrl-C stops after
    a checkpoint. With --shrink everything is below ./dmd-runs/shrunken, and nothing elsewhere is read.

    Exit codes: 0 done, 2 bad input, 3 a quality gate failed, 4 training diverged, 130 interrupted.

    Example: `dmdctl run examples/distill-digits.yaml`
    """
    if quiet or verbose:
        choose(quiet=quiet, verbose=verbose)
    _need_trainer("run")
    from dmdctl.local.run import run_manifest

    as_json = output == "json"
    raise typer.Exit(run_manifest(file, processes, storage, tracking, shrunken=shrink, as_json=as_json))


@app.command()
def plan(
    file: ManifestFile,
    probe: Annotated[
        bool | None,
        typer.Option(help="Time the teacher on this machine. Default: where it is a file here.", show_default=False),
    ] = None,
    gpu: Annotated[str, typer.Option(help="The GPU whose time is estimated: A100, H100, ...", metavar="NAME")] = "H100",
    gpu_memory: Annotated[
        int, typer.Option(min=1, help="The memory each has; the plan says which settings make it enough.", metavar="GB")
    ] = 80,
    output: OutputOption = "text",
) -> None:
    """Show what a run would create, compute and store, how much GPU memory it needs and how long it takes.

    It creates nothing. Memory is found by running a training step of the real size without data.

    Example: `dmdctl plan examples/distill-sdxl-dmd2-four-steps.yaml --gpu H100 --gpu-memory 80`
    """
    if probe:
        _need_trainer("plan --probe")
    if output == "json":
        from dmdctl.planning.document import print_plan

        if probe:
            raise BadInputError("--probe: times of this machine are not in the JSON; leave one of the two out")
        print_plan(file, gpu, gpu_memory)
        return
    from dmdctl.planning.plan import show_plan

    show_plan(file, probe, gpu, gpu_memory)


@app.command()
def watch(
    name: RunName,
    output: OutputOption = "text",
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Show a run in a cluster as it goes, until it is over; Ctrl-C leaves the run alone.

    Exit codes: as those of `dmdctl run`; 1 if the run failed for another reason, 6 if the API server does not answer.

    Example: `dmdctl watch distill-sd15 -n research`
    """
    if quiet or verbose:
        choose(quiet=quiet, verbose=verbose)
    _need("watch", ("kubernetes", "aiohttp"), "operator")
    from dmdctl.cluster.watch import watch_run

    raise typer.Exit(watch_run(name, Target(namespace, context, kubeconfig), as_json=output == "json"))


@app.command("list")
def list_(
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Those of all namespaces.")] = False,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """List the runs of a namespace: phase, step, how far it is, FID.

    Example: `dmdctl list -n research`
    """
    _need("list", ("kubernetes", "aiohttp"), "operator")
    from dmdctl.cluster.listing import list_runs

    list_runs(Target(namespace, context, kubeconfig), everywhere=everywhere)


@app.command()
def get(
    name: RunName,
    output: Annotated[Literal["yaml", "json"], typer.Option("--output", "-o", help="In which form.")] = "yaml",
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Print a run's manifest and status, for other programs.

    Example: `dmdctl get distill-sd15 -o json`
    """
    _need("get", ("kubernetes", "aiohttp"), "operator")
    from dmdctl.cluster.listing import get_run

    get_run(name, output, Target(namespace, context, kubeconfig))


@app.command()
def suspend(
    name: RunName, namespace: NamespaceOption = None, context: ContextOption = None, kubeconfig: KubeconfigOption = None
) -> None:
    """Suspend a run: its pods end after a checkpoint, and their GPUs are free.

    Example: `dmdctl suspend distill-sd15`
    """
    _need("suspend", ("kubernetes", "aiohttp"), "operator")
    from dmdctl.cluster.changing import set_suspend

    set_suspend(name, Target(namespace, context, kubeconfig), suspend=True)


@app.command()
def resume(
    name: RunName, namespace: NamespaceOption = None, context: ContextOption = None, kubeconfig: KubeconfigOption = None
) -> None:
    """Let a suspended run go on from its last checkpoint.

    Example: `dmdctl resume distill-sd15`
    """
    _need("resume", ("kubernetes", "aiohttp"), "operator")
    from dmdctl.cluster.changing import set_suspend

    set_suspend(name, Target(namespace, context, kubeconfig), suspend=False)


@app.command()
def delete(
    name: RunName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Delete a run with its Jobs and pods; checkpoints, generator and registered model stay.

    Example: `dmdctl delete distill-sd15 --yes`
    """
    _need("delete", ("kubernetes", "aiohttp"), "operator")
    from dmdctl.cluster.changing import delete_run

    if not yes:
        if not sys.stdin.isatty():
            raise BadInputError("--yes: missing; nobody can be asked here whether the run is to be deleted")
        typer.confirm(f"Delete the run {name} with its Jobs and pods?", abort=True)
    delete_run(name, Target(namespace, context, kubeconfig))


@app.command()
def logs(
    name: RunName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written from now on, until the run is over.")
    ] = False,
    stage: Annotated[Stage | None, typer.Option(help="Which stage's. Default: the latest with logs.")] = None,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Which attempt's. Default: the latest with logs.", metavar="N")
    ] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="Only each worker's last N lines.", metavar="N")] = None,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
) -> None:
    """Print what all workers of an attempt have written, in the order of time; each line says whose it is.

    Example: `dmdctl logs distill-sd15 --stage distill --tail 20 -f`
    """
    _need("logs", ("kubernetes", "aiohttp"), "operator")
    from dmdctl.cluster.logs import Wanted, print_logs

    raise typer.Exit(print_logs(name, Wanted(stage, attempt, tail, follow), Target(namespace, context, kubeconfig)))


@app.command()
def sample(
    model: Annotated[
        str,
        typer.Argument(
            help="The generator: models:/NAME@ALIAS, models:/NAME/VERSION, hf://OWNER/NAME, or a pipeline's folder.",
            metavar="MODEL",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The picture that is written, a PNG file.", metavar="PNG")] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many images.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="The first image's seed; each further one's is one more.")] = 0,
    class_labels: Annotated[
        str | None,
        typer.Option(
            help="Labels to go through, e.g. `3` or `0,1,2`. Default: all, one after another.", metavar="LABELS"
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What a text-to-image model draws; several are gone through, one after another."),
    ] = None,
    tracking: Annotated[
        str | None,
        typer.Option(
            help="The MLflow server that has the model. Default: MLFLOW_TRACKING_URI, else ./dmd-runs/mlflow.db.",
            metavar="URI",
        ),
    ] = None,
    benchmark: Annotated[
        bool, typer.Option("--benchmark", help="Measure how many images a second it draws, and write none.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="How many at once, with --benchmark.")] = 8,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"] | None,
        typer.Option(help="What it computes in, with --benchmark. Default: fp16 on a GPU, else fp32."),
    ] = None,
) -> None:
    """Draw images from a registered generator and write them as a grid, or measure how fast it draws.

    Example: `dmdctl sample models:/digits-onestep@champion --out grid.png --count 100`
    """
    _need_trainer("sample")
    from dmdctl.model.sample import benchmark_model, sample_model

    if benchmark:
        benchmark_model(model, batch_size, precision, tracking)
        return
    if out is None:
        raise BadInputError("--out: missing; name the PNG file to write, or ask for --benchmark")
    sample_model(model, out, count, seed, class_labels, prompt, tracking)


@app.command()
def serve(
    model: Annotated[
        str,
        typer.Argument(
            help="The generator: models:/NAME@ALIAS, models:/NAME/VERSION, hf://OWNER/NAME, or a pipeline's folder.",
            metavar="MODEL",
        ),
    ],
    host: Annotated[
        str, typer.Option(help="The address to listen on. Any other than this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port of page and API; 0: a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="A file with the token that requests must bring. Default: DMDCTL_SERVE_TOKEN.", metavar="FILE"
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Draws beside it: a pipeline's folder or URI, or none. Default: a registered model's, if it is here.",
            metavar="URI",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            min=0, help="The teacher's guidance scale. Default: that of the model's run, else 1.", metavar="SCALE"
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=1024, help="At most so many pictures are drawn at once; 1: bit for bit by seed.")
    ] = 16,
    queue: Annotated[int, typer.Option(min=16, help="At most so many pictures wait; more is answered with 503.")] = 64,
    follow: Annotated[
        float, typer.Option(min=0, help="Seconds between looks at where the alias points; 0: never.", metavar="SECONDS")
    ] = 10,
    tracking: Annotated[
        str | None,
        typer.Option(
            help="The MLflow server that has the model. Default: MLFLOW_TRACKING_URI, else ./dmd-runs/mlflow.db.",
            metavar="URI",
        ),
    ] = None,
) -> None:
    """Serve a generator: a page that draws while you type, and an API, on one port, until Ctrl-C.

    Example: `dmdctl serve models:/emoji-onestep@champion`
    """
    _need_trainer("serve")
    _need("serve", ("fastapi", "jinja2", "uvicorn"), "serve")
    from dmdctl.serving.serve import Options, serve_model

    serve_model(
        model,
        Options(host, port, token_file, teacher, guidance, batch_size, queue, follow, tracking),
    )


@convert_app.command("edm")
def convert_edm(
    source: Annotated[
        Path,
        typer.Argument(
            help="One of EDM's pickles (edm-*.pkl), which is read but never run, or its state dict as .safetensors.",
            metavar="SOURCE",
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to make, new or empty.", metavar="OUT")],
) -> None:
    """Convert a checkpoint of EDM (ImageNet-64, CIFAR-10, FFHQ, AFHQv2) to a teacher in diffusers format.

    Example: `dmdctl convert edm edm-imagenet-64x64-cond-adm.pkl teachers/imagenet-64`
    """
    _need_trainer("convert")
    from dmdctl.model.convert import convert_edm_checkpoint

    convert_edm_checkpoint(source, out)


def _need_trainer(command: str) -> None:
    _need(command, ("torch", "diffusers", "mlflow"), "trainer")


def _need(command: str, modules: tuple[str, ...], extra: str) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        what = {"trainer": "the trainer", "operator": "the Kubernetes client", "serve": "a web server"}[extra]
        raise BadInputError(
            f"dmdctl {command} needs {what} ({', '.join(missing)} missing): pip install 'dmd-operator[{extra}]'"
        )


def main() -> None:
    """The command's entry point: every error that has words for the user becomes those words and an exit code."""
    try:
        app()
    except DMDError as error:
        from dmdctl.console import Console

        Console(stderr=True).print(error.message, style="red", soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
