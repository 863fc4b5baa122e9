"""What the source document calls circuit detection and pruning, corrected so that both mean what they say."""

from __future__ import annotations

import copy

import inductionmodel
import pytest
import torch

from cohomcli.circuits import CriticalSequenceDetector
from cohomcli.circuits.batches import batches_of, plain
from cohomcli.data.pairs import encode_pairs
from cohomcli.data.tasks import task_pairs
from cohomcli.errors import UsageError
from cohomcli.pruning import CircuitPreservationPruner


def test_the_documents_loop_detects_and_prunes() -> None:
    # Sections 4.1 and 6. Corrections: the detector is given the model and pairs of prompts instead of one activation,
    # whose norm says nothing; the pruner is told what to preserve, and calibration batches to prune on.
    model = inductionmodel.model()
    tokenizer = inductionmodel.tokenizer()
    pairs = encode_pairs(tokenizer, task_pairs("induction", tokenizer, 8, 0))
    detector = CriticalSequenceDetector(threshold=0.2)
    pruner = CircuitPreservationPruner(model, prune_ratio=0.5, method="magnitude")
    ids = torch.randint(2, inductionmodel.SIZE, (2, 4, 20), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids]

    is_critical, found = detector(model, pairs)
    assert is_critical
    assert found.critical == (inductionmodel.PREVIOUS, inductionmodel.INDUCTION)
    assert found.critical_count == detector.detected_count == 2
    if is_critical:
        result = pruner.prune(found.critical, batches)
    assert result.sparsity > 0.5  # the hand-written model has many zeros of its own
    is_critical, found = detector(model, pairs)
    assert (is_critical, found.critical_count) == (True, 4)
    assert set(found.critical) == {inductionmodel.PREVIOUS, inductionmodel.INDUCTION}


def test_what_is_preserved_is_what_works() -> None:
    dense = inductionmodel.model()
    tokenizer = inductionmodel.tokenizer()
    batches = batches_of(encode_pairs(tokenizer, task_pairs("induction", tokenizer, 8, 1)), torch.device("cpu"))
    ids = torch.randint(2, inductionmodel.SIZE, (2, 4, 20), generator=torch.Generator().manual_seed(0))
    calibration = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids]
    before = float(plain(dense, batches, "clean", "logit").mean())

    def after(circuit: tuple[str, ...]) -> float:
        model = copy.deepcopy(dense)
        CircuitPreservationPruner(model, 0.5, "random").prune(circuit, calibration)
        return float(plain(model, batches, "clean", "logit").mean()) / before

    assert after((inductionmodel.PREVIOUS, inductionmodel.INDUCTION)) > 0.95
    assert after(()) < 0.8


def test_a_low_threshold_finds_more_and_a_wrong_one_is_refused() -> None:
    model = inductionmodel.model()
    tokenizer = inductionmodel.tokenizer()
    pairs = encode_pairs(tokenizer, task_pairs("induction", tokenizer, 8, 0))
    is_critical, found = CriticalSequenceDetector(threshold=1e9)(model, pairs)
    assert (is_critical, found.critical) == (False, ())
    assert len(CriticalSequenceDetector(threshold=1e-9, level="edges")(model, pairs)[1].critical) > 10
    with pytest.raises(UsageError, match="positive"):
        CriticalSequenceDetector(threshold=0)
    with pytest.raises(UsageError, match="unknown level"):
        CriticalSequenceDetector(level="layers")
