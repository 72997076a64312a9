"""What holds for every source that reads people's files; a new source needs a builder or is said to generate."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.samples import Dataset
from fedlab.data.sources import SOURCES, load_source
from fedlab.errors import DataError, FedLabError
from tests.data.brought import BUILDERS, CAFE, GENERATED, Brought, decomposed

HIDDEN = (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", "~$notes.png", ".hidden.wav")


def test_every_source_is_built_here_or_generates_its_samples() -> None:
    assert BUILDERS.keys() | GENERATED == set(SOURCES.names())
    assert not BUILDERS.keys() & GENERATED


@pytest.fixture(params=BUILDERS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Brought:
    return BUILDERS[request.param](tmp_path / "data")


def names(dataset: Dataset) -> list[str]:
    parts = [dataset.train, *dataset.server.values()]
    return [name for part in parts for name in (*part.class_names, *part.domain_names, *part.group_names)]


def counted(dataset: Dataset, name: str) -> bool:
    return any(name in example for left in dataset.left_out for example in left.examples)


def test_a_clean_data_set_leaves_nothing_out(made: Brought) -> None:
    assert made.load().left_out == ()


@pytest.mark.parametrize(
    "content", [b"", b"no picture and no sound", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WAVE"]
)
def test_a_broken_file_is_named(made: Brought, content: bytes) -> None:
    made.files[0].write_bytes(content)
    with pytest.raises(DataError) as caught:
        made.load()
    shown = str(caught.value.value)
    assert made.files[0].name in shown or "sample 0" in shown


def test_all_broken_files_are_told_at_once_ten_by_name(made: Brought) -> None:
    if len(made.files) < 11:
        pytest.skip("it is one file")
    for file in made.files[:12]:
        file.write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        made.load()
    told = str(caught.value.value) + caught.value.fix
    by_name = sum(file.name in told for file in made.files[:12])
    by_row = sum(f"sample {row} of" in told for row in range(12))
    assert max(by_name if len({file.name for file in made.files}) >= 12 else 0, by_row, told.count("(cannot")) == 10
    assert "12 of " in told
    assert "and 2 more" in told


def test_a_file_the_decoder_fails_on_in_an_unheard_of_way_is_named(
    made: Brought, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No list of exceptions is long enough: any exception of a decoder becomes an error of the data."""

    class Odd(Exception):
        pass

    def fail(*args: object, **kwargs: object) -> None:
        raise Odd("inside the decoder")

    import trimesh
    from PIL import Image
    from scipy.io import wavfile

    for place, name in ((Image, "open"), (wavfile, "read"), (np, "load"), (trimesh, "load")):
        monkeypatch.setattr(place, name, fail)
    with pytest.raises(DataError, match="inside the decoder"):
        made.load()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_passes_through(
    made: Brought, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise stop

    import trimesh
    from PIL import Image
    from scipy.io import wavfile

    for place, name in ((Image, "open"), (wavfile, "read"), (np, "load"), (trimesh, "load")):
        monkeypatch.setattr(place, name, fail)
    with pytest.raises(stop):
        made.load()


def test_hidden_files_and_folders_change_nothing(made: Brought) -> None:
    before = made.load()
    for folder in made.folders:
        for name in HIDDEN:
            (folder / name).write_bytes(b"not what it seems")
        for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
            (folder / name).mkdir()
            shutil.copy(made.files[0], folder / name)
    after = made.load()
    assert after.fingerprint == before.fingerprint
    assert after.left_out == ()


def test_files_of_unknown_endings_are_counted(made: Brought) -> None:
    if not made.folders:
        pytest.skip("no folder is looked through")
    before = made.load().fingerprint
    for folder in made.folders:
        (folder / "stray.xyz").write_bytes(b"?")
    after = made.load()
    assert after.fingerprint == before
    assert sum(left.count for left in after.left_out) == len(made.folders)
    assert counted(after, "stray.xyz")


def test_a_mark_before_the_text_and_line_ends_of_windows_change_nothing(made: Brought) -> None:
    if not made.texts:
        pytest.skip("no text is read")
    before = made.load()
    for text in made.texts:
        plain = text.read_bytes().replace(b"\r\n", b"\n")
        text.write_bytes(b"\xef\xbb\xbf" + plain.replace(b"\n", b"\r\n"))
    assert made.load().fingerprint == before.fingerprint


def test_text_of_another_encoding_is_named_with_its_line(made: Brought) -> None:
    if not made.texts:
        pytest.skip("no text is read")
    text = made.texts[0]
    text.write_bytes(text.read_bytes().replace(CAFE.encode(), CAFE.encode("latin-1")))
    with pytest.raises(DataError, match=r"UTF-8") as caught:
        made.load()
    assert "line" in str(caught.value.value)
    text.write_bytes(text.read_bytes().decode("latin-1").encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        made.load()


def test_a_name_in_another_unicode_form_is_the_same_name(made: Brought) -> None:
    before = made.load()
    for text in made.texts:
        text.write_text(decomposed(text.read_text(encoding="utf-8")), encoding="utf-8")
    if made.named:
        made.named.rename(made.named.with_name(decomposed(made.named.name)))
    after = made.load()
    assert names(after) == names(before)
    assert after.fingerprint == before.fingerprint


def test_names_that_are_not_utf8_are_refused_when_the_data_is_read(made: Brought) -> None:
    if not made.named:
        pytest.skip("no name of a file becomes a name of the data")
    place = os.fsencode(made.named)
    os.rename(place, place.replace(CAFE.encode(), CAFE.encode("latin-1")))
    with pytest.raises(DataError, match="\ufffd") as caught:
        made.load()
    str(caught.value).encode()


# those left out are named in the configuration
@pytest.mark.parametrize("name", sorted(BUILDERS.keys() - {"market", "union", "sites"}))
def test_a_data_set_whose_own_name_is_not_utf8_is_refused(tmp_path: Path, name: str) -> None:
    made = BUILDERS[name](tmp_path / "data")
    odd = os.fsdecode(os.fsencode(tmp_path / "data") + b"\xe9")
    os.rename(tmp_path / "data", odd)
    given = made.component.model_dump()
    for key in ("path", "zeroshot"):
        if key in given:
            given[key] = given[key].replace(str(tmp_path / "data"), odd)
    with pytest.raises(FedLabError) as caught:
        load_source(Component(**given), 0)
    str(caught.value).encode()
