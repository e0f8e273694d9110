import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import zoo
from zoo import cli, doctor, machine
from zoo.cifar100_mini import class_names
from zoo.doctor import Check
from zoo.errors import MachineError
from zoo.machine import Data, Failure, Gpu, Torch

# Facts of hardware and of installations that are not here; the checks that judge them are real.
FAKE_V100 = Gpu(name="Tesla V100-SXM2-16GB", capability=(7, 0))
FAKE_H100 = Gpu(name="NVIDIA H100 80GB HBM3", capability=(9, 0))
FAKE_PASCAL = Gpu(name="Tesla P100", capability=(6, 0))
FAKE_TORCH_CUDA_13 = Torch(
    version="2.14.1+cu130",
    cuda="13.0",
    architectures=("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"),
    gpu=FAKE_H100,
)
FAKE_TORCH_CUDA_12 = Torch(
    version="2.10.0+cu128", cuda="12.8", architectures=("sm_70", "sm_75"), gpu=FAKE_V100
)
CPU_TORCH = Torch(version="2.14.1+cpu", cuda=None, architectures=(), gpu=None)
BROKEN = Failure(reason="OSError: libcudart.so.13: cannot open shared object file")
HOME = Path("/site-packages")
CUDA_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
CPU_PROVIDERS = ("AzureExecutionProvider", "CPUExecutionProvider")
BOTH_WHEELS = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}


def run_doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from zoo.cli import main_doctor; sys.exit(main_doctor())"
    command = (sys.executable, "-c", code, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_python_inside_and_outside_the_range() -> None:
    assert doctor.check_python((3, 11, 0)).status == "ok"
    assert doctor.check_python((3, 14, 2)).status == "ok"
    for version in ((3, 10, 14), (3, 15, 0)):
        check = doctor.check_python(version)
        assert check.status == "problem"
        assert check.detail.endswith("cifar-zoo needs 3.11 to 3.14")


def test_packages_from_one_folder() -> None:
    check = doctor.check_packages(dict.fromkeys(machine.PACKAGES, HOME), home=HOME)

    assert check == Check(
        name="packages", status="ok", detail="all from /site-packages", is_needed=True
    )


def test_packages_with_one_shadowed_or_missing() -> None:
    folders: dict[str, Path | None] = dict.fromkeys(machine.PACKAGES, HOME)

    shadowed = doctor.check_packages(folders | {"training": Path("/mine")}, home=HOME)
    missing = doctor.check_packages(folders | {"export": None}, home=HOME)

    assert shadowed.detail == "/mine/training shadows cifar-zoo's own package"
    assert shadowed.fix == "mv /mine/training /mine/training_renamed"
    assert (missing.detail, missing.fix) == ("not found: export", "pip install .")


def test_torch_that_imports() -> None:
    check = doctor.check_torch(FAKE_TORCH_CUDA_13, None, gpu=FAKE_H100)

    assert (check.status, check.detail) == ("ok", "2.14.1+cu130, built with CUDA 13.0")


@pytest.mark.parametrize(
    ("gpu", "extra"), [(None, "cpu"), (FAKE_PASCAL, "cpu"), (FAKE_H100, "gpu"), (FAKE_V100, "v100")]
)
def test_torch_that_fails_to_import_is_reported(gpu: Gpu | None, extra: str) -> None:
    check = doctor.check_torch(BROKEN, None, gpu=gpu)

    assert check.detail == f"torch cannot be imported: {BROKEN.reason}"
    assert check.fix == f"pip install '.[{extra}]'"
    assert not doctor.is_ready([check])


def test_torchvision_of_another_build_is_reported() -> None:
    failure = Failure(reason="RuntimeError: operator torchvision::nms does not exist")

    check = doctor.check_torch(CPU_TORCH, failure, gpu=None)

    assert check.status == "problem"
    assert "torchvision cannot be imported: RuntimeError: operator" in check.detail


def test_gpu_that_works() -> None:
    check = doctor.check_gpu(FAKE_TORCH_CUDA_13, FAKE_H100)

    assert check.status == "ok"
    assert check.detail == "NVIDIA H100 80GB HBM3 (compute capability 9.0)"


def test_gpu_without_kernels_names_the_extra() -> None:
    check = doctor.check_gpu(replace(FAKE_TORCH_CUDA_13, gpu=FAKE_V100), FAKE_V100)

    assert check.detail == (
        "torch 2.14.1+cu130 has no code for the Tesla V100-SXM2-16GB (compute capability 7.0)"
    )
    assert check.fix == "pip install '.[v100]'"
    assert not doctor.is_ready([check])


def test_gpu_too_old_for_any_torch_of_ours_is_hidden() -> None:
    check = doctor.check_gpu(replace(FAKE_TORCH_CUDA_13, gpu=FAKE_PASCAL), FAKE_PASCAL)

    assert (check.status, check.fix) == ("problem", "export CUDA_VISIBLE_DEVICES=")


def test_gpu_that_torch_cannot_use() -> None:
    without_cuda = doctor.check_gpu(CPU_TORCH, FAKE_H100)
    with_old_driver = doctor.check_gpu(
        replace(FAKE_TORCH_CUDA_13, gpu=None, cuda_fault="The NVIDIA driver is too old"), FAKE_H100
    )
    hidden = doctor.check_gpu(replace(FAKE_TORCH_CUDA_13, gpu=None), FAKE_H100)

    assert "is built without CUDA and leaves the NVIDIA H100 80GB HBM3" in without_cuda.detail
    assert without_cuda.fix == "pip install '.[gpu]'"
    assert with_old_driver.detail.endswith(": The NVIDIA driver is too old")
    assert "does CUDA_VISIBLE_DEVICES hide it?" in hidden.detail
    assert doctor.is_ready([without_cuda, with_old_driver, hidden])  # on the CPU


def test_no_gpu_is_no_problem() -> None:
    check = doctor.check_gpu(CPU_TORCH, None)

    assert (check.status, check.detail) == ("missing", "no NVIDIA GPU: the CPU does the work")
    assert doctor.is_ready([check])
    assert doctor.check_gpu(None, FAKE_H100).detail == str(FAKE_H100)


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (("sm_80", "sm_90"), (8, 9), True),  # code for 8.0 runs on 8.9
        (("sm_86",), (8, 0), False),  # and never on an earlier chip
        (("sm_80",), (9, 0), False),  # nor on the next major version
        (("compute_80",), (9, 0), True),  # but PTX is translated for later ones
        (("compute_90",), (8, 0), False),
        (("sm_90a",), (9, 0), True),  # for one chip alone
        (("sm_100a",), (10, 3), False),
        (("sm_100f",), (10, 3), True),  # for a family
        (("sm_120",), (12, 1), True),
        (("gfx90a",), (9, 0), True),  # not NVIDIA's: not judged
        ((), (9, 0), False),
    ],
)
def test_kernels_by_architecture(
    architectures: tuple[str, ...], capability: tuple[int, int], runs: bool
) -> None:
    torch = replace(FAKE_TORCH_CUDA_13, architectures=architectures)
    gpu = Gpu(name="fake", capability=capability)

    assert (doctor.kernel_fault(torch, gpu) is None) is runs


