"""The page on communication: its example runs and does what the page says."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

import fedlab
from fedlab.protocol.compression import COMPRESSORS
from fedlab.tracking.ledger import COLUMNS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "communication.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("reports")
def test_the_example_runs_and_its_uploads_are_small(tmp_path: Path) -> None:
    (found,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    file = tmp_path / "compressed.yaml"
    file.write_text(found, encoding="utf-8")
    quiet = ["tracking.console=quiet", "tracking.tensorboard=false", f"tracking.folder={tmp_path / 'runs'}"]
    fewer = ["data.source.train_per_domain=20", "data.source.test_per_domain=10"]  # the bytes are the same
    run = fedlab.run(file, overrides=[*quiet, *fewer])
    _, up = run.history.bytes_total()
    raw = run.history.raw_up()
    assert raw is not None
    assert 12 * up < raw
    with run.folder.ledger.open() as table:
        rows = list(csv.DictReader(table))
    assert tuple(rows[0]) == COLUMNS
    assert (sum(int(row["up"]) for row in rows), sum(int(row["raw_up"]) for row in rows)) == (up, raw)
    assert "raw_up" in run.folder.metrics.read_text()
    page = run.folder.report.read_text()
    assert "Up before compression" in page


def test_the_page_names_every_stage_and_column() -> None:
    assert {f"`{name}`" for name in COMPRESSORS.builtin} <= set(re.findall(r"`\w+`", PAGE))
    assert {"`down`", "`up`", "`raw_up`"} <= set(re.findall(r"`\w+`", PAGE))
