"""The samples that the server holds, as its networks see them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from fedlab.config import DataConfig
from fedlab.data.normalize import check_statistics, normalize
from fedlab.data.samples import Samples
from fedlab.errors import DataError, did_you_mean


class ServerSets:
    """Sets of samples by name, normalized when they are first asked for.

    Args:
        sets: as their sources deliver them.
        config: normalization.

    Raises:
        ConfigError: statistics that do not fit the samples.
    """

    def __init__(self, sets: Mapping[str, Samples], config: DataConfig) -> None:
        self.sets, self._config = sets, config
        self._ready: dict[str, Samples] = {}
        for samples in sets.values():
            if "image" in samples.columns:
                check_statistics(config, samples["image"].shape[1], samples.domain_names)

    def __getitem__(self, name: str) -> Samples:
        """One set, normalized as the clients' samples are.

        Raises:
            DataError: there is none of that name.
        """
        if name not in self.sets:
            raise DataError(
                "server data", name, "samples the data set keeps for the server", did_you_mean(name, self.sets)
            )
        if name not in self._ready:
            self._ready[name] = normalized(self.sets[name], self._config)
        return self._ready[name]

    @property
    def fingerprint(self) -> str:
        """Hash of the samples and of their normalization."""
        held = [(name, samples.fingerprint) for name, samples in sorted(self.sets.items())]
        text = repr((held, self._config.mean, self._config.std))
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": {}}


def normalized(samples: Samples, config: DataConfig) -> Samples:
    """Samples whose images are normalized; what has no images stays as it is.

    Args:
        samples: images as uint8 or float32 in [0, 1].
        config: normalization.
    """
    if "image" not in samples.columns:
        return samples
    images = normalize(samples["image"], samples.columns.get("domain"), samples.domain_names, config)
    return samples.with_columns({**samples.columns, "image": images})
