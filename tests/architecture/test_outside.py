"""Every place where bytes from outside are turned into objects, what guards it, and that there is no other place.

*Outside* is whatever this process has not made itself: what comes over a network or a pipe, and all files. A new place
must be added here, with its guard, before it passes.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PARSERS = {
    *("loads", "load", "load_file", "frombuffer", "fromfile", "read_csv", "reader", "DictReader", "import_module"),
    *("from_pretrained", "load_dataset", "load_from_disk", "ZipFile", "safe_open", "literal_eval", "safe_load"),
}
MODULES = {
    *("pickle", "cloudpickle", "marshal", "shelve", "dill", "joblib", "json", "yaml", "np", "numpy", "torch", "csv"),
    *("safetensors", "pd", "pandas", "ast", "importlib", "datasets", "soundfile", "trimesh", "zipfile", "tarfile"),
}
ANYWHERE = {"from_pretrained", "load_dataset"}
NAMES = {"eval", "exec", "__import__", "read_yaml", "safe_open"}

WIRE = "the server and the nodes of a deployment"
FILES = "files of the user"
RUN = "files of a run folder"
OWN = "this program itself, or another process of the same user over a channel that nobody else can open"

GUARDS: dict[str, tuple[str, str]] = {
    # file: where the bytes come from, and what guards the place
    "fedlab/protocol/messages.py": (
        WIRE,
        "decoded(): the header is compared with the number of bytes before an array is made; objects are refused; "
        "whatever fails is an error of the client that sent it (server/messaging/inspection.py)",
    ),
    "fedlab/protocol/encoding.py": (
        WIRE,
        "expand(): decoded by the run's own chain, after its text and the form of every part were compared",
    ),
    "fedlab/protocol/compression.py": (OWN, "chain_from() reads Chain.text; no text of a reply reaches it"),
    "fedlab/protocol/instructions.py": (WIRE, "read on a node from its server, which its certificate proves"),
    "fedlab/protocol/sums.py": (WIRE, "Reduction.from_json() refuses every other form; no reply holds one"),
    "fedlab/protocol/runconfig.py": (
        WIRE,
        "unpack(): JSON, then the strict model of a configuration; names of folders are checked",
    ),
    "server/messaging/profiles.py": (
        WIRE,
        "stated_profile() checks kind and bounds of every value; a node whose profile cannot be read is left out",
    ),
    "clients/resident/wire.py": (OWN, "a socket in a folder of mode 700 that belongs to this user (meeting.py)"),
    "clients/resident/app.py": (OWN, "the name of the app is a constant"),
    "fedlab/engine/execution.py": (
        OWN,
        "states that pack_state() has packed, which never leave the engine's processes",
    ),
    "fedlab/config/modules.py": (
        WIRE + "; " + FILES,
        "load_reference(): on a node, only what NodeConfig.allow names beside entry points and FedLab's own (only())",
    ),
    "fedlab/registry.py": (OWN, "the place of a registry is a constant; names of users go through check_allowed()"),
    "fedlab/__init__.py": (OWN, "a constant table of public names"),
    "fedlab/doctor.py": (OWN, "constants"),
    "fedlab/engine/dynamo.py": (OWN, "a constant"),
    "fedlab/studies/recorded.py": (
        RUN,
        "source of installed modules, parsed only; JSON of a study, checked key by key",
    ),
    "fedlab/studies/rehearsed.py": (RUN, "JSON and YAML of a method's own folder, of known keys"),
    "fedlab/config/yamltree.py": (FILES, "a safe loader of FedLab's own that makes plain values only"),
    "fedlab/config/sections.py": (FILES, "read_yaml(), see fedlab/config/yamltree.py"),
    "fedlab/config/node.py": (FILES, "read_yaml(), then the strict model of a node's or server's file"),
    "fedlab/deployment/project.py": (FILES, "read_yaml(), then the strict model of a project"),
    "fedlab/deployment/handover.py": (FILES, "read_yaml(), then the strict model of a file that was handed over"),
    "fedlab/experiment/configuration.py": (FILES, "read_yaml(), then the strict model of a configuration"),
    "fedlab/experiment/probing.py": (RUN, "read_yaml() and JSON of a run folder, then strict models"),
    "fedlab/config/recorded.py": (
        RUN,
        "read_yaml(), then the strict model of a configuration; its copy is compared with the hash in its first line",
    ),
    "fedlab/flowerapp/configure.py": (FILES, "read_yaml(), then the strict model of a configuration"),
    "fedlab/flowerapp/start.py": (RUN, "safetensors, which hold no code"),
    "fedlab/cli/flowerapp.py": (FILES, "read_yaml(), of which only the names of the sections are looked at"),
    "fedlab/studies/acceptance.py": (FILES, "read_yaml(), then the strict model of an experiment"),
    "fedlab/studies/spec.py": (FILES, "read_yaml(), then the strict model of a sweep"),
    "fedlab/studies/side_by_side.py": (OWN, "JSON lines of FedLab's own worker"),
    "fedlab/studies/worker.py": (
        OWN,
        "JSON lines of the process that started it, then the strict model of a configuration",
    ),
    "fedlab/studies/optuna_study.py": (RUN, "JSON of a study, plain values only"),
    "server/resuming.py": (RUN, "JSON of this process's own configurations, which are compared key by key"),
    "server/deployed_folder.py": (RUN, "JSON; the token is compared with what was submitted"),
    "fedlab/storage/renamed.py": (RUN, "yaml.safe_load, plain values only"),
    "fedlab/report/record.py": (RUN, "load_yaml() and JSON, plain values only, which the page escapes"),
    "fedlab/storage/checkpoint.py": (RUN, "safetensors and JSON, which hold no code; hashes are compared"),
    "fedlab/storage/weights.py": (FILES, "safetensors, which hold no code; names and shapes are compared"),
    "fedlab/storage/sealed.py": (RUN, "safetensors, which hold no code; the hash of the tensors is compared"),
    "clients/state.py": (RUN, "safetensors behind a hash of the content"),
    "fedlab/tracking/history.py": (RUN, "JSON lines, plain values only"),
    "fedlab/tracking/ledger.py": (RUN, "CSV, numbers only"),
    "fedlab/tracking/trackers/wide.py": (RUN, "CSV, texts that are written back as they were"),
    "fedlab/callbacks/configured.py": (OWN, "JSON that was made from the same value one call before"),
    "fedlab/tracking/timeline.py": (RUN, "JSON, plain values only"),
    "fedlab/tracking/stream.py": (WIRE, "JSON of a line that the run's own server has printed, plain values only"),
    "fedlab/deployment/flower.py": (OWN, "JSON that Flower's own command has printed"),
    "fedlab/deployment/containers.py": (OWN, "JSON that the container engine has printed"),
    "fedlab/deployment/hosts.py": (
        OWN,
        "JSON that fedlab.engine.host has printed on a machine of the user's, over ssh",
    ),
    "fedlab/deployment/processes.py": (FILES, "JSON of the project's own state"),
    "fedlab/deployment/supervisor.py": (FILES, "JSON of the project's own state"),
    "fedlab/deployment/runs.py": (FILES, "JSON of runs that were submitted from this folder"),
    "fedlab/data/files/jsontext.py": (FILES, "JSON; who asks checks every value (pairs.py, composed.py)"),
    "fedlab/data/files/meshes.py": (FILES, "trimesh with a stated format; numpy with allow_pickle=False"),
    "fedlab/data/files/captions.py": (FILES, "transformers, which executes no code of a model"),
    "fedlab/data/files/regions.py": (
        FILES,
        "numpy with allow_pickle=False; JSON; transformers from a local folder, which executes no code of a model",
    ),
    "fedlab/data/sources/audio_folder.py": (FILES, "CSV; every value is checked"),
    "fedlab/data/sources/hub.py": (FILES, "datasets, which executes no code of a data set in its present versions"),
    "fedlab/data/sources/npz.py": (FILES, "numpy with allow_pickle=False"),
    "fedlab/models/checkpoints.py": (FILES, "transformers with safetensors"),
    "fedlab/models/image_codes.py": (FILES, "transformers with safetensors"),
    "methods/arra/llm.py": (FILES, "transformers with safetensors"),
    "methods/arra/vision.py": (FILES, "transformers with safetensors"),
    "methods/isa/networks.py": (FILES, "transformers with safetensors"),
    "fedlab/models/blip.py": (FILES, "transformers with safetensors"),
    "fedlab/models/clip.py": (FILES, "transformers with safetensors"),
    "fedlab/models/pretrained.py": (FILES, "transformers with safetensors"),
    "fedlab/models/segformer.py": (FILES, "transformers with safetensors"),
    "fedlab/models/standard_resnet.py": (FILES, "transformers with safetensors"),
    "server/participation/availability.py": (FILES, "CSV; every number is checked"),
}


def parsers_of(path: Path) -> list[str]:
    """The calls in a file that turn bytes or text from outside into objects."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called, chain = node.func, []
        while isinstance(called, ast.Attribute):
            chain.append(called.attr)
            called = called.value
        first = called.id if isinstance(called, ast.Name) else ""
        if (not chain and first in NAMES) or (
            chain and chain[0] in PARSERS and (first in MODULES or chain[0] in ANYWHERE)
        ):
            found.append(".".join([first, *reversed(chain)]))
    return found


