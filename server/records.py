"""Writes what the server leaves in the run folder: pictures, artifacts and checkpoints."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from torch import nn

from fedlab.errors import FedLabError
from fedlab.method import FigureContext, ImageGrid, save_picture, save_sheet
from fedlab.server.setup import ServerSetup
from fedlab.server.snapshot import Snapshot
from fedlab.storage.checkpoint import save_checkpoint
from fedlab.storage.runfolder import write_atomic

log = logging.getLogger(__name__)
_ROUND = "round_{:06d}"


class RunWriter:
    """Writes pictures, artifacts and checkpoints into the run folder, and tells the tracker of each.

    Args:
        setup: the run.
    """

    def __init__(self, setup: ServerSetup) -> None:
        self._method, self._folder, self._tracker = setup.method, setup.folder, setup.tracker
        self._rounds, self._drawn = setup.config.federation.rounds, 0
        self._every = setup.config.tracking.figures_every

    def figures_after(self, round: int, look: Callable[[int], FigureContext]) -> None:
        """Draw the method's pictures if they are due: after the first and the last round, and as often as asked.

        Args:
            round: the round that has ended.
            look: makes the context of a round's pictures.
        """
        if round in (1, self._rounds) or (self._every and round % self._every == 0):
            self.figures(look(round))

    def figures(self, look: FigureContext) -> None:
        """Draw the method's pictures. One that cannot be drawn is a warning: it must not end the run."""
        if not self._method.overrides("figures"):
            return
        who = f"{type(self._method).__name__}.figures()"
        try:
            drawn = self._method.figures(look)
        except Exception as error:
            log.debug("%s failed", who, exc_info=True)
            reason = f"{type(error).__name__}: {error}"
            self._tracker.emit("warning", message=f"no pictures after round {look.round}: {who} failed: {reason}")
            return
        self._drawn += len(drawn)
        if look.round == self._rounds and not self._drawn:
            message = f"no pictures: {who} gave none after round {look.round}, because what they show is not available"
            self._tracker.emit("warning", message=message)
        for name, picture in drawn.items():
            path = save_picture(picture, self._folder.figures / f"{name}-{look.round:04d}.png")
            words = {"title": picture.title, "caption": picture.caption}
            self._tracker.emit("figure", name=name, round=look.round, path=self._relative(path), **words)

    def artifacts(self, look: FigureContext) -> None:
        """Write the method's artifacts."""
        if not self._method.overrides("artifacts"):
            return
        for name, content in self._method.artifacts(look).items():
            target = self._folder.artifacts / name
            if isinstance(content, ImageGrid):
                path = save_sheet(content, target.with_name(f"{name}.png"), scale=2)
            elif isinstance(content, nn.Module):
                path = _save_pretrained(content, name, target)
            else:
                path = target.with_name(f"{name}.safetensors")
                tensors = {key: value.detach().cpu().contiguous() for key, value in content.items()}
                write_atomic(path, safetensors.torch.save(tensors))
            self._tracker.emit("artifact", name=name, path=self._relative(path))

    def checkpoint(self, round: int, content: Snapshot, *, passing: bool = False) -> None:
        """Write the checkpoint of a round.

        Args:
            round: the round.
            content: what it consists of.
            passing: whether it will be removed again, so that the tracker is not told of it.
        """
        path = save_checkpoint(
            self._folder.checkpoints / _ROUND.format(round),
            content.tensors,
            {"round": round, **content.facts},
            lasting=content.lasting,
            copies=content.copies,
        )
        if not passing:
            self._tracker.emit("checkpoint", round=round, path=self._relative(path))

    def remove_checkpoint(self, round: int) -> None:
        """Remove the checkpoint of a round."""
        shutil.rmtree(self._folder.checkpoints / _ROUND.format(round), ignore_errors=True)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self._folder.path).as_posix()


def _save_pretrained(model: nn.Module, name: str, folder: Path) -> Path:
    """Write a model of transformers for its ``from_pretrained``.

    Raises:
        FedLabError: it is none.
    """
    save = getattr(model, "save_pretrained", None)
    if save is None:
        raise FedLabError(
            f"the artifact {name!r} is a {type(model).__name__}: Method.artifacts returns tensors by name, image "
            "grids, or models of transformers, which have save_pretrained"
        )
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it would be drawn into the run's own output
    save(folder)
    return folder
