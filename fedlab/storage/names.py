"""Names that come from data, such as those of clients, figures and metrics, as names of files."""

from __future__ import annotations

import hashlib
import re

_LONGEST = 80
_UNSAFE = re.compile(r"[^A-Za-z0-9._,=()+-]+")


def file_name(name: str, *, digest: int = 8) -> str:
    """A safe and short name of a file or folder for any text; different texts have different ones.

    A text of at most 80 letters, digits and signs among ``._,=()+-`` that begins with neither a dot nor a hyphen stays
    as it is. Any other one loses what is unsafe, is cut, and gets a hash of the whole text at its end.

    Args:
        name: the text.
        digest: bytes of the hash.
    """
    plain = _UNSAFE.sub("-", name.replace(", ", ",")).lstrip(".-")[:_LONGEST]
    hashed = re.search(rf"(^|-)[0-9a-f]{{{2 * digest}}}$", plain)  # it may be what another text becomes
    if plain and plain.replace(",", ", ") == name and not hashed:
        return plain
    # half a character, which no encoding of text has, may come from a file system
    code = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=digest).hexdigest()
    return f"{plain}-{code}".lstrip("-")
