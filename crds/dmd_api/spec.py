"""The manifest's `spec`: every field as a pydantic model, with its bounds and its description.

The models are the single source of the CRD and of the manifest's reference: descriptions are the reference, bounds are
the API server's. Rules that concern several fields are in `rules.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from dmd_api.uris import (
    CREDENTIALS,
    CREDENTIALS_MESSAGE,
    PLACE_MESSAGE,
    READABLE_SCHEMES,
    SERVER_SCHEMES,
    STORAGE_SCHEMES,
    TRACKING_SCHEMES,
    parse_uri,
    uri_pattern,
)


class Model(BaseModel):
    """The base of all parts: camelCase in YAML, no unknown fields, no change after reading."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


def _readable(text: str) -> str:
    parse_uri(text, READABLE_SCHEMES)
    return text


def _storage(text: str) -> str:
    parse_uri(text, STORAGE_SCHEMES)
    return text


def _tracking(text: str) -> str:
    parse_uri(text, TRACKING_SCHEMES)
    return text


def _server(text: str) -> str:
    parse_uri(text, SERVER_SCHEMES)
    return text


def _schema(schemes: tuple[str, ...]) -> dict[str, Any]:
    """The API server's form of the same check."""
    return {
        "pattern": f"^({'|'.join(schemes)}):/",
        "x-kubernetes-validations": [
            {"rule": f"!self.matches({CREDENTIALS!r})", "message": CREDENTIALS_MESSAGE},
            {"rule": f"self.matches({uri_pattern(schemes)!r})", "message": PLACE_MESSAGE},
        ],
    }


ReadableUri = Annotated[
    str, AfterValidator(_readable), Field(max_length=1024, json_schema_extra=_schema(READABLE_SCHEMES))
]
StorageUri = Annotated[
    str, AfterValidator(_storage), Field(max_length=1024, json_schema_extra=_schema(STORAGE_SCHEMES))
]
TrackingUri = Annotated[
    str, AfterValidator(_tracking), Field(max_length=1024, json_schema_extra=_schema(TRACKING_SCHEMES))
]
ServerUrl = Annotated[str, AfterValidator(_server), Field(max_length=1024, json_schema_extra=_schema(SERVER_SCHEMES))]
Name = Annotated[str, Field(min_length=1, max_length=253)]
Metric = Literal["FID", "Precision", "Recall", "Coverage", "Accuracy", "CLIPScore"]
Beta = Annotated[float, Field(ge=0, lt=1)]


class SecretReference(Model):
    """A Secret in the resource's namespace."""

    name: Name = Field(description="The Secret's name.")


class Location(Model):
    """Something to read."""

    uri: ReadableUri = Field(
        description="Its URI: hf://[datasets/]OWNER/NAME[/PATH][@REVISION], s3://, models:/, pvc://CLAIM/PATH, "
        "file://, or builtin:// for what ships with the trainer."
    )


class Teacher(Model):
    """The diffusion model that is distilled."""

    uri: ReadableUri = Field(
        description="A diffusers pipeline with safetensors weights: hf://OWNER/NAME[/FOLDER][@REVISION], "
        "s3://BUCKET/PREFIX, models:/NAME@ALIAS, pvc://CLAIM/PATH, file:///PATH (on a laptop; relative paths count "
        "from the working directory), or builtin://digits-teacher, builtin://glyphs-teacher or builtin://emoji-teacher."
    )
    guidance_scale: float = Field(
        1.0, ge=0, le=100, description="Classifier-free guidance of the real score and of the pairs; 1 turns it off."
    )
    weights: Literal["fp32", "bf16", "fp8"] = Field(
        "fp32",
        description="The format of the frozen networks' weights; with fp8, the teacher's in 8 bits and those of text "
        "encoders and VAE in 16. All but fp32 compute in bfloat16.",
    )
    offload: bool = Field(
        False, description="Keeps the teacher's weights in the host's memory, each on the GPU only while it is used."
    )


class ClassLabels(Model):
    """Labels drawn uniformly."""

    count: int = Field(ge=1, le=1_000_000, description="The number of classes; labels run from 0 to count - 1.")


