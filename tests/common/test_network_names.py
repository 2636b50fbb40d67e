"""Networks are printed as papers write them."""

from __future__ import annotations

import pytest

from benchmarks.common.network_names import network_title


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("wrn_40_2", "WRN-40-2"),
        ("resnet8x4", "ResNet-8×4"),  # noqa: RUF001
        ("resnet110", "ResNet-110"),
        ("ResNet50", "ResNet-50"),
        ("vgg13", "VGG-13"),
        ("ShuffleV1", "ShuffleNet-V1"),
        ("MobileNetV2", "MobileNet-V2"),
        ("timm:deit_tiny_patch16_224", "DeiT-T"),
        ("torchvision:resnet34@224", "ResNet-34"),
        ("hf:google-bert/bert-base-uncased[first6]", "BERT-base (6 layers)"),
        ("hf:google/electra-base-discriminator[first6]", "ELECTRA-base (6 layers)"),
        ("resnet20w29", "resnet20w29"),
        ("my_net", "my_net"),
    ],
)
def test_titles_by_rule(name: str, title: str) -> None:
    assert network_title(name) == title
