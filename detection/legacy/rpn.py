"""The region proposal network: its selection of proposals, and its targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers

from vovnet.detection.legacy.anchors import inside
from vovnet.detection.legacy.boxes import box_iou, clip_boxes, legacy_box_coder, legacy_nms, smooth_l1


class LegacyRegionProposalNetwork(RegionProposalNetwork):
    """torchvision's network with the reference's box arithmetic, selection of proposals and straddle rule.

    Constructor arguments, sampling and losses are torchvision's. Reference modeling/rpn/inference.py and loss.py.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.box_coder = legacy_box_coder((1.0, 1.0, 1.0, 1.0))
        self.box_similarity: Any = box_iou

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return proposals (N, 4) of each image, and in training the two losses, from feature maps of all levels."""
        maps = list(features.values())
        scores, offsets = self.head(maps)
        anchors = self.anchor_generator(images, maps)
        level_sizes = [level[0].numel() for level in scores]
        scores, offsets = concat_box_prediction_layers(scores, offsets)
        proposals = self._proposals(anchors[0], scores.detach(), offsets.detach(), images.image_sizes, level_sizes)
        if not self.training:
            return proposals, {}
        if targets is None:
            raise ValueError("targets: expected boxes of each image in training, got None")
        labels, matched = self.assign_targets_to_anchors(anchors, targets)
        for label, anchor, size in zip(labels, anchors, images.image_sizes, strict=True):
            # This comes after the matching: an object whose best anchor crosses the border gets no other one.
            label[~inside(anchor, size)] = -1  # reference modeling/rpn/loss.py:60-89
        objectness_loss, box_loss = self.compute_loss(scores, offsets, labels, self.box_coder.encode(matched, anchors))
        return proposals, {"loss_objectness": objectness_loss, "loss_rpn_box_reg": box_loss}

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return torchvision's losses of sampled anchors, with the reference's smooth L1.

        Reference modeling/rpn/loss.py:120-129, layers/smooth_l1_loss.py. torch's smooth L1 differs from it in the last
        bit, which three iterations of training magnify to the second decimal of the losses.
        """
        positive, negative = (torch.where(torch.cat(part))[0] for part in self.fg_bg_sampler(labels))
        sampled = torch.cat((positive, negative))
        if not len(sampled):  # no anchor lies in any image; the reference's mean of nothing is NaN
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        wanted = torch.cat(regression_targets)[positive]
        distance = smooth_l1(pred_bbox_deltas[positive] - wanted, beta=1 / 9).sum() / sampled.numel()
        classes = torch.cat(labels)[sampled]
        return F.binary_cross_entropy_with_logits(objectness.flatten()[sampled], classes), distance

    def _proposals(
        self, anchors: Tensor, scores: Tensor, offsets: Tensor, sizes: list[tuple[int, int]], level_sizes: list[int]
    ) -> list[Tensor]:
        """Return the best proposals of all levels, after suppression within each level.

        Reference modeling/rpn/inference.py:76-123. torchvision ranks logits, which have no ties from
        rounding in the sigmoid, clips to the whole image, and drops boxes below a thousandth of a pixel.
        """
        scores, offsets = scores.reshape(len(sizes), -1), offsets.reshape(len(sizes), -1, 4)
        boxes: list[list[Tensor]] = [[] for _ in sizes]
        kept_scores: list[list[Tensor]] = [[] for _ in sizes]
        levels = zip(
            anchors.split(level_sizes), scores.split(level_sizes, dim=1), offsets.split(level_sizes, 1), strict=True
        )
        for level_anchors, level_scores, level_offsets in levels:
            number = min(self.pre_nms_top_n(), len(level_anchors))
            best, places = level_scores.sigmoid().topk(number, dim=1)
            for i, size in enumerate(sizes):
                place = places[i]
                decoded = self.box_coder.decode_single(level_offsets[i, place], level_anchors[place])
                decoded = clip_boxes(decoded, size)
                keep = legacy_nms(decoded, best[i], self.nms_thresh)[: self.post_nms_top_n()]
                boxes[i].append(decoded[keep])
                kept_scores[i].append(best[i, keep])
        return self._best_of_all_levels([torch.cat(part) for part in boxes], [torch.cat(part) for part in kept_scores])

    def _best_of_all_levels(self, boxes: list[Tensor], scores: list[Tensor]) -> list[Tensor]:
        """Return in training the best of the whole batch, in their order, otherwise the best of each image, by score.

        Reference modeling/rpn/inference.py:145-181. torchvision takes the best of each image in both modes.
        """
        limit = self.post_nms_top_n()
        if not self.training:
            return [part[score.topk(min(limit, len(score))).indices] for part, score in zip(boxes, scores, strict=True)]
        batch = torch.cat(scores)
        chosen = torch.zeros(len(batch), dtype=torch.bool, device=batch.device)
        chosen[batch.topk(min(limit, len(batch))).indices] = True
        picked = chosen.split([len(score) for score in scores])
        return [part[mask] for part, mask in zip(boxes, picked, strict=True)]