class Prompts(Location):
    """Prompts, one a line (.txt), an object a line (.jsonl) or a row (.csv, .parquet); of a folder, all such files."""

    column: str | None = Field(
        None,
        min_length=1,
        max_length=250,
        description="The column or key that holds the prompt. Default: the first of text, caption and prompt.",
    )


class Data(Model):
    """The networks' conditions, and real images where the method reads them."""

    prompts: Prompts | None = Field(None, description="Prompts for a text-to-image teacher.")
    class_labels: ClassLabels | None = Field(None, description="Class labels for a class-conditional teacher.")
    images: Location | None = Field(
        None,
        description="Real images; only DMD2's GAN term reads them: a folder of image files, .parquet (column image), "
        ".tar (webdataset), or .safetensors of latents; builtin://digits, builtin://emoji or builtin://glyphs. "
        "Where the teacher takes "
        "text, it is given their captions.",
    )


class InitFrom(Model):
    """Weights of an earlier run to start from, for published recipes of two phases."""

    generator: Location | None = Field(None, description="The generator's weights (safetensors).")
    fake_score: Location | None = Field(None, description="The fake score's weights (safetensors).")


class Regression(Model):
    """DMD's regression on the teacher's ODE pairs (arXiv 2311.18828, section 4.2)."""

    pairs: int = Field(ge=1, le=100_000_000, description="The number of pairs of noise and teacher's image.")
    solver: Literal["Heun", "DDIM", "PNDM", "DPMSolverMultistep", "FlowMatchEuler"] = Field(
        "Heun",
        description="The deterministic solver: Heun for EDM teachers, FlowMatchEuler for flow matching, diffusers' "
        "own DDIM, PNDM or DPMSolverMultistep for the others.",
    )
    solver_steps: int = Field(18, ge=1, le=1000, description="Solver steps; Heun evaluates the teacher 2 n - 1 times.")
    loss: Literal["L2", "LPIPS"] = Field(
        "L2", description="The distance: L2 on what the generator makes, or LPIPS on images (needs features)."
    )
    features: Location | None = Field(
        None, description="LPIPS's backbone: torchvision's VGG16 weights (.safetensors or .pth)."
    )
    weight: float = Field(
        0.25, ge=0, le=1000, description="The weight of the regression loss, which is added to distribution matching."
    )
    weight_schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="The weight over the run: constant, or falling to 0 along a cosine, so that distribution "
        "matching has the last word.",
    )


class Gan(Model):
    """DMD2's GAN term on real images (arXiv 2405.14867, section 4.3)."""

    generator_weight: float = Field(
        0.1,
        ge=0,
        le=1000,
        description="The weight of the generator's GAN loss. It is divided by sqrt(C H W), of the samples that are "
        "denoised, and so means the same at any size: SD 1.5's published 1e-3, of latents of 4x64x64, is 0.128 here.",
    )
    guidance_weight: float = Field(
        1.0, ge=0, le=1000, description="The weight of the GAN head's own loss, divided likewise."
    )
    max_timestep: int | None = Field(
        None,
        ge=0,
        le=100_000,
        description="The noisiest index of the teacher's schedule at which the head sees images. Default: the last.",
    )


class NoiseRange(Model):
    """The noise levels at which something is drawn, by the teacher's schedule: each index as often as another."""

    min_timestep: int = Field(ge=0, le=100_000, description="The least noisy index of the teacher's schedule.")
    max_timestep: int = Field(ge=0, le=100_000, description="The noisiest index.")


class Lora(Model):
    """Low-rank adapters (arXiv 2106.09685) on the generator's attention, trained instead of all of its weights."""

    rank: int = Field(64, ge=1, le=1024, description="The adapters' rank.")
    alpha: float | None = Field(None, gt=0, le=4096, description="Their scale is alpha / rank. Default: rank.")


