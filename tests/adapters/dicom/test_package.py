"""Study packages: what goes in comes out; headers end before the pixels; cut and hostile objects are refused with the reason."""

from __future__ import annotations

import random
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from adapters.contract import Unreadable
from adapters.dicom import structure
from adapters.dicom.package import header_bytes, pack, unpack
from adapters.dicom.signature import PACKAGE
from tests.dicom_objects import SYNTAXES, image, part10


@given(st.lists(st.binary(max_size=200), max_size=8))
def test_a_package_gives_back_the_objects_that_were_put_in(objects: list[bytes]) -> None:
    assert list(unpack(pack(objects))) == objects


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4), st.data())
def test_a_package_cut_anywhere_gives_a_part_of_the_objects_or_says_that_it_was_cut(
    objects: list[bytes], data: Any
) -> None:
    whole = pack(objects)
    cut = whole[: data.draw(st.integers(len(PACKAGE), len(whole) - 1))]
    try:
        found = list(unpack(cut))
    except Unreadable as refused:
        assert refused.issue.key == "dicom-truncated"
    else:
        assert found == objects[: len(found)] and len(found) < len(objects)


def test_a_single_object_is_a_package_of_one() -> None:
    raw = part10(image())
    assert list(unpack(raw)) == [raw]
    with pytest.raises(Unreadable, match="neither a DICOM object"):
        list(unpack(b"MSH|^~\\&|"))


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: str(s.name))
def test_the_header_of_an_image_ends_before_its_pixels(syntax: Any) -> None:
    raw = part10(image(), syntax)
    head = header_bytes(raw)
    assert raw.startswith(head)
    assert header_bytes(head) == head
    found = structure.take_apart(head)
    whole = structure.take_apart(raw)
    assert found.dataset[: found.pixels] == whole.dataset[: whole.pixels]
    assert whole.pixels < len(whole.dataset)


def test_an_object_without_pixels_is_kept_whole() -> None:
    raw = part10(image(pixels=False))
    assert header_bytes(raw) == raw


def test_an_object_cut_at_any_byte_never_ends_in_another_error() -> None:
    data = image(ReferencedPerformedProcedureStepSequence=Sequence([image(pixels=False)]))
    for syntax in SYNTAXES:
        raw = part10(data, syntax)
        for end in range(len(raw)):
            try:
                assert raw.startswith(header_bytes(raw[:end]))
            except Unreadable as refused:
                assert refused.issue.key in {"not-dicom", "dicom-truncated", "dicom-bad-length"}


def test_damaged_objects_are_refused_or_read_but_break_nothing() -> None:
    chance = random.Random(20260301)
    raw = part10(image(RequestAttributesSequence=Sequence([image(pixels=False)])))
    for _ in range(2000):
        damaged = bytearray(raw)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(128, len(raw))] = chance.choice((0, 0xFF, 0x7F, chance.randrange(256)))
        try:
            header_bytes(bytes(damaged))
        except Unreadable as refused:
            assert refused.issue.text


def test_a_length_beyond_the_end_is_refused() -> None:
    raw = part10(image(), ImplicitVRLittleEndian)
    at = raw.index(struct.pack("<HHL", 0x0008, 0x0060, 2))
    absurd = raw[: at + 4] + struct.pack("<L", 0xFFFFFF00) + raw[at + 8 :]
    with pytest.raises(Unreadable, match=r"\(0008,0060\) leads beyond the end") as refused:
        header_bytes(absurd)
    assert refused.value.issue.key == "dicom-bad-length"


def nested(depth: int, undefined: bool) -> Dataset:
    inner = Dataset()
    inner.CodeValue = "1"
    for _ in range(depth):
        outer = Dataset()
        outer.ContentSequence = Sequence([inner])
        outer["ContentSequence"].is_undefined_length = undefined
        inner.is_undefined_length_sequence_item = undefined
        inner = outer
    return inner


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda s: str(s.name)
)
def test_sequences_nested_too_deep_are_refused(undefined: bool, syntax: Any) -> None:
    def made(depth: int) -> bytes:
        return part10(image(pixels=False, ContentSequence=nested(depth, undefined).ContentSequence), syntax)

    assert header_bytes(made(structure.MAX_DEPTH - 1))
    with pytest.raises(Unreadable) as refused:
        header_bytes(made(structure.MAX_DEPTH + 1))
    assert refused.value.issue.key == "dicom-too-deep"


def test_ten_thousand_opened_items_are_refused_at_once() -> None:
    head = part10(image(pixels=False), ImplicitVRLittleEndian)
    bomb = (
        head
        + struct.pack("<HHL", 0x0040, 0xA730, 0xFFFFFFFF)
        + struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) * 10_000
    )
    with pytest.raises(Unreadable) as refused:
        header_bytes(bomb)
    assert refused.value.issue.key == "dicom-too-deep"


def test_items_without_end_are_refused_before_each_is_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "MAX_ITEMS", 1_000)
    head = part10(image(pixels=False), ImplicitVRLittleEndian)
    empty = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    for number, refused in ((1_000, False), (1_001, True)):
        whole = head + struct.pack("<HHL", 0x0040, 0xA730, len(empty) * number) + empty * number
        if refused:
            with pytest.raises(Unreadable, match="more than 1000 items") as fault:
                header_bytes(whole)
            assert fault.value.issue.key == "too-large"
        else:
            assert header_bytes(whole) == whole


def test_a_deflated_data_set_that_grows_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "MAX_HEADER", 1_000_000)
    deflated = part10(image(), SYNTAXES[3])
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    meta = deflated[: structure._meta(deflated)[0]]
    with pytest.raises(Unreadable) as refused:
        header_bytes(meta + squeeze.compress(bytes(5_000_000)) + squeeze.flush())
    assert refused.value.issue.key == "too-large"
