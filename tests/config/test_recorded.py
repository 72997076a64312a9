"""The configuration in a run folder and its copy: what counts as an edit, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedlab.config import Config, parse
from fedlab.config import recorded as module
from fedlab.config.recorded import changes, check_unchanged, deciding, record_config
from fedlab.errors import CheckpointError
from fedlab.server import resuming
from fedlab.storage.runfolder import RunFolder


def config(**changes: Any) -> Config:
    data = {"source": {"name": "digits"}, "partition": [{"name": "iid", "clients": 2}]}
    return parse(Config, {"method": {"name": "supervised"}, "data": data}).with_overrides(
        {key.replace("__", "."): value for key, value in changes.items()}
    )


def edited(folder: RunFolder, old: str, new: str) -> None:
    text = folder.config.read_text()
    assert old in text
    folder.config.write_text(text.replace(old, new))


def test_keys_that_do_not_decide_the_result_may_be_edited(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    record_config(folder, config(tracking__console="quiet", engine__workers=1))
    edited(folder, "console: quiet", "console: plain")
    edited(folder, "workers: 1", "workers: 2")
    for key in resuming.MAY_CHANGE:
        section, _, name = key.partition(".")
        if name not in ("", "rounds"):
            edited(folder, f"  {name}: {getattr(config().federation, name)}", f"  {name}: 7")
            assert section == "federation"
    check_unchanged(folder)
    check_unchanged(folder, deciding(config().model_dump(mode="json")))
    edited(folder, "seed: 0", "seed: 1")
    assert changes(folder) == ["seed is 1 and was 0"]
    with pytest.raises(CheckpointError, match="seed is 1 and was 0"):
        check_unchanged(folder)


def test_a_checkpoint_allows_more_rounds_and_what_newer_versions_add(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    record_config(folder, config(federation__rounds=7))
    then = deciding(config().model_dump(mode="json"))
    check_unchanged(folder, then)
    del then["training"]["lr"]  # as an earlier version, which did not have that key, wrote it
    check_unchanged(folder, then)
    folder.copy.unlink()  # nothing says now that FedLab itself has added the key
    with pytest.raises(CheckpointError, match=r"training.lr is .* and was not set"):
        check_unchanged(folder, then)
    with pytest.raises(CheckpointError, match="seed is 0 and was 5"):
        check_unchanged(folder, {**deciding(config().model_dump(mode="json")), "seed": 5})


def test_values_of_keys_that_are_called_as_passwords_are_are_not_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    record_config(folder, config(method={"name": "supervised", "api_key": "geheim"}))
    edited(folder, "geheim", "other")
    assert changes(folder) == ["method.api_key was changed"]


def test_a_process_that_is_killed_between_the_two_files_leaves_no_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write = RunFolder(tmp_path), module.write_atomic
    for last in (folder.config, folder.copy):
        record_config(folder, config())

        def killed(path: Path, *rest: Any, last: Path = last) -> None:
            if path == last:
                raise KeyboardInterrupt
            write(path, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(module, "write_atomic", killed)
            with pytest.raises(KeyboardInterrupt):
                record_config(folder, config(federation__rounds=9))
        check_unchanged(folder)
