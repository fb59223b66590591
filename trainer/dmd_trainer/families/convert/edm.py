"""EDM's published checkpoints (Karras et al. 2022, arXiv 2206.00364) as teachers in diffusers format.

A checkpoint is a pickle of {"ema": EDMPrecond}, whose `model` is a DhariwalUNet (the ADM network: ImageNet-64) or a
SongUNet (DDPM++ or NCSN++: CIFAR-10, FFHQ, AFHQv2). The pickle is not run (see `pickles`), and what the network is
like is read off its tensors. ADM becomes diffusers' UNet2DModel, the other two become our `SongUNet`.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import EDMEulerScheduler, UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dmd_api.errors import BadInputError
from dmd_trainer.families.convert.pickles import Record, read_pickle, tensor
from dmd_trainer.families.networks import ship_code
from dmd_trainer.families.networks.song_unet import SongUNet, norm_groups

LICENCE = "cc-by-nc-sa-4.0"
"""Of EDM's checkpoints."""
SIGMA_DATA = 0.5
HEAD_CHANNELS = 64
"""Of an attention head in ADM (arXiv 2105.05233, section 3)."""
PARTS = {
    "norm1": "norm0",
    "conv1": "conv0",
    "time_emb_proj": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "conv_shortcut": "skip",
    "group_norm": "norm2",
    "to_q": "qkv",
    "to_k": "qkv",
    "to_v": "qkv",
    "to_out.0": "proj",
}
"""What diffusers' residual and attention blocks call the parts of EDM's one block that is both."""
UNUSED = re.compile(r"map_augment\.weight|.*\.resample_filter")
"""Augmentation labels are zero outside training, and the filters are part of the architecture."""


@dataclass(frozen=True)
class Layout:
    """What a published network is like, read off its tensors.

    Attributes:
        resolutions: of its levels, the finest first.
        widths: channels of the levels.
        layers: residual blocks of a level on the way down.
        attention: the levels with self-attention, 0 being the finest.
        channels: of the image.
        first_width: of the first convolution.
        time_channels: of the time's sines and cosines.
        embedding_channels: of the embedding that residual blocks are given.
        classes: how many labels there are; None for an unconditional network.
    """

    resolutions: tuple[int, ...]
    widths: tuple[int, ...]
    layers: int
    attention: tuple[int, ...]
    channels: int
    first_width: int
    time_channels: int
    embedding_channels: int
    classes: int | None


@dataclass(frozen=True)
class Converted:
    """What `convert_edm` has made.

    Attributes:
        network: the class's name, e.g. "UNet2DModel".
        sample_shape: (C, H, W) of what it denoises.
        classes: how many labels it embeds; None for an unconditional one.
        parameters: how many weights it has.
    """

    network: str
    sample_shape: tuple[int, int, int]
    classes: int | None
    parameters: int


def convert_edm(source: Path, out: Path) -> Converted:
    """Converts a checkpoint to a folder that `load_teacher` takes.

    Args:
        source: a published pickle, or a .safetensors file with the state dict of its EDMPrecond or network.
        out: the folder to make.

    Raises:
        BadInputError: `out` has something in it, or `source` is no such checkpoint.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInputError(f"{out}: is there already; name a folder that is new or empty")
    try:
        kind, sigma_data, tensors = _read(source)
        layout = _layout(tensors)
        network = _adm(layout, tensors) if kind == "DhariwalUNet" else _song(layout, tensors)
    except BadInputError as error:
        message = error.message if error.message.startswith(str(source)) else f"{source}: {error.message}"
        raise BadInputError(message) from error
    except RecursionError as error:
        raise BadInputError(f"{source}: its modules contain each other; download it again") from error
    try:
        _save(network, sigma_data, source, out)
    except OSError as error:
        raise BadInputError(f"{out}: cannot be written ({error.strerror or error})") from error
    resolution = layout.resolutions[0]
    return Converted(
        type(network).__name__,
        (layout.channels, resolution, resolution),
        layout.classes,
        sum(p.numel() for p in network.parameters()),
    )


def _read(source: Path) -> tuple[str, float, dict[str, Tensor]]:
    """The network's published class, its sigma_data, and its tensors by name."""
    if source.suffix == ".safetensors":
        try:
            tensors = load_file(source)
        except (OSError, SafetensorError) as error:
            raise BadInputError(f"cannot be read as safetensors ({error})") from error
        tensors = {name.removeprefix("model."): value.float() for name, value in tensors.items()}
        return ("DhariwalUNet" if "out_norm.weight" in tensors else "SongUNet"), SIGMA_DATA, tensors
    content = read_pickle(source)
    if not isinstance(content, dict) or "ema" not in content:
        raise BadInputError("holds no 'ema' network, so it is none of EDM's checkpoints")
    name, state = _object(content["ema"])
    if name != "EDMPrecond":
        raise BadInputError(
            f"the network is preconditioned by {name}; only EDMPrecond can be converted "
            "(the files named edm-*.pkl, not the baselines)"
        )
    kind, inner = _object(_mapping(state.get("_modules")).get("model"))
    if kind not in {"DhariwalUNet", "SongUNet"}:
        raise BadInputError(f"the network is a {kind}; known are DhariwalUNet (ADM) and SongUNet (DDPM++, NCSN++)")
    sigma_data = state.get("sigma_data", SIGMA_DATA)
    if not isinstance(sigma_data, float | int):
        raise BadInputError("the network's sigma_data is no number; download it again")
    return kind, float(sigma_data), dict(_tensors(inner))