def places() -> dict[str, list[str]]:
    files = (path for top in ("fedlab", "server", "clients", "methods") for path in sorted((ROOT / top).rglob("*.py")))
    return {str(path.relative_to(ROOT)): calls for path in files if (calls := parsers_of(path))}


def test_every_place_where_bytes_from_outside_are_parsed_has_a_guard() -> None:
    found = places()
    assert sorted(found.keys() - GUARDS.keys()) == [], "say in GUARDS what protects these places"
    assert sorted(GUARDS.keys() - found.keys()) == [], "nothing is parsed here any more"


def test_nothing_is_evaluated_and_pickles_come_from_this_program_only() -> None:
    calls = {path: set(found) for path, found in places().items()}
    assert not any(found & {"eval", "exec", "__import__", "torch.load"} for found in calls.values())
    pickled = {path for path, found in calls.items() if any(call.startswith(("pickle.", "dill.")) for call in found)}
    assert pickled == {path for path in pickled if GUARDS[path][0] == OWN}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import pickle\npickle.loads(b'')", ["pickle.loads"]),
        ("eval('1')", ["eval"]),
        ("import numpy as np\nnp.load('x')", ["np.load"]),
        ("state.load('x')", []),
    ],
)
def test_a_new_place_would_be_found(code: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(code)
    assert parsers_of(tmp_path / "x.py") == expected
