"""PyTorch's compiler is loaded when something is compiled, and not for an optimizer's sake."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

# The ways to the compiler are each tried in a fork, as a process that loads PyTorch takes seconds to start.
PROGRAM = """
import inspect, json, os, sys
import torch
from fedlab.engine.dynamo import postpone_compiler

def loaded():
    module = sys.modules.get("torch._dynamo")
    return module is not None and hasattr(module, "__file__")

def trained(kind):
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    optimizer = getattr(torch.optim, kind)(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    for step in range(5):
        optimizer.zero_grad()
        network(torch.full((2, 3), 1.0 + step)).square().sum().backward()
        optimizer.step()
        schedule.step()
    optimizer.load_state_dict(optimizer.state_dict())
    return [value.tolist() for value in network.state_dict().values()]

def compiled():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    value = torch.compile(lambda x: 2 * x + 1, backend=backend)(torch.ones(2)).tolist()
    same = torch._dynamo is sys.modules["torch._dynamo"]
    return {"value": value, "graphs": len(graphs), "same": same, "afterwards": trained("AdamW")}

def not_traced():
    seen = []
    held = disable(lambda x: seen.append(torch.compiler.is_compiling()) or x + 1, True, wrapping=False)
    held(torch.ones(1))
    value = torch.compile(lambda x: held(2 * x), backend="eager")(torch.ones(1)).tolist()
    return {"seen": seen, "value": value}

def part():
    import torch._dynamo.config as config
    return {"limit": type(config.cache_size_limit).__name__}

if sys.argv[1] == "postponed":
    postpone_compiler()
    postpone_compiler()
weights = {kind: trained(kind) for kind in ("SGD", "AdamW")}
inspect.getmodule(trained)
print(json.dumps({"weights": weights, "loaded": loaded()}), flush=True)
import torch._dynamo
disable = torch._dynamo.disable
for first, *others in ((part, compiled), (not_traced,)) if sys.argv[1] == "postponed" else ():
    if not os.fork():
        before = loaded()
        found = {"before": before, **first(), "loaded": loaded()}
        print(json.dumps({**found, **{key: value for way in others for key, value in way().items()}}), flush=True)
        os._exit(0)
    os.wait()
"""


def told(how: str) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.programs
def test_optimizers_do_the_same_without_the_compiler_which_comes_when_it_is_asked_for() -> None:
    (start, compiled, not_traced), (usual,) = told("postponed"), told("usual")
    assert start["weights"] == usual["weights"]
    assert (start["loaded"], usual["loaded"]) == (False, True)
    for found in (compiled, not_traced):
        assert (found.pop("before"), found.pop("loaded")) == (False, True)
    assert compiled == {
        "limit": "int", "value": [3.0, 3.0], "graphs": 1, "same": True, "afterwards": usual["weights"]["AdamW"]
    }  # fmt: skip
    assert not_traced == {"seen": [False, False], "value": [3.0]}
