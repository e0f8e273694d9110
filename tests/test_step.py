"""One optimiser step: parts of a batch, clipping, what is left behind, and the captured step."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from unittest.mock import Mock

import pytest
import torch
from accelerate import Accelerator
from small_runs import SHORT, TINY, few_of_each

from training import Recipe, Runtime
from training.loop import Trainer
from training.pace import LEAD, Lead
from training.philox import Numbers
from training.step import WARM_UP_STEPS, Step
from zoo.data import Dataset
from zoo.errors import MachineError
from zoo.models import create_model

STEPS = 3


@pytest.fixture(scope="module")
def few() -> Dataset:
    return few_of_each()


def trainer(
    recipe: Recipe,
    data: Dataset,
    *,
    model: str = "vit_tiny",
    device: str = "cpu",
    **runtime: object,
) -> Trainer:
    torch.manual_seed(0)
    network = create_model(model, num_classes=data.num_classes)
    chosen = Runtime(device=device, **runtime)
    return Trainer(network, recipe, chosen, data, Accelerator(cpu=device == "cpu"), seed=0)


def after(run: Trainer, steps: int = STEPS) -> dict[str, torch.Tensor]:
    """The weights after some steps."""
    for _ in islice(run.run_steps(1), steps):
        pass
    return {key: value.clone() for key, value in run.plain.state_dict().items()}


def largest_gap(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    return max((mine[key].float() - theirs[key].float()).abs().max().item() for key in mine)


def test_a_batch_in_parts_is_the_whole_batch(few: Dataset) -> None:
    whole, parts = trainer(SHORT, few), trainer(SHORT, few, accumulate=2)

    assert largest_gap(after(whole), after(parts)) < 1e-6
    torch.testing.assert_close(parts.stepper.sums, whole.stepper.sums)


def test_pairs_need_no_even_parts(few: Dataset) -> None:
    mixed = replace(SHORT, batch_size=10, mixup_alpha=0.2)

    run = trainer(mixed, few, accumulate=2)  # 5 images at a time

    assert next(run.run_steps(1))[0].isfinite()


def test_sums_are_those_of_the_process_or_a_share_of_all(few: Dataset) -> None:
    run = trainer(SHORT, few)
    next(run.run_steps(1))
    state = run.stepper.state()
    own = run.stepper.sums.clone()
    assert torch.equal(state["sums"], own[None])

    for stored, expected in (
        (state["sums"], own),
        (own, own),  # as older states have it
        (torch.stack((own, 3 * own)), 2 * own),  # of two processes
    ):
        run.stepper.load_state(state | {"sums": stored})
        assert torch.equal(run.stepper.sums, expected)


def test_clipped_gradients_move_the_weights_by_no_more_than_the_norm(few: Dataset) -> None:
    clipped = replace(SHORT, clip_norm=1e-3, weight_decay=0.0, momentum=0.0, warmup_epochs=0.0)
    run = trainer(clipped, few)
    before = {key: value.clone() for key, value in run.plain.state_dict().items()}

    moved = after(run, steps=1)

    change = sum(((moved[key] - before[key]) ** 2).sum() for key in before).sqrt()
    assert change == pytest.approx(clipped.peak_lr * 1e-3, rel=1e-3)


def test_both_memory_formats_compute_the_same(few: Dataset) -> None:
    last = trainer(SHORT, few, model="resnet_20")
    first = trainer(SHORT, few, model="resnet_20", channels_last=False)

    losses = [next(run.run_steps(1))[0].item() for run in (last, first)]

    assert last.stepper.batch()[0].is_contiguous(memory_format=torch.channels_last)
    assert first.stepper.batch()[0].is_contiguous()
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("channels_last", [True, False])
def test_evaluation_leaves_all_tensors_in_their_places(
    channels_last: bool, ema_decay: float, few: Dataset
) -> None:
    recipe = replace(SHORT, ema_decay=ema_decay)
    run = trainer(recipe, few, model="resnet_20", channels_last=channels_last)

    def places() -> dict[str, tuple[int, tuple[int, ...]]]:
        return {key: (t.data_ptr(), t.stride()) for key, t in run.stepper.tensors().items()}

    before = places()
    run.predicted()
    run.evaluate(few.test)

    assert {key: place for key, place in places().items() if key in before} == before


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_run_goes_on_in_the_other_memory_format(
    channels_last: bool, optimizer: str, few: Dataset
) -> None:
    recipe = replace(SHORT, optimizer=optimizer)
    begun = trainer(recipe, few, model="resnet_20", channels_last=channels_last)
    after(begun, 1)
    same, other = (
        trainer(recipe, few, model="resnet_20", channels_last=there)
        for there in (channels_last, not channels_last)
    )
    for run in (same, other):
        run.load_state(begun.state())

    states = [run.state() for run in (same, other)]
    for run in (same, other):
        next(run.run_steps(1))

    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    ends = [run.stepper.tensors() for run in (same, other)]
    moments = [key for key, t in ends[0].items() if key.startswith("optimizer.") and t.ndim > 1]
    mine, theirs = (torch.cat([end[key].flatten() for key in moments]) for end in ends)
    assert (mine - theirs).norm() < 0.1 * theirs.norm()  # wrongly laid out: as far as strangers


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_steps_before_a_capture_lie_within_a_short_epoch(
    steps: int, few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(replace(SHORT, epoch_steps=steps), few, model=TINY)
    before = run.state()

    def fake_capture(stepper: Step) -> None:
        stepper._take()  # as a capture does, without a graph
        stepper.place[1] -= 1

    monkeypatch.setattr(Step, "wants_graph", True)
    monkeypatch.setattr(Step, "capture", fake_capture)

    run.predicted()

    after_it = run.state()
    assert all(torch.equal(after_it[key], before[key]) for key in before)


class FakeBrokenCapture:
    """A capture whose end fails too, as torch's does, with words of its own."""

    def __init__(self, graph: object) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


