"""Networks of torchvision and timm at CIFAR's resolution, with the libraries' own state-dict keys.

VGG11/19-BN with two hidden linear layers, MobileNetV2 at full width, ViT-B and a small ViT, as arXiv 2511.14981 has
them. Importing this module takes timm and torchvision, a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, fx, nn
from torchvision.models import mobilenet_v2
from torchvision.models.vgg import cfgs, make_layers

from kd_methods.contract import Layout
from kd_methods.views import Chain, in_turn
from kd_methods.views.layers import evenly_spaced

from ..cifar.resnet import flatten
from ..cifar.vgg import PoolLarge
from ..image_classifier import ImageClassifier

HIDDEN = 4096


class VGGBN(ImageClassifier):
    """torchvision's VGG-BN, pooled to one position, so that the first linear layer has 512 inputs."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        # Not the whole network: its first linear layer, which is not this one's, takes seconds to initialise.
        self.features = make_layers(cfgs[{11: "A", 19: "E"}[depth]], batch_norm=True)
        self.halve = PoolLarge(2)  # images of 16x16 are one position before the last pooling
        hidden = [nn.Linear(512, HIDDEN), nn.ReLU(), nn.Dropout(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()]
        self.classifier = nn.Sequential(*hidden, nn.Dropout(), nn.Linear(HIDDEN, num_classes))
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
                assert m.bias is not None
                nn.init.zeros_(m.bias)
            elif isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0, 0.01)
                nn.init.zeros_(m.bias)

    def chain(self) -> Chain:
        units: list = []
        stages: list[str] = []
        modules = list(self.features)
        pools = [i for i, m in enumerate(modules) if isinstance(m, nn.MaxPool2d)]
        start = 0
        for block, pool in enumerate(pools):
            for j in range(start, pool, 3):  # convolution, batch-norm, ReLU
                if j + 3 < pool:
                    units.append((f"block{block}.{(j - start) // 3}", in_turn(*modules[j : j + 3])))
                else:  # in two units: methods may match what comes before the last ReLU of a block
                    convolved = in_turn(*modules[j : j + 2])
                    units += [(f"block{block}.conv", convolved), (f"block{block}", F.relu)]
            units.append((f"pool{block}", self.halve))
            stages.append(f"block{block}")
            start = pool + 1
        rectified = [n for n, _ in units if n.startswith("block") and not n.endswith(".conv")]
        linear = self.classifier
        units += [("pool", partial(F.adaptive_avg_pool2d, output_size=1)), ("flatten", flatten)]
        units += [
            ("fc1", in_turn(*linear[:2])),
            ("drop1", linear[2]),
            ("fc2", in_turn(*linear[3:5])),
            ("drop2", linear[5]),
        ]
        units += [("classifier", linear[6])]
        layout = Layout(
            stem=stages[0],
            stages=tuple(stages[1:]),
            preacts=tuple(f"{stage}.conv" for stage in stages[1:]),
            blocks=tuple(stages[1:]),
            last_map=stages[-1],
            pooled="drop2",
            rectified=frozenset(rectified),
            layers=(*rectified, "flatten", "fc1", "fc2"),
        )
        return Chain(tuple(units), layout)


class MobileNetV2Full(ImageClassifier):
    """torchvision's MobileNetV2 with a stem of stride 1 for images of 32x32, of its own stride 2 for 64x64."""

    def __init__(self, num_classes: int, stride: int = 1) -> None:
        super().__init__()
        network = mobilenet_v2(weights=None, num_classes=num_classes, dropout=0.0)
        network.features[0][0].stride = (stride, stride)
        self.features, self.classifier = network.features, network.classifier

    def chain(self) -> Chain:
        inner = [(f"features.{i}", block) for i, block in enumerate(self.features)]
        units = [*inner, ("pool", partial(F.adaptive_avg_pool2d, output_size=1)), ("flatten", flatten)]
        stages = tuple(f"features.{i}" for i in (3, 6, 13, 17))
        layout = Layout(
            stem="features.0",
            stages=stages,
            preacts=stages,
            blocks=(*stages[:-1], "features.18"),
            last_map="features.18",
            pooled="flatten",
            rectified=frozenset({"features.0", "features.18"}),
            layers=(*(name for name, _ in inner), "flatten"),
        )
        return Chain((*units, ("classifier", self.classifier)), layout)


