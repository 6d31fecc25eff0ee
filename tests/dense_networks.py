"""A detector and a segmentation network of transformers in small, with batches of coloured rectangles on noise."""

import torch
from foreign import package

CLASSES, SIDE = 3, 64


def detector():
    """DETR on a ResNet without pretrained weights: five queries, two layers on each side, frozen BatchNorm."""
    transformers = package("transformers")
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
                                         out_features=["stage2"])
    return transformers.DetrForObjectDetection(transformers.DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, backbone=None, use_pretrained_backbone=False, d_model=32,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, num_queries=5, num_labels=CLASSES, dropout=0.0))


def segmentation_network():
    """SegFormer: depthwise convolutions, attention over fewer positions, BatchNorm in its head."""
    transformers = package("transformers")
    torch.manual_seed(0)
    return transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=CLASSES + 1,
        drop_path_rate=0.0, classifier_dropout_prob=0.0, hidden_dropout_prob=0.0))


def scenes(images=4, seed=0):
    """Return (pixels, boxes by image, class of each pixel, 0 for none): one rectangle of a class's colour an image."""
    generator = torch.Generator().manual_seed(seed)
    pixels = 0.3 * torch.randn(images, 3, SIDE, SIDE, generator=generator)
    masks = torch.zeros(images, SIDE, SIDE, dtype=torch.long)
    boxes = []
    for image in range(images):
        kind = int(torch.randint(CLASSES, (), generator=generator))
        left, top = torch.randint(SIDE // 2, (2,), generator=generator).tolist()
        width, height = torch.randint(SIDE // 4, SIDE // 2, (2,), generator=generator).tolist()
        pixels[image, kind, top:top + height, left:left + width] += 2
        masks[image, top:top + height, left:left + width] = kind + 1
        box = torch.tensor([[left + width / 2, top + height / 2, width, height]]) / SIDE
        boxes.append({"class_labels": torch.tensor([kind]), "boxes": box})
    return pixels, boxes, masks


def inputs(kind: str, **options) -> dict:
    """Return what a network of `kind`, 'detection' or 'segmentation', is called with, labels among it."""
    pixels, boxes, masks = scenes(**options)
    return {"pixel_values": pixels, "labels": boxes if kind == "detection" else masks}


NETWORKS = {"detection": detector, "segmentation": segmentation_network}