def test_require_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    doctor.require_kernels("cpu")

    def fake_torch(index: int) -> Torch:
        known = {0: replace(FAKE_TORCH_CUDA_13, gpu=FAKE_V100), 1: FAKE_TORCH_CUDA_13}
        return known.get(index, CPU_TORCH)

    monkeypatch.setattr(machine, "torch_facts", fake_torch)
    doctor.require_kernels("cuda:1")
    with pytest.raises(MachineError, match=r"no code .* run pip install '\.\[v100\]'$"):
        doctor.require_kernels("cuda")
    with pytest.raises(MachineError, match="torch 2.14.1.cpu finds no GPU 'cuda:2'"):
        doctor.require_kernels("cuda:2")


@pytest.mark.parametrize(
    ("gpu", "flags", "precision"),
    [
        (None, ("avx2", "avx512_vnni"), "fp32"),
        (None, ("avx512_bf16",), "bf16"),
        (FAKE_PASCAL, (), "fp32"),
        (FAKE_V100, (), "fp16 with loss scaling"),
        (Gpu(name="fake T4", capability=(7, 5)), (), "fp16 with loss scaling"),
        (FAKE_H100, (), "bf16"),
    ],
)
def test_precision_by_chip(gpu: Gpu | None, flags: tuple[str, ...], precision: str) -> None:
    assert doctor.check_precision(gpu, flags).detail.startswith(f"{precision}:")


def test_compiler() -> None:
    found = doctor.check_compiler("/usr/bin/g++", has_headers=True)
    absent = doctor.check_compiler(None, has_headers=True)
    headless = doctor.check_compiler("/usr/bin/g++", has_headers=False)

    assert (found.status, found.detail, found.fix) == ("ok", "/usr/bin/g++", "")
    assert absent.detail == "no C++ compiler, so no --compile on a CPU"
    assert headless.fix == "apt-get install python3-dev"
    assert doctor.is_ready([absent, headless])


def test_compiler_comes_from_cxx_or_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "fake_compiler"
    fake.write_text("")
    fake.chmod(0o755)

    monkeypatch.setenv("CXX", str(fake))
    assert machine.compiler() == str(fake)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.compiler() is None


