"""Runs commands of `qlseg` in forked processes: a kill then costs a second, not another import of torch.

A line on stdin is JSON, [folder to run in, file for stdout, file for stderr, [command, arguments...]]; the answers are
two lines, the process's id, which is also its group's, and, when it has ended, its exit code as `subprocess` has it.
"""

import json
import os
import sys
import traceback
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def run_and_exit(folder: str, files: list[str], arguments: list[str]) -> None:
    os.setpgid(0, 0)
    os.chdir(folder)
    for path in files:
        Path(path).write_text("")
    for descriptor, path in zip((1, 2), files):
        with open(path, "a") as file:  # they may be the same
            os.dup2(file.fileno(), descriptor)
    status = 1
    try:
        status = run(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    tqdm.monitor_interval = 0  # its thread may hold a lock while this is forked, and the child would wait for ever
    import torch._dynamo  # noqa: F401 (what the commands import late)

    import qlseg_hf.cli.errors  # noqa: F401
    import qlseg_hf.training.loop  # noqa: F401
    from qlseg_hf.cli.main import run
    from qlseg_hf.data.distortion import import_opencv
    from qlseg_hf.evaluation import evaluator

    import_opencv()
    evaluator.ROUND_SECONDS = 0.05  # state is written for nearly every picture
    for line in sys.stdin:
        folder, *files, arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            run_and_exit(folder, files, arguments)
        os.setpgid(pid, pid)  # here too: whoever reads the id may kill at once
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