class FakeGpuGenerator:
    """As in torch 2.10: a capture that fails leaves it captured, and it draws no more."""

    def __init__(self, *, is_captured: bool) -> None:
        self.is_captured = is_captured

    def clone_state(self) -> "FakeGpuGenerator":
        return FakeGpuGenerator(is_captured=False)

    def graphsafe_set_state(self, other: "FakeGpuGenerator") -> None:
        self.is_captured = other.is_captured


@pytest.mark.parametrize(
    ("failure", "wanted", "told"),
    [
        (RuntimeError("it looks at a value"), "auto", None),
        (RuntimeError("it looks at a value"), "on", r"captured \(it looks at a value\)"),
        (torch.OutOfMemoryError("CUDA out of memory"), "auto", "CUDA out of memory"),
        (KeyboardInterrupt("in the middle"), "auto", "in the middle"),
    ],
    ids=["auto", "on", "memory", "signal"],
)
def test_what_a_capture_met_first_is_told(
    failure: BaseException,
    wanted: str,
    told: str | None,
    few: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = trainer(SHORT, few, model=TINY).stepper
    step.runtime = replace(step.runtime, cuda_graphs=wanted)
    step.begin(1)
    take, taken = step._take, []

    def fail_while_capturing() -> None:
        taken.append(None)
        if len(taken) <= WARM_UP_STEPS:
            return take()
        step.plain[0].weight.grad = torch.ones_like(step.plain[0].weight)
        raise failure

    monkeypatch.setattr(step, "_take", fail_while_capturing)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: Mock())
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Mock)
    monkeypatch.setattr(torch.cuda, "graph", FakeBrokenCapture)
    generators = [FakeGpuGenerator(is_captured=False), FakeGpuGenerator(is_captured=True)]
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)

    if told is None:
        step.capture()
        assert (step.graph, step.capture_failure) == (None, "it looks at a value")
        assert all(parameter.grad is None for parameter in step.plain.parameters())
    else:
        kind = MachineError if wanted == "on" else type(failure)
        with pytest.raises(kind, match=told):
            step.capture()
    assert not generators[1].is_captured