def test_libraries() -> None:
    versions = dict.fromkeys(doctor.LIBRARIES, "1.0")
    partial = {name: version for name, version in versions.items() if name != "timm"}

    assert doctor.check_libraries(versions).status == "ok"
    check = doctor.check_libraries(partial)
    assert (check.status, check.detail, check.fix) == (
        "missing",
        "not installed: timm",
        "pip install .",
    )
    assert not doctor.is_ready([check])


def test_onnxruntime_for_the_cpu() -> None:
    check = doctor.check_onnxruntime({"onnxruntime": "1.31.1"}, CPU_PROVIDERS, CPU_TORCH)

    assert (check.status, check.detail) == ("ok", "onnxruntime 1.31.1 with Azure, CPU")


def test_onnxruntime_absent() -> None:
    check = doctor.check_onnxruntime({}, Failure(reason="ModuleNotFoundError"), FAKE_TORCH_CUDA_12)

    assert (check.status, check.fix) == ("missing", "pip install '.[v100]'")
    assert not doctor.is_ready([check])


def test_onnxruntime_that_fails_to_import() -> None:
    check = doctor.check_onnxruntime({"onnxruntime": "1.31.1"}, BROKEN, None)

    assert check.detail == f"onnxruntime 1.31.1 cannot be imported: {BROKEN.reason}"
    assert not doctor.is_ready([check])


def test_both_onnxruntime_wheels() -> None:
    check = doctor.check_onnxruntime(BOTH_WHEELS, CPU_PROVIDERS, FAKE_TORCH_CUDA_13)

    assert check.detail == (
        "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 fill the same folder: "
        "only the last one installed works"
    )
    assert check.fix == "pip uninstall -y onnxruntime onnxruntime-gpu; pip install '.[gpu]'"


@pytest.mark.parametrize(
    ("versions", "providers", "torch", "message"),
    [
        (
            {"onnxruntime": "1.31.1"},
            CPU_PROVIDERS,
            FAKE_TORCH_CUDA_13,
            "onnxruntime 1.31.1 with Azure, CPU: the NVIDIA H100 80GB HBM3 stays unused",
        ),
        (
            {"onnxruntime-gpu": "1.31.1"},
            CUDA_PROVIDERS,
            FAKE_TORCH_CUDA_12,
            "onnxruntime-gpu 1.31.1 is built for CUDA 13, torch for CUDA 12.8",
        ),
        ({"onnxruntime-gpu": "1.23.2"}, CUDA_PROVIDERS, FAKE_TORCH_CUDA_12, ""),
        ({"onnxruntime-gpu": "1.31.1"}, CUDA_PROVIDERS, FAKE_TORCH_CUDA_13, ""),
    ],
)
def test_onnxruntime_beside_a_gpu(
    versions: dict[str, str], providers: tuple[str, ...], torch: Torch, message: str
) -> None:
    check = doctor.check_onnxruntime(versions, providers, torch)

    assert (check.detail == message) is bool(message)
    assert check.status == ("problem" if message else "ok")
    assert doctor.is_ready([check])  # the CPU provider is enough for the main job


@pytest.mark.parametrize(
    ("gpu", "extra"), [(None, "trt-rtx"), (FAKE_H100, "trt"), (FAKE_V100, "v100-trt")]
)
def test_tensorrt_absent(gpu: Gpu | None, extra: str) -> None:
    check = doctor.check_tensorrt((), gpu)

    assert (check.status, check.fix) == ("missing", f"pip install '.[{extra}]'")


def test_tensorrt_flavour() -> None:
    full = doctor.check_tensorrt(("tensorrt",), FAKE_H100)
    rtx = doctor.check_tensorrt(("tensorrt_rtx_bindings",), None)

    assert full.detail == "TensorRT (tensorrt)"
    assert rtx.detail.startswith("TensorRT for RTX (tensorrt_rtx_bindings); without a GPU")


@pytest.mark.parametrize(("gpu", "extra"), [(FAKE_H100, "trt"), (FAKE_V100, "v100-trt")])
def test_tensorrt_for_rtx_alone_is_of_no_use_to_some_gpus(gpu: Gpu, extra: str) -> None:
    rtx = "tensorrt_rtx_bindings"
    fake_ada = Gpu(name="fake L4", capability=(8, 9))

    check = doctor.check_tensorrt((rtx,), gpu)

    assert (check.status, check.fix) == ("problem", f"pip install '.[{extra}]'")
    assert check.detail == f"TensorRT for RTX ({rtx}) has no code for the {gpu}"
    assert doctor.check_tensorrt((rtx,), fake_ada).status == "ok"
    assert doctor.check_tensorrt(("tensorrt", rtx), gpu).status == "ok"


def test_openvino() -> None:
    assert doctor.check_openvino("2026.4.1").status == "ok"
    assert doctor.check_openvino(None).fix == "pip install '.[openvino]'"


HERE = Data(
    given=None,
    given_has_cifar100=False,
    cache=Path("/cache/cifar100"),
    cache_has_cifar100=False,
    has_embedded=True,
)


