"""CLIP: its features and CLIPScore are what transformers and torchmetrics make of the same images and prompts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from dmd_api.errors import BadInputError
from dmd_api.spec import Location
from dmd_trainer.conditions.embeddings import PromptConditions, PromptEmbeddings
from dmd_trainer.conditions.labels import Unconditional
from dmd_trainer.evaluation.clip_score import PREFIX, ClipScore, load_clip_score
from dmd_trainer.evaluation.features import ClipFeatures, load_features
from dmd_trainer.evaluation.measure import Samples, measure, score
from dmd_trainer.runtime.fetch import ASSETS
from dmd_trainer.runtime.storage import FileStorage

CPU = torch.device("cpu")
PROMPTS = ["a cat", "grinning face with smiling eyes", "a boat"]
WIDTH = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP of 24x24 images, untrained, with a mean, a deviation and a size of its own."""
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "emoji-clip")
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    vision = {"image_size": 24, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config={**text, **WIDTH}, vision_config={**vision, **WIDTH}, projection_dim=8))
    for parameter in model.parameters():  # as it is made, it hardly tells its inputs apart
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    images = CLIPImageProcessor(
        size={"shortest_edge": 24}, crop_size=24, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    )
    CLIPProcessor(images, tokenizer).save_pretrained(path)
    return path


def images(count: int = 3, size: int = 40) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def pixels(given: Tensor) -> Tensor:
    return ((given + 1) * 127.5).round().to(torch.uint8)


class Projected(nn.Module):
    """What torchmetrics expects of a CLIP: transformers 5 wraps the embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, *arguments: Tensor) -> Tensor:
        return self.model.get_image_features(*arguments).pooler_output

    def get_text_features(self, *arguments: Tensor) -> Tensor:
        return self.model.get_text_features(*arguments).pooler_output


def test_features_are_transformers_own(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    extractor = load_features(Location(uri=folder.as_uri()), tmp_path, CPU)
    assert isinstance(extractor, ClipFeatures)
    features, labels = extractor.extract(images())
    assert labels is None
    files = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels(images())]
    inputs = CLIPImageProcessor.from_pretrained(folder)(images=files, return_tensors="pt")
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model.get_image_features(**inputs).pooler_output
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    # Grey images are shown in three equal channels.
    grey = images()[:, :1]
    assert torch.equal(extractor.extract(grey)[0], extractor.extract(grey.expand(-1, 3, -1, -1))[0])


def test_scores_are_torchmetrics_and_the_models_own(folder: Path) -> None:
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update

    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    clip = ClipScore(folder, prefix="")
    found = clip.score(images(), PROMPTS)
    with torch.no_grad():
        expected, _ = _clip_score_update(list(pixels(images())), PROMPTS, Projected(model), processor)
        inputs = processor(text=PROMPTS, images=list(pixels(images())), return_tensors="pt", padding=True)
        logits = model(**inputs).logits_per_image.diagonal() / model.logit_scale.exp()
    assert found.std() > 1
    torch.testing.assert_close(found, expected.clamp_min(0), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found, 100 * logits.clamp_min(0), rtol=1e-4, atol=1e-3)
    assert ClipScore(folder).prefix == PREFIX
    prefixed = clip.score(images(), [PREFIX + prompt for prompt in PROMPTS])
    torch.testing.assert_close(ClipScore(folder).score(images(), PROMPTS), prefixed)
    assert ClipScore(folder).digest != clip.digest
    assert clip.score(images(1), ["word " * 100]).shape == (1,)


def test_what_ships_is_asked_without_the_prefix(tmp_path: Path) -> None:
    clip = load_clip_score(Location(uri="builtin://emoji-clip"), tmp_path, CPU)
    assert clip.prefix == ""


def test_what_is_no_clip_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"spec\.evaluation\.clip: missing"):
        load_clip_score(None, tmp_path, CPU)
    with pytest.raises(BadInputError, match="is no CLIP model"):
        load_clip_score(Location(uri=tmp_path.as_uri()), tmp_path, CPU)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(BadInputError, match="cannot be loaded"):
        load_clip_score(Location(uri=tmp_path.as_uri()), tmp_path, CPU)
    with pytest.raises(BadInputError, match=r"spec\.evaluation\.features: the CLIP in .* cannot be loaded"):
        load_features(Location(uri=tmp_path.as_uri()), tmp_path, CPU)


def test_measured_images_are_scored_against_their_own_prompts(folder: Path, tmp_path: Path) -> None:
    encoder: Any = SimpleNamespace(encode=lambda prompts: {"text": torch.tensor([[len(p) / 40.0] for p in prompts])})
    embeddings = PromptEmbeddings(PROMPTS, "x", FileStorage(tmp_path / "s"), tmp_path, lambda: encoder)
    conditions = PromptConditions(embeddings=embeddings, one_by_one=True)
    extractor, clip = load_features(Location(uri=folder.as_uri()), tmp_path, CPU), ClipScore(folder)
    made: list[Tensor] = []

    def sampler(noise: Tensor, condition: Any) -> Tensor:
        made.append((noise / 3 + condition["text"][..., None, None].float()).clamp(-1, 1))
        return made[-1]

    samples = Samples(5, 0, 2, (3, 24, 24), conditions, CPU, clip=clip)
    measured = measure(sampler, extractor, samples)
    assert measured.clip_scores is not None
    expected = clip.score(torch.cat(made), [*PROMPTS, *PROMPTS[:2]])
    torch.testing.assert_close(measured.clip_scores, expected)
    real = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    scores = score(measured, real, {"CLIPScore"})
    assert scores["CLIPScore"] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert "CLIPScore" not in score(measured, real, {"FID"})
    unconditional = Samples(2, 0, 2, (3, 24, 24), Unconditional(), CPU, clip=clip)
    assert measure(lambda noise, condition: noise, extractor, unconditional).clip_scores is None
