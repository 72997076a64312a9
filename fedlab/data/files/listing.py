"""Lists the files of a source. Hidden files are ignored, and files that are not read are counted."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from fedlab.data.files.reading import joined, reading
from fedlab.data.files.spelling import checked_name, is_text, one_form, printable
from fedlab.errors import DataError
from fedlab.tracking.left_out import LeftOut

_SYSTEM = frozenset({
    "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information",
    "lost+found", "icon\r",
})  # fmt: skip
_EXAMPLES = 10
_LINKS = 3  # that a warning names
_NO_FILES = "they are no files but named pipes, sockets or devices, which might be read forever"


def hidden(name: str) -> bool:
    """Whether an operating system or a program made the file for its own use."""
    return name.startswith((".", "~$")) or name.casefold() in _SYSTEM


class Listing:
    """Looks through the folders of one source and remembers the files that it skipped.

    Args:
        key: configuration key of the folders, for messages.
        root: folder from which files are named.

    Raises:
        DataError: the folder's own name is not UTF-8.
    """

    def __init__(self, key: str, root: Path) -> None:
        self.key, self.root = key, root
        checked_name(str(root), key, "a path")
        self._skipped: dict[tuple[str, str, str], list[str]] = {}
        self._listed: set[Path] = set()
        self._names: dict[Path, dict[str, str]] = {}
        self._outside: dict[str, Path] = {}
        self.special: set[Path] = set()
        """What was found that is neither a file nor a folder."""

    def folders(self, parent: Path, loose: str = "they lie beside the folders, in none of them") -> list[Path]:
        """Folders in a folder, sorted by name; files beside them are counted with the reason `loose`."""
        entries = self._entries(parent)
        for path in entries:
            if not path.is_dir():
                self.skip(path, loose)
        return self._named([path for path in entries if path.is_dir()])

    def files(self, parent: Path, wanted: Callable[[Path], bool], why: str, fix: str = "") -> list[Path]:
        """The wanted files in a folder, sorted by name; other files, and those in subfolders, are counted.

        Args:
            parent: folder.
            wanted: whether a file is to be read.
            why: why others are not.
            fix: what could be done about that.
        """
        found = []
        for path in self._entries(parent):
            if path.is_dir():
                self.skip_below(path, "they lie deeper than files are looked for")
            elif wanted(path):
                found.append(path)
            else:
                self.skip(path, why, fix)
        return self._keep(found)

    def below(self, top: Path, wanted: Callable[[Path], bool], why: str, fix: str = "") -> list[Path]:
        """Files at any depth below a folder, in order. Links are followed, because data sets are often linked."""
        found = []
        for path in self._walk(top):
            if wanted(path):
                found.append(path)
            else:
                self.skip(path, why, fix)
        return self._keep(sorted(found))

    def skip(self, path: Path, why: str, fix: str = "", what: str = "files") -> None:
        """Count a file or folder that is not read."""
        shown = os.path.relpath(path, self.root)
        self._skipped.setdefault((what, why, fix), []).append(printable(shown))

    def skip_below(self, top: Path, why: str, fix: str = "") -> None:
        """Count every file below a folder."""
        for path in self._walk(top):
            self.skip(path, why, fix)

    def find(self, path: Path) -> Path:
        """The file of that name, even if the disk spells it in another Unicode form; `path` itself if there is none."""
        if path.exists():
            return path
        place = Path(path.anchor)
        for part in path.relative_to(path.anchor).parts:
            step = place / part
            place = step if step.exists() else place / self._spellings(place).get(one_form(part), part)
        return place if place.exists() else path

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Everything that was skipped, by reason."""
        totals: dict[str, int] = {"files": len(self._listed)}
        for (what, _, _), names in self._skipped.items():
            totals[what] = totals.get(what, 0) + len(names)
        return tuple(
            LeftOut(what, len(names), why, totals[what] if what == "files" else None, fix, tuple(names[:_EXAMPLES]))
            for (what, why, fix), names in self._skipped.items()
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """A warning about symbolic links, if some lead out of the root folder: what they lead to is read."""
        if not self._outside:
            return ()
        count = len(self._outside)
        shown = [printable(f"{link} → {place}") for link, place in list(self._outside.items())[:_LINKS]]
        more = ", …" if count > _LINKS else ""
        links = "1 symbolic link leads" if count == 1 else f"{count:,} symbolic links lead"
        return (f"{links} out of {self.root}, and what is there is read: {', '.join(shown)}{more}",)

    def _entries(self, parent: Path) -> list[Path]:
        top = os.path.realpath(self.root)
        with reading(self.key, printable(str(parent)), "a folder", "check it"):
            found = sorted(path for path in parent.iterdir() if not hidden(path.name))
            for path in found:
                # realpath, because Path.resolve() raises for a link to itself, which its reader has to name
                if path.is_symlink() and not (place := Path(os.path.realpath(path))).is_relative_to(top):
                    self._outside[os.path.relpath(path, self.root)] = place
        for path in found:
            if path not in self.special and _is_special(path):
                self.special.add(path)
                self.skip(path, _NO_FILES)
        return [path for path in found if path not in self.special]

    def _walk(self, top: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
        with reading(self.key, printable(str(top)), "a folder", "check it"):
            place = top.resolve()
        if place in seen:  # a link to a folder above it
            return
        for path in self._entries(top):
            if path.is_dir():
                yield from self._walk(path, seen | {place})
            else:
                yield path

    def _keep(self, found: list[Path]) -> list[Path]:
        self._named(found)
        self._listed.update(found)
        return found

    def _named(self, found: list[Path]) -> list[Path]:
        """The same paths, if every name can be shown."""
        wrong = []
        for path in found:
            try:
                checked_name(os.path.relpath(path, self.root), self.key, self.root)
            except DataError as error:
                wrong.append(error)
        if wrong:
            raise joined(wrong, len(found), "names")
        return found

    def _spellings(self, folder: Path) -> dict[str, str]:
        if folder not in self._names:
            names = os.listdir(folder) if folder.is_dir() else []
            self._names[folder] = {one_form(name): name for name in names if is_text(name)}
        return self._names[folder]


def _is_special(path: Path) -> bool:
    """Whether a path leads to something that is neither a file nor a folder."""
    try:
        mode = path.stat().st_mode
    except OSError:  # a link to nothing; whoever reads it says so
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
