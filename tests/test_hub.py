"""Weights from the Hub: its own client, over HTTP, from a server on this machine."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hub_host import COMMIT, PLACE, REPO, Hub, serving
from huggingface_hub import constants

from zoo.errors import CheckpointError, MachineError, ZooError
from zoo.models import create_model
from zoo.pretrained import SHIPPED, card

CARD, WEIGHTS = "resnet_20.json", "resnet_20.safetensors"
NOBODY = "http://127.0.0.1:9"  # where nobody listens


def use(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client ask `endpoint`, as HF_ENDPOINT does before it is imported."""
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The weights that come with the package, published by somebody."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.delenv("ZOO_WEIGHTS", raising=False)
    with serving() as host:
        use(host.url, monkeypatch)
        host.files = {name: (SHIPPED / name).read_bytes() for name in (CARD, WEIGHTS)}
        yield host


def promise(hub: Hub, content: bytes) -> None:
    """Publish `content` as the weights, with a card that fits."""
    digest = hashlib.sha256(content).hexdigest()
    facts = json.loads(hub.files[CARD]) | {"sha256": digest, "size_bytes": len(content)}
    hub.files |= {CARD: json.dumps(facts).encode(), WEIGHTS: content}


def test_weights_are_downloaded_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("resnet_20", weights=PLACE)

    asked = list(hub.requests)
    expected = create_model("resnet_20", pretrained=True).state_dict()
    torch.testing.assert_close(model.state_dict(), expected, rtol=0, atol=0)
    assert [name for method, name in asked if method == "GET"] == [CARD, WEIGHTS]
    use(NOBODY, monkeypatch)  # from here on the cache has to do
    create_model("resnet_20", weights=PLACE)
    assert card("resnet_20", weights=PLACE) == card("resnet_20")
    assert hub.requests == asked


def test_the_client_is_set_up_by_its_own_variables(hub: Hub, tmp_path: Path) -> None:
    code = "from zoo.models import create_model; create_model('resnet_32', pretrained=True)"
    promise(hub, safetensors.torch.save(create_model("resnet_32").state_dict()))
    facts = json.loads(hub.files.pop(CARD)) | {"model": "resnet_32"}
    hub.files["resnet_32.json"] = json.dumps(facts).encode()
    hub.files["resnet_32.safetensors"] = hub.files.pop(WEIGHTS)
    home = tmp_path / "home"
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "ZOO_WEIGHTS": PLACE}
    variables["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    command = (sys.executable, "-W", "error", "-c", code)

    result = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False
    )

    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    kept = home / "hub" / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT
    assert sorted(file.name for file in kept.iterdir()) == sorted(hub.files)


@pytest.mark.parametrize(
    "place",
    [
        f"hub:{REPO}",
        f"hub:{REPO}@main",
        f"hub:{REPO}@v1.0",
        f"hub:{REPO}@{COMMIT[:12]}",
        f"hub:{REPO}@{COMMIT.upper()}",
        f"hub:{REPO}@{COMMIT}/sub",
        f"hub:weights@{COMMIT}",
    ],
)
def test_only_a_commit_is_a_place(hub: Hub, place: str) -> None:
    with pytest.raises(ZooError, match="is no pinned place: .* the 40 hexadecimal digits of the"):
        create_model("resnet_20", weights=place)

    assert hub.requests == []


def test_an_answer_for_another_commit_is_refused(hub: Hub) -> None:
    hub.commit = "f" * 40

    with pytest.raises(ZooError, match="the Hub answered for another commit, ffff"):
        create_model("resnet_20", weights=PLACE)


def test_other_bytes_than_the_card_promises(hub: Hub, tmp_path: Path) -> None:
    content = bytearray(hub.files[WEIGHTS])
    content[-1] ^= 1
    hub.files[WEIGHTS] = bytes(content)

    with pytest.raises(CheckpointError) as caught:
        create_model("resnet_20", weights=PLACE)

    cache = tmp_path / "cache" / f"models--{REPO.replace('/', '--')}"
    promised = card("resnet_20").sha256[:12]
    assert f"its card promises {promised}...: choose another commit, or remove {cache} to" in str(
        caught.value
    )


@pytest.mark.parametrize("change", [-100, 100])
def test_another_size_than_the_card_promises(hub: Hub, change: int) -> None:
    hub.files[WEIGHTS] = (hub.files[WEIGHTS] + bytes(100))[: len(hub.files[WEIGHTS]) + change]

    expected = "bytes, its card promises 1,131,368:|1131468 bytes, expected were 1131368 at most"
    with pytest.raises(ZooError, match=expected):
        create_model("resnet_20", weights=PLACE)

    assert (("GET", WEIGHTS) in hub.requests) is (change < 0)  # nothing too large is fetched


def test_a_card_of_any_size_is_not_fetched(hub: Hub) -> None:
    hub.files[CARD] += b" " * 1_000_000

    with pytest.raises(ZooError, match="resnet_20.json of hub:.* expected were 1000000 at most"):
        create_model("resnet_20", weights=PLACE)

    assert hub.requests == [("HEAD", CARD)]


def test_a_pickle_is_not_run(hub: Hub, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    promise(hub, pickle.dumps({"weight": Trap()}))

    with pytest.raises(CheckpointError, match=r"is no safetensors file \(.*nothing of it was load"):
        create_model("resnet_20", weights=PLACE)

    assert not (tmp_path / "sprung").exists()


def test_a_transfer_that_is_cut(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card("resnet_20", weights=PLACE)  # arrives whole
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client tries six times
    hub.cut = True

    with pytest.raises(MachineError, match=r"resnet_20.safetensors of hub:.* cannot be downloaded"):
        create_model("resnet_20", weights=PLACE)

    hub.cut = False
    create_model("resnet_20", weights=PLACE)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("EntryNotFound", "the repository has no such file at this commit"),
        ("RevisionNotFound", "the repository has no such commit"),
        ("RepoNotFound", "there is no such repository, or none for you"),
    ],
)
def test_what_does_not_exist(hub: Hub, error: str, message: str) -> None:
    hub.error = error

    with pytest.raises(ZooError) as caught:
        create_model("resnet_20", weights=PLACE)

    assert str(caught.value) == f"resnet_20.json of hub:{REPO}@{COMMIT[:12]}...: {message}"


def test_a_model_that_the_repository_lacks(hub: Hub) -> None:
    with pytest.raises(ZooError, match="^resnet_32.json of hub:.*has no such file at this commit"):
        create_model("resnet_32", weights=PLACE)


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_that_refuses(hub: Hub, status: int) -> None:
    hub.status = status

    with pytest.raises(MachineError, match=rf"cannot be downloaded \(.*{status}") as caught:
        create_model("resnet_20", weights=PLACE)

    assert "\n" not in str(caught.value)


def test_no_network_fails_at_once_and_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    use(NOBODY, monkeypatch)
    monkeypatch.setattr(time, "sleep", None)

    with pytest.raises(MachineError) as caught:
        create_model("resnet_20", weights=PLACE)

    assert str(caught.value) == (
        f"resnet_20.json of hub:{REPO}@{COMMIT[:12]}... cannot be downloaded ([Errno 111] "
        "Connection refused): connect to the network, or put the files into a folder and name "
        "that in its place"
    )


def test_offline_mode_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(MachineError, match="cannot be downloaded .*offline"):
        create_model("resnet_20", weights=PLACE)
