from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from fedlab.tracking.table import CsvSink, rows

Stream = list[dict[str, Any]]


def test_the_table_holds_every_number_in_order(tmp_path: Path, stream: Stream) -> None:
    sink = CsvSink(tmp_path / "metrics.csv")
    for event in stream:
        sink.write(event)
    sink.close()
    text = (tmp_path / "metrics.csv").read_text()
    assert text.splitlines()[:8] == [
        "round,scope,metric,value",
        "0,seconds,prepare,1",
        "0,bytes,down,0",
        "0,bytes,up,40",
        "1,seconds,train,2",
        "1,train,ce,nan",
        "1,train,seconds,0.5",
        "1,server,gm,12.25",
    ]
    with (tmp_path / "metrics.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    values = {(row["round"], row["scope"], row["metric"]): float(row["value"]) for row in read}
    assert len(values) == len(read)
    assert values["2", "train", "ce"] == 0.7071
    assert values["2", "mean", "accuracy"] == 0.625
    assert values["2", "pooled", "accuracy"] == 0.6
    assert values["2", "a, b", "accuracy"] == 0.5
    assert math.isnan(values["2", "c", "loss"])
    assert values["2", "bytes", "shared/down"] == 100
    assert values["2", "seconds", "evaluate"] == 1


def test_rows_are_on_disk_before_the_next_event(tmp_path: Path, stream: Stream) -> None:
    path = tmp_path / "metrics.csv"
    sink = CsvSink(path)
    lines = 1
    assert path.read_text().count("\n") == lines
    for event in stream:
        sink.write(event)
        lines += len(list(rows(event)))
        assert path.read_text().count("\n") == lines
    sink.close()


def test_a_file_that_is_continued_keeps_one_header(tmp_path: Path, stream: Stream) -> None:
    for _ in range(2):
        sink = CsvSink(tmp_path / "metrics.csv")
        sink.write(stream[2])
        sink.close()
    assert (tmp_path / "metrics.csv").read_text() == "round,scope,metric,value\n" + 2 * "0,seconds,prepare,1\n"


def test_tags_put_one_metric_of_all_scopes_side_by_side(stream: Stream) -> None:
    tags = {row.tag for event in stream for row in rows(event)}
    assert {"accuracy/mean", "accuracy/pooled", "accuracy/c", "train/ce", "bytes/model/down", "seconds/train"} <= tags
