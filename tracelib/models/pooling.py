"""Where an embedding is read: the state at, or just before, the embedding token.

Shapes: B sequences, T tokens.
"""

from __future__ import annotations

from torch import Tensor


def find_emb_position(input_ids: Tensor, emb_token_id: int) -> Tensor:
    """Return the position of each row's first embedding token, `[B]`.

    Args:
        input_ids: `[B, T]` token ids.
        emb_token_id: Id of the embedding token.

    Raises:
        ValueError: A row has no embedding token; it never falls back to position 0.

    >>> import torch
    >>> find_emb_position(torch.tensor([[5, 9, 0], [5, 6, 9]]), 9)
    tensor([1, 2])
    """
    is_emb = input_ids == emb_token_id
    missing = (~is_emb.any(-1)).nonzero().flatten().tolist()
    if missing:
        raise ValueError(
            f"rows {missing} of {len(input_ids)} hold no embedding token (id {emb_token_id})"
        )
    return is_emb.int().argmax(-1)


def find_read_position(emb_position: Tensor, read_offset: int) -> Tensor:
    """Return the position of the state that is the embedding, `[B]`.

    Args:
        emb_position: `[B]` positions of the embedding token.
        read_offset: -1 for the state that predicts the token (TRACE, section 3.1), 0 for the
            token's own (RGE).

    Raises:
        ValueError: `read_offset` is neither -1 nor 0, or an embedding token stands first with
            nothing before it.
    """
    if read_offset not in (-1, 0):
        raise ValueError(
            f"read_offset is {read_offset}, allowed are -1 and 0 "
            "(model.encoder.init_args.read_offset)"
        )
    position = emb_position + read_offset
    if (position < 0).any():
        raise ValueError("an embedding token at position 0 has no state before it")
    return position
