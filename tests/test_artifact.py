import json
import shutil
from pathlib import Path

import pytest
from export_helpers import edit

from export import NATIVE, SUFFIXES, TARGETS, target_of
from export.artifact import Artifact, check_digest, combined_digest, find_artifacts, read_manifest
from export.opening import open_artifact
from profiling.runs import run_subjects
from zoo.errors import ArtifactError, ZooError
from zoo.files import sha256_file

pytest_plugins = ["export_fixtures"]


def test_changed_byte_is_refused(copied: Path) -> None:
    content = bytearray(copied.read_bytes())
    content[len(content) // 2] ^= 1
    copied.write_bytes(content)

    assert [artifact.path for artifact in find_artifacts(copied.parents[1])] == [copied]
    with pytest.raises(ArtifactError, match="its manifest promises .* changed or damaged; write"):
        open_artifact(str(copied), "cpu")


def test_missing_file_is_refused(copied: Path) -> None:
    copied.unlink()

    assert len(find_artifacts(copied.parents[1])) == 1
    with pytest.raises(ArtifactError, match="there is no artifact .*: write it again with zoo-exp"):
        open_artifact(str(copied), "cpu")


def test_file_without_manifest_is_no_artifact(copied: Path) -> None:
    copied.with_suffix(".json").unlink()

    assert find_artifacts(copied.parents[1]) == []
    with pytest.raises(ArtifactError, match="has no manifest onnx-fp32.json beside it"):
        open_artifact(str(copied), "cpu")


def test_temporary_files_are_no_artifacts(copied: Path) -> None:
    shutil.copy(copied.with_suffix(".json"), copied.with_name(".part-1.json"))

    assert len(find_artifacts(copied.parents[1])) == 1


@pytest.mark.parametrize("name", ["onnx-fp16.onnx", "../weights.safetensors", "/etc/hostname"])
def test_manifest_of_another_file_is_refused(copied: Path, name: str) -> None:
    edit(copied.with_suffix(".json"), file=name)

    with pytest.raises(ArtifactError, match="is the manifest of another file"):
        find_artifacts(copied.parents[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not the manifest of an artifact"),
        ('{"schema": 1}', "is not the manifest of an artifact"),
        ('{"schema": 99}', "has schema 99, this version reads up to 2: update cifar-zoo"),
    ],
)
def test_damaged_manifest_is_refused(copied: Path, text: str, message: str) -> None:
    copied.with_suffix(".json").write_text(text)
    left_out: list[ArtifactError] = []

    with pytest.raises(ArtifactError, match=message) as refusal:
        find_artifacts(copied.parents[1])
    assert find_artifacts(copied.parents[1], on_damage=left_out.append) == []
    assert [str(error) for error in left_out] == [str(refusal.value)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "int4"}, "there is no precision 'int4'"),
        ({"facts": {"int8": 8}}, "int8 is no object"),
    ],
)
def test_what_no_writer_says_is_refused(
    copied: Path, change: dict[str, object], message: str
) -> None:
    edit(copied.with_suffix(".json"), **change)

    with pytest.raises(ArtifactError, match=f"is not the manifest of an artifact .{message}"):
        find_artifacts(copied.parents[1])


def test_what_a_proof_refuted_is_not_opened(copied: Path) -> None:
    reason = "not the model on onnxruntime 1.31: parity with eager failed"
    edit(copied.with_suffix(".json"), pending=reason, parity=None, accuracy=None)

    with pytest.raises(ArtifactError) as refusal:
        open_artifact(str(copied), "cpu")

    assert str(refusal.value) == f"{copied} is {reason}: write it again with zoo-export"
    assert open_artifact(str(copied), "cpu", trust=True).precision == "fp32"


def test_artifact_of_older_weights_is_refused(copied: Path) -> None:
    edit(copied.parents[1] / "meta.json", weights_sha256="0" * 64)

    with pytest.raises(ArtifactError, match="from other weights than its run holds now"):
        open_artifact(str(copied), "cpu")


def test_artifact_opens_outside_its_run(copied: Path, tmp_path: Path) -> None:
    for suffix in (".onnx", ".json"):
        shutil.move(copied.with_suffix(suffix), tmp_path)

    assert open_artifact(str(tmp_path / copied.name), "cpu").precision == "fp32"


# Old manifests, several files, native code


def test_manifest_of_schema_1_is_still_read(copied: Path, exported: Artifact) -> None:
    manifest = copied.with_suffix(".json")
    value = json.loads(manifest.read_text())
    for later in ("proof", "is_raw", "files", "facts", "comparison", "pending", "proxy_parity"):
        del value[later]
    for later in ("proven_by", "proven_in"):
        del value[later]
    del value["parity"]["mean_kl"]
    manifest.write_text(json.dumps(value | {"schema": 1}))

    artifact = read_manifest(manifest)

    assert (artifact.schema, artifact.pending, artifact.backend) == (1, None, "onnx")
    assert artifact.accuracy == exported.accuracy
    assert open_artifact(str(copied), "cpu").backend == "onnx"


def test_every_target_has_a_suffix_of_its_own() -> None:
    assert sorted(SUFFIXES.values()) == sorted(TARGETS)
    assert target_of(Path("runs/a/artifacts/aoti-fp32.aoti.pt2")) == "aoti"
    assert target_of(Path("theirs.pt2")) is None
    assert {"trt", "aoti", "torchexport"} == NATIVE


def two_files(copied: Path) -> Path:
    """The artifact with a second file that belongs to it."""
    second = copied.with_suffix(".bin")
    second.write_bytes(b"weights")
    files = {path.name: sha256_file(path) for path in (copied, second)}
    edit(copied.with_suffix(".json"), files=files, sha256=combined_digest(files))
    return second


