"""Attention by products is `sdpa`, whatever the shapes."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tracelib.models.lean_layer import attend_by_products


@pytest.mark.parametrize("num_keys", [1, 2, 6])
@pytest.mark.parametrize(("num_tokens", "num_columns"), [(1, 1), (1, 9), (5, 5), (4, 9)])
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)],
)
def test_sees_what_sdpa_sees(num_keys, num_tokens, num_columns, is_masked, dtype, tolerance):
    torch.manual_seed(0)
    heads = torch.randn(3, num_tokens, 2 * 6, 8, dtype=dtype)
    query = heads[:, :, ::2]  # a view, as projections laid together give
    key, value = torch.randn(2, 3, num_keys, num_columns, 8, dtype=dtype)
    visible = torch.ones(3, 1, num_tokens, num_columns, dtype=torch.bool)
    if is_masked:
        visible = visible.tril(num_columns - num_tokens)
        visible[1, :, :, : num_columns - num_tokens] = False  # padding
    bias = torch.where(visible, 0.0, torch.finfo(torch.float32).min) if is_masked else None
    found = attend_by_products(query, key, value, bias, 0.3)
    expected = scaled_dot_product_attention(
        *(part.double() for part in (query.transpose(1, 2), key, value)),
        attn_mask=visible,
        scale=0.3,
        enable_gqa=True,
    )
    assert found.dtype == dtype
    assert found.shape == (3, num_tokens, 6 * 8)
    error = (found - expected.transpose(1, 2).flatten(2)).abs().max()
    assert error < tolerance * expected.abs().max()
    other = attend_by_products(query, key, value, bias, 0.6)  # the control
    assert num_columns == 1 or (other - expected.transpose(1, 2).flatten(2)).abs().max() > 0.05
