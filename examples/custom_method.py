"""A method of your own: a mean teacher that never leaves its client.

Run it with: python examples/custom_method.py
It takes the same overrides as the command line: python examples/custom_method.py federation.rounds=3 method.decay=0.9
"""

from __future__ import annotations

import copy
import sys

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import fedlab
from fedlab.config import Section
from fedlab.method import Batch, Group, Method, Plan, Step, Task


class MeanTeacher(Method):
    """Cross-entropy plus agreement with a moving average of the student (Tarvainen & Valpola 2017, arXiv 1703.01780).

    The student is averaged over the clients. Every client keeps a teacher of its own, which follows its student.
    """

    title = "Mean teacher"
    paper = "Tarvainen & Valpola 2017, arXiv 1703.01780"

    class Settings(Section):
        """Settings, given as ``method.decay`` and so on."""

        decay: float = Field(
            default=0.99, ge=0, lt=1, description="share of the old teacher that is kept in every step"
        )
        agreement: float = Field(default=1.0, ge=0, description="weight of the distance between student and teacher")
        temperature: float = Field(default=2.0, gt=0, description="temperature that softens both predictions")

    def build(self, task: Task) -> dict[str, nn.Module]:
        student = task.model()
        return {"student": student, "teacher": copy.deepcopy(student).requires_grad_(False)}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        return Group("student", ("student.*",)), Group("teacher", ("teacher.*",), mode="local")

    def set_modes(self, networks: nn.ModuleDict, plan: Plan) -> None:
        networks["teacher"].eval()

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        s = self.settings
        logits = networks["student"](batch["image"])
        with torch.no_grad():
            target = F.softmax(networks["teacher"](batch["image"]) / s.temperature, dim=1)
        distance = F.kl_div(F.log_softmax(logits / s.temperature, dim=1), target, reduction="batchmean")
        return {
            "ce": F.cross_entropy(logits, batch["label"]),
            "agreement": s.agreement * s.temperature**2 * distance,
        }

    @torch.no_grad()
    def after_step(self, networks: nn.ModuleDict, step: Step) -> None:
        students, teachers = networks["student"].parameters(), networks["teacher"].parameters()
        for student, teacher in zip(students, teachers, strict=True):
            teacher.lerp_(student, 1 - self.settings.decay)

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        logits: Tensor = networks["student"](batch["image"])
        return logits


if __name__ == "__main__":
    # uses the data, model and training of `fedlab run supervised`, with this method instead of its own
    run = fedlab.run("supervised", method=MeanTeacher, overrides=sys.argv[1:])
    print(f"mean accuracy {run.metrics['mean']['accuracy']:.3f}, report: {run.paths['report']}")
