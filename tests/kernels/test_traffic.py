"""Bytes that an interpreted kernel asks for."""

import pytest
import torch
import triton
import triton.language as tl
from attnlib.kernels.traffic import traffic_of


@triton.jit
def kernel_that_adds(left_ptr, right_ptr, sum_ptr, count, size: tl.constexpr):
    places = tl.program_id(0) * size + tl.arange(0, size)
    left = tl.load(left_ptr + places, mask=places < count)
    right = tl.load(right_ptr + places, mask=places < count)
    tl.store(sum_ptr + places, left + right, mask=places < count)


@triton.jit
def kernel_without_masks(source_ptr, target_ptr, size: tl.constexpr):
    places = tl.arange(0, size)
    tl.store(target_ptr + places, tl.load(source_ptr + places))


def launch(count, dtype, size=16):
    left, right, total = (torch.ones(count, dtype=dtype) for _ in range(3))
    kernel_that_adds[(triton.cdiv(count, size),)](left, right, total, count, size=size)
    assert (total == 2).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("count", [1, 16, 37])
def test_masked_numbers_do_not_count(count, dtype):
    traffic = traffic_of(lambda: launch(count, dtype))
    assert traffic.loaded == 2 * count * dtype.itemsize
    assert traffic.stored == count * dtype.itemsize


def test_loads_without_a_mask_count_whole():
    source = torch.ones(32, dtype=torch.float64)
    traffic = traffic_of(lambda: kernel_without_masks[(1,)](source, source.clone(), size=32))
    assert traffic == (256, 256)


def test_counting_ends_with_the_computation():
    first = traffic_of(lambda: launch(20, torch.float64))
    launch(20, torch.float64)
    assert traffic_of(lambda: launch(20, torch.float64)) == first


def test_nothing_to_count_is_an_error():
    with pytest.raises(RuntimeError, match="no load and no store was seen"):
        traffic_of(lambda: torch.ones(3) + 1)
