"""Writes what `predict` computes, batch by batch, so that nothing has to fit in memory.

Shapes: B records of a batch, D dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from safetensors.torch import save
from torch import Tensor

from tracelib.data.datamodule import MBEIRDataModule
from tracelib.models.engine import EngineOutput
from tracelib.types import CandidateBatch, QueryBatch


class PredictionWriter(BasePredictionWriter):
    """Writes the embeddings of queries and candidates, and the rationales of queries.

    A batch becomes `<side>-r<rank>-<batch>.safetensors` with `embeddings` (`[B, D]` float32, not
    normalised) and `indices` (`[B]` int64, places in the split's queries or union pool); queries
    add `thinks`, `think_probability` and `is_forced`, all `[B]`. A JSON Lines file of the same
    name names the records in the same order: `query_id`, `rationale` or `candidate_id`.

    Args:
        output_dir: Folder to write to; made if missing, and must hold no other predictions.
    """

    def __init__(self, output_dir: Path) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = Path(output_dir)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the folder.

        Raises:
            FileExistsError: It holds predictions of an earlier run, which could not be told apart.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "predict" and trainer.is_global_zero:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            if (earlier := next(self.output_dir.glob("*.safetensors"), None)) is not None:
                raise FileExistsError(
                    f"{earlier} is of an earlier prediction: remove {self.output_dir} or choose "
                    "another output_dir for PredictionWriter"
                )

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: EngineOutput | Tensor,
        batch_indices: Sequence[int] | None,
        batch: QueryBatch | CandidateBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch, each file whole or not at all."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, MBEIRDataModule)
        found, places = data.evaluation_sets["test"], batch.indices.tolist()
        rows: list[dict[str, str]]
        if isinstance(prediction, EngineOutput):
            side, decode = "queries", data.processor.tokenizer.decode
            tensors = {
                "embeddings": prediction.embeddings,
                "thinks": prediction.thinks,
                "think_probability": prediction.think_probability,
                "is_forced": prediction.is_forced,
            }
            rows = [
                {"query_id": found.queries[i].query_id, "rationale": str(decode(ids))}
                for i, ids in zip(places, prediction.rationale_token_ids, strict=True)
            ]
        else:
            side, tensors = "candidates", {"embeddings": prediction}
            rows = [{"candidate_id": found.candidates[i].candidate_id} for i in places]
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        tensors["embeddings"] = tensors["embeddings"].float()
        tensors["indices"] = batch.indices.to("cpu", torch.int64)
        stem = self.output_dir / f"{side}-r{trainer.global_rank}-{batch_idx:05d}"
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        # The tensors come last: where they are, the names are too.
        _write_whole(stem.with_suffix(".jsonl"), lines.encode())
        _write_whole(stem.with_suffix(".safetensors"), save(tensors))


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
