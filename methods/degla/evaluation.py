"""How well a CLIP model understands compositions, and how much it retains of concepts it was not fine-tuned on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fedlab.data.files.captions import NEGATIVE, kinds_of
from fedlab.errors import DataError
from fedlab.method import Batch, EvaluationContext, ServerContext
from fedlab.methods.degla.batches import is_caption
from fedlab.methods.degla.losses import Embeddings, self_distillation
from fedlab.metrics import CaptionChoice, Classification
from fedlab.models.clip import CLIP, as_clip, class_embeddings, embed_images, embed_texts


def caption_similarities(model: CLIP, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cosines of each image with its captions: ``text`` (n,), and for every kind ``<kind>`` (n, m)."""
    images = embed_images(model, batch["image"])
    similarities = {"text": (images * embed_texts(model, batch["text"])).sum(1)}
    for kind in kinds_of(batch):
        similarities[kind] = (images[:, None] * embed_texts(model, batch[NEGATIVE + kind])).sum(2)
    return similarities


def count_choices(ctx: EvaluationContext | ServerContext, batches: Iterable[Batch]) -> CaptionChoice:
    """Choices of the student between true and false captions, with the images and, as a control, without."""
    model, choice = as_clip(ctx.networks["student"]), CaptionChoice()
    for batch in batches:
        with torch.no_grad(), ctx.autocast():
            images = embed_images(model, batch["image"])
            nothing = embed_images(model, torch.zeros_like(batch["image"][:1])).expand_as(images)
            true = embed_texts(model, batch["text"])
            for kind in kinds_of(batch):
                ids = batch[NEGATIVE + kind]
                captions = torch.cat([true[:, None], embed_texts(model, ids)], dim=1)
                for looked_at, blind in ((images, False), (nothing, True)):
                    similarity = (looked_at[:, None] * captions).sum(2)
                    choice.update(kind, similarity[:, 0], similarity[:, 1:], is_caption(ids), blind)
    return choice


@torch.no_grad()
def teacher_distance(ctx: ServerContext, batches: Iterable[Batch]) -> float:
    """L_D by sample: squared distances of the student's embeddings from the teacher's, of an image and its captions.

    Args:
        ctx: the networks.
        batches: held-out images with true and false captions; all kinds of false captions count.
    """
    student, teacher = (as_clip(ctx.networks[role]) for role in ("student", "teacher"))
    total, count = 0.0, 0
    for batch in batches:
        ids = torch.cat([batch[NEGATIVE + kind] for kind in kinds_of(batch)], dim=1)
        with ctx.autocast():
            of_student, of_teacher = (
                Embeddings(embed_images(m, batch["image"]), embed_texts(m, batch["text"]), embed_texts(m, ids))
                for m in (student, teacher)
            )
        total += float(self_distillation(of_student, of_teacher, is_caption(ids)))
        count += len(ids)
    return total / max(count, 1)


def zero_shot(ctx: ServerContext, images: Mapping[str, Tensor], prompts: Mapping[str, Tensor]) -> dict[str, float]:
    """Accuracy and mean recall per class on labeled images, by the nearest of `class_embeddings`.

    Args:
        ctx: the student's.
        images: columns ``image`` and ``label``.
        prompts: columns ``text`` and ``label``, one or more captions for each class.

    Raises:
        DataError: a single class, which would be right whatever the model.
    """
    model, classes = as_clip(ctx.networks["student"]), int(prompts["label"].max()) + 1
    if classes < 2:
        fix = "write prompts for other classes too, or leave the set out"
        raise DataError("server data 'prompts'", "one class, which is always right", "at least two classes", fix)
    metric = Classification(classes)
    with torch.no_grad(), ctx.autocast():
        weights = class_embeddings(model, prompts)
        for batch in ctx.iterate(images, ctx.training.batch_size):
            metric.update((embed_images(model, batch["image"]) @ weights.T).float(), batch["label"])
    values = metric.compute()
    return {"retention": values["accuracy"], "retention_per_class": values["balanced_accuracy"]}