class Method(Model):
    """The method of distillation."""

    name: Literal["DMD", "DMD2"] = Field("DMD", description="DMD regresses on pairs; DMD2 does without them.")
    generator_timestep: int | None = Field(
        None,
        ge=0,
        le=100_000,
        description="The one index of the teacher's schedule that the generator is called at (SD: 999, one-step SDXL: "
        "399). Default: the noisiest.",
    )
    generator_steps: int = Field(1, ge=1, le=16, description="The number of the generator's calls for an image.")
    init_from: InitFrom | None = Field(None, description="Weights of an earlier run to start from.")
    lora: Lora | None = Field(None, description="Trains low-rank adapters of the generator, and exports them too.")
    regression: Regression | None = Field(None, description="The regression on ODE pairs; DMD needs it.")
    fake_score_updates: int = Field(
        default_factory=lambda fields: 5 if fields.get("name") == "DMD2" else 1,
        ge=0,
        le=100,
        description="Updates of the fake score per generator update (DMD2's two time scales: 5 to 10). 0: no fake "
        "score, the generator learns by the regression alone. Default: 5 with DMD2, 1 with DMD.",
    )
    gan: Gan | None = Field(None, description="DMD2's GAN term; needs data.images.")
    divergence: Literal["ReverseKL", "ForwardKL", "JensenShannon", "SquaredHellinger", "Jeffreys"] = Field(
        "ReverseKL",
        description="The divergence that distribution matching lessens: DMD's own is the reverse KL; the others weight "
        "each image by the GAN head's ratio of real to generated (f-distill), which keeps more of the modes.",
    )
    matching_noise: NoiseRange | None = Field(
        None,
        description="The noise at which distributions are matched, and which the fake score and the GAN's head learn "
        "at: levels where the picture is neither whole nor gone do the most. Default: matching at the middle 96 % of "
        "the schedule's indices, the rest at all.",
    )
    guidance_noise: NoiseRange | None = Field(
        None,
        description="Gives guidance noise of its own, apart from distribution matching's (decoupled DMD). Default: "
        "they share it.",
    )


class FakeScoreTraining(Model):
    """The fake score's training, where it differs from the generator's."""

    learning_rate: float | None = Field(None, gt=0, le=1, description="Default: training.learningRate.")
    betas: tuple[Beta, Beta] | None = Field(None, description="Default: training.betas.")


