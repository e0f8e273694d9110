import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from small_runs import EAGER_TO_SAVE, SHORT, TINY, few_of_each

from export.flags import export_parser
from profiling.options import bench_parser
from training import Runtime, train
from training.ablations import ABLATIONS, STUDIES, Ablation, Arm, ablations_of
from training.loop import Progress
from training.options import build_parser, make_job
from training.pretrain_cli import build_parser as pretrain_parser
from training.pretrain_cli import make_settings
from training.pretrainer import Pretrainer
from training.pretraining import pretraining_for
from training.processes import processes
from training.recipes import recipe_for
from training.sweep_jobs import (
    LEAST_STEPS,
    Job,
    Scale,
    ablation,
    all_jobs,
    comparison,
    second_study,
    work_of,
)
from training.sweep_steps import CHILD, Means, Step, steps_of, train_arguments
from zoo.errors import UnknownModelError, ZooError
from zoo.models import MODELS
from zoo.reported import read_table

BOUNDED = Scale(seeds=(0,), dataset="cifar100-mini", max_macs=6e11)
JOB = Job(model="resnet_20", recipe="study", seed=1, dataset="cifar100-mini")


def arms() -> list[tuple[Ablation, Arm]]:
    return [(one, arm) for one in ABLATIONS for arm in one.arms]


# ---- the lists -------------------------------------------------------------------------------


def test_studies() -> None:
    assert list(STUDIES) == [
        *("eca_kernel", "eca_position", "ghost_ratio", "improved_convnext", "hyaresnet"),
        *("step_decay", "regularisation", "pretrained", "coatnet_opt"),
        *("lr_decay", "activation", "pooling", "augmentation", "label_smoothing"),
    ]
    assert [one.name for one in ablations_of("coatnet_opt")] == [
        *("attention", "stem", "layers", "csp", "relative_attention"),
        *("full_augmentation", "stochastic_depth", "self_supervised"),
    ]
    questions = {one.name: one.question for one in ablations_of("coatnet_opt")}
    assert questions["relative_attention"] == (  # two changes at once
        "Do relative positions help, with a norm before the classifier?"
    )


@pytest.mark.parametrize(
    ("one", "arm"), arms(), ids=lambda x: getattr(x, "label", getattr(x, "name", None))
)
def test_an_arm_differs_from_its_baseline_by_one_thing(one: Ablation, arm: Arm) -> None:
    base = one.baseline
    aspects = ("model", "recipe", "settings", "image_size", "pretrained", "pretraining")

    differing = [name for name in aspects if getattr(arm, name) != getattr(base, name)]

    assert len(differing) == 1
    assert arm.label != base.label
    if differing == ["settings"] and one.study not in ("augmentation", "coatnet_opt"):
        changed = dict(arm.settings.items() ^ base.settings.items())
        assert len(changed) == 1


def test_every_arm_trains_a_network_of_the_zoo_with_a_recipe_that_takes_it() -> None:
    groups = ablation(("all",), BOUNDED)

    works = {job.id: work_of(job) for job in all_jobs(groups)}

    assert {job.model for _, job in (pair for group in groups for pair in group.jobs)} <= {
        *MODELS,
        "timm:resnet18",
    }
    assert len(groups) == len(ABLATIONS)
    assert all(work.is_bounded for work in works.values())


def test_every_arm_of_the_reported_ablations_is_there() -> None:
    for row in read_table("ablations.csv"):
        (one,) = ablations_of(row["study"])
        sides = {arm.label: arm.model for arm in (one.baseline, *one.arms)}
        label = {"full": "baseline"}.get(row["variant"], row["variant"])
        assert sides[label] == row["registry_name"], row


def test_the_comparison_is_the_table_of_the_first_study() -> None:
    (group,) = comparison(Scale(seeds=(0, 1)))

    models = [row["model"] for row in read_table("table1_models.csv")]
    assert len(models) == 21
    assert [(job.model, job.seed) for _, job in group.jobs] == [
        (model, seed) for seed in (0, 1) for model in models
    ]
    assert {job.recipe for _, job in group.jobs} == {"study"}
    assert {job.epochs for _, job in group.jobs} == {None}


