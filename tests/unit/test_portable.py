"""What is done on the CPU for GPUs that cannot: the same numbers as torch's own."""
import pytest
import torch
from inst_pack.inst_core.portable import average_pool, shrink


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(5, 7), (30, 40), (16, 9)])
def test_shrink_is_torchs_antialiased_resize(mode, size):
    x = torch.rand(2, 3, 20, 31, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(x, size, mode=mode, antialias=True, align_corners=False)
    torch.testing.assert_close(shrink(x, size, mode), expected, rtol=0, atol=0)


def test_average_pool_means_the_areas():
    x = torch.arange(20.0).view(1, 1, 4, 5)
    areas = [[x[0, 0, rows, columns].mean() for columns in (slice(0, 2), slice(1, 4), slice(3, 5))]
             for rows in (slice(0, 2), slice(1, 3), slice(2, 4))]
    torch.testing.assert_close(average_pool(x, (3, 3))[0, 0], torch.tensor(areas))
