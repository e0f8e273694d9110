import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("export", "profiling", "training", "zoo")
MOST_LINES, MOST_LINES_OF_A_FAMILY = 400, 300

# Modules whose distribution has another name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "google": "protobuf",
    "pynvml": "nvidia-ml-py",
    "tensorrt_bindings": "tensorrt-cu12-bindings",
    "tensorrt_rtx_bindings": "tensorrt-rtx-cu13-bindings",
    "triton": "torch",  # which brings the version that fits it
}


MEETING = ("cli.py", "report_cli.py")  # of a package: where it may use the others


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no files in {ROOT / package}"
    return found


def text_files() -> list[Path]:
    """Everything that is written by hand."""
    kinds = ("*.py", "*.md", "*.toml", "*.txt", "*.yml", "*.yaml", "Makefile", "run", ".gitignore")
    places = (*OURS, "tests", "docs", "constraints", ".ci", ".github")
    deep = [file for place in places for kind in kinds for file in (ROOT / place).rglob(kind)]
    return sorted(file for file in {*deep, *ROOT.glob("*"), *ROOT.glob(".*")} if file.is_file())


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every absolute import."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import(names=aliases):
                for alias in aliases:
                    yield node.lineno, alias.name.split(".")[0]
            case ast.ImportFrom(module=str(module), level=0):
                yield node.lineno, module.split(".")[0]


@pytest.mark.parametrize("package", OURS)
def test_package_imports_only_zoo_and_itself(package: str) -> None:
    for file in sources(package):
        if file.parent == ROOT / package and file.name in MEETING:
            continue
        for line, imported in imports(file):
            allowed = imported not in OURS or imported in (package, "zoo")
            assert allowed, f"{file}:{line} imports {imported}"


def test_zoo_imports_nothing_of_ours_even_in_its_command() -> None:
    for line, imported in imports(ROOT / "zoo" / "cli.py"):
        assert imported not in set(OURS) - {"zoo"}, f"zoo/cli.py:{line} imports {imported}"


@pytest.mark.parametrize("package", OURS)
def test_no_module_imports_a_command(package: str) -> None:
    pattern = re.compile(rf"^\s*(from|import) ({'|'.join(OURS)})\.cli\b", re.MULTILINE)
    for file in sources(package):
        assert not pattern.search(file.read_text()), f"{file} imports a cli.py"


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lists = [project["dependencies"], *(extras[name] for name in extras if name != "dev")]
    declared = {re.split(r"[\[<>=~!; ]", one)[0] for listed in lists for one in listed}
    known = {*OURS, "cifar_zoo", *sys.stdlib_module_names}

    for file in (file for package in OURS for file in sources(package)):
        for line, imported in imports(file):
            if imported not in known:
                name = DISTRIBUTIONS.get(imported, imported.replace("_", "-"))
                assert name in declared, f"{file}:{line} imports {imported}: declare {name}"


@pytest.mark.parametrize("package", OURS)
def test_files_stay_short(package: str) -> None:
    for file in sources(package):
        is_family = file.parent == ROOT / "zoo" / "models"
        most = MOST_LINES_OF_A_FAMILY if is_family else MOST_LINES
        lines = len(file.read_text().splitlines())
        assert lines < most, f"{file} has {lines} lines: split it"


@pytest.mark.parametrize("package", OURS)
def test_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_sources_are_ascii() -> None:
    for file in text_files():
        if file.suffix in (".py", ".toml", ".txt", ".yml", ".yaml") or not file.suffix:
            for number, line in enumerate(file.read_bytes().splitlines(), start=1):
                assert line.isascii(), f"{file}:{number} is not ASCII"


def test_nothing_is_left_to_do() -> None:
    pattern = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" * 3 + r"\b")))
    for file in text_files():
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            assert not pattern.search(line), f"{file}:{number}: {line.strip()}"


def test_only_ci_knows_what_lies_beside_the_checkout() -> None:
    pattern = re.compile(r"\.\./" + "shared" + r"|(?<![\w.])/" + "work" + r"/|/" + "root" + "/")
    for file in text_files():
        if file == ROOT / ".ci" / "run":
            continue
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            assert not pattern.search(line), f"{file}:{number}: {line.strip()}"


def test_no_text_names_the_host_of_a_package_index() -> None:
    hosts = (
        "py" + "pi.org",
        "pythonhosted" + ".org",
        "download.pytorch" + ".org",
        "pypi" + ".nvidia",
    )
    for file in text_files():
        text = file.read_text()
        for host in hosts:
            assert host not in text, f"{file} names {host}"