def test_the_second_study_has_its_epochs() -> None:
    (group,) = second_study(Scale(seeds=(0,)))

    listed = [(job.model, job.epochs) for _, job in group.jobs]
    assert len(listed) == 10
    assert {("vit_tiny", 50), ("vit_tiny", 200), ("edgenext_base", 300)} <= set(listed)


def test_without_a_word_there_are_three_seeds() -> None:
    (group,) = ablation(("step_decay",), Scale())

    assert [(label, job.seed) for label, job in group.jobs] == [
        *(("cosine", 0), ("step", 0), ("cosine", 1)),
        *(("step", 1), ("cosine", 2), ("step", 2)),
    ]
    assert group.to_json()["baseline"] == "cosine"
    assert group.to_json()["arms"][1] == {
        "label": "step",
        "jobs": [job.id for label, job in group.jobs if label == "step"],
    }


def test_a_job_of_two_studies_is_one_job() -> None:
    groups = ablation(("eca_kernel", "ghost_ratio"), Scale(seeds=(0,)))

    models = [job.model for job in all_jobs(groups)]

    assert models.count("resnet_20") == 1
    assert len(models) == 6 + 3


def test_unknown_study() -> None:
    with pytest.raises(ZooError) as caught:
        ablation(("eca_kernl",), Scale())

    assert str(caught.value) == "no study named 'eca_kernl': did you mean eca_kernel?"


def test_the_id_of_a_job_tells_all_of_its_fields_apart() -> None:
    others = [
        replace(JOB, seed=2),
        replace(JOB, epochs=3),
        replace(JOB, settings={"peak_lr": "0.2"}),
        replace(JOB, pretrained=True),
        replace(JOB, pretraining="moco"),
        replace(JOB, max_macs=1.0),
        replace(JOB, dataset="cifar10"),
        replace(JOB, model="my.nets:one"),
    ]

    assert len({JOB.id, *(job.id for job in others)}) == 9
    assert JOB.id.startswith("resnet_20-study-s1-")
    assert others[-1].id.startswith("my.nets-one-study-s1-")


# ---- how much work ---------------------------------------------------------------------------


def test_a_bounded_training() -> None:
    work = work_of(replace(JOB, max_macs=6e11))

    macs = MODELS["resnet_20"].macs  # 6e11 / (3 * macs) = 4,900 images: 150 steps of 32
    assert work.batch_size == int(6e11 / (3 * macs) / 150) // 2 * 2 == 32
    assert (work.epochs, work.epoch_steps, work.steps) == (10, 16, 160)
    assert work.training_macs == 3 * macs * 32 * 160
    assert work.peak_lr == float(f"{0.1 * math.sqrt(32 / 1024):.4g}")
    assert (work.is_bounded, work.max_macs, work.test_macs) == (True, 6e11, 1000 * macs)


def test_a_bound_counts_for_more_than_epochs_that_are_set() -> None:
    job = replace(JOB, max_macs=6e11, settings={"epochs": "60"})

    words = train_arguments(job, work_of(job), Path("runs"))

    assert words[words.index("--epochs") + 1] == "10"
    assert not [word for word in words if word.startswith("epochs=")]


def test_a_bounded_training_takes_20_steps_whatever_they_cost() -> None:
    work = work_of(replace(JOB, model="mlp_mixer_b16", max_macs=6e11))

    assert (work.batch_size, work.steps) == (8, LEAST_STEPS)
    assert work.training_macs == 3 * MODELS["mlp_mixer_b16"].macs * 8 * 20


def test_a_bound_that_the_recipe_keeps_changes_nothing() -> None:
    work = work_of(replace(JOB, epochs=1, max_macs=1e15))

    assert (work.is_bounded, work.batch_size, work.epochs, work.steps) == (False, 1024, 1, 3)


