"""Block-wise logit distillation, Yu et al. 2024 (arXiv 2411.01547), as far as its public descriptions go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .. import functional
from ..contract import Batch, Card, Losses, Method, MethodSettings, Needs, Outputs, Progress, joined
from ..errors import UserError
from ..feature._connectors import ConnectorKind
from ..registry import register
from ..views.layers import evenly_spaced
from ._connectors import connector
from ._stones import active_stones


class Settings(MethodSettings):
    alpha: float = Field(1.0, ge=0, description="weight of the task losses of student and stones")
    beta: float = Field(1.0, ge=0, description="weight of the distances to the teacher")
    gamma: float = Field(1.0, ge=0, description="weight of the distances to the stones' ensemble")
    stone_task: float = Field(1.0, ge=0, description="factor on the stones' task losses")
    temperature: float = Field(4.0, gt=0, description="temperature of all distances")
    distance: Literal["kl", "dkd"] = Field("kl", description="distance d between logits")
    dkd_alpha: float = Field(1.0, ge=0, description="alpha of distance dkd")
    dkd_beta: float = Field(8.0, ge=0, description="beta of distance dkd")
    connector: ConnectorKind = Field("conv1x1", description="map from the student's blocks to the teacher's")
    stone_weighting: Literal["halving", "equal"] = Field("halving", description="w_i = 1 / 2^(n-i), or 1 for all")
    active_stones: tuple[int, ...] | None = Field(
        None, description="stones in use, from 1, or from the end if negative; null for all"
    )
    sample_stones: int | None = Field(None, ge=1, description="random active stones per step; null for all")
    stone_schedule: Literal["together", "deep_first", "shallow_first"] = Field(
        "together", description="whether all stones are there from the start, or come in one by one"
    )
    stone_epochs: float = Field(30.0, gt=0, description="epochs between two stones that come in one by one")
    teacher_bn: Literal["eval", "batch"] = Field(
        "eval",
        description="statistics in the tails while training: running ones or the batch's; to evaluate, running ones",
    )
    warmup: float = Field(0.0, ge=0, description="epochs over which the terms of warmup_on grow linearly")
    warmup_on: Literal["gamma", "beta_gamma"] = Field("gamma", description="terms that warm up")


@register
class BlockKD(Method[Settings]):
    """Trains the student's blocks through the teacher's remaining blocks: matching features in logit space."""

    card = Card(
        name="block_kd",
        version=1,
        family="blockwise",
        title="Block-KD",
        paper="yu2024blockkd",
        formula=(
            "L = alpha * [CE(S, y) + sum_i w_i CE(N_i, y)] + beta * [d(S, T) + sum_i w_i d(N_i, T)]"
            " + gamma * [d(S, E) + sum_i w_i d(N_i, E)],"
            " N_i = teacher's tail after connector i after student's blocks 1..i, E = mean_i N_i, w_i = 1 / 2^(n-i)"
        ),
        source="arXiv 2411.01547 for the losses; temperature from mdistiller engine/cfg.py; weights 1 as in FCFD",
        optimum="where the student and all stepping stones give the teacher's logits",
        hard_labels="whose logit is told apart where distance is dkd",
        divergences=(
            "no code is public; the connectors, the cuts into blocks, the weights and the temperature are our reading",
            "the weights are undetermined: 1 did best of three candidates and those of KD (0.1, 0.9, 0.9) came close,"
            " after two epochs with one seed and a teacher that had seen the held-out images"
            " (tables/reproduced/block-kd-weights-short-epochs2.md)",
            "w_i also weights the stones' terms against the ensemble, and the ensemble is detached (our reading)",
            "networks with different numbers of blocks are matched from the last block backwards, encoders of equal"
            " layers at equal shares of their depth (our choice)",
            "tokens of patches are maps for the connectors where the other side has none, or another number of them;"
            " the teacher's class token is then the mean of the connected patches (our choice)",
            "between encoders a connector is a linear map, none where widths agree, and LayerNorm (our reading)",
        ),
        our_choice=("alpha", "beta", "gamma", "temperature", "connector", "teacher_bn", "warmup", "stone_epochs"),
        modality="any",
        classes=1,
    )
    needs = Needs(student=("blocks",), teacher=("logits",), min_batch=2)

    def setup(self) -> None:
        layout = self.teacher.layout
        if self.settings.distance == "dkd" and self.info.num_classes < 3:
            raise UserError(f"setting {self.card.name}.distance=dkd: DKD is for three classes at least; use 'kl'")
        counts = len(self.student.layout.blocks), len(layout.blocks)
        n = min(counts)
        evenly = layout.uniform and self.student.layout.uniform
        # Which blocks, from 0, of the student and of the teacher end together.
        student_ends, teacher_ends = (evenly_spaced(n, m) if evenly else list(range(m - n, m)) for m in counts)
        self.student_ends = student_ends
        self.units = [layout.blocks[i] for i in teacher_ends]
        self.active = self._active(n)
        equal = self.settings.stone_weighting == "equal"
        self.stone_weights = [1.0 if equal else 0.5 ** (n - i) for i in range(1, n + 1)]
        student_shapes = [self.student.shapes("blocks")[i] for i in student_ends]
        teacher_shapes = [self.teacher.shapes("blocks")[i] for i in teacher_ends]
        self.connectors = nn.ModuleDict()
        for i in self.active:
            rectify, kind = self.units[i - 1] in layout.rectified, self.settings.connector
            prefixes = self.student.layout.prefix_tokens, layout.prefix_tokens
            self.connectors[str(i)] = connector(student_shapes[i - 1], teacher_shapes[i - 1], rectify, kind, prefixes)

    def gathers(self) -> bool:
        return self.settings.teacher_bn == "batch"

    def losses(self, student: Outputs, teacher: Outputs, batch: Batch, progress: Progress) -> Losses:
        config = self.settings
        ramp = progress.ramp(config.warmup)
        beta = config.beta * (ramp if config.warmup_on == "beta_gamma" else 1.0)
        result = Losses(
            task={"task": config.alpha * batch.loss(student.logits)},
            distill={"kd": beta * self._distance(student.logits, teacher.logits, batch)},
        )
        chosen = self._sampled(self._arrived(progress))
        if not chosen:
            return result
        stones = self.stones(student, chosen, batch_statistics=config.teacher_bn == "batch")
        ensemble = torch.stack(stones).mean(0).detach()
        weighted = [(self.stone_weights[i - 1], z) for i, z in zip(chosen, stones, strict=True)]
        task = config.alpha * config.stone_task
        result.task["stones_task"] = task * _sum([w * batch.loss(z) for w, z in weighted])
        to_teacher = [w * self._distance(z, teacher.logits, batch) for w, z in weighted]
        to_ensemble = [w * self._distance(z, ensemble, batch) for w, z in weighted]
        result.distill["stones_kd"] = beta * _sum(to_teacher)
        result.distill["cross"] = config.gamma * ramp * self._distance(student.logits, ensemble, batch)
        result.distill["stones_cross"] = config.gamma * ramp * _sum(to_ensemble)
        return result

    def stones(self, student: Outputs, chosen: list[int], batch_statistics: bool = False) -> list[Tensor]:
        """Logits (B, K) of the stones ``chosen`` (from 1, ascending).

        The teacher's tails overlap, so they run as one sweep: a stone joins along the batch where its tail begins. With
        batch statistics each stone has its own pass, since a joint batch would mix their statistics.
        """
        blocks = [student.blocks[i] for i in self.student_ends]
        entries = [(self.units[i - 1], self.connectors[str(i)](blocks[i - 1])) for i in chosen]
        if batch_statistics:
            with self.teacher.batch_statistics():
                return [self.teacher.resume(unit, feature) for unit, feature in entries]
        tail = self.teacher.fold_batch_norms()
        at, joint = entries[0]
        for unit, feature in entries[1:]:
            joint = joined([tail.resume(at, joint, until=unit), feature])
            at = unit
        return list(tail.resume(at, joint).chunk(len(entries)))

    def auxiliary_logits(self, student: Outputs) -> Mapping[str, Tensor]:
        if not self.active:
            return {}
        return {f"stone_{i}": z for i, z in zip(self.active, self.stones(student, self.active), strict=True)}

    def auxiliary_fields(self) -> tuple[str, ...]:
        return ("blocks",) if self.active else ()

    def _active(self, n: int) -> list[int]:
        active = active_stones(self.card.name, self.settings.active_stones, n)
        count = self.settings.sample_stones
        if count is not None and count > len(active):
            raise UserError(f"setting {self.card.name}.sample_stones={count}: only {len(active)} stones are active")
        return active

    def _arrived(self, progress: Progress) -> list[int]:
        """The active stones that have come in by now; the first one is there from the start."""
        schedule, every = self.settings.stone_schedule, self.settings.stone_epochs
        if schedule == "together":
            return self.active
        order = self.active[::-1] if schedule == "deep_first" else self.active
        return sorted(stone for place, stone in enumerate(order) if not place or progress.epoch > place * every)

    def _sampled(self, stones: list[int]) -> list[int]:
        count = self.settings.sample_stones
        if count is None or count >= len(stones):
            return stones
        return sorted(stones[i] for i in torch.randperm(len(stones))[:count].tolist())

    def _distance(self, learner: Tensor, target: Tensor, batch: Batch) -> Tensor:
        config = self.settings
        if config.distance == "kl":
            return functional.kd(learner, target, temperature=config.temperature)
        alpha, beta = config.dkd_alpha, config.dkd_beta
        return functional.dkd(learner, target, batch.labels, alpha=alpha, beta=beta, temperature=config.temperature)


def _sum(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum()


class BlockKDLiteSettings(Settings):
    active_stones: tuple[int, ...] | None = Field((-2, -1), description="stones in use; see block_kd")


@register
class BlockKDLite(BlockKD):
    """Block-KD with the last two stepping stones only: the largest weights and the cheapest tails."""

    card = replace(
        BlockKD.card,
        name="block_kd.lite",
        title="Block-KD (lite)",
        our_choice=(*BlockKD.card.our_choice, "active_stones"),
    )

    Settings = BlockKDLiteSettings
