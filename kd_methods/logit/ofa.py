"""One-for-all distillation between unlike architectures, Hao et al. 2023."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress
from ..registry import register


class Settings(MethodSettings):
    ce: float = Field(1.0, ge=0, description="weight of the task loss")
    kd: float = Field(1.0, ge=0, description="weight of the term of the final logits")
    branches: float = Field(1.0, ge=0, description="weight of the branches' terms")
    eps: float = Field(1.0, gt=0, description="exponent of the soft labels")
    temperature: float = Field(1.0, gt=0, description="temperature T of both softmaxes; no factor T^2")


@register
class OFA(Method[Settings]):
    """Matches logits at the end of the student and at a branch after each of its stages, with raised targets."""

    card = Card(
        name="ofa",
        version=1,
        family="logit",
        title="OFA",
        paper="hao2023ofa",
        formula=(
            "L = ce * CE(z_s, y) + kd * ofa(z_s) + branches * sum_k ofa(z_k),"
            " ofa(z) = -sum_i [(p_t,i + 1_y)^eps - 1_y] log softmax(z / T)_i, z_k = branch k on the student's stage k"
        ),
        source="OFAKD train.py (weights 1, temperature 1, eps 1), distillers/ofa.py",
        optimum="softmax(z / T) ~ (p_t + 1_y)^eps - 1_y for the final logits and for every branch's",
        hard_labels="whose share of the target is raised",
        divergences=(
            "eps is tuned per pair in the paper, 1.0 to 1.5; one value serves all stages and the final logits here",
            "the defaults are train.py's; the authors' CIFAR-100 runs weight the branches by 0.1 (issues 14 and 32)",
            "the reference has four stages; with n stages, branch k has n - k halvings of the resolution",
            "patches of a transformer are a map and get the branches of CNNs, without the class token (other tokens"
            " are mapped linearly and averaged); the reference merges patches, adds transformer blocks and reads the"
            " class token",
            "stages end as the network's own quarters do; the reference's end after blocks 2, 4, 10 and 12 of a DeiT,"
            " MobileNetV2's last one behind its final convolution, and MobileNetV1's before their last ReLU",
            "weights start as PyTorch's layers do; the reference code has its own initialisation",
        ),
    )
    needs = Needs(student=("stages",), teacher=("logits",), min_batch=2)

    def setup(self) -> None:
        width = max(view.shape(view.layout.pooled)[-1] for view in (self.student, self.teacher))
        shapes = self.student.shapes("stages")
        self.branches = nn.ModuleList(
            _branch(shape, width, self.info.num_classes, len(shapes) - k) for k, shape in enumerate(shapes, 1)
        )

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        target = teacher.logits

        def ofa(logits: Tensor) -> Tensor:
            return functional.ofa(logits, target, batch.labels, eps=config.eps, temperature=config.temperature)

        terms = [ofa(branch(stage)) for branch, stage in zip(self.branches, student.stages, strict=True)]
        return Losses(
            task={"task": config.ce * batch.loss(student.logits)},
            distill={"ofa": config.kd * ofa(student.logits), "branches": config.branches * sum(terms[1:], terms[0])},
        )


def _branch(shape: tuple[int, ...], width: int, classes: int, halvings: int) -> nn.Sequential:
    """From a stage's output to logits: ``width`` channels at a ``halvings`` times halved size, mean, linear."""
    if len(shape) == 2:
        return nn.Sequential(nn.Linear(shape[1], width), nn.GELU(), _TokenMean(), nn.Linear(width, classes))
    channels, layers = shape[0], list[nn.Module]()
    for i in range(halvings):
        out = width if i == halvings - 1 else 2 * channels
        layers += [*_separable(channels, channels, stride=2), *_separable(channels, out, stride=1)]
        channels = out
    if not layers:
        layers = [nn.Conv2d(channels, width, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def _separable(c_in: int, c_out: int, stride: int) -> list[nn.Module]:
    depthwise = nn.Conv2d(c_in, c_in, 3, stride=stride, padding=1, groups=c_in, bias=False)
    return [depthwise, nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]


class _TokenMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)
