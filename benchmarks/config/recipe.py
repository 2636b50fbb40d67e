"""Parts of a protocol: its optimiser, what detection has beyond the others, how images are cropped. No torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from kd_methods.strict import Strict

from ..common.console import percent


def _of_unit_scale(value: float) -> float:
    if value > 1:
        raise ValueError("mean and std are of images scaled to 0 to 1; divide those of the scale to 255 by 255")
    return value


Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Pixels = Annotated[int, Field(ge=1, le=2**14)]
Processes = Annotated[int, Field(ge=0, le=1024)]

ADAPTIVE = {"adamw": "AdamW", "lamb": "LAMB"}
"""Optimisers with two betas, and how captions call them."""

LONGEST, LARGEST = 1_000_000, 2**20
"""Most epochs of a run and samples of a batch."""

Epochs = Annotated[int, Field(ge=0, le=LONGEST)]


def _of_three_channels(values: tuple[float, ...]) -> tuple[float, ...]:
    """A normalisation as it is, if there is one.

    Raises:
        ValueError: it is not of three channels.
    """
    if len(values) not in (0, 3):
        raise ValueError(f"three channels, red, green and blue, and not {len(values)}")
    return values


Means = Annotated[
    tuple[Annotated[float, Field(ge=0), AfterValidator(_of_unit_scale)], ...], AfterValidator(_of_three_channels)
]
Stds = Annotated[
    tuple[Annotated[float, Field(gt=0), AfterValidator(_of_unit_scale)], ...], AfterValidator(_of_three_channels)
]
"""Normalisation by channel, of three channels or none."""


class Optimizer(Strict):
    """An optimiser; weight decay is on every parameter, as the field's recipes for images have it.

    LAMB scales the update of each decayed tensor by the tensor's norm over the update's.
    """

    name: str = Field(
        default="sgd",
        description="sgd, dot (the distillation-oriented trainer), adamw, lamb, or one that a plugin brings",
    )
    lr: float = Field(gt=0, description="learning rate of a batch")
    momentum: BelowOne = Field(default=0.9, description="momentum; of adamw and lamb the first beta")
    nesterov: bool = Field(default=False, description="Nesterov's momentum")
    weight_decay: float = Field(default=0.0, ge=0, description="on every parameter; of adamw apart from the gradient")
    delta: float = Field(
        default=0.0, ge=0, description="of dot: task terms have momentum - delta, distillation terms momentum + delta"
    )
    beta2: BelowOne = Field(default=0.999, description="of adamw and lamb the second beta")
    clip: float = Field(
        default=0.0, ge=0, description="largest norm of all gradients of a step together; 0 for no limit"
    )
    decay_matrices_only: bool = Field(default=False, description="biases and normalisations do not decay")
    exempt_named: bool = Field(
        default=False,
        description="nor does what a network of timm names in its no_weight_decay() (class token, position embeddings)",
    )
    backbone: float = Field(default=1.0, gt=0, description="factor on the rate of all that comes up to the last map")
    options: dict[str, float] = Field(default={}, description="further settings of an optimiser that a plugin brings")

    @model_validator(mode="after")
    def _fits(self) -> Optimizer:
        if self.name == "dot" and (self.clip or self.decay_matrices_only or self.backbone != 1):
            raise ValueError("dot has no clip, decays every parameter, and has one rate for all")
        if self.name != "dot" and self.delta:
            raise ValueError("delta is a setting of the optimiser dot")
        if self.name not in ADAPTIVE and self.beta2 != 0.999:
            raise ValueError("beta2 is a setting of the optimisers adamw and lamb")
        if self.name in ADAPTIVE and self.nesterov:
            raise ValueError(f"{self.name} has no nesterov")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        if self.name == "dot" and (self.nesterov or not self.delta or not self.delta <= self.momentum < 1 - self.delta):
            raise ValueError("dot needs 0 < delta <= momentum with momentum + delta < 1, and no nesterov")
        if self.exempt_named and not self.decay_matrices_only:
            raise ValueError("exempt_named goes beyond decay_matrices_only, and needs it")
        if self.options and self.name in ("sgd", "dot", *ADAPTIVE):
            raise ValueError(f"{self.name} has no options of its own; they are for optimisers that a plugin brings")
        return self

    def line(self, momentum: bool = True) -> str:
        """In words, without the learning rate, and without a ``momentum`` that the schedule moves."""
        decay = f"weight decay {self.weight_decay:g}" + (" of matrices only" if self.decay_matrices_only else "")
        decay += " but for those that timm exempts" if self.exempt_named else ""
        decay += f", gradients clipped at {self.clip:g}" if self.clip else ""
        decay += f", rate times {self.backbone:g} up to the last map" if self.backbone != 1 else ""
        if self.name in ADAPTIVE:
            usual = not momentum or self.momentum == type(self).model_fields["momentum"].default
            beta1 = "" if usual else f", beta1 {self.momentum:g}"
            return f"{ADAPTIVE[self.name]}{beta1}, beta2 {self.beta2:g}, {decay}"
        kind = {"sgd": "SGD", "dot": f"DOT, delta {self.delta:g}"}.get(self.name, self.name)
        kind += "".join(f", {key} {value:g}" for key, value in self.options.items())
        nesterov = " (Nesterov)" if self.nesterov else ""
        kind += f", momentum {self.momentum:g}{nesterov}" if momentum else nesterov
        return f"{kind}, {decay}"


class Detection(Strict):
    """What a protocol of detection has beyond the others. Its epochs are stretches of iterations, each evaluated."""

    iterations: int = Field(ge=1, le=LONGEST, description="iterations of an epoch, after each of which is evaluated")
    short_sides: tuple[Pixels, ...] = Field(
        min_length=1, description="short sides in pixels, of which one is drawn for every training image"
    )
    long_side: Pixels = Field(description="most pixels of the long side")
    test_side: Pixels = Field(description="short side in evaluation")
    warmup: int = Field(
        default=0, ge=0, description="iterations over which the learning rate rises linearly, from a thousandth"
    )
    pretrained: bool = Field(
        default=True, description="students begin with a backbone trained on ImageNet; without, no stage is frozen"
    )
    workers: Processes = Field(default=0, description="processes that load images")
    processes: Processes = Field(
        default=1,
        ge=1,
        description="processes, each with a GPU where there are GPUs, that share every batch; gradients are averaged",
    )


class Answers(Strict):
    """What is wrong with what the teacher says of the training images: of the same ones for every seed."""

    wrong: Share = Field(
        default=0.0,
        description="share of the images about which it gives another one's answer, logits and features alike",
    )
    missing: BelowOne = Field(
        default=0.0,
        description="share, drawn apart, about which it gives none: their part of every distillation term is zero",
    )
    corrupted: Share = Field(
        default=0.0, description="share, drawn apart, to whose logits normal noise is added, the same in every epoch"
    )
    noise: float = Field(
        default=1.0, gt=0, description="standard deviation of the noise, over that of the image's own logits"
    )

    @model_validator(mode="after")
    def _changes_something(self) -> Answers:
        if not (self.wrong or self.missing or self.corrupted):
            message = "wrong, missing or corrupted is above 0; a teacher who answers rightly about all needs no setting"
            raise ValueError(message)
        if self.noise != 1 and not self.corrupted:
            raise ValueError("noise is that of answers which are corrupted")
        return self

    def line(self) -> str:
        """In words."""
        wrong = f"for {percent(self.wrong)} of the images the teacher gives another one's answer" if self.wrong else ""
        missing = f"for {percent(self.missing)} of the images the teacher gives no answer" if self.missing else ""
        zero = " (distillation terms are summed over the others and divided by all)" if self.missing else ""
        noise = f"normal noise is added to the teacher's logits, {self.noise:g} of their standard deviation"
        corrupted = f"for {percent(self.corrupted)} of the images {noise}" if self.corrupted else ""
        return ", ".join(filter(None, (wrong, corrupted, missing))) + zero


class Crops(Strict):
    """How images that are decoded from files, in processes of their own, become inputs of one size.

    In training a random part of the image is resized to the size, in evaluation its middle is cut out.
    """

    RESAMPLED: ClassVar[str] = ", resampled as the crop"
    """Marks ``auto_augment`` in a cell's identity: earlier versions resampled at random, whatever the crop's way is."""

    size: Pixels = Field(default=224, description="pixels of a side as networks see the images")
    scale: tuple[Share, Share] = Field(
        default=(0.08, 1.0), description="smallest and largest share of the image's area that a training crop has"
    )
    test_resize: Pixels = Field(
        default=256, description="short side in evaluation, out of whose middle size pixels are cut"
    )
    interpolation: Literal["bilinear", "bicubic", "random"] = Field(
        default="bilinear", description="of resizing; random: each image has either"
    )
    test_interpolation: Literal["", "bilinear", "bicubic"] = Field(
        default="", description="of resizing in evaluation, where that is another one"
    )
    color_jitter: float = Field(
        default=0.0,
        ge=0,
        description="range of brightness, contrast and saturation; not used beside auto_augment, as in timm",
    )
    auto_augment: str = Field(default="", description="as timm's create_transform has it, such as rand-m9-mstd0.5-inc1")
    erase: Share = Field(default=0.0, description="probability that a random part of the image is erased")
    erase_fill: Literal["mean", "noise"] = Field(
        default="mean",
        description="by the mean colour, or by timm's noise: each value is standard normal after the normalisation",
    )
    workers: Processes = Field(
        default=8, description="processes that decode images ahead; the images do not depend on it"
    )

    @field_validator("auto_augment", mode="before")
    @classmethod
    def _unmarked(cls, text: Any) -> Any:
        return text.removesuffix(cls.RESAMPLED) if isinstance(text, str) else text

    @model_validator(mode="after")
    def _fits(self) -> Crops:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("scale is the smallest and the largest share of the image's area, above 0")
        if self.test_resize < self.size:
            raise ValueError(f"in evaluation {self.size} pixels are cut out of {self.test_resize}: test_resize >= size")
        if self.interpolation == "random" and not self.test_interpolation:
            raise ValueError("evaluation is not at random: interpolation random needs a test_interpolation")
        if self.erase_fill == "noise" and not self.erase:
            raise ValueError("nothing is filled with noise where erase is 0")
        return self

    def line(self) -> str:
        """In words, without the flip."""
        more = f", colour jitter {self.color_jitter:g}" if self.color_jitter and not self.auto_augment else ""
        more += f", {self.auto_augment}" if self.auto_augment else ""
        more += f", random erasing {self.erase:g}" if self.erase else ""
        more += " with noise" if self.erase_fill == "noise" else ""
        low, high = self.scale
        way = "bilinear or bicubic at random" if self.interpolation == "random" else self.interpolation
        tested = f" ({self.test_interpolation})" if self.test_interpolation else ""
        return (
            f"random resized crop {self.size} (area {low:g} to {high:g}, {way}){more}, "
            f"in evaluation short side {self.test_resize}{tested}, centre crop {self.size}"
        )


class ByEpoch(Strict):
    """A rate that moves from epoch to epoch, as timm's schedulers step it; epochs are the recipe's."""

    warmup: Epochs = Field(default=0, description="epochs over which the rate rises linearly")
    first: float = Field(default=0.0, ge=0, description="rate with which the warm-up begins (timm's warmup_lr)")
    last: float = Field(
        default=0.0, ge=0, description="rate that half a cosine ends in (timm's min_lr), one epoch after the last"
    )
    late: Epochs = Field(default=0, description="epochs by which the schedule lags: the first rate stays so long")


class Mixing(Strict):
    """Images of a batch are mixed in pairs, the first with the last and so on, and their labels in the same shares.

    One share for the whole batch, and for all views of its images. Where both are above 0, a batch has either with
    probability 1/2.
    """

    mixup: float = Field(
        default=0.0,
        ge=0,
        description="a of Beta(a, a), from which the share of the other image's pixels is drawn; 0 for none",
    )
    cutmix: float = Field(
        default=0.0,
        ge=0,
        description="a of Beta(a, a), from which the share of the other image's rectangle is drawn; 0 for none",
    )

    @model_validator(mode="after")
    def _fits(self) -> Mixing:
        if not (self.mixup or self.cutmix):
            raise ValueError("mixup or cutmix is above 0, or there is no mixing")
        return self

    def line(self) -> str:
        """In words."""
        kinds = (("mixup", self.mixup), ("CutMix", self.cutmix))
        return " or ".join(f"{name} with shares from Beta({a:g}, {a:g})" for name, a in kinds if a)
