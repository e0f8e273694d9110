import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import cifar_zoo

ROOT = Path(__file__).parents[1]
OURS = ("export", "profiling", "training", "zoo")
COMMANDS = {
    "zoo-train": "train",
    "zoo-pretrain": "pretrain",
    "zoo-sweep": "sweep",
    "zoo-export": "export",
    "zoo-eval": "evaluate",
    "zoo-predict": "predict",
    "zoo-bench": "bench",
    "zoo-report": "report",
    "zoo-list": "list_models",
    "zoo-doctor": "doctor",
}
HEAVY = {"torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript", "matplotlib", "rich"}
HELP_SECONDS = 0.3


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def start(
    command: str, *arguments: str, options: tuple[str, ...] = (), path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Call an entry point as its console script does, with `path` on PYTHONPATH."""
    function = COMMANDS[command]
    code = f"import sys, cifar_zoo; sys.argv[0] = {command!r}; sys.exit(cifar_zoo.{function}())"
    search = [str(path)] if path else []
    search.append(str(Path(cifar_zoo.__file__).parent))
    return subprocess.run(
        (sys.executable, *options, "-c", code, *arguments),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(search), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    if not shutil.which("make"):
        pytest.skip("needs make")
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHON", "VENV", "STACK", "TORCH"}
    kept = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(
        ("make", "-C", str(ROOT), "--no-print-directory", *arguments),
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def fake_program(folder: Path, name: str, output: str) -> Path:
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{output}'\n")
    program.chmod(0o755)
    return program


# ---- what is installed -----------------------------------------------------------------------


def test_packages_come_from_one_folder() -> None:
    specs = {name: importlib.util.find_spec(name) for name in OURS}

    folders = {Path(spec.origin).parents[1] for spec in specs.values() if spec and spec.origin}
    assert folders == {Path(cifar_zoo.__file__).parent}
    if os.environ.get("ZOO_TEST_INSTALLED") == "1":  # set by make: never the checkout
        assert folders == {Path(sysconfig.get_path("purelib"))}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy so that nothing is written to the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "cifar_zoo.py"):
        shutil.copy(ROOT / name, source / name)
    for name in (*OURS, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
    build = (*pip, "--no-build-isolation", "--no-deps", "--wheel-dir", str(target), str(source))
    result = subprocess.run(build, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return next(target.glob("*.whl"))


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    expected = {"cifar_zoo.py"}
    for package in OURS:
        for file in (ROOT / package).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                expected.add(file.relative_to(ROOT).as_posix())

    names = set(zipfile.ZipFile(wheel).namelist())

    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {f"{package}/py.typed" for package in OURS} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_says_what_pyproject_says(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    metadata = next(name for name in archive.namelist() if name.endswith("/METADATA"))
    scripts = next(name for name in archive.namelist() if name.endswith("/entry_points.txt"))

    text = archive.read(metadata).decode()

    assert wheel.name == "cifar_zoo-0.1.0-py3-none-any.whl"
    assert re.search("^Requires-Python: <3.15,>=3.11$", text, re.MULTILINE)
    assert re.search("^License-Expression: MIT$", text, re.MULTILINE)
    for command, function in COMMANDS.items():
        assert f"{command} = cifar_zoo:{function}" in archive.read(scripts).decode().splitlines()


def test_version_is_the_same_everywhere() -> None:
    import zoo

    assert zoo.__version__ == pyproject()["project"]["version"]
    assert f"## {zoo.__version__}" in (ROOT / "CHANGELOG.md").read_text()


# ---- the commands ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_light(command: str) -> None:
    result = start(command, "--help", options=("-X", "importtime"))

    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: {command}")
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in lines}
    assert "zoo" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick(command: str) -> None:
    seconds = []
    while not seconds or (min(seconds) >= HELP_SECONDS and len(seconds) < 5):
        before = os.times()
        result = start(command, "--help")
        after = os.times()  # of the processor: other tests run beside this one
        used = after.children_user - before.children_user
        seconds.append(used + after.children_system - before.children_system)
        assert result.returncode == 0, result.stderr

    assert min(seconds) < HELP_SECONDS


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("package", OURS)
def test_a_folder_of_the_users_that_shadows_ours(
    command: str, package: str, tmp_path: Path
) -> None:
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise SystemExit('imported by mistake')")

    result = start(command, "--help", path=tmp_path)

    if command in ("zoo-list", "zoo-doctor") and package != "zoo":
        assert result.returncode == 0
        return
    assert result.returncode == 2
    assert result.stderr == (
        f"{command}: the folder {tmp_path / package} shadows cifar-zoo's own package "
        f"'{package}': run from another folder or rename it\n"
    )


def test_a_file_that_shadows_ours(tmp_path: Path) -> None:
    (tmp_path / "training.py").write_text("raise SystemExit('imported by mistake')")

    result = start("zoo-train", "--help", path=tmp_path)

    assert result.returncode == 2
    assert result.stderr.startswith(f"zoo-train: the file {tmp_path / 'training.py'} shadows")


def test_all_four_shadowed(tmp_path: Path) -> None:
    for package in OURS:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")

    result = start("zoo-bench", "--help", path=tmp_path)

    assert result.returncode == 2
    assert result.stderr.startswith(f"zoo-bench: the folder {tmp_path / 'zoo'} shadows")
    assert len(result.stderr.splitlines()) == 1


def test_a_package_that_is_gone(tmp_path: Path) -> None:
    shutil.copy(cifar_zoo.__file__, tmp_path)
    code = "import sys, cifar_zoo; sys.exit(cifar_zoo.train())"

    command = (sys.executable, "-S", "-c", code)  # -S: without site-packages
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert result.returncode == 2
    assert result.stderr == (
        f"zoo-train: the package 'zoo' is missing from {tmp_path}: "
        "run pip install . in a clone again\n"
    )


def test_a_folder_without_init_does_not_shadow(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "notes.txt").write_text("Python prefers a real package")

    assert start("zoo-train", "--help", path=tmp_path).returncode == 0


# ---- set-up ----------------------------------------------------------------------------------


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {package.lower().replace("_", "-"): version for package, version in pairs}


def test_every_dependency_is_pinned() -> None:
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    stacks = {
        # TensorRT: NVIDIA's index decides
        "default": ("cpu", "gpu", "trt-rtx", "openvino", "ssl", "tensorboard", "nvml", "dev"),
        "v100": ("v100", "v100-trt", "ssl", "tensorboard", "nvml", "dev"),
    }

    for name, chosen in stacks.items():
        pinned = pins(name)
        for requirement in (*project["dependencies"], *(r for e in chosen for r in extras[e])):
            package = re.split(r"[\[<>=~!; ]", requirement)[0]
            assert package in pinned, f"constraints/{name}.txt lacks {package}"


def test_every_extra_that_a_message_names_exists() -> None:
    named = {
        extra
        for package in OURS
        for file in (ROOT / package).rglob("*.py")
        for extra in re.findall(r'\bextra="([^"]+)"', file.read_text())
    }

    assert named >= {"cpu", "openvino", "ssl", "tensorboard"}
    assert named <= pyproject()["project"]["optional-dependencies"].keys()


def test_pins_of_the_two_stacks() -> None:
    default, v100 = pins("default"), pins("v100")

    assert (default["torch"], default["torchvision"]) == ("2.14.1", "0.29.1")
    for requirement in pyproject()["project"]["optional-dependencies"]["v100"]:
        package, version = requirement.split("==")
        assert v100[package] == version
    assert default.keys() & {"nvidia-cudnn-cu12"} == set()
    assert v100.keys() & {"nvidia-cudnn-cu13"} == set()


def test_make_accepts_the_pythons_of_pyproject(tmp_path: Path) -> None:
    lowest, highest = re.fullmatch(
        r">=3\.(\d+),<3\.(\d+)", pyproject()["project"]["requires-python"]
    ).groups()
    inside = range(int(lowest), int(highest))

    for minor in range(int(lowest) - 2, int(highest) + 2):
        python = fake_program(tmp_path, f"fake-python3.{minor}", f"3.{minor}")
        venv = f"VENV={tmp_path / 'venv'}"
        result = make("-n", "setup", f"PYTHON={python}", venv, "STACK=cpu")
        on_v100 = make("-n", "setup", f"PYTHON={python}", venv, "STACK=v100")
        assert (result.returncode == 0) is (minor in inside), minor
        assert (on_v100.returncode == 0) is (minor in inside and minor < 14), minor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("PYTHON=no-such-python",), "no-such-python was not found, cifar-zoo needs one of 3.11"),
        (("TORCH=cpu",), "TORCH=cpu needs TORCH_CPU_INDEX=ADDRESS"),
        (("TORCH=nightly",), "TORCH=nightly is unknown: use pinned, system or cpu"),
        (("STACK=tpu",), "STACK=tpu is unknown: use cpu, gpu or v100"),
    ],
)
def test_make_refuses_in_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    python = fake_program(tmp_path, "fake-python", "3.11")

    result = make("setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={python}", *arguments)

    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    ("listed", "stack", "pinned_by"),
    [
        ("7.0", "v100", "v100"),
        ("9.0", "gpu", "default"),
        ("9.0\n7.0", "v100", "v100"),
        ("NVIDIA-SMI has failed because it could not communicate", "cpu", "default"),
    ],
)
def test_make_chooses_the_stack_by_the_gpu(
    listed: str, stack: str, pinned_by: str, tmp_path: Path
) -> None:
    fake_program(tmp_path, "nvidia-smi", listed)
    python = fake_program(tmp_path, "fake-python", "3.11")

    result = make(
        "-n",
        "setup",
        f"VENV={tmp_path / 'venv'}",
        f"PYTHON={python}",
        PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    )

    assert result.returncode == 0, result.stderr
    runtimes = "openvino,ssl,tensorboard"
    if stack != "v100":
        runtimes += ",trt-rtx"  # that one is of CUDA 13
    assert f".[{stack},dev,{runtimes}]" in result.stdout
    assert f"constraints/{pinned_by}.txt" in result.stdout


def test_continuous_integration_runs_what_a_developer_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    steps = re.findall(r"- run: (.+)", workflow)

    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert re.findall(r"^make (\S+)", script, re.MULTILINE) == ["check", "test", "test-ci-extra"]
    assert steps
    assert all(re.fullmatch(r"make \S+ PYTHON=python", step) for step in steps)
    assert {step.split()[1] for step in steps} <= targets
    assert "secrets" not in workflow
    assert re.findall(r"uses: (\S+)@(?!v\d+\b)", workflow) == []
