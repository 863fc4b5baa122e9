"""The usage examples of both source documents, corrected where they do not run, and one training step of each model."""

from __future__ import annotations

import pytest
import torch

import cohomcli.nn
import cohomcli.training

# Every class the documents name; detection and pruning of circuits belong to another part.
NAMED = {
    "nn": (
        "CohomologicalTransformer",
        "ExactSequenceAttention",
        "ExactSequenceCell",
        "ExactSequencePreservingTransition",
        "Local2DAttention",
        "LocalAttention",
        "LocalGlobalBlock",
        "NonLinearTransformer",
        "NonLinearTransformerBlock",
        "Rotary2DEmbedding",
        "SVDTracker",
        "SequenceTracker",
        "SpectralSequenceLayer",
        "ToyCohomologicalModel",
    ),
    "training": (
        "CohomologicalTrainingObjective",
        "ExactSequenceLoss",
        "ExactSequenceOptimizer",
        "SpectralLearningRateScheduler",
        "SpectralSequenceLoss",
    ),
}


@pytest.mark.parametrize(("package", "name"), [(p, n) for p, names in NAMED.items() for n in names])
def test_every_named_class_exists(package: str, name: str) -> None:
    assert isinstance(getattr(getattr(cohomcli, package), name), type)


def test_basic_usage_of_the_cohomological_document() -> None:
    # Section 4.1, with two corrections: the classes' home, and a log that is printed without synchronising the device.
    from cohomcli.nn import ToyCohomologicalModel
    from cohomcli.training import CohomologicalTrainingObjective, ExactSequenceOptimizer

    torch.manual_seed(0)
    model = ToyCohomologicalModel(dim=32, num_classes=5)
    objective = CohomologicalTrainingObjective(exact_loss_weight=0.01, spectral_loss_weight=0.01)
    optimizer = ExactSequenceOptimizer(model.parameters(), lr=1e-3)

    B, N, D = 8, 10, 32
    x = torch.randn(B, N, D)
    y = torch.randint(0, 5, size=(B,))

    totals = []
    for step in range(5):
        optimizer.zero_grad()
        outputs = model(x)
        base_loss = torch.nn.functional.cross_entropy(outputs["logits"], y)
        total_loss, logs = objective(outputs, base_loss)
        total_loss.backward()
        optimizer.step()
        totals.append(f"Step {step}, final_total_loss={logs['final_total_loss']:.4f}")
    assert len(set(totals)) == 5
    assert float(logs["final_total_loss"]) < float(totals[0].rpartition("=")[2])


def test_usage_of_the_nonlinear_document() -> None:
    # With two corrections: a batch dimension, for two dimensions are texts, and `.logits` of the model's output.
    from cohomcli.nn import NonLinearTransformer

    x = torch.randint(0, 100, (1, 10, 10))

    model = NonLinearTransformer(vocab_size=100, embed_size=128, matrix_dim=10, heads=8, window_size=3, iterations=2)

    out = model(x)
    assert out.logits.shape == (1, 10, 10, 100)


def test_the_document_of_the_nonlinear_code_trains() -> None:
    from cohomcli.nn import NonLinearTransformer

    torch.manual_seed(0)
    model = NonLinearTransformer(vocab_size=11, dim=32, depth=3, matrix_dim=6, heads=4, window_size=1)
    grid = torch.arange(36).view(1, 6, 6) % 10
    hidden = torch.rand(1, 6, 6) < 0.5
    labels = grid.masked_fill(~hidden, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(grid.masked_fill(hidden, 10), labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_the_transformer_trains_with_all_its_parts() -> None:
    from cohomcli.nn import CohomologicalTransformer
    from cohomcli.training import CohomologicalTrainingObjective, ExactSequenceOptimizer, SpectralLearningRateScheduler

    torch.manual_seed(0)
    model = CohomologicalTransformer(
        vocab_size=20, dim=32, sequence_dim=8, num_h0_layers=1, num_h1_layers=1, h0_heads=4, exact="soft"
    )
    blocks = [list(block.parameters()) for block in model.model.layers]
    inside = {id(p) for block in blocks for p in block}
    groups = [{"params": block, "level": level} for level, block in enumerate(blocks)]
    groups.append({"params": [p for p in model.parameters() if id(p) not in inside]})
    optimizer = ExactSequenceOptimizer(groups, lr=3e-3)
    optimizer.watch(model.model.layers[0].attn.proj, model.model.layers[0].mlp[0])
    scheduler = SpectralLearningRateScheduler(3e-3, 3, warmup_steps=5, optimizer=optimizer)
    objective = CohomologicalTrainingObjective(0.1, 0.1)
    ids = torch.arange(60).view(3, 20) % 7
    base = []
    for step in range(40):
        output = model(ids, labels=ids, return_structure=True)
        optimizer.zero_grad()
        total, logs = objective(output, output.loss)
        total.backward()
        optimizer.step()
        scheduler.step(output.pages, step + 1)
        base.append(float(logs["base_loss"]))
    assert base[-1] < 0.5 * base[0]
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert unused == []
