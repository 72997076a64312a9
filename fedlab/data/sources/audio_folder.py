"""Sound files listed in a table of labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pydantic import Field

from fedlab.config import Positive, ProperFraction, Section
from fedlab.data.classes import test_part
from fedlab.data.files.audio import SUFFIXES, read_audio, resampled
from fedlab.data.files.listing import Listing
from fedlab.data.files.reading import Gathered, read_each, reading
from fedlab.data.files.spelling import checked_name
from fedlab.data.files.text import read_text
from fedlab.data.samples import Dataset, Samples
from fedlab.data.stand_in import Draws, Wanted, united
from fedlab.errors import DataError, did_you_mean
from fedlab.seeding import numpy_generator
from fedlab.storage.paths import InputPath
from fedlab.tracking.left_out import LeftOut

_SPLITS = ("train", "test", "probe")
_COLUMNS = ("file", "label", "speaker", "group", "device", "split")
_KEY = "data.source.path"


class AudioFolderSettings(Section):
    """Settings of the audio folder source."""

    path: InputPath = Field(
        description="folder of sound files with labels.csv: file,label[,speaker|group][,device][,split]"
    )
    table: str = Field(default="labels.csv", description="name of the table in that folder")
    rate: Positive = Field(default=16_000, description="sampling rate that every clip must have, in Hz; see `resample`")
    resample: bool = Field(default=False, description="convert files of another rate instead of refusing them")
    seconds: float = Field(gt=0, description="length of a clip; shorter ones are padded with silence, longer ones cut")
    shortest: float = Field(
        default=0.1, gt=0, description="shortest length of a file in seconds; shorter files are refused"
    )
    test_fraction: ProperFraction = Field(
        default=0.2, description="share of each class that becomes test samples, if the table has no column split"
    )
    data_seed: int = Field(default=0, ge=0, description="seed of that draw; independent of the run's seed")


@dataclass(frozen=True)
class Clip:
    """A row of the table.

    Args:
        file: path below the folder.
        labels: its classes, none if unlabeled.
        speaker: owner of the clip, from the column speaker or group; "" if the table has neither.
        device: device that recorded the clip; "" if the table does not say.
        split: train, test or probe; "" if the table does not say.
    """

    file: str
    labels: tuple[str, ...]
    speaker: str
    device: str
    split: str


class AudioFolder:
    """Your own sound files and labels.csv (file, label; speaker, device and split optional); several labels by ';'.

    Columns: ``audio`` (T,), ``length`` (samples before padding), ``label`` or, where any clip has several, ``tags``
    (K,); ``group`` from the column speaker or group, ``domain`` from device. The server holds the rows of the split
    ``probe`` and the labeled test clips. If labels are missing in the split train, no client has labels.
    """

    Settings = AudioFolderSettings

    def __init__(self, settings: AudioFolderSettings) -> None:
        self.settings = settings
        self.root = Path(settings.path).expanduser()
        self.table = self.root / settings.table

    def missing(self) -> str | None:
        return None if self.table.is_file() else f"no table {self.table}; set {_KEY} to a folder that holds one"

    def load(self, seed: int) -> Dataset:
        if self.missing():
            expected = f"a folder with {self.settings.table}"
            raise DataError(_KEY, self.settings.path, expected, "see methods/asit/README.md")
        listing = Listing(_KEY, self.root)
        by_split = self._split(self._rows())
        for split in ("train", "test"):
            if not by_split[split]:
                raise DataError(str(self.table), f"no row of split {split!r}", f"{split} clips", "add some")
        rows = [row for split in _SPLITS for row in by_split[split]]
        names = _Names.of(rows)
        clients = [*by_split["train"], *by_split["test"]]
        labeled = all(row.labels for row in clients)
        files = self._files(rows, listing)
        left_out = [*listing.left_out, *_labels_lost(clients, labeled)]
        broken = Gathered("sound files")
        at = files, left_out, broken
        train, test = (self._samples(by_split[split], names, labeled, *at) for split in ("train", "test"))
        server = {}
        if by_split["probe"]:
            server["probe"] = self._samples(by_split["probe"], names, True, *at)
        if names.classes and all(row.labels for row in by_split["test"]):
            server["test"] = test if labeled else self._samples(by_split["test"], names, True, files, [], broken)
        broken.settle()
        warnings = listing.warnings
        return Dataset(self.root.name, train, test, server, left_out=_summed(left_out), warnings=warnings)

    def stand_in(self, wanted: Wanted) -> Dataset:
        """Random sounds instead of those that are not here."""
        s = self.settings
        ticks = round(s.rate * s.seconds)

        def columns(split: str) -> dict[str, np.ndarray]:
            draws = Draws(wanted, split)
            owner, length = draws.dealt(wanted.domains), np.full(draws.count, ticks, np.int64)
            made = {"audio": draws.normal(ticks), "length": length, "label": draws.label()}
            return {**made, "group": owner, "domain": owner}

        made = united(self.root.name, wanted, {split: columns(split) for split in _SPLITS})
        return replace(made, server={**made.server, "test": made.test})

    def _files(self, rows: Sequence[Clip], listing: Listing) -> dict[str, Path]:
        """The file of every row; other sound files in the folder are counted."""
        files = {row.file: listing.find(self.root / row.file) for row in rows}
        listed = set(files.values())
        known = {*listed, self.table}
        for path in listing.below(
            self.root, lambda path: path in known or path.suffix.lower() in SUFFIXES, "they are no sound files"
        ):
            if path not in known:
                listing.skip(path, f"{self.settings.table} does not list them", "add a row for each of them")
        return files

    def _rows(self) -> list[Clip]:
        text = read_text(self.table, _KEY)
        rows: list[Clip] = []
        with reading(_KEY, str(self.table), "a readable table, comma-separated", "mend the line"):
            reader = csv.reader(io.StringIO(text), strict=True)
            header = [name.strip() for name in next(reader, [])]
            self._check_header(header)
            cells = [(reader.line_num, row) for row in reader if row]

        def read(_: int, numbered: tuple[int, list[str]]) -> None:
            line, row = numbered
            if len(row) > len(header):
                where, fix = f"{self.table}, line {line}", "several labels go into one cell: 'dog;rain'"
                raise DataError(where, f"{len(row)} cells", f"{len(header)}, one for each column", fix)
            rows.append(self._row(dict(zip(header, row, strict=False)), line))

        read_each(cells, read, "rows")
        if not rows:
            raise DataError(str(self.table), "no rows", "one row per sound file")
        for column in ("speaker", "device"):
            named = {bool(getattr(row, column)) for row in rows}
            if len(named) > 1:
                silent = next(row.file for row in rows if not getattr(row, column))
                raise DataError(str(self.table), f"no {column} for {silent}", f"a {column} in every row, or in none")
        files = [row.file for row in rows]
        if len(set(files)) < len(files):
            twice = next(name for name in files if files.count(name) > 1)
            fix = "several labels go into one cell: 'dog;rain'"
            raise DataError(str(self.table), twice, "every file in one row", fix)
        return rows

    def _check_header(self, header: Sequence[str]) -> None:
        for name in header:
            if name not in _COLUMNS:
                raise DataError(f"{self.table}, line 1", name, "a known column", did_you_mean(name, _COLUMNS))
        if len(set(header)) < len(header):
            raise DataError(f"{self.table}, line 1", ",".join(header), "every column once", "leave one of them out")
        if "file" not in header or {"speaker", "group"} <= set(header):
            raise DataError(
                f"{self.table}, line 1", ",".join(header), "a column file, and speaker or group but not both"
            )

    def _row(self, row: dict[str, str | None], line: int) -> Clip:
        where = f"{self.table}, line {line}"
        cells = {name: checked_name((row.get(name) or "").strip(), where, "a cell") for name in _COLUMNS}
        split = cells["split"].lower()
        if not cells["file"]:
            raise DataError(where, "no file", "the name of a sound file")
        if split not in ("", *_SPLITS):
            raise DataError(where, cells["split"], f"one of {', '.join(_SPLITS)}", did_you_mean(split, _SPLITS))
        labels = tuple(dict.fromkeys(label.strip() for label in cells["label"].split(";") if label.strip()))
        if split == "probe" and not labels:
            raise DataError(where, "no label", "labels in every row of split probe")
        return Clip(cells["file"], labels, cells["speaker"] or cells["group"], cells["device"], split)

    def _split(self, rows: Sequence[Clip]) -> dict[str, list[Clip]]:
        """Rows by split. If the table has none, the rows of each class are shuffled and the last ones are tests."""
        said = [row for row in rows if row.split]
        if said and len(said) < len(rows):
            silent = next(row for row in rows if not row.split)
            raise DataError(str(self.table), f"no split for {silent.file}", "a split in every row, or in none")
        if said:
            return {split: [row for row in rows if row.split == split] for split in _SPLITS}
        parts: dict[str, list[Clip]] = {split: [] for split in _SPLITS}
        for labels in sorted({row.labels for row in rows}):
            members = [row for row in rows if row.labels == labels]
            rng = numpy_generator(self.settings.data_seed, "audio split", *labels)
            order = rng.permutation(len(members)).tolist()
            count = test_part(len(members), round(len(members) * self.settings.test_fraction))
            parts["test"] += [members[i] for i in sorted(order[:count])]
            parts["train"] += [members[i] for i in sorted(order[count:])]
        return parts

    def _samples(
        self,
        rows: Sequence[Clip],
        names: _Names,
        labeled: bool,
        files: dict[str, Path],
        left_out: list[LeftOut],
        broken: Gathered,
    ) -> Samples:
        audio = np.zeros((len(rows), round(self.settings.rate * self.settings.seconds)), np.float32)
        length = np.zeros(len(rows), np.int64)
        seconds = np.zeros(len(rows))

        def read(index: int, row: Clip) -> None:
            whole = self._clip(files[row.file])
            clip = whole[: audio.shape[1]]
            audio[index, : len(clip)], length[index] = clip, len(clip)
            seconds[index] = len(whole) / self.settings.rate

        broken.read(rows, read)
        left_out += _cut(rows, seconds, length / self.settings.rate)
        columns: dict[str, np.ndarray] = {"audio": audio, "length": length}
        columns["domain"] = names.codes(names.devices, [row.device for row in rows])
        if names.groups:
            columns["group"] = names.codes(names.groups, [row.speaker for row in rows])
        if labeled and names.classes:
            columns |= names.targets(rows)
        return Samples(columns, names.classes, names.devices, names.groups)

    def _clip(self, path: Path) -> np.ndarray:
        s = self.settings
        clip, rate = read_audio(path, _KEY)
        if rate != s.rate and not s.resample:
            raise DataError(
                _KEY,
                f"{path}, {rate} Hz",
                f"data.source.rate = {s.rate} Hz",
                "set data.source.resample to true to convert it, or data.source.rate to the files' own rate",
            )
        if len(clip) < s.shortest * rate:
            found = f"{path}, {len(clip) / rate:.3f} s"
            fix = "take its row out, or lower data.source.shortest"
            raise DataError(_KEY, found, f"at least {s.shortest:g} s", fix)
        return resampled(clip, rate, s.rate)


def _cut(rows: Sequence[Clip], seconds: np.ndarray, kept: np.ndarray) -> list[LeftOut]:
    """The seconds of sound that are cut off at the end of the clips."""
    cut = np.flatnonzero(seconds > kept)
    if not len(cut):
        return []
    lost, whole = round(float((seconds - kept).sum()), 3), round(float(seconds.sum()), 3)
    examples = tuple(rows[index].file for index in cut[:10].tolist())
    return [LeftOut("seconds of sound", lost, "they lie behind data.source.seconds", whole, "", examples)]


def _labels_lost(rows: Sequence[Clip], labeled: bool) -> list[LeftOut]:
    """Labels that are not used, because other training clips have none."""
    given = sum(bool(row.labels) for row in rows)
    if labeled or not given:
        return []
    examples = tuple(row.file for row in rows if not row.labels)[:10]
    why = "other rows of train and test have none, and clients see labels of all their clips or of none"
    fix = "label every row for methods that need labels"
    return [LeftOut("labels", given, why, len(rows), fix, examples)]


def _summed(left_out: Sequence[LeftOut]) -> tuple[LeftOut, ...]:
    """The sum of equal entries of several splits."""
    found: dict[tuple[str, str], LeftOut] = {}
    for left in left_out:
        key = left.what, left.why
        found[key] = found[key] + left if key in found else left
    return tuple(found.values())


@dataclass(frozen=True)
class _Names:
    """Names of classes, owners and devices, sorted.

    Args:
        classes: names of the classes; may be empty.
        groups: names of the owners; empty if no row names one.
        devices: names of the devices; ``all`` if no row names one.
        several: whether some clip has several labels.
    """

    classes: tuple[str, ...]
    groups: tuple[str, ...]
    devices: tuple[str, ...]
    several: bool

    @classmethod
    def of(cls, rows: Sequence[Clip]) -> _Names:
        classes = tuple(sorted({label for row in rows for label in row.labels}))
        groups = tuple(sorted({row.speaker for row in rows}))
        devices = tuple(sorted({row.device for row in rows}))
        several = any(len(row.labels) > 1 for row in rows)
        return cls(classes, groups if groups != ("",) else (), devices if devices != ("",) else ("all",), several)

    @staticmethod
    def codes(names: tuple[str, ...], values: Sequence[str]) -> np.ndarray:
        position = {name: index for index, name in enumerate(names)} | {"": 0}
        return np.array([position[value] for value in values], np.int64)

    def targets(self, rows: Sequence[Clip]) -> dict[str, np.ndarray]:
        """``label`` (n,), or ``tags`` (n, K) where clips may have several."""
        position = {name: index for index, name in enumerate(self.classes)}
        if not self.several:
            return {"label": np.array([position[row.labels[0]] for row in rows], np.int64)}
        tags = np.zeros((len(rows), len(self.classes)), np.uint8)
        for index, row in enumerate(rows):
            tags[index, [position[label] for label in row.labels]] = 1
        return {"tags": tags}
