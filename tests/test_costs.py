import json
from pathlib import Path

import pytest
from bench_helpers import onnx_file

from profiling.cli import main


def test_costs_of_models(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["resnet_20,segnext_mscan_tiny", "--cost", "--batch", "1,256"])

    out = capsys.readouterr().out.splitlines()
    assert code == 0
    assert out[0].split("  ")[0] == "model"
    assert out[1].split() == [
        *("resnet_20", "eager", "fp32", "278,324", "1,589", "1.07", "40.82", "81.64", "0.4014"),
        *("0.199", "29.6", "51.0", "49.3"),
    ]
    assert out[3].startswith("MACs and FLOPs: convolutions and matrix products of one image;")


def test_costs_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = onnx_file(tmp_path / "net.onnx", batch="batch")

    code = main([str(file), "resnet_20", "--cost", "--batch", "2", "--json"])

    foreign, ours = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (foreign["params"], foreign["macs"], foreign["size_bytes"]) == (
        12,
        12,
        file.stat().st_size,
    )
    assert foreign["batches"][0]["activation_bytes"] == 2 * 4 * (3 * 8 * 8 + 3 + 4)
    assert ours["batches"] == [
        {
            "batch": 2,
            "activation_bytes": 2 * 208_896,
            "flops_per_byte": pytest.approx(37.0, abs=0.1),
        }
    ]
