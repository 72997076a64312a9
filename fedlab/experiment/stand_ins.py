"""Replaces what a configuration names and this machine lacks, data and weights, by random ones."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fedlab.config import Config
from fedlab.data.federated import FederatedData
from fedlab.data.samples import Dataset
from fedlab.data.sources import Source
from fedlab.data.stand_in import Wanted, loaded_or_random
from fedlab.errors import DataError
from fedlab.experiment.checks import Resolved, check_data
from fedlab.experiment.components import located
from fedlab.experiment.rehearsal import largest_client
from fedlab.storage.paths import PathKind

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "microsoft/resnet-18": {
        "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic", "num_labels": 1000
    },
    "microsoft/resnet-50": {"num_labels": 1000},
    "google/vit-base-patch16-224-in21k": {"model_type": "vit"},
    "facebook/vit-mae-base": {"model_type": "vit_mae"},
    "facebook/deit-base-patch16-224": {"model_type": "vit"},
    "facebook/deit-base-distilled-patch16-224": {"model_type": "deit"},
    "facebook/dino-vitb8": {"model_type": "vit", "patch_size": 8},
    "facebook/dinov2-base": {"model_type": "dinov2", "image_size": 518, "patch_size": 14},
    "openai/clip-vit-large-patch14": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "patch_size": 14, "projection_dim": 768,
    },
    "google/efficientnet-b0": {
        "model_type": "efficientnet", "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280,
        "image_size": 224, "dropout_rate": 0.2,
    },
}  # fmt: skip
"""Kinds of published checkpoints, and what their sizes differ in from the defaults of their classes in transformers."""

_OF_CLASSES = ("add_pooling_layer",)  # options of `from_pretrained` that a model's class takes
_OF_MODELS = (*_OF_CLASSES, "dtype", "output_loading_info")  # and those that are about the model, not its description
_DRAWS = 5  # times that a draw which is too small for one batch is made larger


def without_missing_weights(config: Config) -> tuple[Config, tuple[str, ...]]:
    """The configuration without those entries of ``init`` whose files are not here, and what was left out."""
    gone = {role: place for role, place in config.init.items() if not _is_there(place)}
    kept = {role: place for role, place in config.init.items() if role not in gone}
    told = tuple(f"weights of {role} ({place}): random ones" for role, place in gone.items())
    return config.model_copy(update={"init": kept}), told


def load_data(resolved: Resolved, wanted: Wanted) -> tuple[FederatedData, str]:
    """The data, divided among the clients: that of the configuration, or random samples if any of it is missing.

    A random draw is made larger until the largest client has enough samples for one batch.

    Args:
        resolved: a configuration's components.
        wanted: what random samples are to be like; its number of training samples is the smallest draw.

    Returns:
        The data, and what was replaced, as a sentence; empty if all data is here.

    Raises:
        DataError: the source cannot replace what is missing, or no draw can be divided as the partition says.
    """
    config, source = resolved.config, resolved.source
    missing = source.missing()
    if not missing:
        return check_data(resolved), ""
    for _ in range(_DRAWS):
        drawn = _drawn(source, config, wanted)
        federated = check_data(resolved, drawn)
        most = federated.num_train(largest_client(federated))
        if most >= config.training.batch_size:
            break
        wanted = wanted.of_size(wanted.train * -(-config.training.batch_size // max(1, most)))
    reason = " ".join(missing.split("; ")[0].split())
    return federated, f"data ({reason}): {wanted.train:,} random training samples of {wanted.classes:,} classes"


@contextmanager
def random_weights(config: Config) -> Iterator[list[str]]:
    """A context in which a checkpoint that transformers does not find here is replaced by random weights.

    Nothing is downloaded. The size is that which the caller gives, that of `PUBLISHED`, or the default of the
    checkpoint's class. Without a setting of method, model or assets that names a checkpoint nothing is done, because
    transformers alone takes 200 MB.

    Args:
        config: the configuration.

    Returns:
        What was replaced so far, each once.
    """
    replaced: list[str] = []
    if not _names_checkpoints(config):
        yield replaced
        return
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
    from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

    kinds = (PreTrainedModel, AutoConfig, PreTrainedConfig)
    before = {kind: kind.__dict__["from_pretrained"] for kind in kinds}
    original, described, sized = before.values()

    def facts(cls: Any, name: Any, *args: Any, **options: Any) -> Any:
        try:
            return described.__func__(cls, name, *args, **options)
        except OSError:
            published = dict(PUBLISHED.get(str(name), {}))
            if Path(str(name)).exists() or "model_type" not in published:
                raise
        found = AutoConfig.for_model(**published)
        if not options.get("return_unused_kwargs"):
            return found
        return found, {option: options[option] for option in _OF_MODELS if option in options}

    def sizes(cls: Any, name: Any, *args: Any, **options: Any) -> Any:
        try:
            return sized.__func__(cls, name, *args, **options)
        except OSError:
            # a model that looks for its own description gets random weights with it
            if Path(str(name)).exists() or options.get("return_unused_kwargs"):
                raise
        return cls(**_sizes(name))

    def from_pretrained(cls: Any, name: Any, *args: Any, **options: Any) -> Any:
        if torch.get_default_device().type != "meta":  # there, transformers refuses to load anything
            try:
                return original.__func__(cls, name, *args, **options)
            except OSError:
                if Path(str(name)).exists():  # it is here and broken
                    raise
        told = f"weights {name}: random ones of a {cls.__name__}"
        if told not in replaced:
            replaced.append(told)
        config = options.get("config") or cls.config_class(**_sizes(name))
        kept = {option: options[option] for option in _OF_CLASSES if option in options}
        model = cls(config, **kept)
        loading: dict[str, Any] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
        return (model, loading) if options.get("output_loading_info") else model

    for kind, replacement in zip(kinds, (from_pretrained, facts, sizes), strict=True):
        kind.from_pretrained = classmethod(replacement)
    try:
        yield replaced
    finally:
        for kind, function in before.items():
            kind.from_pretrained = function


def _sizes(name: object) -> dict[str, Any]:
    return {key: value for key, value in PUBLISHED.get(str(name), {}).items() if key != "model_type"}


def _names_checkpoints(config: Config) -> bool:
    found: list[str] = []

    def note(kind: PathKind, text: str, key: str) -> str:
        if text and kind.kind == "hub" and key.startswith(("method.", "model.", "data.assets.")):
            found.append(text)
        return text

    located(config.model_dump(mode="json"), note)
    return bool(found)


def _drawn(source: Source, config: Config, wanted: Wanted) -> Dataset:
    try:
        return loaded_or_random(source, config.data.source.name, "data.source.name", wanted, config.seed)
    except DataError as error:
        if error.key != "data.source.name":
            raise
        fix = f"{error.fix}\nor rehearse another source of such samples: --set data.source=…"
        raise DataError(error.key, error.value, error.expected, fix) from error


def _is_there(place: str) -> bool:
    return Path(place).exists() or Path(place.rpartition("#")[0] or place).exists()