class Training(Model):
    """The optimisation. Steps are always counted in generator updates."""

    generator_updates: int = Field(ge=1, le=100_000_000, description="The number of the generator's updates.")
    batch_size: int = Field(ge=1, le=1_000_000, description="Samples per update over all processes together.")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Samples a process passes through the networks at once; gradients are accumulated over the rest. "
        "Default: all of its share.",
    )
    learning_rate: float = Field(gt=0, le=1, description="AdamW's base learning rate, of the generator.")
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="After the warm-up the learning rates are constant, or fall to 0 along a cosine."
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="AdamW's betas.")
    weight_decay: float = Field(0.01, ge=0, le=10, description="AdamW's weight decay.")
    warmup_steps: int = Field(0, ge=0, le=10_000_000, description="Steps over which learning rates rise linearly.")
    gradient_clip_norm: float | None = Field(
        None, gt=0, le=1e9, description="Gradients are scaled down to this norm. Default: never."
    )
    fake_score: FakeScoreTraining = Field(
        default_factory=FakeScoreTraining,
        description="The fake score's training, where it differs from the generator's.",
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="Decay of the generator's moving average, which is evaluated and exported."
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="The format that the networks compute in; weights, preconditioning and losses stay in float32.",
    )
    sharding: Literal["DDP", "FSDP"] = Field(
        "DDP", description="Every process holds all of the networks, or a part (fully sharded)."
    )
    activation_checkpointing: bool = Field(
        False, description="Computes activations again in the backward pass instead of keeping them."
    )
    compile: bool = Field(False, description="Compiles the networks with torch.compile.")
    channels_last: bool = Field(False, description="Keeps convolutions' weights channels-last, which suits GPUs.")
    stop_on_collapse: bool = Field(
        False,
        description="Ends a run that is collapsing, with its last good checkpoint; otherwise there is only a warning.",
    )
    # No larger: JSON numbers, and so the API server, are exact up to here.
    seed: int = Field(0, ge=0, le=2**53, description="The seed of every random number of the run.")
    checkpoint_every: int = Field(500, ge=1, le=10_000_000, description="Generator updates between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, le=1000, description="The number of complete checkpoints that are kept.")
    sample_every: int = Field(
        500, ge=1, le=10_000_000, description="Generator updates between image grids at fixed noise."
    )
    max_loss: float = Field(
        1000.0, gt=0, le=1e15, description="A loss beyond this ends the run as diverged (healthy ones are near 1)."
    )


class PodSettings(Model):
    """Settings of a stage's pods."""

    resources: dict[str, Any] = Field(
        default_factory=dict,
        description="The container's resources, as in a pod: limits and requests.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )
    pod_template: dict[str, Any] = Field(
        default_factory=dict,
        description="A PodTemplateSpec merged over the operator's own, containers by name. Its errors come from the "
        "API server when the Job is created.",
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )


class Evaluation(PodSettings):
    """The evaluation of generators, during training and at the end."""

    metrics: list[Metric] = Field(
        ["FID"], min_length=1, max_length=16, description="The metrics to measure; FID always is among them."
    )
    samples: int = Field(10_000, ge=2, le=10_000_000, description="Generated images per measurement.")
    every: int = Field(
        1000,
        ge=1,
        le=10_000_000,
        description="Generator updates between measurements; the generator with the lowest FID is what is exported.",
    )
    reference: Location | None = Field(
        None,
        description="The real images to measure against: a folder of images, .parquet (column image), .tar "
        "(webdataset), builtin://digits, builtin://emoji or builtin://glyphs-held-out.",
    )
    resolution: int | None = Field(
        None,
        ge=8,
        le=4096,
        description="Generated and real images are brought to this height and width before they are compared (COCO: "
        "256). Default: images are compared as they are.",
    )
    prompts: Prompts | None = Field(
        None, description="The prompts whose images are measured (COCO captions). Default: data.prompts."
    )
    clip: Location | None = Field(None, description="The CLIP model (transformers' format) of CLIPScore.")
    features: Location | None = Field(
        None,
        description="The network whose features are compared: InceptionV3's weights as torch-fidelity has them, or "
        "builtin://digits-classifier or builtin://glyphs-classifier; or a CLIP model in transformers' format, such as builtin://emoji-clip.",
    )
    batch_size: int = Field(250, ge=1, le=100_000, description="Images generated at once for a measurement.")


class Export(Model):
    """The pipeline that a generator is exported as."""

    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="The format of all of its weights, adapters' too; the run measures it in float32."
    )


class Gate(Model):
    """A bound that the generator must keep for its model version to get the alias."""

    metric: Metric = Field(description="One of evaluation.metrics.")
    max: float | None = Field(None, description="The metric may not be greater.")
    min: float | None = Field(None, description="The metric may not be less.")


class Workers(PodSettings):
    """The processes that distil and evaluate."""

    nodes: int = Field(1, ge=1, le=10_000, description="Pods, each with one torchrun agent.")
    processes_per_node: int = Field(1, ge=1, le=64, description="Processes a pod: one for each of its GPUs.")


class PairWorkers(PodSettings):
    """The pods that make ODE pairs."""

    parallelism: int = Field(1, ge=1, le=10_000, description="The number of pods that work at the same time.")


class Retain(Model):
    """Data kept in storage once every gate has passed; until then everything is kept."""

    pairs: bool = Field(True, description="The ODE pairs.")
    checkpoints: bool = Field(False, description="The last checkpoints.")


class Storage(Model):
    """The storage of pairs, checkpoints, generators and reports."""

    uri: StorageUri = Field(description="s3://BUCKET/PREFIX, pvc://CLAIM/PATH or file:///PATH.")
    endpoint_url: ServerUrl | None = Field(
        None, description="The S3 server's address, http(s)://, where it is not Amazon's."
    )
    credentials_secret_ref: SecretReference | None = Field(
        None, description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    )
    retain: Retain = Field(default_factory=Retain, description="Data kept after a run that passed every gate.")


class Tracking(Model):
    """The tracking of metrics and the registry of models."""

    uri: TrackingUri | None = Field(
        None, description="MLflow's tracking server: http(s)://, or sqlite:// on a laptop. Default: the operator's."
    )
    experiment: str = Field(
        "dmd", min_length=1, max_length=250, pattern=r"^[^\x00-\x1f\x7f]+$", description="The MLflow experiment."
    )
    registered_model: str | None = Field(
        None,
        min_length=1,
        max_length=250,
        pattern=r"^[^/:]+$",
        description="The model's name in the registry. Default: the resource's name.",
    )
    alias: str = Field(
        "champion",
        min_length=1,
        max_length=250,
        pattern=r"^[A-Za-z0-9_-]+$",
        description="The alias that the model version gets if every gate passes.",
    )
    credentials_secret_ref: SecretReference | None = Field(
        None, description="Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
    )


class HuggingFace(Model):
    """Access to the Hugging Face hub."""

    credentials_secret_ref: SecretReference = Field(description="Secret with HF_TOKEN.")


class HubRepository(Model):
    """A model repository on the Hugging Face hub."""

    repo: str = Field(
        max_length=160,
        pattern=r"^[A-Za-z0-9_]+([-.][A-Za-z0-9_]+)*/[A-Za-z0-9_]+([-.][A-Za-z0-9_]+)*$",
        description="OWNER/NAME; made where there is none.",
    )
    private: bool = Field(
        True, description="Whether only its owner sees it. One that exists has to be as this says; it is not changed."
    )


class Publish(Model):
    """The places that the generator is published in besides the model registry, if every gate holds."""

    hugging_face: HubRepository | None = Field(
        None, description="The repository on the Hugging Face hub. huggingFace.credentialsSecretRef has the token."
    )


class ConfigMapKey(Model):
    """A key of a ConfigMap in the resource's namespace."""

    name: Name = Field(description="The ConfigMap's name.")
    key: str = Field(
        "ca.crt", min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$", description="Its key, a file in PEM."
    )


class CABundle(Model):
    """Certificate authorities that trainers trust in addition to the public ones."""

    config_map_key_ref: ConfigMapKey = Field(description="The ConfigMap's key that holds their certificates.")


class Images(Model):
    """Container images."""

    trainer: str | None = Field(None, max_length=512, description="The trainer's image. Default: the operator's.")


class ObjectMetadata(Model):
    """Labels and annotations of the objects that a run makes."""

    labels: dict[str, str] = Field(
        default_factory=dict, max_length=32, description="Labels; the operator's own cannot be replaced."
    )
    annotations: dict[str, str] = Field(default_factory=dict, max_length=32, description="Annotations.")


class Spec(Model):
    """The distillation that is wanted."""

    teacher: Teacher = Field(description="The diffusion model that is distilled.")
    data: Data = Field(default_factory=Data, description="Conditions and real images.")
    method: Method = Field(default_factory=Method, description="The method of distillation.")
    training: Training = Field(description="The optimisation.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="The evaluation of generators.")
    gates: list[Gate] = Field(
        default_factory=list, max_length=16, description="Bounds that must hold for the model to get its alias."
    )
    export: Export = Field(default_factory=Export, description="The pipeline that the generator is exported as.")
    publish: Publish = Field(
        default_factory=Publish,
        description="The places that the generator is published in besides the model registry, if every gate holds.",
    )
    workers: Workers = Field(default_factory=Workers, description="The processes that distil and evaluate.")
    pair_workers: PairWorkers = Field(default_factory=PairWorkers, description="The pods that make ODE pairs.")
    storage: Storage | None = Field(None, description="The storage of the run. Default: the operator's.")
    tracking: Tracking = Field(default_factory=Tracking, description="The tracking server and the model registry.")
    hugging_face: HuggingFace | None = Field(None, description="Access to the Hugging Face hub.")
    ca_bundle: CABundle | None = Field(
        None,
        description="Certificate authorities that pods trust in addition to the public ones, for storage, tracking "
        "and the hub. Default: the operator's.",
    )
    images: Images = Field(default_factory=Images, description="Container images.")
    service_account_name: str | None = Field(
        None, max_length=253, description="The service account of the run's pods; its token is not mounted."
    )
    metadata: ObjectMetadata = Field(
        default_factory=ObjectMetadata,
        description="Labels and annotations of every Job, pod and Service of the run, as policies ask for them.",
    )
    suspend: bool = Field(False, description="Stops the run after a checkpoint; false resumes it.")
    max_restarts: int = Field(
        10, ge=0, le=10_000, description="Failed attempts after which the run fails; disruptions are not counted."
    )
    active_deadline_seconds: int | None = Field(
        None, ge=1, le=10**9, description="The run fails when it has been active this long."
    )
    ttl_seconds_after_finished: int | None = Field(
        None, ge=0, le=10**9, description="The resource is deleted this long after it finished. Default: never."
    )
