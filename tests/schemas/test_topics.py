"""The grammar of identifiers, topics, subjects and filters, hostile names among them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Refused, RefusedBecause
from schemas.limits import TOPIC_BYTES_MAX
from schemas.messages import Lane
from schemas.topics import (
    Channel,
    LocalTopic,
    Subject,
    check_filter,
    check_identifier,
    check_topic,
    is_identifier,
    matches,
    upstream_filter,
)

HOSTILE = [
    "",
    "a/b",
    "a.b",
    "..",
    "+",
    "#",
    "*",
    ">",
    "$SYS",
    "a b",
    "A",
    "a\n",
    "a\0",
    "-a",
    "_a",
    "ä",
    "\u0430",
    "a" * 64,
    "a" * 65536,
    "\ud800",
    "a\u202e",
]
_identifier = st.from_regex(r"\A[a-z0-9][a-z0-9_-]{0,62}\Z")
_level = st.text(st.characters(exclude_characters="/+#", exclude_categories=["C"]), max_size=5)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_no_identifiers(text: str) -> None:
    """Refusals 7 and 37: they reach no topic, no subject and no path."""
    assert not is_identifier(text)
    with pytest.raises(Refused) as refused:
        check_identifier("node", text)
    assert refused.value.reason is RefusedBecause.BAD_NAME
    assert len(str(refused.value)) < 1200, "what is said of it stays short"
    for make in (
        lambda: LocalTopic(text, "n", Channel.EVENT, "x"),
        lambda: LocalTopic("s", text, Channel.EVENT, "x"),
        lambda: LocalTopic("s", "n", Channel.EVENT, text),
        lambda: Subject(text, "n", "up", "x"),
        lambda: Subject("s", text, "up", "x"),
        lambda: Subject("s", "n", "down", text),
        lambda: Subject("s", "n", text, "x"),
    ):
        with pytest.raises(Refused):
            make()


@given(_identifier, _identifier, st.sampled_from(Channel), _identifier)
def test_topics_are_read_as_they_were_built(
    site: str, node: str, channel: Channel, name: str
) -> None:
    """Text and back."""
    topic = LocalTopic(site, node, channel, name)
    assert LocalTopic.parse(str(topic)) == topic
    assert check_topic(str(topic)) == str(topic)
    subject = Subject(site, node, "up", name)
    assert Subject.parse(str(subject)) == subject
    assert str(subject).replace(".", "/").split("/")[2:4] == str(topic).split("/")[2:4]


@given(st.text(max_size=60))
def test_parsing_refuses_or_gives_back_the_same_text(text: str) -> None:
    """Nothing is read into a topic that is not in it."""
    for parse in (LocalTopic.parse, Subject.parse):
        for candidate in (text, f"mesh/v1/{text}", f"mesh.v1.{text}"):
            reason = RefusedBecause.BAD_NAME
            try:
                assert str(parse(candidate)) == candidate
            except Refused as refused:
                reason = refused.reason
            assert reason is RefusedBecause.BAD_NAME


@pytest.mark.parametrize(
    "text",
    [
        "mesh/v1/s/n/event",
        "mesh/v1/s/n/event/x/y",
        "mesh/v2/s/n/event/x",
        "mesh/v1/s/n/elsewhere/x",
        "/mesh/v1/s/n/event/x",
        "mesh.v1.s.n.up.x",
    ],
)
def test_other_shapes_are_none_of_our_topics(text: str) -> None:
    """Six levels, our prefix, a known channel."""
    with pytest.raises(Refused):
        LocalTopic.parse(text)


def test_each_lane_can_be_a_subject() -> None:
    """Lanes are identifiers."""
    for lane in Lane:
        assert Subject.parse(str(Subject("s", "n", "up", lane))).name == lane


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a+b",
        "a/#",
        "#",
        "a\0b",
        "a\x1f",
        "\x7f",
        "\x9f",
        "\ufdd0",
        "\uffff",
        "\U0001fffe",
        "\ud800",
    ],
)
def test_what_cannot_be_published_under_is_refused(text: str) -> None:
    """MQTT 3.1.1, sections 1.5.3 and 4.7: wildcards, controls, non-characters, surrogates."""
    with pytest.raises(Refused) as refused:
        check_topic(text)
    assert refused.value.reason is RefusedBecause.BAD_NAME


@given(_identifier, _identifier, st.sampled_from(["up", "down"]), _identifier)
def test_a_subject_has_one_topic_and_the_filters_that_select_it(
    site: str, node: str, way: str, name: str
) -> None:
    """Slashes for dots, there and back; selected by the filters of its way, site and node only."""
    subject = Subject(site, node, way, name)
    assert subject.topic == str(subject).replace(".", "/")
    assert Subject.parse_topic(subject.topic) == subject
    other = "up" if way == "down" else "down"
    for wanted_site in (site, None):
        for wanted_node in (node, None):
            assert matches(upstream_filter(way, wanted_site, wanted_node), subject.topic)
            assert not matches(upstream_filter(other, wanted_site, wanted_node), subject.topic)
    elsewhere = ("b" if site[0] == "a" else "a") + site[1:]
    assert not matches(upstream_filter(way, elsewhere, None), subject.topic)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mesh/v1/s/n/up",
        "mesh/v1/s/n/up/x/y",
        "mesh/v2/s/n/up/x",
        "mesh.v1.s.n.up.x",
        "mesh/v1/s/n/sideways/x",
        "mesh/v1/s/+/up/x",
        "/mesh/v1/s/n/up",
        "x" * 70_000,
    ],
)
def test_other_shapes_are_no_upstream_topics(text: str) -> None:
    """Six levels, our prefix, up or down, identifiers; what is said of it stays short."""
    with pytest.raises(Refused) as refused:
        Subject.parse_topic(text)
    assert refused.value.reason is RefusedBecause.BAD_NAME
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_name_is_in_no_upstream_filter(text: str) -> None:
    """Refusal 6: a wildcard cannot be smuggled in as the name of a site or a node."""
    for site, node in ((text, None), (None, text)):
        with pytest.raises(Refused):
            upstream_filter("up", site, node)


def test_length_counts_in_bytes() -> None:
    """1024 bytes, not characters."""
    assert check_topic("a" * TOPIC_BYTES_MAX)
    with pytest.raises(Refused):
        check_topic("a" * (TOPIC_BYTES_MAX + 1))
    with pytest.raises(Refused):
        check_topic("ä" * TOPIC_BYTES_MAX)


@pytest.mark.parametrize("text", ["a/+/b", "+", "#", "a/#", "+/+/#", "/", "a//b", "$SYS/#"])
def test_filters_that_are_valid(text: str) -> None:
    """A wildcard fills its level."""
    assert check_filter(text) == text


@pytest.mark.parametrize("text", ["a+", "+a/b", "a#", "#/a", "a/#/b", "##", "a/b#", "", "a/\0"])
def test_filters_that_are_not(text: str) -> None:
    """A wildcard beside something else, or ``#`` before the end."""
    with pytest.raises(Refused):
        check_filter(text)


@pytest.mark.parametrize(
    ("wanted", "topic", "selected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/c", False),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("+/b", "a/b", True),
        ("+", "a/b", False),
        ("a/+", "a/", True),
        ("a/+", "a", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b/c", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("$SYS/+", "$SYS/x", True),
        ("/+", "/a", True),
        ("+", "", True),
    ],
)
def test_filters_select_as_in_the_standard(wanted: str, topic: str, *, selected: bool) -> None:
    """MQTT 3.1.1, section 4.7, with its examples."""
    assert matches(wanted, topic) is selected


@given(st.lists(_level, min_size=1, max_size=5), st.data())
def test_a_level_made_a_wildcard_still_selects(levels: list[str], data: st.DataObject) -> None:
    """Each ``+`` for one level, ``#`` for the rest."""
    topic = "/".join(levels)
    assert matches(topic, topic) or topic.startswith("$")
    index = data.draw(st.integers(0, len(levels) - 1))
    expected = not (index == 0 and topic.startswith("$"))
    assert matches("/".join([*levels[:index], "+", *levels[index + 1 :]]), topic) is expected
    assert matches("/".join([*levels[:index], "#"]), topic) is expected