def _object(value: Any) -> tuple[str, dict[str, Any]]:
    """The class's name and the attributes of a pickled object: EDM's own come with a description of themselves."""
    if isinstance(value, Record) and value.name == "torch_utils.persistence._reconstruct_persistent_obj":
        description = value.args[0] if value.args else None
        if isinstance(description, dict) and isinstance(description.get("state"), dict):
            return str(description.get("class_name")), description["state"]
    elif isinstance(value, Record) and isinstance(value.state, dict):
        return value.name, value.state
    raise BadInputError(f"holds {getattr(value, 'name', type(value).__name__)} where a network is expected")


def _tensors(state: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of a module's attributes, by the names that its state dict gives them."""
    for kind in ("_parameters", "_buffers"):
        for name, value in _mapping(state.get(kind)).items():
            found = tensor(value)
            if found is not None:
                yield f"{prefix}{name}", found.float()
    for name, module in _mapping(state.get("_modules")).items():
        if module is not None:
            yield from _tensors(_object(module)[1], f"{prefix}{name}.")


def _mapping(value: Any) -> dict[str, Any]:
    """A dict's or OrderedDict's items."""
    if isinstance(value, Record):
        return value.items
    return value if isinstance(value, dict) else {}


def _layout(tensors: dict[str, Tensor]) -> Layout:
    found = {
        int(match[1]) for match in (re.match(r"enc\.(\d+)x\1_block0\.conv0\.weight", name) for name in tensors) if match
    }
    resolutions = tuple(sorted(found, reverse=True))
    if not resolutions:
        raise BadInputError("holds no tensors named as those of EDM's U-Nets (enc.64x64_block0.conv0.weight, ...)")
    finest = resolutions[0]

    def shape(name: str) -> torch.Size:
        if name not in tensors:
            raise BadInputError(f"the tensor {name} is missing; is the checkpoint whole?")
        return tensors[name].shape

    first = shape(f"enc.{finest}x{finest}_conv.weight")
    embedding, time = shape("map_layer0.weight")
    return Layout(
        resolutions=resolutions,
        widths=tuple(shape(f"enc.{r}x{r}_block0.conv0.weight")[0] for r in resolutions),
        layers=sum(f"enc.{finest}x{finest}_block{i}.conv0.weight" in tensors for i in range(len(tensors))),
        attention=tuple(i for i, r in enumerate(resolutions) if f"enc.{r}x{r}_block0.qkv.weight" in tensors),
        channels=first[1],
        first_width=first[0],
        time_channels=time,
        embedding_channels=embedding,
        classes=shape("map_label.weight")[1] if "map_label.weight" in tensors else None,
    )


def _adm(layout: Layout, tensors: dict[str, Tensor]) -> UNet2DModel:
    """ADM (arXiv 2105.05233, section 3), which UNet2DModel carries as it is."""
    widths, levels = layout.widths, range(len(layout.widths))
    if not (layout.first_width == layout.time_channels == widths[0]):
        raise BadInputError(
            f"its first level has {widths[0]} channels, its time embedding {layout.time_channels}; "
            "diffusers' UNet2DModel needs them equal"
        )
    if any(norm_groups(width) != 32 or width % 32 for width in widths):
        raise BadInputError(
            f"its levels have {widths} channels; to be converted each must be a multiple of 32, from 128"
        )
    if any(widths[i] % HEAD_CHANNELS for i in (*layout.attention, levels[-1])):
        raise BadInputError(f"its levels with attention have {widths} channels, not multiples of {HEAD_CHANNELS}")

    def types(way: str) -> list[str]:
        return [f"Attn{way}Block2D" if i in layout.attention else f"Resnet{way}sampleBlock2D" for i in levels]

    network = UNet2DModel(
        sample_size=layout.resolutions[0],
        in_channels=layout.channels,
        out_channels=layout.channels,
        time_embedding_dim=layout.embedding_channels,
        block_out_channels=widths,
        layers_per_block=layout.layers,
        down_block_types=tuple(types("Down")),
        up_block_types=tuple(reversed(types("Up"))),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=HEAD_CHANNELS,
        attn_norm_num_groups=32,
        num_class_embeds=layout.classes,
    )
    last = levels[-1]
    modules = _common(layout) | {"conv_norm_out": "out_norm", "conv_out": "out_conv"}
    for i, r in enumerate(layout.resolutions):
        up = f"up_blocks.{last - i}"
        for j in range(layout.layers):
            modules |= dict.fromkeys(
                (f"down_blocks.{i}.resnets.{j}", f"down_blocks.{i}.attentions.{j}"), f"enc.{r}x{r}_block{j}"
            )
        for j in range(layout.layers + 1):
            modules |= dict.fromkeys((f"{up}.resnets.{j}", f"{up}.attentions.{j}"), f"dec.{r}x{r}_block{j}")
        # A change of resolution is the next level's first block in EDM, this one's last in diffusers.
        if i > 0:
            modules[f"down_blocks.{i - 1}.downsamplers.0"] = f"enc.{r}x{r}_down"
        if i < last:
            modules[f"up_blocks.{last - i - 1}.upsamplers.0"] = f"dec.{r}x{r}_up"
    labels = tensors.get("map_label.weight")
    _fill(network, modules, tensors, None if labels is None else labels.T)
    return network


def _song(layout: Layout, tensors: dict[str, Tensor]) -> SongUNet:
    """DDPM++ and NCSN++, which our SongUNet carries as they are."""
    if any("_aux_skip" in name or "_aux_up" in name for name in tensors):
        raise BadInputError("its encoder or decoder is of the type 'skip', which none of EDM's checkpoints has")
    last = len(layout.widths) - 1
    pyramid = any("_aux_residual" in name for name in tensors)
    network = SongUNet(
        sample_size=layout.resolutions[0],
        in_channels=layout.channels,
        out_channels=layout.channels,
        model_channels=layout.first_width,
        block_out_channels=layout.widths,
        layers_per_block=layout.layers,
        attention_levels=layout.attention,
        time_embedding_type="fourier" if "map_noise.freqs" in tensors else "positional",
        time_embedding_channels=layout.time_channels,
        embedding_channels=layout.embedding_channels,
        resample=_resample(tensors),
        input_pyramid=pyramid,
        num_class_embeds=layout.classes,
    )
    finest = layout.resolutions[0]
    modules = _common(layout) | {
        "time_proj": "map_noise",
        "conv_norm_out": f"dec.{finest}x{finest}_aux_norm",
        "conv_out": f"dec.{finest}x{finest}_aux_conv",
    }
    for i, r in enumerate(layout.resolutions):
        down, up = f"down_blocks.{i}", f"up_blocks.{last - i}"
        modules |= {
            f"{down}.downsampler": f"enc.{r}x{r}_down",
            f"{down}.pyramid.Conv2d_0": f"enc.{r}x{r}_aux_residual",
            f"{up}.upsampler": f"dec.{r}x{r}_up",
            f"{up}.attention": f"dec.{r}x{r}_block{layout.layers}",
        }
        for j in range(layout.layers):
            modules |= dict.fromkeys((f"{down}.resnets.{j}", f"{down}.attentions.{j}"), f"enc.{r}x{r}_block{j}")
        for j in range(layout.layers + 1):
            modules[f"{up}.resnets.{j}"] = f"dec.{r}x{r}_block{j}"
    labels, bias = tensors.get("map_label.weight"), tensors.get("map_label.bias")
    if labels is not None:
        if bias is None:
            raise BadInputError("the tensor map_label.bias is missing; is the checkpoint whole?")
        # The published layer sees one-hot labels times the root of their number: each label's row is a constant.
        labels = labels.T * math.sqrt(labels.shape[1]) + bias
    _fill(network, modules, tensors, labels)
    return network


def _resample(tensors: dict[str, Tensor]) -> str:
    """The blocks' filter, by how many taps their buffers have."""
    known = {1: [1.0], 2: [1.0, 1.0], 4: [1.0, 3.0, 3.0, 1.0]}
    for name, value in tensors.items():
        if name.endswith(".resample_filter"):
            taps = known.get(value.shape[-1])
            expected = None if taps is None else torch.outer(torch.tensor(taps), torch.tensor(taps)) / sum(taps) ** 2
            if expected is None or not torch.allclose(value.squeeze(), expected):
                raise BadInputError(f"{name}: is neither [1, 1] nor [1, 3, 3, 1]")
            return "fir" if value.shape[-1] == 4 else "box"
    return "box"


def _common(layout: Layout) -> dict[str, str]:
    """Where in the checkpoint each of the network's parts is, of those that all networks have alike."""
    finest, coarsest = (f"{r}x{r}" for r in (layout.resolutions[0], layout.resolutions[-1]))
    return {
        "conv_in": f"enc.{finest}_conv",
        "time_embedding.linear_1": "map_layer0",
        "time_embedding.linear_2": "map_layer1",
        "mid_block.resnets.0": f"dec.{coarsest}_in0",
        "mid_block.attentions.0": f"dec.{coarsest}_in0",
        "mid_block.resnets.1": f"dec.{coarsest}_in1",
    }


def _fill(network: torch.nn.Module, modules: dict[str, str], tensors: dict[str, Tensor], labels: Tensor | None) -> None:
    """Gives the network the checkpoint's weights.

    Args:
        network: in diffusers' names.
        modules: where in the checkpoint each of its parts is.
        tensors: the checkpoint's.
        labels: what the network's `class_embedding` becomes [classes, channels].

    Raises:
        BadInputError: a tensor is missing, has another shape, or is of no use.
    """
    unused = {name for name in tensors if not UNUSED.fullmatch(name)} - {"map_label.weight", "map_label.bias"}
    state = {}
    for name, wanted in network.state_dict().items():
        if name == "class_embedding.weight":
            assert labels is not None, "the network embeds labels because the checkpoint does"
            value, published = labels, "map_label.weight"
        else:
            published, part = _published(name, modules)
            if published not in tensors:
                raise BadInputError(f"the tensor {published} is missing; is the checkpoint whole?")
            value = tensors[published]
            unused.discard(published)
            if part in {"to_q", "to_k", "to_v"} and len(value) == 3 * len(wanted):
                # Queries, keys and values take turns channel by channel.
                value = value.unflatten(0, (-1, 3))[:, "qkv".index(part[-1])]
            if part.startswith("to_") and value.shape[2:] == (1, 1):
                value = value.flatten(1)
        if value.shape != wanted.shape:
            raise BadInputError(
                f"the tensor {published} makes {name} of shape {tuple(value.shape)}, but {tuple(wanted.shape)} fits "
                "the network's other tensors"
            )
        state[name] = value.contiguous()
    if unused:
        raise BadInputError(f"{len(unused)} tensors have no place in the network, e.g. {min(unused)}")
    network.load_state_dict(state)


def _published(name: str, modules: dict[str, str]) -> tuple[str, str]:
    """What the checkpoint calls a parameter of the network, and the part of its block that it belongs to."""
    prefix = next((module for module in modules if name.startswith(f"{module}.")), None)
    assert prefix is not None, f"{name} is of no known module"
    part, _, kind = name.removeprefix(f"{prefix}.").rpartition(".")
    if prefix == "time_proj":
        return f"{modules[prefix]}.freqs", part
    return ".".join(filter(None, (modules[prefix], PARTS.get(part, part), kind))), part


def _save(network: UNet2DModel | SongUNet, sigma_data: float, source: Path, out: Path) -> None:
    name = type(network).__name__
    network.save_pretrained(out / "unet", safe_serialization=True)
    # The noise levels of the paper's samplers (table 1); the network is given ln(sigma) / 4, as this scheduler does.
    EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=sigma_data).save_pretrained(out / "scheduler")
    index = {
        "_class_name": "DiffusionPipeline",
        "scheduler": ["diffusers", "EDMEulerScheduler"],
        "unet": ["diffusers", name],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    if isinstance(network, SongUNet):
        ship_code(out)
    (out / "README.md").write_text(_card(network, source))


def _card(network: UNet2DModel | SongUNet, source: Path) -> str:
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    classes = network.config.num_class_embeds
    return f"""---
license: {LICENCE}
library_name: diffusers
tags: [edm, teacher]
---
# {source.stem}

A diffusion model of EDM (Karras et al. 2022, arXiv 2206.00364; NVIDIA), converted to diffusers' format by dmd-operator
with no change to what it computes.

- Network: {type(network).__name__}, {network.config.in_channels} channels, {network.config.sample_size} pixels square,
  {"unconditional" if classes is None else f"{classes} classes"}; told ln(sigma) / 4
- Made from: `{source.name}`, SHA-256 {digest}
- Licence: {LICENCE}, that of the published checkpoints (Creative Commons Attribution-NonCommercial-ShareAlike 4.0
  International): no commercial use, and adaptations are shared alike.
"""
