"""Products in two parts of bfloat16: as right as they say, and made in parts where no kernel can be built."""

import torch

from knowedit.models.arithmetic import split_product


def test_two_parts_are_a_number_to_17_bits():
    x = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) * 10 ** torch.arange(-3.0, 4)[:, None]
    parts = split_product._split(x)
    assert parts.dtype == torch.bfloat16 and len(parts) == split_product.PARTS
    assert ((parts.double().sum(0) - x) / x).abs().max() <= 2**-17


def test_products_are_made_in_parts_where_no_kernel_can_be_built(caplog):
    split_product._by_rows.cache_clear()
    with caplog.at_level("INFO"):
        chosen = split_product._by_rows(torch.device("cpu"))  # on which Triton runs nothing, where it is installed
    split_product._by_rows.cache_clear()
    assert chosen is split_product._in_parts and "no kernel can be built" in caplog.text


def test_products_with_float32_are_those_of_torch():
    x, matrix = torch.randn(3, 4), torch.randn(4, 5)
    assert torch.equal(split_product.product(x, matrix), x @ matrix)
