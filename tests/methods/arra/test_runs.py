"""A small run of ARRA from beginning to end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import safetensors.torch
import torch

import fedlab
from benchmarks.hashes import METHODS
from fedlab.methods.arra.llm import TokenLLM
from fedlab.methods.arra.pictures import GALLERY_ROUNDS
from fedlab.storage.checkpoint import load_checkpoint

FEDERATION = {"federation": {"rounds": 2}, "evaluation": {"every": 2}, "engine": {"name": "inline", "device": "cpu"}}


@pytest.fixture(scope="module")
def reference(runner: Callable[..., Callable[..., fedlab.Run]]) -> fedlab.Run:
    entry = METHODS["arra"]
    small = {**entry, **FEDERATION, "method": {"name": "arra", **entry["method"]}}
    return runner("arra", small, report=False)()


def test_a_run_measures_on_clients_and_server(reference: fedlab.Run) -> None:
    assert set(reference.metrics["mean"]) == {"ar_loss"}
    server = reference.metrics["server"]
    assert {"alignment_error", "fid", "kid", "caption_accuracy", "fid_floor"} <= set(server)
    assert all(value == value for value in server.values())


def test_only_language_model_and_projector_travel_in_a_round(reference: fedlab.Run) -> None:
    first, last = (event["bytes"] for event in reference.history.rounds)
    assert {group for group, size in last.items() if any(size.values())} == {"llm", "projector"}
    assert {group for group, size in first.items() if size["down"]} == {"llm", "projector", "tokenizer", "encoder"}
    assert {group for group, size in first.items() if size["up"]} == {"llm", "projector"}


def test_the_run_folder_holds_a_model_that_transformers_loads(reference: fedlab.Run) -> None:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(reference.folder.artifacts / "llm").eval()
    llm = reference.model["llm"]
    assert isinstance(llm, TokenLLM)
    ids = torch.arange(llm.layout.size)[None]
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, llm.eval()(ids, 1).logits)
    codebook = safetensors.torch.load_file(reference.folder.artifacts / "codebook.safetensors")["codebook"]
    assert torch.equal(codebook, reference.model["tokenizer"].codebook)
    assert len(codebook.unique(dim=0)) == 8


def test_images_over_the_rounds_are_drawn(reference: fedlab.Run) -> None:
    assert {file.name for file in reference.folder.figures.iterdir()} >= {"generated-0002.png"}
    tensors, _ = load_checkpoint(reference.checkpoint)
    (rounds,) = (value for name, value in tensors.items() if name.endswith(GALLERY_ROUNDS))
    assert rounds.tolist() == [0, 1, 2]
