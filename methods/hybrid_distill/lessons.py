"""What the teachers show of a batch, and how far the student is from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedlab.method import network
from fedlab.methods.hybrid_distill.losses import Distance, feature_loss, relation_loss, token_relations
from fedlab.methods.hybrid_distill.masks import Drop, drops, present, redundancy
from fedlab.methods.hybrid_distill.networks import Passed, Student, Teacher
from fedlab.methods.hybrid_distill.settings import HybridSettings
from fedlab.models.vit import Block, ViT, kept_tokens


class Lesson(NamedTuple):
    """What the teachers, who see all patches of an image, show of a batch.

    Args:
        drops: which patches the student sees; empty for all.
        features: tokens of the feature teacher after its last normalization, (n, 1 + N, d); None if not asked for.
        entering: tokens that enter blocks of the relation teacher, by the number of the block from 0, (n, 1 + N, D).
    """

    drops: Sequence[Drop]
    features: Tensor | None
    entering: dict[int, Tensor]


@torch.no_grad()
def lesson(
    s: HybridSettings, networks: nn.ModuleDict, x: Tensor, order: Tensor | None, *, features: bool, relations: bool
) -> Lesson:
    """Run the teachers on whole images (n, C, H, W), as deep as they are needed.

    Args:
        s: settings.
        networks: the networks by role.
        x: the images.
        order: a random number for each patch, (n, N), by which random patches are dropped; None drops no patches.
        features: whether features are needed.
        relations: whether relations are needed.
    """
    judged = {s.scored(block) for block in s.drops_before} if s.mask == "redundant" and order is not None else set()
    needed = {"feature_teacher": set[int](), "relation_teacher": {theirs for _, theirs in s.compared if relations}}
    needed[s.score_from] |= judged
    if features:
        needed["feature_teacher"].add(s.feature_teacher.depth)
    seen = {role: _entering(networks, role, x, sorted(layers)) for role, layers in needed.items()}
    found: Sequence[Drop] = ()
    if order is not None:

        def scores(block: int, kept: Tensor | None) -> Tensor:
            if s.mask == "random":
                return order if kept is None else order.gather(1, kept)
            tokens = seen[s.score_from][s.scored(block)]
            return redundancy(_of(tokens, kept)[:, 1:])

        patches = order.shape[1]
        found = drops(s.drops_before, s.counts(patches), scores, s.drop_schedule)
    last = seen["feature_teacher"].get(s.feature_teacher.depth)
    finished = None if last is None else network(networks, "feature_teacher", Teacher).norm(last)
    return Lesson(found, finished, seen["relation_teacher"])


def _entering(networks: nn.ModuleDict, role: str, x: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """Tokens that enter blocks of a teacher, by the number of the block; its depth stands for those after the last."""
    if not layers:
        return {}
    return dict(zip(layers, network(networks, role, Teacher).hidden(x, layers), strict=True))


def _of(tokens: Tensor, kept: Tensor | None) -> Tensor:
    return tokens if kept is None else kept_tokens(tokens, kept)


def feature_term(s: HybridSettings, networks: nn.ModuleDict, shown: Lesson, made: Passed) -> Tensor:
    """L_c, on the patches that survive to the end and the class token."""
    assert shown.features is not None
    target = _of(shown.features, present(shown.drops, s.student.depth))
    projected, first = networks["projector"](made.final), 0 if s.class_token else 1
    return feature_loss(projected[:, first:], target[:, first:], s.whiten)


def relation_term(
    s: HybridSettings, networks: nn.ModuleDict, shown: Lesson, made: Passed, distance: Distance | None = None
) -> Tensor:
    """L_m, mean over the compared blocks, on the patches that survive to the student's block and the class token."""
    student, teacher = network(networks, "student", Student), network(networks, "relation_teacher", Teacher)
    first, found = 0 if s.class_token else 1, list[Tensor]()
    for ours, theirs in s.compared:
        with torch.no_grad():
            tokens = _of(shown.entering[theirs], present(shown.drops, ours))
            wanted = _relations(s, teacher, theirs, tokens[:, first:])
        of_student = _relations(s, student, ours, made.entering[ours][:, first:])
        found += [
            relation_loss(*pair, distance or s.relation_distance) for pair in zip(of_student, wanted, strict=True)
        ]
    return torch.stack(found).mean()


def _relations(s: HybridSettings, vit: ViT, block: int, tokens: Tensor) -> list[Tensor]:
    vectors = block_of(vit, block).queries_keys_values(tokens)
    return token_relations(vectors, s.heads, s.relations, s.relation_scale)


def block_of(vit: ViT, number: int) -> Block:
    """A block of a transformer, counted from 0."""
    block = vit.blocks[number]
    assert isinstance(block, Block)
    return block
