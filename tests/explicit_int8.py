"""ONNX graphs with explicit quantisation, calibrated on random images."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from model_checks import random_images
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class RandomImages(CalibrationDataReader):
    def __init__(self) -> None:
        self.batches: Iterator[dict[str, np.ndarray]] = iter(
            [{"images": random_images(32).numpy()}]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def quantised(graph: onnx.ModelProto, folder: Path, **options: bool) -> onnx.ModelProto:
    source, plain, target = (folder / f"{name}.onnx" for name in ("source", "plain", "int8"))
    onnx.save(graph, source)
    quant_pre_process(str(source), str(plain))
    quantize_static(
        str(plain),
        str(target),
        RandomImages(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        extra_options=options,
    )
    return onnx.load(target)


# What TensorRT reads: no offsets, and biases that stay float.
FOR_TENSORRT = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