@pytest.mark.parametrize(
    "job",
    [
        replace(JOB, max_macs=6e11),
        replace(JOB, model="convnext_tiny", max_macs=6e11),
        replace(JOB, settings={"warmup_epochs": "2.5", "peak_lr": "0.3"}, max_macs=6e11),
        replace(JOB, epochs=7, settings={"schedule": "step", "full_train": "false"}),
        replace(JOB, recipe="quick", image_size=64),
        replace(JOB, model="convnext_tiny", epochs=7, settings={"epochs": "60"}),
    ],
    ids=str,
)
def test_zoo_train_does_what_the_record_says(job: Job, tmp_path: Path) -> None:
    work = work_of(job)
    step = next(one for one in steps_of(job, work, tmp_path, Means()) if one.name == "train")

    trained = make_job(build_parser().parse_args(list(step.argv())[len(CHILD) + 1 :]))

    recipe = trained.recipe
    assert (recipe.epochs, recipe.batch_size) == (work.epochs, work.batch_size)
    assert (recipe.peak_lr, recipe.epoch_steps) == (work.peak_lr, work.epoch_steps)
    assert recipe.warmup_epochs == work.warmup_epochs < recipe.epochs
    assert recipe.full_train is (job.settings.get("full_train") != "false")
    assert recipe.weight_decay == recipe_for(job.recipe, job.model).weight_decay
    assert (trained.model, trained.seed, trained.dataset) == (job.model, 1, "cifar100-mini")
    assert (trained.resume, trained.runs, trained.image_size) == ("auto", tmp_path, job.image_size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet_21"}, "no model named 'resnet_21': did you mean"),
        ({"recipe": "studdy"}, "no recipe named 'studdy': did you mean study?"),
        ({"settings": {"peak": "1"}}, "a recipe has no field 'peak'"),
        ({"settings": {"peak_lr": "0"}}, "peak_lr must be above 0 and finite in float32, got 0.0"),
        ({"pretraining": "dino"}, "no method named 'dino': choose one of byol, moco, simclr"),
        ({"model": "vit_tiny", "image_size": 33}, "model 'vit_tiny' takes images of"),
    ],
)
def test_a_job_that_cannot_be(change: dict[str, object], message: str) -> None:
    with pytest.raises((ZooError, UnknownModelError)) as caught:
        work_of(replace(JOB, **change))

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_epoch_ends_after_so_many_steps(tmp_path: Path) -> None:
    reports: list[Progress] = []
    recipe = replace(SHORT, epochs=2, epoch_steps=3)

    run = train(
        TINY, recipe, EAGER_TO_SAVE, few_of_each(), runs=tmp_path, on_progress=reports.append
    )

    assert run.meta.epochs_done == 2
    assert {report.steps for report in reports} == {3}
    with pytest.raises(ValueError, match="epoch_steps must be none or 1 or more, got 0"):
        replace(recipe, epoch_steps=0)


@pytest.mark.skipif(find_spec("lightly") is None, reason="needs the package lightly")
@pytest.mark.parametrize(("epoch_steps", "taken"), [(None, 6), (2, 2), (99, 6)])
def test_an_epoch_of_pre_training_ends_after_so_many_steps(
    epoch_steps: int | None, taken: int
) -> None:
    settings = replace(pretraining_for("simclr"), batch_size=50, epoch_steps=epoch_steps)

    with processes(Runtime(device="cpu")) as accelerator:
        steps = Pretrainer(
            "tiny_network:headed", settings, few_of_each(), accelerator, seed=0
        ).steps

    assert steps == taken


# ---- the commands ----------------------------------------------------------------------------


def complete(folder: Path) -> Path:
    """A run as far as its steps look at it."""
    run = folder / "a-run"
    run.mkdir(parents=True)
    (run / "meta.json").write_text('{"finished_at": "2026-01-01"}')
    return run


def steps(job: Job, folder: Path, **means: object) -> dict[str, Step]:
    return {one.name: one for one in steps_of(job, work_of(job), folder, Means(**means))}


def words(step: Step) -> list[str]:
    """What the command is given."""
    return list(step.argv())[len(CHILD) + 1 :]


def test_the_steps_of_a_job(tmp_path: Path) -> None:
    found = steps(replace(JOB, pretraining="simclr"), tmp_path, to=("onnx", "openvino"))

    assert list(found) == [
        *("pretrain", "train", "export onnx", "export openvino", "bench"),
    ]


