"""Writes what the server leaves in the run folder: pictures, artifacts and checkpoints."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from fedlab.callbacks import ConfiguredCallback
from fedlab.errors import FedLabError
from fedlab.method import FigureContext, ImageGrid, Method, save_picture, save_sheet
from fedlab.server.setup import ServerSetup
from fedlab.server.snapshot import Snapshot
from fedlab.storage.checkpoint import save_checkpoint
from fedlab.storage.names import file_name
from fedlab.storage.runfolder import RunFolder, write_atomic
from fedlab.tracking import Tracker

log = logging.getLogger(__name__)
_ROUND = "round_{:06d}"
_LONGEST = 300  # characters of an error in a warning


class RunWriter:
    """Writes pictures, artifacts and checkpoints into the run folder, and tells the tracker of each.

    A picture or an artifact that fails is a warning: it must cost neither a result nor the rounds since the last
    checkpoint. `fedlab report --redraw` makes them again.

    Args:
        method: the method.
        folder: the run folder.
        tracker: where events go.
        rounds: rounds of the whole run.
        every: rounds from one set of pictures to the next, see ``tracking.figures_every``.
        callbacks: callbacks of the run, which may leave artifacts too.
    """

    def __init__(
        self,
        method: Method,
        folder: RunFolder,
        tracker: Tracker,
        rounds: int,
        every: int = 0,
        callbacks: Sequence[ConfiguredCallback] = (),
    ) -> None:
        self._method, self._folder, self._tracker, self._callbacks = method, folder, tracker, callbacks
        self._rounds, self._drawn, self._every = rounds, 0, every
        self._latest: int | None = None

    @classmethod
    def of(cls, setup: ServerSetup) -> RunWriter:
        """The writer of a run that is being carried out."""
        config = setup.config
        every = config.tracking.figures_every
        return cls(setup.method, setup.folder, setup.tracker, config.federation.rounds, every, setup.callbacks)

    def figures_after(self, round: int, look: Callable[[int], FigureContext]) -> None:
        """Draw the method's pictures if they are due: after the first and the last round, and as often as asked.

        Args:
            round: the round that has ended.
            look: makes the context of a round's pictures.
        """
        if round in (1, self._rounds) or (self._every and round % self._every == 0):
            self.figures(round, look)

    def finish(self, round: int, look: Callable[[int], FigureContext]) -> None:
        """Write artifacts of the method and of callbacks after the last round, and draw pictures unless that is done.

        Args:
            round: the round.
            look: makes the context of a round's pictures.
        """
        self._rounds = round  # a run may have been stopped early
        if self._latest != round:  # a run may have been killed after its last checkpoint
            self.figures(round, look)
        self._artifacts(round, look)

    def figures(self, round: int, look: Callable[[int], FigureContext]) -> None:
        """Draw the method's pictures of a round."""
        self._latest = round
        if not self._method.overrides("figures"):
            return
        who = f"{type(self._method).__name__}.figures()"
        with self._warning_of(f"no pictures after round {round}: {who} failed"):
            drawn = dict(self._method.figures(look(round)))
            self._drawn += len(drawn)
            if round == self._rounds and not self._drawn:
                message = f"no pictures: {who} gave none after round {round}, because what they show is not available"
                self._tracker.emit("warning", message=message)
            for name, picture in drawn.items():
                with self._warning_of(f"the picture {name!r} after round {round} could not be written"):
                    target = self._folder.figures / f"{file_name(str(name))}-{round:04d}.png"
                    path = save_picture(picture, target)
                    words = {"title": picture.title, "caption": picture.caption}
                    self._tracker.emit("figure", name=name, round=round, path=self._relative(path), **words)

    def _artifacts(self, round: int, look: Callable[[int], FigureContext]) -> None:
        if self._method.overrides("artifacts"):
            who = f"{type(self._method).__name__}.artifacts()"
            self._keep(f"no artifacts after round {round}: {who} failed", lambda: self._method.artifacts(look(round)))
        for one in self._callbacks:
            self._keep(f"no artifacts of the callback {one.name}: artifacts() failed", one.callback.artifacts)

    def _keep(
        self, failed: str, make: Callable[[], Mapping[str, Mapping[str, Tensor] | ImageGrid | nn.Module]]
    ) -> None:
        """Write artifacts; `failed` is the warning if they cannot be made."""
        with self._warning_of(failed):
            for name, content in make().items():
                with self._warning_of(f"the artifact {name!r} could not be written"):
                    self._tracker.emit("artifact", name=name, path=self._relative(self._artifact(str(name), content)))

    def _artifact(self, name: str, content: Mapping[str, Tensor] | ImageGrid | nn.Module) -> Path:
        target = self._folder.artifacts / file_name(name)
        if isinstance(content, ImageGrid):
            return save_sheet(content, target.with_name(f"{target.name}.png"), scale=2)
        if isinstance(content, nn.Module):
            return _save_pretrained(content, name, target)
        path = target.with_name(f"{target.name}.safetensors")
        tensors = {key: value.detach().cpu().contiguous() for key, value in content.items()}
        write_atomic(path, safetensors.torch.save(tensors))
        return path

    @contextmanager
    def _warning_of(self, what: str) -> Iterator[None]:
        """Turn an exception into a warning; what is essential, such as writing events, fails again where it counts."""
        try:
            yield
        except Exception as error:
            log.debug("%s", what, exc_info=True)
            reason = " ".join(str(error).split())[:_LONGEST]
            self._tracker.emit("warning", message=f"{what}: {type(error).__name__}: {reason}")

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
