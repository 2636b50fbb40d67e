"""Methods on text: which say that they do not apply, regressions, losses by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.networks import build_network
from kd_methods import functional, registry
from kd_methods.contract import NO_OUTPUTS, Batch, DataInfo, Progress
from kd_methods.errors import UserError

pytest.importorskip("transformers", reason="the extra [text] is not installed")
pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.parametrize(
    ("name", "classes", "words"),
    [("at", 3, "made for images"), ("dkd", 2, "3 classes at least"), ("dkd", 1, "a regression"),
     ("dist", 1, "a regression"), ("kd@ls", 1, "a regression"), ("letkd1", 3, "made for images")],
)  # fmt: skip
def test_methods_say_why_they_do_not_apply(name: str, classes: int, words: str):
    pair = [build_network(n, classes, vocabulary=90) for n in ("bert_l2_h64", "bert_l4_h64")]
    with pytest.raises(UserError, match=words) as error:
        registry.build(name, *pair, DataInfo(10, classes, torch.zeros(10)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tinybert", "pkd_patient"])
def test_a_student_is_not_deeper_than_its_teacher(name: str):
    """There is no layer of the teacher for each of the student's."""
    pair = [build_network(n, 3, vocabulary=90) for n in ("bert_l4_h64", "bert_l2_h64")]
    with pytest.raises(UserError, match="as many layers as the student, here 2"):
        registry.build(name, *pair, DataInfo(10, 3, torch.zeros(10)))


def test_a_regression_is_matched_by_squares():
    s, t = torch.randn(5, 1), torch.randn(5, 1)
    assert functional.kd(s, t, temperature=7.0).item() == pytest.approx(((s - t) ** 2).mean().item())


def test_tinybert_fits_a_value_to_be_predicted_to_its_label():
    """As the authors' code on STS-B: the second phase does not read the teacher's value."""
    student, teacher = (build_network(name, 1, vocabulary=30) for name in ("bert_l2_h64", "bert_l4_h64"))
    method = registry.build("tinybert", student, teacher, DataInfo(4, 1, torch.zeros(4)))
    values, labels = torch.randn(4, 1), torch.rand(4)
    outputs = NO_OUTPUTS.with_other_logits(values), NO_OUTPUTS.with_other_logits(torch.randn(4, 1))
    batch = Batch(torch.zeros(4, 3, 5).long(), labels, torch.arange(4), lambda z, y: F.mse_loss(z[:, 0], y))
    losses = method.losses(*outputs, batch, Progress(1, 1))
    assert losses.total().item() == pytest.approx(((values[:, 0] - labels) ** 2).mean().item())


def test_text_losses_by_hand_and_padding_counts_for_nothing():
    torch.manual_seed(0)
    s, t, mask = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    valid = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    expected = np.mean([((s[i, j] - t[i, j]) ** 2).mean().item() for i, j in valid])
    assert functional.hidden_states(s, t, mask).item() == pytest.approx(expected, rel=1e-5)
    q, k = (torch.randn(2, 3, 4) for _ in range(2))
    pairs = [(b, i, j) for b, n in ((0, 3), (1, 2)) for i in range(n) for j in range(n)]

    def score(a: Tensor, b: Tensor, head: int) -> float:
        columns = slice(2 * head, 2 * head + 2)
        return (a[columns] @ b[columns]).item() / 2**0.5

    squares = [(score(s[b, i], t[b, j], h) - score(q[b, i], k[b, j], h)) ** 2 for b, i, j in pairs for h in (0, 1)]
    term = functional.attention_scores((s, t), (q, k), mask, heads=2)
    assert term.item() == pytest.approx(np.mean(squares), rel=1e-5)
    divergences = []
    for b, n in ((0, 3), (1, 2)):
        for i in range(n):
            for h in (0, 1):
                ours, theirs = (np.exp([score(x[b, i], y[b, j], h) for j in range(n)]) for x, y in ((s, t), (q, k)))
                ours, theirs = ours / ours.sum(), theirs / theirs.sum()
                divergences.append((theirs * np.log(theirs / ours)).sum())
    term = functional.attention_relation((s, t), (q, k), mask, heads=2)
    assert term.item() == pytest.approx(np.mean(divergences), rel=1e-4)
    wild = torch.where(mask[:, :, None], s, 1e6)
    for loss in (
        lambda x: functional.hidden_states(x, t, mask),
        lambda x: functional.attention_scores((x, t), (q, k), mask, heads=2),
    ):
        assert torch.equal(loss(s), loss(wild))
    unit = [x / x.norm(dim=2, keepdim=True) for x in (s, t)]
    assert functional.patient_states(s, t).item() == pytest.approx((unit[0] - unit[1]).square().mean().item(), rel=1e-5)
