"""One DICOM object as values: pydicom knows structure and value representations; texts are read by ``texts``.

``Item`` is a data set or an item of a sequence. Elements are named by keyword (PS3.6); what is absent or empty is empty text or ().
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from typing import Any, Final

from pydicom import config
from pydicom.datadict import dictionary_has_tag, dictionary_keyword, dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset

from adapters.contract import Unreadable
from adapters.dicom import texts
from adapters.dicom.structure import Part10
from adapters.dicom.texts import Texts
from conformance.issue import Issue

_LABEL: Final = 0x00080005
_TEXT: Final = frozenset({"PN", "LO", "SH", "LT", "ST", "UT", "UC"})
"""Value representations that (0008,0005) is about."""
_ASCII: Final = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI", "UR"})
_SINGLE: Final = frozenset({"LT", "ST", "UT", "UR"})
"""Texts in which a backslash is a character (PS3.5 section 6.4)."""
FAULTS: Final = (
    ArithmeticError, AttributeError, EOFError, InvalidDicomError, LookupError, NotImplementedError, OSError, RecursionError, TypeError,
    ValueError, struct.error,
)  # fmt: skip
"""What pydicom raises for damaged bytes: it has no common base for its faults, and lets those of the functions it calls through.
Only calls of pydicom stand under it (its own BytesLengthException is a ValueError)."""

# Values are checked where they are read; pydicom's own checks would warn on standard output of what is not looked at.
config.settings.reading_validation_mode = config.IGNORE


class Item:
    """A data set, or an item of one of its sequences."""

    __slots__ = ("_data", "_texts")

    def __init__(self, data: Dataset, read: Texts) -> None:
        self._data = data
        self._texts = read

    @classmethod
    def empty(cls) -> Item:
        """An item without elements."""
        return cls(Dataset(), Texts("ascii"))

    def text(self, keyword: str) -> str:
        """The first value as text, blanks gone; of a text that knows no several values the whole."""
        return next(iter(self.texts(keyword)), "")

    def texts(self, keyword: str) -> list[str]:
        """All values as texts; empty ones stay in their place, except at the end."""
        raw, kind = self._raw(keyword)
        if not raw:
            return []
        if not isinstance(raw, bytes):
            values = [raw] if isinstance(raw, str) or not hasattr(raw, "__iter__") else list(raw)
            return [str(v).strip() for v in values]
        whole = (
            self._texts.read(raw)
            if kind in _TEXT or kind == "UN" or not raw.isascii()
            else raw.decode("ascii", "replace").strip(" \0")
        )
        values = [whole] if kind in _SINGLE else [v.strip(" \0") for v in whole.split("\\")]
        while values and not values[-1]:
            values.pop()
        return values

    def number(self, keyword: str) -> int | None:
        """The first value as an integer, None when it is none (IS, US, UL)."""
        raw, kind = self._raw(keyword)
        if isinstance(raw, bytes) and kind in ("US", "UL", "SS", "SL"):
            found = self._value(keyword)
            found = found[0] if isinstance(found, list | tuple) and found else found
            return int(found) if isinstance(found, int) else None
        try:
            return int(self.text(keyword))
        except ValueError:
            return None

    def data(self, keyword: str) -> bytes:
        """The bytes of an OB, OW or UN value."""
        raw, _ = self._raw(keyword)
        return raw if isinstance(raw, bytes) else b""

    def items(self, keyword: str) -> list[Item]:
        """The items of a sequence."""
        found = self._value(keyword)
        if found is None or isinstance(found, bytes | str) or not hasattr(found, "__iter__"):
            return []
        return [Item(i, self._of(i)) for i in found if isinstance(i, Dataset)]

    def item(self, keyword: str) -> Item:
        """The first item of a sequence; an empty one when there is none."""
        return next(iter(self.items(keyword)), Item(Dataset(), self._texts))

    def others(self, groups: frozenset[int], known: frozenset[int]) -> Iterator[tuple[str, str]]:
        """Texts of the elements of some groups that are not known: place and text."""
        for tag in sorted(self._data.keys()):
            if tag.group in groups and int(tag) not in known and dictionary_has_tag(tag):
                keyword = dictionary_keyword(tag)
                if _vr(tag) in _TEXT | _ASCII and (said := " ".join(self.texts(keyword))):
                    yield f"({tag.group:04X},{tag.element:04X}) {keyword}", said

    def name(self, keyword: str) -> tuple[str, ...]:
        """A person name as family, given, middle, prefix, suffix."""
        return texts.person_name(self.text(keyword))

    def _of(self, inner: Dataset) -> Texts:
        """An item may name a character set of its own (PS3.3 C.12.1.1.2)."""
        if _LABEL not in inner:
            return self._texts
        return texts.choose(_labels(inner), list(_foreign(inner)), self._texts.fallback)

    def __bool__(self) -> bool:
        return len(self._data) > 0

    def _raw(self, keyword: str) -> tuple[Any, str]:
        tag = tag_for_keyword(keyword)
        if tag is None or tag not in self._data:
            return b"", ""
        element = self._data.get_item(tag)
        kind = str(element.VR or "") if element is not None else ""
        if not kind or kind == "UN":
            kind = _vr(tag)
        return (element.value if element is not None else b""), kind

    def _value(self, keyword: str) -> Any:
        tag = tag_for_keyword(keyword)
        if tag is None or tag not in self._data:
            return None
        try:
            return self._data[tag].value
        except FAULTS:
            raise damaged(keyword) from None


def damaged(keyword: str) -> Unreadable:
    """The refusal of an object whose element cannot be read."""
    words = f"The element {keyword} is damaged; send the object again."
    return Unreadable(Issue("dicom-damaged", "error", keyword, words))


def _vr(tag: int) -> str:
    return str(dictionary_VR(tag)) if dictionary_has_tag(tag) else "UN"


def of_part(part: Part10, fallback_charset: str, wanted: frozenset[int] | None = None) -> tuple[Item, Texts]:
    """One object that was taken apart.

    wanted  tags to read; None: all. Raises Unreadable (``charset-unknown``, ``dicom-damaged``)
    """
    stream = io.BytesIO(part.dataset[: part.pixels])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = read_dataset(
                stream, not part.explicit, part.little, specific_tags=list(wanted) if wanted is not None else None
            )
            foreign = list(_foreign(data))
    except FAULTS:
        raise Unreadable(
            Issue("dicom-damaged", "error", "", "The data set cannot be read; send the object again.")
        ) from None
    found = texts.choose(_labels(data), foreign, fallback_charset)
    return Item(data, found), found


def _labels(data: Dataset) -> list[str]:
    element = data.get_item(_LABEL) if _LABEL in data else None
    written = element.value if element is not None else b""
    if isinstance(written, bytes):
        return written.decode("ascii", "replace").strip(" \0").split("\\")
    return [str(v) for v in ([written] if isinstance(written, str) else written or [])]


def _foreign(data: Dataset) -> Iterator[bytes]:
    """Text values that are not ASCII, also inside sequences; not of items that name a character set of their own."""
    for tag in list(data.keys()):
        element = data.get_item(tag)
        if element is None:
            continue
        kind = element.VR or _vr(tag)
        if kind == "UN":
            kind = _vr(tag)
        if kind == "SQ":
            for inner in data[tag].value or ():
                if _LABEL not in inner:
                    yield from _foreign(inner)
        elif (
            (kind in _TEXT or kind == "CS")
            and isinstance(element.value, bytes)
            and (not element.value.isascii() or b"\x1b" in element.value)
        ):
            yield element.value
