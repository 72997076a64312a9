"""What `import fedlab` does to a process: little, and nothing the user did not ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.programs


def python(
    code: str, cwd: Path, *, path: Path | None = None, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, with `cwd` first on sys.path as an interactive session has it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FLWR_", "RAY_", "HF_"))}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    environment |= variables or {}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_importing_fedlab_loads_no_large_library(tmp_path: Path) -> None:
    large = "torch", "flwr", "ray", "numpy", "pydantic", "datasets", "matplotlib", "typer"
    done = python(f"import sys, fedlab; print([name for name in {large} if name in sys.modules])", tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_public_name_resolves_and_is_listed(tmp_path: Path) -> None:
    code = "import fedlab; [getattr(fedlab, n) for n in fedlab.__all__]; print(*set(fedlab.__all__) - set(dir(fedlab)))"
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_an_unknown_attribute_is_an_attribute_error(tmp_path: Path) -> None:
    done = python("import fedlab; fedlab.runn", tmp_path)
    assert "AttributeError: module 'fedlab' has no attribute 'runn'" in done.stderr


def test_telemetry_and_update_checks_are_off_after_the_import(tmp_path: Path) -> None:
    names = [
        "FLWR_TELEMETRY_ENABLED",
        "RAY_USAGE_STATS_ENABLED",
        "FLWR_DISABLE_UPDATE_CHECK",
        "HF_HUB_DISABLE_TELEMETRY",
    ]
    code = f"import os, fedlab; print(*(os.environ[name] for name in {names}))"
    assert python(code, tmp_path).stdout.split() == ["0", "0", "1", "1"]


@pytest.mark.parametrize("module", ["flwr.supercore.telemetry", "flwr_datasets.common.telemetry"])
def test_telemetry_is_off_in_flower_itself_whichever_is_imported_first(tmp_path: Path, module: str) -> None:
    code = f"import {module} as t, fedlab; print(t.FLWR_TELEMETRY_ENABLED)"
    assert python(code, tmp_path).stdout.split() == ["0"]


def test_a_user_who_wants_telemetry_keeps_it(tmp_path: Path) -> None:
    code = "import os, fedlab; print(os.environ['FLWR_TELEMETRY_ENABLED'])"
    assert python(code, tmp_path, variables={"FLWR_TELEMETRY_ENABLED": "1"}).stdout.split() == ["1"]


def test_modules_of_the_user_called_server_clients_and_methods_do_not_matter(tmp_path: Path) -> None:
    for name in ("server", "clients", "methods"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the user module was imported')\n")
    code = (
        "import fedlab.experiment.start, fedlab.server.app, fedlab.clients.app; print(fedlab.assembly.METHODS.names())"
    )
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fedlgd" in done.stdout


@pytest.mark.parametrize("statement", ["import fedlab", "from fedlab.cli.main import main"])
def test_the_other_distribution_called_fedlab_is_named_with_what_to_do(tmp_path: Path, statement: str) -> None:
    foreign = tmp_path / "site" / "fedlab-1.3.0.dist-info"
    foreign.mkdir(parents=True)
    (foreign / "METADATA").write_text("Metadata-Version: 2.1\nName: fedlab\nVersion: 1.3.0\n")
    done = python(statement, tmp_path, path=tmp_path / "site")
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert "'fedlab' 1.3.0" in error
    assert "pip uninstall fedlab && pip install --force-reinstall fedlab-sim" in error
