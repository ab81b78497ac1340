"""Windows of a picture."""


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along a side of `length` pixels; the last window ends at the border."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [min(i * stride, max(length - window, 0)) for i in range(count)]


__all__ = ["window_starts"]
