"""Learning from the answers of another run."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from sample_run import sample_run
from small_runs import CPU, SHORT, TINY, Signal, few_of_each, outcome
from torch import Tensor, nn

import training.cli
from training import Recipe, Runtime, train
from training.loop import Trainer
from training.options import build_parser, make_job
from training.processes import Job
from training.resume import run_to_continue
from training.run import replay
from training.start import Wanted
from training.state import RunState, save_state, stored_recipe
from zoo.checkpoint import Checkpoint, save_run
from zoo.data import Dataset
from zoo.errors import CheckpointError, ZooError
from zoo.models import create_model
from zoo.preprocess import Preprocessing

PLAIN: Recipe = replace(SHORT, augment="none", erase_p=0.0)
TAUGHT: Recipe = replace(PLAIN, distillation=0.9)
KNOWN = "resnet_20"


@pytest.fixture(scope="module")
def few() -> Dataset:
    return few_of_each()


@pytest.fixture(scope="module")
def teacher(few: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A network by chance, with opinions of some strength; a quick one, like its students."""
    path = tmp_path_factory.mktemp("runs") / "teacher"
    return sample_run(path, few, model=TINY, seed=1, change=louder)


@pytest.fixture(scope="module")
def other_teacher(few: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return sample_run(tmp_path_factory.mktemp("runs") / "other", few, model=TINY, seed=2)


def louder(network: nn.Module) -> None:
    with torch.no_grad():
        network[-1].weight.mul_(5)


def trainer(recipe: Recipe, data: Dataset, network: nn.Module, **runtime: int) -> Trainer:
    torch.manual_seed(0)
    student = create_model(TINY, num_classes=data.num_classes)
    runtime_ = Runtime(device="cpu", **runtime)
    return Trainer(student, recipe, runtime_, data, Accelerator(cpu=True), seed=0, teacher=network)


def divergence(wanted: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened answers, an image: (B, K), (B, K) -> ()."""
    p, q = (torch.softmax(x.double() / temperature, dim=1) for x in (wanted, logits))
    return (p * (p.log() - q.log())).sum(dim=1).mean()


# The loss


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_divergence_of_the_softened_answers(
    temperature: float, few: Dataset, teacher: Checkpoint
) -> None:
    recipe = replace(PLAIN, distillation=1.0, temperature=temperature)
    network = teacher.model(allow=TINY)
    run = trainer(recipe, few, network)
    run.stepper.begin(1)
    images, labels, _, _ = run.stepper.batch()
    student = copy.deepcopy(run.plain).train()

    with torch.random.fork_rng():
        loss, _ = run.stepper.forward_loss(images, labels, None, None)

    with torch.no_grad():  # draws the dropout that the step drew
        answers, wanted = student(images), network(images)
    # Hinton et al. 2015, section 2: gradients of soft targets scale with 1 / temperature^2.
    expected = temperature**2 * divergence(wanted, answers, temperature)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected > 0.1


def test_a_share_mixes_both_losses(few: Dataset, teacher: Checkpoint) -> None:
    losses = []
    for share in (0.0, 0.25, 1.0):
        run = trainer(replace(PLAIN, distillation=share), few, teacher.model(allow=TINY))
        losses.append(next(run.run_steps(1))[0].item())

    assert losses[1] == pytest.approx(0.75 * losses[0] + 0.25 * losses[2], rel=1e-5)


def test_a_student_moves_towards_its_teacher(few: Dataset, teacher: Checkpoint) -> None:
    network = teacher.model(allow=TINY)
    images = Preprocessing.of(few).to_batch(few.test.images)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        wanted = network(images)
    distances = []
    for share in (0.9, 0.0):
        recipe = replace(PLAIN, distillation=share, temperature=1.0, peak_lr=0.5)
        run = trainer(recipe, few, network)
        for epoch in (1, 2):
            list(run.run_steps(epoch))
        with torch.no_grad():
            distances.append(divergence(wanted, run.plain.eval()(images), 1.0).item())

    assert distances[0] < 0.8 * distances[1]
    assert not network.training
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


# Whole runs


def test_a_run_stores_who_taught_it(few: Dataset, teacher: Checkpoint, tmp_path: Path) -> None:
    recipe = replace(TAUGHT, epochs=1)

    done = train(TINY, recipe, CPU, few, runs=tmp_path, teacher=teacher.path)

    meta = Checkpoint.open(done.path).meta
    assert meta.teacher == f"{TINY} sha256:{teacher.meta.weights_sha256}"
    assert meta.recipe["distillation"] == 0.9
    alone = train(TINY, replace(PLAIN, epochs=1), CPU, few, runs=tmp_path)
    assert alone.meta.teacher is None
    assert alone.meta.weights_sha256 != meta.weights_sha256


def test_a_resumed_run_needs_its_teacher_again(
    few: Dataset, teacher: Checkpoint, other_teacher: Checkpoint, tmp_path: Path
) -> None:
    whole = train(TINY, TAUGHT, CPU, few, runs=tmp_path, teacher=teacher.path)
    with pytest.raises(KeyboardInterrupt):
        train(
            TINY, TAUGHT, CPU, few, runs=tmp_path, teacher=teacher.path, on_progress=Signal(epoch=1)
        )
    (cut,) = set(tmp_path.iterdir()) - {whole.path}
    digests = [run.meta.weights_sha256[:12] for run in (teacher, other_teacher)]
    learns = f"this run learns from {TINY} (weights {digests[0]}), "
    helps = ": pass --teacher with the run that holds it"

    with pytest.raises(
        CheckpointError, match=f"^{re.escape(learns + 'and none is given' + helps)}$"
    ):
        train(TINY, TAUGHT, CPU, few, resume=cut)
    got = f"got {TINY} (weights {digests[1]})"
    with pytest.raises(CheckpointError, match=f"^{re.escape(learns + got + helps)}$"):
        train(TINY, TAUGHT, CPU, few, resume=cut, teacher=other_teacher.path)
    with pytest.raises(CheckpointError, match="^this run learns from .* and none is given: pass"):
        replay(cut, CPU, few)
    resumed = train(TINY, TAUGHT, CPU, few, resume=cut, teacher=teacher.path)

    assert outcome(resumed) == outcome(whole)
    assert resumed.meta.teacher == whole.meta.teacher


def test_a_run_that_began_alone_takes_no_teacher_later(
    few: Dataset, teacher: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "student"
    run = sample_run(path, few, model=TINY)
    (path / "recipe.json").write_text(json.dumps(TAUGHT.to_json()))
    save_run(path, replace(run.meta, finished_at=None))

    with pytest.raises(CheckpointError, match="^this run began without a teacher: resume without"):
        train(TINY, TAUGHT, CPU, few, resume=path, teacher=teacher.path)


def test_auto_continues_a_run_of_the_same_teacher_only(few: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "student"
    run = sample_run(path, few, model=TINY)
    (path / "recipe.json").write_text(json.dumps(TAUGHT.to_json()))
    save_run(path, replace(run.meta, finished_at=None, teacher="resnet_20 sha256:12"))
    save_state(path, RunState(trainer={}, metrics=[], selected=None))

    found = [
        run_to_continue(
            tmp_path,
            "auto",
            model=TINY,
            seed=0,
            recipe=TAUGHT,
            data=few,
            wanted=Wanted(),
            job=Job(None, 0),
            note=print,
            teacher=f"resnet_20 sha256:{digest}",
        )
        for digest in ("12", "34")
    ]

    assert found == [path, None]


@pytest.mark.parametrize(
    ("share", "is_taught", "message"),
    [
        (
            0.9,
            False,
            "recipe 'smoke' takes 0.9 of the loss from a teacher, and none is given: pass "
            "--teacher RUN, or --set distillation=0",
        ),
        (
            0.0,
            True,
            "with distillation=0 the teacher in {run} has no share of the loss: leave --teacher "
            "out, or pass --set distillation=0.9",
        ),
    ],
)
def test_a_share_of_the_loss_and_a_teacher_belong_together(
    share: float, is_taught: bool, message: str, few: Dataset, teacher: Checkpoint, tmp_path: Path
) -> None:
    recipe = replace(PLAIN, distillation=share)
    given = teacher.path if is_taught else None

    with pytest.raises(ZooError) as caught:
        train(TINY, recipe, CPU, few, runs=tmp_path / "runs", teacher=given)

    assert str(caught.value) == message.format(run=teacher.path)
    assert not (tmp_path / "runs").exists()


# Teachers that do not fit


def refusal(run: Checkpoint, data: Dataset, *, student: str = TINY, size: int | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        train(student, TAUGHT, CPU, data, runs=run.path / "no", teacher=run.path, image_size=size)
    assert not (run.path / "no").exists()
    return str(caught.value)


def test_a_teacher_of_other_data_is_refused(few: Dataset, teacher: Checkpoint) -> None:
    renamed = replace(few, class_names=tuple(reversed(few.class_names)))

    assert refusal(teacher, replace(few, digest="more")) == (
        f"the teacher in {teacher.path} learned from cifar100-mini (digest few), this run learns "
        "from cifar100-mini (more): pass a --teacher of the same data"
    )
    assert refusal(teacher, renamed) == (
        f"the teacher in {teacher.path} names its 100 classes otherwise than cifar100-mini its 100:"
        " pass a --teacher of the same data"
    )


def test_a_teacher_that_is_fed_otherwise_is_refused(
    few: Dataset, teacher: Checkpoint, tmp_path: Path
) -> None:
    shifted = Preprocessing(32, (0.5, 0.5, 0.5), few.std)
    meta = replace(teacher.meta, preprocessing=shifted)
    other = save_run(tmp_path / "other", meta, teacher.state_dict())

    assert refusal(teacher, few, size=48) == (
        f"the teacher in {teacher.path} takes images of 32 pixels, this run feeds 48: pass "
        "--image-size 32"
    )
    assert refusal(other, few) == (
        f"the teacher in {other.path} takes images with mean 0.5, 0.5, 0.5, this run feeds 0.5071, "
        "0.4867, 0.4408: pass a --teacher that was fed like it"
    )


def test_a_network_of_somebodys_own_teaches_itself_only(few: Dataset, tmp_path: Path) -> None:
    run = sample_run(tmp_path / "own", few, model=TINY)

    assert refusal(run, few, student=KNOWN) == (
        f"{run.path} holds {TINY}, a network of somebody's own, and opening it imports that "
        f"module: it teaches no other network than {TINY}"
    )
    done = train(
        TINY, replace(TAUGHT, epochs=1), CPU, few, runs=tmp_path / "runs", teacher=run.path
    )
    assert done.meta.teacher == f"{TINY} sha256:{run.meta.weights_sha256}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 0}, "{run} cannot teach: no epoch of it was completed"),
        (
            {"pretraining": "simclr"},
            "{run} holds a backbone without a classifier, pre-trained with simclr: train one with "
            f"zoo-train {TINY} --init-from {{run}}",
        ),
    ],
)
def test_the_command_looks_at_the_teacher_before_the_data(
    change: dict[str, object],
    message: str,
    teacher: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "teacher"
    save_run(path, replace(teacher.meta, **change), teacher.state_dict())
    absent = ("--dataset", "cifar10", "--data-dir", str(tmp_path))

    code = training.cli.main([TINY, "--teacher", str(path), *absent, "--runs", str(tmp_path)])

    assert code == 2
    assert capsys.readouterr().err == f"zoo-train: {message.format(run=path)}\n"


# The option


def asked(*arguments: str) -> Recipe:
    return make_job(build_parser().parse_args([KNOWN, *arguments])).recipe


def test_the_option_gives_the_teacher_its_share() -> None:
    with_teacher = ("--teacher", "runs/teacher")

    recipe = asked(*with_teacher)
    assert (recipe.distillation, recipe.temperature) == (0.9, 4.0)
    recipe = asked(*with_teacher, "--set", "distillation=0.5", "--set", "temperature=2")
    assert (recipe.distillation, recipe.temperature) == (0.5, 2.0)
    assert asked().distillation == 0.0


def test_the_share_of_a_recipe_stays(few: Dataset, teacher: Checkpoint, tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", few)
    recipe = replace(TAUGHT, distillation=0.3)
    (run.path / "recipe.json").write_text(json.dumps(recipe.to_json()))

    found = asked("--resume", str(run.path), "--teacher", str(teacher.path))

    assert found == stored_recipe(run.path) == recipe


def test_an_older_run_had_no_teacher(teacher: Checkpoint, tmp_path: Path) -> None:
    facts = json.loads((teacher.path / "meta.json").read_text())
    del facts["teacher"], facts["pretraining"]
    (tmp_path / "meta.json").write_text(json.dumps(facts))

    older = Checkpoint.open(tmp_path).meta

    assert (older.teacher, older.pretraining) == (None, None)
