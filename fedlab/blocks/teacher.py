"""A teacher that follows its student as an exponential moving average, and what becomes of it between rounds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedlab.blocks.stages import position
from fedlab.distill.ema import ema_update
from fedlab.method import FitContext, Group, Plan, ServerContext, Step

Sync = Literal["average", "server_ema", "reset", "local", "frozen"]
"""What becomes of a teacher between rounds; see `EmaTeacher`."""

Momentum = float | Callable[[float, float], float]
"""The momentum m of a teacher: one number, or a function of a step and the number of all steps, such as
``lambda step, total: cosine(step, total, 0.996, 1.0)``. It depends only on the quotient of the two."""

_MODES: Mapping[Sync, Literal["average", "server", "local", "once", "rest"]] = {
    "average": "average",
    "server_ema": "server",
    "reset": "local",
    "local": "local",
    "frozen": "once",
}
_MOVES = 3.0  # sum of 1 − m below which a teacher is still mostly what it was at the start
_SAMPLED = 1000


class EmaTeacher:
    """A teacher network that follows a student network: θ_t ← m θ_t + (1 − m) θ_s for its parameters, after each step.

    Only parameters follow on a client, because a teacher in training mode has running statistics of its own. The policy
    `sync` says what becomes of the teacher between rounds:

    * ``average``: clients send their teachers, which are averaged as the students are. Averaging and following are both
      linear. So if all clients take the same number of steps with the same m, the averaged teacher is the one that
      follows the averaged student.
    * ``server_ema``: the server keeps the teacher and moves it once a round, by m to the power of the clients' mean
      number of steps. Clients receive it and do not send it back.
    * ``reset``: in every round, each client starts with the student as teacher.
    * ``local``: each client keeps its own teacher. The server moves one of its own as with ``server_ema``, to evaluate
      with it.
    * ``frozen``: the teacher never changes and is sent once.

    The hooks of a method call the methods of the same purpose: `groups` in ``exchange``, `begin` at the start of
    ``fit``, `set_modes` in ``set_modes``, `after_step` in ``after_step``, `result` in ``client_result``, and
    `server_update` in ``server_update``.

    Args:
        sync: the policy.
        momentum: m, a number or a schedule over the steps of the stage, or of the run if there are no stages.
        teacher: role of the teacher. Its parameters have the names and shapes of some of the student's.
        student: role of the student.
        beside: roles of further networks whose state goes with the teacher's, such as centers of its outputs. Each is a
            group of its own. They are kept by each client with the policy ``local``, and averaged otherwise.
        buffers: how floating-point buffers of the teacher, such as running statistics of BatchNorm, are exchanged; see
            `Group`. Where the server moves a teacher, its buffers follow the student's as its parameters do, unless
            clients keep them.
        evaluating: whether the teacher is in evaluation mode while clients train.
        members: prefixes of names within the teacher: the state that is trained and therefore exchanged in this way;
            empty for all of it.
        copies: whether each client changes a copy of the teacher instead of the teacher itself. With ``server_ema``,
            the copy moves during the round and is then dropped. With ``local``, the client keeps the copy's parameters
            as ``ctx.state[teacher]``; the teacher is sent once, and the server does not move it. With ``frozen``, no
            copy is made.

    Raises:
        ValueError: copies with the policy ``average`` or ``reset``.
    """

    def __init__(
        self,
        sync: Sync,
        momentum: Momentum,
        teacher: str = "teacher",
        student: str = "student",
        beside: tuple[str, ...] = (),
        buffers: Literal["average", "local"] = "average",
        *,
        evaluating: bool = False,
        members: tuple[str, ...] = (),
        copies: bool = False,
    ) -> None:
        if copies and sync in ("average", "reset"):
            raise ValueError(f"a copy of the teacher cannot be kept with the policy {sync!r}")
        self.sync, self._momentum, self.teacher, self.student = sync, momentum, teacher, student
        self._beside, self._buffers, self._evaluating = beside, buffers, evaluating
        self._prefixes, self._copies = members, copies and sync != "frozen"

    @property
    def counts_steps(self) -> bool:
        """Whether the server moves a teacher and therefore needs the clients' numbers of steps."""
        return self.sync == "server_ema" or (self.sync == "local" and not self._copies)

    def momentum(self, step: float, total: float) -> float:
        """The momentum m at a step of all `total` steps."""
        return self._momentum(step, total) if callable(self._momentum) else self._momentum

    def groups(self, resting: bool = False) -> tuple[Group, ...]:
        """The exchange groups of the teacher and of the networks beside it, which have the names of their roles.

        Args:
            resting: whether the teacher waits: all groups rest on the server.
        """
        members = tuple(f"{self.teacher}.{prefix}" for prefix in self._prefixes) or (self.teacher,)
        mode, beside = _MODES[self.sync], _MODES["local" if self.sync == "local" else "average"]
        if self.sync == "local" and self._copies:
            mode = _MODES["frozen"]
        if resting:
            mode = beside = "rest"
        return (
            Group(self.teacher, members, mode, buffers=self._buffers),
            *(Group(role, (role,), beside) for role in self._beside),
        )

    # on a client

    def begin(self, ctx: FitContext) -> None:
        """Make the teacher ready for a client's round: with ``reset`` a copy of the student, or the client's copy."""
        if self.sync == "reset":
            _follow(ctx.networks[self.teacher], ctx.networks[self.student], 0.0, buffers=True)
        if self._copies:
            own = ctx.scratch[self.teacher] = copy.deepcopy(ctx.networks[self.teacher]).train(not self._evaluating)
            if self.teacher in ctx.state:
                nn.utils.vector_to_parameters(ctx.state[self.teacher], self._kept(own))

    def end(self, ctx: FitContext) -> None:
        """Keep the client's copy of the teacher after its steps. Only the policy ``local`` with copies needs it."""
        if self._copies and self.sync == "local":
            ctx.state[self.teacher] = nn.utils.parameters_to_vector(self._kept(ctx.scratch[self.teacher]))

    def of(self, networks: nn.ModuleDict, step: Step) -> nn.Module:
        """The teacher that a client uses in a step: the network of that role, or the client's copy."""
        own: nn.Module | None = step.scratch.get(self.teacher) if self._copies else None
        return networks[self.teacher] if own is None else own

    def set_modes(self, networks: nn.ModuleDict) -> None:
        """Put the teacher into the mode that it has while clients train."""
        networks[self.teacher].train(not self._evaluating)

    def after_step(self, networks: nn.ModuleDict, step: Step) -> None:
        """Move the teacher towards the student and count the step."""
        name = self._counter
        step.scratch[name] = step.scratch.get(name, 0) + 1
        if self.sync == "frozen" or (self.sync == "server_ema" and not self._copies):
            return
        ema_update(self.of(networks, step), networks[self.student], self.momentum(*position(step)))

    def result(self, ctx: FitContext) -> dict[str, Tensor]:
        """The client's number of steps as ``steps``, if the server moves a teacher; nothing otherwise."""
        return {"steps": torch.tensor(float(ctx.scratch.get(self._counter, 0)))} if self.counts_steps else {}

    # on the server

    def server_update(self, ctx: ServerContext) -> None:
        """Move the server's teacher once, as far as a client's steps of this round would, or make it the student."""
        if self.sync == "reset":
            momentum = 0.0
        elif self.counts_steps and ctx.results:
            steps = math.fsum(float(answer["steps"]) for answer in ctx.results.values()) / len(ctx.results)
            momentum = self.momentum(*_middle(ctx.plan, ctx.round, ctx.rounds)) ** steps
        else:
            return
        _follow(ctx.networks[self.teacher], ctx.networks[self.student], momentum, self._buffers == "average")

    def warnings(self, config: Any, rounds: int | None = None) -> list[str]:
        """A warning if the teacher hardly moves in a run: if the sum of 1 − m over the steps of a client is below 3.

        Nothing is said where the number of steps depends on the clients' samples.

        Args:
            config: the run's configuration.
            rounds: number of rounds in which the teacher follows; default: all rounds of the run.
        """
        local_steps = config.training.local_steps
        total = (local_steps or 0) * (config.federation.rounds if rounds is None else rounds)
        if not total or self.sync in ("reset", "frozen"):
            return []
        places = min(total, _SAMPLED)
        mean = math.fsum(1 - self.momentum(place + 0.5, places) for place in range(places)) / places
        if mean * total >= _MOVES:
            return []
        return [
            f"the teacher hardly moves: 1 − m adds up to {mean * total:.2g} over the {total} steps of a client, and "
            f"its start keeps a weight of about {math.exp(-mean * total):.0%}; lower the momentum or train for longer"
        ]

    @property
    def _counter(self) -> str:
        return f"{self.teacher} steps"

    def _kept(self, teacher: nn.Module) -> list[nn.Parameter]:
        """The parameters that training changes."""
        named = teacher.named_parameters()
        return [p for name, p in named if not self._prefixes or name.startswith(self._prefixes)]


def _middle(plan: Plan, round: int, rounds: int) -> tuple[int, int]:
    """The middle of a round among all rounds of its stage, or of the run, in halves of rounds."""
    return 2 * int(plan.get("stage_round", round)) - 1, 2 * int(plan.get("stage_rounds", rounds))


@torch.no_grad()
def _follow(teacher: nn.Module, student: nn.Module, momentum: float, buffers: bool) -> None:
    """Move the teacher's parameters towards the student's, and its floating-point buffers if asked."""
    ema_update(teacher, student, momentum)
    followed = dict(student.named_buffers()) if buffers else {}
    for name, buffer in teacher.named_buffers():
        if name in followed and buffer.is_floating_point():
            buffer.mul_(momentum).add_(followed[name], alpha=1 - momentum)
