"""One folder for whoever has no cifar-zoo: the file, its manifest, labels and a short program."""

import itertools
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from export.artifact import FOLDER, Artifact, manifest_path
from export.handover import check_handover, copy_file, copy_manifest, folder_name, labels
from zoo.errors import ZooError
from zoo.files import new_folder
from zoo.image_folder import FORMATS
from zoo.preprocess import STORED_SIZE, Preprocessing
from zoo.text import printable

BUNDLES = "bundles"  # inside a run folder
LABELS, PROGRAM, PREPARE, README = "labels.txt", "predict.py", "prepare.py", "README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """How a program of its own runs a format."""

    package: str  # that it needs beside numpy
    load: str  # an expression that opens PATH
    run: str  # an expression that gives the answers for x


RUNTIMES: Mapping[str, Runtime] = MappingProxyType(
    {
        "onnx": Runtime(
            package="onnxruntime",
            load='onnxruntime.InferenceSession(PATH, providers=["CPUExecutionProvider"])',
            run="MODEL.run(None, {MODEL.get_inputs()[0].name: x})[0]",
        ),
        "openvino": Runtime(
            package="openvino",
            load='openvino.Core().compile_model(PATH, "CPU", {"INFERENCE_PRECISION_HINT": KIND})',
            run="MODEL(x)[0]",
        ),
        "aoti": Runtime(
            package="torch",
            load='torch._C._aoti.AOTIModelPackageLoader(PATH, "model", False, 1, -1)',
            run="MODEL.run([torch.from_numpy(x)])[0].numpy()",
        ),
        "torchexport": Runtime(
            package="torch",
            load="torch.export.load(PATH).module()",
            run="MODEL(torch.from_numpy(x)).detach().numpy()",
        ),
    }
)

PROGRAM_TEXT = '''\
"""Name what is on images: python predict.py IMAGE..."""

import sys
from pathlib import Path

import numpy as np
import {package}

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out
from prepare import LABELS, PATH, read

MODEL = {load}
{statistics}status = 0
for path in sys.argv[1:]:
    try:
        x = read(path)
    except Exception as error:
        print(f"{{path}}: {{error}}", file=sys.stderr)
        status = 1
        continue
{steps}
    {answer}
    print(path)
    for k in np.argsort(-p, kind="stable")[:5]:
        print(f"  {{p[k]:6.1%}}  {{LABELS[k]}}")
sys.exit(status)
'''
STATISTICS = """\
MEAN = np.float32({mean}) * 255
STD = np.float32({std}) * 255
"""

PREPARE_TEXT = '''\
"""What predict.py starts from: files as they were measured, images as in training."""

import hashlib
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
PATH = str(HERE / {file})
DIGESTS = {{
{digests}}}
LABELS = (HERE / "labels.txt").read_text(encoding="utf-8").splitlines()

for name, digest in DIGESTS.items():
    if hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest:
        sys.exit(f"{{name}} is not the file that was measured: copy it again")
{guard}

def read(path):
    """The levels of an image, a .npy file or a photo, in the size of the network."""
    x = np.load(path) if path.endswith(".npy") else photo(path)
    if (x.dtype, x.shape) != (np.uint8, ({stored}, {stored}, 3)):
        raise ValueError(f"{{x.dtype}} {{x.shape}}, expected uint8 ({stored}, {stored}, 3)")
    {levels}


def photo(path):
    """Turn an image as its camera says, cut out its central square, shrink it as in training."""
    from PIL import Image, ImageOps

    with Image.open(path, formats={formats}) as file:
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize(({stored}, {stored}), Image.Resampling.LANCZOS))
{fit}'''
GUARD = """\
NEEDED = [
{sets}]
lacking = set(" ".join(NEEDED).split()) - set(Path("/proc/cpuinfo").read_text().split())
if lacking:
    sys.exit(f"{{Path(PATH).name}} was compiled for CPUs with {{' and '.join(sorted(lacking))}}")
"""
FIT = '''

def fit(x):
    """To the size of the network."""
{resize}    return x
'''
RESIZE = """\
    from PIL import Image

    planes = [Image.fromarray(x[..., c]) for c in range(3)]
    planes = [plane.resize(({size}, {size}), {method}) for plane in planes]
    x = np.stack([np.asarray(plane) for plane in planes], axis=-1).clip(0, 255)
"""
CROP = "    x = x[{edge}:{end}, {edge}:{end}]\n"

README_TEXT = """\
# {model}

