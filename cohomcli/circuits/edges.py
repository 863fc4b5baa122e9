"""Edges: what one part of the model writes and another reads, through the residual stream.

Sources are the input, every head and every MLP; readers are the queries of every head, the keys and values of every
group of heads, every MLP and the logits. A reader is given another residual stream by adding, before its norm, the
difference that the replaced sources make; the map behind the norm is applied again for that reader alone, so that
grouped keys and values stay grouped and the model stays what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cohomcli.circuits.batches import Metric, PairBatch, Recorded, Side, last_logits, measure
from cohomcli.circuits.hooks import all_of, embedded, interpolated, on_input, on_output
from cohomcli.errors import InputRefused
from cohomcli.models.maps import weight_matrix
from cohomcli.models.units import ARROW, INPUT, LOGITS, Unit
from cohomcli.models.wiring import WiredBlock

_TOLERANCE = 1e-3  # relative; float32 noise of summing a residual stream is below 1e-5


@dataclass(frozen=True)
class Reader:
    """One reader: `kind` q, k, v, mlp or logits; `rows` (r,) of its map `path` (none for the last two)."""

    name: str
    layer: int
    kind: Literal["q", "k", "v", "mlp", "logits"]
    n_sources: int  # sources that stand before it, in order
    path: str = ""
    rows: Tensor | None = None


class EdgeGraph:
    """The model as sources and readers; a component is an edge `source -> reader`."""

    def __init__(
        self, model: nn.Module, blocks: Sequence[WiredBlock], final_norm: nn.Module | None, metric: Metric
    ) -> None:
        if final_norm is None:
            raise InputRefused(f"{type(model).__name__} has no final norm, so edges cannot be told apart", "use heads")
        self.model, self.blocks, self.metric, self.final_norm = model, tuple(blocks), metric, final_norm
        self.parallel = _is_parallel(model, self.blocks[0])
        self.sources = (INPUT, *(unit.name for block in blocks for unit in _units(block)))
        self.readers = tuple(self._readers())
        self.edges = [(u, v) for v, reader in enumerate(self.readers) for u in range(reader.n_sources)]
        self.components = tuple(f"{self.sources[u]}{ARROW}{self.readers[v].name}" for u, v in self.edges)
        self._u, self._v = (torch.tensor([edge[at] for edge in self.edges]) for at in (0, 1))

    def _readers(self) -> Iterator[Reader]:
        known = 1
        for block in self.blocks:
            layer = block.layer
            for index in range(block.n_heads):
                yield Reader(f"layer_{layer}.head_{index}.q", layer, "q", known, *block.read_rows("q", index))
            owner = "head" if block.n_groups == block.n_heads else "group"
            for kind in ("k", "v"):
                for index in range(block.n_groups):
                    name = f"layer_{layer}.{owner}_{index}.{kind}"
                    yield Reader(name, layer, kind, known, *block.read_rows(kind, index))  # type: ignore[arg-type]
            heads = block.n_heads
            yield Reader(f"layer_{layer}.mlp", layer, "mlp", known if self.parallel else known + heads)
            known += heads + 1
        yield Reader(LOGITS, len(self.blocks), "logits", known)

    # ---- recording ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def record(self, batch: PairBatch) -> Recorded:
        """Run both sides and keep what every source writes.

        Raises:
            InputRefused: the residual stream is not the sum of what its sources write.
        """
        sides = []
        for side in (batch.clean, batch.corrupt):
            stream = _Stream(self, side.shape)
            with stream.attached():
                last_logits(self.model, side)
            sides.append(stream)
        self._check(sides[0], sides[1])
        return Recorded(batch, (sides[0].written(),), (sides[1].written(),))

    def _check(self, one: _Stream, two: _Stream) -> None:
        """The difference of the two streams at every norm must be that of the sources before it (biases cancel)."""
        difference = one.written() - two.written()
        for reader in self.readers:
            if reader.kind in ("k", "v"):
                continue
            place = (reader.layer, "attn" if reader.kind == "q" else reader.kind)
            seen = one.states[place] - two.states[place]
            summed = difference[: reader.n_sources].sum(0)
            if float((seen - summed).norm()) > _TOLERANCE * max(float(seen.norm()), float(summed.norm()), 1e-6):
                raise InputRefused(
                    f"the residual stream of {type(self.model).__name__} is not the plain sum of what its heads and "
                    "MLPs write, so edges have no meaning there",
                    "use --level heads or neurons",
                )

    # ---- exchanging -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def exchanged(self, recorded: Recorded, base: Side, values: Sequence[Tensor], masks: Tensor) -> Tensor:
        """(P, B): the metric when the model reads side `base` and every reader sees the sources of its edges in
        `masks` (P, n) as `values` has them.
        """
        ids = recorded.batch.side(base)
        return torch.cat([self._one(recorded.batch, ids, values[0], mask) for mask in masks])

    def _one(self, batch: PairBatch, ids: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        table = torch.zeros(len(self.readers), len(self.sources), device=value.device, dtype=value.dtype)
        table[self._v[mask.cpu()], self._u[mask.cpu()]] = 1
        stream = _Stream(self, ids.shape, replace=(value, table))
        with stream.attached():
            logits = last_logits(self.model, ids)
        return measure(logits, batch, self.metric)

    # ---- attribution ----------------------------------------------------------------------------------------------

    def attribution(self, recorded: Recorded, base: Side, steps: int) -> Tensor:
        """(B, n): first-order effect of every edge, (c' - c) . dm/d(what the reader sees before its norm).

        Edge attribution patching (Syed, Rager, Conmy 2023, arXiv:2310.10348); with `steps` > 0 integrated as in
        `ChannelGraph.attribution`.
        """
        other: Side = "corrupt" if base == "clean" else "clean"
        ids = recorded.batch.side(base)
        start, end = embedded(self.model, ids), embedded(self.model, recorded.batch.side(other))
        shares = [(at + 0.5) / steps for at in range(steps)] or [0.0]
        gradient: Any = 0.0
        for share in shares:
            with interpolated(self.model, start, end, share):
                gradient = gradient + self._gradients(recorded.batch, ids) / len(shares)
        change = recorded.side(other)[0] - recorded.side(base)[0]
        scores = torch.einsum("ubtd,vbtd->buv", change, gradient)
        return scores[:, self._u.to(scores.device), self._v.to(scores.device)]

    def _gradients(self, batch: PairBatch, ids: Tensor) -> Tensor:
        """dm/d(residual stream) as each reader alone sees it, (V, B, T, d)."""
        stream = _Stream(self, ids.shape, shift=True)
        with torch.enable_grad(), stream.attached():
            total = measure(last_logits(self.model, ids), batch, self.metric).sum()
            names = list(stream.leaves)
            found = dict(zip(names, torch.autograd.grad(total, [stream.leaves[name] for name in names]), strict=True))
        return torch.stack([self._before_norm(stream, reader, found) for reader in self.readers])

    def _before_norm(self, stream: _Stream, reader: Reader, found: dict[tuple[int, str], Tensor]) -> Tensor:
        """Pull a gradient behind the reader's norm back through its rows and the norm."""
        shape = (*stream.shape, -1)
        if reader.kind == "logits":
            return found[reader.layer, "logits"].reshape(shape)
        block = self.blocks[reader.layer]
        if reader.kind == "mlp":
            gradient, norm, place = found[reader.layer, "mlp"].reshape(shape), block.wiring.mlp_norm, "mlp"
        else:
            assert reader.rows is not None  # readers of attention have rows
            rows = reader.rows.to(stream.states[reader.layer, "attn"].device)
            behind = found[reader.layer, reader.path].reshape(shape)[..., rows]
            gradient = behind @ weight_matrix(block.module(reader.path))[rows]
            norm, place = block.wiring.attn_norm, "attn"
        with torch.enable_grad():
            x = stream.states[reader.layer, place].detach().requires_grad_()
            y = block.module(norm).forward(x)
            return torch.autograd.grad(y, x, gradient.reshape(y.shape))[0]


class _Stream:
    """One forward pass: the residual stream at every norm, what sources write, and what readers are given instead.

    `replace` is (values (U, B, T, d), table (readers, U)): where the table has 1 the reader sees the value. `shift`
    puts zero leaves behind the norms, whose gradients are wanted.
    """

    def __init__(
        self,
        graph: EdgeGraph,
        shape: Sequence[int],
        replace: tuple[Tensor, Tensor] | None = None,
        shift: bool = False,
    ) -> None:
        self.graph, self.shape, self.replace, self.shift = graph, tuple(shape), replace, shift
        self.states: dict[tuple[int, str], Tensor] = {}
        self.parts: list[Tensor] = []
        self.leaves: dict[tuple[int, str], Tensor] = {}

    def written(self) -> Tensor:
        """(U, B, T, d): the sources so far, in order."""
        return torch.cat(self.parts)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, the hooks are on."""
        hooks = [on_input(self.graph.final_norm, self._final)]
        for block in self.graph.blocks:
            wiring = block.wiring
            hooks.append(on_input(block.module(wiring.attn_norm), self._state(block, "attn")))
            if wiring.mlp_norm != wiring.attn_norm:
                hooks.append(on_input(block.module(wiring.mlp_norm), self._state(block, "mlp")))
            hooks += [on_output(block.module(path), self._read(block, path)) for path in dict.fromkeys(wiring.reads)]
            hooks.append(on_input(block.attn_out, self._heads(block)))
            hooks.append(on_input(block.module(wiring.mlp), self._mlp(block)))
            hooks.append(on_input(block.mlp_out, self._neurons(block)))
        with all_of(hooks):
            yield

    def _state(self, block: WiredBlock, place: str) -> Any:
        def change(x: Tensor) -> None:
            x = x.reshape(*self.shape, -1)
            self.states[block.layer, place] = x.detach()
            if block.wiring.mlp_norm == block.wiring.attn_norm:
                self.states[block.layer, "mlp"] = x.detach()
            if not self.parts:
                self.parts.append(x.detach()[None])

        return change

    def _heads(self, block: WiredBlock) -> Any:
        def change(z: Tensor) -> None:
            heads = z.detach().reshape(*self.shape, block.n_heads, block.head_dim)
            weight = weight_matrix(block.attn_out).reshape(-1, block.n_heads, block.head_dim)
            self.parts.append(torch.einsum("bthc,dhc->hbtd", heads, weight))

        return change

    def _neurons(self, block: WiredBlock) -> Any:
        def change(z: Tensor) -> None:
            self.parts.append((z.detach() @ weight_matrix(block.mlp_out).T).reshape(1, *self.shape, -1))

        return change

    # ---- what readers are given -----------------------------------------------------------------------------------

    def _seen(
        self, layer: int, kind: Sequence[str], state: Tensor, path: str = ""
    ) -> tuple[list[Reader], Tensor] | None:
        """The readers of this kind with a replaced source, and the streams (V, B, T, d) they are to see."""
        if self.replace is None:
            return None
        values, table = self.replace
        chosen = [
            (at, reader)
            for at, reader in enumerate(self.graph.readers)
            if reader.layer == layer and reader.kind in kind and reader.path == path and bool(table[at].any())
        ]
        if not chosen:
            return None
        known = chosen[0][1].n_sources
        change = values[:known] - self.written()[:known]
        rows = table[[at for at, _ in chosen], :known]
        return [reader for _, reader in chosen], state + torch.einsum("vu,ubtd->vbtd", rows, change)

    def _read(self, block: WiredBlock, path: str) -> Any:
        def change(output: Tensor) -> Tensor | None:
            if self.shift:
                return self._shifted(block.layer, path, output)
            found = self._seen(block.layer, "qkv", self.states[block.layer, "attn"], path)
            if found is None:
                return None
            readers, states = found
            module = block.module(path)
            normed = block.module(block.wiring.attn_norm).forward(states)
            result = output.reshape(*self.shape, -1).clone()
            for reader, x in zip(readers, normed, strict=True):
                assert reader.rows is not None  # readers of attention have rows
                bias = 0 if module.bias is None else module.bias[reader.rows]
                result[..., reader.rows] = x @ weight_matrix(module)[reader.rows].T + bias
            return result.reshape(output.shape)

        return change

    def _mlp(self, block: WiredBlock) -> Any:
        def change(x: Tensor) -> Tensor | None:
            if self.shift:
                return self._shifted(block.layer, "mlp", x)
            found = self._seen(block.layer, ("mlp",), self.states[block.layer, "mlp"])
            if found is None:
                return None
            normed: Tensor = block.module(block.wiring.mlp_norm).forward(found[1][0])
            return normed.reshape(x.shape)

        return change

    def _final(self, x: Tensor) -> Tensor | None:
        layer = len(self.graph.blocks)
        self.states[layer, "logits"] = x.detach()
        if self.shift:
            return self._shifted(layer, "logits", x)
        found = self._seen(layer, ("logits",), x)
        return None if found is None else found[1][0]

    def _shifted(self, layer: int, name: str, x: Tensor) -> Tensor:
        leaf = torch.zeros_like(x, requires_grad=True)
        self.leaves[layer, name] = leaf
        return x + leaf


def _units(block: WiredBlock) -> list[Unit]:
    return [*(Unit(block.layer, "head", at) for at in range(block.n_heads)), Unit(block.layer, "mlp")]


def _is_parallel(model: Any, block: WiredBlock) -> bool:
    """Whether attention and MLP of a block read the same stream."""
    told = getattr(model.config.get_text_config(), "use_parallel_residual", None)
    return bool(told) if told is not None else block.wiring.mlp_norm == block.wiring.attn_norm
