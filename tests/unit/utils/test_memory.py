"""Freed memory is kept by commands that run a network, unless the environment says otherwise."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
CASES = [  # runs a network, environment, whether memory is kept
    (True, {}, True),
    (False, {}, False),
    (True, {"QLSEG_KEEP_FREED_MEMORY": "0"}, False),
    (True, {"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
    (True, {"MALLOC_MMAP_THRESHOLD_": "131072"}, False),
    (True, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}, False),
]
PROBE = """
import ctypes, json, os, resource, sys
import qlseg_hf.cli.errors  # which every command imports, once for all
from qlseg_hf.cli.options import subcommand

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):  # more than the 32 MiB up to which glibc keeps memory by itself
        libc.free(ctypes.c_void_p(ctypes.memset(ctypes.c_void_p(libc.malloc(64 << 20)), 1, 64 << 20)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
for runs_network, environment, _ in json.loads(sys.argv[1]):
    if os.fork() == 0:
        os.environ.update(environment)
        subcommand("probe", runs_network=runs_network)(lambda: print(faults(), faults()))([], standalone_mode=False)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def test_commands_keep_freed_memory():
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(CASES)], env={"PATH": ""}, capture_output=True, text=True, check=True
    )
    kept = [int(line.split()[1]) < 20 for line in done.stdout.splitlines()]  # else 128 of huge pages at the least
    assert kept == [expected for *_, expected in CASES]
