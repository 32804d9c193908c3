"""Header frames: every kind survives the wire, and ``decode`` raises only MalformedMessage, whatever the bytes."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.inboxes import INBOXES

from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.framing import (
    KINDS,
    MOST_REASONS,
    TELL_EVERY_S,
    Ignored,
    MalformedMessage,
    OtherProtocol,
    UnexpectedKind,
    decode,
    decode_at,
    encode,
    kind_of,
    parse_presence,
    presence_topic,
)

BYE = m.Bye(run="r", shard=1, incarnation=2, generation=3, version=4)


def values(hint: Any, most: int | None = None) -> st.SearchStrategy[Any]:
    """All values that an annotation in ``messages.py`` allows. Lists are limited to a few items for speed."""
    if get_origin(hint) is Annotated:
        base, limit = hint.__origin__, hint.__metadata__[0]
        if isinstance(limit, m.Uint):
            top = 2**limit.bits - 1
            return st.integers(0, top) | st.sampled_from([0, top])
        return values(base, limit.most)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is tuple:
        return st.lists(values(get_args(hint)[0]), max_size=min(most or 6, 6)).map(tuple)
    if hint is str:
        assert most is not None
        text = st.text(st.characters(codec="utf-8"), max_size=min(most, 80))
        return text | st.sampled_from(["x" * most, "\N{GRINNING FACE}" * most])
    if hint is bytes:
        assert most is not None
        return st.binary(max_size=64) | st.just(b"\xff" * most)
    if hint is bool:
        return st.booleans()
    if hint is type(None):
        return st.none()
    if hasattr(hint, "_fields"):  # a named tuple
        return st.tuples(*map(values, get_type_hints(hint, include_extras=True).values())).map(hint._make)
    return st.one_of([values(option) for option in get_args(hint)])


def messages_of(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls, include_extras=True)
    return st.builds(cls, **{field.name: values(hints[field.name]) for field in fields(cls)})


any_message = st.sampled_from(list(KINDS.values())).flatmap(messages_of)
plain_data = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20) | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


def packed(*fields: object) -> bytes:
    data: bytes = msgpack.packb(list(fields))
    return data


def decodes_or_is_malformed(frame: bytes) -> None:
    try:
        message = decode(frame)
    except MalformedMessage:
        return
    assert decode(encode(message)) == message


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_every_kind_of_message_survives_the_wire(kind: str, data: st.DataObject) -> None:
    message = data.draw(messages_of(KINDS[kind]))
    frame = encode(message)
    assert len(frame) <= m.MAX_HEADER_BYTES
    assert decode(frame) == message
    assert decode(memoryview(frame)) == message


def test_kinds_are_upper_case_words_joined_by_underscores() -> None:
    assert kind_of(m.SnapshotRequest) == "SNAPSHOT_REQUEST"
    assert kind_of(m.Bye) == "BYE"


def test_a_header_is_one_array_of_protocol_kind_and_fields_in_declared_order() -> None:
    assert msgpack.unpackb(encode(BYE)) == ["zmqrl/1", "BYE", "r", 1, 2, 3, 4]


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_malformed(frame: bytes) -> None:
    decodes_or_is_malformed(frame)


@given(plain_data)
def test_arbitrary_data_is_malformed(data: object) -> None:
    decodes_or_is_malformed(packed(data))


@given(st.sampled_from(sorted(KINDS)), st.lists(plain_data, max_size=14))
def test_arbitrary_fields_are_malformed(kind: str, values: list[object]) -> None:
    decodes_or_is_malformed(packed(m.PROTOCOL, kind, *values))


@given(any_message, st.data())
def test_a_message_with_a_field_of_another_type_is_malformed_or_decodes_to_another_message(
    message: m.Message, data: st.DataObject
) -> None:
    array = msgpack.unpackb(encode(message))
    array[data.draw(st.integers(0, len(array) - 1))] = data.draw(plain_data)
    decodes_or_is_malformed(packed(*array))


@given(any_message, st.data())
def test_flipped_bytes_raise_only_malformed_message(message: m.Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    decodes_or_is_malformed(bytes(frame))


@given(any_message, st.data())
def test_a_truncated_or_extended_header_is_malformed(message: m.Message, data: st.DataObject) -> None:
    frame = encode(message)
    cut = data.draw(st.integers(0, len(frame) - 1))
    for wrong in (frame[:cut], frame + b"\0", frame + frame):
        with pytest.raises(MalformedMessage):
            decode(wrong)


@pytest.mark.parametrize("depth", [10, 300, 500, 900, 1000, 1020, 2000, 30_000])
@pytest.mark.parametrize("prefix", [b"", b"\x94\xa7zmqrl/1\xa4LEFT", b"\x94\xa7zmqrl/1\xa4LEFT\xa1r"])
def test_deep_nesting_is_malformed(prefix: bytes, depth: int) -> None:
    for inner in (b"\x91" * depth + b"\0", b"\x81\xa1k" * depth + b"\0"):
        with pytest.raises(MalformedMessage):
            decode(prefix + inner)
        with pytest.raises(MalformedMessage):
            decode(prefix + inner + b"\0")


def test_a_header_above_its_limit_is_not_parsed() -> None:
    with pytest.raises(MalformedMessage, match="65537 bytes"):
        decode(bytes(m.MAX_HEADER_BYTES + 1))


@pytest.mark.parametrize(
    "frame",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xdc\x04\x01" + b"\0" * 1025,
    ],
    ids=["array", "map", "text", "bytes", "extension", "array of 1025"],
)
def test_a_length_above_its_limit_is_malformed_and_nothing_is_allocated_for_it(frame: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(frame)


@pytest.mark.parametrize(
    "fields",
    [
        ("zmqrl/2", "BYE", "r", 1, 2, 3, 4),
        ("zmqrl/1", "GOOD_BYE", "r", 1, 2, 3, 4),
        ("zmqrl/1", 7, "r", 1, 2, 3, 4),
        ("zmqrl/1", "BYE", "r", 1, 2, 3),
        ("zmqrl/1", "BYE", "r", 1, 2, 3, 4, 5),
        ("zmqrl/1", "BYE", "x" * 65, 1, 2, 3, 4),
        ("zmqrl/1", "BYE", b"r", 1, 2, 3, 4),
        ("zmqrl/1", "BYE", "r", 2**16, 2, 3, 4),
        ("zmqrl/1", "BYE", "r", -1, 2, 3, 4),
        ("zmqrl/1", "BYE", "r", True, 2, 3, 4),
        ("zmqrl/1", "BYE", "r", 1.0, 2, 3, 4),
        ("zmqrl/1", "BYE", "r", None, 2, 3, 4),
        ("zmqrl/1", "BYE", "r", 1, 2**53, 3, 4),
        ("zmqrl/1", "BYE", "r", 1, 2, 2**32, 4),
        ("zmqrl/1", "STOP", "r", "7"),
        ("zmqrl/1", "REFUSE", "r", ["run"], "because"),
    ],
)
def test_a_field_outside_its_limits_is_malformed(fields: tuple[object, ...]) -> None:
    with pytest.raises(MalformedMessage):
        decode(packed(*fields))


def test_every_kind_belongs_in_an_inbox() -> None:
    assert set().union(*(inbox.kinds for inbox in INBOXES)) == set(KINDS.values())
    assert len({(inbox.receiver, inbox.socket) for inbox in INBOXES}) == len(INBOXES)


@pytest.mark.parametrize("inbox", INBOXES, ids=lambda inbox: f"{inbox.socket} of a {inbox.receiver}")
@given(message=any_message, payloads=st.integers(0, 2))
def test_a_misplaced_kind_or_a_wrong_number_of_frames_is_refused(
    inbox: m.Inbox[Any], message: m.Message, payloads: int
) -> None:
    if type(message) in inbox.kinds and payloads == (type(message) in m.WITH_PAYLOAD):
        assert decode_at(inbox, encode(message), payloads) == message
    else:
        with pytest.raises(UnexpectedKind, match=kind_of(type(message))):
            decode_at(inbox, encode(message), payloads)


def test_a_kind_that_this_zmqrl_does_not_know_is_named() -> None:
    with pytest.raises(UnexpectedKind, match=r"^unknown kind 'GOOD_BYE'$"):
        decode_at(m.PUBLICATIONS, packed("zmqrl/1", "GOOD_BYE", "r", 1, 2, 3, 4), 0)


def test_a_hostile_peer_cannot_flood_the_log() -> None:
    ignored = Ignored()
    for number in range(10_000):
        ignored.add(f"unknown kind 'X{number}'")
    first = ignored.take(0.0)
    assert "1 x unknown kind 'X0'" in first
    assert f"{10_000 - MOST_REASONS} x others" in first
    ignored.add("BYE on ROUTER of a shard")
    ignored.add("BYE on ROUTER of a shard")
    assert ignored.take(TELL_EVERY_S - 0.1) == ""
    assert ignored.take(TELL_EVERY_S) == "ignored messages: 2 x BYE on ROUTER of a shard"
    assert ignored.take(3 * TELL_EVERY_S) == ""
    ignored.add("BYE on ROUTER of a shard")
    assert ignored.take(TELL_EVERY_S + 0.1) == ""
    assert ignored.take_all() == "ignored messages: 1 x BYE on ROUTER of a shard"
    assert ignored.take_all() == ""


def test_the_last_field_of_hello_is_optional_and_is_omitted_if_empty() -> None:
    hello = m.Hello(run="r", layout="l", role="worker", rank=0, incarnation=1, host="h", pid=1, secret="")
    assert msgpack.unpackb(encode(hello))[2:] == ["r", "l", "worker", 0, 1, "h", 1, ""]
    named = replace(hello, code="0.1.0")
    assert decode(encode(named)) == named
    assert len(msgpack.unpackb(encode(named))) == 11


def test_only_a_refusal_can_be_read_from_another_protocol_version() -> None:
    refuse = m.Refuse(run="r", code="protocol", reason="because")
    assert decode(packed("zmqrl/2", *msgpack.unpackb(encode(refuse))[1:])) == refuse
    with pytest.raises(OtherProtocol) as other:
        decode(packed("zmqrl/2", "HELLO", []))
    assert (other.value.protocol, other.value.kind) == ("zmqrl/2", "HELLO")


def test_the_longest_reason_can_have_any_characters() -> None:
    refuse = m.Refuse(run="r", code="run", reason="\N{GRINNING FACE}" * 1000)
    assert decode(encode(refuse)) == refuse


def test_a_refusal_with_an_unknown_code_can_be_read() -> None:
    refuse = decode(msgpack.packb(["zmqrl/1", "REFUSE", "r", "whim", "because"]))
    assert refuse == m.Refuse(run="r", code="whim", reason="because")


def largest_stats() -> m.Stats:
    """The statistics of the largest cluster."""
    ranks = tuple(range(m.MAX_WORKERS))
    top = 2**53 - 1
    return m.Stats(
        run="\N{GRINNING FACE}" * 64,
        shard=2**16 - 1,
        incarnation=top,
        generation=2**32 - 1,
        version=top,
        view=2**32 - 1,
        quorum=m.MAX_WORKERS,
        state="ended",
        held=ranks,
        present=ranks,
        silent_ms=(top,) * len(ranks),
        tallies=tuple(m.RankTally(rank, top, top, top, top) for rank in ranks),
        unattributed=top,
        captured=top,
        totals=(top,) * 4,
        captured_totals=(top,) * 4,
        stop=top,
        failure="\N{GRINNING FACE}" * 1000,
        span_ranks=ranks[-m.MOST_SPANS :],
        spans=("\N{GRINNING FACE}" * m.LONGEST_SPAN_NAME,) * m.MOST_SPANS,
        span_ms=(top,) * m.MOST_SPANS,
    )


def test_the_statistics_of_the_largest_cluster_fit_into_a_header() -> None:
    stats = largest_stats()
    frame = encode(stats)
    assert len(frame) <= m.MAX_HEADER_BYTES
    assert decode(frame) == stats


@pytest.mark.parametrize("tally", [(), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, -1), (0, "1", 2, 3, 4), 7])
def test_a_tally_other_than_a_rank_and_its_four_counts_is_malformed(tally: object) -> None:
    values = msgpack.unpackb(encode(replace(largest_stats(), tallies=(m.RankTally(3, 4, 5, 6, 7),))))
    place = 2 + [field.name for field in fields(m.Stats)].index("tallies")
    assert values[place] == [[3, 4, 5, 6, 7]]
    found = decode(packed(*values))
    assert isinstance(found, m.Stats)
    assert found.tallies[0].used == 4
    values[place] = [tally]
    with pytest.raises(MalformedMessage, match=r"STATS\.tallies"):
        decode(packed(*values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """A kind of message whose list of named tuples is optional and has no limit of its own."""

    run: m.Name
    tallies: tuple[m.RankTally, ...] = ()


def test_an_optional_list_of_named_tuples_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    hints = tuple(get_type_hints(Later, include_extras=True).items())
    named = tuple((name, item) for name, hint in hints if (item := framing._named_item(hint)) is not None)
    assert named == (("tallies", m.RankTally),)
    monkeypatch.setitem(framing.KINDS, "LATER", Later)
    monkeypatch.setitem(framing._HINTS, Later, hints)
    monkeypatch.setitem(framing._LEAST_FIELDS, Later, 1)
    monkeypatch.setitem(framing._NAMED, Later, named)
    assert decode(packed(m.PROTOCOL, "LATER", "r")) == Later(run="r")  # type: ignore[comparison-overlap]
    found: Any = decode(packed(m.PROTOCOL, "LATER", "r", [[0, 1, 2, 3, 4]]))
    assert found.tallies[0].used == 1


@pytest.mark.parametrize("hint", [m.RankTally, m.RankTally | None, m.Tallies | None, tuple[m.RankTally, m.RankTally]])
def test_a_named_tuple_outside_a_list_is_a_mistake(hint: Any) -> None:
    with pytest.raises(AssertionError, match="is not a list of named tuples"):
        framing._named_item(hint)


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**53 - 1))
def test_a_presence_topic_names_rank_and_incarnation(rank: int, incarnation: int) -> None:
    topic = presence_topic(rank, incarnation)
    assert parse_presence(topic) == (rank, incarnation)
    assert len(topic) < m.MAX_SUBSCRIPTION_BYTES
    assert topic not in m.TOPICS


@given(st.binary(max_size=40) | st.from_regex(rb"P/[0-9 +_-]{0,20}/[0-9 +_-]{0,20}", fullmatch=True))
def test_any_other_topic_names_no_worker(topic: bytes) -> None:
    presence = parse_presence(topic)
    assert presence is None or presence_topic(*presence) == topic


@pytest.mark.parametrize(
    "topic", [b"P/01/2", b"P/1/2/3", b"P/1", b"Q/1/2", b"P/-1/2", b"P/65536/1", b"P/1/9007199254740992", b"P/\xb2/1"]
)
def test_a_presence_topic_has_only_one_spelling(topic: bytes) -> None:
    assert parse_presence(topic) is None
