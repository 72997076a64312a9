"""Metric values of the teacher and of several students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedlab.metrics import Classification


def student_values(sums: Mapping[str, np.ndarray], num_classes: int, names: Sequence[str]) -> dict[str, float]:
    """Values from the statistics of each role, ``<role>/<statistic>``; empty without samples.

    Args:
        sums: of the roles ``model`` and ``student_<architecture>_<repeat>``.
        num_classes: K.
        names: of the architectures; () where there is but one.

    Returns:
        ``teacher_accuracy`` and ``teacher_loss``; once there are students, ``<metric>`` of the first architecture and
        ``<name>_<metric>`` of the others, means over the repeats, with ``…accuracy_std`` where there are several; and
        ``student_minus_teacher``, the difference in accuracy of the first.
    """
    by_architecture: dict[int, list[dict[str, float]]] = {}
    values: dict[str, float] = {}
    for role in sorted({name.partition("/")[0] for name in sums}):
        metric = Classification(num_classes)
        metric.merge({n.removeprefix(f"{role}/"): v for n, v in sums.items() if n.startswith(f"{role}/")})
        found = metric.compute()
        if role == "model":
            values |= {f"teacher_{name}": found[name] for name in ("accuracy", "loss") if name in found}
        elif found:
            by_architecture.setdefault(int(role.split("_")[1]), []).append(found)
    for index, repeats in sorted(by_architecture.items()):
        prefix = f"{names[index]}_" if index else ""
        for name in repeats[0]:
            values[prefix + name] = float(np.mean([repeat[name] for repeat in repeats]))
        if len(repeats) > 1:
            values[f"{prefix}accuracy_std"] = float(np.std([repeat["accuracy"] for repeat in repeats], ddof=1))
    if "accuracy" in values:
        values["student_minus_teacher"] = values["accuracy"] - values["teacher_accuracy"]
    return values