@dataclass(frozen=True)
class ViTSize:
    """Blocks, embedding width, attention heads and hidden width over embedding width.

    ``stages`` are the blocks, from 1, whose outputs count as ends of stages; what a block-wise method cuts ends as many
    equal shares of the depth, the last one at the last block.
    """

    depth: int
    width: int
    heads: int
    mlp: float
    stages: tuple[int, ...]


@fx.wrap
def _positions(embedding: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Embeddings (1, 1 + H W, D) for patches (B, H, W, D), made of those for a grid; one node for torch.fx."""
    return resample_abs_pos_embed(
        embedding, new_size=[patches.shape[1], patches.shape[2]], old_size=grid, num_prefix_tokens=1
    )


class ViT(ImageClassifier):
    """timm's vision transformer on 8x8 patches; the mean over all tokens, the class token's too, is classified.

    It starts as the public code of arXiv 2511.14981 has it. Its first unit, layer 0, has the position embedding; there
    layer 0 ends before it.

    Args:
        size: of its blocks.
        num_classes: size of the classifier.
        patch: height and width of a patch; of images of another size than 8 times that there are other patches.
    """

    def __init__(self, size: ViTSize, num_classes: int, patch: int = 4) -> None:
        super().__init__()
        self.vit = VisionTransformer(
            img_size=8 * patch,
            patch_size=patch,
            num_classes=num_classes,
            global_pool="avg",
            pool_include_prefix=True,
            fc_norm=False,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.heads,
            mlp_ratio=size.mlp,
            dynamic_img_size=True,
        )
        self._start()
        self.stages = size.stages

    def _start(self) -> None:
        """As torch's attention and torchvision's MLP start, not as timm's."""
        vit: Any = self.vit
        patches = vit.patch_embed.proj
        nn.init.trunc_normal_(patches.weight, std=math.sqrt(1 / patches.weight[0].numel()))
        nn.init.normal_(vit.pos_embed, std=0.02)
        for block in vit.blocks:
            nn.init.xavier_uniform_(block.attn.qkv.weight)
            nn.init.kaiming_uniform_(block.attn.proj.weight, a=math.sqrt(5))
            for layer in (block.mlp.fc1, block.mlp.fc2):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=1e-6)
        zero = [vit.cls_token, patches.bias, *vit.head.parameters()]
        for parameter in (*zero, *(layer.bias for block in vit.blocks for layer in (block.attn.qkv, block.attn.proj))):
            nn.init.zeros_(parameter)

    def _tokens(self, x: Tensor) -> Tensor:
        vit, patches = self.vit, self.vit.patch_embed(x)
        assert vit.pos_embed is not None and vit.cls_token is not None
        positions = _positions(vit.pos_embed, patches, vit.patch_embed.grid_size)
        tokens = torch.cat([vit.cls_token.expand(x.shape[0], -1, -1), patches.flatten(1, 2)], 1)
        return vit.norm_pre(vit.patch_drop(vit.pos_drop(tokens + positions)))

    def _pool(self, x: Tensor) -> Tensor:
        return self.vit.forward_head(x, pre_logits=True)

    def chain(self) -> Chain:
        blocks = [(f"blocks.{i + 1}", block) for i, block in enumerate(self.vit.blocks)]
        units: list = [("tokens", self._tokens), *blocks, ("norm", self.vit.norm)]
        units += [("pool", self._pool), ("head", self.vit.head)]
        names = tuple(name for name, _ in blocks)
        stages = tuple(names[i - 1] for i in self.stages)
        cuts = tuple(names[i] for i in evenly_spaced(len(stages), len(names)))
        layers = ("tokens", *names)
        layout = Layout("tokens", stages, stages, cuts, "norm", "pool", layers=layers, prefix_tokens=1)
        return Chain(tuple(units), layout)


def vit_b(num_classes: int, patch: int = 4) -> ViT:
    return ViT(ViTSize(12, 768, 12, 4.0, (2, 4, 8, 10)), num_classes, patch)


def vit_ett(num_classes: int, patch: int = 4) -> ViT:
    return ViT(ViTSize(8, 192, 6, 3.0, (1, 3, 5, 7)), num_classes, patch)