def test_what_the_other_commands_are_given(tmp_path: Path) -> None:
    run = complete(tmp_path)
    found = steps(
        JOB, tmp_path, device="cuda", batch=(1, 8), budget_s=2.0, backend=("eager", "onnx")
    )

    export = export_parser().parse_args(words(found["export onnx"]))
    bench = bench_parser().parse_args(words(found["bench"]))

    assert (export.paths, export.to, export.device) == ([run], ("onnx",), "cuda")
    assert (bench.what, bench.batch, bench.budget) == ([str(run)], (1, 8), 2.0)
    assert (bench.backend, bench.device) == (("eager", "onnx"), "cuda")


def test_a_network_of_the_users_own_is_named_to_every_command(tmp_path: Path) -> None:
    complete(tmp_path)
    found = steps(replace(JOB, model="tiny_network:tiny"), tmp_path)

    for name in ("export onnx", "bench"):
        assert "--model tiny_network:tiny" in " ".join(words(found[name]))


def test_a_pre_trained_backbone_is_where_training_begins(tmp_path: Path) -> None:
    job = replace(JOB, pretraining="simclr", max_macs=6e11)
    found = steps(job, tmp_path)
    with pytest.raises(ZooError, match="there is no complete run in"):
        words(found["train"])
    backbone = complete(tmp_path / "pretraining")

    pretrain = pretrain_parser().parse_args(words(found["pretrain"]))
    train = build_parser().parse_args(words(found["train"]))

    assert (pretrain.model, pretrain.method) == ("resnet_20", "simclr")
    assert train.init_from == backbone


@pytest.mark.parametrize(
    ("max_macs", "batch", "steps"),
    [(6e11, 16, 153), (1e9, 8, LEAST_STEPS), (1e14, 128, 28)],  # of 3,600 images, 28 batches
)
def test_a_pre_training_has_a_bound_of_its_own(
    max_macs: float, batch: int, steps: int, tmp_path: Path
) -> None:
    job = replace(JOB, pretraining="simclr", epochs=100_000, max_macs=max_macs)
    step = next(one for one in steps_of(job, work_of(job), tmp_path, Means()))

    settings = make_settings(pretrain_parser().parse_args(words(step)))

    macs = MODELS["resnet_20"].macs
    assert (settings.epochs, settings.warmup_epochs) == (1, 0.05)
    assert (settings.batch_size, min(settings.epoch_steps or 0, 28 * 128 // batch)) == (
        batch,
        steps,
    )
    assert settings.peak_lr == float(f"{0.24 * math.sqrt(batch / 512):.4g}")
    assert work_of(job).pretraining_macs == step.macs == 3 * 2 * macs * batch * steps
    assert work_of(job).pretraining_macs <= max_macs or steps == LEAST_STEPS


def test_a_bound_that_pre_training_keeps_changes_nothing(tmp_path: Path) -> None:
    job = replace(JOB, pretraining="simclr", epochs=1, max_macs=1e18)
    step = next(one for one in steps_of(job, work_of(job), tmp_path, Means()))

    settings = make_settings(pretrain_parser().parse_args(words(step)))

    assert settings == pretraining_for("simclr")
    assert not work_of(job).is_bounded
    assert work_of(job).pretraining_macs == 3 * 2 * MODELS["resnet_20"].macs * 512 * 7 * 200


def test_what_lies_there_is_done(tmp_path: Path) -> None:
    found = steps(JOB, tmp_path)
    before = [name for name in found if found[name].is_done()]
    run = complete(tmp_path)
    (run / "artifacts").mkdir()
    (run / "artifacts" / "onnx-fp32.json").write_text('{"target": "onnx"}')

    after = [name for name in found if found[name].is_done()]

    assert before == []
    assert after == ["train", "export onnx"]


def test_a_run_that_is_not_complete_is_not_done(tmp_path: Path) -> None:
    run = complete(tmp_path)
    (run / "meta.json").write_text('{"finished_at": null}')

    assert not steps(JOB, tmp_path)["train"].is_done()
