"""ONNX: written by torch's dynamo exporter, run by ONNX Runtime."""

import io
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from export.onnx_session import OnnxSession, check_provider, check_runnable
from export.program import quiet
from export.target import FLOATS, INT8, MAX_BATCH, ExportOptions, Tolerance, require
from zoo.errors import MachineError, ZooError, first_line

if TYPE_CHECKING:
    import onnx

OPSET = 20  # TensorRT 10.4 and ONNX Runtime 1.20, the last for compute capability 7.0, read it
OPSETS = range(18, 24)  # that torch's exporter writes
NEWEST_WITHOUT_ATTENTION = 22  # as one operator
IR_VERSION, NEWEST_IR_VERSION = 10, 11  # for opsets up to 22, as old readers want; for 23
INPUT, OUTPUT = "images", "logits"
SCOPES = "pkg.torch.onnx.name_scopes"  # a note of torch's exporter: the modules that a node lies in


class OnnxTarget:
    """One .onnx file: free batch axis, batch norm folded, weights inside.

    fp16 is written into the graph, with norms, softmax and reductions in fp32; input and output
    stay fp32. int8 is explicit quantisation with unsigned activations, which ONNX Runtime fuses to
    integer kernels on CPUs.
    """

    name = "onnx"
    suffix = ".onnx"
    tolerance: Mapping[str, Tolerance] = {
        "fp32": FLOATS["fp32"],
        "fp16": FLOATS["fp16"],
        "int8": INT8,
    }

    def __init__(self, *, provider: str | None = None) -> None:
        self.provider = provider  # as in --provider; None: the usual one of the device

    def export(
        self,
        model: nn.Module,
        example: Tensor,
        path: Path,
        *,
        precision: str,
        metadata: Mapping[str, str],
        options: ExportOptions,
    ) -> Mapping[str, Any]:
        """Write and check the file; return its opset, and for int8 how it was quantised.

        Raises:
            MissingPackageError: onnx, onnxscript or ONNX Runtime is not installed.
            MachineError: the model cannot be expressed in ONNX, loses too much in int8, or the
                provider that is to prove it does not run it.
            ZooError: torch does not write this opset.
        """
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, extra="cpu", needed_by="--to onnx")
        check_runnable(path, check_provider(self.provider, options.device), precision)
        proto = onnx_graph(model, example, metadata=metadata, opset=options.opset)
        facts: dict[str, Any] = {"opset": options.opset or OPSET}
        if precision == "fp16":
            from export.typed import typed_fp16

            proto = typed_fp16(proto)
            _check(proto)
        elif precision == "int8":
            from export.quantize import CPU, quantise

            assert options.calibration is not None
            proto, facts["int8"] = quantise(proto, CPU, options.calibration, _opened)
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return facts

    def open(self, path: Path, *, device: str) -> OnnxSession:
        """Run a file with ONNX Runtime."""
        return OnnxSession(path, device=device, provider=self.provider)

    def pending(self, path: Path, *, device: str) -> str | None:
        """Nothing: a machine that writes the format runs it."""
        return None

    def graph(self, path: Path) -> "onnx.ModelProto":
        """The graph in a file, for whoever wants to know where it errs."""
        from export.onnx_file import load_onnx

        return load_onnx(path)

    def versions(self) -> dict[str, str]:
        """Of the exporter, the format and the runtime."""
        import onnxruntime  # its distribution has more than one name

        found = {name: version(name) for name in ("torch", "onnx", "onnxscript")}
        return found | {"onnxruntime": onnxruntime.__version__}


