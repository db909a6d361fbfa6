"""Embeds a split under several gates, outside of a trainer: only what their stores lack."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tracelib.callbacks.embedding_session import EmbeddingSession, build_keys
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.models.decoding import EngineOutput
from tracelib.models.gates import AlwaysGate, Gate, NeverGate
from tracelib.module import RetrievalModule
from tracelib.types import CandidateBatch, QueryBatch


@dataclass(frozen=True)
class SplitEmbedder:
    """Embeds a split of a run.

    Args:
        name: The run's name beside the progress.
        module: Its model, on its device.
        data: Its records; the split is set up.
        split: `val` or `test`.
        console: Where progress is shown.
    """

    name: str
    module: RetrievalModule
    data: MBEIRDataModule
    split: str
    console: Console

    def open_sessions(
        self, gates: Sequence[Gate], store_dir: Path, fingerprint: str
    ) -> list[EmbeddingSession]:
        """Return each gate's stored embeddings.

        Args:
            gates: Which queries think.
            store_dir: Folder of all stores.
            fingerprint: Digest of the weights, from before the adapter was merged.
        """
        return [
            EmbeddingSession(
                self.data,
                self.split,
                store_dir,
                build_keys(self.module, self.data, gate, fingerprint, "merged"),
                self.module.encoder.hidden_size,
            )
            for gate in gates
        ]

    def embed_candidates(self, session: EmbeddingSession) -> None:
        """Store the candidates, which do not depend on the gate."""
        batches = session.plan_batches()[1]
        loader = self.data.build_evaluation_loaders(self.split, [], batches)[1]
        with self._show_progress() as progress, torch.no_grad():
            for batch in progress.track(loader, description=f"{self.name}: candidates"):
                assert isinstance(batch, CandidateBatch)
                batch.inputs = batch.inputs.to(self.module.device)
                session.write_candidates(batch, self.module.embed_candidates(batch))

    def embed_queries(
        self,
        gates: Sequence[Gate],
        sessions: Sequence[EmbeddingSession],
        shares_pass: bool = False,
    ) -> dict[str, float | None]:
        """Store each gate's queries; return seconds by gate, None where some were stored before.

        Args:
            gates: Which queries think, under names of their own.
            sessions: The stored embeddings of each.
            shares_pass: Let the pass of `always` serve `never` too, which then has no time.
        """
        wanted = [{tuple(batch) for batch in session.plan_batches()[0]} for session in sessions]
        batches = sorted(set().union(*wanted), key=lambda batch: batch[0])
        loader = self.data.build_evaluation_loaders(self.split, [list(b) for b in batches], [])[0]
        seconds = dict.fromkeys((gate.name for gate in gates), 0.0)
        num_timed = dict.fromkeys(seconds, 0)
        session_of = dict(zip(seconds, sessions, strict=True))
        with self._show_progress() as progress, torch.no_grad():
            for batch in progress.track(loader, description=f"{self.name}: queries"):
                assert isinstance(batch, QueryBatch)
                places = tuple(batch.indices.tolist())
                pending = [g for g, plan in zip(gates, wanted, strict=True) if places in plan]
                for gate, output, duration in _embed_batch(
                    self.module, batch, pending, shares_pass
                ):
                    is_new = session_of[gate.name].write_queries(batch, output)
                    if is_new and duration is not None:
                        seconds[gate.name] += duration
                        num_timed[gate.name] += len(places)
        num_queries = len(sessions[0].found.queries)
        return {n: s if num_timed[n] == num_queries else None for n, s in seconds.items()}

    def _show_progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )


def drop_thoughts(output: EngineOutput) -> EngineOutput:
    """Return what the same queries would have given without thinking, for a read offset of -1."""
    nobody = torch.zeros_like(output.thinks)
    return dataclasses.replace(
        output,
        embeddings=output.direct_embeddings,
        thinks=nobody,
        rationale_token_ids=[[] for _ in output.rationale_token_ids],
        is_forced=nobody,
    )


def _embed_batch(
    module: RetrievalModule, batch: QueryBatch, gates: Sequence[Gate], shares_pass: bool
) -> Iterator[tuple[Gate, EngineOutput, float | None]]:
    """Yield what a batch is under each gate, and the seconds that took, None for a shared pass."""
    kinds = {type(gate): gate for gate in gates}
    shares = shares_pass and {NeverGate, AlwaysGate} <= set(kinds)
    is_shared = shares and module.encoder.read_offset == -1
    for gate in gates:
        if is_shared and isinstance(gate, NeverGate):
            continue
        start = time.perf_counter()
        output = module.embed_queries(batch, gate)
        yield gate, output, time.perf_counter() - start
        if is_shared and isinstance(gate, AlwaysGate):
            yield kinds[NeverGate], drop_thoughts(output), None
