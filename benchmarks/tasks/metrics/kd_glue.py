"""GLUE's official metrics as a module of the library ``evaluate``; ``evaluate.load`` takes the path of this file."""

from __future__ import annotations

import math

import datasets
import evaluate

CONFIGS = {
    "cola": ("mcc",),
    "stsb": ("pearson", "spearman"),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    **dict.fromkeys(("sst2", "mnli", "qnli", "rte", "wnli"), ("accuracy",)),
}
"""Wang et al. 2019, table 1."""


class KDGlue(evaluate.Metric):
    """Matthews correlation, Pearson and Spearman correlation, accuracy, F1 of class 1; shares, not percent.

    A correlation of something constant is not defined; it counts as 0, which is what knowing nothing deserves.
    """

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in CONFIGS:
            raise KeyError(f"name one of {', '.join(CONFIGS)} as the configuration, not {self.config_name}")
        kind = "float32" if self.config_name == "stsb" else "int64"
        return evaluate.MetricInfo(
            description=str(self.__doc__),
            citation="",
            inputs_description="predictions and references: class numbers, or values for stsb",
            features=datasets.Features({name: datasets.Value(kind) for name in ("predictions", "references")}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        constant = len(set(predictions)) < 2 or len(set(references)) < 2
        metrics = {
            "mcc": lambda: matthews_corrcoef(references, predictions),
            "pearson": lambda: 0.0 if constant else pearsonr(predictions, references)[0],
            "spearman": lambda: 0.0 if constant else spearmanr(predictions, references)[0],
            "accuracy": lambda: accuracy_score(references, predictions),
            "f1": lambda: f1_score(references, predictions, zero_division=0.0),
        }
        values = {name: float(metrics[name]()) for name in CONFIGS[self.config_name]}
        return {name: value if math.isfinite(value) else 0.0 for name, value in values.items()}