@pytest.mark.parametrize(
    ("data", "status", "detail"),
    [
        (HERE, "missing", "cifar100-mini; cifar100 is downloaded when it is first asked for"),
        (
            replace(HERE, cache_has_cifar100=True),
            "ok",
            "cifar100 in /cache/cifar100, cifar100-mini",
        ),
        (
            replace(HERE, given=Path("/data"), given_has_cifar100=True),
            "ok",
            "cifar100 in /data (ZOO_DATA), cifar100-mini",
        ),
        (
            replace(HERE, given=Path("/data"), cache_has_cifar100=True),
            "problem",
            "ZOO_DATA is /data, which has no cifar100",
        ),
        (replace(HERE, has_embedded=False), "problem", "the embedded cifar100-mini is gone"),
        (BROKEN, "problem", f"zoo.data fails: {BROKEN.reason}"),
    ],
)
def test_data(data: Data | Failure, status: str, detail: str) -> None:
    check = doctor.check_data(data)

    assert (check.status, check.detail) == (status, detail)
    assert doctor.is_ready([check]) is (status != "problem")
    assert bool(check.fix) is (status != "ok")


def test_data_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))

    before = machine.data_facts()
    names = {"fine": class_names().fine, "coarse": class_names().coarse}
    for folder in (tmp_path, tmp_path / "cache" / "cifar100"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "class_names.json").write_text(json.dumps(names))
        (folder / "train_images.npy").touch()  # the doctor looks at names, it does not read
    after = machine.data_facts()

    assert before.has_embedded
    assert (before.given_has_cifar100, before.cache_has_cifar100) == (False, False)
    assert (after.given_has_cifar100, after.cache_has_cifar100) == (True, True)
    assert after.cache == tmp_path / "cache" / "cifar100"


def test_disk() -> None:
    assert doctor.check_disk(70.0).detail == "70.0 GiB free here"
    check = doctor.check_disk(0.1)
    assert (check.status, check.detail) == ("problem", "0.1 GiB free here, 0.5 needed")
    assert check.fix == "cd FOLDER"
    assert not doctor.is_ready([check])


def test_gpus_of_the_driver() -> None:
    text = "NVIDIA H100 80GB HBM3, 9.0\nTesla V100-SXM2-16GB, 7.0\n"

    assert machine.parse_gpus(text) == FAKE_V100
    assert machine.parse_gpus("NVIDIA-SMI has failed, because it could not ...\n") is None
    assert machine.parse_gpus("") is None


def test_attempt_keeps_the_first_line_of_a_failure() -> None:
    def fail() -> None:
        raise OSError("first\nsecond")

    assert machine.attempt(fail) == Failure(reason="OSError: first")
    assert machine.attempt(lambda: 3) == 3


def test_facts_of_this_machine() -> None:
    facts = machine.torch_facts()

    assert re.match(r"\d+\.\d+", facts.version)
    assert machine.installed_versions(("torch", "no-such-package")).keys() == {"torch"}
    assert machine.importable(("json", "no_such_module")) == ("json",)
    assert set(machine.package_folders()) == set(machine.PACKAGES)
    assert "CPUExecutionProvider" in machine.onnxruntime_providers()


def test_text_shows_each_check_and_its_fix() -> None:
    checks = (doctor.check_openvino(None), doctor.check_disk(0.1))

    text = cli.to_text(checks)

    assert text.splitlines()[:2] == [
        "openvino     missing  not installed",
        "                      -> pip install '.[openvino]'",
    ]
    assert text.endswith("The main job cannot run before this is fixed: disk")


def test_command_prints_text_where_there_is_no_terminal() -> None:
    result = run_doctor()

    assert result.stdout.startswith("python       ok       3.")
    assert ("The main job can run" in result.stdout) is (result.returncode == 0)
    assert result.returncode in (0, 1)
    assert result.stderr == ""


def test_command_prints_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake_diagnosis() -> Sequence[Check]:
        return (doctor.check_torch(BROKEN, None, gpu=None), doctor.check_gpu(None, None))

    monkeypatch.setattr(doctor, "diagnose", fake_diagnosis)

    code = cli.main_doctor(["--json"])

    report = json.loads(capsys.readouterr().out)
    assert (code, report["ready"], report["version"]) == (1, False, zoo.__version__)
    assert [line["name"] for line in report["checks"]] == ["torch", "gpu"]
    assert report["checks"][0]["fix"] == "pip install '.[cpu]'"


def test_command_draws_a_table_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: (doctor.check_disk(70.0),))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    code = cli.main_doctor([])

    shown = capsys.readouterr().out
    assert code == 0
    assert "what was found" in shown
    assert "70.0 GiB free here" in shown


def test_command_refuses_an_unknown_option() -> None:
    result = run_doctor("--jsn")

    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
