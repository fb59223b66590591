"""`dmdctl convert`: teachers in diffusers format from published checkpoints in other layouts."""

from pathlib import Path

from dmd_trainer.families.convert.edm import LICENCE, convert_edm
from dmdctl.console import Console


def convert_edm_checkpoint(source: Path, out: Path) -> None:
    """Converts one of EDM's checkpoints and says what has become of it.

    Raises:
        BadInputError: it is none, or `out` has something in it.
    """
    console = Console()
    with console.spinner("converting"):
        made = convert_edm(source, out)
    labels = "unconditional" if made.classes is None else f"{made.classes} classes"
    console.print_line(
        f"{out}: {made.network}, {'x'.join(map(str, made.sample_shape))}, {labels}, "
        f"{made.parameters / 1e6:.1f} million parameters; licence {LICENCE}"
    )
    console.aside().print_line(f"In a manifest: spec.teacher.uri: {out.absolute().as_uri()}")
