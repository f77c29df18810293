"""Write a study's jobs as a list of commands and as a Slurm array, for others to start."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from largebatch._errors import UserError
from largebatch.record import write_atomically
from largebatch.study.job import WORKPLACE, Place

NO_FILE = Path()
ARRAY = """\
#!/bin/bash
# One task a job. Resources are yours to give: sbatch --cpus-per-task=8 --gpus=1 {name}
#SBATCH --array=1-{count}
#SBATCH --ntasks=1
#SBATCH --output=/dev/null
#SBATCH --signal=B:USR1@120
case "$SLURM_ARRAY_TASK_ID" in
{cases}
    *) echo "no job ${{SLURM_ARRAY_TASK_ID:-without an array}}" >&2; exit 2 ;;
esac
"""


def write_commands(
    places: Sequence[Place], folder: Path, file: Path = NO_FILE
) -> tuple[Path, Path]:
    """Write a list of commands, one line per job, and a Slurm array; return both paths.

    A command continues its job from the last checkpoint, and may be started again at any time.

    Args:
        folder: the study's folder.
        file: path of the list; the array's path has the suffix ``.sbatch``. By default
            ``commands.txt`` and ``array.sbatch`` in the folder of the jobs.

    Raises:
        UserError: the folder's name cannot stand on one line, or a file cannot be written.
    """
    if not str(folder.absolute()).isprintable():
        raise UserError(f"--folder {str(folder)!r}: its name does not fit in a line")
    lines = [shlex.join(place.command()) for place in places]
    # A path on an #SBATCH line cannot be quoted: the output is sent to its file here.
    cases = [
        f"    {number}) exec {line} >> {shlex.quote(str(place.log))} 2>&1 ;;"
        for number, (line, place) in enumerate(zip(lines, places, strict=True), 1)
    ]
    if file.name:
        commands, array = file, file.with_suffix(".sbatch")
    else:
        commands, array = (folder / WORKPLACE / name for name in ("commands.txt", "array.sbatch"))
    if array == commands:
        raise UserError(f"--commands {file}: the list; the array beside it ends in .sbatch")
    try:
        write_atomically(commands, "".join(f"{line}\n" for line in lines))
        text = ARRAY.format(name=array.name, count=len(lines), cases="\n".join(cases))
        write_atomically(array, text)
    except OSError as error:
        raise UserError(f"--commands {file}: cannot be written ({error.strerror})") from None
    return commands, array
