"""How near the student is to what each teacher shows on all patches, and where its heads look (§7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from fedlab.method import Batch, EvaluationContext, ServerContext, Task, network
from fedlab.methods.hybrid_distill import teaching
from fedlab.methods.hybrid_distill.lessons import block_of, feature_term, lesson, relation_term
from fedlab.methods.hybrid_distill.networks import Student
from fedlab.methods.hybrid_distill.settings import HybridSettings
from fedlab.metrics import Classification
from fedlab.metrics.attention import AttentionStatistics, patch_attention
from fedlab.metrics.reconstruction import KEY as RESTORED
from fedlab.metrics.reconstruction import MaskedError
from fedlab.models.vit import ViT

KEY = "hybrid"
_DISTANCES = ("feature_distance", "relation_distance", "relation_kl")
TEST = "test"


def distances(s: HybridSettings, networks: nn.ModuleDict, batch: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Sums over n images, on all their patches, and n: L_c, L_m by smooth-L1, and L_m by KL; without weights, (4,)."""
    x = batch["image"]
    shown = lesson(s, networks, x, None, features=True, relations=True)
    made = network(networks, "student", Student).passed(x, blocks=[ours for ours, _ in s.compared])
    found = (
        feature_term(s, networks, shown, made),
        relation_term(s, networks, shown, made, "smooth_l1"),
        relation_term(s, networks, shown, made, "kl"),
    )
    return np.array([*(len(x) * float(value) for value in found), len(x)])


def look(vit: ViT, x: torch.Tensor, blocks: Sequence[int], into: AttentionStatistics) -> None:
    """Add to `into` where the heads of some blocks, from 0 and in rising order, look in images (n, C, H, W)."""
    entering = vit.hidden(x, blocks)
    vectors = [
        block_of(vit, number).queries_keys_values(tokens) for number, tokens in zip(blocks, entering, strict=True)
    ]
    into.update([patch_attention(query, key) for query, key, _ in vectors], vit.grid)


def statistics(
    s: HybridSettings, networks: nn.ModuleDict, batches: Iterable[Batch], every: bool = False
) -> dict[str, AttentionStatistics]:
    """Where the heads of student and teachers look in images, by role.

    Args:
        s: settings.
        networks: the networks by role.
        batches: the images.
        every: whether all blocks are looked at, and not only those that are compared.
    """
    roles = {
        role: list(range(depth_of(s, role))) if every else compared_blocks(s, role)
        for role in ("student", "feature_teacher", "relation_teacher")
    }
    found = {role: AttentionStatistics(len(blocks), getattr(s, role).heads) for role, blocks in roles.items()}
    for batch in batches:
        for role, blocks in roles.items():
            look(network(networks, role, ViT), batch["image"], blocks, found[role])
    return found


def compared_blocks(s: HybridSettings, role: str) -> list[int]:
    """The blocks of a network, from 0, whose heads are looked at: those that are compared, or their like."""
    depth = depth_of(s, role)
    if role == "student":
        return sorted({ours for ours, _ in s.compared})
    if role == "relation_teacher":
        return sorted({theirs for _, theirs in s.compared})
    return sorted({max(1, round(layer * depth / s.relation_teacher.depth)) - 1 for layer in s.layers})


def depth_of(s: HybridSettings, role: str) -> int:
    """The number of blocks of a network."""
    depth: int = getattr(s, role).depth
    return depth


def evaluate(ctx: EvaluationContext, s: HybridSettings, stage: str) -> Mapping[str, np.ndarray]:
    """Statistics of a client's test samples, of the network that the stage trains."""
    if stage == "relations":
        return _restored(ctx, s)
    if stage != "distill":
        role = "student" if stage == "finetune" else "feature_teacher"
        return ctx.classification(lambda batch: teaching.logits(s, ctx.networks, batch["image"], role))
    sums, heads = np.zeros(4), AttentionStatistics(len(compared_blocks(s, "student")), s.student.heads)
    for batch in ctx.batches():
        with ctx.autocast():
            sums += distances(s, ctx.networks, batch)
            student = network(ctx.networks, "student", Student)
            look(student, batch["image"], compared_blocks(s, "student"), heads)
    return {KEY: sums, **heads.state()}


def _restored(ctx: EvaluationContext, s: HybridSettings) -> Mapping[str, np.ndarray]:
    errors, generator = MaskedError(), ctx.generator("masks")
    for batch in ctx.batches():
        _, _, height, width = batch["image"].shape
        order = torch.rand(len(batch["image"]), height // s.patch * (width // s.patch), generator=generator)
        with ctx.autocast():
            made, clean, hidden = teaching.restored(s, ctx.networks, {**batch, "order": ctx.place(order)})
        errors.update(made.float(), clean, hidden[..., None].expand_as(clean))
    return errors.state()


def values(sums: Mapping[str, np.ndarray], s: HybridSettings, task: Task) -> dict[str, float]:
    """Metric values from the statistics of one client or of several."""
    if RESTORED in sums:
        errors = MaskedError()
        errors.merge(sums)
        return errors.compute()
    if KEY not in sums:
        classified = Classification(task.num_classes)
        classified.merge(sums)
        return {name: value for name, value in classified.compute().items() if isinstance(value, float)}
    heads = AttentionStatistics(len(compared_blocks(s, "student")), s.student.heads)
    heads.merge(sums)
    return {**_means(sums[KEY]), **heads.compute()}


def _means(sums: np.ndarray) -> dict[str, float]:
    *totals, count = sums.tolist()
    return {name: total / count for name, total in zip(_DISTANCES, totals, strict=True)} if count else {}


def server_evaluate(ctx: ServerContext, s: HybridSettings) -> dict[str, float]:
    """The same on the server's set 'test', and where the heads of both teachers look, for comparison."""
    if TEST not in ctx.data:
        return {}
    ctx.networks.eval()
    sums, found = np.zeros(4), dict[str, float]()
    for batch in ctx.iterate(ctx.data[TEST], ctx.batch_size):
        with ctx.autocast():
            sums += distances(s, ctx.networks, batch)
    for role, heads in statistics(s, ctx.networks, ctx.iterate(ctx.data[TEST], ctx.batch_size)).items():
        prefix = "" if role == "student" else f"{role}_"
        found |= {f"{prefix}{name}": value for name, value in heads.compute().items()}
    return {**_means(sums), **found}
