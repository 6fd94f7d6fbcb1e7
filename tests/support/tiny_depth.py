"""A tiny depth model of MiDaS' hybrid kind, in transformers' folder format."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import DPTConfig, DPTForDepthEstimation

DEPTH_SIZE = 32


def tiny_depth_config() -> DPTConfig:
    """Convolutions, then attention, as DPT-Hybrid has them, for pictures of 32 by 32."""
    backbone = {
        "model_type": "bit",
        "global_padding": "same",
        "layer_type": "bottleneck",
        "depths": [1, 1, 1],
        "hidden_sizes": [8, 8, 16],
        "embedding_size": 8,
        "num_groups": 4,
        "out_features": ["stage1", "stage2", "stage3"],
        "embedding_dynamic_padding": True,
    }
    return DPTConfig(
        is_hybrid=True,
        image_size=DEPTH_SIZE,
        patch_size=16,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        backbone_out_indices=[0, 1, 2, 3],
        backbone_featmap_shape=[1, 16, 2, 2],
        reassemble_factors=[1, 1, 1, 0.5],
        neck_hidden_sizes=[8, 8, 16, 16],
        neck_ignore_stages=[0, 1],
        fusion_hidden_size=8,
        backbone_config=backbone,
    )


def write_tiny_depth(folder: Path, seed: int = 0) -> Path:
    """Random weights, large enough for maps that are not flat."""
    torch.manual_seed(seed)
    network = DPTForDepthEstimation(tiny_depth_config())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
        network.head.head[-2].weight.abs_()  # Maps are cut off at 0.
        network.head.head[-2].bias.fill_(1.0)
    network.save_pretrained(folder)
    return folder
