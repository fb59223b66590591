"""Networks that diffusers has none for."""

import json
import shutil
from pathlib import Path

from dmd_trainer.families.networks import song_unet


def ship_code(pipeline: Path) -> None:
    """Puts `SongUNet`'s file beside its weights, where stock diffusers finds it with `trust_remote_code=True`.

    Args:
        pipeline: a folder with a `unet/` of that class.
    """
    source = Path(song_unet.__file__)
    shutil.copy(source, pipeline / "unet" / source.name)
    file = pipeline / "model_index.json"
    index = json.loads(file.read_text())
    index["unet"] = [source.stem, song_unet.SongUNet.__name__]
    file.write_text(json.dumps(index, indent=2) + "\n")
