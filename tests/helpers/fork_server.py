"""Runs commands of `qlseg` and scripts in forked processes: a start then costs a second, not an import of torch.

A line on stdin is JSON, [folder to run in, file for stdout, file for stderr, an environment per process, [command or
script.py, arguments...]]; the answers are two lines, the id of the first process, which is also their group's, and,
when all have ended, the first exit code that is not 0, as `subprocess` has it.
"""

import json
import os
import runpy
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def run_script(arguments: list[str]) -> int:
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def run_and_exit(folder: str, files: list[str], variables: dict[str, str], arguments: list[str]) -> None:
    signal.alarm(900)  # ends what hangs
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for descriptor, path in zip((1, 2), files):
        with open(path, "a") as file:  # they may be the same
            os.dup2(file.fileno(), descriptor)
    status = 1
    try:
        status = run_script(arguments) if arguments[0].endswith(".py") else run(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    tqdm.monitor_interval = 0  # its thread may hold a lock while this is forked, and the child would wait for ever
    # what the commands import late
    import torch._dynamo  # noqa: F401

    Image.init()  # its 48 plugins
    with suppress(ImportError):  # of the extra `train`
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401

    from qlseg_hf.evaluation import report

    # charts take more than a quarter of a short run; tests of their own draw them, as does what is started afresh
    report.read_canvas = lambda canvas: Image.new("RGB", canvas.get_width_height())
    import qlseg_hf.cli.errors  # noqa: F401
    import qlseg_hf.training.loop  # noqa: F401
    from qlseg_hf.cli.main import run
    from qlseg_hf.data.distortion import import_opencv
    from qlseg_hf.evaluation import evaluator

    import_opencv()
    evaluator.ROUND_SECONDS = 0.05  # state is written for nearly every picture
    for line in sys.stdin:
        folder, *files, environments, arguments = json.loads(line)
        for path in files:
            Path(path).write_text("")
        pids = []
        for variables in environments:
            pid = os.fork()
            group = pids[0] if pids else 0
            if pid == 0:
                os.setpgid(0, group)
                run_and_exit(folder, files, variables, arguments)
            os.setpgid(pid, group or pid)  # here too: whoever reads the id may kill at once
            pids.append(pid)
        print(pids[0], flush=True)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(next(filter(None, codes), 0), flush=True)
