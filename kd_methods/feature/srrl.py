"""Softmax regression representation learning, Yang et al. 2021: on pooled vectors (CIFAR) and on maps (ImageNet)."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Network, Outputs, Progress
from ..registry import register
from ._connectors import Connector
from ._maps import matched


class Settings(MethodSettings):
    beta: float = Field(1.0, ge=0, description="weight of both terms")


@register
class SRRL(Method[Settings]):
    """Puts the student's features through the teacher's classifier."""

    card = Card(
        name="srrl",
        version=1,
        family="feature",
        title="SRRL",
        paper="yang2021srrl",
        formula="L = CE(z_s, y) + beta * [MSE(D(f_s), f_t) + MSE(h_t(D(f_s)), z_t)], h_t = teacher's classifier",
        source="SimKD toolbox models/util.py (SRRL) for CIFAR-100; beta 1 as given there",
        optimum="where the connected student features equal the teacher's",
        divergences=(
            "pooled vectors are matched, the form that CIFAR-100 tables ran; the authors' ImageNet code connects maps"
            " and matches their channel means: srrl.map",
            "the SimKD toolbox adds a KD term of weight 1 to every method; here it is left out (use a combination)",
        ),
    )
    needs = Needs(student=("pooled",), teacher=("pooled", "logits"), min_batch=2)

    def setup(self) -> None:
        self.connector = self.connected(self.student, self.teacher)

    def connected(self, student: Network, teacher: Network) -> nn.Module:
        d_s, d_t = student.shapes("pooled")[0][0], teacher.shapes("pooled")[0][0]
        return nn.Sequential(nn.Linear(d_s, d_t, bias=False), nn.BatchNorm1d(d_t), nn.ReLU())

    def features(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """The vectors (B, D) to match, and the logits of the student's features by the teacher's classifier."""
        features = self.connector(student.pooled)
        return features, teacher.pooled, self.teacher.resume(self.teacher.layout.pooled, features)

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        beta = self.settings.beta
        features, target, logits = self.features(student, teacher)
        return Losses(
            task={"task": batch.loss(student.logits)},
            distill={
                "feature": beta * functional.hint(features, target),
                "regression": beta * functional.hint(logits, teacher.logits),
            },
        )


@register
class SRRLMap(SRRL):
    """SRRL on the last map: its channel means are matched, and the teacher's head runs on the connected map."""

    card = replace(
        SRRL.card,
        name="srrl.map",
        title="SRRL (map)",
        formula=(
            "L = CE(z_s, y) + beta * [MSE(mean_hw D(F_s), mean_hw F_t) + MSE(h_t(D(F_s)), z_t)],"
            " h_t = teacher's pooling and classifier"
        ),
        source="authors' train_imagenet_distillation.py, distiller_zoo/AIN.py (weight 1)",
        optimum="where the connected student map has the teacher's channel means",
        divergences=("written for ImageNet; CIFAR-100 tables ran the form on pooled vectors: srrl",),
    )
    needs = Needs(student=("last_map",), teacher=("last_map", "logits"), min_batch=2)

    def connected(self, student: Network, teacher: Network) -> nn.Module:
        (s, t), = matched("srrl.map", student, teacher, "last_map")  # fmt: skip
        return Connector(s, (t[0], *s[1:]), rectify=True)

    def features(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        connected = self.connector(student.last_map)
        logits = self.teacher.resume(self.teacher.layout.last_map, connected)
        return connected.mean((2, 3)), teacher.last_map.mean((2, 3)), logits
