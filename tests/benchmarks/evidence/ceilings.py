"""Measure what this device can do at most, and print it as one line of JSON."""

import json
import statistics
import sys
import time

import torch
from train_bench.roofline import copy_bandwidths, synchronize

SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices
PRODUCTS = 10
DTYPES = {
    "cpu": {"fp32": torch.float32},
    "cuda": {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32},
}


def product_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of products of random matrices; the median of some."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (SIDE[device], SIDE[device])
    left, right = (
        torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(2)
    )
    seconds = []
    for _ in range(3 + PRODUCTS):
        synchronize(device)
        start = time.perf_counter()
        left @ right
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * SIDE[device] ** 3 / statistics.median(seconds[3:])


def main(device: str) -> None:
    """Print the facts."""
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    facts = {
        "copy_gb_per_s": [round(one / 1e9, 1) for one in copy_bandwidths(device)],
        "product_side": SIDE[device],
        "product_tflops": {
            name: round(product_rate(device, dtype) / 1e12, 2)
            for name, dtype in DTYPES[device].items()
        },
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1])