def onnx_graph(
    model: nn.Module, example: Tensor, *, metadata: Mapping[str, str], opset: int | None = None
) -> "onnx.ModelProto":
    """The checked fp32 graph of a model, with `metadata` in it.

    Products with weights bear the names of their modules, as those that are kept in float are told.
    What the exporter notes about each node, source lines and folders of this machine among it, is
    left out: it is private, makes files differ between machines, and costs 80 kB.

    Raises:
        MissingPackageError: onnx or onnxscript is not installed.
        MachineError: the model cannot be expressed in ONNX.
        ZooError: torch does not write this opset.
    """
    for package in ("onnx", "onnxscript"):
        require(package, extra="cpu", needed_by="writing ONNX")
    import onnx

    proto = traced(model, example, opset=opset, output=metadata.get("output", OUTPUT))
    _name_products(proto)
    _drop_notes(proto)
    proto.ir_version = IR_VERSION if (opset or OPSET) < OPSETS[-1] else NEWEST_IR_VERSION
    proto.producer_name, proto.producer_version = "cifar-zoo", metadata["cifar_zoo_version"]
    onnx.helper.set_model_props(proto, dict(metadata))
    _check(proto)
    return proto


def refuse_one_attention(opset: int | None, *, target: str) -> None:
    """Refuse an opset in which attention is one operator, for a target that gets it wrong.

    TensorRT-RTX 1.7 fails on it in fp32; OpenVINO 2026.4 gives wrong logits where there are as
    many heads as tokens.
    """
    newest = NEWEST_WITHOUT_ATTENTION
    if opset is not None and opset > newest:
        raise ZooError(f"--to {target} takes graphs up to opset {newest}, got --opset {opset}")


def check_opset(opset: int | None) -> None:
    """Refuse an opset that torch does not write."""
    if opset is not None and opset not in OPSETS:
        raise ZooError(
            f"--opset {opset}: torch writes opsets {OPSETS[0]} to {OPSETS[-1]}; "
            f"{OPSET} is what old readers know too"
        )


def traced(
    model: nn.Module, example: Tensor, *, opset: int | None = None, output: str = OUTPUT
) -> "onnx.ModelProto":
    """What torch's exporter makes of a model, with its notes of which module a node came from.

    Raises:
        MachineError: the model cannot be expressed in ONNX.
        ZooError: torch does not write this opset.
    """
    check_opset(opset)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    try:
        # The exporter's hints are for its developers: a model that it gets wrong fails parity.
        with quiet(), redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=opset or OPSET,
                dynamic_shapes=({0: batch},),
                input_names=[INPUT],
                output_names=[output],
                external_data=False,
                optimize=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = first_line(error.__cause__ or error)
        raise MachineError(f"torch cannot write this model as ONNX: {reason}") from None
    assert program is not None  # None only for dynamo=False
    return program.model_proto


def modules_of(node: "onnx.NodeProto") -> list[str]:
    """Paths of the modules that a node of `traced` lies in, the outermost first.

    The model itself has no path and is left out.
    """
    for note in node.metadata_props:
        if note.key == SCOPES:
            scopes = [part.strip(" '\"") for part in note.value.strip("[]").split(",")]
            return scopes[1:-1]  # the model itself, modules, the operator
    return []


def _opened(proto: "onnx.ModelProto") -> OnnxSession:
    """Run a graph that is no file yet."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        return OnnxSession(path)


def _check(proto: "onnx.ModelProto") -> None:
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as reason:
        raise MachineError(f"the ONNX checker refused the model: {first_line(reason)}") from None


def _name_products(proto: "onnx.ModelProto") -> None:
    """Give products with weights the names of their modules; the weights, transposed, have none."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    taken = {node.name for node in proto.graph.node}
    for node in proto.graph.node:
        if node.op_type == "MatMul" and constants.intersection(node.input):
            name = next(reversed(modules_of(node)), node.name)
            if name not in taken:  # of a module that is called twice the first call has it
                node.name = name
                taken.add(name)


def _drop_notes(proto: "onnx.ModelProto") -> None:
    del proto.metadata_props[:]
    for graph in (proto.graph, *proto.functions):
        del graph.metadata_props[:]
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for value in graph.value_info:
            del value.metadata_props[:]
    for item in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del item.metadata_props[:]