Names what is on an image, one of {classes} classes.

    pip install numpy {requirement}
    python predict.py IMAGE...

prints the five likeliest classes of each image with their probabilities; the exit code is 1 where
one could not be read. An image is a `.npy` file of ({stored}, {stored}, 3) bytes or, with
`pip install pillow`, a photo of any size{fitted}. cifar-zoo itself is not needed.

| file | content |
|---|---|
{files}
| `labels.txt` | the names of the classes, in the order of the outputs |
| `predict.py` | runs the model |
| `prepare.py` | checks the files and reads images, for `predict.py` |

- Input: `{input}`. {preparation}
- Output: {output} of {classes} classes.{tied_to}
- Measured with this very file: {top1:.2%} top-1 and {top5:.2%} top-5 accuracy on {images:,} test
  images of {dataset}, run by {proven_by}. The first guess is that of the original for
  {agreement:.1%} of {compared:,} of them.

**Terms.** `predict.py` and `prepare.py` are part of cifar-zoo and under the MIT licence. The terms
of the weights are set by those who trained them.{origin}{data} No image of the
data set is in this folder.
"""
ORIGIN = """ They began with those of {origin},
whose terms go on to hold."""
TIED_TO = """
- Compiled for CPUs of Linux with: {sets}."""
CIFAR_TERMS = """ The
[page of the data set](https://www.cs.toronto.edu/~kriz/cifar.html) states no licence and asks for a
citation: Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", University of
Toronto, 2009."""


def write_bundle(artifact: Artifact, folder: Path | None = None) -> Path:
    """Write a folder with all that is needed to run an artifact; return it.

    It lies in `folder`, or in `bundles` of the artifact's run, is named by model, target and
    precision, and never replaces another: `-2` follows.

    Raises:
        ZooError: the target cannot run without more than numpy and its runtime.
        ArtifactError: the artifact is not proven, or not what its manifest or its run says.
        OSError: the folder cannot be written; nothing is left of it.
    """
    _check_target(artifact)
    check_handover(artifact)
    path = _unused((folder or _default(artifact)) / folder_name(artifact))
    with new_folder(path) as part:
        manifest = manifest_path(artifact.path)
        copy_manifest(artifact, part / manifest.name)
        for name in artifact.digests:
            copy_file(artifact, name, part / name)
        for name, text in (
            (LABELS, labels(artifact)),
            (PROGRAM, program(artifact)),
            (PREPARE, prepare(artifact)),
            (README, readme(artifact)),
        ):
            (part / name).write_text(text, encoding="utf-8")
    return path


def program(artifact: Artifact) -> str:
    """The text of predict.py."""
    runtime, known = RUNTIMES[artifact.target], artifact.input_preprocessing
    load = runtime.load
    if artifact.target == "openvino":
        from export.to_openvino import HINTS

        load = load.replace("KIND", _literal(HINTS.get(artifact.precision, "f32")))
    if artifact.is_raw:
        steps, answer = "    x = x.round().astype(np.uint8)[None]", f"p = {runtime.run}[0]"
    else:
        steps = "    x = np.ascontiguousarray(((x - MEAN) / STD).transpose(2, 0, 1)[None])"
        answer = (
            f"logits = {runtime.run}[0]\n    p = np.exp(logits - logits.max())\n    p /= p.sum()"
        )
    return PROGRAM_TEXT.format(
        package=runtime.package,
        load=load,
        statistics="" if artifact.is_raw else STATISTICS.format(mean=known.mean, std=known.std),
        steps=steps,
        answer=answer,
    )


def prepare(artifact: Artifact) -> str:
    """The text of prepare.py."""
    sets, resize = _instruction_sets(artifact), _resize(artifact.input_preprocessing)
    digests = (f"{_literal(name)}: {_literal(sha)}" for name, sha in artifact.digests.items())
    return PREPARE_TEXT.format(
        file=_literal(artifact.path.name),
        digests=_lines(digests),
        guard=GUARD.format(sets=_lines(map(_literal, textwrap.wrap(sets, 80)))) if sets else "",
        stored=STORED_SIZE,
        formats=f"[{', '.join(map(_literal, FORMATS))}]",
        levels="return fit(np.float32(x))" if resize else "return np.float32(x)",
        fit=FIT.format(resize=resize) if resize else "",
    )


def readme(artifact: Artifact) -> str:
    """The text of README.md."""
    runtime, known = RUNTIMES[artifact.target], artifact.input_preprocessing
    accuracy, parity, data = artifact.accuracy, artifact.parity, artifact.dataset
    assert accuracy is not None  # a file is handed over only with its proof
    assert parity is not None
    requirement = runtime.package
    if artifact.target == "aoti" and (version := artifact.versions.get(runtime.package)):
        requirement += f"=={version.partition('+')[0]}"  # what follows names a build of no index
    sets = _instruction_sets(artifact)
    origin = _origin(artifact)
    size = f"{known.image_size}, {known.image_size}"
    kind = f"{artifact.backend} in {artifact.precision}"
    rows = [(name, f"the model, {kind}") for name in artifact.digests]
    rows.append((manifest_path(artifact.path).name, "SHA-256, accuracy, agreement, versions"))
    words = {
        "model": artifact.model,
        "requirement": requirement,
        "input": f"(B, {size}, 3) uint8" if artifact.is_raw else f"(B, 3, {size}) float32",
        "output": "probabilities" if artifact.is_raw else "logits",
        "dataset": data.name,
        "proven_by": artifact.proven_by or runtime.package,
    }
    return README_TEXT.format(
        **{key: printable(value) for key, value in words.items()},
        classes=len(data.class_names),
        stored=STORED_SIZE,
        fitted="; both need Pillow here, which makes them larger" if _resize(known) else "",
        files="\n".join(f"| `{printable(name)}` | {printable(what)} |" for name, what in rows),
        preparation=_preparation(artifact),
        top1=accuracy.top1,
        top5=accuracy.top5,
        images=accuracy.images,
        agreement=parity.top1_agreement,
        compared=parity.images,
        tied_to=TIED_TO.format(sets=printable(sets)) if sets else "",
        origin=ORIGIN.format(origin=printable(origin)) if origin else "",
        data=CIFAR_TERMS if data.name.startswith("cifar") else "",
    )


def _check_target(artifact: Artifact) -> None:
    if artifact.target == "trt":
        raise ZooError(
            "--bundle does not take trt, an engine needs more than numpy and TensorRT to run: "
            "use --to onnx"
        )
    if artifact.target == "aoti":
        from export.to_aoti import package_facts

        kind = package_facts(artifact.path)["compiled_for"]
        if kind != "cpu":
            raise ZooError(
                f"--bundle does not take {artifact.path}, which is compiled for {kind}: "
                "use --to onnx, or --device cpu"
            )


def _literal(text: str) -> str:
    """A string as formatted source has it: in double quotes, unless it holds some."""
    single = repr(text)
    return single if '"' in single else f'"{single[1:-1]}"'


def _lines(items: Iterable[str]) -> str:
    return "".join(f"    {item},\n" for item in items)


def _instruction_sets(artifact: Artifact) -> str:
    """What a CPU must have to run the code of the file; nothing where it holds none."""
    return str(artifact.facts.get("instruction_sets", ""))


def _default(artifact: Artifact) -> Path:
    folder = artifact.path.parent
    if folder.absolute().name != FOLDER:
        return folder / BUNDLES
    return (folder if folder.name else folder.absolute()).parent / BUNDLES


def _unused(path: Path) -> Path:
    later = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(one for one in itertools.chain((path,), later) if not one.exists())


def _resize(known: Preprocessing) -> str:
    size, kept = round(known.image_size / known.crop_pct), known.image_size
    edge = (size - kept) // 2
    method = f"Image.Resampling.{known.interpolation.upper()}"
    resize = "" if size == STORED_SIZE else RESIZE.format(size=size, method=method)
    return resize + ("" if size == kept else CROP.format(edge=edge, end=edge + kept))


def _preparation(artifact: Artifact) -> str:
    known = artifact.input_preprocessing
    size = round(known.image_size / known.crop_pct)
    steps = [f"The central square of an image becomes {STORED_SIZE}x{STORED_SIZE} pixels (Lanczos)"]
    if size != STORED_SIZE:
        steps.append(f"these become {size}x{size} ({known.interpolation})")
    if size != known.image_size:
        steps.append(f"the middle {known.image_size}x{known.image_size} are kept")
    if not artifact.is_raw:
        steps.append(
            f"of red, green and blue in [0, 1], {known.mean} are subtracted, and what is left is "
            f"divided by {known.std}"
        )
    return "; ".join(steps) + "."


def _origin(artifact: Artifact) -> str | None:
    """Where the training of the weights began, if elsewhere; only the run knows."""
    from export.opening import run_of

    run = run_of(artifact.path)
    return run.meta.initial_weights if run is not None else None
