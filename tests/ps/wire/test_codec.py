"""Payloads on the wire hold the same bits as torch's conversion, and no number is lost."""

import json
import re
import struct
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zmqrl.errors import UsageError
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.layout import Layout
from zmqrl.ps.wire import codec
from zmqrl.ps.wire.codec import CODECS, FloatVector
from zmqrl.ps.wire.messages import Codec

BITS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50)


def from_bits(bits: list[int]) -> FloatVector:
    return np.array(bits, np.uint32).view(np.float32)


def torch_bfloat16(vector: FloatVector) -> np.ndarray:
    return torch.from_numpy(vector).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def assert_same_as_torch(vector: FloatVector) -> None:
    ours, nan = CODECS["bf16"].encode(vector), np.isnan(vector)
    np.testing.assert_array_equal(ours[~nan], torch_bfloat16(vector)[~nan])
    # torch itself makes different NaNs, depending on the processor's instructions
    assert np.isnan(CODECS["bf16"].as_float32(ours)[nan]).all()


def test_every_upper_half_with_every_kind_of_lower_half_is_rounded_as_torch_does() -> None:
    upper = np.arange(2**16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        assert_same_as_torch((upper | np.uint32(lower)).view(np.float32))


@given(BITS)
def test_any_float_is_rounded_as_torch_does(bits: list[int]) -> None:
    assert_same_as_torch(from_bits(bits))


@pytest.mark.parametrize("size", [1, codec.BLOCK - 1, codec.BLOCK, codec.BLOCK + 1, 3 * codec.BLOCK + 17])
def test_vectors_of_any_number_of_blocks_are_rounded_as_torch_does(size: int) -> None:
    vector = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    vector[-1] = np.nan
    assert_same_as_torch(vector)


@given(BITS)
def test_a_payload_is_finite_if_all_its_numbers_are(bits: list[int]) -> None:
    for each in CODECS.values():
        payload = each.encode(from_bits(bits))
        assert each.is_finite(payload) == np.isfinite(each.as_float32(payload)).all()


def test_an_overflow_becomes_inf_while_inf_and_nan_stay_unchanged() -> None:
    vector = np.array([3.4028235e38, -3.4028235e38, np.inf, -np.inf, np.nan], np.float32)
    back = CODECS["bf16"].as_float32(CODECS["bf16"].encode(vector))
    np.testing.assert_array_equal(back, np.array([np.inf, -np.inf, np.inf, -np.inf, np.nan], np.float32))


def test_a_nan_whose_bits_would_round_to_a_number_stays_nan() -> None:
    back = CODECS["bf16"].as_float32(CODECS["bf16"].encode(from_bits([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001])))
    assert np.isnan(back).all()


def test_f32_is_sent_without_a_copy() -> None:
    vector = np.arange(5, dtype=np.float32)
    assert CODECS["f32"].encode(vector) is vector


@given(bits=BITS, offset=st.integers(0, 7))
def test_a_payload_is_read_at_any_alignment(bits: list[int], offset: int) -> None:
    vector = from_bits(bits)
    for name in ("f32", "bf16"):
        sent = CODECS[name].encode(vector)
        frame = memoryview(bytes(offset) + sent.tobytes())[offset:]
        out = np.empty_like(vector)
        CODECS[name].decode_into(frame, out)
        expected = sent.view(np.uint32) if name == "f32" else sent.astype(np.uint32) << 16
        np.testing.assert_array_equal(out.view(np.uint32), expected)
        assert CODECS[name].as_float32(frame).tobytes() == out.tobytes()


def test_the_bytes_are_little_endian() -> None:
    vector = np.array([1.0, -2.5], np.float32)
    assert CODECS["f32"].encode(vector).tobytes() == struct.pack("<2f", 1.0, -2.5)
    assert CODECS["bf16"].encode(vector).tobytes() == struct.pack("<2H", 0x3F80, 0xC020)


def test_an_f32_payload_is_a_read_only_view() -> None:
    frame = bytearray(struct.pack("<2f", 1.0, 2.0))
    view = CODECS["f32"].as_float32(frame)
    struct.pack_into("<f", frame, 0, 7.0)
    assert view[0] == 7.0
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1.0


@pytest.mark.parametrize(("name", "expected"), [("f32", 40), ("bf16", 20)])
def test_payload_bytes_is_the_length_of_the_sent_payload(name: Codec, expected: int) -> None:
    assert codec.payload_bytes(name, 10) == CODECS[name].encode(np.zeros(10, np.float32)).nbytes == expected


def test_every_codec_of_the_protocol_has_an_entry_and_every_other_name_is_refused() -> None:
    assert tuple(CODECS) == get_args(Codec)
    assert [codec.codec_named(name, "a file") for name in CODECS] == list(CODECS)
    data = Cluster(run="r", layout=Layout.of([("w", (100,))], 1), codec="f32", endpoints=()).to_json()
    known = " and ".join(CODECS)
    with pytest.raises(UsageError, match=f"cluster.json names the codec 'f8', but this zmqrl only has {known}: "):
        Cluster.from_json(data | {"codec": "f8"})


def test_an_error_about_the_codec_of_a_run_names_its_cluster_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    data = Cluster(run="r", layout=Layout.of([("w", (100,))], 1), codec="f32", endpoints=()).to_json()
    path.write_text(json.dumps(data | {"codec": "f8"}), encoding="utf-8")
    with pytest.raises(UsageError, match=re.escape(f"{path} names the codec 'f8', but")):
        Cluster.read(path)


@settings(deadline=None)
@given(BITS)
def test_is_finite_agrees_with_a_check_of_each_number(bits: list[int]) -> None:
    vector = from_bits(bits)
    assert codec.is_finite(vector) == bool(np.isfinite(vector).all())


def test_finite_numbers_whose_sum_overflows_are_finite() -> None:
    assert codec.is_finite(np.full(1000, 3e38, np.float32))
    assert codec.is_finite(np.array([3e38, 3e38, -3e38, -3e38] * 100, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_anywhere_is_found(bad: float) -> None:
    for place in (0, 1234, 99_999):
        vector = np.ones(100_000, np.float32)
        vector[place] = bad
        assert not codec.is_finite(vector)
    assert not codec.is_finite(np.array([np.inf, -np.inf], np.float32))
