"""`python -m dmd_trainer STAGE` runs one stage of a distillation; `dmd_api.runtime` lists its environment."""

import sys

from dmd_api.exit_codes import ExitCode
from dmd_api.stages import Stage


def _main() -> int:
    stages = [str(stage) for stage in Stage]
    if len(sys.argv) != 2 or sys.argv[1] not in stages:
        print(f"usage: python -m dmd_trainer {{{','.join(stages)}}}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    from dmd_trainer.runtime.launcher import main

    return main(Stage(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(_main())
