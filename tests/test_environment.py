import json
from dataclasses import replace

import torch

from zoo.environment import Environment, capture, has_bf16_units


def test_a_fingerprint_survives_json() -> None:
    environment = capture()

    assert Environment.from_json(json.loads(json.dumps(environment.to_json()))) == environment


def test_later_fields_are_dropped() -> None:
    environment = capture()

    assert Environment.from_json(environment.to_json() | {"later": 1}) == environment


def test_the_key_differs_where_a_field_does() -> None:
    environment = capture()

    assert len(environment.key) == 12
    assert environment.key == capture().key
    assert environment.key != replace(environment, torch="0.0").key
    assert environment.key != replace(environment, threads=environment.threads + 1).key


def test_it_tells_of_this_machine() -> None:
    environment = capture()

    assert environment.torch == str(torch.__version__)
    assert environment.threads == torch.get_num_threads()
    assert environment.cores >= 1
    assert environment.memory_gib > 0
    assert (environment.device, environment.compute_capability) == ("cpu", None)


def test_bf16_units() -> None:
    assert has_bf16_units(("avx2", "avx512_bf16"))
    assert has_bf16_units(("amx_bf16",))
    assert not has_bf16_units(("avx512f", "avx512_vnni"))
