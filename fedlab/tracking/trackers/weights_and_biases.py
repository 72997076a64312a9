"""Metrics, pictures and configuration for Weights & Biases."""

from __future__ import annotations

import netrc
import os
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from fedlab.engine.machine import is_installed
from fedlab.errors import ConfigError
from fedlab.storage.secrets import tree_redacted
from fedlab.tracking.quantiles import readable_rows
from fedlab.tracking.tracker import Event
from fedlab.tracking.trackers.base import NumberSettings, RunTracker, TrackedRun

_HOST = "https://api.wandb.ai"
_PATIENCE = 20.0  # seconds for the server to answer when the run begins; the default is 90


class WandbSettings(NumberSettings):
    """Settings of the tracker for Weights & Biases, which needs the extra fedlab-sim[wandb]."""

    project: str = Field(default="fedlab", min_length=1, description="project in which the run is shown")
    entity: str | None = Field(default=None, description="user or team; default: that of your account")
    group: str | None = Field(default=None, description="group of the run; default: the name of the run folder")
    tags: tuple[str, ...] = Field(default=(), description="tags of the run")
    mode: Literal["online", "offline"] | None = Field(
        default=None,
        description="offline: write to the folder wandb in the run folder, for `wandb sync`; default: WANDB_MODE, "
        "otherwise online",
    )


class WeightsAndBiases(RunTracker):
    """Sends the metrics, pictures and configuration of a run to Weights & Biases, or keeps them for `wandb sync`.

    The key of your account is read from ``WANDB_API_KEY`` or from where ``wandb login`` has put it, never from the
    configuration. A run that is resumed makes a second run there; both are in one group.
    """

    Settings = WandbSettings
    settings: WandbSettings

    variables = ("WANDB_API_KEY",)
    _run: Any = None

    @property
    def without(self) -> str:
        return "nothing is sent to Weights & Biases"

    @property
    def mode(self) -> str:
        """``online`` or ``offline``, or another mode that ``WANDB_MODE`` names."""
        return str(self.settings.mode or os.environ.get("WANDB_MODE") or "online")

    def check(self) -> tuple[str, ...]:
        if not is_installed("wandb"):
            expected = "the package wandb, which is not installed"
            raise ConfigError(self.key, "wandb", expected, "pip install 'fedlab-sim[wandb]', or remove the tracker")
        if self.mode == "online" and (unread := _unread_without_key()) is not None:
            expected = "; ".join(["an account of Weights & Biases, whose key is not here", *unread])
            fix = "set WANDB_API_KEY, or run `wandb login`, or set mode: offline"
            raise ConfigError(f"{self.key}.mode", self.mode, expected, fix)
        return ()

    def open(self, run: TrackedRun) -> None:
        import wandb

        s, self._root = self.settings, run.folder.path
        self._run = wandb.init(
            project=s.project,
            entity=s.entity,
            group=s.group or self._root.name,
            name=self._root.name,
            tags=list(s.tags),
            dir=str(self._root),
            mode=s.mode,  # None leaves it to WANDB_MODE
            config=tree_redacted(run.config.model_dump(mode="json")),
            reinit="create_new",  # several runs of one program
            save_code=False,
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,  # the command line, which may hold passwords
                init_timeout=_PATIENCE,
            ),
        )
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")

    def write(self, event: Event) -> None:
        by_round: dict[int, dict[str, Any]] = defaultdict(dict)
        for row in readable_rows(event, self.settings.most_clients):
            by_round[row.round][row.tag] = row.value
        if event["event"] == "figure":
            import wandb

            picture = wandb.Image(str(self._root / event["path"]), caption=event.get("caption"))
            by_round[event["round"]][f"figures/{event['name']}"] = picture
        for round, values in by_round.items():
            self._run.log({"round": round, **values})
        if event["event"] == "run_end":
            self._run.summary["status"] = event["status"]
            if early := event.get("stopped"):
                self._run.summary["stopped"] = f"after round {early['round']}: {early['reason']}"
            self._end(event["status"] != "completed")

    def close(self) -> None:
        self._end(failed=True)  # a run that has ended has said so before

    def _end(self, failed: bool) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.finish(exit_code=int(failed))


def _unread_without_key() -> list[str] | None:
    """None if there is a key of an account, as far as can be seen without asking the server.

    Otherwise what could not be read where `wandb login` puts a key.
    """
    if os.environ.get("WANDB_API_KEY"):
        return None
    host = urlsplit(os.environ.get("WANDB_BASE_URL", _HOST)).hostname or ""
    unread = []
    for path in (Path(name).expanduser() for name in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc") if name):
        try:
            if netrc.netrc(path).authenticators(host) is not None:
                return None
        except FileNotFoundError:
            pass  # most users have none of these files
        except OSError as error:
            unread.append(f"{path} cannot be read ({error.strerror})")
        except netrc.NetrcParseError as error:
            unread.append(f"{path} cannot be read from line {error.lineno}")  # its own words may quote a password
    return unread
