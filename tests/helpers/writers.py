"""Processes that write the same things again and again, to be killed or to race; and counts of what survived."""

import subprocess
import sys

from programs import ROOT, environment

# the thread that watches progress bars may hold their lock while a process is forked, which then waits for ever
NO_MONITOR = "import tqdm; tqdm.tqdm.monitor_interval = 0"

# everything is imported once, and forked: N children race for one folder
RACES = """
import json, os
from qlseg_hf.cli.main import run
print("ready", flush=True)
for line in sys.stdin:
    number, place = line.split()
    children = []
    for i in range(int(number)):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(f"{place}.{i}", os.O_WRONLY | os.O_CREAT), 2)
            os._exit(run(["convert", sys.argv[1], f"{place}/net"]))
        children.append(child)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""
# each line is a place to write to; the answers are the id of the process that writes there, and how it ended
FORKS = """
import os
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        os._exit(write(line.strip()) or 0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
WRITERS = {
    "convert": """
from qlseg_hf.cli.main import run
def write(place):
    return run(["convert", sys.argv[1], place])
""",
    "save": """
import torch
from qlseg_hf import QLSegForSemanticSegmentation
model = QLSegForSemanticSegmentation.from_pretrained(sys.argv[1])
with torch.no_grad():
    model.class_head.bias += 1
write = model.save_pretrained
""",
    "export": """
from qlseg_hf.export import onnx as onnx_model
from qlseg_hf.hub.loading import load_network
model, processor = load_network(sys.argv[1])
program = onnx_model.onnx_program(model, onnx_model.OUTPUTS)
onnx_model.onnx_program = lambda *_: program
def write(place):
    onnx_model.write_onnx(model, processor, place)
""",
}


def start(code: str, *arguments) -> subprocess.Popen:
    """A process that prints "ready" when everything is imported, and waits for a line before it goes on."""
    code = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{NO_MONITOR}\n{code}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment(), **pipes)


def sentences_of(printed: str) -> list[str]:
    """The lines of stderr, without bars."""
    return [line for line in printed.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]


def tell(what: str, tried: int, survived: int) -> None:
    """The counts of the table in docs/reliability.md; shown by `make faults` (-rA)."""
    print(f"{what}: {tried} tried, {survived} survived")
    assert tried and survived == tried
