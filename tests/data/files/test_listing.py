"""What lies in folders: hidden things, links, depths, and names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedlab.config import Component
from fedlab.data.files.listing import Listing, hidden
from fedlab.data.files.text import lines_of, read_text
from fedlab.data.sources import load_source
from fedlab.errors import DataError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def any_file(path: Path) -> bool:
    return True


@pytest.mark.parametrize(
    "name",
    [".DS_Store", "._a.png", ".ipynb_checkpoints", "Thumbs.db", "THUMBS.DB", "desktop.ini", "__MACOSX", "@eaDir"],
)
def test_things_of_an_operating_system_are_hidden(name: str) -> None:
    assert hidden(name)
    assert not hidden(name.strip("._@").lower() + "x.png")


def test_files_deeper_or_beside_are_counted_with_the_reason(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.png", "cat/deeper/b.png", "cat/deeper/still/c.png", "loose.png", "cat/.hidden/d.png")
    listing = Listing("k", tmp_path)
    (cat,) = listing.folders(tmp_path)
    assert [path.name for path in listing.files(cat, any_file, "")] == ["a.png"]
    found = {left.why: (left.count, left.examples) for left in listing.left_out}
    assert found == {
        "they lie beside the folders, in none of them": (1, ("loose.png",)),
        "they lie deeper than files are looked for": (2, ("cat/deeper/b.png", "cat/deeper/still/c.png")),
    }
    assert {left.total for left in listing.left_out} == {4}


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.png")
    (tmp_path / "top").mkdir()
    (tmp_path / "top/link").symlink_to(tmp_path / "real")
    (tmp_path / "top/circle").symlink_to(tmp_path / "top")
    found = Listing("k", tmp_path / "top").below(tmp_path / "top", any_file, "")
    assert [os.path.relpath(path, tmp_path) for path in found] == ["top/link/a.png"]


def test_a_link_to_nothing_is_named_as_unreadable(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for kind in ("a", "b"):
            path = tmp_path / split / kind / "1.png"
            path.parent.mkdir(parents=True)
            Image.new("L", (4, 4)).save(path)
    (tmp_path / "train/a/2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"2\.png[\s\S]*there is no such file"):
        load_source(Component(name="folder", path=str(tmp_path)), 0)


def test_a_file_is_found_whatever_form_its_name_has_on_the_disk(tmp_path: Path) -> None:
    touch(tmp_path, "cafe\u0301/cre\u0300me.png")
    listing = Listing("k", tmp_path)
    assert listing.find(tmp_path / "caf\u00e9/cr\u00e8me.png").is_file()
    assert listing.find(tmp_path / "caf\u00e9/none.png") == tmp_path / "caf\u00e9/none.png"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\nb\n", ["a", "b"]), ("a\r\nb", ["a", "b"]), ("a\n\nb\n", ["a", "", "b"]), ("", []),
        ("a\u2028b\u0085c\x0bd\x0ce\x1cf\u2029g\n", ["a\u2028b\u0085c\x0bd\x0ce\x1cf\u2029g"]),
    ],
)  # fmt: skip
def test_lines_end_at_newlines_only(text: str, lines: list[str]) -> None:
    assert lines_of(text) == lines


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_the_first_byte_that_is_not_utf8_is_told(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "x.txt").write_bytes(mark + "über\n".encode() + b"caf\xe9\n")
    with pytest.raises(DataError) as caught:
        read_text(tmp_path / "x.txt", "k")
    at = len(mark) + 6 + 3
    assert f"x.txt, line 2: byte 0xe9 at position {at}" in str(caught.value.value)


class TestFolders:
    """Whole folders of pictures."""

    def load(self, root: Path, **settings: Any) -> Any:
        return load_source(Component(name="folder", path=str(root), size=8, **settings), 0)

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for split in ("train", "test"):
            for kind in ("a", "b"):
                for name in ("1.jfif", "2", "3.PNG"):
                    path = tmp_path / split / kind / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(path, format="PNG")
        return tmp_path

    def test_pictures_are_read_whatever_their_ending(self, root: Path) -> None:
        data = self.load(root)
        assert (len(data.train), len(data.test), data.left_out) == (6, 6, ())

    def test_what_is_not_read_is_counted(self, root: Path) -> None:
        touch(root, "val/a/1.png", "readme.txt", "train/a/1.txt", "train/c/.keep", "train/loose.png", "train/a/x/1.png")
        data = self.load(root)
        assert {(left.what, left.count) for left in data.left_out} == {("files", 1), ("files", 2), ("class folders", 1)}
        assert sum(left.count for left in data.left_out if left.what == "files") == 5
        assert data.train.class_names == ("a", "b")
