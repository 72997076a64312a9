"""``python -m benchmarks.tiny_blip FOLDER``: the recipe of the small BLIP in ``fedlab/models/tiny_blip``.

ISA needs a frozen vision-language model whose text side can edit: that reads "a red square left but blue" as a blue
square. Published models have this skill from the texts of the web. The small one gets it from captions that rules make:
more than half of them end with such an edit or with one to the opposite ("but mirrored"), and words are left out at
random, so that texts have all lengths. It is trained as
BLIP is (Li et al. 2022, arXiv 2201.12086): image-text contrast and image-text matching with hard negatives; several
captions of a batch may be true of an image. There is no language modeling.

The score is that of the word oracle: Recall@1 of true captions of the reference, followed by the edit, among pictures
of which none was trained on. Below 95 % nothing is written. It takes one to two minutes on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from fedlab.models.blip import Blip

STEPS, BATCH, RATE, WARMUP, TEMPERATURE = 1000, 64, 1.5e-3, 50, 0.07
WIDTH, LAYERS, HEADS, POSITIONS, DEVIATION = 64, 2, 4, 24, 0.1
EDITED, OPPOSITE, LEFT_OUT, ARTICLE = 0.6, 0.4, 0.25, 0.7
"""Shares of captions with an edit, of edits to the opposite where there is one, of words of the description that are
left out, and of captions with an article."""
NEEDED = 0.95


class Captioned(NamedTuple):
    """Pictures with captions.

    Args:
        images: (n, 3, 32, 32) uint8.
        attributes: of the object in each picture, (n, 3).
        text: captions (n, L).
        meaning: the attributes that each caption states, after its edit, (n, 3); −1 where it says nothing.
    """

    images: np.ndarray
    attributes: np.ndarray
    text: np.ndarray
    meaning: np.ndarray


def draw(count: int, rng: np.random.Generator) -> Captioned:
    """Pictures, each with a caption that is true of it."""
    from fedlab.data.generated.edits import ATTRIBUTES, RELATIVE, draw_pictures, edited, encoded, modifier, words_of

    sizes = np.array([len(values) for values in ATTRIBUTES])
    described = rng.integers(0, sizes, (count, len(sizes)))
    rows, axis = np.arange(count), rng.integers(0, len(sizes), count)
    has_edit = rng.random(count) < EDITED
    new = (described[rows, axis] + rng.integers(1, sizes[axis])) % sizes[axis]
    opposite = has_edit & (rng.random(count) < OPPOSITE) & np.isin(axis, list(RELATIVE))
    silent = rng.random(described.shape) < LEFT_OUT
    silent[rows, rng.integers(0, len(sizes), count)] &= has_edit  # a caption without an edit says something
    silent[rows[opposite], axis[opposite]] = False  # nobody knows the opposite of what is not said
    said = np.where(silent, -1, described)
    attributes, meaning, captions = described.copy(), said.copy(), []
    for row in range(count):
        words = words_of(said[row].tolist(), bool(rng.random() < ARTICLE))
        if has_edit[row]:
            edit = int(axis[row]), None if opposite[row] else int(new[row])
            attributes[row], meaning[row] = edited(described[row].tolist(), edit), edited(said[row].tolist(), edit)
            words = (*words, *modifier(edit))
        captions.append(words)
    return Captioned(draw_pictures(attributes, rng), attributes, encoded(captions), meaning)


def make() -> Blip:
    """The untrained model."""
    import torch
    from torch import nn
    from transformers import BlipConfig, BlipForImageTextRetrieval

    from fedlab.data.generated.edits import WORDS
    from fedlab.models.blip import Blip

    size: dict[str, Any] = {
        "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "projection_dim": WIDTH,
    }  # fmt: skip
    special = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    text = {**size, **special, "vocab_size": len(WORDS), "max_position_embeddings": POSITIONS}
    vision = {**size, "image_size": 32, "patch_size": 8, "initializer_range": 0.02}
    config = BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=WIDTH)
    model: Any = BlipForImageTextRetrieval(config)
    embeddings = model.vision_model.embeddings
    # transformers draws with a deviation of 0.02 for every width, with which a narrow model learns several times slower
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=DEVIATION)
    embeddings.patch_embedding.reset_parameters()
    with torch.no_grad():
        nn.init.normal_(embeddings.position_embedding, std=WIDTH**-0.5)
        nn.init.normal_(embeddings.class_embedding, std=WIDTH**-0.5)
    return Blip(model)


def losses(vl: Blip, drawn: Captioned) -> dict[str, Tensor]:
    """Image-text contrast with several right answers, and image-text matching with drawn hard negatives."""
    import torch
    from torch.nn import functional as F

    from fedlab.models.blip import Sentence

    meaning, attributes = torch.from_numpy(drawn.meaning), torch.from_numpy(drawn.attributes)
    true = ((meaning[:, None] == attributes[None]) | (meaning[:, None] < 0)).all(dim=2)  # text × image
    seen = vl.look(torch.from_numpy(drawn.images).float() / 255)
    nothing = vl.word_embeddings.new_zeros(len(true), 0, vl.word_width)
    sentence = vl.sentence(nothing, torch.from_numpy(drawn.text))
    logits = vl.read(sentence) @ seen.vectors.T / TEMPERATURE
    right = true.float()
    contrast = F.cross_entropy(logits, right / right.sum(1, keepdim=True))
    contrast = contrast + F.cross_entropy(logits.T, right.T / right.T.sum(1, keepdim=True))
    with torch.no_grad():  # what is false of all others gets a true one, which the labels below know
        weights = logits.masked_fill(true, -30.0)
        image = torch.multinomial(weights.softmax(dim=1), 1)[:, 0]
        text = torch.multinomial(weights.T.softmax(dim=1), 1)[:, 0]
    own = torch.arange(len(true))
    pairs = torch.stack([torch.cat([own, own, text]), torch.cat([own, image, own])])
    asked = Sentence(sentence.embeddings[pairs[0]], sentence.mask[pairs[0]])
    matching = F.cross_entropy(vl.match(asked, seen.tokens[pairs[1]]), true[pairs[0], pairs[1]].long())
    return {"contrast": contrast / 2, "matching": matching}


def oracle(vl: Blip, seed: int = 0) -> float:
    """Recall@1 of the word oracle on the queries of the source ``edited_scenes``."""
    import torch

    from fedlab.config import Component
    from fedlab.data.sources import load_source
    from fedlab.metrics.composed import ComposedRetrieval

    server = load_source(Component(name="edited_scenes", train=48, test=48, references=1, data_seed=seed), 0).server
    queries = {name: torch.from_numpy(values) for name, values in server["queries"].columns.items()}
    vl.eval()
    with torch.no_grad():
        index = vl.look(torch.from_numpy(server["gallery"]["image"]).float() / 255).vectors
        nothing = vl.word_embeddings.new_zeros(len(queries["oracle"]), 0, vl.word_width)
        vectors = vl.read(vl.sentence(nothing, queries["oracle"]))
    metric = ComposedRetrieval()
    metric.update(vectors @ index.T, queries["targets"], removed=queries["removed"])
    return metric.compute()["recall@1"]


def train(steps: int = STEPS, seed: int = 0, every: int = 200) -> Blip:
    """Train the model.

    Args:
        steps: number of steps.
        seed: seed of weights and pictures.
        every: number of steps after which the score is printed.
    """
    import torch

    from fedlab.distill.schedules import warmup_cosine
    from fedlab.seeding import numpy_generator

    torch.manual_seed(seed)
    vl, rng = make().train(), numpy_generator(seed, "tiny blip")
    optimizer = torch.optim.AdamW(vl.parameters(), lr=RATE, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, steps, RATE, 0.0, min(WARMUP, steps // 2))
        terms = losses(vl.train(), draw(BATCH, rng))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(vl.parameters(), 1.0)
        optimizer.step()
        if not (step + 1) % every:
            told = ", ".join(f"{name} {value.item():.3f}" for name, value in terms.items())
            print(f"step {step + 1}: {told}, oracle {100 * oracle(vl):.1f} %", flush=True)
    return vl.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the model and write it; 1 if its score is too low."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiny_blip", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the model is written, in the form of transformers")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the last bits depend on it
    vl = train(asked.steps, asked.seed)
    score = oracle(vl)
    if score < NEEDED:
        print(f"the word oracle finds {100 * score:.1f} % of the targets, less than {100 * NEEDED:.0f} %")
        return 1
    vl.model.save_pretrained(asked.folder)
    digest = hashlib.sha256((asked.folder / "model.safetensors").read_bytes()).hexdigest()
    print(f"oracle {100 * score:.1f} %, sha256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