def test_all_files_of_an_artifact_are_checked(copied: Path) -> None:
    second = two_files(copied)

    assert open_artifact(str(copied), "cpu").backend == "onnx"

    second.write_bytes(b"others!")
    with pytest.raises(ArtifactError, match=r"onnx-fp32\.bin has SHA-256 .*: it was changed or"):
        open_artifact(str(copied), "cpu")
    second.unlink()
    with pytest.raises(ArtifactError, match=r"lacks onnx-fp32\.bin beside it: write it again"):
        open_artifact(str(copied), "cpu")


@pytest.mark.parametrize("name", ["../weights.bin", "/etc/hostname", "other.bin", "onnx-fp32.json"])
def test_other_files_of_an_artifact_lie_beside_it(copied: Path, name: str) -> None:
    edit(copied.with_suffix(".json"), files={copied.name: "0" * 64, name: "0" * 64})

    with pytest.raises(ArtifactError, match="is the manifest of another file"):
        read_manifest(copied.with_suffix(".json"))


def test_digests_of_files_belong_to_the_digest_of_all(copied: Path) -> None:
    two_files(copied)
    edit(copied.with_suffix(".json"), sha256="0" * 64)

    with pytest.raises(ArtifactError, match="the manifest of .* was changed or damaged: write it"):
        check_digest(read_manifest(copied.with_suffix(".json")))


def test_digest_of_several_files_is_that_of_their_list() -> None:
    files = {"b.xml": "1" * 64, "a.bin": "2" * 64}

    assert combined_digest({"b.xml": "1" * 64}) == "1" * 64
    assert combined_digest(files) == combined_digest(dict(reversed(files.items())))
    assert combined_digest(files) not in files.values()


def test_manifest_of_another_target_is_refused(copied: Path) -> None:
    edit(copied.with_suffix(".json"), target="aoti")

    with pytest.raises(ArtifactError, match="calls onnx-fp32.onnx a file of aoti: write it again"):
        read_manifest(copied.with_suffix(".json"))


def test_manifest_of_a_later_target_is_refused(copied: Path) -> None:
    edit(copied.with_suffix(".json"), target="coreml")

    with pytest.raises(ArtifactError, match="names the target 'coreml': update cifar-zoo"):
        read_manifest(copied.with_suffix(".json"))


def test_manifest_without_proof_is_refused(copied: Path) -> None:
    edit(copied.with_suffix(".json"), parity=None)

    with pytest.raises(ArtifactError, match="it proves nothing"):
        read_manifest(copied.with_suffix(".json"))


@pytest.mark.parametrize("suffix", [".engine", ".aoti.pt2", ".export.pt2"])
@pytest.mark.parametrize("fault", ["no manifest", "changed"])
def test_native_code_needs_a_manifest_that_fits(copied: Path, suffix: str, fault: str) -> None:
    path = copied.with_name(f"native{suffix}")
    shutil.copy(copied, path)
    if fault == "changed":
        value = json.loads(copied.with_suffix(".json").read_text())
        value |= {"target": SUFFIXES[suffix], "file": path.name, "sha256": "0" * 64}
        path.with_name("native.json").write_text(json.dumps(value | {"files": {}}))

    with pytest.raises(ArtifactError) as caught:
        open_artifact(str(path), "cpu")

    message = str(caught.value)
    assert ("it was changed or damaged" in message) == (fault == "changed")
    assert message.endswith("; opening it can run code, for which a manifest has to vouch")
    assert "\n" not in message


def test_trust_asks_for_no_manifest(copied: Path) -> None:
    copied.with_suffix(".json").unlink()

    assert open_artifact(str(copied), "cpu", trust=True).backend == "onnx"


@pytest.mark.parametrize(
    ("name", "message"),
    [("gone.engine", "there is no file"), ("theirs.pt2", "is no file of a format")],
)
def test_trust_opens_no_file_of_an_unknown_kind(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "theirs.pt2").write_bytes(b"")

    with pytest.raises(ArtifactError, match=message):
        open_artifact(str(tmp_path / name), "cpu", trust=True)


def test_provider_is_for_onnx_alone(copied: Path) -> None:
    path = copied.rename(copied.with_suffix(".engine"))

    with pytest.raises(ZooError, match=r"is for \.onnx files, not for trt: leave it out"):
        open_artifact(str(path), "cpu", trust=True, provider="cpu")


# In the bench


def test_bench_knows_how_long_the_export_took(copied: Path) -> None:
    edit(copied.with_suffix(".json"), build_s=12.5)
    run = copied.parents[1]

    eager, *_, exported = run_subjects(run, artifacts=find_artifacts(run))

    assert (eager.build_s, exported.build_s) == (None, 12.5)


def test_bench_knows_how_near_to_eager_the_proof_found_the_file(
    exported: Artifact, copied: Path
) -> None:
    run, parity = copied.parents[1], exported.parity

    eager, *_, subject = run_subjects(run, artifacts=find_artifacts(run))

    assert parity is not None
    known = (subject.parity_max_error, subject.parity_agreement)
    assert known == (parity.max_abs_error, parity.top1_agreement)
    assert (eager.parity_max_error, eager.parity_agreement) == (None, None)


def test_pending_artifact_is_never_measured(copied: Path) -> None:
    manifest = copied.with_suffix(".json")
    edit(manifest, pending="it runs on a GPU only\x1b[2J\n", parity=None, accuracy=None)
    run = copied.parents[1]

    subject = run_subjects(run, artifacts=find_artifacts(run))[-1]

    assert (subject.backend, subject.top1) == ("onnx", None)
    assert subject.unavailable == (
        f"its proof is pending: it runs on a GPU only?[2J? (zoo-export --prove {copied})"
    )
