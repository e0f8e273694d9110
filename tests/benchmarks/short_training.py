"""Train every variant for about a CPU minute and show that its loss falls: make short-training.

Each training is bounded by work, not by time: WORK multiply-accumulates (three forward passes an
image), at least LEAST_STEPS steps. One thread, fp32, one recipe and one seed for all, the shipped
subset. The loss is that of the same PROBE training images before and after, with batch statistics
and nothing dropped. These are checks that a network learns, no comparison of accuracies.
"""

import argparse
import copy
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from training.loop import Trainer
from training.recipe import Recipe, Runtime
from zoo.data import Dataset, Split, load_dataset
from zoo.environment import capture, git_commit
from zoo.files import write_atomic
from zoo.models import MODELS, create_model

WORK = 0.6e12  # multiply-accumulates of a training
MORE_WORK = {"coatnet_cifar_opt_csp": 3}  # times as much: its loss rises before it falls
LEAST_STEPS = 20
BATCHES = (8, 32)  # images a step: the least, and the most
MOST_STEPS = 150
PROBE = 64  # images
SEED = 0
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "bench_results" / "short_training"
RECORDS, TABLE = "records.jsonl", "README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Short:
    """One bounded training."""

    model: str
    batch_size: int
    steps: int
    training_macs: int  # three forward passes for each image of each step
    loss_before: float
    loss_after: float
    cpu_seconds: float  # of the steps
    environment_key: str
    device: str
    torch: str
    commit: str | None

    @property
    def fell(self) -> bool:
        """Whether the network learned anything."""
        return self.loss_after < self.loss_before


def bound(name: str) -> tuple[int, int]:
    """Images a step, and steps, of a variant."""
    images = MORE_WORK.get(name, 1) * WORK / (3 * MODELS[name].macs)
    batch = int(min(BATCHES[1], max(BATCHES[0], images / MOST_STEPS)))
    return batch, int(min(MOST_STEPS, max(LEAST_STEPS, images / batch)))


def train_shortly(name: str, data: Dataset) -> Short:
    """Run the steps of one variant."""
    macs = MODELS[name].macs
    batch, steps = bound(name)
    rows = min(len(data.train.fine), batch * steps)
    train = Split(images=data.train.images[:rows], fine=data.train.fine[:rows])
    epochs = -(-steps // (rows // batch))
    recipe = Recipe(
        name="short",
        epochs=epochs,
        batch_size=batch,
        optimizer="adamw",
        peak_lr=1e-4,
        warmup_epochs=0.1 * epochs,
        weight_decay=0.05,
        augment="none",
        erase_p=0.0,
        full_train=True,
        precision="fp32",
    )
    torch.manual_seed(SEED)
    model = create_model(name, num_classes=data.num_classes)
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    part = replace(data, train=train)
    trainer = Trainer(model, recipe, Runtime(device="cpu"), part, accelerator, seed=SEED)
    before = probe_loss(trainer)
    start, done = time.process_time(), 0
    for epoch in range(1, epochs + 1):
        for _ in trainer.run_steps(epoch):
            done += 1
            if done == steps:
                break
    seconds = time.process_time() - start
    environment = capture("cpu")
    return Short(
        model=name,
        batch_size=batch,
        steps=done,
        training_macs=3 * macs * batch * done,
        loss_before=before,
        loss_after=probe_loss(trainer),
        cpu_seconds=seconds,
        environment_key=environment.key,
        device=environment.cpu,
        torch=torch.__version__,
        commit=git_commit(ROOT),
    )


def probe_loss(trainer: Trainer) -> float:
    """Mean loss of the first training images, each in a batch of the others."""
    twin = copy.deepcopy(trainer.plain).train()
    for module in twin.modules():
        if "drop" in type(module).__name__.lower():  # Dropout, DropPath: ours, timm's, torch's
            module.eval()
    rows = trainer.data.train
    images = to_images(trainer, rows.images[:PROBE])
    with torch.no_grad():
        parts = [
            F.cross_entropy(twin(x), y)
            for x, y in zip(
                images.split(16), torch.tensor(rows.fine[:PROBE]).split(16), strict=True
            )
        ]
    return torch.stack(parts).mean().item()


def to_images(trainer: Trainer, stored: object) -> torch.Tensor:
    """What the network sees of stored images, without augmentation."""
    return trainer.preprocessing.to_batch(stored)


def read(folder: Path) -> list[Short]:
    """The newest record of each variant, by name."""
    lines = (folder / RECORDS).read_text().splitlines()
    records = {value["model"]: Short(**value) for value in map(json.loads, lines)}
    return [records[name] for name in sorted(records)]


def table(records: list[Short]) -> str:
    """The README of the folder."""
    machines = sorted({f"{r.device}, one thread, torch {r.torch}" for r in records})
    lines = [
        "# Short trainings",
        "",
        "Written by `make short-training` from `records.jsonl`; do not edit it. A check that every "
        "network learns, no comparison of accuracies: these are bounded runs.",
        "",
        f"Bound: {WORK / 1e12:g}e12 multiply-accumulates (three forward passes an image), "
        f"{LEAST_STEPS} to {MOST_STEPS} steps of {BATCHES[0]} to {BATCHES[1]} images; networks "
        f"that need more for {LEAST_STEPS} steps of {BATCHES[0]} get them, and "
        f"{', '.join(f'{name} {times} times as many' for name, times in MORE_WORK.items())}. "
        "AdamW, peak rate 1e-4, warm-up over a tenth, crop and flip, fp32, seed "
        f"{SEED}, images of cifar100-mini. Loss: cross-entropy of the same {PROBE} training images "
        f"before and after, batch statistics of 16, nothing dropped; ln(100) = 4.61.",
        "",
        *machines,
        "",
        "| model | batch | steps | training GMACs | CPU s | loss before | loss after |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in records:
        lines.append(
            f"| {r.model} | {r.batch_size} | {r.steps} | {r.training_macs / 1e9:,.0f} "
            f"| {r.cpu_seconds:.0f} | {r.loss_before:.3f} | {r.loss_after:.3f} |"
        )
    return "\n".join([*lines, ""])


def main() -> int:
    """Train what has no record yet, or what is named; then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="variants; without any, those without a record")
    parser.add_argument("--shard", default="1/1", help="I/N: every Nth variant, from the Ith on")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / RECORDS).touch()
    index, count = map(int, args.shard.split("/"))
    names = args.models or sorted(MODELS.keys() - {record.model for record in read(args.folder)})
    data = load_dataset("cifar100-mini")
    for name in names[index - 1 :: count]:
        record = train_shortly(name, data)
        with (args.folder / RECORDS).open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")
        verdict = "falls" if record.fell else "DOES NOT FALL"
        print(
            f"{name}: loss {verdict} from {record.loss_before:.3f} to {record.loss_after:.3f} in "
            f"{record.steps} steps of {record.batch_size}, {record.cpu_seconds:.0f} s",
            file=sys.stderr,
        )
    write_atomic(args.folder / TABLE, table(read(args.folder)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
