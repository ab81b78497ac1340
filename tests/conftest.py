"""What the tests share: the two stored networks, converted once, and a tiny network with fresh weights."""

import json
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import hub_server
import pytest

# before anything reads them: the tests have a Hub of their own, an empty cache and no token
HUB = hub_server.Hub()
CACHE = tempfile.TemporaryDirectory(prefix="qlseg-cache-")
os.environ |= {"HF_ENDPOINT": HUB.url, "HF_HOME": CACHE.name, "HF_HUB_DISABLE_XET": "1"}
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
    os.environ.pop(name, None)

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

FIXTURES = Path(__file__).resolve().parent / "fixtures"
# so that a failure in them says what differs
pytest.register_assert_rewrite("training_runs", "programs", "evaluations")
from networks import tiny_config, tiny_model_and_processor, varied_model  # noqa: E402
from programs import ROOT, make_data, write_recipe  # noqa: E402, F401

from qlseg_hf import QLSegForSemanticSegmentation, QLSegImageProcessor  # noqa: E402
from qlseg_hf.convert import convert_file  # noqa: E402
from qlseg_hf.convert.reader import read_checkpoint  # noqa: E402


@dataclass
class Stored:
    """A stored network: its folder for `from_pretrained`, its checkpoint and the numbers it must give."""

    name: str
    folder: Path
    checkpoint: Path
    tensors: dict[str, torch.Tensor]
    numbers: dict
    processor: QLSegImageProcessor

    def model(self, **kwargs) -> QLSegForSemanticSegmentation:
        return QLSegForSemanticSegmentation.from_pretrained(self.folder, **kwargs)

    def picture(self, name: str) -> Path:
        return FIXTURES / self.name / f"{name}.png"


@pytest.fixture(scope="session", params=["a", "b"])
def stored(request, tmp_path_factory) -> Stored:
    name = request.param
    checkpoint = FIXTURES / name / "checkpoint.pth"
    folder = tmp_path_factory.mktemp("converted") / name
    convert_file(checkpoint, folder)
    return Stored(
        name=name,
        folder=folder,
        checkpoint=checkpoint,
        tensors=load_file(FIXTURES / name / "expected.safetensors"),
        numbers=json.loads((FIXTURES / name / "expected.json").read_text()),
        processor=QLSegImageProcessor.from_pretrained(folder),
    )


@pytest.fixture(scope="module")
def checkpoint() -> tuple[dict, dict]:
    """State dict and meta of the small network `b`."""
    source = read_checkpoint(FIXTURES / "b" / "checkpoint.pth")
    return source.state_dict, source.meta


@pytest.fixture
def connections(monkeypatch) -> list[str]:
    """What this process asks of any network, the loopback included, while none answers."""
    asked = []

    def fail(*arguments, **_):
        asked.append(repr(arguments))
        raise OSError("there is no network")

    for place, names in ((socket, ("getaddrinfo", "create_connection")), (socket.socket, ("connect", "connect_ex"))):
        for name in names:
            monkeypatch.setattr(place, name, fail)
    return asked


@pytest.fixture
def hub(monkeypatch) -> hub_server.Hub:
    """The Hub on the loopback, empty, with a token that may write."""
    HUB.repos.clear()
    HUB.requests.clear()
    HUB.failing = None
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    return HUB


@pytest.fixture
def tiny_model() -> QLSegForSemanticSegmentation:
    return varied_model(tiny_config())


@pytest.fixture(scope="session")
def network(tmp_path_factory) -> Path:
    """The folder of a tiny network and its processor, see `tiny_model_and_processor`."""
    folder = tmp_path_factory.mktemp("network")
    for part in tiny_model_and_processor():
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_data(root)
    return root


@pytest.fixture(scope="session")
def whole_run(server, data, tmp_path_factory) -> Path:
    """A run that was never stopped: accumulation, workers, augmentation, dropout, moving average."""
    folder = tmp_path_factory.mktemp("whole")
    server.complete("train", write_recipe(folder, data), expect=0)
    return folder / "run"


@pytest.fixture(scope="module")
def one_thread():
    """As in a command's processes: the number of threads changes rounding. Busy cores are quicker with it, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made_references(one_thread, stored, tmp_path_factory) -> Path:
    from evaluations import make_references

    root = tmp_path_factory.mktemp("ade20k")
    make_references(root, stored)
    return root


@pytest.fixture
def references(made_references, tmp_path) -> Path:
    """Five pictures and their references, a copy that a test may spoil."""
    return shutil.copytree(made_references, tmp_path / "data")


@pytest.fixture
def page(tmp_path):
    """A page of a headless Chromium with a fresh profile and a camera that is drawn.

    `requests` holds the addresses that all its threads ask for, `faults` and `said` text.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright: `make test-all` installs it")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")  # pip has none
    flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync"
    flags += " --use-fake-device-for-media-stream --use-fake-ui-for-media-stream"
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=browser, args=flags.split(), viewport={"width": 1280, "height": 800}
        )
        page = context.new_page()
        page.set_default_timeout(120_000)  # machines may be busy
        page.requests, page.faults, page.said = [], [], []
        context.on("request", lambda request: page.requests.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        yield page
        context.close()


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    store = tmp_path_factory.mktemp("process") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def fresh_accelerate():
    """accelerate reads its environment anew, here and in the tests that follow."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def server():
    """Runs commands of `qlseg` in forked processes."""
    from training_runs import ForkServer  # needs accelerate, which not every test does

    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def form(request):
    """A format of `qlseg export` that is installed."""
    from exports import FORMATS

    pytest.importorskip(request.param)
    return FORMATS[request.param]


@pytest.fixture(scope="module")
def traced_once(tmp_path_factory):
    """The graph of a network is made once, see `trace_once`."""
    from exports import trace_once

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        trace_once(patch, folder)
        yield


@pytest.fixture
def running(server, data, tmp_path):
    """Starts a run that would go on for long, and comes back after its first checkpoint: (id, folder, log)."""
    from training_runs import start_long_run

    return lambda: start_long_run(server, data, tmp_path)


# files of half a minute to some minutes; begun first, they do not leave one of two processes alone at the end
LONGEST = "export_others predict training_signals wheel benchmark benchmark_gpu training training_auto".split()
LONGEST += "backbones evaluation examples modeling deformable_attention_triton evaluation_script".split()


def pytest_collection_modifyitems(items) -> None:
    """What lies in two folders runs whole commands, see the marker; the longest files come first."""
    for item in items:
        if item.path.relative_to(FIXTURES.parent).parts[0] in ("integration", "robustness"):
            item.add_marker(pytest.mark.integration)
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))