@pytest.mark.parametrize("at_once", [1, 100, 10_000])  # of 50 images a batch
def test_what_is_drawn_ahead_is_what_each_step_would_draw(
    at_once: int, few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.step.DRAWN_AHEAD", at_once)
    step = trainer(replace(SHORT, mixup_alpha=0.2), few).stepper

    for epoch in (1, 2):
        step.begin(epoch)
        for number in range(step.steps):
            place = step.offset + number * 50
            numbers = Numbers(key=step.key, epoch=torch.tensor(epoch), place=place)
            expected = step.augmentation(*step.source.batch(step.order[place]), numbers)
            assert all(map(torch.equal, step.batch(), expected))
            step.take()


class FakeGpuQueue:
    """Stands in for a GPU that takes steps up at once and ends none before the host waits for it.

    A step counts as handed over where its end is recorded.
    """

    def __init__(self) -> None:
        self.handed_over = self.done = 0

    def event(self, **_: object) -> Mock:
        after, queue = 0, self

        def record() -> None:
            nonlocal after
            queue.handed_over += 1
            after = queue.handed_over

        def synchronize() -> None:
            queue.done = max(queue.done, after)

        return Mock(record=record, synchronize=synchronize)


def test_the_host_runs_no_more_than_a_few_steps_ahead_of_a_gpu(
    few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, run = FakeGpuQueue(), trainer(SHORT, few, model=TINY)
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    run.stepper.lead = Lead(torch.device("cuda"))
    under_way = []

    for epoch in (1, 2):
        for _ in run.run_steps(epoch):
            under_way.append(gpu.handed_over - gpu.done)

    assert len(under_way) > 2 * LEAD
    assert max(under_way) == LEAD


def test_a_cpu_draws_once_for_many_steps(few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = trainer(SHORT, few), []
    draw = run.stepper.augmentation.draw
    monkeypatch.setattr(
        run.stepper.augmentation, "draw", lambda n: asked.append(len(n.place)) or draw(n)
    )

    list(run.run_steps(1))

    assert run.steps > 1
    assert asked == [run.steps * 50]


def test_preparing_batches_leaves_the_step_where_it_is(few: Dataset) -> None:
    run, other = trainer(SHORT, few), trainer(SHORT, few)
    for one in (run, other):
        next(one.run_steps(1))

    run.stepper.augment(run.steps)  # and so past the end of the epoch

    losses = [[loss.item() for loss, _ in one.run_steps(1)] for one in (run, other)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == run.steps - 1


def test_mixed_images_train(few: Dataset) -> None:
    run = trainer(replace(SHORT, mixup_alpha=0.2, cutmix_alpha=1.0), few)
    plain = trainer(SHORT, few)

    assert largest_gap(after(run), after(plain)) > 0
    assert run.stepper.sums.isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize(
    "recipe",
    [
        SHORT,
        replace(SHORT, precision="fp16"),
        replace(SHORT, epoch_steps=1),
        replace(
            SHORT,
            optimizer="adamw",
            peak_lr=1e-3,
            ema_decay=0.9,
            mixup_alpha=0.2,
            cutmix_alpha=1.0,
            clip_norm=1.0,
        ),
    ],
    ids=["sgd", "fp16", "one step", "adamw"],
)
def test_a_captured_step_is_the_step(recipe: Recipe, few: Dataset) -> None:
    plain = trainer(recipe, few, device="cuda", cuda_graphs="off")
    captured = trainer(recipe, few, device="cuda", cuda_graphs="on")
    captured.predicted()

    assert captured.stepper.graph is not None
    assert plain.stepper.graph is None
    assert largest_gap(after(plain), after(captured)) < 1e-3
